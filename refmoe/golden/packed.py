"""Weights of a checkpoint in a bundle: codes and scales as they were found, an expert at a time.   Spec 7.11

The tensor NAME holds the codes, NAME.scales the scales, the row of `inputs` the format and the block that shares a
scale. They enter contractions as exact products (6.2); a layer larger than memory passes through expert by expert.
"""

import numpy as np

from ..formats import FORMATS, SCALES, Packed
from ..safetensors import DTYPES

SOURCE = "packed"


class Experts:
    """A tensor an expert at a time: `shape`, `dtype` of its elements, and part(e) for each along the first axis."""

    def __init__(self, shape, dtype, part):
        self.shape, self.dtype, self._part = tuple(shape), dtype, part

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, e):
        return self._part(e)

    def __iter__(self):
        return map(self._part, range(len(self)))


def packed_row(packed):
    """The row of `inputs` that says how the tensor is to be read."""
    return {"source": SOURCE, "format": packed.format, "block": list(packed.block) if packed.block else None}


def codes_type(name):
    """The safetensors type of a format's codes; those of four bits stand two in a byte."""
    return "U8" if name == "E2M1" else FORMATS[name].safetensors


def stored_codes(packed):
    """(safetensors type, the codes by expert) as a bundle holds them."""
    dtype = codes_type(packed.format)
    element = DTYPES[dtype]
    shape = len(packed.codes), *packed.codes[0].shape
    return dtype, Experts(shape, element, lambda e: np.ascontiguousarray(packed.codes[e]).view(element))


def stored_scales(packed):
    """(safetensors type, (E, ..) array) of the scales, or None."""
    if packed.scales is None:
        return None
    scales = np.stack(list(packed.scales))
    dtype = FORMATS[SCALES[scales.dtype.itemsize]].safetensors
    return dtype, np.ascontiguousarray(scales).view(DTYPES[dtype])


def read_packed(reader, name, row):
    """The weights NAME of a bundle. Raises ValueError or LookupError for a row or a tensor that is not theirs."""
    dtype, block = codes_type(row["format"]), row["block"]
    _require_type(reader, name, dtype)
    if block is None:
        return Packed(_codes(reader, name), row["format"])
    scales = f"{name}.scales"
    kinds = {FORMATS[kind].safetensors: size for size, kind in SCALES.items()}
    _require_type(reader, scales, *kinds)
    if len(block) != 2 or not all(type(size) is int and size > 0 for size in block):
        raise ValueError(f"{name}: expected a block of two sizes, got {block!r}")
    codes = reader.codes(scales)
    return Packed(_codes(reader, name), row["format"], codes.view(f"<u{codes.dtype.itemsize}"), tuple(block))


def _codes(reader, name):
    """The codes as unsigned integers, each expert read when it is asked for."""
    entry = reader.entry(name)
    if len(entry.shape) != 3:
        raise ValueError(f"{name}: expected codes of experts, (E, M, K), got shape {entry.shape}")
    unsigned = np.dtype(f"<u{DTYPES[entry.dtype].itemsize}")
    return Experts(entry.shape, unsigned, lambda e: reader.codes(name, e).view(unsigned))


def _require_type(reader, name, *dtypes):
    got = reader.entry(name).dtype
    if got not in dtypes:
        raise ValueError(f"{name}: expected type {' or '.join(dtypes)}, got {got}")
