"""A user's own arrays at the door: read, checked, brought into the layouts of the house.   Spec 7.7"""

import zipfile
from pathlib import Path

import numpy as np

from ..safetensors import open_tensors
from .digests import from_codes
from .errors import BundleError

LAYOUTS = ("out_in", "in_out")
GATE_UPS = ("separate", "concatenated", "interleaved")
EXPERT_WEIGHTS = ("w_gate", "w_up", "w_down", "w_gate_up")


def load_arrays(path):
    """name -> array of a .safetensors or .npz file: floats as float32 or float64 carriers, integers as int64.

    Raises ValueError naming the file and the array.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return _load_safetensors(path)
    if path.suffix == ".npz":
        return _load_npz(path)
    raise ValueError(
        f"--inputs: expected a file ending in .safetensors or .npz, got {path.name!r}; save it as one of these"
    )


def _load_safetensors(path):
    try:
        with open_tensors(path) as reader:
            rows = reader.entries.items()
            return {name: _carrier(name, from_codes(reader.codes(name), entry.dtype)) for name, entry in rows}
    except BundleError as error:
        raise ValueError(f"--inputs: {error}; save the file again") from None


def _load_npz(path):
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: _carrier(name, archive[name]) for name in archive.files}
    except (OSError, EOFError, KeyError, MemoryError, zipfile.BadZipFile) as error:
        raise ValueError(f"--inputs: {path}: expected a readable npz file, got {error}; save it again") from None
    except ValueError as error:
        raise ValueError(f"--inputs: {path}: {error}") from None


def _carrier(name, array):
    if not array.dtype.isnative:
        raise ValueError(
            f"{name}: expected native byte order, got {array.dtype.str}; use .astype(array.dtype.newbyteorder('='))"
        )
    if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
        raise ValueError(f"{name}: expected floats, integers or booleans, got {array.dtype}; convert it")
    if array.dtype.kind in "iu":
        return array.astype(np.int64)
    return array.astype(np.float32) if array.dtype == np.float16 else array


def house_layout(arrays, layout="out_in", gate_up="separate"):
    """Expert weights with the contracted axis last, gate and up apart; other arrays as they are.

    layout "in_out": expert weights come as (E, in, out). gate_up "concatenated": w_gate_up (E, 2F, D) holds the gate
    half first; "interleaved": rows g0, u0, g1, u1 ...; b_gate_up (E, 2F) likewise.
    """
    out = {}
    for name, array in arrays.items():
        prefix, _, leaf = name.rpartition(".")
        if layout == "in_out" and leaf in EXPERT_WEIGHTS:
            _require_ndim(name, array, 3)
            array = array.transpose(0, 2, 1)
        if leaf in ("w_gate_up", "b_gate_up"):
            parts = _split_gate_up(name, array, gate_up)
            named = {
                f"{prefix}.{leaf[0]}_{half}".lstrip("."): part for half, part in zip(("gate", "up"), parts, strict=True)
            }
        else:
            named = {name: array}
        for key, part in named.items():
            if key in out:
                raise ValueError(f"{key}: expected once, got it alone and inside {name}; leave one out")
            out[key] = np.ascontiguousarray(part)
    return out


def _split_gate_up(name, array, gate_up):
    if gate_up == "separate":
        raise ValueError(
            f"{name}: expected --gate-up concatenated or interleaved beside it, got separate; say how it is laid out"
        )
    _require_ndim(name, array, 3 if "w_" in name else 2)
    size = array.shape[1]
    if size % 2:
        raise ValueError(f"{name}: expected an even axis 1 (gate and up), got {size}; check --layout")
    if gate_up == "concatenated":
        return array[:, : size // 2], array[:, size // 2 :]
    return array[:, ::2], array[:, 1::2]


def _require_ndim(name, array, ndim):
    if array.ndim != ndim:
        raise ValueError(f"{name}: expected {ndim} axes, the first one experts, got shape {array.shape}; reshape it")
