"""Weights at their stored width: a layer reads codes and scales as the exact products they stand for.   Spec 6.2"""

from fractions import Fraction

import numpy as np
import pytest

import refmoe
from refmoe.formats import Packed, decode, round_fraction
from refmoe.recipes import generate, init_params

CONFIG = refmoe.MoEConfig(hidden_size=8, intermediate_size=6, num_experts=3, top_k=2)
BLOCK = (4, 4)


def packed(shape, seed):
    """E4M3 codes with float32 scales of 24 bits: products of up to 28 bits, beyond float32."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 0x60, shape, np.uint8) | rng.integers(0, 2, shape, np.uint8) << 7
    blocks = shape[0], -(-shape[1] // BLOCK[0]), -(-shape[2] // BLOCK[1])
    return Packed(codes, "E4M3", rng.uniform(2**-8, 2**-7, blocks).astype(np.float32), BLOCK)


def layer():
    params = init_params(CONFIG)
    wide = {name: packed(getattr(params, name).shape, i) for i, name in enumerate(("w_gate", "w_up", "w_down"))}
    return params._replace(**wide), generate("x", (5, 8), 0)


def test_up_rows_are_the_exact_products_rounded_once():
    params, x = layer()
    record = refmoe.moe_forward(x, params, CONFIG, refmoe.Numerics())
    owners = np.repeat(np.arange(3), record.plan.tokens_per_expert)
    w, exact_in_float32 = params.w_up, 0
    for row, e in enumerate(owners):
        values, scales = decode(w.codes[e], "E4M3"), w.scales[e]
        for m in range(6):
            factors = [Fraction(float(values[m, k])) * Fraction(float(scales[m // 4, k // 4])) for k in range(8)]
            exact_in_float32 += sum(Fraction(float(np.float32(float(f)))) == f for f in factors)
            total = sum(f * Fraction(float(a)) for f, a in zip(factors, record.experts.x_rows[row], strict=True))
            assert record.experts.up_rows[row, m] == np.float32(round_fraction(total, "float32"))
    assert exact_in_float32 < 8 * 6 * len(owners) / 2  # most products need more bits than float32 has


@pytest.mark.parametrize("profile", ["exact", "chain"])
def test_both_backends_run_it_alike(profile):
    params, x = layer()
    made = []
    for backend in ("numpy", "c"):
        num = refmoe.Numerics(profile=profile, backend=backend)
        record = refmoe.moe_forward(x, params, CONFIG, num)
        grads = refmoe.moe_backward(np.ones_like(x), x, params, record, CONFIG, num)
        made.append([record.y.tobytes(), grads.d_x.tobytes(), grads.params.w_down.tobytes()])
    assert made[0] == made[1]


def test_profile_float64_reads_the_same_numbers():
    params, x = layer()
    wide = params._replace(w_router=params.w_router.astype(np.float64))
    y = refmoe.moe_forward(x.astype(np.float64), wide, CONFIG, refmoe.Numerics("float64")).y
    want = refmoe.moe_forward(x, params, CONFIG, refmoe.Numerics()).y
    assert np.abs(y - want).max() < 1e-6 * np.abs(want).max()
    codes = Packed(generate("w", (3, 6, 8), 0, "bf16").view(np.uint32) >> 16, "bf16")
    assert codes(0).dtype == np.float32
    rows = refmoe.Numerics("float64").contract("up_rows", x.astype(np.float64), codes(0))
    assert rows.dtype == np.float64
