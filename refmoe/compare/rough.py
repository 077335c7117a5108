"""A formula as a kernel computes it: every operation rounded to some unit, and a bound on that.   Spec 7.12"""

import numpy as np

from ..numerics import elementary
from ..numerics.arithmetic import Arithmetic
from ..numerics.bounded import Enclosed

FUNCTION = 4  # units in the last place of float32 that a kernel's elementary function may be off
FLOAT32 = 2.0**-24  # coarser operations evaluate functions in float32 and round the result


class Rough(Enclosed):
    """A value and a bound on the distance of a kernel's."""

    __slots__ = ("v", "e", "unit")

    def __init__(self, v, e, unit):
        self.v, self.e, self.unit = np.asarray(v, np.float64), np.asarray(e, np.float64), unit

    def like(self, x):
        return x if isinstance(x, Rough) else Rough(x, 0.0, self.unit)

    def _rounded(self, v, e):
        return Rough(v, e + self.unit * np.abs(v), self.unit)

    def __add__(self, other):
        other = self.like(other)
        return self._rounded(self.v + other.v, self.e + other.e)

    def __neg__(self):
        return Rough(-self.v, self.e, self.unit)

    def __mul__(self, other):
        other = self.like(other)
        return self._rounded(self.v * other.v, self.error_of_product(other))

    def __truediv__(self, other):
        other = self.like(other)
        v = self.v / other.v
        return self._rounded(v, self.error_of_quotient(other, v))


class RoughArithmetic(Arithmetic):
    """Reads a formula in `Rough`."""

    def __init__(self, unit):
        self.unit = unit
        self.of_function = FUNCTION * unit if unit < 2 * FLOAT32 else unit + FUNCTION * FLOAT32

    @property
    def pi(self):
        return self._made(np.pi)

    def _made(self, v, e=0.0):
        return Rough(v, e, self.unit)

    def _value(self, x):
        return x if isinstance(x, Rough) else self._made(x)

    def constant(self, c):
        return self._made(c)

    def array(self, stored, e=0.0):
        return self._made(stored, e)

    def real(self, x):
        return x.v if isinstance(x, Rough) else x

    def where(self, mask, a, b):
        """Near the border a kernel may take the other branch: the larger of both errors, as the branches meet there."""
        a, b = self._value(a), self._value(b)
        return self._made(np.where(mask, a.v, b.v), np.maximum(a.e, b.e))

    def relu(self, x):
        x, v = self._value(x), super().relu(x)
        below, above = (np.maximum(x.v + sign * x.e, 0.0) for sign in (-1, 1))
        return self._made(v.v, np.maximum(above - np.maximum(x.v, 0.0), np.maximum(x.v, 0.0) - below))

    def choose(self, x, bound, at_most, beyond):
        at_most, beyond = self._value(at_most), self._value(beyond)
        unknown = np.abs(x.v - bound) <= x.e
        picked = self.where(x.v > bound, beyond, at_most)
        return self._made(picked.v, picked.e + np.where(unknown, np.abs(beyond.v - at_most.v), 0.0))

    def sum(self, x, axis=-1, keepdims=False):
        v = np.sum(x.v, axis=axis, keepdims=keepdims)
        size = np.sum(np.abs(x.v), axis=axis, keepdims=keepdims)
        e = np.sum(np.broadcast_to(x.e, x.v.shape), axis=axis, keepdims=keepdims)
        return self._made(v, e + self.unit * (x.v.size // max(1, np.size(v)) - 1) * size)

    def max(self, x, axis=-1, keepdims=False):
        e = np.max(np.broadcast_to(x.e, x.v.shape), axis=axis, keepdims=keepdims)
        return self._made(np.max(x.v, axis=axis, keepdims=keepdims), e)

    def take(self, x, index):
        return self._made(x.v[index], np.broadcast_to(x.e, x.v.shape)[index])

    def along(self, x, index):
        e = np.take_along_axis(np.broadcast_to(x.e, x.v.shape), index, axis=-1)
        return self._made(np.take_along_axis(x.v, index, axis=-1), e)

    def _apply(self, name, x, e):
        """A function whose value moves by at most e when its argument moves within its bound."""
        x = self._value(x)
        v = getattr(elementary, name)(x.v)
        return self._made(v, np.where(x.e > 0, e(x, v), 0.0) + self.of_function * np.abs(v))

    def sqrt(self, x):
        x = self._value(x)
        v = np.sqrt(x.v)
        return self._made(v, v - np.sqrt(np.maximum(x.v - x.e, 0.0)) + self.of_function * v)

    def exp(self, x):
        return self._apply("exp", x, lambda x, v: v * np.expm1(x.e))

    def expm1(self, x):
        return self._apply("expm1", x, lambda x, v: (v + 1.0) * np.expm1(x.e))

    def log(self, x):
        return self._apply("log", x, lambda x, v: v - np.log(np.maximum(x.v - x.e, 0.0)))

    def log1p(self, x):
        return self._apply("log1p", x, lambda x, v: v - np.log1p(np.maximum(x.v - x.e, -1.0)))

    def sigmoid(self, x):
        return self._apply("sigmoid", x, lambda x, v: np.minimum(x.e / 4, v * np.expm1(x.e)))

    def softplus(self, x):
        return self._apply("softplus", x, lambda x, v: x.e)

    def tanh(self, x):
        return self._apply("tanh", x, lambda x, v: x.e)

    def erf(self, x):
        return self._apply("erf", x, lambda x, v: 1.13 * x.e)

    def erfc(self, x):
        return self._apply("erfc", x, lambda x, v: 1.13 * x.e)
