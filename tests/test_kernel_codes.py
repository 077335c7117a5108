"""Weights of 8 bits and less with their scales, read by C as they lie: the bits of NumPy's exact products."""

import numpy as np
import pytest

from refmoe import kernels

if kernels.build_error() is not None:
    pytest.skip(f"no compiled module: {kernels.build_error()}", allow_module_level=True)

import kernel_oracle as oracle
from codes_cases import SCALE_MAKERS, ScaledCase, middle_scales, number_of_codes, odd_scales, packed, products
from kernel_calls import Buffer, differing_bits, ffi, lib
from kernel_cases import coarse, drifting, special, tiny, wide
from kernel_oracle import Rule

from refmoe.formats import SCHEMES, Packed, decode, pack_nibbles
from refmoe.numerics.contract import NumpyEngine

KERNELS = [name for name, can_run, _ in kernels.available() if can_run]
RULES = [Rule("exact", "float32"), Rule("chain", "float32"), Rule("exact", "bf16"), Rule("chain", "fp16")]
SMALL = sorted({row.format for row in SCHEMES.values()})

each_kernel = pytest.mark.parametrize("kernel", KERNELS)
each_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.profile}-{rule.format}")
each_scheme = pytest.mark.parametrize("scheme", SCHEMES)
each_format = pytest.mark.parametrize("form", SMALL)


def assert_same(case, rule, want, names=KERNELS, threads=(1,)):
    for kernel in names:
        for count in threads:
            got = case.outputs(kernels.load(kernel, count), rule)
            assert [differing_bits(a, b) for a, b in zip(got, want, strict=True)] == [0] * 5


def forward(kernel, w, x, rule, **more):
    return kernels.load(kernel, 1).grouped_matmul(rule, x, w, np.array([0, len(x)]), **more)


@each_rule
@each_scheme
def test_bits_equal_numpys(scheme, rule):
    """Blocks of the scheme, and blocks that no vector fits; scales of every kind, operands of every kind."""
    for number, scales in enumerate(SCALE_MAKERS):
        for make, block in ((wide, None), (coarse, (3, 5)), (special, None), (tiny, (1, 7)))[number::2]:
            case = ScaledCase(make, scheme, (5, 0, 1, 3), 6, 37, scales, block, seed=number)
            assert_same(case, rule, list(case.outputs(NumpyEngine(), rule, products)))


@pytest.mark.parametrize("rule", RULES[:2], ids=lambda rule: rule.profile)
@each_scheme
def test_bits_equal_rational_arithmetic(scheme, rule):
    for make, scales in ((coarse, middle_scales), (wide, odd_scales)):
        case = ScaledCase(make, scheme, (3, 1), 5, 19, scales, (2, 8))
        assert_same(case, rule, list(case.outputs(oracle, rule, products)))


def assert_as_portable(case, rule, threads=(1,)):
    """What the definition of a tile makes, which the tests above hold against NumPy."""
    assert_same(case, rule, list(case.outputs(kernels.load("portable", 1), rule)), KERNELS[1:], threads)


@pytest.mark.parametrize("scheme", ["mxfp4", "fp8-block", "int8", "nvfp4", "mxfp8-e5m2", "mxfp6-e3m2"])
def test_every_number_of_rows_beside_every_rest_of_the_sum(scheme):
    """Rows 0 to 9, more than few and next to a tile; sums round whole vectors, blocks and runs; outputs likewise."""
    rows = (*range(10), 17, 33)
    for number, K in enumerate((1, 15, 16, 17, 31, 33, 64, 127, 128, 130, 257, 300)):
        for make, scales in ((wide, middle_scales), (special, odd_scales)):
            case = ScaledCase(make, scheme, rows, (1, 8, 17, 16, 33)[number % 5], K, scales, seed=K)
            assert_as_portable(case, RULES[number % 2])
            assert_as_portable(case, RULES[1 - number % 2]) if make is wide else None


@each_rule
def test_more_outputs_than_are_taken_together_and_more_scales_than_are_read_at_once(rule):
    for scheme, K in (("nvfp4", 1100), ("mxfp4", 150), ("int8", 150), ("mxfp8-e4m3", 100)):
        case = ScaledCase(wide, scheme, (1, 2, 3, 1), 130 if K < 1000 else 21, K, seed=K)
        assert_as_portable(case, rule)


@pytest.mark.parametrize("scales", ["bf16", "fp16"])
@each_kernel
def test_scales_of_16_bits(kernel, scales):
    rng = np.random.default_rng(5)
    codes, made = rng.integers(0, 256, (1, 19, 70), np.uint8), rng.integers(0x3000, 0x4000, (1, 19, 5), np.uint16)
    w = Packed(codes, "int8", made, (1, 16), scales)
    for rule in RULES[:2]:
        for rows in (1, 2, 5):
            x = wide(rng, (rows, 70))
            want = NumpyEngine().grouped_matmul(rule, x, products(w), np.array([0, rows]))
            assert differing_bits(forward(kernel, w, x, rule), want) == 0


@pytest.mark.parametrize("rows", (1, 4, 6))
@each_kernel
def test_the_bound_covers_the_error_of_every_addition(kernel, rows):
    """As in test_kernel_few.py, beside the largest code: blocks of a vector, many for a sum, and of all k."""
    length = 2048
    for block in (16, 128, 2048):
        scales = np.full((1, 17, length // block), 2.0**-7, np.float32)
        w = Packed(np.full((1, 17, length), 0x80, np.uint8), "int8", scales, (1, block))  # -128 * 2^-7
        for last in (2.0**-53, 2.0**-52, 2.0**-51):
            for part in (7 / 8, 3 / 4, 1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32):
                x = drifting(length, last, part * length * last)
                x = np.stack([x if row % 2 else -x for row in range(rows)])
                got = forward(kernel, w, x, RULES[0])
                assert (got == -np.sign(x[:, :1]) * np.float32(16 + 2.0**-19)).all()


@pytest.mark.parametrize("rule", RULES[:2], ids=lambda rule: rule.profile)
def test_threads_share_the_experts(rule):
    for scheme in ("mxfp4", "fp8-block", "int8"):
        assert_as_portable(ScaledCase(coarse, scheme, (1, 0, 20, 2, 9, 3, 70), 203, 40, seed=3), rule, (1, 2, 3))


@each_format
@each_kernel
def test_every_code_is_read_as_its_number(kernel, form):
    """1 * code in each place where a code may stand, of few rows and many: the number itself, NaN canonical."""
    codes = np.arange(number_of_codes(form), dtype=np.uint8)
    numbers = decode(codes, form)
    want = np.where(numbers == 0, np.float32(0), numbers)  # a sum of zeros begins with +0
    for rows in (1, 3, 12):
        for places in (1, 16, 37, 64, 128):
            spread = np.zeros((1, len(codes), places), np.uint8)
            spread[0, :, -1] = codes
            if len(codes) == 16:
                spread = pack_nibbles(np.pad(spread, ((0, 0), (0, 0), (0, places % 2))))
            w = Packed(spread, form, columns=places if len(codes) == 16 and places % 2 else None)
            x = np.zeros((rows, places), np.float32)
            x[:, -1] = 1
            for rule in RULES[:2]:
                assert differing_bits(forward(kernel, w, x, rule), np.tile(want, (rows, 1))) == 0


@pytest.mark.parametrize("force", ("compensated", "exact"))
@each_scheme
def test_forced_tiers(scheme, force):
    for make in (coarse, special):
        case = ScaledCase(make, scheme, (1, 3, 0, 9), 7, 21, odd_scales, seed=2)
        want = list(case.outputs(NumpyEngine(), Rule("exact", "bf16"), products))
        for kernel in KERNELS:
            got = case.outputs(kernels.load(kernel, 2), Rule("exact", "bf16", force))
            assert [differing_bits(a, b) for a, b in zip(got, want, strict=True)] == [0] * 5


# x * code * scale = 2^54 + 1 and 2^54 - 1, beside 2^78: products of 55 bits next to a midpoint of float32
ABOVE, BELOW = (10325701, 109, 16005665, 2.0**78), (16547391, 73, 14913081, 2.0**78 + 2.0**55)


@pytest.mark.parametrize("rows", [1, 3, 5, 20])
@each_kernel
def test_a_step_of_the_chain_is_rounded_once(kernel, rows):
    for (x, code, scale, acc), step in ((ABOVE, 2.0**55), (BELOW, 0.0)):
        for sign in (1, -1):
            w = Packed(np.full((1, 19, 1), code, np.uint8), "int8", np.full((1, 19, 1), scale, np.float32), (1, 128))
            rows_x, rows_acc = np.full((rows, 1), sign * x, np.float32), np.full((rows, 19), sign * acc, np.float32)
            for rule in RULES[:2]:
                got = forward(kernel, w, rows_x, rule, acc=rows_acc)
                assert (got == np.float32(sign * (acc + step))).all()
                turned = Packed(w.codes.reshape(1, 1, 19), "int8", w.scales.reshape(1, 1, 19), (128, 1))
                back = kernels.load(kernel, 1).grouped_matmul_backward_x(
                    rule, [(rows_x, turned)], np.array([0, rows]), acc=rows_acc
                )
                assert (back == got).all()


@pytest.mark.parametrize("rows", [1, 2, 4, 9])
@each_kernel
def test_no_chain_meets_the_padding_of_a_vector(kernel, rows):
    for scheme in ("mxfp4", "int8"):
        for K in (1, 17, 32, 33):
            w = packed(np.random.default_rng(K), (1, 18, K), scheme)
            w.codes[...] = 1 if scheme == "int8" else 0x11  # above zero
            acc = np.full((rows, 18), -0.0, np.float32)
            got = forward(kernel, w, np.full((rows, K), -0.0, np.float32), RULES[1], acc=acc)
            assert np.signbit(got).all()


@pytest.mark.parametrize("rows", [1, 4, 12])
@each_kernel
def test_powers_of_two_that_float32_does_not_hold_are_kept(kernel, rows):
    """2^127 * 448 in C, which takes doubles; Python refuses them as NumPy does (test_scaled_weights.py)."""
    w = Packed(np.full((1, 3, 5), 0x7E, np.uint8), "E4M3", np.full((1, 3, 1), 254, np.uint8), (1, 32))
    x, out = np.full((rows, 5), 2.0**-20, np.float32), np.empty((rows, 3), np.float32)
    assert not kernels.CEngine.reads_codes(w)
    for profile in ("exact", "chain"):
        assert call(how(kernel, profile), scaled(w), x, out) == lib.REFMOE_OK
        assert (out == np.float32(5 * 448 * 2.0**107)).all()


# ---- what C refuses, before the first write ----


def how(kernel="portable", profile="exact", right="E4M3"):
    names = [ffi.string(lib.refmoe_kernel_name(i)).decode() for i in range(lib.refmoe_kernel_count())]
    kind = getattr(lib, f"REFMOE_{right.upper()}")
    return ffi.new("refmoe_how *", (names.index(kernel), 1, {"exact": 0, "chain": 1}[profile], 0, 0, 0, kind))


def address(array):
    return ffi.NULL if array is None else ffi.cast("void *", array.ctypes.data)


def scaled(w, **others):
    made = ffi.new("refmoe_scaled *", {"codes": address(w.codes), "scales": address(w.scales), "block_rows": 1,
                                       "block_cols": 32, "scale_format": lib.REFMOE_E8M0})  # fmt: skip
    for name, value in others.items():
        setattr(made, name, value)
    return made


def call(how, w, x, out):
    (rows, K), M, plan = x.shape, out.shape[1], np.array([0, len(x)], np.int64)
    offsets, room = ffi.cast("int64_t *", plan.ctypes.data), ffi.cast("float *", out.ctypes.data)
    none = ffi.NULL
    return lib.refmoe_grouped_matmul_f32(how, 1, rows, M, K, offsets, address(x), w, none, none, room, none)


W = Packed(np.ones((1, 3, 5), np.uint8), "E4M3", np.full((1, 3, 1), 127, np.uint8), (1, 32))
TENSOR = np.ones(1, np.float32)
REFUSED = {
    "no description": ({}, None, "BAD_POINTER"),
    "no codes": ({}, {"codes": ffi.NULL}, "BAD_POINTER"),
    "blocks without rows": ({}, {"block_rows": 0}, "BAD_SCALES"),
    "blocks without columns": ({}, {"block_cols": -1}, "BAD_SCALES"),
    "scales of no such format": ({}, {"scale_format": lib.REFMOE_E5M2}, "BAD_SCALES"),
    "scales of no format": ({}, {"scale_format": 99}, "BAD_SCALES"),
    "two scales of 24 bits": ({}, {"scale_format": lib.REFMOE_FLOAT32, "tensor_scales": ffi.cast(
        "float *", TENSOR.ctypes.data)}, "BAD_SCALES"),
    "powers of two as weights": ({"right": "E8M0"}, {}, "BAD_FORMAT"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_is_refused_and_nothing_written(what):
    changed, fields, status = REFUSED[what]
    out = Buffer((2, 3), np.float32)
    w = ffi.NULL if fields is None else scaled(W, **fields)
    got = call(how(**changed), w, np.ones((2, 5), np.float32), out.array)
    assert got == getattr(lib, f"REFMOE_{status}")
    out.assert_untouched()


@pytest.mark.parametrize("side", ["left", "right"])
def test_codes_of_few_bits_are_weights_alone(side):
    offsets, d, x, out = np.array([0, 2], np.int64), np.ones((2, 3)), np.ones((2, 5)), Buffer((1, 3, 5), np.float32)
    given = how(right="float32")
    setattr(given, f"{side}_format", lib.REFMOE_INT8)
    pointer, room = ffi.cast("int64_t *", offsets.ctypes.data), ffi.cast("float *", out.array.ctypes.data)
    operands = address(d), address(x), ffi.NULL
    status = lib.refmoe_grouped_matmul_backward_w_f32(given, 1, 2, 3, 5, pointer, *operands, room, ffi.NULL)
    assert status == lib.REFMOE_BAD_FORMAT
    out.assert_untouched()
