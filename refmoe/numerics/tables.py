"""What formulas over a table of logits need: rows that are softmaxes, and what their columns add up to.   Spec 6.5"""

from fractions import Fraction

import numpy as np

from .rounding import two_sum


class Tables:
    """A part of every arithmetic; z (T, E) is a table of stored logits."""

    def column_sums(self, weights, keys):
        """sum_t weights_te, where each row of weights is the softmax of its keys, or of some, with 0 elsewhere."""
        return self.sum(weights, axis=-2)

    def cdf_sums(self, u):
        """sum_t Phi(u_te) of a table of exact numbers."""
        return self.sum(self.normal_cdf(u), axis=-2)

    def deviations(self, values):
        """values - mean."""
        return values - self.sum(values, keepdims=True) / np.shape(self.real(values))[-1]

    def squared_deviations(self, values):
        """sum_e (values_e - mean)^2, with a last axis of length 1."""
        deviation = values - self.sum(values, keepdims=True) / np.shape(self.real(values))[-1]
        return self.sum(deviation * deviation, keepdims=True)

    def log_mean_softmax(self, z):
        """log(mean_t softmax(z_t)_e) for each column, however small the mean."""
        shifted = z - self.max(z, keepdims=True)
        top = self.max(shifted, axis=-2, keepdims=True)
        parts = self.exp(shifted - top) / self.sum(self.exp(shifted), keepdims=True)
        mean = self.sum(parts, axis=-2) / len(self.real(z))
        return self.log_about_one(mean) + self.take(top, 0)

    def entropy(self, z):
        """-sum_e p_e log p_e of p = softmax(z) along the last axis: log sum exp(s) - sum p s with s = z - max(z)."""
        s = z - self.max(z, keepdims=True)
        powers = self.exp(s)
        total = self.sum(powers, keepdims=True)
        return self.last(self.log_about_one(total) - self.sum(powers * s, keepdims=True) / total)

    def log_about_one(self, x):
        """log(x), as log1p(x - 1) where x is near 1, so that what lies beside the 1 is not lost."""
        near = (self.real(x) > 0.5) & (self.real(x) < 2)
        return self.where(near, self.log1p(self.where(near, x - 1, 0)), self.log(self.where(near, 1, x)))

    def rows_agree(self, z):
        """Do all rows differ by constants only, so that they have one softmax? Decided exactly."""
        real = np.real(self.real(z))
        head, lost = two_sum(real, -np.max(real, axis=-1, keepdims=True))
        return bool((head == head[:1]).all() and (lost == lost[:1]).all())


class PreciseTables:
    """The same over intervals: numbers that are equal by algebra are one object, and so differ by a plain zero."""

    def column_sums(self, weights, keys):
        return super().column_sums(weights, keys)[_twins(weights, keys)]

    def cdf_sums(self, u):
        """Phi(-u) = 1 - Phi(u): opposite arguments are collected before anything is evaluated."""
        columns = []
        for column in np.moveaxis(u, -1, 0):
            ones, counts = _collected([x.lo for x in column])
            columns.append((ones, tuple(sorted(counts.items()))))
        found = {key: self._cdf_sum(*key) for key in columns}
        return np.array([found[key] for key in columns], object)

    def _cdf_sum(self, ones, counts):
        size = np.array([self.constant(x) for x, _ in counts], object)
        many = np.array([self.constant(n) for _, n in counts], object)
        return self.sum(self.normal_cdf(size) * many) + ones

    def deviations(self, values):
        """sum_a (values_e - values_a) / E."""
        pairs = self.take(values, (..., slice(None), None)) - self.take(values, (..., None, slice(None)))
        return self.sum(pairs) / len(values)

    def log_mean_softmax(self, z):
        return super().log_mean_softmax(z)[_twins(None, z)]

    def squared_deviations(self, values):
        """sum over pairs of (values_a - values_b)^2 / E: no mean that only nearly cancels."""
        pairs = [(a - b) * (a - b) for at, a in enumerate(values) for b in values[:at]]
        return np.array([sum(pairs, self.constant(0)) / len(values)], object)


def _collected(arguments):
    """(a fraction, size -> count) with sum Phi(x) = fraction + sum count Phi(size)."""
    ones, counts = Fraction(0), {}
    for x in arguments:
        ones += Fraction(1, 2) if x == 0 else int(x < 0)
        if x != 0:
            counts[abs(x)] = counts.get(abs(x), 0) + (1 if x > 0 else -1)
    return ones, {x: n for x, n in counts.items() if n}


def _twins(weights, keys):
    """For each column the first one with the same entries, in any order; an entry is its place in its softmax."""
    columns = [[] for _ in range(keys.shape[-1])]
    for t, row in enumerate(keys):
        kept = [j for j in range(len(row)) if weights is None or not weights[t, j].is_zero]
        shifted = {j: row[j].lo - max(row[i].lo for i in kept) for j in kept}
        for j in kept:
            columns[j].append((tuple(sorted(shifted.values())), shifted[j]))
    first = {}
    return [first.setdefault(tuple(sorted(column)), j) for j, column in enumerate(columns)]
