"""Named formulas in C, as a method of the engine.   csrc/refmoe_formulas.h"""

import math

import numpy as np

from . import memory
from .arguments import dense

WORK_OF_AN_ELEMENT = 16  # multiplications and their like, for the choice of threads
_READ = (np.dtype(np.float32), np.dtype(bool))
_ROOM = 1024  # places in a list of what is left open; if they do not suffice the formula is evaluated again
ACTIVATIONS = {"silu": "REFMOE_SILU", "gelu_tanh": "REFMOE_GELU_TANH", "relu": "REFMOE_RELU", "relu2": "REFMOE_RELU2",
               "sigmoid": "REFMOE_SIGMOID", "gelu": "REFMOE_GELU", "sqrt_softplus": "REFMOE_SQRT_SOFTPLUS",
               "softcap": "REFMOE_SOFTCAP"}  # fmt: skip


class Formulas:
    """What `CEngine` evaluates by a formula's name."""

    def formula(self, rule, name, parameters, stored):
        """The named formula of float32 arrays, and of a mask where it has one, rounded once.

        -> [(new array, numbers of the elements or rows left open)] for each result; None where C has no such formula
        """
        compiled = COMPILED.get(name)
        if compiled is None or not all(array.dtype in _READ and array.dtype.isnative for array in stored):
            return None
        return compiled(self, rule, parameters, stored)

    def kept_softmax(self, rule, logits, topk_indices, kept, counted, c):
        """c softmax of logits[t, topk_indices[t, k]] over the slots that weigh, as `at_slots` has them; +0 elsewhere.

        -> new array (T, K); None for many slots, arrays that C does not read, and where a row is left open
        """
        few = 0 < topk_indices.size < _ROOM
        found = self.at_slots(logits, topk_indices, kept, counted) if few else None
        if found is None:
            return None
        out, left = np.empty(topk_indices.shape, np.float32), self._ffi.new("refmoe_open *")
        made = self._ask("softmax", rule, out.size, [c, *out.shape], [*found, out], [left])
        return out if made and left.count == 0 else None

    def _evaluate(self, name, rule, size, parameters, operands, results):
        """refmoe_`name`(how, parameters, operands, results, lists); `size` elements of work, None is NULL there."""
        operands = [None if array is None else dense(array) for array in operands]
        room = _ROOM if size >= _ROOM else 0  # of few elements hardly ever one is left open
        while True:
            index = [None if array is None else np.empty(room, np.int64) for array in results]
            lists = [self._list(array) for array in index]
            if not self._ask(name, rule, size, parameters, [*operands, *results], lists):
                return None
            found = [(array, i, made.count) for array, i, made in zip(results, index, lists, strict=True) if made]
            most = max(count for _, _, count in found)
            if most <= room:
                return [(array, i[:count]) for array, i, count in found]
            room = most

    def _activation(self, activation):
        """refmoe_activation; None for one that is not compiled. They are few, and kept."""
        if activation not in self._activations:
            self._activations[activation] = self._new_activation(*activation)
        return self._activations[activation]

    def _new_activation(self, name, alpha, limit, offset, cap=None, up_cap=None):
        if name not in ACTIVATIONS:
            return None
        limit = float("inf") if limit is None else limit
        numbers = alpha, limit, offset, cap or 0.0, up_cap or 0.0
        return self._ffi.new("refmoe_activation *", (getattr(self._lib, ACTIVATIONS[name]), *numbers))

    def _list(self, index):
        if index is None:
            return self._ffi.NULL
        return self._ffi.new("refmoe_open *", (0, len(index), self._pointer(index)))

    def _ask(self, name, rule, size, before, arrays, lists):
        """One call of C; False where it does not offer these parameters."""
        threads = self._threads_for(size * WORK_OF_AN_ELEMENT)
        how = self._read_how(rule if rule.force_tier is None else rule._replace(force_tier=None), threads)
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
    return act and engine._evaluate("gated", rule, gate.size, [act, gate.size], [gate, up], [_like(gate)])


def _gated_backward(engine, rule, activation, stored):
    """d_gate and d_up, or d_gate alone."""
    act = _activation(engine, activation, stored)
    d, gate, up = (*stored, None)[:3]
    results = [_like(d), None if up is None else _like(d)]
    return act and engine._evaluate("gated_backward", rule, d.size, [act, d.size], [d, gate, up], results)


def _activation(engine, activation, stored):
    """refmoe_activation for arrays of one shape; None for an activation that is not compiled."""
    if any(array.shape != stored[0].shape for array in stored):
        return None
    return engine._activation(activation)


def _scaled_rows(engine, rule, _, stored):
    """w x, w (N, 1) and x (N, D)."""
    w, x = stored
    if x.ndim != 2 or w.shape != (len(x), 1):
        return None
    return engine._evaluate("scaled_rows", rule, x.size, x.shape, [w, x], [_like(x)])


def _softmax(engine, rule, c, stored):
    """c softmax(z) along the last axis, over those of a mask if there is one."""
    z, used = (*stored, None)[:2]
    return _rows("softmax", engine, rule, c, [z], used)


def _softmax_backward(engine, rule, c, stored):
    """c p_j (d_j - sum_i d_i p_i), p the softmax of z, over those of a mask if there is one."""
    d, z, used = (*stored, None)[:3]
    return _rows("softmax_backward", engine, rule, c, [d, z], used)


def _rows(name, engine, rule, c, arrays, used):
    n, m = _table(arrays[0])
    if any(array.shape != arrays[0].shape for array in arrays) or not (used is None or used.shape == arrays[0].shape):
        return None
    return engine._evaluate(name, rule, n * m, [c, n, m], [*arrays, used], [_like(arrays[0])])


def _log_sum_exp(engine, rule, _, stored):
    """log(sum exp(z)) along the last axis."""
    (z,) = stored
    n, m = _table(z)
    return engine._evaluate("log_sum_exp", rule, n * m, [n, m], [z], [memory.empty(z.shape[:-1], np.float32)])


def _table(array):
    """Rows and columns of an array of any number of axes."""
    return math.prod(array.shape[:-1]), array.shape[-1]


def _like(array):
    return memory.empty(array.shape, np.float32)


# name of a formula -> how C is asked: (engine, rule, parameters, stored) -> what `Formulas.formula` returns
COMPILED = {
    "gated": _gated,
    "gated_backward": _gated_backward,
    "scaled_rows": _scaled_rows,
    "softmax": _softmax,
    "softmax_backward": _softmax_backward,
    "log_sum_exp": _log_sum_exp,
}
