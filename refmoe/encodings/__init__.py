"""One dispatch, many arrays: the encodings kernels read, each with a converter there and one back.   Spec 2.6

Who goes where is a set of (token, expert) pairs with a weight each. Frameworks write it down in eleven ways that agree
in that set and in little else: where padding stands and what it holds, whether an offset starts or ends a group, what
is left undefined. Every `to_...` reads a plan and the weights; every `from_...` returns `Decoded`, or refuses arrays
that contradict themselves. Only integers are computed; weights are moved, never changed.
"""

from .by_expert import (
    CapacityOneHot,
    MaskedBatched,
    from_capacity_one_hot,
    from_masked_batched,
    to_capacity_one_hot,
    to_masked_batched,
)
from .by_row import (
    AlignedRows,
    BlockAligned,
    Offsets,
    SortedSlots,
    complete_offsets,
    from_aligned_rows,
    from_block_aligned,
    from_offsets,
    from_sorted_slots,
    to_aligned_rows,
    to_block_aligned,
    to_offsets,
    to_sorted_slots,
)
from .by_token import (
    CapacityPairs,
    DenseMap,
    RowIdMap,
    Slots,
    from_capacity_pairs,
    from_dense_map,
    from_row_id_map,
    from_slots,
    to_capacity_pairs,
    to_dense_map,
    to_row_id_map,
    to_slots,
)
from .decoded import Decoded
from .padded import PaddedRows, from_padded_rows, to_padded_rows

# name: what it is, the way there, the way back
ENCODINGS = {
    "slots": (Slots, to_slots, from_slots),
    "dense_map": (DenseMap, to_dense_map, from_dense_map),
    "row_id_map": (RowIdMap, to_row_id_map, from_row_id_map),
    "capacity_pairs": (CapacityPairs, to_capacity_pairs, from_capacity_pairs),
    "sorted_slots": (SortedSlots, to_sorted_slots, from_sorted_slots),
    "offsets": (Offsets, to_offsets, from_offsets),
    "block_aligned": (BlockAligned, to_block_aligned, from_block_aligned),
    "aligned_rows": (AlignedRows, to_aligned_rows, from_aligned_rows),
    "masked_batched": (MaskedBatched, to_masked_batched, from_masked_batched),
    "padded_rows": (PaddedRows, to_padded_rows, from_padded_rows),
    "capacity_one_hot": (CapacityOneHot, to_capacity_one_hot, from_capacity_one_hot),
}

__all__ = [
    "ENCODINGS",
    "AlignedRows",
    "BlockAligned",
    "CapacityOneHot",
    "CapacityPairs",
    "Decoded",
    "DenseMap",
    "MaskedBatched",
    "Offsets",
    "PaddedRows",
    "RowIdMap",
    "Slots",
    "SortedSlots",
    "complete_offsets",
    "from_aligned_rows",
    "from_block_aligned",
    "from_capacity_one_hot",
    "from_capacity_pairs",
    "from_dense_map",
    "from_masked_batched",
    "from_offsets",
    "from_padded_rows",
    "from_row_id_map",
    "from_slots",
    "from_sorted_slots",
    "to_aligned_rows",
    "to_block_aligned",
    "to_capacity_one_hot",
    "to_capacity_pairs",
    "to_dense_map",
    "to_masked_batched",
    "to_offsets",
    "to_padded_rows",
    "to_row_id_map",
    "to_slots",
    "to_sorted_slots",
]
