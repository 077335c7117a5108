"""Tensors at their declared places -> parameters in the layout of the house: experts first, contracted axis last."""

import numpy as np

from ...formats import FORMATS, SCALES, Packed, decode

FLOATS = {FORMATS[name].safetensors: name for name in ("float32", "bf16", "fp16")}
EIGHT_BITS = {FORMATS[name].safetensors: name for name in ("E4M3", "E5M2")}
SCALE_TYPES = tuple(FORMATS[name].safetensors for name in SCALES.values())
MXFP4_BLOCK = 32  # codes of E2M1 that share a scale
ONE_HALF = ("first", "second", "even", "odd")  # parts of a tensor that joins gate and up


def tensor_names(place, experts):
    """The names, relative to the root, of the tensors of a parameter."""
    return [place.name.format(e=e) for e in range(experts if "{e}" in place.name else 1)]


def carrier(tensor, shape):
    """A tensor of floats as its float32 carrier.

    Raises ValueError for a shape that config.json contradicts, or a type that is not F32, BF16 or F16.
    """
    if tensor.dtype not in FLOATS:
        raise _wrong(tensor, f"type {' or '.join(FLOATS)}", tensor.dtype)
    _require_shape(tensor, shape)
    return np.require(decode(tensor.codes, FLOATS[tensor.dtype]), requirements=("C", "A"))


def identifiers(tensor, shape):
    """A table of expert ids as int64. Raises ValueError for a shape that config.json contradicts, or another type."""
    if tensor.dtype not in ("I32", "I64"):
        raise _wrong(tensor, "type I32 or I64", tensor.dtype)
    _require_shape(tensor, shape)
    return tensor.codes.view(f"<i{tensor.codes.itemsize}").astype(np.int64)


def expert_bias(tensor, place, shape):
    """(E, M) biases of one parameter, out of (E, M) or, joined like the weights, (E, 2M)."""
    experts, rows = shape
    joined = carrier(tensor, (experts, rows * 2 if place.part in ONE_HALF else rows))
    return np.ascontiguousarray(_part(joined[..., None], place.part)[..., 0])


def expert_weights(tensors, scales, place, shape, block):
    """(E, M, K) weights as `Packed`, out of the tensors of a place, in their order; nothing is read yet.

    scales: the tensor of scales of a tensor, called for types that need one; block: (rows, columns) that share a scale.
    Raises ValueError for a shape that config.json contradicts, or a type without a reading.
    """
    if place.stack == "blocks":
        return _mxfp4(tensors[0], scales(tensors[0]), place, shape)
    dtype = tensors[0].dtype
    for tensor in tensors:
        _require_shape(tensor, _stored_shape(place, shape))
        if tensor.dtype != dtype:
            raise _wrong(tensor, f"type {dtype}, as its neighbours have", tensor.dtype)
    codes = _in_house_layout(tensors, place, shape)
    if dtype in FLOATS:
        return Packed(codes, FLOATS[dtype])
    if dtype not in EIGHT_BITS or not place.scales:
        types = [*FLOATS, *(EIGHT_BITS if place.scales else ())]
        raise _wrong(tensors[0], f"type {' or '.join(types)}", dtype)
    return Packed(codes, EIGHT_BITS[dtype], _block_scales(tensors, scales, place, shape, block), block)


def _block_scales(tensors, scales, place, shape, block):
    """The codes of the scales of 8-bit weights, (ceil(M / rows), ceil(K / columns)) for each expert."""
    if block is None:
        raise _wrong(tensors[0], "weight_block_size in quantization_config beside 8-bit codes", "none")
    experts, rows, columns = shape
    if place.part in ONE_HALF and rows % block[0]:
        raise _wrong(tensors[0], f"gate and up on whole blocks of {block[0]} rows", f"{rows} rows each")
    blocked = experts, -(-rows // block[0]), -(-columns // block[1])
    beside = [scales(tensor) for tensor in tensors]
    for tensor in beside:
        if tensor.dtype not in SCALE_TYPES:
            raise _wrong(tensor, f"type {' or '.join(SCALE_TYPES)}", tensor.dtype)
        _require_shape(tensor, _stored_shape(place, blocked))
    return _in_house_layout(beside, place, blocked)


def _mxfp4(blocks, scales, place, shape):
    """(E, M or 2M, K / 32, 16) bytes, the low nibble first, and a power of two for each 32 codes."""
    experts, rows, columns = shape
    if columns % MXFP4_BLOCK:
        raise _wrong(blocks, f"rows of whole blocks of {MXFP4_BLOCK} codes", f"{columns} columns in config.json")
    stored = experts, rows * 2 if place.part in ONE_HALF else rows, columns // MXFP4_BLOCK
    for tensor, wanted in ((blocks, (*stored, MXFP4_BLOCK // 2)), (scales, stored)):
        if tensor.dtype not in ("U8", "F8_E8M0"):
            raise _wrong(tensor, "type U8", tensor.dtype)
        _require_shape(tensor, wanted)
    codes = _part(blocks.codes.reshape(*stored[:2], columns // 2), place.part)
    return Packed(codes, "E2M1", _part(scales.codes, place.part), (1, MXFP4_BLOCK))


def _stored_shape(place, shape):
    """The shape of a tensor of the place, for a parameter (E, M, K)."""
    experts, rows, columns = shape
    rows = rows * 2 if place.part in ONE_HALF else rows
    one = (rows, columns) if place.layout == "out_in" else (columns, rows)
    return {"each": one, "stacked": (experts, *one), "flat": (experts * one[0], one[1])}[place.stack]


def _in_house_layout(tensors, place, shape):
    """The codes as views, an (M, K) one for each expert."""
    views = [tensor.codes for tensor in tensors]
    if place.stack != "each":
        views = views[0].reshape(shape[0], -1, views[0].shape[-1])
    turned = [view.T if place.layout == "in_out" else view for view in views]
    return [_part(view, place.part) for view in turned]


def _part(array, part):
    """The declared part of the output axis, the last but one."""
    half = array.shape[-2] // 2
    rows = {"whole": slice(None), "first": slice(half), "second": slice(half, None)}
    rows |= {"even": slice(0, None, 2), "odd": slice(1, None, 2)}
    return array[..., rows[part], :]


def _require_shape(tensor, wanted):
    if tensor.codes.shape != wanted:
        raise _wrong(tensor, f"shape {wanted}, which config.json and the family's layout give", tensor.codes.shape)


def _wrong(tensor, expected, got):
    return ValueError(f"{tensor.file}: tensor {tensor.name!r}: expected {expected}, got {got}; it is not read")
