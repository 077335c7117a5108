"""A number that is exact, or strictly inside an open interval; and how an interval is rounded.   Spec 6.6"""

from fractions import Fraction
from math import copysign

import numpy as np

GRID = 1 << 1077  # no format of the project has a rounding boundary off the grid of 2^-1076


class PrecisionNeeded(ArithmeticError):
    """The interval is too wide for the operation: read the formula again with more bits."""


def as_fraction(number):
    """The exact value of a Fraction, an int or a finite float."""
    if isinstance(number, Fraction):
        return number
    return Fraction(int(number)) if isinstance(number, (int, np.integer)) else Fraction(float(number))


def _round_down(value, bits):
    """The largest multiple not above value of a power of two that leaves it `bits` or bits + 1 significant bits."""
    n, d = value.numerator, value.denominator
    if d & (d - 1) == 0 and n.bit_length() <= bits:
        return value
    shift = bits - n.bit_length() + d.bit_length()
    return Fraction((n << shift) // d, 1 << shift) if shift >= 0 else Fraction(n // (d << -shift) << -shift)


class Interval:
    """An exact number (lo == hi), or a number strictly inside (lo, hi) whose ends keep `bits` or bits + 1 bits."""

    __slots__ = ("lo", "hi", "bits")

    def __init__(self, lo, hi=None, bits=200):
        self.bits = bits
        if hi is None or lo == hi:
            self.lo = self.hi = as_fraction(lo)
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
        return Interval(-reach, reach, self.bits)  # zero must stay inside an open interval

    def __add__(self, other):
        other = as_interval(other, self.bits)
        if other is NotImplemented:
            return other
        return Interval(self.lo + other.lo, self.hi + other.hi, max(self.bits, other.bits))

    def __mul__(self, other):
        other = as_interval(other, self.bits)
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
        other = as_interval(other, self.bits)
        return other if other is NotImplemented else self + -other

    def __rsub__(self, other):
        other = as_interval(other, self.bits)
        return other if other is NotImplemented else other + -self

    def __truediv__(self, other):
        other = as_interval(other, self.bits)
        return other if other is NotImplemented else self * other.inverse()

    def __rtruediv__(self, other):
        other = as_interval(other, self.bits)
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


def as_interval(number, bits):
    """The Interval itself, an exact Interval of any real number, or NotImplemented."""
    if isinstance(number, Interval):
        return number
    if isinstance(number, (Fraction, int, float, np.number)):
        return Interval(as_fraction(number), None, bits)
    return NotImplemented


def round_interval(interval, round_fraction):
    """(decided, value): the float to which every number of the interval is rounded, if there is one.

    round_fraction(fraction, negative) -> float must be monotone with its boundaries on the grid of 2^-1076;
    `negative` is the sign a zero result takes. An exact zero gives +0. The ends are open: where they round
    differently, both are moved inwards by less than the distance to the next boundary, which settles a tie that only
    touches an end.
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
