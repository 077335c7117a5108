"""float64 values that carry a bound on their own error: the first reading of every formula.   Spec 6.5"""

import numpy as np

from . import elementary
from .arithmetic import Arithmetic
from .rounding import UNIT, two_sum

_TINY = 2.0**-960  # below this a product may have underflowed
_ETA = 2.0**-1070  # more than any underflow loses
_BASE = elementary.RELATIVE_BOUND
_FLOOR = elementary.ABSOLUTE_BOUND


class Enclosed:
    """A value v within a bound e: what + - * / of such values share. A subclass has `like(x)`, + * / and negation."""

    __slots__ = ()
    __array_ufunc__ = None  # an ndarray on the left defers to the methods below

    def __sub__(self, other):
        return self + -self.like(other)

    def __radd__(self, other):
        return self + other

    def __rsub__(self, other):
        return -self + other

    def __rmul__(self, other):
        return self * other

    def __rtruediv__(self, other):
        return self.like(other) / self

    def error_of_product(self, other):
        """What the bounds of both bring to self * other, before its own rounding."""
        return np.abs(self.v) * other.e + np.abs(other.v) * self.e + self.e * other.e

    def error_of_quotient(self, other, v):
        """The same for v = self / other; infinite where other may be zero."""
        room = np.abs(other.v) - other.e
        return (self.e + np.abs(v) * other.e) / np.where(room > 0, room, 0.0)


class Bounded(Enclosed):
    """The exact value lies within v -+ e. `bits`: v is exact and has at most that many significant bits (or None)."""

    __slots__ = ("v", "e", "bits")

    def __init__(self, v, e=0.0, bits=None):
        self.v, self.e, self.bits = v, e, bits

    @property
    def may_not_be_zero(self):
        """False where the value is exactly zero: then so is a product with it, and nothing can underflow."""
        return (self.v != 0) | (np.asarray(self.e) != 0)

    def __add__(self, other):
        other = _bounded(other)
        v, lost = two_sum(self.v, other.v)
        return Bounded(v, self.e + other.e + np.abs(lost))

    def __neg__(self):
        return Bounded(-self.v, self.e, self.bits)

    def __mul__(self, other):
        other = _bounded(other)
        v = self.v * other.v
        bits = self.bits + other.bits if self.bits and other.bits else None
        e = self.error_of_product(other)
        if bits is None or bits > 53:
            e, bits = e + _rounding(v, self.may_not_be_zero & other.may_not_be_zero), None
        return Bounded(v, e, bits)

    def __truediv__(self, other):
        other = _bounded(other)
        v = self.v / other.v
        return Bounded(v, self.error_of_quotient(other, v) + _rounding(v, self.may_not_be_zero))

    def like(self, x):
        return _bounded(x)


def _bounded(x):
    if isinstance(x, Bounded):
        return x
    if not np.isfinite(x):
        return Bounded(float(x))
    significand = abs(np.frexp(float(x))[0])
    whole = int(np.ldexp(significand, 53))
    return Bounded(float(x), 0.0, (whole // (whole & -whole)).bit_length() if whole else 1)


def _rounding(v, nonzero):
    """The error of one rounded multiplication or division: u |v|, and a little more where it may have underflowed."""
    size = np.abs(v)
    return UNIT * size + np.where((size < _TINY) & nonzero, _ETA, 0.0)


def _growth(e):
    """expm1(e) from above, for small e; beyond that nothing is known."""
    return np.where(e < 0.5, e * (1.0 + e), np.inf) if np.any(e) else 0.0


class BoundedArithmetic(Arithmetic):
    """Reads a formula in `Bounded`. Each function adds its algorithm's proven error to what its argument brings."""

    pi = Bounded(np.pi, 2.0**-52)

    def constant(self, c):
        return _bounded(c)

    def array(self, stored, bits=24):
        """A stored array: exact, and a float32 has 24 bits."""
        return Bounded(stored, 0.0, bits)

    def real(self, x):
        return x.v if isinstance(x, Bounded) else x

    def where(self, mask, a, b):
        a, b = _bounded(a), _bounded(b)
        bits = max(a.bits, b.bits) if a.bits and b.bits else None
        return Bounded(np.where(mask, a.v, b.v), np.where(mask, a.e, b.e), bits)

    def choose(self, x, bound, at_most, beyond):
        """Where the bound lies within the error of x nothing is known."""
        picked = self.where(x.v > bound, beyond, at_most)
        unknown = (np.asarray(x.e) > 0) & (np.abs(x.v - bound) <= 1.001 * x.e)
        return Bounded(picked.v, np.where(unknown, np.inf, picked.e), picked.bits if not np.any(x.e) else None)

    def sum(self, x, axis=-1, keepdims=False):
        v = np.sum(x.v, axis=axis, keepdims=keepdims)
        size = np.sum(np.abs(x.v), axis=axis, keepdims=keepdims)
        e = np.sum(np.broadcast_to(x.e, np.shape(x.v)), axis=axis, keepdims=keepdims)
        count = np.size(x.v) // max(1, np.size(v))
        return Bounded(v, e + (UNIT * count) * size)

    def max(self, x, axis=-1, keepdims=False):
        return Bounded(np.max(x.v, axis=axis, keepdims=keepdims), 0.0, x.bits)

    def take(self, x, index):
        """x[index] along the leading axes."""
        return Bounded(x.v[index], x.e[index] if np.ndim(x.e) else x.e, x.bits)

    def along(self, x, index):
        """x at one index of the last axis for each row."""
        e = np.take_along_axis(x.e, index, axis=-1) if np.ndim(x.e) else x.e
        return Bounded(np.take_along_axis(x.v, index, axis=-1), e, x.bits)

    def sqrt(self, x):
        x = _bounded(x)
        v = np.sqrt(x.v)
        e = np.where(x.e > 0, x.e / np.where(x.v - x.e > 0, v, 0.0), 0.0)
        return Bounded(v, e + UNIT * v)

    def exp(self, x):
        v = elementary.exp(x.v)
        return Bounded(v, v * (_BASE["exp"] + 2 * _growth(x.e)) + _floor(v))

    def expm1(self, x):
        v = elementary.expm1(x.v)
        return Bounded(v, np.abs(v) * _BASE["expm1"] + (np.abs(v) + 1.0) * 2 * _growth(x.e) + _floor(np.abs(v)))

    def log(self, x):
        v = elementary.log(x.v)
        room = x.v - x.e
        return Bounded(v, np.abs(v) * _BASE["log"] + x.e / np.where(room > 0, room, 0.0))

    def log1p(self, x):
        v = elementary.log1p(x.v)
        room = (x.v - x.e) + 1.0
        lost = x.e * (1.0 + 2.0**-40) / np.where(room > 0, room, 0.0) if np.any(x.e) else 0.0
        return Bounded(v, np.abs(v) * _BASE["log1p"] + lost + _floor(np.abs(v)))

    def sigmoid(self, x):
        v = elementary.sigmoid(x.v)
        return Bounded(v, v * (_BASE["sigmoid"] + 2 * _growth(x.e)) + _floor(v))

    def softplus(self, x):
        v = elementary.softplus(x.v)
        return Bounded(v, v * (_BASE["softplus"] + 2 * _growth(x.e)) + _floor(v))

    def tanh(self, x):
        v = elementary.tanh(x.v)
        return Bounded(v, np.abs(v) * _BASE["tanh"] + x.e)

    def erf(self, x):
        v = elementary.erf(x.v)
        return Bounded(v, np.abs(v) * _BASE["erf"] + 1.13 * x.e)

    def erfc(self, x):
        """|erfc'(t)| = 2/sqrt(pi) exp(-t^2), largest over the interval at its end nearest zero."""
        v = elementary.erfc(x.v)
        near = np.maximum(np.abs(x.v) - x.e, 0.0)
        slope = 1.13 * np.minimum(1.0, elementary.exp(-near * near) * 1.001) + _ETA
        return Bounded(v, v * _BASE["erfc"] + slope * x.e + _floor(v))


def _floor(v):
    return np.where(v < _TINY, _FLOOR, 0.0)
