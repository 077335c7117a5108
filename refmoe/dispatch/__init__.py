"""The plan (who goes where, who is dropped), permute and combine, and back.   Spec 2, 5.6

A slot is a (token, k) pair, numbered t K + k; a row is a position in expert order, an expert's rows in token order.
"""

from .capacity import CAPACITY_RULES, capacity_of
from .drops import (
    DROP_POLICIES,
    SLOT_ORDERS,
    capacity_scopes,
    coin_keeps,
    kept_slots,
)
from .plan import Plan, count_assigned, make_plan, row_tokens, row_weights
from .rows import combine, combine_backward, kept_weights, permute, permute_backward, slot_values, weighted_rows

__all__ = [
    "CAPACITY_RULES",
    "DROP_POLICIES",
    "SLOT_ORDERS",
    "Plan",
    "capacity_of",
    "capacity_scopes",
    "coin_keeps",
    "combine",
    "combine_backward",
    "count_assigned",
    "kept_slots",
    "kept_weights",
    "make_plan",
    "permute",
    "permute_backward",
    "row_tokens",
    "row_weights",
    "slot_values",
    "weighted_rows",
]
