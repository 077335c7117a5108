"""Infinities and NaN among intervals, so that a formula is read to its end whatever it was given.   Spec 6.6"""

from .interval import Interval, PrecisionNeeded

_INF, _NAN = float("inf"), float("nan")

# function of `precise` -> its limits at minus and at plus infinity
LIMITS = {
    "_exp": (0, _INF),
    "_expm1": (-1, _INF),
    "_log": (_NAN, _INF),
    "_log1p": (_NAN, _INF),
    "_sigmoid": (0, 1),
    "_tanh": (-1, 1),
    "_erf": (-1, 1),
    "_erfc": (2, 0),
    "_softplus": (0, _INF),
    "_sqrt": (_NAN, _INF),
}


class Beyond:
    """An infinity or NaN: only its sign, and the sign of what it meets, matters. `lo` is its value."""

    __slots__ = ("hi", "lo")
    exact, is_zero = True, False

    def __init__(self, value):
        self.lo = self.hi = float(value) if value == value else _NAN  # NaN is one value

    def __neg__(self):
        return Beyond(-self.lo)

    def __add__(self, other):
        return Beyond(self.lo + other.lo) if isinstance(other, Beyond) else self

    def __mul__(self, other):
        return Beyond(self.lo * (other.lo if isinstance(other, Beyond) else _sign(other)))

    def __sub__(self, other):
        return self + -other

    def __rsub__(self, other):
        return -self + other

    def __truediv__(self, other):
        return Beyond(_NAN) if isinstance(other, Beyond) else self * other

    def __rtruediv__(self, other):
        return self if self.lo != self.lo else Interval(0)

    __radd__, __rmul__ = __add__, __mul__

    def limit(self, function):
        """What the function tends to here; NaN at NaN."""
        return self.lo if self.lo != self.lo else LIMITS[function.__name__][self.lo > 0]


def _sign(number):
    """-1, 0 or 1 for an Interval or a real number, as a float."""
    lo, hi = getattr(number, "lo", number), getattr(number, "hi", number)
    if lo < 0 < hi:
        raise PrecisionNeeded(f"the sign of {number!r}")
    return float((hi > 0) - (lo < 0))
