"""Gradients of expert weights, made an expert at a time and only when asked for: no later stage reads them.

Spec 7.12
"""

import numpy as np


class LateGradient:
    """A sink of the layer that keeps what a gradient is made from: part(e) is the Tracked (M, K) of expert e.

    stored(e): what the law stores, and nothing more.
    """

    ndim = 3

    def __init__(self, shape, dtype):
        self.shape, self.dtype, self._made_by = tuple(shape), np.dtype(dtype), {}

    def __len__(self):
        return self.shape[0]

    def take(self, e, made_by):
        self._made_by[e] = made_by

    def part(self, e):
        return self._made_by[e].tracked()

    def stored(self, e):
        return self._made_by[e].stored()


class Product:
    """One expert's gradient before it is made: the policy, the stage and its operands."""

    def __init__(self, tracking, name, d_rows, x_rows):
        self._tracking, self._name, self._operands = tracking, name, (d_rows, x_rows)

    def tracked(self):
        return self._tracking.product_of_rows(self._name, *self._operands)

    def stored(self):
        return self._tracking.num.contract_backward_w(self._name, *map(np.asarray, self._operands))


def late_gradients(params):
    """What `into` a passage hands the layer: a LateGradient for each matrix of experts, None for all else."""
    def sinks(group):
        matrices = {name: getattr(group, name) for name in ("w_gate", "w_up", "w_down")}
        return {name: LateGradient(w.shape, w.dtype) for name, w in matrices.items() if w is not None}

    into = type(params)(**sinks(params))
    return into if params.shared is None else into._replace(shared=type(params.shared)(**sinks(params.shared)))
