"""What a case's stages are made of: chain lengths, magnitudes, and the formats in which nothing is rounded.   Spec 7.10

`Measured` stands where `Numerics` does. A case is exact in a format if every product, every sum of some of a stage's
products and every stored tensor is one of its numbers: the products are multiples of one power of two, and their
absolute values together are few enough. Then no order, blocking or fused operation can make a difference.
"""

from typing import NamedTuple

import numpy as np

from .accumulators import ACCUMULATORS
from .noted import ALL, NOTHING, OFFERED, NotedArithmetic, formats_of, last_bit, noted
from .tracked import Tracked, track
from .tracking import Reach, Tracking, _broadcast


class Stage(NamedTuple):
    """One stored tensor that was made of sums."""

    size: int  # elements
    terms: int  # products in the longest of its sums
    magnitude: object  # of each element: the sum of the absolute values of its products, float32


class Measured(Tracking):
    """The policy `num`, noting its stages. `exact_in`: the formats in which all of them so far were exact."""

    def __init__(self, num):
        super().__init__(num, ACCUMULATORS["f64"])
        for name, value in {"stages": {}, "held": [ALL], "longest": [0]}.items():
            object.__setattr__(self, name, value)

    @property
    def exact_in(self):
        return tuple(name for at, name in enumerate(OFFERED) if self.held[0] >> at & 1)

    def note_stored(self, array):
        """Only the formats that hold the array are left."""
        if np.asarray(array).dtype.kind == "f":
            self._keep(noted(array).note)

    def _keep(self, note):
        self.held[0] &= int(np.bitwise_and.reduce(np.asarray(note).reshape(-1), initial=ALL))

    def _product(self, a, b, more=(), of_rows=False):
        """a (R, L) times b (L, C), plus a row."""
        products = np.abs(a.v[:, :, None] * b.v[None])
        bits = last_bit(a.v)[:, :, None] + last_bit(b.v)[None]
        extra = [np.broadcast_to(t.v, (len(a.v), b.v.shape[1]))[:, None] for t in more]
        return self._noted(np.concatenate([products, *map(np.abs, extra)], axis=1),
                           np.concatenate([np.minimum(bits, NOTHING), *map(last_bit, extra)], axis=1))  # fmt: skip

    def _sum(self, terms, shape, K, inner):
        values, bits = [], []
        for term in terms:
            values.append(np.broadcast_to(np.abs(np.prod(np.broadcast_arrays(*(t.v for t in term)), axis=0)), shape))
            bits.append(np.broadcast_to(sum(last_bit(t.v) for t in term), shape))
        empty = np.zeros((0, *shape))
        whole = np.stack(values) if values else empty, np.minimum(np.stack(bits) if bits else empty, NOTHING)
        return self._noted(*whole, axis=0)

    def _noted(self, products, bits, axis=1):
        """Notes a stage of sums; the magnitude is added up in one order, so that it has the same bits everywhere."""
        K = products.shape[axis]
        total = np.add.accumulate(products, axis=axis).take(-1, axis) if K else products.sum(axis)
        bit = bits.min(axis, initial=NOTHING)
        self._keep(formats_of(total, bit.astype(np.int64)))
        self.longest[0] = max(self.longest[0], K)
        return Reach(total, *[np.zeros(total.shape)] * 5)

    def _formula(self, name, formula, terms, core, constants, shape):
        m = NotedArithmetic()
        read = formula(m, *map(m.array, _broadcast([t.v for t in terms], core)), **constants)
        self._keep(noted(read).note)
        return Reach(np.zeros(shape), *[np.zeros(shape)] * 5)

    def _stored(self, name, stored, reach):
        first = self.ledger.made + 1
        self.ledger.made += stored.size
        if self.longest[0]:
            with np.errstate(over="ignore"):
                magnitude = np.asarray(reach.value).reshape(stored.shape).astype(np.float32)
            self.stages[first] = Stage(stored.size, self.longest[0], magnitude)
            self.longest[0] = 0
        self.note_stored(stored)
        return track(stored, origin=np.arange(first, first + stored.size).reshape(stored.shape))

    def stage_of(self, array):
        """The stage whose tensor this array is, whole and in its own order; else None."""
        if not isinstance(array, Tracked) or array.parts is None or not array.size:
            return None
        origin = array.part("origin").reshape(-1)
        stage = self.stages.get(int(origin[0]))
        whole = stage is not None and (origin == np.arange(origin[0], origin[0] + stage.size)).all() \
            if stage is not None and stage.size == len(origin) else False  # fmt: skip
        return stage if whole else None
