"""The safetensors files of a checkpoint: headers checked in full, tensors as views of a memory map, read when used.

A checkpoint is one file, or several with an index from tensor to file. A file is opened when one of its tensors is
asked for, so a single shard of a large model is enough for the layers it holds.
"""

import json
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
MAX_HEADER = 8 << 20  # bytes: some fifty thousand tensors; parsing a hostile one takes about 22 times as much memory
MAX_JSON = 64 << 20  # bytes of config.json or an index: the largest published one names 150,000 tensors in 15 MB

# Bits of an element of every type the container knows; a tensor of another type is an error only when it is asked for.
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64, "C64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64,
}  # fmt: skip


class Tensor(NamedTuple):
    """One tensor as it lies on disk: the type in the header, and a read-only view of its codes as unsigned integers."""

    name: str
    file: Path
    dtype: str
    codes: np.ndarray


class Shards(NamedTuple):
    """A checkpoint's tensors by name; `opened` remembers the header and the map of each file that was needed."""

    directory: Path
    files: dict  # tensor name -> file
    opened: dict

    def __contains__(self, name):
        return name in self.files

    def tensor(self, name):
        """The tensor `name`. ValueError for one that is missing, truncated, or of a type without whole bytes."""
        path = self.files[name]
        if path not in self.opened:
            self.opened[path] = _open(path)
        entries, buffer = self.opened[path]
        if name not in entries:
            raise ValueError(f"{path}: expected the tensor {name!r}, which {INDEX} places there; the file has it not")
        dtype, shape, begin, end = entries[name]
        if BITS.get(dtype, 0) % 8 or dtype not in BITS:
            raise ValueError(f"{path}: tensor {name!r}: expected a type of whole bytes, got {dtype}; it cannot be read")
        return Tensor(name, path, dtype, buffer[begin:end].view(f"<u{BITS[dtype] // 8}").reshape(shape))


def open_shards(directory):
    """The tensors of a directory with model.safetensors, or with the index of its shards; no tensor is read.

    Raises ValueError for a directory without either, a header that is wrong, or an index that is not one.
    """
    directory = Path(directory)
    single, index = directory / SINGLE, directory / INDEX
    if single.is_file():
        opened = _open(single)
        return Shards(directory, dict.fromkeys(opened[0], single), {single: opened})
    if not index.is_file():
        raise ValueError(f"{directory}: looked for {SINGLE} or {INDEX}, found neither; other formats are not read")
    return Shards(directory, _weight_map(index), {})


def _weight_map(index):
    table = read_json(index).get("weight_map")
    files = table.values() if isinstance(table, dict) else [None]
    beside = (isinstance(file, str) and file.endswith(".safetensors") and file == Path(file).name for file in files)
    if not all(beside):
        raise ValueError(f"{index}: expected a weight_map from tensor names to files beside it, got something else")
    return {name: index.parent / file for name, file in table.items()}


def read_json(path):
    """The object in a JSON file of a checkpoint. NaN and infinities pass: other fields than a layer's hold them."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: looked for this file, found none; give the folder of a Hugging Face checkpoint")
    size = path.stat().st_size
    if size > MAX_JSON:
        raise ValueError(f"{path}: expected at most {MAX_JSON} bytes, got {size}; it is not a checkpoint's")
    return _parse(path, path.read_bytes())


def _parse(path, text):
    def unique(pairs):
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a key stands twice")
        return dict(pairs)

    try:
        table = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON, got something else ({str(error)[:100]}); copy it again") from None
    if not isinstance(table, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(table).__name__}; copy the file again")
    return table


# --- one file ---------------------------------------------------------------------------------------------------------


def _open(path):
    """(name -> (dtype, shape, begin, end), buffer) of a safetensors file. The buffer is mapped, not read."""
    if not path.is_file():
        raise ValueError(f"{path}: {INDEX} names this file, and it is missing; download it")
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise ValueError(f"{path}: truncated: its header takes {length} bytes of {max(size - 8, 0)}; copy it again")
        if length > MAX_HEADER:
            raise ValueError(f"{path}: expected a header of at most {MAX_HEADER} bytes, got {length}; it is not read")
        table = _parse(path, file.read(length))
    table.pop("__metadata__", None)
    entries = {name: _entry(path, name, row) for name, row in table.items()}
    _check_tiling(path, entries, size - 8 - length)
    buffer = np.memmap(path, np.uint8, "r", offset=8 + length) if size > 8 + length else np.empty(0, np.uint8)
    return entries, buffer.view(np.ndarray)


def _entry(path, name, row):
    """(dtype, shape, begin, end), whose bytes are those of the shape wherever the type is known."""
    row = row if isinstance(row, dict) else {}
    dtype, shape, offsets = row.get("dtype"), row.get("shape"), row.get("data_offsets")
    whole = all(isinstance(part, list) and all(type(n) is int and n >= 0 for n in part) for part in (shape, offsets))
    if not (isinstance(dtype, str) and whole and len(offsets) == 2 and offsets[0] <= offsets[1]):
        raise ValueError(
            f"{path}: tensor {name!r}: expected dtype, shape and two rising data_offsets; copy the file again"
        )
    begin, end = offsets
    wanted = -(-prod(shape) * BITS[dtype] // 8) if dtype in BITS else end - begin
    if end - begin != wanted:
        raise ValueError(f"{path}: tensor {name!r}: {dtype} of shape {shape} takes {wanted} bytes, got {end - begin}")
    return dtype, tuple(shape), begin, end


def _check_tiling(path, entries, size):
    at = 0
    for name, (_, _, begin, end) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if begin != at:
            raise ValueError(f"{path}: tensor {name!r}: expected to start at byte {at}, got {begin}; copy it again")
        at = end
    if at != size:
        what = "truncated" if at > size else "too long"
        raise ValueError(f"{path}: {what}: its tensors take {at} bytes, and {size} are there; copy the file again")
