"""Interval numbers at any precision, made of integers only.

They decide the few elements a rounding test leaves over. A number is either exact (a Fraction) or known to lie strictly
inside an open interval with Fraction ends of `bits` significant bits. `Precise(bits)` is the arithmetic `m` in which a
formula is read over such numbers; its functions are those of `fixed_point`.
"""

from fractions import Fraction
from math import copysign, isqrt

import numpy as np

from . import fixed_point as fixed

TINY = Fraction(1, 1 << fixed.HUGE)           # above exp(-HUGE)
GRID = 1 << 1077          # no format of the project has a rounding boundary off the grid of 2^-1076


class PrecisionNeeded(ArithmeticError):
    """The interval is too wide for the operation: read the formula again with more bits."""


def _fraction(number):
    if isinstance(number, Fraction):
        return number
    return Fraction(int(number)) if isinstance(number, (int, np.integer)) else Fraction(float(number))


def _round_down(value, bits):
    """The largest number of `bits` significant bits that is not above value."""
    n, d = value.numerator, value.denominator
    if d & (d - 1) == 0 and n.bit_length() <= bits:
        return value
    shift = bits - n.bit_length() + d.bit_length()
    return Fraction((n << shift) // d, 1 << shift) if shift >= 0 else Fraction(n // (d << -shift) << -shift)


class Interval:
    """An exact number (lo == hi), or a number strictly inside (lo, hi) whose ends carry `bits` significant bits."""

    __slots__ = ("lo", "hi", "bits")

    def __init__(self, lo, hi=None, bits=200):
        self.bits = bits
        if hi is None or lo == hi:
            self.lo = self.hi = _fraction(lo)
        else:
            self.lo, self.hi = _round_down(lo, bits), -_round_down(-hi, bits)

    def __repr__(self):
        return f"Interval({self.lo})" if self.exact else f"Interval({float(self.lo)!r}, {float(self.hi)!r})"

    @property
    def exact(self):
        return self.lo is self.hi or self.lo == self.hi

    def __neg__(self):
        return Interval(-self.hi, -self.lo, self.bits)

    def __abs__(self):
        if self.lo >= 0:
            return self
        if self.hi <= 0:
            return -self
        reach = max(-self.lo, self.hi)
        return Interval(-reach, reach, self.bits)   # zero must stay inside an open interval

    def __add__(self, other):
        other = _operand(other, self.bits)
        if other is NotImplemented:
            return other
        return Interval(self.lo + other.lo, self.hi + other.hi, max(self.bits, other.bits))

    def __mul__(self, other):
        other = _operand(other, self.bits)
        if other is NotImplemented:
            return other
        bits = max(self.bits, other.bits)
        if self.exact and other.exact:
            return Interval(self.lo * other.lo, None, bits)
        if self.is_zero or other.is_zero:
            return Interval(Fraction(0), None, bits)
        if self.lo >= 0 and other.lo >= 0:
            return Interval(self.lo * other.lo, self.hi * other.hi, bits)
        corners = [a * b for a in (self.lo, self.hi) for b in (other.lo, other.hi)]
        return Interval(min(corners), max(corners), bits)

    def __sub__(self, other):
        other = _operand(other, self.bits)
        return other if other is NotImplemented else self + -other

    def __rsub__(self, other):
        other = _operand(other, self.bits)
        return other if other is NotImplemented else other + -self

    def __truediv__(self, other):
        other = _operand(other, self.bits)
        return other if other is NotImplemented else self * other.inverse()

    def __rtruediv__(self, other):
        other = _operand(other, self.bits)
        return other if other is NotImplemented else other * self.inverse()

    __radd__ = __add__
    __rmul__ = __mul__

    @property
    def is_zero(self):
        return self.exact and self.lo == 0

    def inverse(self):
        """1 / self. Raises PrecisionNeeded if zero is inside or an open end, ZeroDivisionError for an exact zero."""
        if self.exact:
            return Interval(1 / self.lo, None, self.bits)
        if self.lo <= 0 <= self.hi:
            raise PrecisionNeeded(f"division by {self!r}")
        return Interval(1 / self.hi, 1 / self.lo, self.bits)


def _operand(number, bits):
    if isinstance(number, Interval):
        return number
    if isinstance(number, (Fraction, int, float, np.number)):
        return Interval(_fraction(number), None, bits)
    return NotImplemented


def round_interval(interval, round_fraction):
    """(decided, value): the float to which every number of the interval is rounded, if there is one.

    round_fraction(fraction, negative) -> float must be monotone with its boundaries on the grid of 2^-1076; `negative` is
    the sign a zero result takes. An exact zero gives +0. The ends are open: where they round differently, both are moved inwards
    by less than the distance to the next boundary, which settles a tie that only touches an end.
    """
    lo, hi = interval.lo, interval.hi
    if interval.exact:
        return True, 0.0 if lo == 0 else round_fraction(lo, lo < 0)
    ends = round_fraction(lo, lo < 0), round_fraction(hi, hi <= 0)
    if not _same(*ends):
        step = min((hi - lo) / 2, Fraction(1, GRID * max(lo.denominator, hi.denominator)))
        lo, hi = lo + step, hi - step
        ends = round_fraction(lo, lo < 0), round_fraction(hi, hi < 0)
    return _same(*ends), ends[0]


def _same(a, b):
    return a == b and copysign(1.0, a) == copysign(1.0, b)

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
    """Far out e^(-x^2) / (x sqrt(pi)) times the asymptotic series, else 1 - erf(x) at the precision that the subtraction costs."""
    if x <= 0:
        return 1 + _erf(-x, bits)
    if 4 * x * x > 3 * (bits + 80):
        return _ball(fixed.fixed_erfc_sum(x, bits), bits) * _exp(-x * x, bits) / (x * _sqrt_pi(bits))
    return 1 - _erf(x, bits + int(2 * x * x) + 16)


def _softplus(x, bits):
    """max(x, 0) + log1p(e^-|x|)"""
    tail = _exp(-abs(x), bits + 4)
    return max(x, 0) + _monotone(_log1p, tail, bits)


def _sqrt(x, bits):
    """Exact for the square of a rational number."""
    n, d = x.numerator, x.denominator
    root = Fraction(isqrt(n), isqrt(d)) if n >= 0 else None
    if root is None:
        raise PrecisionNeeded("sqrt of a number not known to be non-negative")
    if root * root == x:
        return Interval(root, None, bits)
    shift = max(0, bits + 8 - fixed.exponent(x) // 2)
    below = isqrt((n << 2 * shift) // d)
    return Interval(Fraction(below, 1 << shift), Fraction(below + 1, 1 << shift), bits)


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

    exp, expm1, log, log1p, sigmoid, tanh, erf, erfc, softplus, sqrt: exact where the value is rational and the argument exact
    (exp 0, log 1, sigmoid 0, squares ...), else an interval of relative width below 2^(1 - bits). Raise PrecisionNeeded
    where an end leaves the domain, OverflowError for exp and expm1 above 2^16.
    """

    def __init__(self, bits=200):
        self.bits = bits

    def _apply(self, function, a, falling=False):
        def one(x):
            value = _monotone(function, _operand(x, self.bits), self.bits, falling)
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
        return _sqrt(_fraction(n), self.bits)

    def sum(self, a, axis=-1, keepdims=False):
        """Sum along an axis; exact while its terms are, and exactly zero over no terms."""
        return np.add.reduce(np.asarray(a, dtype=object), axis=axis, keepdims=keepdims, initial=self.constant(0))

    def max(self, a, axis=-1, keepdims=False):
        """The largest element along an axis of at least one."""
        return _objects(_larger, 2).reduce(np.asarray(a, dtype=object), axis=axis, keepdims=keepdims)

    def maximum(self, a, c):
        return _objects(lambda x, y: _larger(_operand(x, self.bits), _operand(y, self.bits)), 2)(a, c)

    def minimum(self, a, c):
        return -self.maximum(-a, -c)

    def where(self, mask, a, b):
        return np.where(mask, a, b)
