"""The layer computed twice at once: as the law says, and how far another implementation may be from it.   Spec 7.12

`Tracking` stands where `Numerics` does, so that every family goes through the code of the layer itself. What another
implementation submitted takes the place of what the law makes, element by element: each stage is then judged on the
submission's own inputs, and what it inherits is told apart from what it adds.
"""

from typing import NamedTuple

import numpy as np

from ..formats import FORMATS
from ..numerics import Numerics
from ..numerics.arithmetic import Binary64
from .accumulators import gamma
from .exactness import adds_exactly
from .late import Product
from .operands import (
    Reach,
    Term,
    beside,
    broadcast,
    common_of,
    disturbed,
    factors_of,
    joined,
    nothing,
    plain_of,
    product_of,
    relative,
    segments_of,
    with_sizes,
)
from .rough import RoughArithmetic
from .tracked import Tracked, is_lost, track
from .trends import DEVIATIONS

LARGEST = 2.0**127  # magnitude from which a float32 sum may overflow on its way
OWN = 2.0**-53  # the unit of this file's own arithmetic
OTHERWISE = 4  # a kernel may write a formula in another way: so many times the bound of this one
RANKED = ("logits", "clean_logits", "scores", "choice_scores", "second_choice_scores", "group_scores")
NAMES = {2.0**-24: "float32", 2.0**-53: "float64"}  # of formats, by the unit of other operations


class Submitted(NamedTuple):
    """What another implementation stored, by the origin of each element."""

    given: object  # (n + 1,) bool
    values: object  # (n + 1,) float64


class Ledger:
    """What a passage counts: elements made so far, stages that read something of which nothing was known."""

    def __init__(self):
        self.made, self.lost = 0, []


class Tracking(Numerics):
    """The policy `num` with a ledger. late: stages of `contract_backward_w` that come as a `Product` yet to be made."""

    def __init__(self, num, accumulator, submitted=None, late=()):
        more = {"num": num, "accumulator": accumulator, "submitted": submitted, "ledger": Ledger(), "late": late}
        for name, value in (vars(num) | more).items():
            object.__setattr__(self, name, value)

    # --- what the layer calls -----------------------------------------------------------------------------------------

    def contract(self, name, x_rows, w, offsets=None, bias=None):
        w3, b2 = w if w.ndim == 3 else w[None], bias if bias is None or bias.ndim == 2 else bias[None]
        parts = []
        for e, rows in segments_of(offsets, len(x_rows)):
            more = [] if b2 is None else [self._term(name, b2[e])]
            x, w_e = self._term(name, x_rows[rows]), self._term(name, w3[e]).T
            parts.append(self._product(name, x, w_e, more, of_rows=True))
        stored = self.num.contract(name, np.asarray(x_rows), np.asarray(w), offsets, plain_of(bias))
        return self._stored(name, stored, joined(parts, stored.shape))

    def contract_backward_x(self, name, pairs, offsets=None):
        parts = []
        for e, rows in segments_of(offsets, len(pairs[0][0])):
            a = [self._term(name, d[rows]) for d, _ in pairs]
            b = [self._term(name, (w if w.ndim == 3 else w[None])[e]) for _, w in pairs]
            parts.append(self._product(name, beside(a, 1), beside(b, 0), of_rows=True))
        stored = self.num.contract_backward_x(name, [(plain_of(d), plain_of(w)) for d, w in pairs], offsets)
        return self._stored(name, stored, joined(parts, stored.shape))

    def contract_backward_w(self, name, d_rows, x_rows, offsets=None, acc=None):
        if name in self.late and offsets is None:
            return Product(self, name, d_rows, x_rows)
        segments = [rows for _, rows in segments_of(offsets, len(d_rows))]
        terms = [(self._term(name, d_rows[rows]).T, self._term(name, x_rows[rows])) for rows in segments]
        parts = [self._product(name, d, x) for d, x in terms]
        stored = self.num.contract_backward_w(name, plain_of(d_rows), plain_of(x_rows), offsets, plain_of(acc))
        made = Reach(*(np.stack(part) for part in zip(*parts, strict=True))) if parts else nothing(stored.shape)
        return self._stored(name, stored, made if offsets is not None else Reach(*(part[0] for part in made)))

    def product_of_rows(self, name, d_rows, x_rows):
        """One expert's `contract_backward_w` as it is judged; nothing reads it, so the ledger does not count it."""
        stored = self.num.contract_backward_w(name, plain_of(d_rows), plain_of(x_rows))
        reach = self._product(name, self._term(name, d_rows).T, self._term(name, x_rows))
        return self._as_read(name, stored, reach, np.zeros(stored.shape, np.int64))

    def contract_rows(self, name, a, b):
        stored = self.num.contract_rows(name, plain_of(a), plain_of(b))
        return self._stored(name, stored, self._product_of_rows(name, self._term(name, a), self._term(name, b)))

    def sum(self, name, terms):
        stored = self.num.sum(name, [tuple(map(plain_of, t)) if isinstance(t, tuple) else plain_of(t) for t in terms])
        pairs = [tuple(self._term(name, a) for a in factors_of(t)) for t in terms]
        return self._stored(name, stored, self._sum(name, pairs, stored.shape, len(pairs), inner=False))

    def sum_rows(self, name, rows, offsets=None, start=None):
        stored = self.num.sum_rows(name, plain_of(rows), offsets, plain_of(start))
        ones = [np.ones((1, r.stop - r.start)) for _, r in segments_of(offsets, len(rows))]
        parts = [self._product(name, self._term(name, one), self._term(name, rows[r]))
                 for one, (_, r) in zip(ones, segments_of(offsets, len(rows)), strict=True)]  # fmt: skip
        return self._stored(name, stored, Reach(*(part.reshape(stored.shape) for part in joined(parts, stored.shape))))

    def evaluate_all(self, names, formulas, *stored):
        return tuple(self.evaluate(name, one, *stored) for name, one in zip(names, formulas.formula, strict=True))

    def evaluate(self, name, formula, *stored, core=0, **constants):
        made = self.num.evaluate(name, formula, *map(plain_of, stored), core=core, **constants)
        terms = [self._term(name, array) for array in stored]
        with np.errstate(all="ignore"):
            return self._stored(name, made, self._formula(name, formula, terms, core, constants, made.shape))

    # --- how far each may be off --------------------------------------------------------------------------------------

    def _product(self, name, a, b, more=(), of_rows=False):
        """a (R, L) times b (L, C), plus a row: sums of L products. of_rows: a factor common to a row of a stays one."""
        K, row = a.v.shape[1] + len(more), self.accumulator
        with np.errstate(all="ignore"):
            value, size, square = a.v @ b.v, np.abs(a.v) @ np.abs(b.v), a.v**2 @ b.v**2
            inherited = a.bound @ (np.abs(b.v) + b.bound) + np.abs(a.v) @ b.bound
            variance = a.variance @ b.v**2 + a.v**2 @ b.variance
            for t in more:
                value, size, square = value + t.v, size + np.abs(t.v), square + t.v**2
            own = (row.kappa(K) if K else 0.0) * (size + inherited) + K * OWN * size
            own_variance = (row.sigma(K) ** 2 + K * OWN**2) * square
            if self._is_exact(name, [(a.v, b.v), *((t.v,) for t in more)], size, inner=True):
                own, own_variance = np.zeros_like(own), np.zeros_like(own_variance)
            own, own_variance = (np.where(size > LARGEST, np.inf, a) for a in (own, own_variance))  # may overflow
            common = relative(a)[:, None] * value**2 if of_rows else variance
            return Reach(value, inherited, own, variance, own_variance, common)

    def _product_of_rows(self, name, a, b):
        """The sum of each row of a * b."""
        with np.errstate(all="ignore"):
            sums = [part.sum(axis=1) for part in with_sizes(*product_of(a, b))]
            return self._summed(name, [(a, b)], *sums, K=a.v.shape[1], inner=True)

    def _sum(self, name, terms, shape, K, inner):
        """A sum of products written out; `inner`: by the accumulator, else by the unit of other operations."""
        sums = [np.zeros(shape)] * 6
        with np.errstate(all="ignore"):
            for term in terms:
                sums = [a + b for a, b in zip(sums, with_sizes(*product_of(*term)), strict=True)]
            return self._summed(name, terms, *sums, K=K, inner=inner)

    def _summed(self, name, terms, value, size, square, inherited, variance, common, K, inner):
        """The Reach of sums of K products whose parts have been added."""
        unit, row = self._unit(name), self.accumulator
        kappa = row.kappa(K) if inner else gamma(K + 1, unit)
        sigma = row.sigma(K) if inner else unit * (K + 1) ** 0.5
        own, own_variance = kappa * (size + inherited) + K * OWN * size, (sigma**2 + K * OWN**2) * square
        if self._is_exact(name, [[a.v for a in term] for term in terms], size, inner):
            own, own_variance = np.zeros_like(own), np.zeros_like(own_variance)
        return Reach(value, inherited, own, variance, own_variance, common)

    def _is_exact(self, name, terms, size, inner):
        """Must every implementation give the exact sum of these products?"""
        bits, kind = self.accumulator.exact
        if not inner:
            unit = self.accumulator.operations
            kind = self.num.format_of(name) if unit is None else NAMES[unit]
            bits = FORMATS[kind].precision
        return adds_exactly(terms, size.max(initial=0.0), bits, kind, self.accumulator.operands if inner else None)

    def _formula(self, name, formula, terms, core, constants, shape):
        """Read in binary64; as a kernel computes it; and disturbed, argument by argument, by what it inherits."""
        plain = broadcast([t.v for t in terms], core)
        value = np.broadcast_to(formula(Binary64(), *plain, **constants), shape)
        m = RoughArithmetic(self._unit(name) + OWN)
        local = formula(m, *map(m.array, plain), **constants)
        own = np.broadcast_to(np.nan_to_num(local.e, nan=np.inf, posinf=np.inf), shape)
        bounds = broadcast([t.bound for t in terms], core)
        inherited, variance, common = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        if any(bound.any() for bound in bounds):
            whole = formula(m, *(m.array(v, e) for v, e in zip(plain, bounds, strict=True)), **constants)
            inherited = np.maximum(np.nan_to_num(whole.e, nan=np.inf, posinf=np.inf) - local.e, 0.0)
            spreads = [np.sqrt(s) for s in broadcast([t.variance for t in terms], core)]
            parts = disturbed(formula, plain, spreads, core, constants, value)
            variance = sum(parts, variance)
            common = variance if core else common_of(terms, parts, value)
        inherited = np.broadcast_to(inherited, shape)
        return Reach(value, inherited, OTHERWISE * own, variance, (own / DEVIATIONS) ** 2, common)

    def _unit(self, name):
        unit = self.accumulator.operations
        return unit_of(self.num.format_of(name)) if unit is None else unit

    def _unit_read(self, name):
        """The unit of the copy that the next stages read: of what is not ranked some make one in the store's format."""
        kept = self.accumulator.operations is not None or name in RANKED
        return unit_of(self.num.format_of(name) if kept else self.num.store)

    def _term(self, name, array):
        if is_lost(array):
            self.ledger.lost.append(name)
        if isinstance(array, Tracked) and array.parts is not None:
            return Term(np.asarray(array, np.float64), *(array.part(field) for field in Term._fields[1:]))
        v = np.asarray(array, np.float64)
        return Term(v, *(np.zeros(v.shape) for _ in Term._fields[1:]))

    # --- the ledger ---------------------------------------------------------------------------------------------------

    def _stored(self, name, stored, reach):
        """The tensor as the next stages read it: what was submitted, or what the law stores and where another's is."""
        first = self.ledger.made + 1
        self.ledger.made += stored.size
        return self._as_read(name, stored, reach, np.arange(first, first + stored.size).reshape(stored.shape))

    def _as_read(self, name, stored, reach, origin):
        value = np.where(np.isfinite(reach.value), reach.value, stored)
        unit = self._unit_read(name)
        with np.errstate(invalid="ignore", over="ignore"):
            allowed, spread = reach.inherited + reach.own, reach.inherited_variance + reach.own_variance
            moved = np.abs(value - stored)
            rounding = np.where((allowed == 0) & (moved == 0), 0.0, unit * np.abs(value))  # exact: all have its bits
            bound = np.nan_to_num(allowed + rounding + moved, nan=0.0, posinf=np.inf)
            variance = np.nan_to_num(spread + rounding**2 / 3 + moved**2, nan=0.0, posinf=np.inf)
        coherent = common = np.broadcast_to(reach.common, stored.shape)
        if self.submitted is not None and origin.any():
            here = self.submitted.given[origin]
            with np.errstate(over="ignore"):
                stored = np.where(here, self.submitted.values[origin], stored).astype(stored.dtype)
            bound, variance, common = (np.where(here, 0.0, part) for part in (bound, variance, common))
        return track(stored, value=value, bound=bound, variance=variance, allowed=allowed, spread=spread,
                     coherent=coherent, common=common, origin=origin)  # fmt: skip


def unit_of(format_name):
    """The unit roundoff of a format."""
    return 2.0 ** -FORMATS[format_name].precision
