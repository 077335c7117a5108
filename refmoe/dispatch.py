"""The plan (who goes where, who is dropped), permute and combine, and back.   Spec 2, 5.6

A slot is a (token, k) pair, numbered t K + k; a row is a position in expert order, an expert's rows in token order.
"""

from fractions import Fraction
from math import ceil
from typing import NamedTuple

import numpy as np


class Plan(NamedTuple):
    """Integers that say where every slot went. Nothing here carries gradient."""

    assigned_per_expert: object  # (E,) slots of unmasked tokens before the drop: what losses and controllers read
    tokens_per_expert: object  # (E,) rows kept
    expert_offsets: object  # (E+1,) rows expert_offsets[e] .. expert_offsets[e+1] belong to e
    row_slot: object  # (N,) the slot of each row
    slot_row: object  # (T, K) the row of each slot, -1 where dropped or unused


def make_plan(topk_indices, topk_weights, config, given):
    """Slots to rows: count, drop beyond capacity, sort by expert and token.   Spec 2.1, 2.2

    topk_indices (T, K), topk_weights (T, K), read by the probability policy alone -> Plan
    """
    T, K = topk_indices.shape
    E = config.num_choices
    kept = kept_slots(topk_indices, topk_weights, config, given)
    slots = np.flatnonzero(kept)
    experts = topk_indices.reshape(-1)[slots]
    row_slot = slots[np.argsort(experts, kind="stable")].astype(np.int64)
    slot_row = np.full(T * K, -1, np.int64)
    slot_row[row_slot] = np.arange(len(row_slot))
    counts = np.bincount(experts, minlength=E).astype(np.int64)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    return Plan(count_assigned(topk_indices, E, given.token_mask), counts, offsets, row_slot, slot_row.reshape(T, K))


def count_assigned(topk_indices, num_experts, token_mask):
    """Used slots of unmasked tokens, by expert.   Spec 2.1

    topk_indices (T, K), token_mask (T,) bool or None -> (E,) int64
    """
    used = topk_indices >= 0
    if token_mask is not None:
        used = used & token_mask[:, None]
    return np.bincount(topk_indices[used], minlength=num_experts).astype(np.int64)


# --- capacity: Spec 2.2 ----------------------------------------------------------------------------------------------


def capacity_of(dispatch, num_tokens, top_k, num_experts):
    """Rows an expert takes: the capacity, or ceil(capacity_factor T K / E), exactly; None for no limit.   Spec 2.2"""
    if dispatch.capacity_factor is None:
        return dispatch.capacity
    return ceil(Fraction(dispatch.capacity_factor) * num_tokens * top_k / num_experts)


def kept_slots(topk_indices, topk_weights, config, given):
    """Which slots are dispatched: used, and within their expert's capacity under the drop policy.   Spec 2.2

    -> (T, K) bool
    """
    dispatch = config.dispatch
    used = topk_indices >= 0
    if dispatch.capacity is None and dispatch.capacity_factor is None:
        return used
    kept = np.zeros_like(used)
    for tokens in _scopes(len(used), dispatch, given):
        capacity = capacity_of(dispatch, len(tokens), config.top_k, config.num_experts)
        kept[tokens] = _within(capacity, topk_indices[tokens], topk_weights[tokens], dispatch)
    return kept & used


def _scopes(num_tokens, dispatch, given):
    if dispatch.capacity_scope == "batch":
        return [np.arange(num_tokens)]
    return [np.flatnonzero(given.sequence_ids == s) for s in np.unique(given.sequence_ids)]


def _within(capacity, topk_indices, topk_weights, dispatch):
    """The slots of each expert that come first in the policy's order, up to the capacity."""
    order = DROP_POLICIES[dispatch.drop_policy](topk_weights, _slot_order(topk_indices.shape, dispatch.slot_order))
    flat = topk_indices.reshape(-1)
    kept = np.zeros(flat.shape, bool)
    for e in np.unique(flat[flat >= 0]):
        kept[order[flat[order] == e][:capacity]] = True
    return kept.reshape(topk_indices.shape)


def _slot_order(shape, slot_order):
    """Slot numbers, all first choices before any second one (slot_major), or token by token (token_major)."""
    slots = np.arange(shape[0] * shape[1]).reshape(shape)
    return slots.T.reshape(-1) if slot_order == "slot_major" else slots.reshape(-1)


def drop_by_position(topk_weights, order):
    """First come, first served.   Spec 2.2"""
    return order


def drop_by_probability(topk_weights, order):
    """The largest weights stay; ties in slot order.   Spec 2.2"""
    return order[np.argsort(-topk_weights.reshape(-1)[order], kind="stable")]


DROP_POLICIES = {"position": drop_by_position, "probability": drop_by_probability}


# --- permute and combine: Spec 2.3, 2.4 ------------------------------------------------------------------------------


def permute(x, plan):
    """x_rows[r] = x[token of row r]: a copy of bits.   Spec 2.3

    x (T, D) -> x_rows (N, D)
    """
    return x[row_tokens(plan)]


def permute_backward(d_x_rows, plan, num):
    """d_x[t] = sum over the rows of t, exact and rounded once; +0 without rows.   Spec 5.6

    d_x_rows (N, D) -> d_x_experts (T, D)
    """
    # x_rows[r] = x[token of row r]
    return num.sum("d_x_experts", _by_slot(d_x_rows, plan))


def combine(y_rows, topk_weights, plan, num):
    """routed[t] = sum_k topk_weights[t, k] y_rows[row of (t, k)], exact and rounded once.   Spec 2.4

    y_rows (N, D), topk_weights (T, K), or None for weights of 1 -> routed (T, D)
    """
    parts = _by_slot(y_rows, plan)
    if topk_weights is None:
        return num.sum("routed", parts)
    kept = np.where(plan.slot_row >= 0, topk_weights, np.zeros_like(topk_weights))
    return num.sum("routed", [(kept[:, k, None], part) for k, part in enumerate(parts)])


def combine_backward(d_routed, y_rows, topk_weights, plan, num):
    """d_y_rows = w d_routed of the row's token;  d_topk_weights = <d_routed, y_row>, +0 where dropped.   Spec 5.6

    d_routed (T, D), y_rows (N, D), topk_weights (T, K) -> d_y_rows (N, D), d_topk_weights (T, K)
    """
    # routed[t] = sum_k topk_weights[t, k] y_rows[row of (t, k)]
    d_rows = d_routed[row_tokens(plan)]
    d_y_rows = weighted_rows("d_y_rows", d_rows, row_weights(topk_weights, plan), num)
    return d_y_rows, slot_values(num.contract_rows("d_topk_weights", d_rows, y_rows), plan)


def weighted_rows(name, rows, weights, num):
    """weights[r] rows[r], rounded once.   Spec 3.3

    rows (N, D), weights (N,) -> (N, D)
    """
    return num.evaluate(name, lambda m, w, x: w * x, weights[:, None], rows)


def row_weights(topk_weights, plan):
    """topk_weights (T, K) -> (N,), by row.   Spec 2.3"""
    return topk_weights.reshape(-1)[plan.row_slot]


def row_tokens(plan):
    """(N,) the token of each row.   Spec 2.1"""
    return plan.row_slot // plan.slot_row.shape[1]


def slot_values(values, plan):
    """values (N,) by row -> (T, K) by slot, +0 where no row.   Spec 2.1"""
    out = np.zeros(plan.slot_row.size, values.dtype)
    out[plan.row_slot] = values
    return out.reshape(plan.slot_row.shape)


def _by_slot(rows, plan):
    """K arrays (T, D): the row of each token's k-th slot, +0 where it has none."""
    if len(rows) == 0:
        return [np.zeros((len(plan.slot_row), rows.shape[1]), rows.dtype)] * plan.slot_row.shape[1]
    has_row = (plan.slot_row >= 0)[..., None]
    zero = rows.dtype.type(0)
    return [np.where(has_row[:, k], rows[plan.slot_row[:, k]], zero) for k in range(plan.slot_row.shape[1])]
