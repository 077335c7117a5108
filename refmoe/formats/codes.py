"""Codes: the bit patterns of values, and two of four bits in a byte.   Spec 6.2"""

from functools import cache
from math import copysign, inf, nan

import numpy as np

from ..refusals import require, shown
from .rounding import canonical_nan, is_representable
from .table import format_row


def encode(carrier, name):
    """carrier -> codes, the bit patterns as unsigned integers. Values must be representable: nothing is rounded.

    Formats of 8 bits and less raise ValueError for a value that is not, and know one NaN.
    """
    row = format_row(name)
    carrier = np.ascontiguousarray(carrier, dtype=row.carrier)
    if name == "bf16":
        return (carrier.view(np.uint32) >> 16).astype(np.uint16)
    if name == "fp16":
        return carrier.astype(np.float16).view(np.uint16)
    return _encode_small(carrier, row) if row.codes is np.uint8 else carrier.view(row.codes)


def decode(codes, name):
    """codes -> carrier; the inverse of `encode`, for every code point.

    Raises ValueError for a code with more bits than the format has.
    """
    row = format_row(name)
    codes = np.ascontiguousarray(codes, dtype=row.codes)
    if name == "bf16":
        return (codes.astype(np.uint32) << 16).view(np.float32)
    if name == "fp16":
        return codes.view(np.float16).astype(np.float32)
    if row.codes is not np.uint8:
        return codes.view(row.carrier)
    values = _values(name)
    wanted, fix = f"codes below {len(values)} for {name}", "unpack them (unpack_nibbles) or clear the upper bits"
    require(codes.max(initial=0) < len(values), ValueError, "codes", wanted, codes.max(initial=0), fix)
    return values[codes]


def _encode_small(carrier, row):
    values = _values(row.name)
    if row.integer:
        known = is_representable(carrier, row.name)
        require(known, ValueError, "carrier", f"values of {row.name}", "others", "round them with round_to")
        return (carrier.astype(np.int64) & (len(values) - 1)).astype(np.uint8)
    half = len(values) if row.scale else len(values) // 2
    code = np.minimum(_magnitude_code(np.abs(carrier), row), half - 1)
    code += np.signbit(carrier) * np.int32(0 if row.scale else half)
    none = np.isnan(carrier) & ("nan" in row.specials)
    known = (values[np.minimum(code, len(values) - 1)] == carrier) | none
    require(known.all(), ValueError, "carrier", f"values of {row.name}", "others", "round them with round_to")
    quiet = np.count_nonzero(~np.isnan(values[:half])) + ("infinity" in row.specials)
    return np.where(none, quiet, code).astype(np.uint8)


def _magnitude_code(magnitude, row):
    """The code of each value of the format, from the fields of its float32; of what is no value, some number >= 0."""
    magnitude = np.where(np.isinf(magnitude), np.float32(2.0 ** min(row.emax + 1, 127)), magnitude)
    fields = (magnitude.view(np.uint32) >> np.uint32(24 - row.precision)).astype(np.int32)
    if row.scale:
        return fields
    small = magnitude < 2.0**row.emin
    steps = np.where(small, magnitude, np.float32(0)) * np.float32(2.0**-row.quantum)
    return np.where(small, steps.astype(np.int32), fields - ((row.emin + 126) << (row.precision - 1)))


@cache
def _values(name):
    """The value of every code of a format of at most 8 bits, in the order of the codes."""
    row = format_row(name)
    hidden = 1 << (row.precision - 1)
    if row.integer:
        values = [*range(int(row.largest) + 1), *range(int(row.lowest), 0)]
    elif row.scale:
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
    codes = _as_bytes("codes", codes)
    ok, fix = codes.max(initial=0) < 16, "clear the upper bits"
    require(ok, ValueError, "codes", "codes of 4 bits", codes.max(initial=0), fix)
    require(codes.shape[-1] % 2 == 0, ValueError, "codes", "an even last axis", codes.shape, "pad it with a zero code")
    return codes[..., 0::2] | codes[..., 1::2] << 4


def _as_bytes(argument, values):
    """An array of bytes; what is no byte would be cut down to one."""
    array = np.asarray(values)
    ok = array.dtype == np.uint8 or (array.dtype.kind in "iu" and bool(((array >= 0) & (array < 256)).all()))
    require(ok and array.ndim > 0, TypeError, argument, "an array of bytes", shown(values), "use .astype(numpy.uint8)")
    return array.astype(np.uint8, copy=False)


def unpack_nibbles(packed):
    """(..., K / 2) bytes -> (..., K) codes of 4 bits; the inverse of `pack_nibbles`."""
    packed = _as_bytes("packed", packed)
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
