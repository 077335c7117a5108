"""Experts with few rows in one call of C, as a method of the engine.   csrc/refmoe_experts.h"""

from . import codes, memory
from .arguments import FLOAT32, INT64, array_of, dtype_of, is_read, offsets_of, operand_of
from .sums import STACK_TERMS

MOST_FEW_ROWS = 8  # of an expert, whatever the kernel: refmoe_experts.h


class Experts:
    """What `CEngine` computes from the rows of the experts to what they make, each weight read once."""

    def feed_forward(self, rule, activation, x_rows, gate, up, down, offsets, weights=None, slots=None):
        """gate_rows, up_rows, hidden_rows, weighted_hidden_rows, y_rows of experts with few rows, and the sum of these.

        activation as `Formulas` knows it; x_rows (N, D); gate, up, down: w and bias of (E, F, D), (E, F, D), (E, D, F),
        gate (None, None) for plain experts; offsets (E + 1,), weights (N,) of the hidden rows or None; slots: the sum's
        weights and their rows, both (T, K), or None. -> new arrays, None for what there is not, and from hidden_rows on
        where the activation leaves an element open. None where C has no such activation or takes no weights like these,
        or an expert has many rows.
        """
        act = self._activation(activation)
        found = None if act is None else _weights_of(rule, gate[0], up[0], down[0])
        if found is None:
            return None
        weights_read, right, (E, F, D) = found
        dtype, (x_rows, left) = dtype_of(rule), operand_of("x_rows", x_rows, rule, (None, D))
        N, offsets = len(x_rows), offsets_of(offsets, E)
        if N > E * MOST_FEW_ROWS:
            return None  # whichever expert has them: C would say no when arrays for every stage were there
        weights = array_of("weights", weights, dtype, (N,), True)
        biases = [array_of("bias", b, dtype, (E, m), True) for (_, b), m in ((gate, F), (up, F), (down, D))]
        absent = {0: gate[0] is None, 3: weights is None}
        rows = [None if absent.get(i) else memory.empty((N, m), dtype) for i, m in enumerate((F, F, F, F, D))]
        held = [self._pointer(w) for w in weights_read]  # of codes it owns what a map points to
        maps = [self._map(*one) for one in zip(held, biases, (*rows[:2], rows[4]), strict=True)]
        total, slots = self._slots(slots, D)
        arrays = self._pointer(x_rows), act, *maps[:2], *map(self._pointer, (weights, *rows[2:4])), maps[2], slots
        left_open = self._ffi.new("int64_t *")
        sizes = E, N, D, F
        if not self._call("feed_forward", rule, (left, right), 3 * N * D * F, sizes, offsets, *arrays, left_open):
            return None
        return [*rows, total] if left_open[0] == 0 else [*rows[:2], None, None, None, None]

    def _slots(self, slots, D):
        """Where the weighted sum goes, and refmoe_slots; None and NULL without one, or where C does not read it."""
        if slots is None or not (is_read(slots[0], FLOAT32) and is_read(slots[1], INT64)):
            return None, self._null
        T, K = slots[0].shape
        if not 0 < K <= STACK_TERMS:
            return None, self._null
        out = memory.empty((T, D), FLOAT32)
        return out, self._ffi.new("refmoe_slots *", (T, K, *map(self._pointer, (*slots, out))))

    def _map(self, w, bias, out):
        return self._ffi.new("refmoe_linear *", (w, self._pointer(bias), self._pointer(out)))


def _weights_of(rule, gate, up, down):
    """What is passed of the three, their one format and (E, F, D); None where formats differ."""
    up, right, (E, F, D) = codes.weights_of("w_up", up, rule, (None, None, None))
    made = [] if gate is None else [codes.weights_of("w_gate", gate, rule, (E, F, D))]
    made.append(codes.weights_of("w_down", down, rule, (E, D, F)))
    if any(form != right for _, form, _ in made):
        return None
    return (None if gate is None else made[0][0], up, made[-1][0]), right, (E, F, D)
