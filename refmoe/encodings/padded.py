"""Buffers filled up to the capacity, with rows of zeros or with tokens that weigh nothing.   Spec 2.9"""

from typing import NamedTuple

import numpy as np

from ..dispatch import Plan, row_tokens, row_weights
from ..refusals import require, require_fields, shown
from .by_token import check_capacity
from .decoded import check_array, check_same, check_weights, decode_rows, integers, row_experts, row_positions


class PaddedRows(NamedTuple):
    """Every expert has a full buffer of C rows: its own, then padding (GShard, Tutel, Megatron-LM's pad to capacity).

    Padding is read by no one: its output is not selected, and no gradient enters it. Keeps the order of slots. Spec 2.9
    """

    row_token: object  # (E, C) int64, the token that a row reads; -1 for a row of zeros
    row_slot: object  # (E, C) int64, the slot of a row that counts; -1 in padding
    row_weight: object  # (E, C), its weight; +0 in padding


def to_padded_rows(topk_weights, plan, capacity=None, filler="zeros"):
    """Kept rows in row order, then padding up to the capacity.   Spec 2.9

    topk_weights (T, K), plan, capacity C or None for the largest count; filler "zeros", or "tokens": the lowest tokens
    that are not at the expert, zeros when none are left -> PaddedRows. Raises ValueError for too small a capacity.
    """
    require_fields("plan", plan, Plan)
    check_weights(topk_weights, plan)
    ok = isinstance(filler, str) and filler in FILLERS
    require(ok, ValueError, "filler", "'zeros' or 'tokens'", shown(filler), "choose one of these")
    shape = len(plan.tokens_per_expert), check_capacity("capacity", capacity, plan)
    at = row_experts(plan), row_positions(plan)
    token, slot, weight = (
        np.full(shape, -1, np.int64),
        np.full(shape, -1, np.int64),
        np.zeros(shape, topk_weights.dtype),
    )
    token[at], slot[at], weight[at] = row_tokens(plan), plan.row_slot, row_weights(topk_weights, plan)
    return PaddedRows(FILLERS[filler](token, plan), slot, weight)


def from_padded_rows(encoded, topk_weights, any_order=False):
    """Buffers and the slots' weights (T, K) -> Decoded; what padding reads is not looked at.   Spec 2.9

    Raises ValueError for padding before a row that counts or with a weight, a row of another token than its slot's, a
    weight that is not its slot's and, unless any_order, for an expert's rows out of token order.
    """
    require_fields("encoded", encoded, PaddedRows)
    check_array("topk_weights", topk_weights, "f", "T", "K")
    slot = integers("row_slot", encoded.row_slot, "E", "C")
    token = integers("row_token", encoded.row_token, *slot.shape)
    check_array("row_weight", encoded.row_weight, "f", *slot.shape)
    kept = slot >= 0
    ahead = np.arange(slot.shape[1]) < np.count_nonzero(kept, axis=1)[:, None]
    check_same("row_slot", "padding behind the rows that count", kept, ahead, "move the padding back")
    decoded = decode_rows("row_slot", slot[kept], np.nonzero(kept)[0], topk_weights, len(slot), any_order)
    wanted = np.where(kept, slot // topk_weights.shape[1], token)
    check_same("row_token", "the token of the slot", token, wanted, "give each row its slot's token")
    wanted = np.append(topk_weights, topk_weights.dtype.type(0))[slot]  # -1 is the zero at the end
    check_same("row_weight", "the slot's weight, 0 in padding", encoded.row_weight, wanted, "weigh padding with 0")
    return decoded


def _zeros(token, plan):
    return token


def _tokens(token, plan):
    token = token.copy()
    for row, count in zip(token, plan.tokens_per_expert, strict=True):
        others = np.setdiff1d(np.arange(len(plan.slot_row)), row[:count])[: len(row) - count]
        row[count : count + len(others)] = others
    return token


FILLERS = {"zeros": _zeros, "tokens": _tokens}
