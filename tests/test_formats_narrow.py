"""Chapter 6.2, formats of 8 bits and less: every code point and rounding decision; weights as codes and scales."""

from bisect import bisect_left
from fractions import Fraction
from functools import cache
from itertools import pairwise
from math import copysign, inf, isnan, nan

import ml_dtypes
import numpy as np
import pytest

import refmoe
from refmoe import kernels
from refmoe.formats import (
    FORMATS,
    Packed,
    decode,
    encode,
    is_representable,
    pack_nibbles,
    round_fraction,
    round_to,
    unpack_nibbles,
)

PEERS = {
    "E5M2": (8, ml_dtypes.float8_e5m2),
    "E4M3": (8, ml_dtypes.float8_e4m3fn),
    "E3M2": (6, ml_dtypes.float6_e3m2fn),
    "E2M3": (6, ml_dtypes.float6_e2m3fn),
    "E2M1": (4, ml_dtypes.float4_e2m1fn),
    "E8M0": (8, ml_dtypes.float8_e8m0fnu),
}
LARGEST = {"E5M2": 57344, "E4M3": 448, "E3M2": 28, "E2M3": 7.5, "E2M1": 6, "E8M0": 2.0**127}
LEAST = {"E5M2": 2.0**-16, "E4M3": 2.0**-9, "E3M2": 2.0**-4, "E2M3": 0.125, "E2M1": 0.5, "E8M0": 2.0**-127}
MODES = {"E5M2": ("infinity", "saturate", "nan"), "E4M3": ("saturate", "nan"), "E8M0": ("saturate", "nan")}
MODES |= dict.fromkeys(("E3M2", "E2M3", "E2M1"), ("saturate",))
ALL = pytest.mark.parametrize("name", PEERS)


def all_codes(name):
    return np.arange(1 << PEERS[name][0], dtype=np.uint8)


def peer_values(name):
    """The value of every code, as ml_dtypes reads it."""
    return all_codes(name).view(PEERS[name][1]).astype(np.float32)


def same(a, b):
    """Equal values, equal signs of zero, NaN equal to NaN."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.array_equal(a, b, equal_nan=True) and np.array_equal(np.signbit(a[a == 0]), np.signbit(b[b == 0]))


# --- codes ------------------------------------------------------------------------------------------------------------


@ALL
def test_every_code_decodes_as_ml_dtypes_decodes_it(name):
    assert same(decode(all_codes(name), name), peer_values(name))
    assert decode(all_codes(name), name).dtype == np.float32


def test_values_written_by_hand():
    assert decode(np.arange(16), "E2M1").tolist()[:8] == [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    assert decode(np.arange(16), "E2M1").tolist()[8:] == [-0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]
    # sign 1, field 0111 = 2^0, fraction 101: -(1 + 5/8); field 0, fraction 1: the least number; all ones but one: 448
    assert decode(np.array([0b1_0111_101, 0b0_0000_001, 0x7E]), "E4M3").tolist() == [-1.625, 2.0**-9, 448.0]
    assert np.isnan(decode(np.array([0x7F, 0xFF]), "E4M3")).all()
    assert decode(np.array([0, 127, 254]), "E8M0").tolist() == [2.0**-127, 1.0, 2.0**127]
    assert decode(np.array([0x7C, 0xFC]), "E5M2").tolist() == [inf, -inf]


@ALL
def test_encode_is_the_inverse_of_decode(name):
    codes = all_codes(name)
    values = decode(codes, name)
    number = ~np.isnan(values)
    assert np.array_equal(encode(values[number], name), codes[number])
    assert encode(values[number], name).dtype == np.uint8
    if "nan" in FORMATS[name].specials:
        quiet = {"E5M2": 0x7E, "E4M3": 0x7F, "E8M0": 0xFF}[name]
        assert encode(np.array([nan, -nan], np.float32), name).tolist() == [quiet, quiet]


@ALL
def test_encode_rounds_nothing(name):
    for value in (LARGEST[name] * 0.99, LEAST[name] * 1.01, LARGEST[name] * 1.5):
        with pytest.raises(ValueError, match=f"values of {name}.*round_to"):
            encode(np.array([value], np.float32), name)


@pytest.mark.parametrize(
    ("name", "value"), [("E2M1", nan), ("E2M1", inf), ("E4M3", inf), ("E8M0", 0.0), ("E8M0", -1.0)]
)
def test_what_a_format_lacks_is_neither_encoded_nor_representable(name, value):
    array = np.array([value], np.float32)
    assert not is_representable(array, name)
    with pytest.raises(ValueError, match=f"values of {name}"):
        encode(array, name)


@ALL
def test_representable_are_the_values_and_nothing_between_them(name):
    values = peer_values(name)
    assert is_representable(values, name)
    finite = np.sort(values[np.isfinite(values)]).astype(np.float64)
    between = (finite[1:] + finite[:-1]) / 2
    assert not any(is_representable(value, name) for value in between[finite[1:] > finite[:-1]] if value != 0)
    assert not is_representable(LARGEST[name] * 2.0, name)
    assert FORMATS[name].largest == LARGEST[name]
    assert 2.0 ** FORMATS[name].quantum == LEAST[name]


@pytest.mark.parametrize("name", ["E4M3", "E5M2", "E2M1"])
def test_shapes_and_strides_of_codes_are_kept(name):
    codes = (np.arange(48, dtype=np.uint8).reshape(2, 3, 8) % 16)[:, ::2, ::3]
    assert decode(codes, name).shape == (2, 2, 3)
    assert np.array_equal(encode(decode(codes, name), name), codes)


# --- rounding ---------------------------------------------------------------------------------------------------------


@cache
def steps(name):
    """Zero and every positive value, ascending, and the one that would follow the largest. As ml_dtypes reads them."""
    grid = sorted(Fraction(float(v)) for v in set(peer_values(name).tolist()) if v > 0 and v != inf)
    return [*grid, 2 * grid[-1]] if name == "E8M0" else [Fraction(0), *grid, 2 * grid[-1] - grid[-2]]


def brute_force(name, value, mode):
    """The nearest of all values, by exact comparison; a tie goes to the even one. None of the library is used."""
    grid, magnitude, powers = steps(name), abs(value), name == "E8M0"
    if powers and value <= 0:
        return nan
    at = min(max(bisect_left(grid, magnitude), 1), len(grid) - 1)
    below, above = grid[at - 1], grid[at]
    if magnitude - below == above - magnitude:
        # Codes alternate between even and odd; of two powers of two, in units of the lower, the upper one is even.
        chosen = above if powers else (below, above)[(at - 1) % 2]
    else:
        chosen = min(below, above, key=lambda step: abs(magnitude - step))
    result = {"infinity": inf, "saturate": float(grid[-2]), "nan": nan}[mode] if chosen == grid[-1] else float(chosen)
    return nan if isnan(result) else copysign(result, value)


def decisions(name):
    """Every value, every midpoint between neighbours, each plus and minus a little, of both signs, and far beyond."""
    values = sorted({float(v) for v in peer_values(name) if v > 0 and v != inf} | {0.0})
    values += [2 * values[-1] - values[-2], 2 * values[-1], 4 * values[-1], 1e300]
    points = set(values) | {(a + b) / 2 for a, b in pairwise(values)} | {LEAST[name] * 0.25}
    near = {p * (1 + s * 2.0**-52) for p in points for s in (-1, 1)}
    return sorted(points | near | {-p for p in points | near})


@pytest.mark.parametrize(("name", "mode"), [(name, mode) for name in PEERS for mode in MODES[name]])
def test_every_rounding_decision_against_exact_arithmetic(name, mode):
    values = [v for v in decisions(name) if v != 0]
    wanted = [brute_force(name, Fraction(v), mode) for v in values]
    assert same(round_to(np.array(values), name, mode), wanted)
    assert same([round_fraction(Fraction(v), name, overflow=mode) for v in values], wanted)


@ALL
def test_rationals_next_to_a_midpoint_that_no_float64_tells_apart(name):
    values = sorted({float(v) for v in peer_values(name) if v > 0 and v != inf})
    little = Fraction(1, 2**200)
    for a, b in pairwise(values):
        middle = (Fraction(a) + Fraction(b)) / 2
        assert round_fraction(middle - little, name, overflow="saturate") == a
        assert round_fraction(middle + little, name, overflow="saturate") == b


@ALL
def test_conversions_agree_with_ml_dtypes(name):
    """Every bf16 number, and random float32: ml_dtypes has one overflow mode a format."""
    mode = {"E5M2": "infinity", "E4M3": "nan", "E8M0": "nan"}.get(name, "saturate")
    random = np.random.default_rng(5).integers(0, 1 << 32, 1 << 16, np.uint32).view(np.float32)
    values = np.concatenate([decode(np.arange(1 << 16), "bf16"), random])
    values = values[~np.isnan(values)]
    if name == "E8M0":
        values = values[~((values > 2.0**-127) & (values < 1.5 * 2.0**-127))]  # see the next test
    with np.errstate(all="ignore"):
        peer = values.astype(PEERS[name][1]).astype(np.float32)
    assert same(round_to(values, name, mode), peer)


def test_just_above_the_least_power_of_two_the_nearest_one_is_the_least():
    """ml_dtypes 0.6 gives 2^-126 for float32 subnormals between 2^-127 and 1.5 * 2^-127; exact arithmetic does not."""
    values = np.array([1.001953125, 1.25, 1.498046875], np.float32) * np.float32(2.0**-127)
    assert round_to(values, "E8M0", "nan").tolist() == [2.0**-127] * 3
    assert [brute_force("E8M0", Fraction(float(v)), "nan") for v in values] == [2.0**-127] * 3


def test_zeros_and_specials_keep_their_sign():
    zeros = np.array([0.0, -0.0, 1e-9, -1e-9])
    for name in ("E5M2", "E4M3", "E2M1"):
        assert np.signbit(round_to(zeros, name, "saturate")).tolist() == [False, True, False, True]
        assert copysign(1.0, round_fraction(0, name, negative_zero=True, overflow="saturate")) == -1.0
    assert round_to([inf, -inf], "E4M3", "saturate").tolist() == [448.0, -448.0]
    assert round_to([inf, -inf], "E5M2").tolist() == [inf, -inf]
    assert np.isnan(round_to([nan, inf], "E4M3", "nan")).all()
    assert np.isnan(round_to([0.0, -0.0, -2.0, nan], "E8M0", "saturate")).all()
    assert isnan(round_fraction(0, "E8M0", overflow="nan"))


@pytest.mark.parametrize(
    ("name", "mode"), [("E4M3", "infinity"), ("E8M0", "infinity"), ("E2M1", "nan"), ("bf16", "wrap"), ("int8", "wrap")]
)
def test_an_overflow_the_format_cannot_show_is_refused(name, mode):
    for function in (round_to, round_fraction):
        with pytest.raises(ValueError, match=f"overflow: expected one of saturate.*for {name}, got '{mode}'"):
            function(1.0, name, overflow=mode)


def test_the_operation_names_its_overflow_where_there_is_no_infinity():
    with pytest.raises(ValueError, match="saturate, nan for E4M3"):
        round_to(1.0, "E4M3")


def test_nan_for_a_format_without_one_is_refused():
    with pytest.raises(ValueError, match="E2M1 has no NaN"):
        round_to([1.0, nan], "E2M1", "saturate")


@pytest.mark.parametrize(("name", "largest"), [("bf16", (2 - 2.0**-7) * 2.0**127), ("fp16", 65504.0),
                                               ("float32", (2 - 2.0**-23) * 2.0**127)])  # fmt: skip
def test_wide_formats_take_the_modes_too(name, largest):
    values = [1e300, -inf, largest, 1.0]
    assert round_to(values, name).tolist() == [inf, -inf, largest, 1.0]
    assert round_to(values, name, "saturate").tolist() == [largest, -largest, largest, 1.0]
    assert same(round_to(values, name, "nan"), [nan, nan, largest, 1.0])
    assert round_fraction(10**300, name, overflow="saturate") == largest
    assert round_fraction(-(10**400), name, overflow="saturate") == -largest
    assert isnan(round_fraction(-(10**400), name, overflow="nan"))


# --- weights as codes and scales --------------------------------------------------------------------------------------


def test_nibbles_low_one_first():
    assert pack_nibbles(np.array([[1, 2, 15, 0]])).tolist() == [[0x21, 0x0F]]
    assert unpack_nibbles(np.array([[0x21, 0x0F]], np.uint8)).tolist() == [[1, 2, 15, 0]]
    every = np.arange(256, dtype=np.uint8)
    assert np.array_equal(pack_nibbles(unpack_nibbles(every)), every)
    with pytest.raises(ValueError, match="even last axis"):
        pack_nibbles(np.zeros((2, 3), np.uint8))


def fp8_weights(experts=2, rows=5, columns=7, block=(2, 3)):
    rng = np.random.default_rng(1)
    codes = (
        rng.integers(0, 0x7F, (experts, rows, columns)).astype(np.uint8)
        | rng.integers(0, 2, (experts, rows, columns), np.uint8) << 7
    )
    scales = (
        1 + rng.integers(0, 1 << 23, (experts, -(-rows // block[0]), -(-columns // block[1]))) * 2.0**-23
    ) * 2.0**-9
    return Packed(codes, "E4M3", scales.astype(np.float32), block)


def test_fp8_blocks_by_hand():
    """Rows 0-1 and 2, columns 0-1 and 2: four blocks of which three are cut off at the edge."""
    codes = encode(np.array([[[1, 2, 448], [-1, 0.5, 2.0**-9], [1.75, -0.0, 3]]], np.float32), "E4M3")
    w = Packed(codes, "E4M3", np.array([[[2, 0.1], [3, -1]]], np.float32), (2, 2))
    tenth = float(np.float32(0.1))
    assert (w.shape, w.dtype, w.ndim, len(w)) == ((1, 3, 3), np.float64, 3, 1)
    assert w(0).tolist() == [[2, 4, 448 * tenth], [-2, 1, tenth * 2.0**-9], [5.25, -0.0, -3]]
    assert w.rounded(0).dtype == np.float32
    assert w.rounded(0)[0, 2] == np.float32(448 * tenth)


def test_mxfp4_by_hand():
    """Codes 1 2 | 15 9 ... of 32 in a block: 0.5, 1, -6, -0.5, times 2^(scale - 127)."""
    codes = np.zeros((1, 1, 32), np.uint8)
    codes[..., :2] = 0x21, 0x9F
    w = Packed(codes, "E2M1", np.array([[[128, 126]]], np.uint8), (1, 32))
    assert (w.shape, w.dtype) == ((1, 1, 64), np.float32)
    assert w(0)[0, :5].tolist() == [1.0, 2.0, -12.0, -1.0, 0.0]
    codes[..., 16] = 0x07
    assert w(0)[0, 32] == 3.0
    assert np.array_equal(w.exact(0), w(0)) and w.exact(0).dtype == np.float64


def test_products_are_exact_and_do_not_fit_float32():
    w = fp8_weights()
    values, repeats = decode(w.codes, "E4M3"), 0
    for e in range(2):
        for m in range(5):
            for k in range(7):
                product = Fraction(float(values[e, m, k])) * Fraction(float(w.scales[e, m // 2, k // 3]))
                assert Fraction(float(w(e)[m, k])) == product
                assert w.rounded(e)[m, k] == round_fraction(product, "float32")
                repeats += Fraction(float(np.float32(w(e)[m, k]))) != product
    assert repeats > 20, "the case is too tame to show that float32 would lose bits"


def test_a_contraction_sees_the_product_and_not_its_rounding():
    """x . w over the exact products, one rounding; the dequantised weights give other bits."""
    w, num = fp8_weights(columns=64, block=(2, 32)), refmoe.Numerics(backend="numpy")
    x = np.random.default_rng(2).standard_normal((4, 64)).astype(np.float32)
    got = num.contract("up_rows", x, w(1))
    exact = [
        [sum(Fraction(float(a)) * Fraction(float(b)) for a, b in zip(row, column, strict=True)) for column in w(1)]
        for row in x
    ]
    assert got.tolist() == [[round_fraction(value, "float32") for value in row] for row in exact]
    assert (got != num.contract("up_rows", x, w.rounded(1))).any()


@pytest.mark.parametrize("store", ["float32", "bf16"])
@pytest.mark.parametrize("backend", ["numpy", *(["c"] if kernels.build_error() is None else [])])
def test_a_layer_of_packed_weights_is_the_layer_of_their_values(store, backend):
    """Powers of two as scales: the products are float32 values, so arrays must give the same bits, forward and back."""
    config = refmoe.MoEConfig(hidden_size=8, intermediate_size=6, num_experts=3, top_k=2)
    num, params = refmoe.Numerics(store=store, backend=backend), refmoe.init_params(config, recipe="bf16")
    rng, packed = np.random.default_rng(0), {}
    for name in ("w_gate", "w_up", "w_down"):
        experts, rows, columns = getattr(params, name).shape
        codes = rng.integers(0, 256, (experts, rows, columns // 2), np.uint8)
        packed[name] = Packed(codes, "E2M1", rng.integers(120, 128, (experts, rows, columns // 2), np.uint8), (1, 2))
    values = {name: np.stack([w(e) for e in range(3)]) for name, w in packed.items()}
    x = round_to(rng.standard_normal((9, 8)), store)
    results = []
    for changed in (packed, values):
        record = refmoe.moe_forward(x, params._replace(**changed), config, num)
        results.append((record.y, refmoe.moe_backward(x, x, params._replace(**changed), record, config, num)))
    (y, grads), (wanted, wanted_grads) = results
    assert np.array_equal(y, wanted) and np.abs(y).max() > 0
    for name in ("d_x", "d_logits"):
        assert np.array_equal(getattr(grads, name), getattr(wanted_grads, name))
    assert np.array_equal(grads.params.w_up, wanted_grads.params.w_up)


def test_packed_floats_need_no_scales():
    for name in ("float32", "bf16", "fp16"):
        values = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
        w = Packed(encode(values, name), name)
        assert w.dtype == np.float32 and w(1).tolist() == values[1].tolist() == w.exact(1).tolist() == w[1].tolist()
    views = [encode(values[e], "float32").T for e in range(2)]
    w = Packed(views, "float32")
    assert w.shape == (2, 3, 2) and w(1).flags.c_contiguous and np.array_equal(w(1), values[1].T)


def test_unaligned_codes_come_out_aligned():
    raw = np.frombuffer(b"\0" + np.arange(6, dtype=np.float32).tobytes(), np.uint8)[1:].view("<u4").reshape(1, 2, 3)
    w = Packed(raw, "float32")
    assert not raw.flags.aligned and w(0).flags.aligned
    assert w(0).tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("form", ["E8M0", "bf16", "float32"])
def test_scales_may_be_codes(form):
    values = np.array([[[0.5, 4.0]]], np.float32)
    codes = np.array([[[0x38, 0xB8, 0x40]]], np.uint8)  # 1, -1, 2
    w = Packed(codes, "E4M3", encode(values, form), (1, 2))
    assert w(0).tolist() == Packed(codes, "E4M3", values, (1, 2))(0).tolist() == [[0.5, -0.5, 8.0]]
    assert w.dtype == (np.float32 if form == "E8M0" else np.float64)


def test_special_codes_stay_special():
    w = Packed(np.array([[[0x7F, 0x38]]], np.uint8), "E4M3", np.array([[[0, 0xFF]]], np.uint8), (1, 1))
    assert np.isnan(w(0)).all()
    w = Packed(np.array([[[0x00, 0x80]]], np.uint8), "E4M3", np.array([[[0.1]]], np.float32), (1, 2))
    assert np.signbit(w(0)).tolist() == [[False, True]]


def test_packed_refuses_what_does_not_fit():
    codes = np.zeros((2, 4, 4), np.uint8)
    with pytest.raises(ValueError, match=r"format: expected float32.*got 'int3'"):
        Packed(codes, "int3")
    with pytest.raises(ValueError, match="scales for each with a block"):
        Packed(codes, "E4M3", np.ones((1, 2, 2), np.float32), (2, 2))
    with pytest.raises(ValueError, match="scales for each with a block"):
        Packed(codes, "E4M3", np.ones((2, 2, 2), np.float32))
    with pytest.raises(ValueError, match=r"scales of expert 1: expected \(2, 2\), got \(2, 3\)"):
        Packed(codes, "E4M3", np.ones((2, 2, 3), np.float32), (2, 2))(1)
    large = Packed(np.full((1, 1, 1), 0x77, np.uint8), "E2M1", np.full((1, 1, 2), 254, np.uint8), (1, 1))
    with pytest.raises(ValueError, match=r"expert 0: expected products that float32 can represent"):
        large(0)
    assert large.exact(0).tolist() == [[6 * 2.0**127] * 2]
