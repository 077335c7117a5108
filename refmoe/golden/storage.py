"""How a bundle holds a tensor: whole, in part or not at all; under which name, type and shape.   Spec 7.4-7.6"""

import re
from math import prod

from ..safetensors import DTYPES, MAX_DIMENSIONS

# kind -> what is added to the tensor's name in the file; None: nothing of it is there.
KINDS = {"stored": "", "sample": ".sample", "experts": ".experts", "recipe": None, "digest": None}
SIZE_LIMIT = 8 << 20  # bytes; a larger tensor is kept as digest and sample
_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")


def held_name(name, kind):
    """The name in the file, or None."""
    return None if KINDS[kind] is None else name + KINDS[kind]


def held_layout(rows):
    """name in the file -> (row of the manifest, dtype, shape), of what the manifest's rows say is there.

    Raises LookupError, TypeError or ValueError for rows that say nothing sensible.
    """
    held = {held_name(row["name"], row["storage"]["kind"]): row for row in rows}
    layout = {name: (row, *_type_and_shape(row)) for name, row in held.items() if name is not None}
    bad = next((name for name in layout if not _NAME.fullmatch(name)), None)
    if bad is not None:
        raise ValueError(f"the name {bad[:40]!r} is not made of letters, digits, underscores and dots")
    if len(layout) != sum(held_name(row["name"], row["storage"]["kind"]) is not None for row in rows):
        raise ValueError("a name stands twice")
    return layout


def _type_and_shape(row):
    dtype, shape = row["dtype"], row["shape"]
    if dtype not in DTYPES or len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"{row['name']}: dtype {dtype!r}, shape {shape!r}")
    storage = row["storage"]
    part = {"sample": lambda: [storage["count"]], "experts": lambda: storage["shape"]}
    return dtype, tuple(map(_count, part.get(storage["kind"], lambda: shape)()))


def _count(value):
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise ValueError(f"expected a count, got {value!r}")
    return value


def byte_size(dtype, shape):
    """The bytes of a tensor."""
    return prod(shape) * DTYPES[dtype].itemsize
