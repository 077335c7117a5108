"""Encodings with one line a token: slots, dense map, row-id map, (expert, position) pairs.   Spec 2.7"""

from typing import NamedTuple

import numpy as np

from ..dispatch import Plan, row_tokens, row_weights
from ..refusals import require, require_count, require_fields, require_flag
from .decoded import (
    check_array,
    check_range,
    check_same,
    check_weights,
    decode_dense,
    decode_slots,
    int32,
    integers,
    largest_count,
    row_experts,
    row_grid,
    row_positions,
)


class Slots(NamedTuple):
    """A token's experts and weights, as a router returns them. Spec 2.7

    Keeps the order of slots; a top-k function that is not asked to sort leaves that order undefined.
    """

    topk_indices: object  # (T, K) int64, -1 where the slot has no row
    topk_weights: object  # (T, K), +0 where the slot has no row


def to_slots(topk_weights, plan):
    """topk_indices[t, k] = the expert of row slot_row[t, k], -1 for none.   Spec 2.7

    topk_weights (T, K), plan -> Slots
    """
    require_fields("plan", plan, Plan)
    check_weights(topk_weights, plan)
    indices = np.full(plan.slot_row.size, -1, np.int64)
    indices[plan.row_slot] = row_experts(plan)
    weights = np.where(plan.slot_row >= 0, topk_weights, topk_weights.dtype.type(0))
    return Slots(indices.reshape(plan.slot_row.shape), weights)


def from_slots(slots, num_experts):
    """Slots and the number of experts, which they do not say -> Decoded. A weight at -1 is read as +0.   Spec 2.7"""
    require_fields("slots", slots, Slots)
    indices = integers("topk_indices", slots.topk_indices, "T", "K")
    check_array("topk_weights", slots.topk_weights, "f", *indices.shape)
    return decode_slots("topk_indices", indices, slots.topk_weights, require_count("num_experts", num_experts))


class DenseMap(NamedTuple):
    """Which token is at which expert, and with what weight (Megatron-LM, Transformer Engine). Spec 2.7

    Forgets the order of slots and K. The map says who is dispatched, not the weights: a kept pair of weight 0 stays.
    Megatron-LM pads to capacity with real tokens of weight 0; such a map is another dispatch, and decodes as one.
    """

    routing_map: object  # (T, E) bool
    probs: object  # (T, E), +0 where the map is False


def to_dense_map(topk_weights, plan):
    """routing_map[t, e] = token t has a row at e;  probs[t, e] = its weight.   Spec 2.7

    topk_weights (T, K), plan -> DenseMap
    """
    require_fields("plan", plan, Plan)
    check_weights(topk_weights, plan)
    at = row_tokens(plan), row_experts(plan)
    routing_map = np.zeros((len(plan.slot_row), len(plan.tokens_per_expert)), bool)
    routing_map[at] = True
    probs = np.zeros(routing_map.shape, topk_weights.dtype)
    probs[at] = row_weights(topk_weights, plan)
    return DenseMap(routing_map, probs)


def from_dense_map(dense, top_k=None):
    """A token's experts by ascending id; K the largest number of them unless given -> Decoded.   Spec 2.7

    Raises ValueError for a weight outside the map, or a top_k that is too small.
    """
    require_fields("dense", dense, DenseMap)
    check_array("routing_map", dense.routing_map, "b", "T", "E")
    check_array("probs", dense.probs, "f", *dense.routing_map.shape)
    _check_covered("probs", dense.probs, dense.routing_map)
    return decode_dense("routing_map", dense.routing_map, dense.probs, top_k)


def _check_covered(argument, weights, chosen):
    stray = np.argwhere((weights != 0) & ~chosen)
    got, fix = f"a weight at {stray[:1].tolist()}", "set what is not dispatched to 0"
    require(not stray.size, ValueError, argument, "weights of dispatched pairs only", got, fix)


class RowIdMap(NamedTuple):
    """A token's rows and their experts in one line of 2E + 1 numbers (Transformer Engine). Spec 2.7

    With n experts: columns 0 .. n-1 are rows, *descending* (the kernel sorts so that empty places come last), columns
    E .. E+n-1 their experts, column 2E is n. What stands between is -1 here and undefined there: Transformer Engine
    allocates without filling, and sorts over its own scratch. Forgets the order of slots and K.
    """

    row_id_map: object  # (T, 2E+1) int32
    probs: object  # (T, E), the weights the kernel reads beside the map


def to_row_id_map(topk_weights, plan):
    """Per token: its rows, descending; their experts; how many.   Spec 2.7

    topk_weights (T, K), plan -> RowIdMap
    """
    require_fields("plan", plan, Plan)
    probs, grid = to_dense_map(topk_weights, plan).probs, row_grid(plan)
    experts = np.argsort(-grid, axis=1, kind="stable")
    rows = np.take_along_axis(grid, experts, axis=1)
    counts = np.count_nonzero(grid >= 0, axis=1)[:, None]
    return RowIdMap(int32("row_id_map", np.hstack([rows, np.where(rows >= 0, experts, -1), counts])), probs)


def from_row_id_map(encoded, top_k=None):
    """The first n rows and experts of each token, in any order within a token, nothing else -> Decoded.   Spec 2.7

    A token's experts come back by ascending id. Raises ValueError for a count, an expert or a row that cannot be.
    """
    require_fields("encoded", encoded, RowIdMap)
    check_array("probs", encoded.probs, "f", "T", "E")
    T, E = encoded.probs.shape
    table = integers("row_id_map", encoded.row_id_map, T, 2 * E + 1)
    check_range("row_id_map[:, 2E]", table[:, -1], E + 1, "counts", "put a token's number of experts last")
    used = np.arange(E) < table[:, -1:]
    tokens, rows, experts = np.nonzero(used)[0], table[:, :E][used], table[:, E:-1][used]
    check_range("row_id_map[:, E:2E]", experts, E, "experts", "list the experts from column E on")
    routing_map = np.zeros((T, E), bool)
    routing_map[tokens, experts] = True
    distinct, got = np.count_nonzero(routing_map), f"{len(tokens)} rows"
    wanted = f"each token at an expert once ({distinct} rows)"
    require(len(tokens) == distinct, ValueError, "row_id_map", wanted, got, "remove the repeat")
    _check_covered("probs", encoded.probs, routing_map)
    decoded = decode_dense("row_id_map", routing_map, encoded.probs, top_k)
    want = row_grid(decoded.plan)[tokens, experts]
    check_same("row_id_map rows", "expert order, then token order", rows, want, "number the rows that way")
    return decoded


class CapacityPairs(NamedTuple):
    """For each slot its expert and its place in the expert's buffer (Tutel, MaxText, GShard before one-hot). Spec 2.7

    Places count in token order here. GShard, V-MoE and Tutel count first choices before second ones, and leave a
    dropped slot a place beyond the capacity; the sets agree, the places do not. Keeps the order of slots.
    """

    expert: object  # (T, K) int32, -1 where the slot has no row
    position: object  # (T, K) int32, -1 where the slot has no row
    capacity: int  # places of an expert


def to_capacity_pairs(plan, capacity=None):
    """position[t, k] = slot_row[t, k] - expert_offsets[expert[t, k]].   Spec 2.7

    plan, capacity or None for the largest count -> CapacityPairs. Raises ValueError for a capacity that is too small.
    """
    require_fields("plan", plan, Plan)
    pairs = np.full((2, plan.slot_row.size), -1, np.int64)
    pairs[:, plan.row_slot] = row_experts(plan), row_positions(plan)
    expert, position = int32("plan", pairs).reshape(2, *plan.slot_row.shape)
    return CapacityPairs(expert, position, check_capacity("capacity", capacity, plan))


def check_capacity(argument, capacity, plan):
    """The capacity, or for None the largest count, which it may not fall below.   Spec 0.4"""
    most = largest_count(plan)
    return most if capacity is None else require_count(argument, capacity, least=most)


def from_capacity_pairs(pairs, topk_weights, num_experts, any_order=False):
    """Pairs and the slots' weights -> Decoded.   Spec 2.7

    Raises ValueError for a place without an expert, beyond the capacity or taken twice and, unless any_order, for
    places out of token order.
    """
    require_fields("pairs", pairs, CapacityPairs)
    check_array("topk_weights", topk_weights, "f", "T", "K")
    expert = integers("expert", pairs.expert, *topk_weights.shape)
    position = integers("position", pairs.position, *topk_weights.shape)
    negative = np.minimum(position, 0), np.minimum(expert, 0)
    check_same("position", "-1 with expert -1 and only there", *negative, "use -1 in both or none")
    decoded = decode_slots("expert", expert, topk_weights, require_count("num_experts", num_experts))
    rows = decoded.plan.row_slot
    capacity = require_count("capacity", pairs.capacity, least=0)
    check_places("position", row_experts(decoded.plan), position.reshape(-1)[rows], capacity)
    require_flag("any_order", any_order)
    if not any_order:
        check_token_order("position", position.reshape(-1)[rows], decoded.plan)
    return decoded


def check_places(argument, experts, places, capacity):
    """Raises ValueError for a place beyond the capacity, or one that two rows share.   Spec 0.4"""
    check_range(argument, places, capacity, "places", "mark a dropped slot by -1")
    order = np.lexsort((places, experts))
    shared = (np.diff(places[order]) == 0) & (np.diff(experts[order]) == 0)
    at = order[1:][shared][:1]
    got = f"place {places[at].tolist()} of expert {experts[at].tolist()} twice"
    require(not shared.any(), ValueError, argument, "one row a place", got, "give each row its own")


def check_token_order(argument, places, plan):
    """Raises ValueError unless places, one a row, count an expert's rows in token order.   Spec 0.4"""
    fix = "count in token order, or pass any_order=True if places need not meet the plan's"
    check_same(argument, "token order within the expert", places, row_positions(plan), fix)
