"""Named formulas in C, as a method of the engine.   csrc/refmoe_formulas.h"""

import numpy as np

WORK_OF_AN_ELEMENT = 16  # multiplications and their like, for the choice of threads
_ROOM = 1024  # places in a list of what is left open; if they do not suffice the formula is evaluated again
_ACTIVATIONS = {"silu": "REFMOE_SILU", "gelu_tanh": "REFMOE_GELU_TANH", "relu": "REFMOE_RELU", "relu2": "REFMOE_RELU2"}


class Formulas:
    """What `CEngine` evaluates by a formula's name."""

    def formula(self, rule, name, parameters, stored):
        """The named formula of float32 arrays, rounded once to rule.format.

        -> [(new array, numbers of the elements left open)] for each result, or None where C has no such formula.
        """
        compiled = COMPILED.get(name)
        if compiled is None or not all(array.dtype == np.float32 and array.dtype.isnative for array in stored):
            return None
        return compiled(self, rule, parameters, stored)

    def _evaluate(self, name, rule, sizes, operands, results, act=None):
        """refmoe_`name`(how, act, sizes, operands, results, lists); an array that is None is NULL there."""
        operands = [None if array is None else np.require(array, requirements=("C", "A")) for array in operands]
        room, size = _ROOM, results[0].size
        while True:
            index = [None if array is None else np.empty(room, np.int64) for array in results]
            lists = [self._list(array) for array in index]
            before = sizes if act is None else [act, *sizes]
            if not self._ask(name, rule, size, before, [*operands, *results], lists):
                return None
            found = [(array, i, made.count) for array, i, made in zip(results, index, lists, strict=True) if made]
            room = max(count for _, _, count in found)
            if room <= _ROOM or room == len(found[0][1]):
                return [(array, i[:count]) for array, i, count in found]

    def _list(self, index):
        if index is None:
            return self._ffi.NULL
        return self._ffi.new("refmoe_open *", (0, len(index), self._pointer(index)))

    def _ask(self, name, rule, size, before, arrays, lists):
        """One call of C; False where it does not offer these parameters."""
        threads = self._threads_for(size * WORK_OF_AN_ELEMENT)
        how = self._ffi.new("refmoe_how *", self._how(rule._replace(force_tier=None), threads))
        status = getattr(self._lib, f"refmoe_{name}")(how, *before, *map(self._pointer, arrays), *lists)
        if status == self._lib.REFMOE_BAD_PROFILE:
            return False
        if status != self._lib.REFMOE_OK:
            raise ValueError(f"{name}: expected what refmoe_formulas.h allows, got its status {status}; see there")
        with self._lock:
            self.calls[name, self.kernel] += 1
        return True


def _gated(engine, rule, activation, stored):
    """act(gate) up, or act(gate) alone."""
    act = _activation(engine, activation, stored)
    gate, up = (*stored, None)[:2]
    return act and engine._evaluate("gated", rule, [gate.size], [gate, up], [_like(gate)], act)


def _gated_backward(engine, rule, activation, stored):
    """d_gate and d_up, or d_gate alone."""
    act = _activation(engine, activation, stored)
    d, gate, up = (*stored, None)[:3]
    results = [_like(d), None if up is None else _like(d)]
    return act and engine._evaluate("gated_backward", rule, [d.size], [d, gate, up], results, act)


def _activation(engine, activation, stored):
    """refmoe_activation for arrays of one shape; None for an activation that is not compiled."""
    name, alpha, limit, offset = activation
    if name not in _ACTIVATIONS or any(array.shape != stored[0].shape for array in stored):
        return None
    limit = float("inf") if limit is None else limit
    return engine._ffi.new("refmoe_activation *", (getattr(engine._lib, _ACTIVATIONS[name]), alpha, limit, offset))


def _scaled_rows(engine, rule, _, stored):
    """w x, w (N, 1) and x (N, D)."""
    w, x = stored
    if x.ndim != 2 or w.shape != (len(x), 1):
        return None
    return engine._evaluate("scaled_rows", rule, x.shape, [w, x], [_like(x)])


def _like(array):
    return np.empty(array.shape, np.float32)


# name of a formula -> how C is asked: (engine, rule, parameters, stored) -> what `Formulas.formula` returns
COMPILED = {"gated": _gated, "gated_backward": _gated_backward, "scaled_rows": _scaled_rows}
