"""Encodings with one buffer an expert: masked batches and capacity one-hots.   Spec 2.9"""

from typing import NamedTuple

import numpy as np

from ..dispatch import Plan, row_tokens, row_weights
from ..refusals import require, require_fields, require_flag
from .by_token import check_capacity, check_places, check_token_order
from .decoded import (
    check_array,
    check_range,
    check_same,
    check_weights,
    decode_dense,
    decode_rows,
    int32,
    integers,
    row_experts,
    row_positions,
)


class MaskedBatched(NamedTuple):
    """A buffer of max_m rows an expert, and how many of them count (DeepGEMM masked, DeepEP low latency). Spec 2.9

    Rows behind the count hold anything. DeepEP fills a buffer by arrival, in no order that could be relied on. Keeps
    the order of slots.
    """

    row_slot: object  # (E, max_m) int64, the slot of each buffered row; -1 behind the count
    masked_m: object  # (E,) int32, rows that count


def to_masked_batched(plan, max_m=None):
    """row_slot[e, c] = the slot of e's c-th row.   Spec 2.9

    plan, max_m or None for the largest count -> MaskedBatched. Raises ValueError for a max_m that is too small.
    """
    require_fields("plan", plan, Plan)
    shape = len(plan.tokens_per_expert), check_capacity("max_m", max_m, plan)
    row_slot = np.full(shape, -1, np.int64)
    row_slot[row_experts(plan), row_positions(plan)] = plan.row_slot
    return MaskedBatched(row_slot, int32("plan", plan.tokens_per_expert))


def from_masked_batched(encoded, topk_weights, any_order=False):
    """Buffers and the slots' weights (T, K) -> Decoded. What stands behind a count must be -1.   Spec 2.9

    Raises ValueError for a count beyond the buffer and, unless any_order, for an expert's rows out of token order.
    """
    require_fields("encoded", encoded, MaskedBatched)
    check_array("topk_weights", topk_weights, "f", "T", "K")
    row_slot = integers("row_slot", encoded.row_slot, "E", "max_m")
    E, max_m = row_slot.shape
    counts = integers("masked_m", encoded.masked_m, E)
    check_range("masked_m", counts, max_m + 1, "counts", "count at most the buffer's rows")
    valid = np.arange(max_m) < counts[:, None]
    blank = np.where(valid, row_slot, -1)
    check_same("row_slot", "behind the expert's count", row_slot, blank, "fill with -1, or raise masked_m")
    return decode_rows("row_slot", row_slot[valid], np.nonzero(valid)[0], topk_weights, E, any_order)


class CapacityOneHot(NamedTuple):
    """dispatch[t, e, c]: token t takes place c at e; combine holds the weight there (GShard, Switch, V-MoE). Spec 2.9

    Places count in token order here; see CapacityPairs for who counts otherwise. Mesh TensorFlow, V-MoE and older
    DeepSpeed derive dispatch from combine != 0, and so lose a kept pair of weight 0. Forgets the order of slots and K.
    """

    dispatch: object  # (T, E, C) bool
    combine: object  # (T, E, C), +0 where dispatch is False


def to_capacity_one_hot(topk_weights, plan, capacity=None):
    """dispatch = one-hot of (expert, position) by token;  combine = the weight there.   Spec 2.9

    topk_weights (T, K), plan, capacity C or None for the largest count -> CapacityOneHot. Raises ValueError for a
    capacity that is too small.
    """
    require_fields("plan", plan, Plan)
    check_weights(topk_weights, plan)
    shape = len(plan.slot_row), len(plan.tokens_per_expert), check_capacity("capacity", capacity, plan)
    at = row_tokens(plan), row_experts(plan), row_positions(plan)
    dispatch, combine = np.zeros(shape, bool), np.zeros(shape, topk_weights.dtype)
    dispatch[at], combine[at] = True, row_weights(topk_weights, plan)
    return CapacityOneHot(dispatch, combine)


def from_capacity_one_hot(encoded, top_k=None, any_order=False):
    """A token's experts by ascending id; K the largest number of them unless given -> Decoded.   Spec 2.9

    Raises ValueError for a pair with two places, a place with two tokens, a weight that is not dispatched and, unless
    any_order, for places out of token order.
    """
    require_fields("encoded", encoded, CapacityOneHot)
    check_array("dispatch", encoded.dispatch, "b", "T", "E", "C")
    check_array("combine", encoded.combine, "f", *encoded.dispatch.shape)
    stray = np.argwhere((encoded.combine != 0) & ~encoded.dispatch)
    got, fix = f"a weight at {stray[:1].tolist()}", "set what is not dispatched to 0"
    require(not stray.size, ValueError, "combine", "weights of dispatched places only", got, fix)
    counts = np.count_nonzero(encoded.dispatch, axis=2)
    pairs = np.argwhere(counts > 1)
    got = f"token and expert {pairs[:1].tolist()}"
    require(not pairs.size, ValueError, "dispatch", "one place for a token at an expert", got, "keep one")
    tokens, experts, places = np.nonzero(encoded.dispatch)
    check_places("dispatch", experts, places, encoded.dispatch.shape[2])
    probs = np.zeros(counts.shape, encoded.combine.dtype)
    probs[tokens, experts] = encoded.combine[tokens, experts, places]
    decoded = decode_dense("dispatch", counts > 0, probs, top_k)
    require_flag("any_order", any_order)
    if not any_order:
        check_token_order("dispatch", places[np.argsort(experts, kind="stable")], decoded.plan)
    return decoded
