"""Operands of a stage with what is known of them, and what their products inherit.   Spec 7.12"""

import itertools
from typing import NamedTuple

import numpy as np

from ..numerics import Gathered
from ..numerics.arithmetic import Binary64

PROBES = 24  # directions in which a formula over rows or tables is disturbed


class Term(NamedTuple):
    """An operand: what is stored, and how far the other's may be from it."""

    v: object
    bound: object
    variance: object
    common: object  # the part of the variance that moves a whole row by one factor

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


def plain_of(array):
    if isinstance(array, Gathered):
        return Gathered(np.asarray(array.rows), array.index)
    return array if array is None else np.asarray(array)


def factors_of(term):
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


def segments_of(offsets, rows):
    """(group, its rows) of every group."""
    if offsets is None:
        return [(0, slice(0, rows))]
    ends = [int(at) for at in offsets]
    return [(e, slice(a, b)) for e, (a, b) in enumerate(itertools.pairwise(ends))]


def nothing(shape):
    return Reach(*(np.zeros(shape) for _ in Reach._fields))


def joined(parts, shape):
    if not parts:
        return nothing(shape)
    return Reach(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def beside(terms, axis):
    return Term(*(np.concatenate(part, axis=axis) for part in zip(*terms, strict=True)))


def product_of(a, b=None):
    """A term, or the product of two: value, bound, variance, and of that what a factor common to a row brings."""
    if b is None:
        return a
    bound = a.bound * (np.abs(b.v) + b.bound) + np.abs(a.v) * b.bound
    of_a, of_b = a.variance * b.v**2, a.v**2 * b.variance
    common = sum(whole if _is_factor(t, whole) else part
                 for t, whole, part in ((a, of_a, a.common * b.v**2), (b, of_b, b.common * a.v**2)))  # fmt: skip
    return a.v * b.v, bound, of_a + of_b, common


def with_sizes(v, bound, variance, common):
    """value, magnitude, square, and what the products inherit."""
    return v, np.abs(v), v**2, bound, variance, common


def _is_factor(term, product):
    """Is the operand one number a row?"""
    return term.v.ndim == product.ndim and term.v.shape[-1] == 1


def relative(a):
    """(R,) the variance of the factor common to a row of a (R, L)."""
    square = (a.v**2).sum(axis=-1)
    return a.common.sum(axis=-1) / np.where(square > 0, square, np.inf)


def common_of(terms, parts, value):
    """What a formula, element by element, keeps of a factor common to a row."""
    total = np.zeros(value.shape)
    for term, part in zip(terms, parts, strict=True):
        if _is_factor(term, value):
            total = total + part
        elif term.v.ndim == 2 and term.common.any():
            total = total + relative(term)[:, None] * value**2
    return total


def broadcast(arrays, core):
    loops = np.broadcast_shapes(*(array.shape[: array.ndim - core] for array in arrays))
    return [np.broadcast_to(array, loops + array.shape[array.ndim - core :]) for array in arrays]


def disturbed(formula, plain, spreads, core, constants, value):
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
