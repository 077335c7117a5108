"""Causal attention of the chain profile in C, as methods of the engine.   csrc/refmoe_attention.h"""

import numpy as np

from . import memory

_SUMS = 2  # multiplications that a place of a row is worth for each number of a head, for the choice of threads


class Attention:
    """What `CEngine` makes of a token's queries, keys and values, head by head."""

    def attention(self, qkv, shape, root, bias):
        """p = softmax((q root) k^T + bias) over the places up to a token's own;  context = p v.

        qkv (B S, 3 H d) float32, shape (B, S, H, d), bias (H, S, S) or None -> weights (B H S, S),
        context (B S, H d); None for arrays that C does not read, and where a row of weights stays open.
        """
        B, S, H, d = shape
        if not _readable(qkv, *([] if bias is None else [bias])):
            return None
        made = memory.empty((B * H * S, S), np.float32), memory.empty((B * S, H * d), np.float32)
        left_open = self._ffi.new("refmoe_open *", (0, 0, self._ffi.NULL))
        arrays = [self._pointer(array) for array in (qkv, bias, *made)]
        done = self._attend("attention", shape, lambda room: (root, *arrays, room, left_open))
        return made if done and not left_open.count else None

    def attention_backward(self, d_context, qkv, weights, shape, root):
        """d_context (B S, H d), qkv (B S, 3 H d), weights (B H S, S) -> d_qkv like qkv; None as above."""
        if not _readable(d_context, qkv, weights):
            return None
        made = memory.empty(qkv.shape, np.float32)
        arrays = [self._pointer(array) for array in (qkv, weights, d_context, made)]
        return made if self._attend("attention_backward", shape, lambda room: (root, *arrays, room)) else None

    def _attend(self, name, shape, arguments):
        """One call of C; False for rows that are longer than it takes."""
        B, S, H, d = shape
        threads = self._threads_for(B * H * S * S * d * _SUMS)
        how = self._ffi.new("refmoe_how *", {"kernel": self._index, "threads": threads})
        heads = self._ffi.new("refmoe_heads *", shape)
        floats = self._lib.refmoe_attention_room(how, heads)
        if floats < 0:
            return False
        room = memory.empty((floats,), np.float32)
        status = getattr(self._lib, f"refmoe_{name}")(how, heads, *arguments(self._pointer(room)))
        if status != self._lib.REFMOE_OK:
            raise ValueError(f"{name}: expected what refmoe_attention.h allows, got its status {status}; see there")
        with self._lock:
            self.calls[name, self.kernel] += 1
        return True


def _readable(*arrays):
    return all(a.dtype == np.float32 and a.dtype.isnative and a.flags.carray for a in arrays)
