"""Tensors as plain little-endian bytes, and a text that says where each lies.   Spec 7.3.2"""

from contextlib import contextmanager

from ..safetensors import Entry, Reader, element_bytes, parts, require_element_types, written
from ..safetensors import opened as opened_file
from .errors import BundleError
from .storage import byte_size

TENSORS, INDEX = "tensors.raw", "tensors.txt"
TITLE = "# refmoe raw 1: name dtype offset bytes sizes"


def write(directory, tensors):
    """name -> (dtype, array), as `refmoe.safetensors.write_tensors` takes them."""
    require_element_types(tensors)
    layout = {name: (dtype, array.shape) for name, (dtype, array) in tensors.items()}
    with written(directory / TENSORS) as file:
        for name in sorted(tensors):
            for part in parts(tensors[name][1]):
                file.write(element_bytes(part))
    with written(directory / INDEX) as file:
        file.write(index_text(layout))


def entries_of(layout):
    """name -> Entry: tensors follow each other in the order of their names, without gaps."""
    entries, at = {}, 0
    for name in sorted(layout):
        dtype, shape = layout[name]
        end = at + byte_size(dtype, shape)
        entries[name] = Entry(dtype, tuple(shape), at, end)
        at = end
    return entries


def index_text(layout):
    """The text: a title, then a line a tensor."""
    rows = (" ".join(map(str, (n, e.dtype, e.begin, e.end - e.begin, *e.shape))) for n, e in entries_of(layout).items())
    return "\n".join([TITLE, *rows, ""]).encode()


@contextmanager
def opened(directory, layout):
    """A Reader of the two files, which are those of the layout in every byte that is not payload."""
    wanted, entries = index_text(layout), entries_of(layout)
    with opened_file(directory / INDEX) as (file, _):
        _require_index(directory / INDEX, file.read(len(wanted) + 1), wanted)
    total = max((entry.end for entry in entries.values()), default=0)
    with opened_file(directory / TENSORS) as (file, size):
        if size != total:
            what = "truncated" if size < total else "too long"
            raise BundleError(directory / TENSORS, "", f"{what}: {size} bytes, and the manifest's tensors take {total}")
        yield Reader(directory / TENSORS, entries, b"", file.fileno(), 0)


def _require_index(path, found, wanted):
    if found == wanted:
        return
    rows = found.split(b"\n"), wanted.split(b"\n")
    at = next((i for i, (a, b) in enumerate(zip(*rows)) if a != b), min(map(len, rows)))
    line = rows[1][at].decode() if at < len(rows[1]) else "the end"
    raise BundleError(path, "", f"altered or truncated: line {at + 1} is not the manifest's, {line[:80]!r}")
