"""wing: optimisers, tasks, training, experiments, report.   spec/lab

Outside the layer + - * / and sqrt are IEEE, one rounding for each written operation (clause 12 of the arithmetic
contract); sums of products, sums and elementary functions go through `Numerics`. So a run repeats bit for bit.
"""
