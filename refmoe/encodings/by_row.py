"""Encodings with one line a row: sorted slots, offsets, block-aligned and aligned rows.   Spec 2.8"""

from typing import NamedTuple

import numpy as np

from ..dispatch import Plan, row_tokens
from ..refusals import require, require_count, require_fields
from .decoded import (
    check_array,
    check_row_experts,
    check_same,
    decode_rows,
    int32,
    integers,
    row_experts,
    row_positions,
)


class SortedSlots(NamedTuple):
    """Slot numbers t K + k in expert order (ScatterMoE, MegaBlocks, torchtitan). Spec 2.8

    The order of (expert, token) is unique and independent of slots; the slot numbers themselves are not. A sort that
    is not stable (ScatterMoE asks for none) leaves an expert's rows in any order. Keeps the order of slots.
    """

    row_slot: object  # (N,) int64
    row_token: object  # (N,) int64, row_slot // K
    row_expert: object  # (N,) int64, ascending


def to_sorted_slots(plan):
    """row_slot of the plan, with the token and the expert of each row.   Spec 2.8

    plan -> SortedSlots
    """
    require_fields("plan", plan, Plan)
    return SortedSlots(plan.row_slot.copy(), row_tokens(plan), row_experts(plan))


def from_sorted_slots(encoded, topk_weights, num_experts, any_order=False):
    """Sorted slots and the slots' weights (T, K), which say T and K -> Decoded.   Spec 2.8

    Raises ValueError for rows that contradict themselves and, unless any_order, for rows out of token order.
    """
    require_fields("encoded", encoded, SortedSlots)
    check_array("topk_weights", topk_weights, "f", "T", "K")
    row_slot = integers("row_slot", encoded.row_slot, "N")
    row_token = integers("row_token", encoded.row_token, *row_slot.shape)
    row_expert = integers("row_expert", encoded.row_expert, *row_slot.shape)
    num_experts = require_count("num_experts", num_experts)
    check_row_experts("row_expert", row_expert, num_experts)
    decoded = decode_rows("row_slot", row_slot, row_expert, topk_weights, num_experts, any_order)
    check_same("row_token", "row_slot // K", row_token, row_slot // topk_weights.shape[1], "divide the slot by K")
    return decoded


class Offsets(NamedTuple):
    """Where each expert's rows lie, said in three ways. Spec 2.8

    Sizes: JAX ragged_dot, Transformer Engine's splits. Inclusive ends: torch grouped_mm's offs (its documentation asked
    that the last end be below the number of rows; its tests let them be equal), MegaBlocks' bins, ScatterMoE. Exclusive
    starts with a last end: CSR. grouped_mm leaves rows behind the last end *uninitialised*: nothing may read them.
    Forgets which token a row belongs to.
    """

    tokens_per_expert: object  # (E,) int32
    expert_ends: object  # (E,) int32, inclusive sums of the sizes
    expert_offsets: object  # (E+1,) int32, 0 and the ends


def to_offsets(plan):
    """tokens_per_expert, its inclusive sums, its exclusive ones with the total.   Spec 2.8

    plan -> Offsets
    """
    require_fields("plan", plan, Plan)
    return complete_offsets(tokens_per_expert=plan.tokens_per_expert)


def complete_offsets(tokens_per_expert=None, expert_ends=None, expert_offsets=None):
    """All three forms from any of them -> Offsets.   Spec 2.8

    Raises ValueError if none is given, two contradict each other, a size is negative or the first offset is not 0.
    """
    given = {"tokens_per_expert": tokens_per_expert, "expert_ends": expert_ends, "expert_offsets": expert_offsets}
    given = {name: integers(name, array, "E") for name, array in given.items() if array is not None}
    require(given, ValueError, "offsets", "at least one of the three forms", "none", "pass one")
    argument, first = next(iter(given.items()))
    sizes = first if argument == "tokens_per_expert" else np.diff(first, prepend=0)
    if argument == "expert_offsets":
        check_same("expert_offsets", "the first row", sizes[:1], np.zeros(1, np.int64), "start at 0")
        sizes = sizes[1:]
    fix = "list an empty expert with size 0, its end equal to the one before"
    require((sizes >= 0).all(), ValueError, argument, "no negative size", sizes[sizes < 0][:1].tolist(), fix)
    ends = np.cumsum(sizes)
    forms = {"tokens_per_expert": sizes, "expert_ends": ends, "expert_offsets": np.concatenate([[0], ends])}
    for name, array in given.items():
        check_array(name, array, "iu", *forms[name].shape)
        check_same(name, f"what {argument} says", array, forms[name], "pass one form only")
    return Offsets(*(int32(argument, array) for array in forms.values()))


def from_offsets(offsets, row_slot, topk_weights, any_order=False):
    """Offsets, the slot of each row (N,) and the slots' weights (T, K) -> Decoded.   Spec 2.8

    Raises ValueError for offsets that do not end at N, or rows out of order as in from_sorted_slots.
    """
    check_array("topk_weights", topk_weights, "f", "T", "K")
    filled = complete_offsets(*offsets)
    row_slot = integers("row_slot", row_slot, int(filled.expert_offsets[-1]))
    experts = np.repeat(np.arange(len(filled.tokens_per_expert)), filled.tokens_per_expert)
    return decode_rows("row_slot", row_slot, experts, topk_weights, len(filled.tokens_per_expert), any_order)


def padded_layout(plan, block):
    """Each expert's rows rounded up to whole blocks; an expert without rows takes none.   Spec 2.8

    plan -> blocks of each expert (E,), the place of each row (N,), the end of each expert's blocks (E,)
    """
    blocks = -(-plan.tokens_per_expert // block)
    ends = np.cumsum(blocks) * block
    places = (ends - blocks * block)[row_experts(plan)] + row_positions(plan)
    return blocks, places, ends


class BlockAligned(NamedTuple):
    """Slot numbers in expert order, each expert filled up to whole blocks with T K (vLLM, SGLang). Spec 2.8

    Allocated for the worst case, T K + E (B - 1) entries; later vLLM allocates at most T K B when T K < E, and SGLang
    counts one expert more: any length decodes. Blocks that are not used name expert -1 (vLLM held 0 there, which sends
    padding to expert 0). vLLM's own kernel fills an expert's places in any order, its deterministic one in slot order.
    Ids count from 0; the example in vLLM's documentation counts from 1. Keeps the order of slots.
    """

    sorted_token_ids: object  # (L,) int32, slots; T K where there is none
    expert_ids: object  # (ceil(L / B),) int32, the expert of each block; -1 for an unused block
    num_tokens_post_padded: object  # (1,) int32, entries in used blocks


def to_block_aligned(plan, block_size):
    """Slots at padded places, T K elsewhere; one expert a block.   Spec 2.8

    plan, block_size B -> BlockAligned
    """
    require_fields("plan", plan, Plan)
    B, E, sentinel = require_count("block_size", block_size), len(plan.tokens_per_expert), plan.slot_row.size
    blocks, places, ends = padded_layout(plan, B)
    token_ids = np.full(sentinel + E * (B - 1), sentinel, np.int64)
    token_ids[places] = plan.row_slot
    expert_ids = np.full(-(-len(token_ids) // B), -1, np.int64)
    expert_ids[: ends[-1] // B] = np.repeat(np.arange(E), blocks)
    return BlockAligned(*(int32("block_size", array) for array in (token_ids, expert_ids, ends[-1:])))


def from_block_aligned(encoded, topk_weights, num_experts, block_size, any_order=False):
    """Block-aligned slots and the slots' weights (T, K) -> Decoded.   Spec 2.8

    Any allocated length that holds the used blocks will do. Raises ValueError for blocks, padding or a count that the
    rows contradict and, unless any_order, for an expert's rows out of token order.
    """
    require_fields("encoded", encoded, BlockAligned)
    check_array("topk_weights", topk_weights, "f", "T", "K")
    B, E = require_count("block_size", block_size), require_count("num_experts", num_experts)
    token_ids = integers("sorted_token_ids", encoded.sorted_token_ids, "L")
    expert_ids = integers("expert_ids", encoded.expert_ids, -(-len(token_ids) // B))
    used = integers("num_tokens_post_padded", encoded.num_tokens_post_padded, 1)
    real = token_ids != topk_weights.size
    row_expert = np.repeat(expert_ids, B)[: len(token_ids)][real]
    check_row_experts("expert_ids", row_expert, E)
    decoded = decode_rows("sorted_token_ids", token_ids[real], row_expert, topk_weights, E, any_order)
    blocks, places, ends = padded_layout(decoded.plan, B)
    check_same("num_tokens_post_padded", "whole blocks of every expert", used, ends[-1:], "count them again")
    wanted, fix = f"at least the {ends[-1]} entries of used blocks", "pass whole blocks"
    require(len(token_ids) >= ends[-1], ValueError, "sorted_token_ids", wanted, len(token_ids), fix)
    tail = np.full(len(expert_ids) - int(ends[-1]) // B, -1, np.int64)
    want = np.concatenate([np.repeat(np.arange(E), blocks), tail])
    check_same("expert_ids", "one expert a block, then -1", expert_ids, want, "fill unused blocks with -1")
    fix = f"fill an expert's last block with {topk_weights.size}"
    check_same("places of sorted_token_ids", "padding after an expert's rows", np.flatnonzero(real), places, fix)
    return decoded


class AlignedRows(NamedTuple):
    """Rows with each expert rounded up to the alignment, and an expert id for every row (DeepGEMM contiguous). Spec 2.8

    Padding rows have id -1; FlashInfer's CuTe kernel takes no -1 and wants a valid id there, and DeepGEMM's newer
    layout gives each expert's unpadded end instead of ids. The alignment is the kernel's: 128 rows in MegaBlocks, 256
    in Transformer Engine. An expert without rows takes none. What padding rows hold must be finite: weight gradients
    sum over them, and 0 times NaN is NaN. Keeps the order of slots.
    """

    row_slot: object  # (M,) int64, -1 in padding rows
    m_indices: object  # (M,) int32, the expert of each row; -1 in padding rows
    padded_ends: object  # (E,) int32, inclusive ends of the padded segments (MegaBlocks' padded bins)


def to_aligned_rows(plan, alignment):
    """Rows at padded places, -1 elsewhere.   Spec 2.8

    plan, alignment -> AlignedRows
    """
    require_fields("plan", plan, Plan)
    _, places, ends = padded_layout(plan, require_count("alignment", alignment))
    row_slot, m_indices = np.full((2, ends[-1]), -1, np.int64)
    row_slot[places], m_indices[places] = plan.row_slot, row_experts(plan)
    return AlignedRows(row_slot, int32("plan", m_indices), int32("alignment", ends))


def from_aligned_rows(encoded, topk_weights, alignment, any_order=False):
    """Aligned rows and the slots' weights (T, K) -> Decoded.   Spec 2.8

    Raises ValueError for padding or ends that the rows contradict and, unless any_order, for an expert's rows out of
    token order.
    """
    require_fields("encoded", encoded, AlignedRows)
    check_array("topk_weights", topk_weights, "f", "T", "K")
    row_slot = integers("row_slot", encoded.row_slot, "M")
    m_indices = integers("m_indices", encoded.m_indices, *row_slot.shape)
    padded_ends = integers("padded_ends", encoded.padded_ends, "E")
    real = m_indices != -1
    check_same("row_slot", "-1 with m_indices -1", row_slot, np.where(real, row_slot, -1), "use -1 in both")
    E = len(padded_ends)
    check_row_experts("m_indices", m_indices[real], E)
    decoded = decode_rows("row_slot", row_slot[real], m_indices[real], topk_weights, E, any_order)
    _, places, ends = padded_layout(decoded.plan, require_count("alignment", alignment))
    check_same("padded_ends", "counts rounded up, then summed", padded_ends, ends, "include each expert's own padding")
    check_array("m_indices", m_indices, "iu", int(ends[-1]))
    fix = "fill up to a multiple of the alignment, after the expert's rows"
    check_same("places of m_indices", "padding after an expert's rows", np.flatnonzero(real), places, fix)
    return decoded
