"""Chapter 6.2.1, block scaling as data: scales and codes of every scheme against the law, and by hand."""

from fractions import Fraction

import numpy as np
import pytest
from law_bridge import LAW, agree, to_law

import refmoe
from refmoe.formats import FORMATS, SCHEMES, Packed, decode, dequantise, quantise, round_to, unpack_nibbles

RULES = [(name, rule) for name, row in SCHEMES.items() for rule in row.rules]
ALL = pytest.mark.parametrize(("name", "rule"), RULES)


def values_of(packed, e=0):
    """The value of each code."""
    codes = packed.codes[e]
    return decode(unpack_nibbles(codes) if codes.shape[-1] != packed.shape[2] else codes, packed.format)


def scales_of(packed, e=0):
    scales = packed.scales[e]
    return scales if scales.dtype == np.float32 else decode(scales, packed.scale_format)


def hard_blocks(row, rng):
    """Blocks whose greatest magnitude lies on, just above and just below what a rule decides by; zeros; extremes."""
    largest, step = FORMATS[row.format].largest, 2.0 ** -FORMATS[row.format].precision
    edges = [1.0, 2 - step, 2 - 2 * step, largest, largest / 4, 1.5, 0.7]
    tops = np.array([t * 2.0**e for t in edges for e in (-20, 0, 13)])
    tops = np.concatenate([tops, np.nextafter(tops.astype(np.float32), 0), np.nextafter(tops.astype(np.float32), 1e30)])
    tops = np.concatenate([tops, [0.0, 2.0**-149, 2.0**-126, 3e-45, 3.4028234e38, 1e38]]).astype(np.float32)
    blocks = rng.uniform(-1, 1, (len(tops), 4)).astype(np.float32) * tops[:, None]
    blocks[:, 0] = np.where(rng.integers(0, 2, len(tops)) == 1, tops, -tops)
    blocks[::3, 1] = -0.0
    return blocks


@ALL
def test_scales_and_codes_are_the_laws(name, rule):
    row, rng = SCHEMES[name], np.random.default_rng(6)
    block = (1, 4) if row.block[0] == 1 else (2, 4)
    for matrix in (hard_blocks(row, rng), rng.standard_normal((5, 10)).astype(np.float32)):
        w = quantise(matrix[None], name, rule, block)
        values, scales, tensor = LAW.quantise(to_law(matrix), name, rule, block)
        agree(scales, scales_of(w), f"{name} {rule} scales")
        agree(values, values_of(w), f"{name} {rule} values")
        if row.tensor_scale:
            agree([tensor], w.tensor_scales)
        products = [[LAW.packed_weight(values, scales, block, lambda v: v, m, k, tensor) for k in range(len(v))]
                    for m, v in enumerate(values)]  # fmt: skip
        agree(products, w.exact(0))
        agree([[LAW.convert(v, "float32") for v in line] for line in products], dequantise(w)[0])


@ALL
def test_quotients_next_to_a_tie_go_the_right_way(name, rule):
    """Values on midpoints of the codes' grid times the scale, and one float32 step beside them."""
    row = SCHEMES[name]
    grid = decode(np.arange(16 if row.format in ("E2M1", "int4") else 32, dtype=np.uint8) % 16, row.format)
    grid = np.unique(np.abs(grid[np.isfinite(grid)])).astype(np.float64)
    middles = (grid[1:] + grid[:-1]) / 2
    largest = FORMATS[row.format].largest
    for top in (largest, largest * 1.37):
        w = quantise(np.full((1, 1, 4), top, np.float32), name, rule, (1, 4))
        product = float(scales_of(w)[0, 0]) * (1.0 if w.tensor_scales is None else float(w.tensor_scales[0]))
        near = (middles * product).astype(np.float32)
        line = np.concatenate([near, np.nextafter(near, np.float32(0)), np.nextafter(near, np.float32(9e9)), -near])
        matrix = np.append(line, [top] * (2 - len(line) % 2)).astype(np.float32)[None]
        block = (1, matrix.shape[1])
        agree(LAW.quantise(to_law(matrix), name, rule, block)[0], values_of(quantise(matrix[None], name, rule, block)))


def test_the_table_is_the_laws():
    assert {name: tuple(row)[1:] for name, row in SCHEMES.items()} == LAW.SCHEMES


# --- by hand ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "top", "scale"), [("floor", 7.75, 1.0), ("up", 7.75, 2.0), ("even", 7.75, 2.0),
                                                    ("floor", 6.5, 1.0), ("up", 6.5, 2.0), ("even", 6.5, 1.0),
                                                    ("floor", 6.0, 1.0), ("up", 6.0, 1.0), ("even", 6.0, 1.0),
                                                    ("up", 3.0, 0.5), ("even", 7.0, 2.0)])  # fmt: skip
def test_the_three_rules_of_mxfp4(rule, top, scale):
    """Largest code 6: floor saturates 6.5 and 7.75; even sees 7 (a tie) and 7.75 as 8 already."""
    line = np.zeros((1, 1, 32), np.float32)
    line[0, 0, :4] = -top, 1.0, 0.25, -0.0
    w = quantise(line, "mxfp4", rule)
    assert scales_of(w).tolist() == [[scale]] and w.scales.dtype == np.uint8 and w.dtype == np.float32
    assert abs(values_of(w)[0, 0]) == min(6.0, float(round_to(top / scale, "E2M1", "saturate")))
    assert np.signbit(values_of(w)[0, 3])


def test_deepseek_blocks_by_hand():
    w = np.ones((1, 130, 129), np.float32)
    w[0, 0, 0], w[0, 129, 128], w[0, 0, 128] = 448, -3, 0.5
    packed = quantise(w, "fp8-block")
    assert packed.scales.dtype == np.float32 and packed.block == (128, 128) and packed.dtype == np.float64
    assert packed.scales[0].tolist() == [[1.0, float(np.float32(1 / 448))], [float(np.float32(1 / 448)),
                                                                           float(np.float32(3 / 448))]]  # fmt: skip
    assert values_of(packed)[129, 128] == -448 and values_of(packed)[0, 0] == 448 and values_of(packed)[5, 5] == 1
    rows = quantise(w, "fp8-rows")
    assert rows.scales.shape == (1, 130, 2) and rows.scales[0, 0, 0] == 1


def test_nvfp4_by_hand():
    """Greatest value 2688 = 6 * 448, so the tensor's scale is 1; blocks of 16 have scales of E4M3."""
    w = np.zeros((2, 1, 32), np.float32)
    w[0, 0, [0, 1, 16, 17]] = 2688, 448, 12, 7
    packed = quantise(w, "nvfp4")
    assert packed.tensor_scales.tolist() == [1.0, 2.0**-149] and packed.scale_format == "E4M3"
    assert scales_of(packed).tolist() == [[448.0, 2.0]]
    assert values_of(packed)[0, [0, 1, 16, 17]].tolist() == [6, 1, 6, 4]  # 3.5 is a tie and goes to the even 4
    assert packed(0)[0, [0, 1, 16, 17]].tolist() == [2688, 448, 12, 8]
    assert scales_of(packed, 1).tolist() == [[2.0**-9] * 2] and not packed(1).any()


def test_integers_are_symmetric():
    w = np.array([[[-127.0, 63.5, 1.0, 0.5], [-7.0, 7.0, 3.5, 0.4]]], np.float32)
    assert values_of(quantise(w[:, :1], "int8")).tolist() == [[-127, 64, 1, 0]]
    packed = quantise(w[:, 1:], "int4")
    assert values_of(packed).tolist() == [[-7, 7, 4, 0]] and packed.codes.shape == (1, 1, 2)
    least = quantise(np.full((1, 1, 2), -180 * 2.0**-149, np.float32), "int8")  # 180 / 127 quanta round to one
    assert values_of(least).tolist() == [[-127, -127]]


@pytest.mark.parametrize(("name", "rule"), [row for row in RULES if row[0] != "nvfp4"])
def test_what_is_representable_comes_back(name, rule):
    """Codes times one scale, the largest code among them, survive. (Not in nvfp4: 6 / 2688 is rounded.)"""
    row = SCHEMES[name]
    grid = decode(np.arange(8, dtype=np.uint8), row.format)
    line = np.concatenate([grid, -grid, [FORMATS[row.format].largest] * 2]).astype(np.float32)
    again = dequantise(quantise(line[None, None], name, rule, (1, len(line))))
    assert np.array_equal(again[0, 0], line)


# --- contractions -----------------------------------------------------------------------------------------------------


@ALL
@pytest.mark.parametrize("profile", ["exact", "chain"])
def test_contractions_read_the_exact_products(name, rule, profile):
    """float32 rows of 24 bits with weights of up to 31: products of 55, which binary64 cannot hold."""
    rng = np.random.default_rng(8)
    w = quantise(rng.standard_normal((1, 6, 16)).astype(np.float32), name, rule, (1, 8))
    x = rng.standard_normal((5, 16)).astype(np.float32)
    x[0, :3] = 0.0, -0.0, 2.0**-140
    num = refmoe.Numerics(profile)
    exact = to_law(w.exact(0))
    law = LAW.Law(profile, "float32")
    rows = [[LAW.contract("up_rows", list(zip(to_law(a), b, strict=True)), law) for b in exact] for a in x]
    agree(rows, num.contract("up_rows", x, w(0)))
    d = x[:, :6]
    columns = list(zip(*exact, strict=True))
    back = [[LAW.contract("d_x_rows", list(zip(to_law(a), b, strict=True)), law) for b in columns] for a in d]
    agree(back, num.contract_backward_x("d_x_rows", [(d, w(0))]))


def near_midpoints(count=6):
    """(x, w, product): integers of 24 and 31 bits whose product is a float32 midpoint and a unit that binary64 drops.

    w is 127 times a 24-bit scale. A binary64 product would be the midpoint itself, and go to even.
    """
    rng, found = np.random.default_rng(1), []
    while len(found) < count:
        w = 127 * (int(rng.integers(2**23, 2**24)) | 1)
        sign = 1 if len(found) % 2 else -1
        x = (2**30 + sign) * pow(w, -1, 2**31) % 2**31
        if 2**23 <= x < 2**24 and 2**54 <= x * w < 2**55:
            found.append((x, w, x * w))
    return found


@pytest.mark.parametrize("profile", ["exact", "chain"])
@pytest.mark.parametrize("store", ["float32", "bf16"])
def test_a_product_that_binary64_would_round_onto_a_midpoint(profile, store):
    """Alone, with a bias, on the way back, and after a first term; of -0, of what cancels, of infinities."""
    num, law = refmoe.Numerics(profile, store, backend="numpy"), LAW.Law(profile, store)
    for x, w, product in near_midpoints():
        assert Fraction(float(x) * float(w)) != product
        cases = [([x], [w]), ([x, 0], [w, w]), ([1, x], [2**30, w]), ([x, -x], [w, w])]
        cases += [([-(2.0**-149), -1, -0.0], [2.0**-30, 0, w]), ([np.inf, 1], [2, w])]
        cases += [([np.inf, 1], [w, 2]), ([np.inf, 2], [0, w]), ([np.nan, 1], [w, w]), ([3e38, 3e38], [w, -w])]
        for a, b in cases:
            rows, weights = np.array([a], np.float32), np.array([b], np.float64)
            pairs = list(zip(to_law(rows[0]), to_law(weights[0]), strict=True))
            agree([[LAW.contract("up_rows", pairs, law)]], num.contract("up_rows", rows, weights), f"{a} {b}")
            agree([[LAW.contract("d_x_rows", pairs, law)]], num.contract_backward_x("d_x_rows", [(rows, weights.T)]))
            bias = np.array([[-(2.0**-60)]], np.float32)
            got = num.contract("up_rows", rows, weights, bias=bias)
            agree([[LAW.contract("up_rows", pairs, law, to_law(bias)[0][0])]], got, f"{a} {b} bias")


def test_an_infinite_weight_beside_wide_ones():
    """E5M2 has codes of infinities; beside weights of 31 bits a low part must not turn them into NaN."""
    for profile in ("exact", "chain"):
        num, law = refmoe.Numerics(profile, backend="numpy"), LAW.Law(profile, "float32")
        rows, weights = np.array([[1, 2], [-1, 0]], np.float32), np.array([[np.inf, 127 * (2.0**24 - 1)]])
        pairs = [list(zip(to_law(row), to_law(weights[0]), strict=True)) for row in rows]
        agree([[LAW.contract("up_rows", p, law)] for p in pairs], num.contract("up_rows", rows, weights))


# --- refusals ---------------------------------------------------------------------------------------------------------


ONE, CODES = np.ones((1, 2, 4), np.float32), np.ones((1, 2, 4), np.uint8)


@pytest.mark.parametrize(
    ("error", "said", "call"),
    [
        (ValueError, "scheme: expected one of fp8-block, .*got 'fp9'; choose one", lambda: quantise(ONE, "fp9")),
        (ValueError, "rule: expected one of floor, up, even for mxfp4, got None", lambda: quantise(ONE, "mxfp4")),
        (ValueError, "rule: expected one of amax for nvfp4, got 'up'", lambda: quantise(ONE, "nvfp4", "up")),
        (ValueError, r"block: expected two sizes.*got \(0, 4\)", lambda: quantise(ONE, "int8", block=(0, 4))),
        (TypeError, "values: expected a float32 array, got float64", lambda: quantise(ONE * np.float64(1), "int8")),
        (TypeError, "values: expected a float32 array, got list", lambda: quantise([[1.0]], "int8")),
        (ValueError, r"values: expected shape \(E, M, K\), got \(2, 4\)", lambda: quantise(ONE[0], "int8")),
        (ValueError, "values: expected finite numbers", lambda: quantise(ONE * np.float32(np.nan), "int8")),
        (ValueError, "columns: expected None, or 7 for codes two in a byte, got 6; leave it out",
         lambda: Packed(CODES, "int4", None, None, None, None, 6)),
        (ValueError, "columns: expected None, or 7 for codes two in a byte, got 9; leave it out",
         lambda: Packed(CODES, "int4", None, None, None, None, 9)),
        (ValueError, "scale_format: expected None or one of", lambda: Packed(CODES, "int8", ONE, (1, 1), "int8")),
        (ValueError, "tensor_scales: expected a float32 for each expert",
         lambda: Packed(CODES, "int8", ONE, (1, 1), "float32", np.ones(2, np.float32))),
        (ValueError, "tensor_scales: expected a float32 for each expert, beside scales",
         lambda: Packed(CODES, "int8", None, None, None, np.ones(1, np.float32))),
    ],
)  # fmt: skip
def test_refusals(error, said, call):
    with pytest.raises(error, match=said) as caught:
        call()
    assert "\n" not in str(caught.value)
