"""The containers of a bundle's tensors: one way to write each, and readers that believe nothing.   Spec 7.3

The manifest says which tensors a bundle holds, so the file that holds them has one possible form, to the last byte that
is not payload. A reader computes this form and compares; it never follows what a file says about itself.
"""

from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from ..safetensors import canonical_header, open_tensors, write_tensors
from . import npz, raw
from .errors import BundleError


class Container(NamedTuple):
    """write(directory, tensors); opened(directory, layout) -> context of a Reader. files: what stands in the bundle."""

    files: tuple
    write: object
    opened: object


TENSORS = "tensors.safetensors"


def _write_safetensors(directory, tensors):
    write_tensors(directory / TENSORS, tensors)


@contextmanager
def _safetensors(directory, layout):
    """A reader of a file whose header is the canonical one of the layout, name -> (dtype, shape)."""
    with open_tensors(directory / TENSORS) as reader:
        for name in sorted(layout.keys() | reader.entries.keys()):
            _check_entry(reader, name, layout)
        if reader.header != canonical_header(layout):
            raise BundleError(reader.path, "", "altered: its header is not the canonical one")
        yield reader


def _check_entry(reader, name, layout):
    if name not in layout:
        raise BundleError(reader.path, name, "the manifest does not know this tensor")
    entry = reader.entry(name)
    if (entry.dtype, entry.shape) != layout[name]:
        dtype, shape = layout[name]
        raise BundleError(
            reader.path, name, f"expected {dtype} {list(shape)} by the manifest, got {entry.dtype} {list(entry.shape)}"
        )


CONTAINERS = {
    "safetensors": Container((TENSORS,), _write_safetensors, _safetensors),
    "npz": Container((npz.TENSORS,), npz.write, npz.opened),
    "raw": Container((raw.TENSORS, raw.INDEX), raw.write, raw.opened),
}
FILES = {file for container in CONTAINERS.values() for file in container.files}


def find_container(directory):
    """The container whose first file a directory holds. Raises BundleError unless there is one, and one alone."""
    directory = Path(directory)
    found = [c for c in CONTAINERS.values() if (directory / c.files[0]).exists()]
    if not found:
        others = " or ".join(c.files[0] for c in list(CONTAINERS.values())[1:])
        raise BundleError(directory / TENSORS, "", f"cannot be read (it is not there, nor is {others})", code=2)
    if len(found) > 1:
        names = " and ".join(c.files[0] for c in found)
        raise BundleError(directory, "", f"holds {names}, and one of them is enough; remove the others")
    return found[0]
