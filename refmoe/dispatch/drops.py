"""Who stays where an expert takes fewer rows than want to go there, and the coin for second choices.   Spec 2.2"""

from fractions import Fraction

import numpy as np

from .capacity import capacity_of


def kept_slots(topk_indices, topk_weights, config, given, scores=None):
    """Which slots are dispatched: used, not rejected by the coin, and served before their expert is full.   Spec 2.2

    topk_indices (T, K), topk_weights (T, K), scores (T, E), read by slot_order "batch_prioritized" -> (T, K) bool
    """
    dispatch = config.dispatch
    waiting = topk_indices >= 0
    if config.routing.second_expert == "random":
        waiting = waiting & coin_keeps(topk_weights, given.coin, config.routing.second_expert_factor)
    if not dispatch.limited:
        return waiting
    order = _queue(topk_weights, scores, dispatch, given)
    kept = np.zeros(waiting.size, bool)
    for tokens in capacity_scopes(len(waiting), dispatch, given):
        here = np.zeros(waiting.shape, bool)
        here[tokens] = waiting[tokens]
        slots = order[here.reshape(-1)[order]]
        kept[_served(slots, topk_indices, len(tokens), config, given)] = True
    return kept.reshape(waiting.shape)


def coin_keeps(topk_weights, coin, factor):
    """A second choice stays if factor * weight > coin, compared exactly; the first always.   Spec 2.2; GShard

    topk_weights (T, 2), coin (T,) in [0, 1) -> (T, 2) bool
    """
    kept = np.ones(topk_weights.shape, bool)
    pairs = zip(topk_weights[:, 1].tolist(), coin.tolist(), strict=True)
    kept[:, 1] = [Fraction(factor) * Fraction(weight) > Fraction(limit) for weight, limit in pairs]
    return kept


def capacity_scopes(num_tokens, dispatch, given):
    """The tokens, as arrays of those that share a capacity.   Spec 2.2"""
    if dispatch.capacity_scope == "batch":
        return [np.arange(num_tokens)]
    return [np.flatnonzero(given.sequence_ids == s) for s in np.unique(given.sequence_ids)]


# --- the queue: Spec 2.2 ---------------------------------------------------------------------------------------------


def _queue(topk_weights, scores, dispatch, given):
    """Every slot number, in the order in which slots are served: by slot_order, then the policy, then protection."""
    shape = topk_weights.shape
    order = SLOT_ORDERS[dispatch.slot_order](np.arange(shape[0] * shape[1]).reshape(shape), scores)
    order = DROP_POLICIES[dispatch.drop_policy](order, topk_weights, given.priority)
    if given.protected is None:
        return order
    return order[np.argsort(~given.protected[order // shape[1]], kind="stable")]


def slot_major(slots, scores):
    """All first choices in token order, then all second ones.   Spec 2.2"""
    return slots.T.reshape(-1)


def token_major(slots, scores):
    """Token 0's choices, then token 1's.   Spec 2.2"""
    return slots.reshape(-1)


def batch_prioritized(slots, scores):
    """All first choices, those of the token with the largest score first, then all second ones.   Spec 2.2; V-MoE

    Ties go to the lower token.
    """
    largest = np.max(scores, axis=-1)
    return slots[np.argsort(-largest, kind="stable")].T.reshape(-1)


SLOT_ORDERS = {"slot_major": slot_major, "token_major": token_major, "batch_prioritized": batch_prioritized}


def drop_by_position(order, topk_weights, priority):
    """First come, first served.   Spec 2.2"""
    return order


def drop_by_probability(order, topk_weights, priority):
    """The largest weights stay; ties in slot order.   Spec 2.2"""
    return order[np.argsort(-topk_weights.reshape(-1)[order], kind="stable")]


def drop_at_random(order, topk_weights, priority):
    """The largest numbers given stay, ties in slot order; priority (T, K).   Spec 2.2; DeepSpeed"""
    return order[np.argsort(-priority.reshape(-1)[order], kind="stable")]


DROP_POLICIES = {"position": drop_by_position, "probability": drop_by_probability, "random": drop_at_random}


# --- serving it: Spec 2.2 --------------------------------------------------------------------------------------------


def _served(slots, topk_indices, num_tokens, config, given):
    """Those of the waiting slots, in the order of the queue, that find room: at their expert or device, at their token.

    A protected token's slot needs room at its token alone.
    """
    dispatch, size = config.dispatch, config.num_experts
    places = dispatch.capacity_devices or size
    limit = capacity_of(dispatch, num_tokens, config.top_k, places)
    limit = len(slots) if limit is None else limit
    expert, token = topk_indices.reshape(-1)[slots], slots // topk_indices.shape[1]
    safe = expert >= size  # what has no weights has no buffer to fill
    if given.protected is not None:
        safe = safe | given.protected[token]
    place = expert // (size // places)
    if dispatch.keep_at_most is None:
        return slots[(_rank_among_equals(place) < limit) | safe]
    return slots[_find_room(place, token, safe, limit, dispatch.keep_at_most)]


def _rank_among_equals(place):
    """How many entries before each one are equal to it."""
    order = np.argsort(place, kind="stable")
    ordered = place[order]
    rank = np.empty(len(place), np.int64)
    rank[order] = np.arange(len(place)) - np.searchsorted(ordered, ordered)
    return rank


def _find_room(place, token, safe, limit, keep_at_most):
    """One slot after the other: a token that has its rows, or a full expert, sends the slot away."""
    taken, rows, found = {}, {}, np.zeros(len(place), bool)
    for at, (p, t) in enumerate(zip(place.tolist(), token.tolist(), strict=True)):
        if rows.get(t, 0) < keep_at_most and (safe[at] or taken.get(p, 0) < limit):
            taken[p], rows[t], found[at] = taken.get(p, 0) + 1, rows.get(t, 0) + 1, True
    return found
