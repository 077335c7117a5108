"""Replayed indices.   Spec 1.6"""

import numpy as np

from ..refusals import require

_SMALL = 256  # slots


def given(topk_indices, num_experts):
    """Replayed indices, as they stand: their order is kept, -1 is an unused slot.   Spec 1.6

    topk_indices (T, K) -> the same, int64. Raises ValueError for an id outside -1 .. E-1, or one a token names twice.
    """
    check_given(topk_indices, num_experts)
    return topk_indices.astype(np.int64)


def check_given(topk_indices, num_experts):
    """Raises ValueError for an id outside -1 .. E-1, or one a token names twice.   Spec 1.6"""
    if _is_plain(topk_indices, num_experts):
        return
    if topk_indices.size and (topk_indices.min() < -1 or topk_indices.max() >= num_experts):
        outside = topk_indices[(topk_indices < -1) | (topk_indices >= num_experts)]
        wanted, fix = f"ids from -1 to {num_experts - 1}", "use -1 for an unused slot"
        require(False, ValueError, "given.topk_indices", wanted, outside[:1], fix)
    wanted, fix = "each token to name an expert once", "replace the repeat by -1"
    require_distinct("given.topk_indices", topk_indices, wanted, fix)


def _is_plain(topk_indices, num_experts):
    """Whether a small table has nothing to refuse and no unused slot: told without the arrays a large one takes."""
    rows = topk_indices.tolist() if 0 < topk_indices.size <= _SMALL else []
    return bool(rows) and all(len({*row}) == len(row) and min(row) >= 0 and max(row) < num_experts for row in rows)


def require_distinct(argument, indices, wanted, fix):
    """Raises ValueError for the first row that names an id twice; -1 does not count.   Spec 1.6"""
    ordered = np.sort(indices, axis=-1) if indices.shape[-1] > 2 else indices  # two are neighbours in any order
    repeats = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    if repeats.any():
        require(False, ValueError, argument, wanted, indices[repeats.any(axis=-1)][:1].tolist(), fix)
