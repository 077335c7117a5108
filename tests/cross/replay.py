"""Writes the file that replay.c replays: operands of all three products and the bits that NumPy makes of them.

    python tests/cross/replay.py FILE [--slice]

The format is described at the head of replay.c. `--slice` leaves out what takes long under emulation.
"""

import argparse
import struct
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import codes_cases  # noqa: E402
import kernel_cases as made  # noqa: E402
from kernel_cases import Case, CodeCase  # noqa: E402
from kernel_oracle import dtype  # noqa: E402

from refmoe.numerics.contract import NumpyEngine  # noqa: E402

PROFILES = {"exact": 0, "chain": 1, "float64": 2}  # enum refmoe_profile
FORMATS = {"float32": 0, "bf16": 1, "fp16": 2, "float64": 3, "E5M2": 4, "E4M3": 5, "E3M2": 6, "E2M3": 7, "E2M1": 8,
           "int8": 9, "int4": 10, "E8M0": 11}  # enum refmoe_format
LEFT, RIGHT, ADDED = ("x", "d", "d2"), ("w", "w2", "x_right"), ("bias", "acc_rows", "acc_x", "acc_w")
PAIRS = [("bf16", "bf16"), ("fp16", "fp16"), ("bf16", "fp16"), ("float32", "bf16"), ("fp16", "float32")]
# (rows, columns) of every kernel's tiles: sizes next to them are worth a case. tests/test_cross.py asks the kernels.
TILES = {
    "exact": {(4, 8), (12, 4), (6, 8), (12, 16)},
    "chain": {(4, 8), (12, 8), (6, 16), (12, 32)},
    "float64": {(4, 8), (12, 4), (6, 8), (12, 16)},
}


def ordinary(rule):
    """Every way to make operands, over experts with several rows, none and one."""
    for seed, make in enumerate(made.MAKERS):
        yield f"{make.__name__} 5 0 1 3", Case(make, rule, (5, 0, 1, 3), M=10, K=7, seed=seed)


def of_sizes(rule, tiles):
    """Sizes next to the tiles' own, without remainder and with every kind of it, and sums over nothing."""
    listed = sorted({size for tile in tiles for size in made.sizes_round_a_tile(*tile)})
    for number, (counts, M, K) in enumerate(listed):
        for make in (made.wide, made.special):
            yield f"{make.__name__} {sum(counts)} x {M} x {K}", Case(make, rule, counts, M, K, seed=number)


def long_sums(rule):
    yield "a long sum", Case(made.wide, rule, (3, 140), M=5, K=2053)


def filled(rule, counts, M, K, M2=3, **operands):
    """A case of ordinary operands but for those given."""
    case = Case(made.coarse, rule, counts, M, K, M2)
    for name, array in operands.items():
        kind = dtype(rule)
        assert getattr(case, name).shape == array.shape
        setattr(case, name, np.ascontiguousarray(array, kind))
    return case


def midpoints(rule):
    """Sums on and beside the midpoints of a format, as each of the three products."""
    sums = [terms for pair in made.midpoint_terms(rule.format, np.random.default_rng(1)) for terms in pair]
    beside = made.subnormal_midpoints, made.overflow_edges, made.grid_edges
    x, w = made.diagonal(sums + [terms for make in beside for terms in make(rule.format)])
    count, length = x.shape
    ones, runs = (1,) * count, (length,) * count
    yield "midpoints, forward", filled(rule, ones, 1, length, x=x, w=w[:, None])
    yield "midpoints, backward_x", filled(rule, ones, length, 1, d=x, w=w[:, :, None])
    yield "midpoints, backward_w", filled(rule, runs, 1, 1, d=x.reshape(-1, 1), x=w.reshape(-1, 1))


def addends(rule):
    """1 * 1 + acc + bias: midpoints, zeros of both signs and infinities made by what is added."""
    values = [2.0**-24, -(2.0**-24), 2.0**-24 + 2.0**-47, 2.0**-149, 1.0, -1.0, 0.0, -0.0, 3e38, np.inf]
    acc, bias = (grid.reshape(-1, 1) for grid in np.meshgrid(values, values))
    for length in (0, 1):
        one = np.ones((len(acc), length))
        yield f"addends of {length}", filled(rule, (1,) * len(acc), 1, length, x=one, w=one[:, None], acc_rows=acc,
                                             bias=bias)  # fmt: skip


def hard_triples(rule):
    a, b, c = np.array(list(made.hard_triples())).T.reshape(3, -1, 1)
    yield "beside midpoints", filled(rule, (1,) * len(a), 1, 1, x=a, w=b[:, None], acc_rows=c)


def cases(rule, whole=True):
    """(name, case) of a rule."""
    yield from ordinary(rule)
    yield from of_sizes(rule, sorted(TILES[rule.profile])[:: 1 if whole else 3])
    yield from addends(rule)
    if whole and rule.format in ("float32", "float64"):
        yield from long_sums(rule)
    if rule.profile == "exact":
        yield from midpoints(rule)
    if rule.profile == "chain":
        yield from hard_triples(rule)


def of_codes(rule):
    """Operands of 16 bits, both of them, mixed, and one alone."""
    for number, (left, right) in enumerate(PAIRS):
        for make in made.CODE_MAKERS:
            yield f"{make.__name__} {left} {right}", CodeCase(make, (5, 0, 1, 3), 10, 7, left, right, seed=number)
        yield f"larger {left} {right}", CodeCase(made.middle_codes, (35, 2), 37, 67, left, right)


def outputs(case, rule):
    """NumPy's; of codes, what the numbers give that they stand for."""
    given = [made.value_of] if isinstance(case, CodeCase) else []
    return [np.where(np.isnan(out), np.nan, out) for out in case.outputs(NumpyEngine(), rule, *given)]


def encode(group, name, rule, case):
    """The bytes of one case."""
    E, M, K = case.w.shape
    kind = np.dtype(dtype(rule)).newbyteorder("<")
    formats = [rule.format, *getattr(case, "formats", ["float64" if kind.itemsize == 8 else "float32"] * 2)]
    codes, sizes = [FORMATS[name] for name in formats], (E, len(case.x), M, K, case.d2.shape[1])
    head = struct.pack("<32s32s4i5q", group.encode(), name.encode(), PROFILES[rule.profile], *codes, *sizes)
    operands = [getattr(case, name) for name in LEFT + RIGHT]
    items = [a.astype(a.dtype.newbyteorder("<")) for a in operands]
    items += [a.astype(kind) for a in [getattr(case, name) for name in ADDED] + outputs(case, rule)]
    return b"".join([head, case.offsets.astype("<i8").tobytes(), *(a.tobytes() for a in items)])


def of_scales(whole):
    """(name, case) of weights of 8 bits and less: experts of few rows and many, blocks that vectors fit and others."""
    schemes = codes_cases.SCHEMES if whole else ("mxfp4", "fp8-block", "int8", "nvfp4")
    for number, scheme in enumerate(schemes):
        makers = [(made.coarse, None), (made.special, (3, 5))][:: 1 if whole else 2]
        for make, block in makers:
            yield f"{make.__name__} {scheme}", codes_cases.ScaledCase(make, scheme, (5, 0, 1, 9), 17, 37,
                  codes_cases.SCALE_MAKERS[number % 3], block, seed=number)  # fmt: skip


def encode_scaled(group, name, rule, case):
    """The bytes of a case whose weights are codes with scales."""
    both, (E, M, K) = (case.w, case.w2), case.w.shape
    codes, sizes = (FORMATS[rule.format], 0, FORMATS[case.w.format]), (E, len(case.x), M, K, case.w2.shape[1])
    head = struct.pack("<32s32s4i5q", group.encode(), name.encode(), PROFILES[rule.profile], *codes, *sizes)
    beside = FORMATS[case.w.kind_of_scales], *case.w.block, case.w.tensor_scales is not None
    tensors = [w.tensor_scales for w in both if w.tensor_scales is not None]
    outputs = [np.where(np.isnan(out), np.nan, out).astype("<f4")
               for out in case.outputs(NumpyEngine(), rule, codes_cases.products)]  # fmt: skip
    operands = [case.x, case.d, case.d2, *(w.codes for w in both), case.bias, case.acc_rows, case.acc_x]
    items = [*operands, *(w.scales for w in both), *tensors, *outputs]
    return b"".join([head, case.offsets.astype("<i8").tobytes(), struct.pack("<4q", *beside)]
                    + [a.astype(a.dtype.newbyteorder("<")).tobytes() for a in items])  # fmt: skip


def write(path, whole=True):
    """The number of cases written."""
    count = 0
    with open(path, "wb") as file:
        for rule in made.RULES:
            group = f"{rule.profile} {rule.format}"
            for name, case in cases(rule, whole):
                file.write(encode(group, name, rule, case))
                count += 1
            # In a slice once a profile: what is read and what is stored are two questions.
            formats = ("float32", "bf16", "fp16") if whole else ("float32",)
            for name, case in of_codes(rule) if rule.format in formats else ():
                file.write(encode(f"{group} of 16 bits", name, rule, case))
                count += 1
            for name, case in of_scales(whole) if rule.format == "float32" else ():
                file.write(encode_scaled(f"{group} of codes", name, rule, case))
                count += 1
    return count


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--slice", action="store_true", help="leave out what takes long under emulation")
    given = parser.parse_args()
    count = write(given.file, not given.slice)
    print(f"{given.file}: {count} cases, {given.file.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
