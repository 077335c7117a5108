"""Number formats as rows of one table: round, encode, decode.   Spec 6.2

A stored tensor of a narrow format is a *carrier*: a float32 array whose every value the format can represent.
Codes (the bits as unsigned integers) exist only in bundles and at the C seam. Every conversion rounds to nearest, ties
to even, with subnormals; what overflows becomes an infinity.
"""

from fractions import Fraction
from math import inf
from typing import NamedTuple

import numpy as np


class Format(NamedTuple):
    """A binary format: values m * 2^q with |m| < 2^precision and q >= emin - precision + 1."""

    name: str
    precision: int  # bits of the significand, the hidden one included
    emin: int  # exponent of the smallest normal value
    emax: int  # exponent of the largest finite value
    codes: type  # unsigned integer type of the same width
    carrier: type  # NumPy type that holds the values in memory
    safetensors: str  # name of the type in a safetensors header

    @property
    def largest(self):
        """The largest finite value, as a Python float."""
        return (2.0 - 2.0 ** (1 - self.precision)) * 2.0**self.emax

    @property
    def quantum(self):
        """Exponent of the spacing of the subnormals, so that every value is a multiple of 2^quantum."""
        return self.emin - self.precision + 1


FORMATS = {
    row.name: row
    for row in (
        Format("float64", 53, -1022, 1023, np.uint64, np.float64, "F64"),
        Format("float32", 24, -126, 127, np.uint32, np.float32, "F32"),
        Format("bf16", 8, -126, 127, np.uint16, np.float32, "BF16"),
        Format("fp16", 11, -14, 15, np.uint16, np.float32, "F16"),
    )
}


def round_to(value, name):
    """round(value) to the format, from float64 and directly: never through another format.   Spec 6.2

    value float64, any shape -> carrier, same shape. Every NaN becomes the one canonical NaN.
    """
    row = FORMATS[name]
    value = np.asarray(value, np.float64)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        out = _round_narrow(value, row) if row.codes is np.uint16 else value.astype(row.carrier)
    return canonical_nan(out)


def _round_narrow(value, row):
    # Adding and subtracting 1.5 * 2^52 quanta would round too, but not for every exponent at once; rint of the value
    # in units of its own quantum does, and both scalings are exact.
    exponent = np.maximum(np.frexp(value)[1] - 1, row.emin)
    quantum = exponent - (row.precision - 1)
    rounded = np.ldexp(np.rint(np.ldexp(value, -quantum)), quantum)
    return np.where(np.abs(rounded) > row.largest, np.copysign(inf, value), rounded).astype(np.float32)


def canonical_nan(array):
    """Every NaN replaced by the positive quiet one, so that equal results have equal bytes."""
    nan = np.isnan(array)
    return np.where(nan, array.dtype.type(np.nan), array) if nan.any() else array


def round_fraction(value, name, negative_zero=False):
    """round(value) of an exact rational, as a Python float; `negative_zero` is the sign of a result that is zero.

    Spec 6.2; used where a rounding test could not decide.
    """
    row = FORMATS[name]
    value = Fraction(value)
    if value == 0:
        return -0.0 if negative_zero else 0.0
    magnitude = abs(value)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if Fraction(2) ** exponent > magnitude:
        exponent -= 1
    quantum = Fraction(2) ** (max(exponent, row.emin) - row.precision + 1)
    magnitude = round(magnitude / quantum) * quantum  # round() of a Fraction is half to even
    result = inf if magnitude > Fraction(row.largest) else float(magnitude)
    return -result if value < 0 else result


def is_representable(array, name):
    """True if every element of the carrier is a value of the format (NaN and infinities included)."""
    array = np.asarray(array)
    same = round_to(array, name) == array
    return bool(np.all(same | np.isnan(array)))


def encode(carrier, name):
    """carrier -> codes, the bit patterns as unsigned integers. Values must be representable: nothing is rounded."""
    row = FORMATS[name]
    carrier = np.ascontiguousarray(carrier, dtype=row.carrier)
    if name == "bf16":
        return (carrier.view(np.uint32) >> 16).astype(np.uint16)
    if name == "fp16":
        return carrier.astype(np.float16).view(np.uint16)
    return carrier.view(row.codes)


def decode(codes, name):
    """codes -> carrier; the inverse of `encode`, for every code point."""
    row = FORMATS[name]
    codes = np.ascontiguousarray(codes, dtype=row.codes)
    if name == "bf16":
        return (codes.astype(np.uint32) << 16).view(np.float32)
    if name == "fp16":
        return codes.view(np.float16).astype(np.float32)
    return codes.view(row.carrier)
