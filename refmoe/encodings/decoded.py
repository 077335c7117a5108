"""What every encoding comes back to, and the checks they share.   Spec 2.6"""

from typing import NamedTuple

import numpy as np

from ..dispatch import Plan, row_tokens
from ..refusals import require, require_count, require_flag


class Decoded(NamedTuple):
    """What remains of a dispatch in any encoding: its kept pairs. Spec 2.6

    A dropped slot has become an unused one, and the plan's assigned_per_expert counts the rows that were kept.
    """

    topk_indices: object  # (T, K) int64, -1 where the slot has no row
    topk_weights: object  # (T, K), +0 where the slot has no row
    plan: object  # Plan of exactly these slots


# --- a plan, read by row ---------------------------------------------------------------------------------------------


def row_experts(plan):
    """(N,) the expert of each row.   Spec 2.6"""
    return np.repeat(np.arange(len(plan.tokens_per_expert)), plan.tokens_per_expert)


def row_positions(plan):
    """(N,) the place of each row among its expert's rows.   Spec 2.6"""
    return np.arange(len(plan.row_slot)) - plan.expert_offsets[row_experts(plan)]


def row_grid(plan):
    """(T, E) the row of each (token, expert) pair, -1 for none.   Spec 2.6"""
    grid = np.full((len(plan.slot_row), len(plan.tokens_per_expert)), -1, np.int64)
    grid[row_tokens(plan), row_experts(plan)] = np.arange(len(plan.row_slot))
    return grid


def largest_count(plan):
    """The rows of the busiest expert.   Spec 2.6"""
    return int(np.max(plan.tokens_per_expert, initial=0))


# --- the way back ----------------------------------------------------------------------------------------------------


def plan_of(topk_indices, num_experts):
    """The plan that keeps every used slot.   Spec 2.1

    topk_indices (T, K) int64, -1 for unused -> Plan
    """
    flat = topk_indices.reshape(-1)
    slots = np.flatnonzero(flat >= 0)
    row_slot = slots[np.argsort(flat[slots], kind="stable")]
    slot_row = np.full(flat.size, -1, np.int64)
    slot_row[row_slot] = np.arange(len(row_slot))
    counts = np.bincount(flat[slots], minlength=num_experts).astype(np.int64)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    return Plan(counts.copy(), counts, offsets, row_slot, slot_row.reshape(topk_indices.shape))


def decode_slots(argument, topk_indices, topk_weights, num_experts):
    """Slots as they are named, in their own order.   Spec 2.6

    topk_indices (T, K) int64, topk_weights (T, K) -> Decoded. Raises ValueError for an id outside -1 .. E-1 or an
    expert that a token names twice.
    """
    outside = topk_indices[(topk_indices < -1) | (topk_indices >= num_experts)]
    fix = "use -1 for a slot without a row"
    require(not outside.size, ValueError, argument, f"ids from -1 to {num_experts - 1}", outside[:1].tolist(), fix)
    ordered = np.sort(topk_indices, axis=-1)
    repeats = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any(axis=-1)
    wanted, fix = "each token at an expert once", "remove the repeat"
    require(not repeats.any(), ValueError, argument, wanted, topk_indices[repeats][:1].tolist(), fix)
    weights = np.where(topk_indices >= 0, topk_weights, topk_weights.dtype.type(0))
    return Decoded(topk_indices, weights, plan_of(topk_indices, num_experts))


def decode_dense(argument, routing_map, probs, top_k):
    """A token's experts by ascending id, as an encoding without slots leaves no other order.   Spec 2.6

    routing_map (T, E) bool, probs (T, E), top_k or None for the largest number of experts of a token (at least 1) ->
    Decoded. Raises ValueError if top_k is too small.
    """
    counts = np.count_nonzero(routing_map, axis=1)
    most = int(np.max(counts, initial=0))
    top_k = max(most, 1) if top_k is None else require_count("top_k", top_k)
    require(top_k >= most, ValueError, "top_k", f"at least the {most} experts of one token", top_k, "raise it")
    tokens, experts = np.nonzero(routing_map)
    slots = np.arange(len(tokens)) - np.repeat(np.cumsum(counts) - counts, counts)
    indices = np.full((len(routing_map), top_k), -1, np.int64)
    indices[tokens, slots] = experts
    weights = np.zeros(indices.shape, probs.dtype)
    weights[tokens, slots] = probs[tokens, experts]
    return decode_slots(argument, indices, weights, routing_map.shape[1])


def decode_rows(argument, row_slot, row_expert, topk_weights, num_experts, any_order):
    """Rows, each with its slot and its expert; slots keep their place.   Spec 2.6

    row_slot (N,), row_expert (N,) int64, ascending, topk_weights (T, K) -> Decoded. Raises ValueError for a slot that
    does not exist or has two rows and, unless any_order, for rows out of token order.
    """
    require_flag("any_order", any_order)
    total = topk_weights.size
    check_range(argument, row_slot, total, "slots", "number slot k of token t as t K + k")
    twice = np.flatnonzero(np.bincount(row_slot, minlength=total) > 1)
    require(not twice.size, ValueError, argument, "one row a slot", f"slot {twice[:1].tolist()} again", "remove one")
    indices = np.full(total, -1, np.int64)
    indices[row_slot] = row_expert
    decoded = decode_slots(argument, indices.reshape(topk_weights.shape), topk_weights, num_experts)
    if not any_order:
        fix = "sort each expert's rows, or pass any_order=True if rows need not meet the plan's"
        check_same(argument, "an expert's rows in token order", row_slot, decoded.plan.row_slot, fix)
    return decoded


# --- what is refused -------------------------------------------------------------------------------------------------

KINDS = {"iu": "integers", "f": "floating-point numbers", "b": "booleans"}


def check_array(argument, array, kinds, *shape):
    """Raises TypeError or ValueError unless kind and shape are these; a word in shape fits any length.   Spec 0.4"""
    ok = isinstance(array, np.ndarray) and array.dtype.kind in kinds
    got = getattr(array, "dtype", type(array).__name__)
    require(ok, TypeError, argument, f"a NumPy array of {KINDS[kinds]}", got, "convert it")
    ok = array.ndim == len(shape) and all(isinstance(want, str) or want == n for want, n in zip(shape, array.shape))
    wanted = f"shape ({', '.join(map(str, shape))}{',' * (len(shape) == 1)})"
    require(ok, ValueError, argument, wanted, array.shape, "give the arrays of one batch together")


def integers(argument, array, *shape):
    """The array in int64.   Spec 0.4"""
    check_array(argument, array, "iu", *shape)
    return array.astype(np.int64)


def int32(argument, array):
    """The array in int32, as device code wants it; refused where a value does not fit.   Spec 0.4"""
    top = int(np.max(array, initial=0))
    require(top < 2**31, ValueError, argument, "values below 2^31", top, "encode fewer tokens at a time")
    return np.asarray(array, np.int32)


def check_range(argument, values, stop, what, fix):
    """Raises ValueError for a value outside 0 .. stop-1.   Spec 0.4"""
    outside = values[(values < 0) | (values >= stop)]
    require(not outside.size, ValueError, argument, f"{what} from 0 to {stop - 1}", outside[:1].tolist(), fix)


def check_row_experts(argument, row_expert, num_experts):
    """Raises ValueError unless the experts of rows exist and ascend.   Spec 0.4"""
    check_range(argument, row_expert, num_experts, "experts", "leave out rows of no expert")
    check_same(argument, "rows in expert order", row_expert, np.sort(row_expert), "sort the rows by expert")


def check_same(argument, what, got, want, fix):
    """Raises ValueError at the first place where two arrays of one shape differ.   Spec 0.4"""
    differ = np.argwhere(got != want)
    if len(differ):
        at = tuple(differ[0].tolist())
        require(False, ValueError, f"{argument}{list(at)}", f"{want[at]} ({what})", got[at], fix)


def check_weights(topk_weights, plan):
    """Raises TypeError or ValueError for weights of another batch than the plan's.   Spec 0.4"""
    check_array("topk_weights", topk_weights, "f", *plan.slot_row.shape)
