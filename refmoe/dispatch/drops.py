"""Who stays where an expert takes fewer rows than want to go there.   Spec 2.2"""

import numpy as np

from .capacity import capacity_of


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
    """The slots of each expert that come first in the policy's order, up to the capacity (None: all of them)."""
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
