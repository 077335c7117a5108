"""Writes the file that sums.c replays: operands of exact sums and the bits that NumPy makes of them.

    python tests/cross/sums.py FILE

The format is described at the head of sums.c.
"""

import struct
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import kernel_cases as made  # noqa: E402

from refmoe.numerics import Gathered, Numerics  # noqa: E402

FORMATS = {"float32": 0, "bf16": 1, "fp16": 2}  # enum refmoe_format
SIZES = [(1, 1, 1), (9, 7, 4), (19, 8, 2), (2, 37, 3)]  # outputs (n, m), terms


def cases(form):
    """(name, index, a, b, weights, more): random rows, then midpoints as sums of products of whole rows."""
    for number, make in enumerate(made.MAKERS):
        for n, m, terms in SIZES:
            rng = np.random.default_rng(number)
            index, shapes = rng.integers(-1, n + 2, (n, terms)), [(n + 2, m), (n + 2, m), (n, terms), (n, m)]
            yield f"{make.__name__} {n} x {m} x {terms}", index, *(make(rng, shape) for shape in shapes)
    sums = [terms for pair in made.midpoint_terms(form, np.random.default_rng(1)) for terms in pair]
    beside = made.subnormal_midpoints, made.overflow_edges, made.grid_edges
    a, b = (side.T for side in made.diagonal(sums + [terms for make in beside for terms in make(form)]))
    index = np.arange(len(a))[None]
    yield "midpoints", index, a, b, np.ones(index.shape), a[:1]


def outputs(form, index, a, b, weights, more):
    """The three sums of sums.c."""
    num = Numerics(store=form, backend="numpy")
    left, right = ([Gathered(rows, column) for column in index.T] for rows in (a, b))
    weighted = [(w[:, None], part) for w, part in zip(weights.T, left, strict=True)]
    made = [num.sum("routed", terms) for terms in (left, [*weighted, more], list(zip(left, right, strict=True)))]
    return [np.where(np.isnan(out), np.float32(np.nan), out) for out in made]


def encode(form, name, index, *operands):
    """The bytes of one case."""
    operands = [np.asarray(array, np.float32) for array in operands]
    (n, terms), (rows, m) = index.shape, operands[0].shape
    head = struct.pack("<32s5q", name.encode(), FORMATS[form], n, m, terms, rows)
    arrays = [*operands, *outputs(form, index, *operands)]
    return b"".join([head, index.astype("<i8").tobytes(), *(array.astype("<f4").tobytes() for array in arrays)])


def main():
    made_of = [encode(form, *case) for form in FORMATS for case in cases(form)]
    Path(sys.argv[1]).write_bytes(b"".join(made_of))
    print(f"{sys.argv[1]}: {len(made_of)} cases of sums")


if __name__ == "__main__":
    main()
