"""What may be passed to C: dense native arrays of the right type and shape."""

import numpy as np


def dtype_of(rule):
    return np.dtype(np.float64 if rule.profile == "float64" else np.float32)


CODES = ("bf16", "fp16")  # formats whose codes of 16 bits C reads


def operand_of(name, given, rule, shape):
    """(array, format): an array of numbers, or the codes of a `Packed` of 16 bits. Raises TypeError or ValueError."""
    dtype = dtype_of(rule)
    if not hasattr(given, "codes"):
        return array_of(name, given, dtype, shape), dtype.name
    if given.format not in CODES or given.scales is not None or dtype != np.float32:
        raise ValueError(f"{name}: expected codes of {' or '.join(CODES)} without scales, in profile exact or chain, "
                         f"got {given.format} in profile {rule.profile}; decode them first")
    return array_of(name, given.codes, np.dtype(np.uint16), shape), given.format


def array_of(name, array, dtype, shape, optional=False):
    """The array, or a dense copy of it; None in `shape` is any size. Raises TypeError or ValueError."""
    if array is None and optional:
        return None
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name}: expected a NumPy array, got {type(array).__name__}; convert it with numpy.asarray")
    if array.dtype != dtype or not array.dtype.isnative:
        raise TypeError(f"{name}: expected native {dtype.name}, got {array.dtype.str}; use .astype(numpy.{dtype.name})")
    if array.ndim != len(shape) or any(want not in (None, got) for want, got in zip(shape, array.shape, strict=True)):
        wanted = "(" + ", ".join("any" if size is None else str(size) for size in shape) + ")"
        raise ValueError(f"{name}: expected shape {wanted}, got {array.shape}; check the axes against the others")
    return np.require(array, requirements=("C", "A"))


def offsets_of(offsets, experts, rows):
    """(E + 1,) rising from 0 to N, as int64. Raises TypeError or ValueError."""
    array = np.asarray(offsets)
    if array.dtype.kind not in "iu":
        raise TypeError(f"offsets: expected integers, got {array.dtype.str}; use .astype(numpy.int64)")
    if array.shape != (experts + 1,):
        raise ValueError(f"offsets: expected shape ({experts + 1},), got {array.shape}; give E + 1 entries")
    array = np.require(array, np.int64, ("C", "A"))
    if array[0] != 0 or array[-1] != rows or (array[1:] < array[:-1]).any():
        got = np.array2string(array, threshold=8)
        raise ValueError(f"offsets: expected values rising from 0 to {rows}, got {got}; take them from the plan")
    return array
