"""Exact sums of few terms in C, as methods of the engine.   csrc/refmoe_sums.h"""

import math

import numpy as np

from . import memory
from .arguments import FLOAT32, INT64, is_read

STACK_TERMS = 128  # more want a workspace (refmoe_sums.h)


class Sums:
    """What `CEngine` adds up without a product of matrices."""

    def sum(self, rule, terms):
        """round(sum of the terms), each one or two factors (array, index or None) that broadcast to one shape.

        An index (T,) takes the rows of a float32 array (N, D); -1 makes the term +0. -> new float32 array, or None for
        arrays that C does not read: other types, no axis, more than two axes that differ.
        """
        arrays = [array for term in terms for array, _ in term]
        if not all(isinstance(a, np.ndarray) and a.dtype == FLOAT32 and a.dtype.isnative for a in arrays):
            return None
        shape = np.broadcast_shapes(*{_shape(*factor) for term in terms for factor in term})
        n, m = _table(shape)
        held = {}
        views = [[self._view(factor, shape, held) for factor in term] for term in terms]
        if n * m == 0 or any(view is None for term in views for view in term):
            return None
        empty = (self._ffi.NULL, 0, 0, self._ffi.NULL, 0, 0)
        table = self._ffi.new("refmoe_term[]", [(term[0], term[1] if len(term) > 1 else empty) for term in views])
        out = memory.empty(shape, np.float32)
        self._add_up("sum", rule, n * m * len(terms), n, m, len(terms), table, self._pointer(out))
        return out

    def weighted_sum(self, rule, rows, weights, slot_row):
        """out[t] = round(sum_k weights[t, k] rows[slot_row[t, k]]), +0 for a slot_row of -1: `sum` of these terms.

        rows (N, D), weights (T, K), slot_row (T, K) int64 -> new array (T, D), or None for arrays that C does not read
        """
        (T, K), (N, D) = weights.shape, rows.shape
        if T * K == 0 or not (is_read(rows, FLOAT32) and is_read(weights, FLOAT32) and is_read(slot_row, INT64)):
            return None
        out = memory.empty((T, D), FLOAT32)
        arrays = map(self._pointer, (rows, weights, slot_row, out))
        self._add_up("weighted_sum", rule, T * D * K, T, D, K, N, *arrays)
        return out

    def row_products(self, rule, a, b):
        """out[n] = the chain of a[n, k] b[n, k], k ascending from +0: a, b (N, K) -> (N,); None: C does not read it."""
        asked = rule.profile == "chain" and rule.format == "float32"
        if not asked or not all(array.dtype == FLOAT32 and array.flags.carray for array in (a, b)):
            return None
        out = memory.empty((len(a),), np.float32)
        how = self._ffi.new("refmoe_how *", {"kernel": self._index, "threads": self._threads_for(a.size)})
        status = self._lib.refmoe_row_products(how, *a.shape, *map(self._pointer, (a, b, out)))
        if status != self._lib.REFMOE_OK:
            raise ValueError(f"row_products: expected what refmoe_sums.h allows, got its status {status}; see there")
        with self._lock:
            self.calls["row_products", self.kernel] += 1
        return out

    def _view(self, factor, shape, held):
        """What refmoe_view says of an array. `held`: what views point to, and where, by the array it stands for."""
        array, index = factor
        key = id(array), index is None
        if key not in held:
            held[key] = array, *self._read(array, index, shape)
        _, readable, start, row, col = held[key]
        if readable is None:
            return None
        if index is None:
            return (start, row, col, self._ffi.NULL, 0, 0)
        index = index if index.dtype == np.int64 and index.strides[0] % 8 == 0 else index.astype(np.int64)
        held[id(index)] = index
        return (start, row, col, self._start("int64_t *", index), index.strides[0] // 8, len(readable))

    def _read(self, array, index, shape):
        """The array as C reads it, or None; where it begins, and its steps."""
        if index is None and len(shape) > 2:
            if array.shape != shape:
                return None, None, 0, 0
            array = np.ascontiguousarray(array).reshape(-1, shape[-1])
        array = _readable(array)
        return array, self._start("float *", array), *_steps(array)

    def _start(self, kind, array):
        dense = array.flags.c_contiguous and array.size  # NumPy takes ten times as long to tell where others begin
        return self._ffi.cast(kind, self._ffi.from_buffer(array) if dense else array.ctypes.data)

    def _add_up(self, name, rule, work, *arguments):
        function, threads = getattr(self._lib, f"refmoe_{name}_f32"), self._threads_for(work)
        if arguments[2] <= STACK_TERMS:
            status = function(self._read_how(rule, threads), *arguments)
        else:
            how = self._ffi.new("refmoe_how *", self._how(rule, threads))
            status = self._in_workspace(how, lambda: function(how, *arguments))
        if status == self._lib.REFMOE_NO_MEMORY:
            raise MemoryError(f"{name}: expected memory for {self.threads} threads to work in, got none; use fewer")
        if status != self._lib.REFMOE_OK:
            raise ValueError(f"{name}: expected what refmoe_sums.h allows, got its status {status}; see there")
        with self._lock:
            self.calls[name, self.kernel] += 1


def _shape(array, index):
    return array.shape if index is None else (len(index), array.shape[1])


def _table(shape):
    """The sum's shape as rows and columns."""
    return (math.prod(shape[:-1]), shape[-1]) if shape else (0, 0)


def _readable(array):
    """The array, or a copy whose elements lie at multiples of theirs, side by side along the last axis."""
    steps = (0,) * (2 - array.ndim) + array.strides
    beside = array.shape[-1:] in ((), (1,)) or steps[1] in (0, 4)
    return array if array.flags.aligned and beside else np.ascontiguousarray(array)


def _steps(array):
    """Elements from a row to the next, from a column to the next; 0 where one stands for all."""
    shape, steps = (1,) * (2 - array.ndim) + array.shape, (0,) * (2 - array.ndim) + array.strides
    return (0 if shape[0] == 1 else steps[0] // 4), (0 if shape[1] == 1 else steps[1] // 4)
