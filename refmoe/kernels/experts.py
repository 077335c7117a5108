"""Experts with few rows in one call of C, as a method of the engine.   csrc/refmoe_experts.h"""

import numpy as np

from . import codes, memory
from .arguments import array_of, dtype_of, offsets_of, operand_of


class Experts:
    """What `CEngine` computes from the rows of the experts to what they make, each weight read once."""

    def feed_forward(self, rule, activation, x_rows, gate, up, down, offsets, weights=None):
        """gate_rows, up_rows, hidden_rows, weighted_hidden_rows, y_rows of experts with few rows.

        activation as `Formulas` knows it; x_rows (N, D); gate, up, down: w and bias of (E, F, D), (E, F, D), (E, D, F),
        gate (None, None) for plain experts; offsets (E + 1,), weights (N,) of the hidden rows or None. -> new arrays,
        None for what there is not; None from hidden_rows on where the activation leaves an element open. None where C
        has no such activation or takes no weights like these, or an expert has many rows.
        """
        act = self._activation(activation)
        if act is None or rule.profile == "float64":
            return None
        dtype = dtype_of(rule)
        w_up, right, (E, F, D) = codes.weights_of("w_up", up[0], rule, (None, None, None))
        w_gate = None if gate[0] is None else codes.weights_of("w_gate", gate[0], rule, (E, F, D))
        w_down, *other = codes.weights_of("w_down", down[0], rule, (E, D, F))
        if other[0] != right or (w_gate is not None and w_gate[1] != right):
            return None
        x_rows, left = operand_of("x_rows", x_rows, rule, (None, D))
        N, offsets = len(x_rows), offsets_of(offsets, E)
        weights = array_of("weights", weights, dtype, (N,), True)
        biases = [array_of(f"b_{name}", b, dtype, (E, size), True)
                  for name, b, size in (("gate", gate[1], F), ("up", up[1], F), ("down", down[1], D))]  # fmt: skip
        rows = [None if absent else memory.empty((N, size), dtype)
                for absent, size in ((w_gate is None, F), (False, F), (False, F), (weights is None, F), (False, D))]  # fmt: skip
        read = [self._pointer(w) for w in (w_gate and w_gate[0], w_up, w_down)]  # of codes they own what maps point to
        maps = [self._ffi.new("refmoe_linear *", (w, self._pointer(bias), self._pointer(out)))
                for w, bias, out in zip(read, biases, (*rows[:2], rows[4]), strict=True)]  # fmt: skip
        arrays = self._pointer(x_rows), act, *maps[:2], *map(self._pointer, (weights, *rows[2:4])), maps[2]
        left_open = self._ffi.new("int64_t *")
        work = len(maps) * N * D * F
        if not self._call("feed_forward", rule, (left, right), work, (E, N, D, F), offsets, *arrays, left_open):
            return None
        return rows if left_open[0] == 0 else [*rows[:2], None, None, None]
