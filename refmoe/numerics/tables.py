"""What formulas over a table of logits need: rows that are softmaxes, and what their columns add up to.   Spec 6.5"""

import numpy as np

from .rounding import two_sum


class Tables:
    """A part of every arithmetic; z (T, E) is a table of stored logits."""

    def column_sums(self, weights, keys):
        """sum_t weights_te, where each row of weights is the softmax of its keys, or of some, with 0 elsewhere."""
        return self.sum(weights, axis=-2)

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

    def log_mean_softmax(self, z):
        return super().log_mean_softmax(z)[_twins(None, z)]

    def squared_deviations(self, values):
        """sum over pairs of (values_a - values_b)^2 / E: no mean that only nearly cancels."""
        pairs = [(a - b) * (a - b) for at, a in enumerate(values) for b in values[:at]]
        return np.array([sum(pairs, self.constant(0)) / len(values)], object)


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
