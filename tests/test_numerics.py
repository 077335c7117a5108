"""The one door: rounding, sums, chains and contractions against rational arithmetic; the policy and its environment."""

import ctypes
import subprocess
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from refmoe import Numerics
from refmoe.formats import FORMATS, round_fraction, round_to
from refmoe.numerics.contract import NumpyEngine, Rule, _bound, fused_multiply_add
from refmoe.numerics.rounding import exact_sum, expand, round_pair, rounding_test, sequential_sum, two_sum
from refmoe.numerics.stages import FLOAT32_STAGES, FORMAT_OF, STORE_STAGES
from refmoe.recipes import generate

NARROW = ["float32", "bf16", "fp16"]
EXACT = Numerics(backend="numpy")


def f32(values):
    return np.array(values, np.float32)


def rounded(values, name):
    """A list of Fractions, each rounded once -> carrier."""
    return np.array([round_fraction(v, name) for v in values], np.float32)


def equal_bits(got, want):
    assert got.dtype == want.dtype and got.shape == want.shape
    different = got.view(np.uint32) != want.view(np.uint32)
    assert not different.any(), (np.argwhere(different)[:5].tolist(), got[different][:5], want[different][:5])


def wide(count, seed, low=-148, high=127):
    """float32 of every exponent, with 24-bit and with few-bit significands, and both zeros."""
    rng = np.random.default_rng(seed)
    significand = 1 + rng.integers(0, 2**23, count) / 2.0**23
    significand[::3] = 1 + rng.integers(0, 4, len(significand[::3])) / 4
    out = np.ldexp(significand * rng.choice([-1, 1], count), rng.integers(low, high, count)).astype(np.float32)
    out[: min(count, 2)] = [0.0, -0.0][:count]
    return out


def half_ways(name, count=200):
    """float64 midpoints of neighbours of the format, over its whole range."""
    row, rng = FORMATS[name], np.random.default_rng(3)
    exponent = rng.integers(row.emin - 2, row.emax, count)
    quantum = np.maximum(exponent, row.emin) - row.precision + 1
    steps = np.where(exponent >= row.emin, 2.0 ** (row.precision - 1), 0) + rng.integers(
        0, 2 ** (row.precision - 1), count
    )
    return np.ldexp(steps + 0.5, quantum) * rng.choice([-1, 1], count)


# --- two numbers, and the test of a rounding -------------------------------------------------------------------------


def test_two_sum_loses_nothing():
    a, b = (wide(2000, seed).astype(np.float64) for seed in (1, 2))
    s, r = two_sum(a, b)
    for left, right, total, rest in zip(a.tolist(), b.tolist(), s.tolist(), r.tolist(), strict=True):
        assert Fraction(left) + Fraction(right) == Fraction(total) + Fraction(rest)


@pytest.mark.parametrize("name", NARROW)
def test_a_decided_rounding_holds_everywhere_in_its_interval(name):
    """Wherever the exact value lies strictly inside: next to both ends, on both sides of midpoints, near zero."""
    rng = np.random.default_rng(5)
    near = half_ways(name, 1500)
    value = np.concatenate([near, near * (1 + rng.integers(-3, 4, 1500) * 2.0**-52), wide(500, 6).astype(np.float64)])
    error = np.abs(value) * 2.0 ** -rng.integers(8, 54, value.size)
    error[::7] = 2.0 ** -rng.integers(20, 1070, len(error[::7]))
    out, decided = rounding_test(value, error, name)
    assert 0.1 < decided.mean() < 0.9
    for v, e, o in zip(value[decided].tolist(), error[decided].tolist(), out[decided].tolist(), strict=True):
        for end in (-1, 1):
            inside = Fraction(v) + end * Fraction(e) * (1 - Fraction(1, 2**80))
            if inside != 0:
                want = np.float64(round_fraction(inside, name))
                assert want.tobytes() == np.float64(o).tobytes()


@pytest.mark.parametrize("name", NARROW)
def test_midpoints_are_undecided_unless_they_are_exact(name):
    value = half_ways(name)
    out, decided = rounding_test(value, np.zeros_like(value), name)
    assert decided.all()
    equal_bits(out, rounded(map(Fraction, value.tolist()), name))
    for error in (5e-324, np.abs(value) * 2.0**-60):
        assert not rounding_test(value, np.broadcast_to(error, value.shape), name)[1].any()


def test_rounding_tests_of_zero_infinity_and_nan():
    out, decided = rounding_test(np.array([0.0, -0.0, np.inf, -np.inf, np.nan]), np.zeros(5), "float32")
    equal_bits(out, f32([0, 0, np.inf, -np.inf, np.nan]))
    assert decided.all()
    assert not rounding_test(np.array([0.0, 1.0]), np.array([1e-60, np.nan]), "float32")[1].any()
    # an interval that ends at zero: the sign is that of its side
    out, decided = rounding_test(np.array([1e-60, -1e-60]), np.array([1e-60, 1e-60]), "fp16")
    assert not decided[0] or not np.signbit(out[0])
    assert not decided[1] or np.signbit(out[1])


@pytest.mark.parametrize("name", NARROW)
def test_a_pair_rounds_as_its_sum(name):
    """A midpoint and a tail far too small to be seen in float64; both signs; no tail at all."""
    head = np.concatenate([half_ways(name), wide(300, 8).astype(np.float64)])
    for scale in (0.0, 2.0**-54, 2.0**-80, 2.0**-400, 2.0**-1074):
        for sign in (1, -1):
            tail = sign * np.where(np.abs(head) * scale == 0, scale, np.abs(head) * scale)
            head_now, tail = two_sum(head, tail)
            out, decided = round_pair(head_now, tail, np.zeros_like(head), name)
            assert decided.all()
            exact = [Fraction(h) + Fraction(t) for h, t in zip(head_now.tolist(), tail.tolist(), strict=True)]
            equal_bits(out, rounded(exact, name))


def test_a_pair_with_an_error_is_decided_only_if_the_error_cannot_matter():
    head = half_ways("float32")
    tiny = np.full_like(head, 2.0**-300)
    assert not round_pair(head, np.zeros_like(head), tiny, "float32")[1].any()  # on the midpoint either way is possible
    beside = np.abs(head) * 2.0**-60
    out, decided = round_pair(head, beside, tiny, "float32")
    seen = beside > 2 * tiny
    assert decided[seen].all() and seen.any()
    exact = [Fraction(h) + Fraction(t) for h, t in zip(head.tolist(), beside.tolist(), strict=True)]
    equal_bits(out[seen], rounded(exact, "float32")[seen])


# --- sums ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NARROW)
@pytest.mark.parametrize("terms", [1, 2, 3, 9])
def test_a_sum_is_exact_and_rounded_once(name, terms):
    arrays = [wide(400, 10 * terms + i, -140, 100).astype(np.float64) for i in range(terms)]
    near = half_ways(name, 400)
    arrays += [near, -arrays[0], np.where(np.arange(400) % 2, 1, -1) * 2.0**-600]
    want = rounded([sum(map(Fraction, column), Fraction(0)) for column in zip(*(a.tolist() for a in arrays))], name)
    equal_bits(exact_sum(arrays, name), want)
    equal_bits(exact_sum(arrays[::-1], name), want)


def test_products_in_a_sum_are_not_rounded():
    a, b, c = wide(500, 1, -60, 60), wide(500, 2, -60, 60), wide(500, 3, -60, 60)
    got = EXACT.sum("y", [(a, b), (b, c), c, (-a, b)])
    exact = [Fraction(q) * Fraction(r) + Fraction(r) for q, r in zip(b.tolist(), c.tolist(), strict=True)]
    equal_bits(got, rounded(exact, "float32"))


def test_zeros_of_a_sum():
    zero, least = f32([-0.0]), f32([1e-45])
    equal_bits(EXACT.sum("y", [zero, zero]), f32([0.0]))
    equal_bits(EXACT.sum("y", [least, -least]), f32([0.0]))
    equal_bits(EXACT.sum("y", [(-least, least)]), f32([-0.0]))  # not zero: it rounds to zero and keeps its sign
    equal_bits(EXACT.sum("y", [f32([np.inf]), f32([-np.inf])]), f32([np.nan]))
    equal_bits(EXACT.sum("y", [f32([3e38]), f32([3e38])]), f32([np.inf]))
    assert sequential_sum([np.array([-0.0]), np.array([-0.0])]).tobytes() == np.zeros(1).tobytes()


def test_sequential_sums_are_sequential():
    terms = [np.array([1.0]), np.array([2.0**-53]), np.array([2.0**-53])]
    assert sequential_sum(terms) == 1 and sequential_sum(terms[::-1]) == 1 + 2.0**-52


def test_an_expansion_bounds_its_error():
    terms = [wide(300, i).astype(np.float64) for i in range(12)]
    head, tail, error = expand(terms)
    for i in range(300):
        exact = sum(Fraction(float(term[i])) for term in terms)
        assert abs(exact - Fraction(head[i]) - Fraction(tail[i])) <= Fraction(error[i])


# --- fused multiply-add and the chain --------------------------------------------------------------------------------


def fraction_fma(a, b, c):
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    product_negative = np.signbit(a) != np.signbit(b)
    return round_fraction(
        exact, "float32", negative_zero=bool(exact == 0 and c == 0 and np.signbit(c) and product_negative)
    )


def test_fused_multiply_add_is_one_rounding():
    """Random; with c such that the sum falls beside a midpoint; and deep among the subnormals."""
    a, b = wide(1500, 1, -70, 60), wide(1500, 2, -70, 60)
    with np.errstate(over="ignore"):
        beside = round_to(half_ways("float32", 1500) - a.astype(np.float64) * b, "float32")
        below = wide(1500, 4, -149, -120)
    tiny_a = wide(1500, 5, -100, -70)
    for x, y, c in ((a, b, wide(1500, 3)), (a, b, beside), (tiny_a, b * f32(2.0**-40), below)):
        finite = np.isfinite(c) & np.isfinite(y)
        x, y, c = x[finite], y[finite], c[finite]
        want = f32([fraction_fma(*t) for t in zip(x.tolist(), y.tolist(), c.tolist(), strict=True)])
        equal_bits(fused_multiply_add(x, y, c), want)


def test_constructed_midpoints_of_a_fused_multiply_add():
    """c + 2^-12 2^-12 is a tie of float32; one quantum of the product more or less decides it."""
    up, down = np.nextafter(f32(2.0**-12), f32(1)), np.nextafter(f32(2.0**-12), f32(0))
    a, b = f32([2.0**-12] * 6), f32([2.0**-12, up, down] * 2)
    c = f32([1] * 3 + [1 + 2.0**-23] * 3)
    above, odd, even = 1 + 2.0**-23, 1 + 2.0**-23, 1 + 2.0**-22
    equal_bits(fused_multiply_add(a, b, c), f32([1, above, 1, even, even, odd]))


@pytest.mark.parametrize("name", NARROW)
def test_the_chain_is_fused_and_ascending(name):
    a, b = generate("a", (3, 17), 1, "wide"), generate("b", (4, 17), 2, "wide")
    bias = generate("bias", (4,), 3)
    got = Numerics("chain", name, backend="numpy").contract("y_rows", a, b, bias=bias)
    want = np.empty((3, 4), np.float32)
    for n in range(3):
        for m in range(4):
            total = 0.0
            for k in range(17):
                total = fraction_fma(float(a[n, k]), float(b[m, k]), total)
            total = round_fraction(Fraction(total) + Fraction(float(bias[m])), "float32")
            want[n, m] = round_fraction(Fraction(total), name)  # the format last
    equal_bits(got, want)


def test_float64_is_unfused_and_ascending():
    num = Numerics("float64", backend="numpy")
    a, b = (generate(n, (3, 9), 1, "wide").astype(np.float64) / 3 for n in "ab")
    want = np.zeros((3, 3))
    for k in range(9):
        want = want + a[:, k, None] * b[None, :, k]
    assert num.contract("y_rows", a, b).tobytes() == want.tobytes()


# --- contractions ----------------------------------------------------------------------------------------------------

INPUTS = {
    "wide": lambda name, shape: generate(name, shape, 1, "wide"),
    "bf16": lambda name, shape: generate(name, shape, 1, "bf16"),  # short sums of these are midpoints
    "dyadic": lambda name, shape: generate(name, shape, 1, "dyadic"),
    "every-exponent": lambda name, shape: wide(int(np.prod(shape)), len(name), -110, 60).reshape(shape),
    "tiny": lambda name, shape: generate(name, shape, 1, "wide", exponent=-60),  # products among the subnormals
}
OFFSETS = np.array([0, 2, 2, 5])


def exact_product(a, b, extra, name):
    """sum_l a[i, l] b[l, j] + extra[i, j], in Fractions, rounded once."""
    a, b = ([[Fraction(v) for v in row] for row in array.tolist()] for array in (a, b))
    out = np.empty(extra.shape, np.float32)
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            total = sum((a[i][k] * b[k][j] for k in range(len(b))), Fraction(float(extra[i, j])))
            out[i, j] = round_fraction(total, name)
    return out


@pytest.mark.parametrize("force", [None, "compensated", "exact"])
@pytest.mark.parametrize("name", NARROW)
@pytest.mark.parametrize("make", INPUTS)
def test_exact_products_against_rational_arithmetic(make, name, force):
    engine, rule = NumpyEngine(), Rule("exact", name, force)
    for K in (0, 1, 2, 13):
        x, w = INPUTS[make]("x", (5, K)), INPUTS[make]("ww", (3, 2, K))
        d, bias = INPUTS[make]("ddd", (5, 2)), INPUTS[make]("bias", (3, 2))
        got = engine.grouped_matmul(rule, x, w, OFFSETS, bias=bias)
        back = engine.grouped_matmul_backward_x(rule, [(d, w), (d[:, ::-1], w)], OFFSETS)
        acc = INPUTS[make]("accum", (3, 2, K))
        into = engine.grouped_matmul_backward_w(rule, d, x, OFFSETS, acc=acc)
        for e, (a, b) in enumerate(pairwise(OFFSETS)):
            rows = slice(a, b)
            equal_bits(got[rows], exact_product(x[rows], w[e].T, np.broadcast_to(bias[e], (b - a, 2)), name))
            both = np.concatenate([d[rows], d[rows, ::-1]], axis=1), np.concatenate([w[e], w[e]])
            equal_bits(back[rows], exact_product(*both, np.zeros((b - a, K)), name))
            equal_bits(into[e], exact_product(d[rows].T, x[rows], acc[e], name))


def test_every_tier_of_exact_is_entered_and_gives_the_same():
    """Each tier by inputs made for it, not by a mode."""
    engine, rule = NumpyEngine(), Rule("exact", "float32")

    def product(x, w):
        engine.tiers.clear()
        got = engine.grouped_matmul(rule, f32([x]), f32([[w]]), np.array([0, 1]))
        equal_bits(got, exact_product(f32([x]), f32([w]).T, np.zeros((1, 1)), "float32"))
        return {tier: count for tier, count in engine.tiers.items() if count}

    assert product([1.1, 1.3], [1.7, 1.9]) == {"rounding_test": 1}
    assert product([1, 2.0**-12], [1, 2.0**-12]) == {"grid": 1}  # a midpoint, and all products on one grid
    assert product([1, 2.0**-12, 2.0**-50], [1, 2.0**-12, 2.0**-50]) == {"compensated": 1}
    # 2^53 + 2^29 + 1, a midpoint and one quantum, on one grid: a bit more than a float64 holds
    assert product([2.0**26, 2.0**26, 177], [2.0**26, 2.0**26, 3033169]) == {"compensated": 1}
    # 2^60 and its opposite hide a midpoint and a last word at three distances that two floats cannot hold
    x, w = (
        [2.0**60, 1, 2.0**-12, 2.0**-60, -(2.0**60), 2.0**-100],
        [2.0**60, 1, 2.0**-12, 2.0**-60, 2.0**60, -(2.0**-49)],
    )
    assert product(x, w) == {"exact": 1}


@pytest.mark.parametrize("terms", [2, 3, 17, 1000])
def test_the_bound_of_a_product_holds_for_every_order_and_no_more(terms):
    """(L - 1) u sum |a| |b| in whatever order, and the order of a library's product is not known."""
    a = np.linspace(1.0, 1.5, terms)
    worst = (terms - 1) * Fraction(2) ** -53 * sum(Fraction(t) ** 2 for t in a.tolist())  # Cauchy-Schwarz is tight
    (bound,) = _bound(a[None], a[:, None])[0]
    assert worst <= Fraction(bound) <= 5 * worst
    assert not _bound(a[None, :1], a[:1, None]).any()  # one product of float32 is exact


def test_a_forced_tier_takes_every_output():
    a, b = generate("a", (4, 6), 0), generate("b", (3, 6), 0)
    for tier in ("compensated", "exact"):
        num = Numerics(force_tier=tier, backend="numpy")
        equal_bits(num.contract("y", a, b), EXACT.contract("y", a, b))
        assert num.engine.tiers[tier] == 12 and sum(num.engine.tiers.values()) == 12


def test_products_with_infinities_and_nan():
    inf, nan = np.inf, np.nan
    x = f32([[inf, 1], [inf, 0], [1, 1], [nan, 1]])
    w = f32([[1, -inf], [0, 1], [1, 1]])
    want = f32([[nan, nan, inf], [nan, nan, inf], [-inf, 1, 2], [nan, nan, nan]])
    for profile in ("exact", "chain"):
        equal_bits(Numerics(profile, backend="numpy").contract("y", x, w), want)
    assert EXACT.contract("y", f32([[3e38, 3e38]]), f32([[3e38, -3e38]])).tolist() == [[0]]  # no overflow on the way
    assert EXACT.contract("y", f32([[3e38]]), f32([[3e38]])).tolist() == [[inf]]
    assert Numerics("exact", "fp16", backend="numpy").contract("y", f32([[256]]), f32([[256]])).tolist() == [[inf]]


def test_contract_rows_is_the_same_law():
    a, b = generate("a", (5, 7), 0, "wide"), generate("b", (5, 7), 0, "wide")
    got = EXACT.contract_rows("d_topk_weights", a, b)
    equal_bits(got, np.diagonal(EXACT.contract("d_topk_weights", a, b)).copy())


# --- the policy ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"profile": "fast"}, "profile: expected one of exact, chain, float64, got 'fast'"),
        ({"store": "float64"}, "store: expected .*float32, bf16, fp16.* got 'float64'"),
        ({"profile": "chain", "store": "float64"}, "store: expected .*got 'float64'"),
        ({"profile": "float64", "store": "float32"}, "store: expected .*float64.* got 'float32'"),
        ({"store": "fp8"}, "store: expected .*got 'fp8'"),
        ({"backend": "cuda"}, "backend: expected one of auto, c, numpy, got 'cuda'"),
        ({"force_tier": "grid"}, "force_tier: expected one of None, compensated, exact, got 'grid'"),
        ({"backend": "c", "kernel": "sse"}, "kernel: expected one of .*got 'sse'.*; choose one of these"),
        ({"backend": "c", "threads": 0}, "threads: expected a positive count, got 0; give 1 or more"),
        ({"backend": "c", "threads": -1}, "threads: expected a positive count, got -1"),
        ({"backend": "c", "threads": 1.5}, r"threads: expected a positive count, got 1\.5"),
    ],
)
def test_an_impossible_policy_is_refused(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        Numerics(**arguments)


def test_the_defaults_and_that_a_policy_is_frozen():
    num = Numerics()
    assert (num.profile, num.store, num.backend, num.threads, num.kernel) == ("exact", "float32", "auto", None, None)
    assert Numerics("float64").store == "float64" and Numerics("float64").dtype == np.float64
    with pytest.raises(AttributeError):
        num.profile = "chain"
    assert Numerics() == num and Numerics("chain") != num


def test_every_stage_has_one_format():
    assert not FLOAT32_STAGES & STORE_STAGES and FORMAT_OF.keys() == FLOAT32_STAGES | STORE_STAGES
    narrow = Numerics("exact", "bf16", backend="numpy")
    assert narrow.format_of("logits") == narrow.format_of("d_topk_weights") == narrow.format_of("losses.z") == "float32"
    assert narrow.format_of("y") == narrow.format_of("d_w_gate") == narrow.format_of("shared.w_up") == "bf16"
    assert Numerics("float64", backend="numpy").format_of("logits") == "float64"
    with pytest.raises(KeyError):
        narrow.format_of("something")


# --- the environment -------------------------------------------------------------------------------------------------

CONTROL = """
#include <xmmintrin.h>
unsigned get(void) { return _mm_getcsr(); }
void set(unsigned value) { _mm_setcsr(value); }
"""


@pytest.fixture(scope="module")
def control(tmp_path_factory):
    """The floating-point control word of this thread, by a few lines of C."""
    folder = tmp_path_factory.mktemp("control")
    (folder / "control.c").write_text(CONTROL)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", folder / "control.so", folder / "control.c"], check=True)
    library = ctypes.CDLL(str(folder / "control.so"))
    library.get.restype = ctypes.c_uint
    library.set.argtypes = [ctypes.c_uint]
    library.set.restype = None
    return library


@pytest.mark.parametrize(
    "mode", [0x8000, 0x0040, 0x8040, 0x2000, 0x4000, 0x6000], ids="FTZ DAZ both down up to-zero".split()
)
def test_another_environment_is_refused(control, mode):
    EXACT.check_environment()
    before = control.get()
    control.set(before | mode)
    try:
        with pytest.raises(RuntimeError) as caught:
            EXACT.check_environment()
    finally:
        control.set(before)
    assert str(caught.value).startswith("floating-point environment: expected round-to-nearest with subnormals kept")
    EXACT.check_environment()
