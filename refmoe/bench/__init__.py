"""The measuring instrument: this machine's limits, this library and its peers, in one run.

`refmoe bench` proves the bits of what it will time, then measures: every contestant in a process of its own, in turn
with refmoe, by the clock of that process. What it prints holds for this machine and this run.
"""
