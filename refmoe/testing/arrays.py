"""Anybody's arrays, read: what has __array__ or __dlpack__.   Spec 7.13"""

import numpy as np

from ..compare import Mine

# NumPy's name of a type, or ml_dtypes', JAX's and PyTorch's -> safetensors'
TYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0",
}  # fmt: skip


def read_array(name, array):
    """A Mine of the array: floats as float64, integers as int64. Raises TypeError for anything else."""
    dtype = str(getattr(array, "dtype", "")).rpartition(".")[2]
    plain = _to_numpy(name, _widened(array, dtype))
    dtype = dtype if dtype in TYPES else plain.dtype.name
    if plain.dtype.kind in "iub":
        return Mine(plain.astype(np.int64), "I64")
    if dtype not in TYPES:
        raise TypeError(f"{name}: expected floats, integers or booleans, got {dtype}; convert it")
    return Mine(plain.astype(np.float64), TYPES[dtype])


def _widened(array, dtype):
    """PyTorch's narrow types have no NumPy twin: they widen themselves, which is exact."""
    if hasattr(array, "detach"):
        array = array.detach().cpu()
    narrow = dtype in TYPES and dtype not in ("float64", "float32", "float16")
    return array.float() if narrow and hasattr(array, "float") else array


def _to_numpy(name, array):
    if hasattr(array, "__array__") or isinstance(array, (int, float, list, tuple)):
        return np.asarray(array)
    if hasattr(array, "__dlpack__"):
        return np.from_dlpack(array)
    raise TypeError(f"{name}: expected something with __array__ or __dlpack__, got {type(array).__name__}; convert it")
