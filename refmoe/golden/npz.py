"""Tensors as an .npz file that is the same everywhere: stored, not compressed, without a clock.   Spec 7.3.1

NumPy reads it. This module's own reader does not: it computes the file's one possible form from the manifest, all but
the checksums, and compares. Sizes never come from the file, so it cannot make memory grow; a pickle or a compressed
member is not that form.
"""

import zlib
from contextlib import contextmanager
from struct import pack
from typing import NamedTuple

from ..refusals import require
from ..safetensors import DTYPES, Entry, Reader, element_bytes, parts, require_element_types, written
from ..safetensors import opened as opened_file
from .errors import BundleError
from .storage import byte_size

TENSORS = "tensors.npz"
LIMIT = (1 << 32) - 1  # bytes that a zip file without 64-bit extensions can speak of
MOST = (1 << 16) - 1  # members, likewise
_VERSION, _STORED, _NO_FLAGS, _TIME, _DATE = 20, 0, 0, 0, 1 << 5 | 1  # the date is 1 January 1980
_CRC_AT = 14  # byte of a member's header


class _Member(NamedTuple):
    """One tensor of the file: where its header begins, the header of the .npy inside, the bytes that follow it."""

    begin: int
    name: bytes
    header: bytes
    size: int

    def local(self, crc):
        return pack("<I", 0x04034B50) + self._shared(crc) + self.name + self.header

    def central(self, crc):
        beside = pack("<HHHII", 0, 0, 0, 0, self.begin)
        return pack("<IH", 0x02014B50, _VERSION) + self._shared(crc) + beside + self.name

    def _shared(self, crc):
        size = len(self.header) + self.size
        times = _VERSION, _NO_FLAGS, _STORED, _TIME, _DATE
        return pack("<HHHHHIIIHH", *times, crc, size, size, len(self.name), 0)

    @property
    def payload(self):
        return self.begin + 30 + len(self.name) + len(self.header)

    @property
    def end(self):
        return self.payload + self.size


def npy_header(dtype, shape):
    """What stands before the elements of an .npy file, version 1.0, in one spelling."""
    sizes = f"({shape[0]},)" if len(shape) == 1 else f"({', '.join(map(str, shape))})"
    text = f"{{'descr': '{DTYPES[dtype].str}', 'fortran_order': False, 'shape': {sizes}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + pack("<H", len(text)) + text


def _members(layout):
    """name -> _Member, one behind the other in the order of their names; where their list begins, and where it ends."""
    at, members = 0, {}
    for name in sorted(layout):
        members[name] = _Member(at, f"{name}.npy".encode(), npy_header(*layout[name]), byte_size(*layout[name]))
        at = members[name].end
    return members, at, at + 22 + sum(46 + len(member.name) for member in members.values())


def _directory(members, crcs, at):
    """The list of members at the end of the file."""
    rows = b"".join(member.central(crcs[name]) for name, member in members.items())
    return rows + pack("<IHHHHIIH", 0x06054B50, 0, 0, len(members), len(members), len(rows), at, 0)


def require_room(layout):
    """Raises ValueError for tensors that one .npz file without 64-bit extensions cannot hold."""
    members, _, size = _members(layout)
    fix = "use safetensors or raw"
    require(size <= LIMIT, ValueError, "--format npz", "at most 4 GiB of tensors", f"{size} bytes", fix)
    require(len(members) <= MOST, ValueError, "--format npz", f"at most {MOST} tensors", len(members), fix)


def write(directory, tensors):
    """name -> (dtype, array), as `refmoe.safetensors.write_tensors` takes them."""
    require_element_types(tensors)
    layout = {name: (dtype, array.shape) for name, (dtype, array) in tensors.items()}
    require_room(layout)
    (members, at, _), crcs = _members(layout), {}
    with written(directory / TENSORS) as file:
        for name, member in members.items():
            crcs[name] = _write_member(file, member, tensors[name][1])
        file.write(_directory(members, crcs, at))


def _write_member(file, member, array):
    """The checksum stands before the elements: it is put there when they have been written."""
    file.write(member.local(0))
    crc = zlib.crc32(member.header)
    for part in parts(array):
        block = element_bytes(part)
        crc = zlib.crc32(block, crc)
        file.write(block)
    file.seek(member.begin + _CRC_AT)
    file.write(pack("<I", crc))
    file.seek(member.end)
    return crc


@contextmanager
def opened(directory, layout):
    """A Reader of a file that is the one of the layout in every byte that is not payload."""
    path, (members, at, total) = directory / TENSORS, _members(layout)
    if total > LIMIT or len(members) > MOST:
        raise BundleError(path, "", "the manifest's tensors are more than an npz file can hold")
    with opened_file(path) as (file, size):
        if size != total:
            what = "truncated" if size < total else "too long"
            raise BundleError(path, "", f"{what}: {size} bytes, and the manifest's tensors make a file of {total}")
        spans = {n: Entry(layout[n][0], tuple(layout[n][1]), m.payload, m.end) for n, m in members.items()}
        reader = Reader(path, spans, b"", file.fileno(), 0)
        crcs = {name: _require_member(reader, file, name, member) for name, member in members.items()}
        file.seek(at)
        if file.read(total - at) != _directory(members, crcs, at):
            raise BundleError(path, "", "altered: the list of members at its end is not the canonical one")
        yield reader


def _require_member(reader, file, name, member):
    file.seek(member.begin)
    found = file.read(member.payload - member.begin)
    crc = int.from_bytes(found[_CRC_AT : _CRC_AT + 4], "little")
    if found != member.local(crc):
        raise BundleError(reader.path, name, "altered: its header is not the canonical one, stored and uncompressed")
    made = zlib.crc32(member.header)
    for block in reader.blocks(name):
        made = zlib.crc32(block, made)
    if made != crc:
        raise BundleError(reader.path, name, "altered: its bytes do not have the checksum beside them")
    return crc
