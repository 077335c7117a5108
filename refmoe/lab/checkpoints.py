"""A run between two steps as one safetensors file: it goes on with the same bits, or is refused.

Tensors: params.*, first.*, second.* (the moments), step, beta_powers, losses (of every step so far), key (JSON text).
"""

import json

import numpy as np

from ..refusals import require
from ..safetensors import FileError, open_tensors, parse_json, write_tensors
from ..writing import whole
from .optimisers import OptimiserState
from .training import TrainingState
from .trees import named, rebuilt

_DTYPES = {np.dtype(np.float32): "F32", np.dtype(np.float64): "F64", np.dtype(np.int64): "I64"}


def write_checkpoint(path, state, losses, key):
    """The file is there whole, or as it was before.   losses: a number for each step done"""
    moments = state.optimiser
    powers = np.array([moments.beta1_power, moments.beta2_power])
    arrays = _under("params", named(state.params)) | _under("first", moments.first) | _under("second", moments.second)
    arrays |= {"step": np.array([state.step], np.int64), "beta_powers": powers, "losses": np.array(losses, np.float64)}
    tensors = {name: (_DTYPES[array.dtype], array) for name, array in arrays.items()}
    text = np.frombuffer(canonical_json(key).encode(), np.uint8)
    with whole(path) as partial:
        write_tensors(partial, tensors | {"key": ("U8", text)})


def read_checkpoint(path, state, key):
    """state: the run's own first state, which says what must be there -> TrainingState, losses.

    Raises FileError for a file that is damaged, ValueError for one of another run.
    """
    with open_tensors(path) as reader:
        _check_key(path, parse_json(path, _read(reader, "key", np.dtype(np.uint8)).tobytes()), key)
        params = _read_like(reader, "params", named(state.params))
        first = _read_like(reader, "first", state.optimiser.first)
        second = _read_like(reader, "second", state.optimiser.second)
        step = int(_read(reader, "step", np.dtype(np.int64), (1,))[0])
        powers = map(float, _read(reader, "beta_powers", np.dtype(np.float64), (2,)))
        losses = _read(reader, "losses", np.dtype(np.float64), (step,))
    return TrainingState(step, rebuilt(state.params, params), OptimiserState(step, first, second, *powers)), [*losses]


def canonical_json(key):
    """One text for one key."""
    return json.dumps(key, sort_keys=True, separators=(",", ":"))


def _under(prefix, arrays):
    return {f"{prefix}.{name}": array for name, array in arrays.items()}


def _read_like(reader, prefix, arrays):
    return {name: _read(reader, f"{prefix}.{name}", a.dtype, a.shape) for name, a in arrays.items()}


def _read(reader, name, dtype, shape=None):
    """A tensor of the file as a new array."""
    codes = reader.codes(name)
    if codes.dtype != dtype or (shape is not None and codes.shape != shape):
        raise FileError(reader.path, name, f"expected {dtype} of shape {shape}, got {codes.dtype} of {codes.shape}")
    return codes.copy()


def _check_key(path, found, key):
    """The first part of the key that differs is named."""
    wanted = json.loads(canonical_json(key))
    differ = [name for name in wanted if not isinstance(found, dict) or found.get(name) != wanted[name]]
    fix = "go on with the settings it was made with, or choose another folder"
    got = f"a run with other {', '.join(differ)}"
    require(not differ, ValueError, str(path), "a checkpoint of this run", got, fix)
