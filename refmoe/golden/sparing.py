"""The policy of a layer whose weights do not fit: an expert at a time, and what is done stays done.   Spec 7.4.1

`Sparing` stands where `Numerics` does. A product with weights by recipe visits the experts that have rows, asks for the
next ones while one is multiplied, and keeps the rows it makes, so that an interrupted run does not make them again.
"""

from itertools import pairwise

import numpy as np

from ..numerics import Numerics
from .weights import MAKE, RecipeWeights


class Sparing(Numerics):
    """The policy `num` with a pool of makers."""

    def __init__(self, num, pool):
        for name, value in (vars(num) | {"num": num, "pool": pool}).items():
            object.__setattr__(self, name, value)

    def takes_codes(self, *weights):
        """Weights by recipe come here whole; all others as they do without this policy."""
        return _all_by_recipe(weights) or self.num.takes_codes(*weights)

    def contract(self, name, x_rows, w, offsets=None, bias=None):
        if not _all_by_recipe([w]):
            return self.num.contract(name, x_rows, w, offsets, bias)

        def made(e, rows, experts):
            return self.num.contract(name, x_rows[rows], experts[0], bias=None if bias is None else bias[e])

        return self._by_expert(name, [w], offsets, w.shape[1], made)

    def contract_backward_x(self, name, pairs, offsets=None):
        weights = [w for _, w in pairs]
        if not _all_by_recipe(weights):
            return self.num.contract_backward_x(name, pairs, offsets)

        def made(e, rows, experts):
            parts = [(d[rows], w) for (d, _), w in zip(pairs, experts, strict=True)]
            return self.num.contract_backward_x(name, parts)

        return self._by_expert(name, weights, offsets, weights[0].shape[2], made)

    def _by_expert(self, name, weights, offsets, width, made):
        """(N, width): the rows of each expert by made(e, rows, weights of e), or as an earlier run kept them."""
        out = np.zeros((int(offsets[-1]), width), self.dtype)
        label, left = f"{name} {' '.join(w.name for w in weights)}", []
        for e, rows in _with_rows(offsets):
            kept = self.pool.kept(label, e, out[rows].nbytes)
            if kept is None:
                left.append((e, rows))
            else:
                out[rows] = np.frombuffer(kept, out.dtype).reshape(-1, width)
                self.pool.did(MAKE, sum(w.shape[1] * w.shape[2] for w in weights))
        experts = [e for e, _ in left]
        for at, (e, rows) in enumerate(left):
            for w in weights[1:]:
                w.start(experts[at : at + 2])
            out[rows] = made(e, rows, [w.expert(e, experts[at + 1 :]) for w in weights])
            self.pool.keep(label, e, np.ascontiguousarray(out[rows]).tobytes())
        return out


def _all_by_recipe(weights):
    return all(isinstance(w, RecipeWeights) for w in weights)


def _with_rows(offsets):
    segments = enumerate(pairwise(map(int, offsets)))
    return [(e, slice(a, b)) for e, (a, b) in segments if b > a]
