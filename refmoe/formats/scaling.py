"""Block scaling as data: which codes, which blocks, which scales; from values to codes and back.   Spec 6.2.1

A scheme is a row of one table. How the scale of a block follows from its greatest magnitude is a rule with a name, and
where a scheme knows several the caller chooses: no default is hidden here.
"""

from typing import NamedTuple

import numpy as np

from ..refusals import require, require_instance, shown
from .codes import encode, pack_nibbles
from .packed import NIBBLES, Packed, spread
from .rounding import round_to
from .table import FORMATS, format_row


class Scheme(NamedTuple):
    """How weights stand as codes and scales."""

    name: str
    format: str  # of the codes
    block: tuple  # rows and columns that share a scale; the columns are contracted
    scale: str  # format of the scales
    rules: tuple  # rows of SCALE_RULES to choose from
    tensor_scale: bool = False  # a float32 scale more for the whole tensor (of an expert)


_BAND = 1 << 16  # elements brought to codes together: the temporaries stay in cache
POWERS = ("floor", "up", "even")
SCHEMES = {
    row.name: row
    for row in (
        Scheme("fp8-block", "E4M3", (128, 128), "float32", ("amax",)),  # DeepSeek-V3's weights
        Scheme("fp8-rows", "E4M3", (1, 128), "float32", ("amax",)),  # DeepSeek-V3's activations
        Scheme("mxfp8-e4m3", "E4M3", (1, 32), "E8M0", POWERS),
        Scheme("mxfp8-e5m2", "E5M2", (1, 32), "E8M0", POWERS),
        Scheme("mxfp6-e3m2", "E3M2", (1, 32), "E8M0", POWERS),
        Scheme("mxfp6-e2m3", "E2M3", (1, 32), "E8M0", POWERS),
        Scheme("mxfp4", "E2M1", (1, 32), "E8M0", POWERS),
        Scheme("nvfp4", "E2M1", (1, 16), "E4M3", ("amax",), tensor_scale=True),
        Scheme("int8", "int8", (1, 128), "float32", ("amax",)),
        Scheme("int4", "int4", (1, 128), "float32", ("amax",)),
    )
}


def quantise(values, scheme, rule=None, block=None):
    """codes = round(values / scale) by the scheme and rule of these names, as `Packed`.   Spec 6.2.1

    values (E, M, K) float32, finite; activations (T, D) go in as (1, T, D). rule: one of the scheme's, which may be
    left out where there is one only. block: (rows, columns) in place of the scheme's.
    Raises ValueError or TypeError for what is not so.
    """
    row, rule = scheme_and_rule(scheme, rule)
    block = _block(row, block)
    _require_values(values)
    parts = [_expert(part.astype(np.float64), row, rule, block) for part in values]
    codes, scales, tensor = (np.stack(column) for column in zip(*parts, strict=True))
    columns = values.shape[2] if row.format in NIBBLES and values.shape[2] % 2 else None
    return Packed(codes, row.format, scales, block, row.scale, tensor if row.tensor_scale else None, columns)


def dequantise(packed, name="float32"):
    """The exact products of codes and scales, each rounded once to the format `name`: (E, M, K).   Spec 6.2.1"""
    require_instance("packed", packed, Packed, "make it with quantise")
    format_row(name)
    return np.stack([packed.rounded(e, name) for e in range(len(packed))])


# --- scales -----------------------------------------------------------------------------------------------------------


def _amax(amax, row, factor):
    """amax / (largest code * factor), rounded once to the format of the scales, and never zero."""
    least = 2.0 ** FORMATS[row.scale].quantum
    return np.maximum(round_to(amax / (FORMATS[row.format].largest * factor), row.scale, "saturate"), least)


def _floor(amax, row, factor):
    """2^(floor(log2 amax) - emax): the exponents of the greatest value and of the largest code meet."""
    return _power(np.frexp(amax)[1] - 1 - FORMATS[row.format].emax, amax)


def _up(amax, row, factor):
    """The least power of two with amax / scale <= the largest code: nothing saturates."""
    (fraction, exponent), (most, above) = np.frexp(amax), np.frexp(FORMATS[row.format].largest)
    return _power(exponent - above + (fraction > most), amax)


def _even(amax, row, factor):
    """As floor, of amax rounded to the significant bits of the codes, ties to even."""
    fraction, exponent = np.frexp(amax)
    carried = np.rint(np.ldexp(fraction, FORMATS[row.format].precision)) == 2.0 ** FORMATS[row.format].precision
    return _power(exponent - 1 + carried - FORMATS[row.format].emax, amax)


def _power(exponent, amax):
    """2^exponent within the range of E8M0; of a block of zeros its least value."""
    low, high = FORMATS["E8M0"].emin, FORMATS["E8M0"].emax
    return np.ldexp(1.0, np.where(amax == 0, low, np.clip(exponent, low, high)))


SCALE_RULES = {"amax": _amax, "floor": _floor, "up": _up, "even": _even}


# --- an expert --------------------------------------------------------------------------------------------------------


def _expert(values, row, rule, block):
    """(codes, scales as they are kept, scale of the tensor) of one (M, K) matrix in float64."""
    amax, tensor = _block_amax(values, block), np.float32(1)
    if row.tensor_scale:
        tensor = _amax(amax.max(initial=0), row._replace(scale="float32"), FORMATS[row.scale].largest)[()]
    scales = SCALE_RULES[rule](amax, row, float(tensor)).astype(np.float32)
    step = block[0] * max(1, _BAND // (block[0] * max(1, values.shape[1])))
    bands = [(values[at : at + step], scales[at // block[0] :]) for at in range(0, max(1, len(values)), step)]
    codes = np.concatenate([_codes(part, own, float(tensor), row, block) for part, own in bands])
    return codes, scales if row.scale == "float32" else encode(scales, row.scale), tensor


def _codes(values, scales, tensor, row, block):
    """The codes of some rows of blocks. Both operands have few bits: no float64 quotient falls on a tie by rounding."""
    with np.errstate(under="ignore"):
        quotients = values / (spread(scales.astype(np.float64), block, values.shape) * tensor)
    largest = FORMATS[row.format].largest
    codes = encode(round_to(np.clip(quotients, -largest, largest), row.format, "saturate"), row.format)
    return pack_nibbles(np.pad(codes, ((0, 0), (0, codes.shape[1] % 2)))) if row.format in NIBBLES else codes


def _block_amax(values, block):
    """The greatest magnitude of each block."""
    counts = [-(-size // step) for size, step in zip(values.shape, block, strict=True)]
    padded = np.zeros([count * step for count, step in zip(counts, block, strict=True)])
    padded[: values.shape[0], : values.shape[1]] = np.abs(values)
    return padded.reshape(counts[0], block[0], counts[1], block[1]).max(axis=(1, 3))


# --- refusals ---------------------------------------------------------------------------------------------------------


def scheme_and_rule(scheme, rule=None):
    """(row of SCHEMES, name of its rule) that the names stand for.   Spec 6.2.1

    Raises ValueError for a name that is not there, and for None where there are several rules.
    """
    ok = isinstance(scheme, str) and scheme in SCHEMES
    require(ok, ValueError, "scheme", f"one of {', '.join(SCHEMES)}", shown(scheme), "choose one")
    row = SCHEMES[scheme]
    rule = row.rules[0] if rule is None and len(row.rules) == 1 else rule
    ok = isinstance(rule, str) and rule in row.rules
    require(ok, ValueError, "rule", f"one of {', '.join(row.rules)} for {scheme}", shown(rule), "name it")
    return row, rule


def _block(row, block):
    block = row.block if block is None else tuple(block)
    whole = len(block) == 2 and all(type(size) is int and size > 0 for size in block)
    require(whole, ValueError, "block", "two sizes, rows and columns", repr(block), "give two whole numbers above zero")
    return block


def _require_values(values):
    is_array = isinstance(values, np.ndarray) and values.dtype == np.float32
    got = getattr(values, "dtype", type(values).__name__)
    require(is_array, TypeError, "values", "a float32 array", got, "use .astype(numpy.float32)")
    fix = "one matrix goes in as values[None]"
    require(values.ndim == 3 and len(values) > 0, ValueError, "values", "shape (E, M, K)", values.shape, fix)
    fix = "replace infinities and NaN first"
    require(np.isfinite(values).all(), ValueError, "values", "finite numbers", "others", fix)
