"""Weights at their stored width: a layer reads codes and scales as the exact products they stand for.   Spec 6.2"""

from fractions import Fraction

import numpy as np
import pytest
from kernel_cases import wide

import refmoe
from refmoe.formats import Packed, decode, encode, round_fraction, round_to
from refmoe.numerics.contract import Rule
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


# ---- codes of 16 bits, which C reads where they lie ----


def narrow_layer(form, rng):
    """The recipe's parameters with expert weights of a 16-bit format, subnormals among them, and the same as arrays."""
    params = init_params(CONFIG)
    codes = {name: encode(round_to(getattr(params, name), form), form) for name in ("w_gate", "w_up", "w_down")}
    for array in codes.values():
        array.flat[rng.integers(0, array.size, 9)] = rng.integers(0, 1 << 7, 9)
    stored = {name: Packed(array, form) for name, array in codes.items()}
    return params._replace(**stored), params._replace(**{name: decode(array, form) for name, array in codes.items()})


@pytest.mark.parametrize("form", ["bf16", "fp16"])
@pytest.mark.parametrize("profile", ["exact", "chain"])
def test_codes_of_16_bits_give_the_bits_of_their_numbers(profile, form):
    stored, carried = narrow_layer(form, np.random.default_rng(1))
    x, made, calls = generate("x", (9, 8), 0), [], {}
    for backend, params in [("numpy", carried), ("numpy", stored), ("c", carried), ("c", stored)]:
        num = refmoe.Numerics(profile=profile, backend=backend)
        record = refmoe.moe_forward(x, params, CONFIG, num)
        grads = refmoe.moe_backward(np.ones_like(x), x, params, record, CONFIG, num)
        made.append([a.tobytes() for a in (record.y, grads.d_x, grads.params.w_gate, grads.params.w_down)])
        calls[backend, params is stored] = dict(num.engine.calls)
    assert made[1:] == made[:1] * 3
    assert calls["c", True] == calls["c", False]  # one call for all experts, not one for each


def test_codes_that_do_not_lie_whole_are_read_an_expert_at_a_time():
    """A list of experts, codes with a gap between rows, gate and up in different formats: the same bits, more calls."""
    stored, carried = narrow_layer("bf16", np.random.default_rng(1))
    x, num = generate("x", (9, 8), 0), refmoe.Numerics("chain", backend="c")
    want = refmoe.moe_forward(x, carried, CONFIG, num).y
    gaps = np.repeat(stored.w_gate.codes, 2, axis=2)[:, :, ::2]
    parts = stored._replace(w_gate=Packed(gaps, "bf16"), w_down=Packed(list(stored.w_down.codes), "bf16"))
    half = stored._replace(w_up=carried.w_up)
    for params in (parts, half):
        num = refmoe.Numerics("chain", backend="c")
        record = refmoe.moe_forward(x, params, CONFIG, num)
        assert record.y.tobytes() == want.tobytes()
        grads = refmoe.moe_backward(np.ones_like(x), x, params, record, CONFIG, num)
        again = refmoe.moe_backward(np.ones_like(x), x, carried, record, CONFIG, num)
        assert grads.d_x.tobytes() == again.d_x.tobytes()


@pytest.mark.parametrize("form", ["bf16", "fp16"])
def test_the_engine_reads_codes_as_either_operand(form):
    rng, rule, offsets = np.random.default_rng(2), Rule("chain", "float32"), [0, 4, 4, 7]
    x, w, d = (encode(round_to(wide(rng, shape), form), form) for shape in ((7, 5), (3, 6, 5), (7, 6)))
    engine = refmoe.Numerics(backend="c").engine
    a, b, c = (Packed(array, form) for array in (x, w, d))
    x, w, d = (decode(array, form) for array in (x, w, d))
    pairs = [
        (engine.grouped_matmul(rule, a, b, offsets), engine.grouped_matmul(rule, x, w, offsets)),
        (engine.grouped_matmul(rule, x, b, offsets), engine.grouped_matmul(rule, x, w, offsets)),
        (engine.grouped_matmul_backward_x(rule, [(c, b)], offsets),
         engine.grouped_matmul_backward_x(rule, [(d, w)], offsets)),
        (engine.grouped_matmul_backward_w(rule, c, x, offsets), engine.grouped_matmul_backward_w(rule, d, x, offsets)),
        (engine.grouped_matmul_backward_w(rule, d, a, offsets), engine.grouped_matmul_backward_w(rule, d, x, offsets)),
    ]  # fmt: skip
    for got, want in pairs:
        assert got.tobytes() == want.tobytes()


BAD = [
    (ValueError, "x_rows: expected codes of bf16 or fp16 without scales", Packed(np.ones((1, 3, 5), np.uint8), "E4M3")),
    (TypeError, "x_rows: expected native uint16, got <u4", Packed(np.ones((3, 5), np.uint32), "bf16")),
    (ValueError, r"x_rows: expected shape \(any, 5\), got \(3, 4\)", Packed(np.ones((3, 4), np.uint16), "bf16")),
]


@pytest.mark.parametrize(("error", "message", "x_rows"), BAD)
def test_codes_that_C_does_not_read_are_refused(error, message, x_rows):
    engine = refmoe.Numerics(backend="c").engine
    with pytest.raises(error, match=message):
        engine.grouped_matmul(Rule("exact", "float32"), x_rows, np.ones((1, 4, 5), np.float32), [0, 3])


@pytest.mark.parametrize(
    ("codes", "name", "got"),
    [(np.zeros((2, 3, 4), np.float32), "E4M3", "float32"), (np.zeros((2, 3, 4), np.int64), "bf16", "int64"),
     ([np.zeros((3, 4), np.int8)] * 2, "int8", "int8"), (None, "E4M3", "NoneType")],
)  # fmt: skip
def test_values_are_not_taken_for_codes(codes, name, got):
    """Numbers in the place of bit patterns would have been read as other numbers."""
    with pytest.raises(TypeError, match=f"^codes: expected .*, got {got}; "):
        Packed(codes, name)


def test_pairs_of_two_formats_are_refused():
    engine, d = refmoe.Numerics(backend="c").engine, np.ones((3, 4), np.float32)
    w = np.ones((1, 4, 5), np.float32), Packed(np.ones((1, 4, 5), np.uint16), "bf16")
    with pytest.raises(ValueError, match="pairs: expected one format of every d and one of every w"):
        engine.grouped_matmul_backward_x(Rule("exact", "float32"), [(d, w[0]), (d, w[1])], [0, 3])
