"""How kernels add up: for each kind of accumulator what its error may be.   Spec 7.12

A row gives, for a sum of K products with S = sum |a b| and Q = sum a^2 b^2: `kappa(K)`, so that kappa S bounds the
error for any data and any order; `sigma(K)`, so that the error is usually within 8 sigma sqrt(Q); `drift(K)`, the part
of the result that truncation may lose in one direction. `operations` is the unit roundoff of every other operation, or
None for that of the format a stage is stored in. `exact`: (p, format), so that sums are exact in any order where
multiples of some 2^q add up to at most 2^(q + p) in magnitude, within the range of the format; `operands`: the bits
that an operand must not exceed for that.
"""

from math import hypot, inf, sqrt
from typing import NamedTuple

ROUNDED = 2.0**-24  # unit roundoff of float32
BLOCK = 16  # products that a matrix unit aligns and adds at a time


class Accumulator(NamedTuple):
    """One row of the table."""

    name: str
    kappa: object  # K -> float
    sigma: object  # K -> float
    drift: object  # K -> float
    operations: object  # float or None
    about: str
    source: str
    exact: tuple
    operands: int | None = None


def gamma(K, unit):
    """K u / (1 - K u): K roundings in any order; infinite where that says nothing."""
    return K * unit / (1 - K * unit) if K * unit < 1 else inf


def _rounding(unit):
    return lambda K: gamma(K, unit), lambda K: sqrt(K) * unit, lambda K: 0.0


def _aligned(K, length, fraction, rounded):
    """Blocks of `length` products and the accumulator, aligned to the largest and cut after `fraction` bits."""
    blocks = -(-K // length)
    kappa = blocks * ((length + 1) * 2.0**-fraction + rounded)
    return kappa / (1 - kappa) if kappa < 1 else inf


def _tf32(K):
    return 2.0**-10 + 2.0**-22 + (1 + 2.0**-9) * _aligned(K, BLOCK, 24, 2 * ROUNDED)


def _promoted(K):
    """Within 128 products four blocks with 13 bits; between them float32."""
    return 4 * (33 * 2.0**-13 + 2.0**-13) + gamma(-(-K // 128), ROUNDED)


def _none(K):
    return 0.0


HIGHAM, FASI = "Higham 2002, 3.1", "Fasi et al. 2021"
ACCUMULATORS = {
    row.name: row
    for row in (
        Accumulator("f64", *_rounding(2.0**-53), 2.0**-53, "binary64 in any order", HIGHAM, (53, "float64")),
        Accumulator("f32", *_rounding(ROUNDED), ROUNDED, "float32 in any order, fused or not", HIGHAM, (24, "float32")),
        Accumulator("mixed", *_rounding(ROUNDED), None,
                    "float32 within a product; every other operation rounded to the store, as PyTorch does in bf16",
                    HIGHAM, (24, "float32")),
        Accumulator("tensor-core", lambda K: _aligned(K, BLOCK, 24, 2 * ROUNDED),
                    lambda K: sqrt(K) * 2 * ROUNDED, lambda K: -(-K // BLOCK) * 2 * ROUNDED, ROUNDED,
                    "16-bit operands, blocks aligned and truncated to 24 fraction bits", FASI, (22, "float32")),
        Accumulator("tf32", _tf32, lambda K: hypot(2.0**-11, sqrt(K) * 2 * ROUNDED),
                    lambda K: -(-K // BLOCK) * 2 * ROUNDED, ROUNDED,
                    "operands cut to 11 bits, then as tensor-core", FASI, (22, "float32"), 11),
        Accumulator("bf16", *_rounding(2.0**-8), None, "bf16 partial sums: vacuous from 256 terms on", HIGHAM,
                    (8, "bf16")),
        Accumulator("fp16", *_rounding(2.0**-11), None, "fp16 partial sums: vacuous from 2048 terms on", HIGHAM,
                    (11, "fp16")),
        Accumulator("hopper-fp8", _promoted, lambda K: sqrt(33) * 2.0**-13, lambda K: 2.0**-12, ROUNDED,
                    "E4M3 operands, 13 fraction bits, promoted to float32 every 128", "MMA-Sim 2025; DeepSeek-V3",
                    (12, "float32"), 4),
        Accumulator("int32", _none, _none, _none, ROUNDED, "integer sums, exact", "by definition", (31, "float64")),
    )
}  # fmt: skip


def find_accumulator(name):
    """The row `name`. Raises ValueError with the names there are."""
    if not isinstance(name, str) or name not in ACCUMULATORS:
        known = ", ".join(ACCUMULATORS)
        raise ValueError(f"--accumulator: expected one of {known}, got {name!r}; choose one")
    return ACCUMULATORS[name]
