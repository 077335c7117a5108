"""The safetensors container: a writer with one possible output, a reader that believes nothing.   Spec 7.3

Bundles and checkpoints are both read through it; they differ in the header they put up with.

A file is an 8-byte little-endian header length, a JSON header, and one buffer that the tensors tile without gap or
overlap. The header length and every offset are checked against the size of the file before anything is read, so what a
header claims cannot make memory grow.
"""

import json
import os
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np

# Parsed JSON takes up to about 22 times its text ("[],[],..."), so this keeps a hostile header below 32 MiB of memory.
MAX_HEADER = 1 << 20
MAX_DIMENSIONS = 8
_BLOCK = 1 << 20

# Name in the header -> NumPy type of the stored elements. Formats without a NumPy type are read as their codes.
DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "F8_E4M3": np.dtype("u1"),
    "F8_E5M2": np.dtype("u1"),
    "F8_E8M0": np.dtype("u1"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
# Bits of an element of the types that only other people's files have.
_OTHER_BITS = {"U16": 16, "I16": 16, "U32": 32, "U64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
BITS = {name: dtype.itemsize * 8 for name, dtype in DTYPES.items()} | _OTHER_BITS


class FileError(Exception):
    """A file is not what it must be.

    `file` and `tensor` name the place ("" when no single tensor is at fault); `code` is the exit status of `refmoe
    check`: 1 for content that is wrong, 2 for what cannot be read or belongs to another version of the specification.
    """

    def __init__(self, file, tensor, message, code=1):
        self.file, self.tensor, self.message, self.code = str(file), tensor, message, code
        place = f"{self.file}: tensor {tensor!r}" if tensor else self.file
        super().__init__(f"{place}: {message}")


class Entry(NamedTuple):
    """One tensor of a file: its type and shape, and the bytes begin .. end of the buffer that hold it."""

    dtype: str
    shape: tuple
    begin: int
    end: int


class Reader(NamedTuple):
    """An open file; every tensor, and every expert of a tensor, is read when it is asked for."""

    path: Path
    entries: dict  # name -> Entry
    header: bytes  # the JSON text as it stands in the file, padding included; empty for containers without one
    descriptor: int
    start: int  # where in the file the buffer begins

    def blocks(self, name):
        """The bytes of a tensor, a mebibyte at a time: hashing a tensor never needs its size in memory."""
        entry = self.entry(name)
        for begin in range(entry.begin, entry.end, _BLOCK):
            yield self._read(name, begin, min(begin + _BLOCK, entry.end))

    def codes(self, name, index=None):
        """The tensor in its element type (unsigned integers for BF16), or only its part [index] of the first axis."""
        entry = self.entry(name)
        shape, begin, end = entry.shape, entry.begin, entry.end
        if index is not None:
            size = (end - begin) // shape[0]
            shape, begin, end = shape[1:], begin + index * size, begin + (index + 1) * size
        raw = self._read(name, begin, end)
        if entry.dtype == "BOOL" and raw.translate(None, b"\0\1"):
            raise FileError(self.path, name, "a BOOL element is neither 0 nor 1")
        return np.frombuffer(raw, DTYPES[entry.dtype]).reshape(shape)

    def entry(self, name):
        if name not in self.entries:
            raise FileError(self.path, name, "the tensor is missing")
        return self.entries[name]

    def _read(self, name, begin, end):
        raw = os.pread(self.descriptor, end - begin, self.start + begin)
        if len(raw) != end - begin:
            raise FileError(self.path, name, f"truncated: {len(raw)} bytes of {end - begin} could be read")
        return raw


# --- writing ---------------------------------------------------------------------------------------------------------


def canonical_header(layout):
    """The header's bytes: keys sorted, no white space but the spaces that pad it to a multiple of eight.

    layout: name -> (dtype, shape). Tensors follow each other in the order of their names, without gaps.
    """
    header, at = {}, 0
    for name in sorted(layout):
        dtype, shape = layout[name]
        end = at + prod(shape) * DTYPES[dtype].itemsize
        header[name] = {"data_offsets": [at, end], "dtype": dtype, "shape": list(shape)}
        at = end
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
    return text + b" " * (-len(text) % 8)


def write_tensors(path, tensors):
    """tensors: name -> (dtype, array of that element type). The same tensors give the same bytes everywhere.

    Instead of an array anything with `shape`, `dtype` and its parts along the first axis: one part is held at a time.
    Raises TypeError when an array is not of its element type: nothing is converted here.
    """
    require_element_types(tensors)
    header = canonical_header({name: (dtype, array.shape) for name, (dtype, array) in tensors.items()})
    with written(path) as file:
        file.write(len(header).to_bytes(8, "little"))
        file.write(header)
        for name in sorted(tensors):
            for part in parts(tensors[name][1]):
                file.write(element_bytes(part))


def require_element_types(tensors):
    """Raises TypeError unless every array (name -> (dtype, array)) has the element type of its dtype."""
    for name, (dtype, array) in tensors.items():
        if array.dtype != DTYPES[dtype]:
            raise TypeError(
                f"{name}: expected elements of {DTYPES[dtype]} for {dtype}, got {array.dtype}; encode it first"
            )


@contextmanager
def written(path):
    """A new file, on the disk when the block ends."""
    with open(path, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def parts(array):
    """An array as it is; anything else, part by part along its first axis."""
    return [array] if isinstance(array, np.ndarray) else array


def element_bytes(array):
    """The elements of an array in C order as a flat buffer, without a copy where the memory allows it."""
    return memoryview(np.ascontiguousarray(array)).cast("B") if array.size else b""


# --- reading ---------------------------------------------------------------------------------------------------------


@contextmanager
def open_tensors(path, max_header=MAX_HEADER, dtypes=DTYPES):
    """A `Reader` of a file whose header has been checked in full; nothing else has been read.

    dtypes: the types a header may name; None for any, of which only the known ones are held against their bytes.
    Raises FileError: code 2 when the file cannot be opened, 1 when its content is wrong.
    """
    path = Path(path)
    with opened(path) as (file, size):
        header = _read_header(path, file, size, max_header)
        start = 8 + len(header)
        yield Reader(path, _entries(path, header, size - start, dtypes), header, file.fileno(), start)


@contextmanager
def opened(path):
    """(file, its size). Raises FileError, code 2, when it cannot be opened."""
    try:
        file = open(path, "rb", buffering=0)
    except OSError as error:
        raise FileError(path, "", f"cannot be read ({error.strerror})", code=2) from None
    with file:
        yield file, os.fstat(file.fileno()).st_size


def _read_header(path, file, size, max_header):
    if size < 8:
        raise FileError(path, "", f"truncated: {size} bytes, and the header's length alone takes 8")
    length = int.from_bytes(file.read(8), "little")
    if length > size - 8:
        raise FileError(path, "", f"truncated: the header claims {length} bytes, and {size - 8} are behind its length")
    if length > max_header:
        raise FileError(path, "", f"the header claims {length} bytes, more than the {max_header} that are read")
    return file.read(length)


def _entries(path, header, size, dtypes):
    table = parse_json(path, header)
    if not isinstance(table, dict):
        raise FileError(path, "", "the header is not a JSON object")
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FileError(path, "", "__metadata__ is not an object of strings")
    entries = {name: _entry(path, name, row, dtypes) for name, row in table.items()}
    _check_tiling(path, entries, size)
    return entries


def parse_json(path, text, parse_float=None, finite=True):
    """Strict JSON: UTF-8, no repeated keys, no nesting beyond the interpreter's limit, and if `finite` no NaN or
    infinity, which JSON does not have.
    """

    def unique(pairs):
        table = dict(pairs)
        if len(table) != len(pairs):
            raise ValueError("a key stands twice")
        return table

    def refuse(word):
        raise ValueError(f"the number {word} is not JSON")

    try:
        return json.loads(
            text.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse if finite else None,
            parse_float=parse_float,
        )  # fmt: skip
    except RecursionError:
        raise FileError(path, "", "the JSON is nested too deep") from None
    except ValueError as error:
        raise FileError(path, "", f"not the JSON it must be ({str(error)[:120]})") from None


def _entry(path, name, row, dtypes):
    if not isinstance(row, dict) or set(row) != {"dtype", "shape", "data_offsets"}:
        raise FileError(path, name, "its header entry is not {dtype, shape, data_offsets}")
    dtype, shape, offsets = row["dtype"], row["shape"], row["data_offsets"]
    if not isinstance(dtype, str) or (dtypes is not None and dtype not in dtypes):
        raise FileError(path, name, f"unknown dtype {str(dtype)[:20]!r}; known are {', '.join(dtypes or BITS)}")
    if not _is_count_list(shape) or len(shape) > MAX_DIMENSIONS:
        raise FileError(path, name, f"its shape is not a list of at most {MAX_DIMENSIONS} sizes")
    if not _is_count_list(offsets) or len(offsets) != 2:
        raise FileError(path, name, "its data_offsets are not two offsets")
    begin, end = offsets
    wanted = -(-prod(shape) * BITS[dtype] // 8) if dtype in BITS else max(0, end - begin)
    if end - begin != wanted:
        raise FileError(path, name, f"shape {shape} of {dtype} takes {wanted} bytes, its offsets give {end - begin}")
    return Entry(dtype, tuple(shape), begin, end)


def _is_count_list(value):
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 62 for item in value)


def _check_tiling(path, entries, size):
    at, before = 0, ""
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != at:
            what = "overlaps" if entry.begin < at else "leaves a gap after"
            raise FileError(path, name, f"starts at byte {entry.begin} and {what} {before or 'the header'}")
        at, before = entry.end, name
    if at != size:
        what = "truncated" if at > size else "too long"
        raise FileError(path, before, f"{what}: the tensors end at byte {at} of a buffer of {size}")
