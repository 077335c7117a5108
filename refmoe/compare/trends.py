"""What is systematic: slope and mean error of a tensor, of each expert and of blocks of rows.   Spec 7.12

All of it follows from sums over rows (`Moments`), and sums of parts add: a tensor may come an expert at a time.
"""

from typing import NamedTuple

import numpy as np

DEVIATIONS = 8  # times a standard error
FEWEST = 16  # elements of about equal weight from which a slope or a mean is told
BLOCK_ROWS = 16  # rows of a block: the smallest tile of matrix units


class Trend(NamedTuple):
    """got against want over a group of elements: the least-squares slope less 1, the mean error, what each may be."""

    group: int  # an expert, or -1 for the whole tensor
    slope: float
    slope_limit: float
    bias: float
    bias_limit: float
    rows: tuple = ()  # first and last row of a block

    @property
    def excess(self):
        """How far beyond its limit; above 1 it is systematic."""
        pairs = (self.slope, self.slope_limit), (self.bias, self.bias_limit)
        return max(abs(a) / b if b else (np.inf if a else 0.0) for a, b in pairs)


class Trends(NamedTuple):
    """Of a tensor, and of its parts where it has any."""

    whole: Trend
    by_expert: list  # of Trend
    block: object = None  # the worst Trend of a block of rows, or None where there is but one

    @property
    def worst(self):
        return max([self.whole, *self.by_expert, *([self.block] if self.block else [])], key=lambda t: t.excess)


class Moments(NamedTuple):
    """Sums over each row: e the errors, v the values, c what errors may have in common within the row."""

    n: object
    size: object  # |v|
    e: object
    vv: object
    ev: object
    ee: object
    vvv_e: object
    vv_ee: object
    vvvv: object
    eeee: object
    c: object
    vc: object  # |v| c
    cc: object  # (sum c)^2
    vcvc: object  # (sum |v| c)^2

    def by(self, labels, groups):
        """The same sums over groups of rows."""
        rows = labels >= 0
        labels = labels[rows]
        return Moments(*(np.bincount(labels, a[rows], minlength=groups)[:groups] for a in self))

    def all(self):
        """The same sums over all rows, as one group."""
        return Moments(*(a.sum(keepdims=True) for a in self))


def row_moments(error, value, common):
    """Moments of (R, L) arrays: each field (R,). What is not finite does not count."""
    good = np.isfinite(error) & np.isfinite(value) & np.isfinite(common)
    if not good.all():
        error, value, common = (np.where(good, a, 0.0) for a in (error, value, common))
    vv, ee, ev, size = value * value, error * error, error * value, np.abs(value)

    def dot(a, b):
        return np.einsum("rl,rl->r", a, b)

    c, vc = common.sum(axis=1), dot(size, common)
    return Moments(
        good.sum(axis=1).astype(np.float64), size.sum(axis=1), error.sum(axis=1), vv.sum(axis=1), ev.sum(axis=1),
        ee.sum(axis=1), dot(vv, ev), dot(vv, ee), dot(vv, vv), dot(ee, ee), c, vc, c * c, vc * vc,
    )  # fmt: skip


def joined(moments):
    """The rows of several, one after the other."""
    return Moments(*(np.concatenate(fields) for fields in zip(*moments, strict=True)))


def trends_of(sums, groups, unit, drift, summed, rows=None):
    """A Trend for each of the groups. summed: what errors have in common is common to the whole group.

    rows: (first, last) of each.
    """
    with np.errstate(all="ignore"):
        slope, bias = np.nan_to_num(sums.ev / sums.vv), np.nan_to_num(sums.e / sums.n)
        common = (sums.vc**2, sums.c**2) if summed else (sums.vcvc, sums.cc)
        seen = sums.vv_ee - 2 * slope * sums.vvv_e + slope**2 * sums.vvvv, sums.ee - sums.e * bias
        rounding = unit**2 / 3 * sums.vvvv, unit**2 / 3 * sums.vv  # what any rounding to the format leaves
        of_slope, of_bias = (np.maximum(s, r) + c for s, r, c in zip(seen, rounding, common, strict=True))
        slope_limit = DEVIATIONS * np.sqrt(of_slope / sums.vv**2) + unit / 4 + drift
        bias_limit = DEVIATIONS * np.sqrt(of_bias / sums.n**2) + (unit / 4 + drift) * sums.size / sums.n
        few = sums.vv**2 < FEWEST * sums.vvvv, sums.ee**2 < FEWEST * sums.eeee
    limits = (slope_limit, few[0]), (bias_limit, few[1])
    slope_limit, bias_limit = (np.where(none | ~np.isfinite(limit), np.inf, limit) for limit, none in limits)
    columns = [column.tolist() for column in (slope, slope_limit, bias, bias_limit)]
    rows = rows or [()] * len(groups)
    return [Trend(*row[:1], *row[1:5], row[5]) for row in zip(groups, *columns, rows, strict=True)]


def worst_block(sums, owners, unit, drift, summed):
    """The worst Trend of BLOCK_ROWS rows, counted within each expert; None where the rows are one block.

    sums: Moments of the rows; owners: (R,) the expert of each, or None.
    """
    firsts = block_starts(len(sums.n), owners)
    if len(firsts) < 2:
        return None
    labels = np.repeat(np.arange(len(firsts)), np.diff([*firsts, len(sums.n)]))
    groups = [-1] * len(firsts) if owners is None else owners[firsts].tolist()
    rows = [(a, b - 1) for a, b in zip(firsts.tolist(), [*firsts[1:].tolist(), len(sums.n)], strict=True)]
    made = trends_of(sums.by(labels, len(firsts)), groups, unit, drift, summed, rows)
    return max(made, key=lambda t: t.excess)


def block_starts(count, owners):
    """The first row of every block."""
    index = np.arange(count)
    if owners is None:
        return np.flatnonzero(index % BLOCK_ROWS == 0)
    new = np.flatnonzero(np.diff(owners, prepend=-2))
    within = index - new[np.searchsorted(new, index, side="right") - 1] if count else index
    return np.flatnonzero(within % BLOCK_ROWS == 0)
