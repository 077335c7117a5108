"""How many rows an expert takes.   Spec 2.2"""

from fractions import Fraction
from math import ceil


def capacity_of(dispatch, num_tokens, top_k, num_experts):
    """Rows an expert takes: the capacity, or ceil(capacity_factor T K / E), exactly; None for no limit.   Spec 2.2"""
    if dispatch.capacity_factor is None:
        return dispatch.capacity
    return ceil(Fraction(dispatch.capacity_factor) * num_tokens * top_k / num_experts)
