"""Number formats as rows of one table: round, encode, decode; weights held at their stored width.   Spec 6.2

A stored tensor of a narrow format is a *carrier*: a float32 array whose every value the format can represent.
Codes (the bits as unsigned integers) exist only in bundles, at the C seam and in `Packed`. Every conversion rounds to
nearest, ties to even, with subnormals; what happens beyond the largest value is named by the operation.
"""

from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from math import copysign, inf, nan
from typing import NamedTuple

import numpy as np

from .refusals import require


class Format(NamedTuple):
    """A binary format: values m * 2^q with |m| < 2^precision and q >= emin - precision + 1."""

    name: str
    precision: int  # bits of the significand, the hidden one included
    emin: int  # exponent of the smallest normal value
    emax: int  # exponent of the largest finite value
    codes: type  # unsigned integer type that holds a code, in its low bits
    carrier: type  # NumPy type that holds the values in memory
    safetensors: str  # name of the type in a safetensors header
    specials: tuple = ("infinity", "nan")  # ("nan",): the code of all ones is NaN, the one before it a number
    scale: bool = False  # powers of two alone: no sign, no zero, no subnormals

    @property
    def largest(self):
        """The largest finite value, as a Python float."""
        unit = 2.0 ** (1 - self.precision)
        below_two = 2 * unit if self.specials == ("nan",) and not self.scale else unit  # NaN takes the last place
        return (2.0 - below_two) * 2.0**self.emax

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
        Format("E5M2", 3, -14, 15, np.uint8, np.float32, "F8_E5M2"),
        Format("E4M3", 4, -6, 8, np.uint8, np.float32, "F8_E4M3", ("nan",)),
        Format("E3M2", 3, -2, 4, np.uint8, np.float32, "F6_E3M2", ()),
        Format("E2M3", 4, 0, 2, np.uint8, np.float32, "F6_E2M3", ()),
        Format("E2M1", 2, 0, 2, np.uint8, np.float32, "F4", ()),
        Format("E8M0", 1, -127, 127, np.uint8, np.float32, "F8_E8M0", ("nan",), scale=True),
    )
}


# --- rounding ---------------------------------------------------------------------------------------------------------


def round_to(value, name, overflow="infinity"):
    """round(value) to the format, from float64 and directly: never through another format.   Spec 6.2

    value float64, any shape -> carrier, same shape. Every NaN becomes the one canonical NaN. Beyond the largest finite
    value, infinities included, the result is an infinity, the largest value ("saturate") or NaN ("nan"). E8M0 takes
    what is below its least value to that value, and what is not positive to NaN.
    Raises ValueError when the format lacks what `overflow` names, or has no NaN and one comes.
    """
    row = _row(name, overflow)
    value = np.asarray(value, np.float64)
    if "nan" not in row.specials and np.isnan(value).any():
        raise ValueError(f"round_to: expected numbers, since {name} has no NaN, got NaN; remove it first")
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        out = _nearest(value, row)
        if row.codes in (np.uint8, np.uint16) or overflow != "infinity":
            out = np.where(np.abs(out) > row.largest, np.copysign(_beyond(row, overflow), value), out)
        return canonical_nan(out.astype(row.carrier, copy=False))


def _row(name, overflow):
    row = FORMATS[name]
    if overflow != "saturate" and overflow not in row.specials:
        able = ", ".join(("saturate", *row.specials))
        raise ValueError(f"overflow: expected one of {able} for {name}, got {overflow!r}; name what it can do")
    return row


def _beyond(row, overflow):
    return {"infinity": inf, "saturate": row.largest, "nan": nan}[overflow]


def _nearest(value, row):
    """The nearest multiple of the value's quantum, the exponent unbounded above in narrow formats."""
    if row.codes not in (np.uint8, np.uint16):
        return value.astype(row.carrier)
    # Adding and subtracting 1.5 * 2^52 quanta would round too, but not for every exponent at once; rint of the value
    # in units of its own quantum does, and both scalings are exact.
    exponent = np.maximum(np.frexp(value)[1] - 1, row.emin)
    quantum = exponent - (row.precision - 1)
    rounded = np.ldexp(np.rint(np.ldexp(value, -quantum)), quantum)
    return np.where(value > 0, np.maximum(rounded, 2.0**row.emin), nan) if row.scale else rounded


def canonical_nan(array):
    """Every NaN replaced by the positive quiet one, so that equal results have equal bytes."""
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
        return -0.0 if negative_zero else 0.0
    magnitude = abs(value)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if Fraction(2) ** exponent > magnitude:
        exponent -= 1
    quantum = Fraction(2) ** (max(exponent, row.emin) - row.precision + 1)
    magnitude = round(magnitude / quantum) * quantum  # round() of a Fraction is half to even
    if row.scale:
        magnitude = max(magnitude, Fraction(2) ** row.emin)
    result = _beyond(row, overflow) if magnitude > Fraction(row.largest) else float(magnitude)
    return -result if value < 0 and result == result else result


_BLOCK = 1 << 16  # elements looked at together: the temporaries stay in cache


def is_representable(array, name):
    """True if every element of the carrier is a value of the format (NaN and infinities where it has them)."""
    row, flat = FORMATS[name], np.asarray(array).reshape(-1)
    held = {"bf16": _is_bf16, "fp16": _is_fp16}.get(name) if flat.dtype == np.float32 else None
    held = held or (lambda values: _is_value(values, row))
    return all(held(flat[at : at + _BLOCK]) for at in range(0, len(flat), _BLOCK))


def _is_bf16(values):
    """The upper half of a float32: the lower one is clear, except in a NaN."""
    extra = np.ascontiguousarray(values).view(np.uint32) & np.uint32(0xFFFF) != 0
    return not extra.any() or bool(np.isnan(values[extra]).all())


def _is_fp16(values):
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        same = values.astype(np.float16).astype(np.float32) == values
    return bool((same | np.isnan(values)).all())


def _is_value(values, row):
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        nearest = _nearest(values.astype(np.float64, copy=False), row)
    same = (nearest == values) & ((np.abs(values) <= row.largest) | ("infinity" in row.specials) & np.isinf(values))
    return bool(np.all(same | np.isnan(values) if "nan" in row.specials else same))


# --- codes ------------------------------------------------------------------------------------------------------------


def encode(carrier, name):
    """carrier -> codes, the bit patterns as unsigned integers. Values must be representable: nothing is rounded.

    Formats of 8 bits and less raise ValueError for a value that is not, and know one NaN.
    """
    row = FORMATS[name]
    carrier = np.ascontiguousarray(carrier, dtype=row.carrier)
    if name == "bf16":
        return (carrier.view(np.uint32) >> 16).astype(np.uint16)
    if name == "fp16":
        return carrier.astype(np.float16).view(np.uint16)
    return _encode_small(carrier, row) if row.codes is np.uint8 else carrier.view(row.codes)


def decode(codes, name):
    """codes -> carrier; the inverse of `encode`, for every code point."""
    row = FORMATS[name]
    codes = np.ascontiguousarray(codes, dtype=row.codes)
    if name == "bf16":
        return (codes.astype(np.uint32) << 16).view(np.float32)
    if name == "fp16":
        return codes.view(np.float16).astype(np.float32)
    return _values(name)[codes] if row.codes is np.uint8 else codes.view(row.carrier)


def _encode_small(carrier, row):
    values = _values(row.name)
    rising = values[: len(values) if row.scale else len(values) // 2]  # the codes of positive numbers are in order
    rising = rising[~np.isnan(rising)]
    code = np.searchsorted(rising, np.abs(carrier))
    known = rising[np.minimum(code, len(rising) - 1)] == (carrier if row.scale else np.abs(carrier))
    none = np.isnan(carrier) & ("nan" in row.specials)
    require((known | none).all(), ValueError, "carrier", f"values of {row.name}", "others", "round them with round_to")
    code = np.where(np.signbit(carrier) & (not row.scale), code + len(values) // 2, code)
    return np.where(none, len(rising) + ("infinity" in row.specials), code).astype(np.uint8)


@cache
def _values(name):
    """The value of every code of a format of at most 8 bits, in the order of the codes."""
    row = FORMATS[name]
    hidden = 1 << (row.precision - 1)
    if row.scale:
        values = [2.0 ** (row.emin + field) for field in range(row.emax - row.emin + 1)] + [nan]
    else:
        fields = row.emax - row.emin + 2 + ("infinity" in row.specials)  # 0 is that of zero and the subnormals
        pairs = [divmod(code, hidden) for code in range(fields * hidden)]
        values = [(f + hidden * (e > 0)) * 2.0 ** (max(e, 1) - 1 + row.quantum) for e, f in pairs]
        values = [v if v <= row.largest else inf if v == 2.0 ** (row.emax + 1) else nan for v in values]
        values += [copysign(v, -1.0) for v in values]
    out = canonical_nan(np.array(values, np.float32))
    out.flags.writeable = False
    return out


def pack_nibbles(codes):
    """(..., K) codes of 4 bits -> (..., K / 2) bytes, the even one of each pair in the low nibble. K must be even."""
    codes = np.asarray(codes, np.uint8)
    require(codes.shape[-1] % 2 == 0, ValueError, "codes", "an even last axis", codes.shape, "pad it with a zero code")
    return codes[..., 0::2] | codes[..., 1::2] << 4


def unpack_nibbles(packed):
    """(..., K / 2) bytes -> (..., K) codes of 4 bits; the inverse of `pack_nibbles`."""
    packed = np.asarray(packed, np.uint8)
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)


# --- weights at their stored width ------------------------------------------------------------------------------------

SCALES = {1: "E8M0", 2: "bf16", 4: "float32"}  # bytes of a scale's code -> its format


@dataclass(frozen=True, eq=False)
class Packed:
    """w[e, m, k] = value(codes[e, m, k]) * scales[e, m // rows, k // columns], exactly.   Spec 6.2

    codes: (E, M, K) array, or a sequence of E (M, K) arrays, such as views of a memory map; codes of E2M1 stand two in
    a byte, the even one in the low nibble, so theirs are (M, K / 2). scales: (ceil(M / rows), ceil(K / columns)) an
    expert, for blocks (rows, columns): float32 values, or codes, of E8M0, bf16 and float32 as unsigned integers of 1,
    2 and 4 bytes; None for a format that needs none. A call w(e) gives what enters a contraction: the exact products,
    as an array of type `dtype`.
    Raises ValueError for shapes that do not fit each other.
    """

    codes: object
    format: str
    scales: object = None
    block: tuple | None = None

    def __post_init__(self):
        narrow = ", ".join(name for name in FORMATS if name != "float64")
        require(self.format in narrow.split(", "), ValueError, "format", narrow, repr(self.format), "choose one")
        wanted, scales = "codes of experts, and scales for each with a block, or neither", self.scales
        ok = len(self.codes) > 0 and (scales is None) == (self.block is None)
        ok = ok and (scales is None or len(scales) == len(self.codes))
        require(ok, ValueError, "Packed", wanted, "others", "complete them")

    @property
    def shape(self):
        rows, columns = self.codes.shape[1:] if hasattr(self.codes, "shape") else self.codes[0].shape
        return len(self.codes), rows, columns * 2 if self.format == "E2M1" else columns

    @property
    def dtype(self):
        """float32 where it holds every product: a code alone, or times a power of two; else float64."""
        powers = self.scales is None or self.scales[0].dtype == np.uint8
        return np.dtype(FORMATS[self.format].carrier if powers else np.float64)

    ndim = 3

    def __len__(self):
        return len(self.codes)

    def __call__(self, e):
        """Expert e's exact products (M, K), aligned and in C order. Raises ValueError if `dtype` cannot hold one."""
        if self.scales is None:
            return np.require(self._decoded(e), requirements=("C", "A"))
        exact = self.exact(e)
        if self.dtype == np.float64:
            return exact
        fix = "use exact(e), which is float64"
        fits = is_representable(exact, "float32")
        require(fits, ValueError, f"expert {e}", "products that float32 can represent", "a larger one", fix)
        return exact.astype(np.float32)

    weights = __getitem__ = __call__

    def exact(self, e):
        """Expert e's products as float64, which holds each: at most 24 bits times 24."""
        values = self._decoded(e).astype(np.float64)
        if self.scales is None:
            return values
        scale, (rows, columns) = self.scales[e], self.block
        wanted = -(-values.shape[0] // rows), -(-values.shape[1] // columns)
        require(scale.shape == wanted, ValueError, f"scales of expert {e}", wanted, scale.shape, "check the block")
        scale = decode(scale, SCALES[scale.dtype.itemsize]) if scale.dtype.kind == "u" else scale
        wide = np.repeat(np.repeat(scale.astype(np.float64), rows, axis=0), columns, axis=1)
        with np.errstate(invalid="ignore"):
            values *= wide[: values.shape[0], : values.shape[1]]
        return canonical_nan(values)

    def rounded(self, e, name="float32"):
        """Expert e's products, each rounded once to the format `name`: what a bundle shows, and no stage reads."""
        return round_to(self.exact(e), name)

    def _decoded(self, e):
        codes = self.codes[e]
        return decode(unpack_nibbles(codes) if self.format == "E2M1" else codes, self.format)
