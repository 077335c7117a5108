"""What is compared, read from a file that nobody vouches for.   Spec 7.12"""

from pathlib import Path

import numpy as np

from ..golden.digests import from_codes
from ..golden.errors import BundleError
from ..safetensors import MAX_HEADER, open_tensors, parse_json
from .judged import Mine


def read_submission(path, names=None):
    """name -> Mine of a .safetensors file; names: the file's name -> the bundle's.

    Raises BundleError with code 2 for a file that cannot be read or is not what it must be.
    """
    try:
        with open_tensors(path) as reader:
            return {_renamed(name, names): _mine(reader, name) for name in reader.entries}
    except BundleError as error:
        raise BundleError(error.file, error.tensor, error.message, code=2) from None


def _renamed(name, names):
    return name if names is None else names.get(name, name)


def _mine(reader, name):
    dtype = reader.entry(name).dtype
    carrier = from_codes(reader.codes(name), dtype)
    return Mine(carrier.astype(np.float64 if carrier.dtype.kind == "f" else np.int64), dtype)


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
