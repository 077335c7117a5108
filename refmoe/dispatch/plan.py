"""The plan: from slots to rows. Integers only, no gradient.   Spec 2.1"""

from typing import NamedTuple

import numpy as np

from ..numerics import by_engine
from .drops import kept_slots


class Plan(NamedTuple):
    """Integers that say where every slot went. Nothing here carries gradient."""

    assigned_per_expert: object  # (E,) slots of unmasked tokens before the drop: what losses and controllers read
    tokens_per_expert: object  # (E,) rows kept
    expert_offsets: object  # (E+1,) rows expert_offsets[e] .. expert_offsets[e+1] belong to e
    row_slot: object  # (N,) the slot of each row
    slot_row: object  # (T, K) the row of each slot, -1 where dropped or unused


def make_plan(topk_indices, topk_weights, config, given, scores=None, num=None):
    """Slots to rows: count, drop beyond capacity, sort by expert and token.   Spec 2.1, 2.2

    topk_indices (T, K), topk_weights (T, K) and scores (T, E), read by rules that drop by them; num whose engine sorts,
    or None -> Plan
    """
    T, K = topk_indices.shape
    E = config.num_choices
    kept = kept_slots(topk_indices, topk_weights, config, given, scores) if config.drops else None
    made = by_engine(num, "make_plan", topk_indices, kept, given.token_mask, E)
    if made:
        return Plan(*made)
    kept = topk_indices >= 0 if kept is None else kept
    slots = np.flatnonzero(kept)
    experts = topk_indices.reshape(-1)[slots]
    narrow = experts.astype(np.min_scalar_type(E))  # NumPy sorts ids of 16 bits and less by counting
    row_slot = slots[np.argsort(narrow, kind="stable")].astype(np.int64, copy=False)
    slot_row = np.full(T * K, -1, np.int64)
    slot_row[row_slot] = np.arange(len(row_slot))
    counts = np.bincount(experts, minlength=E).astype(np.int64, copy=False)
    offsets = np.zeros(E + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    return Plan(count_assigned(topk_indices, E, given.token_mask), counts, offsets, row_slot, slot_row.reshape(T, K))


def count_assigned(topk_indices, num_experts, token_mask):
    """Used slots of unmasked tokens, by expert.   Spec 2.1

    topk_indices (T, K), token_mask (T,) bool or None -> (E,) int64
    """
    used = topk_indices >= 0
    if token_mask is not None:
        used = used & token_mask[:, None]
    return np.bincount(topk_indices[used], minlength=num_experts).astype(np.int64, copy=False)


def row_weights(topk_weights, plan):
    """topk_weights (T, K) -> (N,), by row.   Spec 2.3"""
    return topk_weights.reshape(-1)[plan.row_slot]


def row_tokens(plan):
    """(N,) the token of each row.   Spec 2.1"""
    return plan.row_slot // plan.slot_row.shape[1]
