"""The reading of a formula in intervals of any precision, for what the first reading leaves open.   Spec 6.5"""

import numpy as np

from .arithmetic import Arithmetic, axes_of
from .beyond import Beyond
from .precise import Precise, exceeds
from .tables import PreciseTables


class PreciseArithmetic(PreciseTables, Arithmetic, Precise):
    """Object arrays of intervals of any precision; exact where the formula is rational, `Beyond` where not finite."""

    root = Precise.root

    def constant(self, number):
        is_float = isinstance(number, (float, np.floating))
        return Beyond(number) if is_float and not np.isfinite(number) else super().constant(number)

    def _apply(self, function, a, falling=False):
        beyond = np.frompyfunc(lambda x: isinstance(x, Beyond), 1, 1)(a)
        if not np.any(beyond):
            return super()._apply(function, a, falling)
        limits = np.frompyfunc(lambda x: self.constant(x.limit(function)) if isinstance(x, Beyond) else x, 1, 1)(a)
        inner = super()._apply(function, self.where(beyond, 1, a), falling)
        return self.where(beyond, limits, inner)

    def real(self, x):
        """The exact values, comparable with floats."""
        return np.frompyfunc(lambda t: getattr(t, "lo", t), 1, 1)(x)

    def where(self, mask, a, b):
        return np.where(np.asarray(mask, bool), self._objects(a), self._objects(b))

    def choose(self, x, bound, at_most, beyond):
        return self.where(np.frompyfunc(lambda t: exceeds(t, bound), 1, 1)(x), beyond, at_most)

    def _objects(self, x):
        return x if isinstance(x, np.ndarray) else np.array(x if hasattr(x, "lo") else self.constant(x), object)

    def take(self, x, index):
        return x[index]

    def along(self, x, index):
        return np.take_along_axis(x, index, axis=-1)

    def centre(self, values, weights, keys):
        """sum_i weights_i (values_j - values_i): over distinct keys, so that what cancels is seen to cancel."""
        values, weights, keys = np.broadcast_arrays(values, weights, keys)
        out = np.empty(values.shape, object)
        for row in np.ndindex(values.shape[:-1]):
            terms = list(zip(values[row], weights[row], (key.lo for key in keys[row]), strict=True))
            out[row] = [self._weighted_differences(j, terms) for j in range(len(terms))]
        return out

    def sum_over_roots(self, terms, squares):
        """Terms over roots that are rational multiples of each other are added before a root is taken: what cancels is
        seen to cancel, and what is left is rational, or a sum of independent roots and no tie of any format."""
        if not all(x.exact and not isinstance(x, Beyond) for x in [*terms.flat, *squares.flat]):
            return super().sum_over_roots(terms, squares)
        collected = []  # [square, sum of its terms]
        for row, (square,) in zip(terms, squares, strict=True):
            for entry in collected:
                ratio = self.sqrt(square / entry[0])
                if ratio.exact:
                    entry[1] = entry[1] + row / ratio
                    break
            else:
                collected.append([square, row])
        return sum(row / self.sqrt(square) for square, row in collected)[None]

    def sigmoid_centre(self, values, z):
        """With 1 - sigmoid(-z) for a large z: what saturated scores leave of each other is not lost in their 1."""
        saturated = np.asarray(self.real(z) > 0, bool)
        small = self.where(saturated, -self.sigmoid(-z), self.sigmoid(z))
        pairs = self.take(values, (..., slice(None), None)) - self.take(values, (..., None, slice(None)))
        of_ones = self.sum(pairs * self.where(saturated, 1, 0)[..., None, :])
        rows = np.ndindex(z.shape[:-1])
        of_rest = np.empty(z.shape, object)
        for row in rows:
            terms = list(zip(values[row], small[row], (key.lo for key in z[row]), strict=True))
            of_rest[row] = [self._weighted_differences(j, terms) for j in range(len(terms))]
        return (of_ones + of_rest) / self.sum(self.sigmoid(z), keepdims=True)

    def _weighted_differences(self, j, terms):
        if any(isinstance(value, Beyond) for value, _, _ in terms):
            return terms[j][0] - sum((weight * value for value, weight, _ in terms), self.constant(0))
        by_key = {}
        for i, (value, weight, key) in enumerate(terms):
            if i != j and not weight.is_zero:
                _, difference = by_key.get(key, (None, 0))
                by_key[key] = weight, difference + (terms[j][0] - value)
        return sum((weight * difference for weight, difference in by_key.values()), self.constant(0))

    def sum(self, x, axis=-1, keepdims=False):
        for one in sorted((a % x.ndim for a in axes_of(axis)), reverse=True):
            x = super().sum(x, axis=one, keepdims=True)
        return x if keepdims else x.squeeze(tuple(a % x.ndim for a in axes_of(axis)))

    def max(self, x, axis=-1, keepdims=False):
        return super().max(x, axis=axis, keepdims=keepdims)
