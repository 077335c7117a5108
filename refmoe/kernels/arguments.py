"""What may be passed to C: dense native arrays of the right type and shape."""

import numpy as np

FLOAT32, FLOAT64, UINT16 = np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.uint16)
INT64, BOOL = np.dtype(np.int64), np.dtype(bool)
NAMES = {FLOAT32: "float32", FLOAT64: "float64"}  # NumPy takes longer to tell than C to add up a row
CODES = ("bf16", "fp16")  # formats whose codes of 16 bits C reads


def dtype_of(rule):
    return FLOAT64 if rule.profile == "float64" else FLOAT32


def operand_of(name, given, rule, shape):
    """(array, format): an array of numbers, or the codes of a `Packed` of 16 bits. Raises TypeError or ValueError."""
    dtype = dtype_of(rule)
    if not hasattr(given, "codes"):
        return array_of(name, given, dtype, shape), NAMES[dtype]
    if given.format not in CODES or given.scales is not None or dtype != FLOAT32:
        raise ValueError(f"{name}: expected codes of {' or '.join(CODES)} without scales, in profile exact or chain, "
                         f"got {given.format} in profile {rule.profile}; decode them first")
    return array_of(name, given.codes, UINT16, shape), given.format


def is_read(array, dtype):
    """Whether C reads this array of integers or numbers as it stands; None is passed as NULL."""
    return array is None or (type(array) is np.ndarray and array.dtype == dtype and array.flags.carray)


def array_of(name, array, dtype, shape, optional=False):
    """The array, or a dense copy of it; None in `shape` is any size. Raises TypeError or ValueError."""
    if array is None and optional:
        return None
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name}: expected a NumPy array, got {type(array).__name__}; convert it with numpy.asarray")
    if array.dtype != dtype or not array.dtype.isnative:
        raise TypeError(f"{name}: expected native {dtype.name}, got {array.dtype.str}; use .astype(numpy.{dtype.name})")
    if array.shape != shape and not _fits(shape, array.shape):
        wanted = "(" + ", ".join("any" if size is None else str(size) for size in shape) + ")"
        raise ValueError(f"{name}: expected shape {wanted}, got {array.shape}; check the axes against the others")
    return dense(array)


def _fits(shape, got):
    return len(shape) == len(got) and all(want in (None, size) for want, size in zip(shape, got, strict=True))


def dense(array):
    """The array, or a copy that C can read from one end to the other."""
    return array if array.flags.carray else np.require(array, requirements=("C", "A"))


def offsets_of(offsets, experts):
    """(E + 1,) integers, as int64: C looks whether they rise from 0 to N. Raises TypeError or ValueError."""
    array = np.asarray(offsets)
    if array.dtype.kind not in "iu":
        raise TypeError(f"offsets: expected integers, got {array.dtype.str}; use .astype(numpy.int64)")
    if array.shape != (experts + 1,):
        raise ValueError(f"offsets: expected shape ({experts + 1},), got {array.shape}; give E + 1 entries")
    return dense(array if array.dtype == np.int64 and array.dtype.isnative else array.astype(np.int64))


def refuse_offsets(offsets, rows):
    """Raises ValueError."""
    got = np.array2string(offsets, threshold=8)
    raise ValueError(f"offsets: expected values rising from 0 to {rows}, got {got}; take them from the plan")
