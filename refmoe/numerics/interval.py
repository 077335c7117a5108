"""A number that is exact, or strictly inside an open interval; and how an interval is rounded.   Spec 6.6

An exact number is a Fraction. The ends of an interval are `Dyadic`: no exponent is too large to write, so that two
numbers as small as e^(-10^38) are told apart like any others, at the same cost. What is exact but for such a number, as
sigmoid(10^6) is, remembers the two parts: they meet again when the exact parts cancel.
"""

from fractions import Fraction
from math import copysign

import numpy as np

from .fixed_point import Dyadic, above, as_fraction, below, exponent, inverse_below, sum_below

GRID = 1 << 1077  # no format of the project has a rounding boundary off the grid of 2^-1076
LEAST, MOST = -1200, 1100  # no format tells numbers below 2^LEAST apart, or numbers above 2^MOST
SPARE = 8  # bits beyond an interval's own in which an exact number meets it


class PrecisionNeeded(ArithmeticError):
    """The interval is too wide for the operation: read the formula again with more bits."""


class Interval:
    """An exact number (lo is hi, a Fraction), or one strictly inside (lo, hi), Dyadics of `bits` or bits + 1 bits.

    An object stands for one number: less itself it is zero, by itself one. `near` is None, or the parts (base, tail) of
    a number base + tail: a Fraction, and an Interval too small to show beside it at `bits` bits.
    """

    __slots__ = ("lo", "hi", "bits", "near")

    def __init__(self, lo, hi=None, bits=200):
        self.bits, self.near = bits, None
        if hi is None or lo is hi:
            self.lo = self.hi = as_fraction(lo)
        else:
            self.lo, self.hi = below(lo, bits), above(hi, bits)

    def __repr__(self):
        return f"Interval({self.lo})" if self.exact else f"Interval({self.lo!r}, {self.hi!r})"

    @property
    def exact(self):
        return self.lo is self.hi

    @property
    def is_zero(self):
        return self.lo is self.hi and not self.lo

    def ends(self, bits):
        """The ends as Dyadics; those of an exact number, rounded outwards, may be one."""
        if self.exact:
            return below(self.lo, bits + SPARE), above(self.lo, bits + SPARE)
        return self.lo, self.hi

    @property
    def parts(self):
        """(base, tail) with self = base + tail: an exact number is its own base, an interval its own tail."""
        if self.exact:
            return self.lo, _ZERO
        return self.near or (Fraction(0), self)

    def __neg__(self):
        if self.near:
            return _joined(-self.near[0], -self.near[1], self.bits)
        return Interval(-self.hi, None if self.exact else -self.lo, self.bits)

    def __abs__(self):
        if self.lo >= 0:
            return self
        if self.hi <= 0:
            return -self
        reach = max(-self.lo, self.hi)
        return Interval(-reach, reach, self.bits)  # zero must stay inside an open interval

    def __add__(self, other):
        other = as_interval(other, self.bits)
        if other is NotImplemented or self.is_zero:
            return other
        if other.is_zero:
            return self
        bits = max(self.bits, other.bits)
        if self.exact and other.exact:
            return Interval(self.lo + other.lo, None, bits)
        (a, s), (b, t) = self.parts, other.parts
        if a or b:
            return _joined(a + b, s + t, bits)
        return Interval(sum_below(s.lo, t.lo, bits), -sum_below(-s.hi, -t.hi, bits), bits)

    def __mul__(self, other):
        other = as_interval(other, self.bits)
        if other is NotImplemented:
            return other
        bits = max(self.bits, other.bits)
        if self.exact and other.exact:
            return Interval(self.lo * other.lo, None, bits)
        if self.is_zero or other.is_zero:
            return Interval(Fraction(0), None, bits)
        if (self.exact or self.near) and (other.exact or other.near):
            (a, s), (b, t) = self.parts, other.parts
            return _joined(a * b, s * b + t * a + s * t, bits)
        (a, b), (c, d) = self.ends(bits), other.ends(bits)
        if a.m >= 0 and c.m >= 0:
            return Interval(a * c, b * d, bits)
        corners = a * c, a * d, b * c, b * d
        return Interval(min(corners), max(corners), bits)

    def __sub__(self, other):
        other = as_interval(other, self.bits)
        if other is self:
            return Interval(Fraction(0), None, self.bits)
        return other if other is NotImplemented else self + -other

    def __rsub__(self, other):
        other = as_interval(other, self.bits)
        return other if other is NotImplemented else other + -self

    def __truediv__(self, other):
        other = as_interval(other, self.bits)
        if other is NotImplemented:
            return other
        inverse = other.inverse()
        return Interval(Fraction(1), None, self.bits) if other is self else self * inverse

    def __rtruediv__(self, other):
        other = as_interval(other, self.bits)
        return other if other is NotImplemented else other * self.inverse()

    __radd__ = __add__
    __rmul__ = __mul__

    def inverse(self):
        """1 / self. Raises PrecisionNeeded if zero is inside or an open end, ZeroDivisionError for an exact zero."""
        if self.exact:
            return Interval(1 / self.lo, None, self.bits)
        if self.near:  # 1 / (base + tail) = 1 / base - tail / (base (base + tail))
            base, tail = self.near
            return _joined(1 / base, tail / (Interval(self.lo, self.hi, self.bits) * -base), self.bits)
        if self.lo.m <= 0 <= self.hi.m:
            raise PrecisionNeeded(f"division by {self!r}")
        return Interval(inverse_below(self.hi, self.bits), -inverse_below(-self.lo, self.bits), self.bits)


_ZERO = Interval(Fraction(0))


def _joined(base, tail, bits):
    """base + tail of a Fraction and an Interval, which stay in sight where only the base would show."""
    if not base:
        return tail
    if tail.exact:
        return Interval(base + tail.lo, None, bits)
    low, high = below(base, bits + SPARE), above(base, bits + SPARE)
    whole = Interval(sum_below(low, tail.lo, bits), -sum_below(-high, -tail.hi, bits), bits)
    if max(-tail.lo, tail.hi).top + bits < exponent(base):
        whole.near = base, tail
    return whole


def as_interval(number, bits):
    """The Interval itself, an exact Interval of any real number, a narrow one about a Dyadic, or NotImplemented."""
    if isinstance(number, Interval):
        return number
    if isinstance(number, Dyadic):
        m, e = number.m << bits, number.e - bits
        return Interval(Dyadic(m - 1, e), Dyadic(m + 1, e), bits)
    if isinstance(number, (Fraction, int, float, np.number)):
        return Interval(as_fraction(number), None, bits)
    return NotImplemented


def round_interval(interval, round_fraction):
    """(decided, value): the float to which every number of the interval is rounded, if there is one.

    round_fraction(fraction, negative) -> float must be monotone with its boundaries on the grid of 2^-1076, all
    between 2^LEAST and 2^MOST in magnitude; `negative` is the sign a zero result takes. An exact zero gives +0. The
    ends are open: where they round differently, both are moved inwards by less than the distance to the next boundary,
    which settles a tie that only touches an end.
    """
    if interval.exact:
        value = interval.lo
        return True, 0.0 if value == 0 else round_fraction(value, value < 0)
    lo, hi = _within_formats(interval.lo), _within_formats(interval.hi)
    ends = round_fraction(lo, lo < 0), round_fraction(hi, hi <= 0)
    if not _same(*ends):
        step = min((hi - lo) / 2, Fraction(1, GRID * max(lo.denominator, hi.denominator)))
        lo, hi = lo + step, hi - step
        ends = round_fraction(lo, lo < 0), round_fraction(hi, hi < 0)
    return _same(*ends), ends[0]


def _within_formats(end):
    """The end as a Fraction, or one that every format rounds alike."""
    if end.m and not LEAST < end.top <= MOST:
        end = Dyadic(1 if end.m > 0 else -1, LEAST if end.top <= LEAST else MOST)
    return as_fraction(end)


def _same(a, b):
    return a == b and copysign(1.0, a) == copysign(1.0, b)
