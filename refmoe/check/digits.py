"""The oracle: the forward's own formulas with eighty digits, and slopes that are right to fifty.   Spec 5.10

A central difference whose step is 10^-27 has an error of order 10^-54, and the difference of two numbers of eighty
digits over such a step keeps more than fifty. Numbers and functions are mpmath's, in a context of their own.
"""

from itertools import pairwise

import numpy as np

from ..numerics.arithmetic import Plain
from ..numerics.terms import factors_of, value_of

DIGITS, STEP = 80, 27  # digits of a number; minus the power of ten of the step


def slope(function, at, direction, num):
    """The derivative of function(at) along a direction, as a number of many digits."""
    h = num.reading.context.mpf(10) ** -STEP
    at, along = num.exact(at), num.exact(direction) * h
    ahead, behind = (function(_stored(at + step)) for step in (along, -along))
    return (ahead - behind) / (2 * h)


class Stored(np.ndarray):
    """An object array of mpmath's numbers that can be asked whether they are finite, or negative, as the layer asks."""

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        plain = [one.view(np.ndarray) if isinstance(one, Stored) else one for one in inputs]
        if ufunc in (np.isfinite, np.signbit):
            plain = [np.asarray(one, np.float64) for one in plain]
        return getattr(ufunc, method)(*plain, **options)


def _stored(made):
    return np.asarray(made, object).view(Stored)


class Digits(Plain):
    """The reading of a formula in mpmath's numbers, in object arrays. What a formula branches on is a float64."""

    def __init__(self):
        import mpmath

        self.context = mpmath.mp.clone()
        self.context.dps = DIGITS
        self.pi = +self.context.pi
        for name in ("exp", "expm1", "log", "log1p", "sqrt", "tanh", "erf", "erfc"):
            setattr(self, name, np.frompyfunc(getattr(self.context, name), 1, 1))
        self.convert = np.frompyfunc(self.context.mpf, 1, 1)

    def constant(self, c):
        return self.context.mpf(c)

    def sigmoid(self, z):
        return 1 / (1 + self.exp(-z))

    def softplus(self, z):
        return self.log1p(self.exp(z))

    def real(self, z):
        return np.asarray(z, np.float64)

    def sum(self, z, axis=-1, keepdims=False):
        return np.sum(z, axis=axis, keepdims=keepdims)

    def max(self, z, axis=-1, keepdims=False):
        return np.max(z, axis=axis, keepdims=keepdims)


class FiftyDigits:
    """A policy with the methods the forward asks of `Numerics`, all in mpmath's numbers. ImportError without mpmath."""

    profile = "digits"
    dtype = np.object_

    def __init__(self):
        self.reading = Digits()

    def exact(self, stored):
        """Floats as the same numbers with more digits; everything else as it is."""
        array = np.asarray(stored)
        return self.reading.convert(array) if array.dtype.kind == "f" else stored

    def contract(self, name, x_rows, w, offsets=None, bias=None):
        w = w if w.ndim == 3 else w[None]
        bias = bias if bias is None or bias.ndim == 2 else bias[None]
        offsets = [0, len(x_rows)] if offsets is None else offsets
        x_rows, w = self.exact(x_rows), self.exact(w)
        parts = [x_rows[a:b] @ w[e].T + (0 if bias is None else self.exact(bias[e]))
                 for e, (a, b) in enumerate(pairwise(map(int, offsets)))]  # fmt: skip
        return _stored(np.concatenate(parts))

    def contract_backward_w(self, name, d_rows, x_rows, offsets):
        d_rows, x_rows = self.exact(d_rows), self.exact(x_rows)
        return _stored(np.stack([d_rows[a:b].T @ x_rows[a:b] for a, b in pairwise(offsets)]))

    def sum(self, name, terms):
        return _stored(sum(value_of(factors_of(term), self.exact) for term in terms))

    def evaluate(self, name, formula, *stored, core=0, **constants):
        return _stored(formula(self.reading, *map(self.exact, stored), **constants))
