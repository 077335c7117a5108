"""The safetensors files of a checkpoint: headers checked in full, tensors as views of a memory map, read when used.

A checkpoint is one file, or several with an index from tensor to file. A file is opened when one of its tensors is
asked for, so a single shard of a large model is enough for the layers it holds.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...safetensors import BITS, FileError, open_tensors, parse_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
MAX_HEADER = 8 << 20  # bytes: some fifty thousand tensors; parsing a hostile one takes about 22 times as much memory
MAX_JSON = 64 << 20  # bytes of config.json or an index: the largest published one names 150,000 tensors in 15 MB


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
    try:
        table = parse_json(path, path.read_bytes(), finite=False)
    except FileError as error:
        raise ValueError(f"{error}; it is not read") from None
    if not isinstance(table, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(table).__name__}; copy the file again")
    return table


def _open(path):
    """(name -> Entry, buffer) of a safetensors file. The buffer is mapped, not read."""
    if not path.is_file():
        raise ValueError(f"{path}: {INDEX} names this file, and it is missing; download it")
    try:
        with open_tensors(path, MAX_HEADER, dtypes=None) as reader:
            entries, begin = reader.entries, 8 + len(reader.header)
    except FileError as error:
        raise ValueError(f"{error}; it is not read") from None
    buffer = np.memmap(path, np.uint8, "r", offset=begin) if path.stat().st_size > begin else np.empty(0, np.uint8)
    return entries, buffer.view(np.ndarray)
