"""Weights held at their stored width: codes and scales, read as the exact products they stand for.   Spec 6.2"""

from dataclasses import dataclass, replace

import numpy as np

from ..refusals import require
from .codes import decode, unpack_nibbles
from .rounding import canonical_nan, is_representable, round_to
from .table import FORMATS

SCALES = {1: "E8M0", 2: "bf16", 4: "float32"}  # bytes of a scale's code -> its format, unless it is named
NIBBLES = ("E2M1", "int4")  # formats of four bits: their codes stand two in a byte, the even one in the low nibble

SCALE_FORMATS = ("float32", "bf16", "fp16", "E4M3", "E8M0")


def spread(scales, block, shape):
    """Each scale at every element of its block of (rows, columns); the last blocks may be cut off."""
    rows, columns = block
    return np.repeat(np.repeat(scales, rows, axis=0), columns, axis=1)[: shape[0], : shape[1]]


@dataclass(frozen=True, eq=False)
class Packed:
    """w[e, m, k] = value(codes[e, m, k]) * scales[e, m // rows, k // columns] * tensor_scales[e], exactly.   Spec 6.2

    codes: (E, M, K) array, or a sequence of E (M, K) arrays, such as views of a memory map; codes of four bits stand
    two in a byte, the even one in the low nibble, so theirs are (M, K / 2). scales: (ceil(M / rows), ceil(K / columns))
    an expert, for blocks (rows, columns): float32 values, or codes, of `scale_format`, which by itself is E8M0, bf16 or
    float32 for unsigned integers of 1, 2 or 4 bytes; None for a format that needs none. tensor_scales: (E,) float32
    values, or None. columns: K where it is odd, and the last nibble of a row therefore empty. A call w(e) gives what
    enters a contraction: the exact products, as an array of type `dtype`.
    Raises ValueError for shapes that do not fit each other.
    """

    codes: object
    format: str
    scales: object = None
    block: tuple | None = None
    scale_format: str | None = None
    tensor_scales: object = None
    columns: int | None = None

    def __post_init__(self):
        narrow = ", ".join(name for name in FORMATS if name != "float64")
        require(self.format in narrow.split(", "), ValueError, "format", narrow, repr(self.format), "choose one")
        wanted, scales = "codes of experts, and scales for each with a block, or neither", self.scales
        require(hasattr(self.codes, "__len__"), TypeError, "codes", "an array", type(self.codes).__name__, "pass codes")
        ok = len(self.codes) > 0 and (scales is None) == (self.block is None)
        ok = ok and (scales is None or len(scales) == len(self.codes))
        require(ok, ValueError, "Packed", wanted, "others", "complete them")
        fits, wanted = self.scale_format in (None, *SCALE_FORMATS), f"None or one of {', '.join(SCALE_FORMATS)}"
        require(fits, ValueError, "scale_format", wanted, repr(self.scale_format), "choose one")
        self._check_codes()
        bytes_of_a_row = (self.codes if hasattr(self.codes, "shape") else self.codes[0]).shape[-1]
        ok = self.columns is None or (self.format in NIBBLES and self.columns == 2 * bytes_of_a_row - 1)
        wanted = f"None, or {2 * bytes_of_a_row - 1} for codes two in a byte"
        require(ok, ValueError, "columns", wanted, self.columns, "leave it out where the last byte is full")
        ok = self.tensor_scales is None or (scales is not None and np.shape(self.tensor_scales) == (len(self.codes),))
        ok = ok and getattr(self.tensor_scales, "dtype", np.float32) == np.float32
        require(ok, ValueError, "tensor_scales", "a float32 for each expert, beside scales", "others", "correct them")

    def _check_codes(self):
        """Bit patterns, not values: what is read as either must say which it is."""
        parts, fix = self.codes, "encode the values, or view them as such"
        for codes in [parts] if hasattr(parts, "shape") else parts:
            got = getattr(codes, "dtype", None)
            ok = getattr(got, "kind", "") == "u"
            require(ok, TypeError, "codes", "unsigned integers", got or type(codes).__name__, fix)

    @property
    def shape(self):
        rows, columns = self.codes.shape[1:] if hasattr(self.codes, "shape") else self.codes[0].shape
        columns = columns * 2 if self.format in NIBBLES else columns
        return len(self.codes), rows, columns if self.columns is None else self.columns

    @property
    def blocks(self):
        """The shape of the scales: (E, rows of blocks, columns of blocks)."""
        E, M, K = self.shape
        return E, -(-M // self.block[0]), -(-K // self.block[1])

    @property
    def kind_of_scales(self):
        """The format that the scales stand in; float32 where they are numbers."""
        dtype = self.scales[0].dtype
        return "float32" if dtype.kind == "f" else self.scale_format or SCALES[dtype.itemsize]

    @property
    def dtype(self):
        """float32 where it holds every product: a code alone, or times a power of two; else float64."""
        powers = self.scales is None or (self.scales[0].dtype == np.uint8 and self.scale_format in (None, "E8M0"))
        return np.dtype(FORMATS[self.format].carrier if powers and self.tensor_scales is None else np.float64)

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

    def one(self, e):
        """Expert e alone, as `Packed`: what is read of it, and nothing of the others."""
        codes, scales, tensor = (
            None if part is None else np.asarray(part[e])[None]
            for part in (self.codes, self.scales, self.tensor_scales)
        )
        return replace(self, codes=codes, scales=scales, tensor_scales=tensor)

    def exact(self, e):
        """Expert e's products as float64, which holds each: at most 24 bits times 24, or 30 and one factor more."""
        values = self._decoded(e).astype(np.float64)
        if self.scales is None:
            return values
        scale, (rows, columns) = self.scales[e], self.block
        wanted = -(-values.shape[0] // rows), -(-values.shape[1] // columns)
        require(scale.shape == wanted, ValueError, f"scales of expert {e}", wanted, scale.shape, "check the block")
        if scale.dtype.kind == "u":
            scale = decode(scale, self.kind_of_scales)
        with np.errstate(invalid="ignore"):
            values *= spread(scale.astype(np.float64), self.block, values.shape)
            values *= 1.0 if self.tensor_scales is None else float(self.tensor_scales[e])
        return canonical_nan(values)

    def rounded(self, e, name="float32"):
        """Expert e's products, each rounded once to the format `name`: what a bundle shows, and no stage reads."""
        return round_to(self.exact(e), name)

    def _decoded(self, e):
        codes = self.codes[e]
        codes = unpack_nibbles(codes)[..., : self.columns] if self.format in NIBBLES else codes
        return decode(codes, self.format)
