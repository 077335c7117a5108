"""A formula read with a note beside each value: in which formats all operations so far were exact.   Spec 7.10"""

import numpy as np

from ..formats import FORMATS
from ..numerics import elementary
from ..numerics.arithmetic import Arithmetic
from ..numerics.bounded import Enclosed
from ..numerics.rounding import two_sum

OFFERED = ("bf16", "fp16", "float32")  # the formats that a kernel may keep everything in
ALL = 2 ** len(OFFERED) - 1
NOTHING = 4096  # where a product is zero: the exponent of its last bit


def last_bit(v):
    """The exponent of the lowest set bit of each element; NOTHING for zero."""
    m, e = np.frexp(np.where(np.isfinite(v), v, 0.0))
    whole = np.ldexp(m, 53).astype(np.int64)
    return np.where(whole == 0, NOTHING, e - 53 + np.frexp((whole & -whole).astype(np.float64))[1] - 1)


def formats_of(size, bit):
    """One bit a format: does it hold every multiple of 2^bit up to `size`?"""
    with np.errstate(over="ignore", invalid="ignore"):
        return sum((_holds(FORMATS[name], size, bit).astype(np.int64) << at) for at, name in enumerate(OFFERED))


def _holds(row, size, bit):
    empty = bit >= NOTHING
    few = size <= np.ldexp(1.0, np.minimum(bit, 900) + row.precision)
    return empty | (np.isfinite(size) & few & (bit >= row.quantum) & (size <= row.largest))


class Noted(Enclosed):
    """A value and its note."""

    __slots__ = ("note", "v")

    def __init__(self, v, note=None):
        self.v = np.asarray(v, np.float64)
        own = formats_of(np.abs(self.v), last_bit(self.v))
        self.note = np.where(np.isfinite(self.v), own if note is None else own & note, 0)

    def _made(self, v, other, exact):
        return Noted(v, np.where(exact, self.note & other.note, 0))

    def __add__(self, other):
        other = noted(other)
        v, lost = two_sum(*np.broadcast_arrays(self.v, other.v))
        return self._made(v, other, lost == 0)

    def __neg__(self):
        return Noted(-self.v, self.note)

    def like(self, x):
        return noted(x)

    def __mul__(self, other):
        other = noted(other)  # 24 bits by 24: what does not fit has no note anyway
        return self._made(self.v * other.v, other, True)

    def __truediv__(self, other):
        other = noted(other)
        v = self.v / other.v
        return self._made(v, other, v * other.v == self.v)


def noted(x):
    return x if isinstance(x, Noted) else Noted(x)


class NotedArithmetic(Arithmetic):
    """Reads a formula in `Noted`. A function is exact at the point where every library has it, and nowhere else."""

    pi = Noted(np.pi, 0)

    def constant(self, c):
        return noted(c)

    array = constant

    def real(self, x):
        return x.v if isinstance(x, Noted) else x

    def where(self, mask, a, b):
        a, b = noted(a), noted(b)
        return Noted(np.where(mask, a.v, b.v), np.where(mask, a.note, b.note))

    def sum(self, x, axis=-1, keepdims=False):
        """Exact in any order: every term is a multiple of one power of two, and all of them together fit."""
        axes = axis if isinstance(axis, tuple) else (axis,)
        bit, size = np.min(last_bit(x.v), axes, keepdims=keepdims), np.sum(np.abs(x.v), axes, keepdims=keepdims)
        note = formats_of(size, bit) & np.bitwise_and.reduce(x.note, axes, keepdims=keepdims)
        return Noted(np.sum(x.v, axes, keepdims=keepdims), note)

    def max(self, x, axis=-1, keepdims=False):
        note = np.bitwise_and.reduce(x.note, axis, keepdims=keepdims)
        return Noted(np.max(x.v, axis=axis, keepdims=keepdims), note)

    def take(self, x, index):
        return Noted(x.v[index], x.note[index])

    def along(self, x, index):
        return Noted(np.take_along_axis(x.v, index, axis=-1), np.take_along_axis(x.note, index, axis=-1))

    def sqrt(self, x):
        x = noted(x)
        v = np.sqrt(x.v)
        return Noted(v, np.where(v * v == x.v, x.note, 0))

    def _at(self, name, x, point):
        x = noted(x)
        return Noted(getattr(elementary, name)(x.v), np.where(x.v == point, x.note, 0))

    def exp(self, x):
        return self._at("exp", x, 0)

    def expm1(self, x):
        return self._at("expm1", x, 0)

    def log(self, x):
        return self._at("log", x, 1)

    def log1p(self, x):
        return self._at("log1p", x, 0)

    def sigmoid(self, x):
        return self._at("sigmoid", x, 0)

    def tanh(self, x):
        return self._at("tanh", x, 0)

    def erf(self, x):
        return self._at("erf", x, 0)

    def erfc(self, x):
        return self._at("erfc", x, 0)

    def softplus(self, x):
        return self._at("softplus", x, np.nan)
