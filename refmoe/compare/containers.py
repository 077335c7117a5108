"""The files a submission may come in: safetensors, npz, or raw bytes beside a text. None is believed.   Spec 7.12

Every size is held against that of the file before anything is read; nothing is unpickled, inflated or evaluated.
"""

import struct
import zipfile
from contextlib import contextmanager
from itertools import pairwise
from math import prod
from pathlib import Path

import numpy as np

from ..golden.containers import FILES
from ..golden.errors import BundleError
from ..golden.raw import INDEX, TENSORS, TITLE
from ..safetensors import DTYPES, MAX_DIMENSIONS, MAX_HEADER, Entry, Reader, open_tensors, opened

NPZ_TYPES = {
    "<f8": "F64", "<f4": "F32", "<f2": "F16", "<i8": "I64", "<i4": "I32", "|i1": "I8", "|u1": "U8", "|b1": "BOOL",
}  # fmt: skip
MOST = 4096  # tensors of a file
_BROKEN = (zipfile.BadZipFile, ValueError, EOFError, KeyError, NotImplementedError, struct.error, OSError)
_BROKEN += (SyntaxError, RecursionError, RuntimeError)


@contextmanager
def open_tensor_file(path):
    """A Reader of PATH.safetensors, PATH.npz, or the raw files in the directory PATH."""
    path = Path(path)
    made = _raw if path.is_dir() else _npz if path.suffix == ".npz" else open_tensors
    with made(path) as reader:
        yield reader


@contextmanager
def _raw(path):
    """`tensors.txt`: a title, then name, type, first byte, bytes and sizes of each tensor in `tensors.raw`."""
    _require_raw(path)
    with opened(path / INDEX) as (file, size):
        if size > MAX_HEADER:
            raise BundleError(path / INDEX, "", f"{size} bytes, more than the {MAX_HEADER} that are read")
        title, *lines = file.read(size).decode("utf-8", "replace").split("\n")
    if title != TITLE:
        raise BundleError(path / INDEX, "", f"expected the first line {TITLE!r}, got {title[:60]!r}")
    rows = [_raw_entry(path / INDEX, n, line.split(" ")) for n, line in enumerate(lines, start=2) if line]
    entries = _unique(path / INDEX, rows)
    with opened(path / TENSORS) as (file, size):
        _require_within(path / TENSORS, entries, size)
        yield Reader(path / TENSORS, entries, b"", file.fileno(), 0)


def _require_raw(path):
    """A bundle in another container is a directory too, of which one file holds the tensors."""
    if not (path / INDEX).exists():
        wanted = f"expected a .safetensors or .npz file, or a directory with {INDEX} and {TENSORS}"
        held = next((file for file in sorted(FILES - {INDEX, TENSORS}) if (path / file).exists()), None)
        got = f"one with {held}; name that file" if held else f"one without {INDEX}; name the file of your tensors"
        raise BundleError(path, "", f"{wanted}, got {got}")


def _raw_entry(path, number, words):
    wanted = f"line {number}: expected a name, a type, the first byte, bytes and sizes"
    if len(words) < 4 or not all(w.isascii() and w.isdecimal() and len(w) < 19 for w in words[2:]):
        raise BundleError(path, "", f"{wanted}, got {' '.join(words)[:60]!r}")
    name, dtype, begin, count, *shape = words[0], words[1], *map(int, words[2:])
    if dtype not in DTYPES or len(shape) > MAX_DIMENSIONS:
        known = ", ".join(DTYPES)
        raise BundleError(path, name, f"expected at most {MAX_DIMENSIONS} sizes of {known}, got {dtype[:20]!r}")
    return name, _entry(path, name, dtype, shape, begin, count)


def _unique(path, rows):
    entries = dict(rows)
    if len(entries) < len(rows):
        names = sorted(name for name, _ in rows)
        raise BundleError(path, next(a for a, b in pairwise(names) if a == b), "the tensor stands there twice")
    return entries


def _entry(path, name, dtype, shape, begin, count):
    wanted = prod(shape) * DTYPES[dtype].itemsize
    if count != wanted:
        raise BundleError(path, name, f"shape {list(shape)} of {dtype} takes {wanted} bytes, got {count}")
    return Entry(dtype, tuple(shape), begin, begin + count)


def _require_within(path, entries, size):
    if len(entries) > MOST:
        raise BundleError(path, "", f"{len(entries)} tensors, more than the {MOST} that are read")
    for name, entry in entries.items():
        if entry.end > size:
            raise BundleError(path, name, f"truncated: it ends at byte {entry.end} of a file of {size}")
    total = sum(entry.end - entry.begin for entry in entries.values())
    if total > size:
        raise BundleError(path, "", f"tensors overlap: {total} bytes of them in a file of {size}")


@contextmanager
def _npz(path):
    """What `numpy.savez` writes: members that are stored, each an .npy of numbers in C order."""
    with opened(path) as (file, size):
        try:
            with zipfile.ZipFile(file) as archive:
                entries = _unique(path, [_npz_entry(path, archive, info) for info in archive.infolist()[: MOST + 1]])
        except _BROKEN as error:
            raise BundleError(path, "", f"not the npz file it must be ({str(error)[:120]})") from None
        _require_within(path, entries, size)
        yield Reader(path, entries, b"", file.fileno(), 0)


def _npz_entry(path, archive, info):
    name = info.filename.removesuffix(".npy")
    if name == info.filename or info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise BundleError(path, info.filename, "expected a stored .npy, neither compressed nor encrypted; use savez")
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in read:
            raise BundleError(path, name, f"expected an .npy of version 1.0 or 2.0, got {version}")
        shape, turned, dtype = read[version](member)
        header = member.tell()
    plain = len(shape) <= MAX_DIMENSIONS and all(size >= 0 for size in shape) and not (turned and len(shape) > 1)
    if dtype.str not in NPZ_TYPES or not plain:
        raise BundleError(path, name, f"expected little-endian numbers in C order, got {dtype.str}; convert it")
    begin = _payload(archive.fp, info) + header
    return name, _entry(path, name, NPZ_TYPES[dtype.str], shape, begin, info.file_size - header)


def _payload(file, info):
    """Where the bytes of a stored member begin: behind its own header, whose length only that header says."""
    file.seek(info.header_offset + 26)
    lengths = file.read(4)
    return info.header_offset + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
