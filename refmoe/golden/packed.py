"""Weights of a checkpoint in a bundle: codes and scales as they were found, an expert at a time.   Spec 7.11

The tensor NAME holds the codes, NAME.scales the scales, NAME.tensor_scales those of whole experts, if there are any;
the row of `inputs` says the format and the block that shares a scale. They enter contractions as exact products (6.2);
a layer larger than memory passes through expert by expert.
"""

import numpy as np

from ..formats import FORMATS, NIBBLES, SCALE_FORMATS, SCALES, Packed
from ..safetensors import DTYPES

SOURCE = "packed"
SCALE_TYPES = {FORMATS[name].safetensors: name for name in SCALE_FORMATS}


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
    row = {"source": SOURCE, "format": packed.format, "block": list(packed.block) if packed.block else None}
    row |= {} if packed.tensor_scales is None else {"tensor_scales": True}
    return row if packed.columns is None else row | {"columns": packed.columns}


def codes_type(name):
    """The safetensors type of a format's codes; those of four bits stand two in a byte, those of six one."""
    return "U8" if name in (*NIBBLES, "E3M2", "E2M3") else FORMATS[name].safetensors


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
    dtype = FORMATS[packed.scale_format or SCALES[scales.dtype.itemsize]].safetensors
    return dtype, np.ascontiguousarray(scales).view(DTYPES[dtype])


def stored_parts(name, packed):
    """name -> (safetensors type, elements) of all that a bundle holds of the weights `name`."""
    scales, tensor = stored_scales(packed), packed.tensor_scales
    beside = {} if scales is None else {f"{name}.scales": scales}
    beside |= {} if tensor is None else {f"{name}.tensor_scales": ("F32", tensor.astype(DTYPES["F32"], copy=False))}
    return {name: stored_codes(packed), **beside}


def read_packed(reader, name, row):
    """The weights NAME of a bundle. Raises ValueError or LookupError for a row or a tensor that is not theirs."""
    dtype, block = codes_type(row["format"]), row["block"]
    _require_type(reader, name, dtype)
    if block is None:
        return Packed(_codes(reader, name), row["format"], columns=row.get("columns"))
    scales = f"{name}.scales"
    kind = SCALE_TYPES[_require_type(reader, scales, *SCALE_TYPES)]
    if len(block) != 2 or not all(type(size) is int and size > 0 for size in block):
        raise ValueError(f"{name}: expected a block of two sizes, got {block!r}")
    codes, tensor = reader.codes(scales), None
    if row.get("tensor_scales"):
        _require_type(reader, f"{name}.tensor_scales", "F32")
        tensor = reader.codes(f"{name}.tensor_scales")
    unsigned = codes.view(f"<u{codes.dtype.itemsize}")
    return Packed(_codes(reader, name), row["format"], unsigned, tuple(block), kind, tensor, row.get("columns"))


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
    return got
