"""What is compared, read from a file that nobody vouches for.   Spec 7.12"""

from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ..golden.digests import from_codes
from ..golden.errors import BundleError
from ..golden.inputs import is_expert_tensor
from ..golden.packed import Experts
from ..safetensors import DTYPES, MAX_HEADER, parse_json
from .containers import open_tensor_file
from .judged import Mine

FLOATS = {name: from_codes(np.zeros(1, dtype), name).dtype.kind == "f" for name, dtype in DTYPES.items()}


@contextmanager
def open_submission(path, names=None):
    """name -> Mine of a .safetensors or .npz file or of a raw directory; names: the file's name -> the bundle's.

    Gradients of expert weights are read an expert at a time, when they are asked for. Raises BundleError with code 2
    for a file that cannot be read or is not what it must be.
    """
    try:
        with open_tensor_file(path) as reader:
            meant = _meant(path, reader.entries, names or {})
            yield {meant[name]: _mine(reader, name, meant[name]) for name in reader.entries}
    except BundleError as error:
        raise BundleError(error.file, error.tensor, error.message, code=2) from None


def _meant(path, entries, names):
    """The file's name -> the bundle's, of every tensor. A map that says what the file contradicts is refused."""
    lacking = sorted(names.keys() - entries.keys())
    if lacking:
        raise BundleError(path, lacking[0], "the map names it, the file lacks it; correct the map")
    meant = {name: names.get(name, name) for name in entries}
    taken = {}
    for name, wanted in meant.items():
        if wanted in taken:
            raise BundleError(path, name, f"{taken[wanted]!r} and it are both {wanted!r}; correct the map")
        taken[wanted] = name
    return meant


def _mine(reader, name, meant):
    entry = reader.entry(name)
    if is_expert_tensor(meant) and len(entry.shape) == 3 and FLOATS[entry.dtype]:
        return Mine(Experts(entry.shape, np.dtype(np.float64), lambda e: _values(reader, name, e)), entry.dtype)
    return Mine(_values(reader, name), entry.dtype)


def _values(reader, name, index=None):
    carrier = from_codes(reader.codes(name, index), reader.entry(name).dtype)
    return carrier.astype(np.float64 if carrier.dtype.kind == "f" else np.int64)


def read_map(path):
    """A JSON object of strings: the file's name -> the bundle's. Raises BundleError with code 2."""
    path = Path(path)
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_HEADER + 1)
    except OSError as error:
        raise BundleError(path, "", f"cannot be read ({error.strerror})", code=2) from None
    if len(text) > MAX_HEADER:
        raise BundleError(path, "", f"more than the {MAX_HEADER} bytes that are read", code=2)
    try:
        table = parse_json(path, text)
    except BundleError as error:
        raise BundleError(path, "", error.message, code=2) from None
    ok = isinstance(table, dict) and all(isinstance(value, str) for value in table.values())
    if not ok or len(set(table.values())) != len(table):
        raise BundleError(path, "", 'expected an object {"your name": "the bundle\'s name"}, each name once', code=2)
    return table
