"""From slots to rows in C, as methods of the engine: integers and copies.   csrc/refmoe_dispatch.h"""

import numpy as np

from . import memory
from .arguments import BOOL, FLOAT32, INT64, is_read


class Dispatch:
    """What `CEngine` does to indices and rows. Each method gives None for arrays that C does not read as they are."""

    def make_plan(self, topk_indices, kept, token_mask, num_experts):
        """assigned_per_expert, tokens_per_expert, expert_offsets, row_slot, slot_row of the kept slots, all int64.

        topk_indices (T, K) int64; kept (T, K) bool, or None for all that are used; token_mask (T,) bool, or None
        """
        if not (is_read(topk_indices, INT64) and is_read(kept, BOOL) and is_read(token_mask, BOOL)):
            return None
        E, slots = num_experts, topk_indices.size
        made = [np.empty(n, INT64) for n in (E, E, E + 1, slots)] + [np.empty(topk_indices.shape, INT64)]
        arrays = map(self._pointer, (topk_indices, kept, token_mask, *made))
        self._tell("make_plan", self._lib.refmoe_make_plan(*topk_indices.shape, E, *arrays))
        made[3] = made[3][: made[2][-1]]
        return made

    def permute(self, x, row_slot, top_k):
        """x[row_slot // top_k]: x (T, D) float32, row_slot (N,) -> new array (N, D)."""
        if x.ndim != 2 or not (is_read(x, FLOAT32) and is_read(row_slot, INT64)):
            return None
        N, (T, D) = len(row_slot), x.shape
        out = memory.empty((N, D), FLOAT32)
        how = self._how_to_copy(self._threads_for(N * D))
        arrays = map(self._pointer, (x, row_slot, out))
        self._tell("permute", self._lib.refmoe_permute(how, N, D, T, top_k, *arrays))
        return out

    def at_slots(self, table, topk_indices, kept, counted):
        """table[t, topk_indices[t, k]], and which slots weigh: kept ones with ids below `counted`.

        table (T, E) float32, topk_indices (T, K) int64, kept (T, K) bool or None for all used -> (T, K), (T, K) bool
        """
        if not (is_read(table, FLOAT32) and is_read(topk_indices, INT64) and is_read(kept, BOOL)):
            return None
        shape = topk_indices.shape
        out, used = np.empty(shape, FLOAT32), np.empty(shape, BOOL)
        arrays = map(self._pointer, (table, topk_indices, kept, used, out))
        self._tell("at_slots", self._lib.refmoe_at_slots(*shape, table.shape[1], counted, *arrays))
        return out, used

    def is_finite(self, array):
        """Whether there is neither an infinity nor a NaN."""
        if not is_read(array, FLOAT32):
            return None
        return self._lib.refmoe_first_nonfinite(array.size, self._pointer(array)) == array.size

    def _how_to_copy(self, threads):
        """A refmoe_how of which the thread count is read."""
        if threads not in self._hows:
            self._hows[threads] = self._ffi.new("refmoe_how *", {"kernel": self._index, "threads": threads})
        return self._hows[threads]

    def _tell(self, name, status):
        if status != self._lib.REFMOE_OK:
            raise ValueError(f"{name}: expected what refmoe_dispatch.h allows, got its status {status}; see there")
        with self._lock:
            self.calls[name, self.kernel] += 1
