"""The arithmetic `m` of any precision, in which a formula is read for the few elements a rounding test leaves over.

Numbers are `Interval`: exact, or strictly inside an open interval with ends of some `bits` significant bits and any
exponent. The functions are summed in integers (`fixed_point`); this file adds the exact points, the limits and the
intervals as arguments.
"""

from fractions import Fraction
from functools import lru_cache
from math import isqrt

import numpy as np

from . import fixed_point as fixed
from .fixed_point import Dyadic, as_fraction
from .interval import Interval, PrecisionNeeded, as_interval, round_interval

__all__ = ["Interval", "Precise", "PrecisionNeeded", "round_interval"]

FAR = 1 << 14  # exp of a number beyond 2^FAR is not computed; an end beyond 2^-+FAR is not written as a Fraction


def _ball(triple, bits):
    n, q, err = triple
    return Interval(Dyadic(n - err, -q), Dyadic(n + err, -q), bits)


def _exponent(x):
    """An integer e with 2^(e-1) < |x| < 2^(e+1)."""
    return x.top - 1 if isinstance(x, Dyadic) else fixed.exponent(x)


def _beside(x, away, bits):
    """The interval between x and x (1 + 2^-bits), or x (1 - 2^-bits): away from zero, or towards it."""
    if not isinstance(x, Dyadic):
        return Interval(*sorted((x, x + (x if away else -x) / (1 << bits))), bits)
    return Interval(*sorted((x, Dyadic((x.m << bits) + (x.m if away else -x.m), x.e - bits))), bits)


# One function of one argument x each: an exact one, or an end of an interval. That is a Dyadic where it is beyond
# 2^-+FAR, which each function answers before it computes anything else.


def _exp(x, bits):
    if x == 0:
        return Interval(1, None, bits)
    e = _exponent(x)
    if e < -bits:
        return _expm1(x, bits) + 1
    if e < FAR:
        return _ball(fixed.fixed_exp(x, bits), bits)
    if x > 0:
        raise PrecisionNeeded("exp of a number not known to be below 2^(2^14 - 1)")
    return Interval(0, Dyadic(1, -(1 << FAR - 1)), bits)


def _expm1(x, bits):
    if x == 0:
        return Interval(0, None, bits)
    e = _exponent(x)
    if e < -bits:  # x < e^x - 1 < x + x^2, and |x| < 2^(1 - bits)
        return _beside(x, x > 0, bits)
    return _ball(fixed.fixed_expm1(x, bits), bits) if e < -1 else _exp(x, bits + 4) - 1


def _log(x, bits):
    if x <= 0:
        raise PrecisionNeeded("log of a number not known to be positive")
    return _ball(fixed.fixed_log(Fraction(x.m), bits, x.e), bits) if isinstance(x, Dyadic) else _log1p(x - 1, bits)


def _log1p(x, bits):
    if x == 0:
        return Interval(0, None, bits)
    if x <= -1:
        raise PrecisionNeeded("log1p of a number not known to be above -1")
    if _exponent(x) < -bits:  # x - x^2 < log(1 + x) < x, and |x| < 2^-bits
        return _beside(x, x < 0, bits)
    if isinstance(x, Dyadic):
        return _monotone(_log, as_interval(x, bits + 1) + 1, bits)
    return _ball(fixed.fixed_log(1 + x, bits), bits)


def _sigmoid(x, bits):
    """Above 0 one less the tail, which stays below 1 however small the tail is."""
    if x >= 0:
        return 1 - _sigmoid(-x, bits) if x else Interval(Fraction(1, 2), None, bits)
    e = _exponent(x)
    if e < -bits:  # 1/2 + x/4 < sigmoid(x) < 1/2, and |x| < 2^-bits
        return _beside(Fraction(1, 2), False, bits)
    return _ball(fixed.fixed_sigmoid(x, bits), bits) if e < FAR else _exp(x, bits)


def _tanh(x, bits):
    """-y / (2 + y) with y = expm1(-2x), for x > 0; from 1/4 on 1 - 2 sigmoid(-2x)."""
    if x <= 0:
        return -_tanh(-x, bits) if x else Interval(0, None, bits)
    e = _exponent(x)
    if e < -bits:  # x - x^2 < tanh x < x, and x < 2^-bits
        return _beside(x, False, bits)
    if e > -2:
        return 1 - _sigmoid(-2 * x, bits + 4) * 2
    y = _expm1(-2 * x, bits + 4)
    return -y / (2 + y)


def _erf(x, bits):
    """2 x e^(-x^2) / sqrt(pi) times the positive series; 1 - erf(x) < e^(-x^2) < 2^-bits where x^2 > bits."""
    if x <= 0:
        return -_erf(-x, bits) if x else Interval(0, None, bits)
    if _exponent(x) < -bits:  # x - x^3 / 3 < erf(x) sqrt(pi) / 2 < x
        return _beside(x, False, bits + 8) * 2 / _sqrt_pi(bits + 8)
    if x * x > bits:
        return _beside(Fraction(1), False, bits)
    series = _ball(fixed.fixed_erf_sum(x, bits), bits + 8)
    return series * _exp(-x * x, bits + 8) * (2 * x) / _sqrt_pi(bits + 8)


def _erfc(x, bits):
    """Far out e^(-x^2) / (x sqrt(pi)) times the asymptotic series, else 1 - erf(x) with more bits."""
    if x <= 0:
        return 1 + _erf(-x, bits)
    e = _exponent(x)
    if 2 * e > FAR + 2:  # erfc(x) < e^(-x^2), and that is answered by a limit
        return _exp(-x * x, bits)
    if 4 * x * x > 3 * (bits + 88):
        series = _ball(fixed.fixed_erfc_sum(x, bits + 8), bits + 8)
        return series * _exp(-x * x, bits + 8) / (x * _sqrt_pi(bits + 8))
    return 1 - _erf(x, bits + (int(2 * x * x) if e > -2 else 0) + 16)


def _softplus(x, bits):
    """max(x, 0) + log1p(e^-|x|)."""
    tail = _monotone(_log1p, _exp(-abs(x), bits + 4), bits)
    return tail + x if x > 0 else tail


def _sqrt(x, bits):
    """Exact for the square of a rational number; of m 2^e sqrt(m) 2^(e/2), with an even e."""
    if x < 0:
        raise PrecisionNeeded("sqrt of a number not known to be non-negative")
    if isinstance(x, Dyadic):
        ends = _sqrt(Fraction(x.m << x.e % 2), bits).ends(bits)
        return Interval(*(Dyadic(end.m, end.e + x.e // 2) for end in ends), bits)
    n, d = x.numerator, x.denominator
    root = Fraction(isqrt(n), isqrt(d))
    if root * root == x:
        return Interval(root, None, bits)
    shift = max(0, bits + 8 - fixed.exponent(x) // 2)
    below = isqrt((n << 2 * shift) // d)
    return Interval(Dyadic(below, -shift), Dyadic(below + 1, -shift), bits)


def _nth_root(x, p, bits):
    """Exact for the p-th power of a rational number, else between two neighbours of a grid."""
    if x <= 0:
        raise PrecisionNeeded("root of a number not known to be positive")
    n, d = as_fraction(x).as_integer_ratio()
    root = Fraction(fixed.integer_root(n, p), fixed.integer_root(d, p))
    if root**p == x:
        return Interval(root, None, bits)
    shift = max(0, bits + 8 - fixed.exponent(Fraction(n, d)) // p)
    below = fixed.integer_root((n << p * shift) // d, p)
    return Interval(Dyadic(below, -shift), Dyadic(below + 1, -shift), bits)


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
    ends = function(_argument(x.lo), bits), function(_argument(x.hi), bits)
    return Interval(ends[falling].lo, ends[not falling].hi, bits)


def _argument(end):
    return end if end.m and abs(end.top) > FAR else as_fraction(end)


def _larger(a, b):
    if a.lo >= b.hi:
        return a
    if b.lo >= a.hi:
        return b
    raise PrecisionNeeded("maximum of overlapping intervals")


def exceeds(x, bound):
    """x > bound for a finite float: an open interval that begins at the bound lies beyond it."""
    if x.exact:
        return x.lo > bound
    limit = as_fraction(bound)
    if x.lo >= limit or x.hi <= limit:
        return bool(x.lo >= limit)
    raise PrecisionNeeded(f"{x!r} against {bound}")


def _objects(function, count=1):
    return np.frompyfunc(function, count, 1)


class Precise:
    """The arithmetic `m` of a formula, over object arrays of Interval, at `bits` bits. Shapes broadcast as in NumPy.

    exp, expm1, log, log1p, sigmoid, tanh, erf, erfc, softplus, sqrt: exact where the value is rational and the
    argument exact (exp 0, log 1, sigmoid 0, squares ...), else an interval of relative width below 2^(1 - bits).
    Raise PrecisionNeeded where an end leaves the domain, and for exp and expm1 of a number not known to be below
    2^(2^14 - 1).
    """

    def __init__(self, bits=200):
        self.bits = bits

    def _apply(self, function, a, falling=False):
        def one(x):
            value = _monotone(function, as_interval(x, self.bits), self.bits, falling)
            return value if value.bits == self.bits else Interval(value.lo, value.hi, self.bits)

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

    def root(self, x, p):
        """x^(1/p) of finite numbers above 0."""

        def _root(x, bits):
            return _nth_root(x, p, bits)

        return x if p == 1 else self._apply(_root, x)

    def array(self, a):
        """Finite floats of any shape -> object array of exact Interval."""
        return np.asarray(_objects(self.constant)(np.asarray(a)), dtype=object)

    def constant(self, number):
        """An exact Interval of a Fraction, an int or a finite float."""
        return Interval(number, None, self.bits)

    @property
    def pi(self):
        return _pi(self.bits)

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
