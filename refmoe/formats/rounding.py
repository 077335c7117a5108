"""One rounding, from float64 or from an exact rational, straight to a format.   Spec 6.2"""

from fractions import Fraction
from math import inf, nan

import numpy as np

from ..refusals import require, shown
from .table import format_row

_NOTHING = np.dtype(object)


def round_to(value, name, overflow="infinity"):
    """round(value) to the format, from float64 and directly: never through another format.   Spec 6.2

    value float64, any shape -> carrier, same shape. Every NaN becomes the one canonical NaN. Beyond the largest finite
    value, infinities included, the result is an infinity, the largest value ("saturate"; below zero an integer has one
    number more) or NaN ("nan"). E8M0 takes what is below its least value to that value, and what is not positive to
    NaN; an integer has no zero but +0.
    Raises ValueError when the format lacks what `overflow` names, or has no NaN and one comes.
    """
    row = _row(name, overflow)
    value = np.asarray(value, np.float64)
    if "nan" not in row.specials and np.isnan(value).any():
        raise ValueError(f"round_to: expected numbers, since {name} has no NaN, got NaN; remove it first")
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        out = _nearest(value, row)
        if row.codes in (np.uint8, np.uint16) or overflow != "infinity":
            above, below = _beyond(row, overflow)
            out = np.where(out > row.largest, above, np.where(out < row.lowest, below, out))
        return canonical_nan(out.astype(row.carrier, copy=False))


def _row(name, overflow):
    row = format_row(name)
    if overflow != "saturate" and overflow not in row.specials:
        able = ", ".join(("saturate", *row.specials))
        raise ValueError(f"overflow: expected one of {able} for {name}, got {overflow!r}; name what it can do")
    return row


def _beyond(row, overflow):
    """What stands for a value above the largest, and for one below the lowest."""
    return {"infinity": (inf, -inf), "saturate": (row.largest, row.lowest), "nan": (nan, nan)}[overflow]


def _nearest(value, row):
    """The nearest multiple of the value's quantum, the exponent unbounded above in narrow formats."""
    if row.codes not in (np.uint8, np.uint16):
        return value.astype(row.carrier)
    if row.integer:
        return np.rint(value) + 0.0  # +0.0: no zero has a sign
    # Adding and subtracting 1.5 * 2^52 quanta would round too, but not for every exponent at once; rint of the value
    # in units of its own quantum does, and both scalings are exact.
    exponent = np.maximum(np.frexp(value)[1] - 1, row.emin)
    quantum = exponent - (row.precision - 1)
    rounded = np.ldexp(np.rint(np.ldexp(value, -quantum)), quantum)
    return np.where(value > 0, np.maximum(rounded, 2.0**row.emin), nan) if row.scale else rounded


def canonical_nan(array):
    """Every NaN replaced by the positive quiet one, so that equal results have equal bytes."""
    if getattr(array, "dtype", _NOTHING).kind not in "fciu":
        require(False, TypeError, "array", "an array of numbers", shown(array), "convert it with numpy.asarray")
    nan = np.isnan(array)
    return np.where(nan, array.dtype.type(np.nan), array) if nan.any() else array


def round_fraction(value, name, negative_zero=False, overflow="infinity"):
    """round(value) of an exact rational, as a Python float; `negative_zero` is the sign of a result that is zero.

    Spec 6.2; used where a rounding test could not decide. `overflow` as in `round_to`.
    """
    row = _row(name, overflow)
    value = Fraction(value)
    if row.scale and value <= 0:
        return nan
    if value == 0:
        return -0.0 if negative_zero and not row.integer else 0.0
    magnitude = abs(value)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if Fraction(2) ** exponent > magnitude:
        exponent -= 1
    quantum = Fraction(2) ** (max(exponent, row.emin) - row.precision + 1)
    magnitude = round(magnitude / quantum) * quantum  # round() of a Fraction is half to even
    if row.scale:
        magnitude = max(magnitude, Fraction(2) ** row.emin)
    above, below = _beyond(row, overflow)
    if value < 0:
        result = below if -magnitude < Fraction(row.lowest) else -float(magnitude)
        return result + 0.0 if row.integer else result
    return above if magnitude > Fraction(row.largest) else float(magnitude)


_BLOCK = 1 << 16  # elements looked at together: the temporaries stay in cache


def is_representable(array, name):
    """True if every element of the carrier is a value of the format (NaN and infinities where it has them)."""
    row, flat = format_row(name), np.asarray(array).reshape(-1)
    held = {"bf16": _is_bf16, "fp16": _is_fp16}.get(name) if flat.dtype == np.float32 else None
    held = held or (lambda values: _is_value(values, row))
    return all(held(flat[at : at + _BLOCK]) for at in range(0, len(flat), _BLOCK))


def _is_bf16(values):
    """The upper half of a float32: the lower one is clear, except in a NaN."""
    bits, low = np.ascontiguousarray(values).view(np.uint32), np.uint32(0xFFFF)
    if not np.bitwise_or.reduce(bits) & low:  # of all at once: four times as fast, and what it mostly is
        return True
    return bool(np.isnan(values[bits & low != 0]).all())


def _is_fp16(values):
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        same = values.astype(np.float16).astype(np.float32) == values
    return bool((same | np.isnan(values)).all())


def _is_value(values, row):
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        nearest = _nearest(values.astype(np.float64, copy=False), row)
    within = (values <= row.largest) & (values >= row.lowest) | ("infinity" in row.specials) & np.isinf(values)
    same = (nearest == values) & within & ~(row.integer & (values == 0) & np.signbit(values))
    return bool(np.all(same | np.isnan(values) if "nan" in row.specials else same))
