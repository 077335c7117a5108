"""How many rows an expert takes: the formulas by the names of who uses them, in exact rationals.   Spec 2.2"""

from fractions import Fraction
from math import ceil, floor


def capacity_of(dispatch, num_tokens, top_k, num_experts):
    """Rows an expert takes: the number, or what the formula makes of the factor; None for no limit.   Spec 2.2

    The formula's value, at least min_capacity, then up to a multiple of capacity_multiple.
    """
    if dispatch.capacity_factor is None:
        return dispatch.capacity
    factor = Fraction(dispatch.capacity_factor)
    rows = CAPACITY_RULES[dispatch.capacity_rule](factor, num_tokens, top_k, num_experts)
    return None if rows is None else _up(max(rows, dispatch.min_capacity), dispatch.capacity_multiple)


def _up(rows, multiple):
    return -(-rows // multiple) * multiple


# name: (factor f, tokens T, choices K, experts E) -> rows, or None for no limit. What lies behind each name: Spec 2.2.
# round() of a Fraction takes halves to the even neighbour.
CAPACITY_RULES = {
    "ceil": lambda f, T, K, E: ceil(f * T * K / E),
    "deepspeed": lambda f, T, K, E: ceil(f * T * K / E),
    "fastmoe_gshard": lambda f, T, K, E: ceil(f * T) * K // E,
    "fastmoe_switch": lambda f, T, K, E: ceil(f * T / E),
    "flaxformer": lambda f, T, K, E: max(round(f * T / E), 4),
    "gshard": lambda f, T, K, E: _up(floor(f * T / E) or 4, 4),
    "maxtext": lambda f, T, K, E: floor(max(ceil(Fraction(T * K, E)) * f, f)),
    "megablocks": lambda f, T, K, E: floor(f * T * K / E) or None,
    "mesh_tf": lambda f, T, K, E: max(min(T, floor(f * T / E)), 4),
    "tutel": lambda f, T, K, E: K * floor(f * ceil(Fraction(T, E))) if f else None,
    "vmoe": lambda f, T, K, E: _up(ceil(f * T * K / E), 4),
    "vmoe_round": lambda f, T, K, E: _up(round(f * T * K / E), 4),
}
