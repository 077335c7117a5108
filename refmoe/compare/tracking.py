"""The layer computed twice at once: as the law says, and how far another implementation may be from it.   Spec 7.12

`Tracking` stands where `Numerics` does, so that every family goes through the code of the layer itself. What another
implementation submitted takes the place of what the law makes, element by element: each stage is then judged on the
submission's own inputs, and what it inherits is told apart from what it adds.
"""

import itertools
from typing import NamedTuple

import numpy as np

from ..formats import FORMATS
from ..numerics import Gathered, Numerics
from ..numerics.arithmetic import Binary64
from .rough import RoughArithmetic
from .tracked import Tracked, is_lost, track

LARGEST = 2.0**127  # magnitude from which a float32 sum may overflow on its way
OWN = 2.0**-53  # the unit of this file's own arithmetic
OTHERWISE = 4  # a kernel may write a formula in another way: so many times the bound of this one
PROBES = 24  # directions in which a formula over rows or tables is disturbed


class Submitted(NamedTuple):
    """What another implementation stored, by the origin of each element."""

    given: object  # (n + 1,) bool
    values: object  # (n + 1,) float64


class Term(NamedTuple):
    """An operand: what is stored, and how far the other's may be from it."""

    v: object
    bound: object
    variance: object
    common: object  # the part of the variance that moves a whole row by one factor

    def at(self, index):
        return Term(*(part[index] for part in self))

    @property
    def T(self):
        return Term(*(part.T for part in self))


class Reach(NamedTuple):
    """An exact value, what it inherits and what its own stage may add."""

    value: object
    inherited: object
    own: object
    inherited_variance: object
    own_variance: object
    common: object


class Ledger:
    """What a passage counts: elements made so far, stages that read something of which nothing was known."""

    def __init__(self):
        self.made, self.lost = 0, []


class Tracking(Numerics):
    """The policy `num` with a ledger."""

    def __init__(self, num, accumulator, submitted=None):
        more = {"num": num, "accumulator": accumulator, "submitted": submitted, "ledger": Ledger()}
        for name, value in (vars(num) | more).items():
            object.__setattr__(self, name, value)

    # --- what the layer calls -----------------------------------------------------------------------------------------

    def contract(self, name, x_rows, w, offsets=None, bias=None):
        w3, b2 = w if w.ndim == 3 else w[None], bias if bias is None or bias.ndim == 2 else bias[None]
        parts = []
        for e, rows in _segments(offsets, len(x_rows)):
            more = [] if b2 is None else [self._term(name, b2[e])]
            parts.append(self._product(self._term(name, x_rows[rows]), self._term(name, w3[e]).T, more, of_rows=True))
        stored = self.num.contract(name, np.asarray(x_rows), np.asarray(w), offsets, _plain(bias))
        return self._stored(name, stored, _joined(parts, stored.shape))

    def contract_backward_x(self, name, pairs, offsets=None):
        parts = []
        for e, rows in _segments(offsets, len(pairs[0][0])):
            a = [self._term(name, d[rows]) for d, _ in pairs]
            b = [self._term(name, (w if w.ndim == 3 else w[None])[e]) for _, w in pairs]
            parts.append(self._product(_beside(a, 1), _beside(b, 0), of_rows=True))
        stored = self.num.contract_backward_x(name, [(_plain(d), _plain(w)) for d, w in pairs], offsets)
        return self._stored(name, stored, _joined(parts, stored.shape))

    def contract_backward_w(self, name, d_rows, x_rows, offsets=None, acc=None):
        segments = [rows for _, rows in _segments(offsets, len(d_rows))]
        parts = [self._product(self._term(name, d_rows[rows]).T, self._term(name, x_rows[rows])) for rows in segments]
        stored = self.num.contract_backward_w(name, _plain(d_rows), _plain(x_rows), offsets, _plain(acc))
        made = Reach(*(np.stack(part) for part in zip(*parts, strict=True))) if parts else _nothing(stored.shape)
        return self._stored(name, stored, made if offsets is not None else Reach(*(part[0] for part in made)))

    def contract_rows(self, name, a, b):
        terms = [(self._term(name, a).at(np.s_[:, k]), self._term(name, b).at(np.s_[:, k])) for k in range(a.shape[1])]
        stored = self.num.contract_rows(name, _plain(a), _plain(b))
        return self._stored(name, stored, self._sum(terms, stored.shape, a.shape[1], inner=True))

    def sum(self, name, terms):
        stored = self.num.sum(name, [tuple(map(_plain, t)) if isinstance(t, tuple) else _plain(t) for t in terms])
        pairs = [tuple(self._term(name, a) for a in _factors(t)) for t in terms]
        return self._stored(name, stored, self._sum(pairs, stored.shape, len(pairs), inner=False))

    def sum_rows(self, name, rows, offsets=None, start=None):
        stored = self.num.sum_rows(name, _plain(rows), offsets, _plain(start))
        ones = [np.ones((1, r.stop - r.start)) for _, r in _segments(offsets, len(rows))]
        parts = [self._product(self._term(name, one), self._term(name, rows[r]))
                 for one, (_, r) in zip(ones, _segments(offsets, len(rows)), strict=True)]  # fmt: skip
        return self._stored(name, stored, Reach(*(part.reshape(stored.shape) for part in _joined(parts, stored.shape))))

    def evaluate_all(self, names, formulas, *stored):
        return tuple(self.evaluate(name, one, *stored) for name, one in zip(names, formulas.formula, strict=True))

    def evaluate(self, name, formula, *stored, core=0, **constants):
        made = self.num.evaluate(name, formula, *map(_plain, stored), core=core, **constants)
        terms = [self._term(name, array) for array in stored]
        with np.errstate(all="ignore"):
            return self._stored(name, made, self._formula(name, formula, terms, core, constants, made.shape))

    # --- how far each may be off --------------------------------------------------------------------------------------

    def _product(self, a, b, more=(), of_rows=False):
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
            own, own_variance = (np.where(size > LARGEST, np.inf, a) for a in (own, own_variance))  # may overflow
            common = _relative(a)[:, None] * value**2 if of_rows else variance
            return Reach(value, inherited, own, variance, own_variance, common)

    def _sum(self, terms, shape, K, inner):
        """A sum of products written out; `inner`: by the accumulator, else by the unit of other operations."""
        zero = np.zeros(shape)
        value, size, square, inherited, variance, common = zero, zero, zero, zero, zero, zero
        with np.errstate(all="ignore"):
            for term in terms:
                v, bound, spread, shared = _times(*term)
                common = common + shared
                value, size, square = value + v, size + np.abs(v), square + v**2
                inherited, variance = inherited + bound, variance + spread
            unit, row = self._unit(), self.accumulator
            kappa = row.kappa(K) if inner else _gamma(K + 1, unit)
            sigma = row.sigma(K) if inner else unit * (K + 1) ** 0.5
            own = kappa * (size + inherited) + K * OWN * size
            return Reach(value, inherited, own, variance, (sigma**2 + K * OWN**2) * square, common)

    def _formula(self, name, formula, terms, core, constants, shape):
        """Read in binary64; as a kernel computes it; and disturbed, argument by argument, by what it inherits."""
        plain = _broadcast([t.v for t in terms], core)
        value = np.broadcast_to(formula(Binary64(), *plain, **constants), shape)
        m = RoughArithmetic(self._unit() + OWN)
        local = formula(m, *map(m.array, plain), **constants)
        own = np.broadcast_to(np.nan_to_num(local.e, nan=np.inf, posinf=np.inf), shape) * OTHERWISE
        bounds = _broadcast([t.bound for t in terms], core)
        inherited, variance, common = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        if any(bound.any() for bound in bounds):
            whole = formula(m, *(m.array(v, e) for v, e in zip(plain, bounds, strict=True)), **constants)
            inherited = np.maximum(np.nan_to_num(whole.e, nan=np.inf, posinf=np.inf) - local.e, 0.0)
            spreads = [np.sqrt(s) for s in _broadcast([t.variance for t in terms], core)]
            parts = _disturbed(formula, plain, spreads, core, constants, value)
            variance = sum(parts, variance)
            common = variance if core else _common(terms, parts, value)
        return Reach(value, np.broadcast_to(inherited, shape), own, variance, (own / 2) ** 2, common)

    def _unit(self):
        unit = self.accumulator.operations
        return unit_of(self.num.store) if unit is None else unit

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
        origin = np.arange(first, first + stored.size).reshape(stored.shape)
        value = np.where(np.isfinite(reach.value), reach.value, stored)
        unit = unit_of(self.num.format_of(name))
        with np.errstate(invalid="ignore", over="ignore"):
            allowed, spread = reach.inherited + reach.own, reach.inherited_variance + reach.own_variance
            rounding, moved = unit * np.abs(value), np.abs(value - stored)
            bound = np.nan_to_num(allowed + rounding + moved, nan=0.0, posinf=np.inf)
            variance = np.nan_to_num(spread + rounding**2 / 3 + moved**2, nan=0.0, posinf=np.inf)
        coherent = common = np.broadcast_to(reach.common, stored.shape)
        if self.submitted is not None:
            here = self.submitted.given[origin]
            with np.errstate(over="ignore"):
                stored = np.where(here, self.submitted.values[origin], stored).astype(stored.dtype)
            bound, variance, common = (np.where(here, 0.0, part) for part in (bound, variance, common))
        return track(stored, value=value, bound=bound, variance=variance, allowed=allowed, spread=spread,
                     coherent=coherent, common=common, origin=origin)  # fmt: skip


def unit_of(format_name):
    """The unit roundoff of a format."""
    return 2.0 ** -FORMATS[format_name].precision


def _gamma(K, unit):
    return K * unit / (1 - K * unit) if K * unit < 1 else np.inf


def _plain(array):
    if isinstance(array, Gathered):
        return Gathered(np.asarray(array.rows), array.index)
    return array if array is None else np.asarray(array)


def _factors(term):
    """The arrays of a term; gathered rows are made, and where one is missing so is what it is multiplied by."""
    factors = term if isinstance(term, tuple) else (term,)
    there = [f.index >= 0 for f in factors if isinstance(f, Gathered)]
    arrays = [_made(f) if isinstance(f, Gathered) else f for f in factors]
    return [_where(there[0], a) for a in arrays] if there else arrays


def _made(gathered):
    rows, index = gathered.rows, gathered.index
    return rows[index] if len(rows) else np.zeros_like(rows, shape=(len(index), *rows.shape[1:]))


def _where(there, array):
    return np.where(there.reshape(-1, *[1] * (array.ndim - 1)), array, array.dtype.type(0))


def _segments(offsets, rows):
    """(group, its rows) of every group."""
    if offsets is None:
        return [(0, slice(0, rows))]
    ends = [int(at) for at in offsets]
    return [(e, slice(a, b)) for e, (a, b) in enumerate(itertools.pairwise(ends))]


def _nothing(shape):
    return Reach(*(np.zeros(shape) for _ in Reach._fields))


def _joined(parts, shape):
    if not parts:
        return _nothing(shape)
    return Reach(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def _beside(terms, axis):
    return Term(*(np.concatenate(part, axis=axis) for part in zip(*terms, strict=True)))


def _times(a, b=None):
    """A term, or the product of two: value, bound, variance, and of that what a factor common to a row brings."""
    if b is None:
        return a
    bound = a.bound * (np.abs(b.v) + b.bound) + np.abs(a.v) * b.bound
    of_a, of_b = a.variance * b.v**2, a.v**2 * b.variance
    common = sum(whole if _is_factor(t, whole) else part
                 for t, whole, part in ((a, of_a, a.common * b.v**2), (b, of_b, b.common * a.v**2)))  # fmt: skip
    return a.v * b.v, bound, of_a + of_b, common


def _is_factor(term, product):
    """Is the operand one number a row?"""
    return term.v.ndim == product.ndim and term.v.shape[-1] == 1


def _relative(a):
    """(R,) the variance of the factor common to a row of a (R, L)."""
    square = (a.v**2).sum(axis=-1)
    return a.common.sum(axis=-1) / np.where(square > 0, square, np.inf)


def _common(terms, parts, value):
    """What a formula, element by element, keeps of a factor common to a row."""
    total = np.zeros(value.shape)
    for term, part in zip(terms, parts, strict=True):
        if _is_factor(term, value):
            total = total + part
        elif term.v.ndim == 2 and term.common.any():
            total = total + _relative(term)[:, None] * value**2
    return total


def _broadcast(arrays, core):
    loops = np.broadcast_shapes(*(array.shape[: array.ndim - core] for array in arrays))
    return [np.broadcast_to(array, loops + array.shape[array.ndim - core :]) for array in arrays]


def _disturbed(formula, plain, spreads, core, constants, value):
    """The variance of a formula by argument, to first order: one argument at a time, all elements up, then down.

    Over rows and tables the elements go up and down at random, the same in every run, and the squares are averaged.
    """
    generator, made = np.random.default_rng(7), []
    for at, spread in enumerate(spreads):
        if not spread.any():
            made.append(np.zeros(np.shape(value)))
            continue
        signs = [1.0, -1.0] if core == 0 else [generator.choice([-1.0, 1.0], spread.shape) for _ in range(PROBES)]
        squares = []
        for sign in signs:
            moved = [v + sign * spread if i == at else v for i, v in enumerate(plain)]
            squares.append((formula(Binary64(), *moved, **constants) - value) ** 2)
        most = np.maximum(*squares) if core == 0 else sum(squares) / PROBES
        made.append(np.broadcast_to(np.nan_to_num(most, nan=0.0), np.shape(value)))
    return made
