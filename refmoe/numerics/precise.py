"""The arithmetic `m` of any precision, in which a formula is read for the few elements a rounding test leaves over.

Numbers are `Interval`: exact, or strictly inside an open interval with ends of some `bits` significant bits. The
functions are summed in integers (`fixed_point`); this file adds the exact points, the limits and the intervals as
arguments.
"""

from fractions import Fraction
from functools import lru_cache
from math import isqrt

import numpy as np

from . import fixed_point as fixed
from .interval import Interval, PrecisionNeeded, as_fraction, as_interval, round_interval

__all__ = ["Interval", "Precise", "PrecisionNeeded", "round_interval"]

TINY = Fraction(1, 1 << fixed.HUGE)  # above exp(-HUGE)


def _ball(triple, bits):
    n, q, err = triple
    if q >= 0:
        return Interval(Fraction(n - err, 1 << q), Fraction(n + err, 1 << q), bits)
    return Interval(Fraction(n - err << -q), Fraction(n + err << -q), bits)


# One function of one exact argument x each; beyond the range of exp they answer with an open interval at their limit.


def _exp(x, bits):
    if x == 0:
        return Interval(1, None, bits)
    if x > fixed.HUGE:
        raise OverflowError("exp of an argument above 2^16")
    return Interval(Fraction(0), TINY, bits) if x < -fixed.HUGE else _ball(fixed.fixed_exp(x, bits), bits)


def _expm1(x, bits):
    if x == 0:
        return Interval(0, None, bits)
    if fixed.exponent(x) < -bits:  # x < e^x - 1 < x + x^2, and |x| < 2^-bits
        return Interval(x, x + abs(x) / (1 << bits), bits)
    if x < -fixed.HUGE:
        return Interval(Fraction(-1), TINY - 1, bits)
    if x > fixed.HUGE:
        raise OverflowError("expm1 of an argument above 2^16")
    return _ball(fixed.fixed_expm1(x, bits), bits)


def _log(x, bits):
    if x <= 0:
        raise PrecisionNeeded("log of a number not known to be positive")
    return _log1p(x - 1, bits)


def _log1p(x, bits):
    if x == 0:
        return Interval(0, None, bits)
    if x <= -1:
        raise PrecisionNeeded("log1p of a number not known to be above -1")
    if fixed.exponent(x) < -bits:  # x - x^2 < log(1 + x) < x, and |x| < 2^-bits
        return Interval(x - abs(x) / (1 << bits), x, bits)
    return _ball(fixed.fixed_log(1 + x, bits), bits)


def _sigmoid(x, bits):
    if x == 0:
        return Interval(Fraction(1, 2), None, bits)
    if abs(x) > fixed.HUGE:
        return Interval(1 - TINY, Fraction(1), bits) if x > 0 else Interval(Fraction(0), TINY, bits)
    return _ball(fixed.fixed_sigmoid(x, bits), bits)


def _tanh(x, bits):
    if x <= 0:
        return -_tanh(-x, bits) if x else Interval(0, None, bits)
    if fixed.exponent(x) < -bits:  # x - x^2 < tanh x < x, and x < 2^-bits
        return Interval(x - x / (1 << bits), x, bits)
    if 2 * x > fixed.HUGE:
        return Interval(1 - TINY, Fraction(1), bits)
    return _ball(fixed.fixed_tanh(x, bits), bits)


def _erf(x, bits):
    """2 x e^(-x^2) / sqrt(pi) times the positive series; 1 - erf(x) < e^(-x^2) < 2^-bits where x^2 > bits."""
    if x <= 0:
        return -_erf(-x, bits) if x else Interval(0, None, bits)
    if x * x > bits:
        return Interval(1 - Fraction(1, 1 << bits), Fraction(1), bits)
    series = _ball(fixed.fixed_erf_sum(x, bits), bits + 8)
    return series * _exp(-x * x, bits + 8) * (2 * x) / _sqrt_pi(bits + 8)


def _erfc(x, bits):
    """Far out e^(-x^2) / (x sqrt(pi)) times the asymptotic series, else 1 - erf(x) with more bits."""
    if x <= 0:
        return 1 + _erf(-x, bits)
    if 4 * x * x > 3 * (bits + 88):
        series = _ball(fixed.fixed_erfc_sum(x, bits + 8), bits + 8)
        return series * _exp(-x * x, bits + 8) / (x * _sqrt_pi(bits + 8))
    return 1 - _erf(x, bits + int(2 * x * x) + 16)


def _softplus(x, bits):
    """max(x, 0) + log1p(e^-|x|)."""
    tail = _exp(-abs(x), bits + 4)
    return max(x, 0) + _monotone(_log1p, tail, bits)


def _sqrt(x, bits):
    """Exact for the square of a rational number."""
    n, d = x.numerator, x.denominator
    if n < 0:
        raise PrecisionNeeded("sqrt of a number not known to be non-negative")
    root = Fraction(isqrt(n), isqrt(d))
    if root * root == x:
        return Interval(root, None, bits)
    shift = max(0, bits + 8 - fixed.exponent(x) // 2)
    below = isqrt((n << 2 * shift) // d)
    return Interval(Fraction(below, 1 << shift), Fraction(below + 1, 1 << shift), bits)


@lru_cache(maxsize=64)
def _sqrt_pi(bits):
    return _monotone(_sqrt, _pi(bits), bits)


def _pi(bits):
    q = bits + fixed.GUARD
    return _ball((fixed.fixed_pi(q), q, 2), bits)


def _monotone(function, x, bits, falling=False):
    """function over an interval: at an exact argument, else between the values at both ends."""
    if x.exact:
        return function(x.lo, bits)
    ends = function(x.lo, bits), function(x.hi, bits)
    return Interval(ends[falling].lo, ends[not falling].hi, bits)


def _larger(a, b):
    if a.lo >= b.hi:
        return a
    if b.lo >= a.hi:
        return b
    raise PrecisionNeeded("maximum of overlapping intervals")


def _objects(function, count=1):
    return np.frompyfunc(function, count, 1)


class Precise:
    """The arithmetic `m` of a formula, over object arrays of Interval, at `bits` bits. Shapes broadcast as in NumPy.

    exp, expm1, log, log1p, sigmoid, tanh, erf, erfc, softplus, sqrt: exact where the value is rational and the
    argument exact (exp 0, log 1, sigmoid 0, squares ...), else an interval of relative width below 2^(1 - bits).
    Raise PrecisionNeeded where an end leaves the domain, OverflowError for exp and expm1 above 2^16.
    """

    def __init__(self, bits=200):
        self.bits = bits

    def _apply(self, function, a, falling=False):
        def one(x):
            value = _monotone(function, as_interval(x, self.bits), self.bits, falling)
            return Interval(value.lo, value.hi, self.bits)

        return _objects(one)(a)

    def exp(self, x):
        return self._apply(_exp, x)

    def expm1(self, x):
        return self._apply(_expm1, x)

    def log(self, x):
        return self._apply(_log, x)

    def log1p(self, x):
        return self._apply(_log1p, x)

    def sigmoid(self, x):
        return self._apply(_sigmoid, x)

    def tanh(self, x):
        return self._apply(_tanh, x)

    def erf(self, x):
        return self._apply(_erf, x)

    def erfc(self, x):
        return self._apply(_erfc, x, falling=True)

    def softplus(self, x):
        return self._apply(_softplus, x)

    def sqrt(self, x):
        return self._apply(_sqrt, x)

    def array(self, a):
        """Finite floats of any shape -> object array of exact Interval."""
        return np.asarray(_objects(self.constant)(np.asarray(a)), dtype=object)

    def constant(self, number):
        """An exact Interval of a Fraction, an int or a float."""
        return Interval(number, None, self.bits)

    @property
    def pi(self):
        return _pi(self.bits)

    def sqrt_constant(self, n):
        """sqrt(n) of a non-negative int or Fraction."""
        return _sqrt(as_fraction(n), self.bits)

    def sum(self, a, axis=-1, keepdims=False):
        """Sum along an axis; exact while its terms are, and exactly zero over no terms."""
        return np.add.reduce(np.asarray(a, dtype=object), axis=axis, keepdims=keepdims, initial=self.constant(0))

    def max(self, a, axis=-1, keepdims=False):
        """The largest element along one axis or several, of at least one element."""
        for one in axis if isinstance(axis, tuple) else (axis,):
            a = _objects(_larger, 2).reduce(np.asarray(a, dtype=object), axis=one, keepdims=True)
        return a if keepdims else np.squeeze(a, axis)[()]

    def maximum(self, a, c):
        return _objects(lambda x, y: _larger(as_interval(x, self.bits), as_interval(y, self.bits)), 2)(a, c)

    def minimum(self, a, c):
        return -self.maximum(-a, -c)

    def where(self, mask, a, b):
        return np.where(mask, a, b)
