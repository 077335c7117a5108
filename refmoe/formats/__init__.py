"""Number formats as rows of one table: round, encode, decode; weights held at their stored width.   Spec 6.2

A stored tensor of a narrow format is a *carrier*: a float32 array whose every value the format can represent.
Codes (the bits as unsigned integers) exist only in bundles, at the C seam and in `Packed`. Every conversion rounds to
nearest, ties to even, with subnormals; what happens beyond the largest value is named by the operation.
"""

from .codes import decode, encode, pack_nibbles, unpack_nibbles
from .packed import NIBBLES, SCALE_FORMATS, SCALES, Packed
from .rounding import canonical_nan, is_representable, round_fraction, round_to
from .scaling import SCALE_RULES, SCHEMES, Scheme, dequantise, quantise, scheme_and_rule
from .table import FORMATS, Format

__all__ = [
    "FORMATS",
    "NIBBLES",
    "SCALES",
    "SCALE_FORMATS",
    "SCALE_RULES",
    "SCHEMES",
    "Format",
    "Packed",
    "Scheme",
    "canonical_nan",
    "decode",
    "dequantise",
    "encode",
    "is_representable",
    "pack_nibbles",
    "quantise",
    "round_fraction",
    "round_to",
    "scheme_and_rule",
    "unpack_nibbles",
]
