"""What a case's stages are made of: chain lengths, magnitudes, and the formats in which nothing is rounded.   Spec 7.10

`Measured` stands where `Numerics` does. A case is exact in a format if every product, every sum of some of a stage's
products and every stored tensor is one of its numbers: the products are multiples of one power of two, and their
absolute values together are few enough. Then no order, blocking or fused operation can make a difference.
"""

from typing import NamedTuple

import numpy as np

from .accumulators import ACCUMULATORS
from .noted import ALL, NOTHING, OFFERED, NotedArithmetic, formats_of, last_bit, noted
from .operands import Reach, broadcast
from .tracked import Tracked, track
from .tracking import Tracking

# What is chosen depends on these, although no value of the choice was made by them.
RANKED = ("scores", "choice_scores", "group_scores")


class Stage(NamedTuple):
    """One stored tensor that was made of sums."""

    size: int  # elements
    terms: int  # products in the longest of its sums
    magnitude: object  # of each element: the sum of the absolute values of its products, float32


class Open:
    """What is known of the stage that is being made: a bit a format, its longest sum, the stages that it reads."""

    def __init__(self):
        self.note, self.longest, self.read = ALL, 0, set()

    def keep(self, note):
        self.note &= int(np.bitwise_and.reduce(np.asarray(note, np.int64).reshape(-1), initial=ALL))


class Measured(Tracking):
    """The policy `num`, noting of each stage its sums, and in which formats it and all that it reads are exact."""

    def __init__(self, num):
        super().__init__(num, ACCUMULATORS["f64"])
        for name, value in {"stages": {}, "notes": [], "starts": [], "ranked": [ALL], "opened": [Open()]}.items():
            object.__setattr__(self, name, value)

    def exact_in(self, inputs, made):
        """The formats in which these inputs, and all that these results come from, are exact."""
        opened = Open()
        opened.keep(self.ranked[0])
        for array in inputs:
            if array.dtype.kind == "f":
                opened.keep(_held(array))
        for array in made:
            opened.keep([self.notes[at] for at in self._made_by(array)])
            if array.dtype.kind == "f":
                opened.keep(_held(array))
        return tuple(name for at, name in enumerate(OFFERED) if opened.note >> at & 1)

    def _made_by(self, array):
        """The stages, by number, that made elements of the array."""
        if not isinstance(array, Tracked) or array.parts is None:
            return set()
        origins = np.unique(array.part("origin"))
        return set((np.searchsorted(self.starts, origins[origins > 0], side="right") - 1).tolist())

    def _term(self, name, array):
        self.opened[0].read |= self._made_by(array)
        return super()._term(name, array)

    def _product(self, name, a, b, more=(), of_rows=False):
        """a (R, L) times b (L, C), plus a row."""
        products = np.abs(a.v[:, :, None] * b.v[None])
        bits = last_bit(a.v)[:, :, None] + last_bit(b.v)[None]
        extra = [np.broadcast_to(t.v, (len(a.v), b.v.shape[1]))[:, None] for t in more]
        return self._noted(np.concatenate([products, *map(np.abs, extra)], axis=1),
                           np.concatenate([np.minimum(bits, NOTHING), *map(last_bit, extra)], axis=1))  # fmt: skip

    def _product_of_rows(self, name, a, b):
        return self._noted(np.abs(a.v * b.v), np.minimum(last_bit(a.v) + last_bit(b.v), NOTHING))

    def _sum(self, name, terms, shape, K, inner):
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
        opened = self.opened[0]
        opened.keep(formats_of(total, bit.astype(np.int64)))
        opened.longest = max(opened.longest, K)
        return Reach(total, *[np.zeros(total.shape)] * 5)

    def _formula(self, name, formula, terms, core, constants, shape):
        m = NotedArithmetic()
        read = formula(m, *map(m.array, broadcast([t.v for t in terms], core)), **constants)
        self.opened[0].keep(noted(read).note)
        return Reach(np.zeros(shape), *[np.zeros(shape)] * 5)

    def _stored(self, name, stored, reach):
        first = self.ledger.made + 1
        self.ledger.made += stored.size
        opened, self.opened[0] = self.opened[0], Open()
        if opened.longest:
            with np.errstate(over="ignore"):
                magnitude = np.asarray(reach.value).reshape(stored.shape).astype(np.float32)
            self.stages[first] = Stage(stored.size, opened.longest, magnitude)
        opened.keep([self.notes[at] for at in opened.read])
        opened.keep(_held(stored))
        self.starts.append(first)
        self.notes.append(opened.note)
        if name in RANKED:
            self.ranked[0] &= opened.note
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


def _held(array):
    """The note of what is stored; every format has infinities, by which groups are masked."""
    return noted(np.where(np.isinf(array), 0.0, np.asarray(array))).note
