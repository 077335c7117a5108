"""Formulas in C give NumPy's bits: every formula, kernel, format; what C decides, it decides right."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from refmoe import kernels

if kernels.build_error() is not None:
    pytest.skip(f"no compiled module: {kernels.build_error()}", allow_module_level=True)

import mpmath
from midpoints import DIGITS, hard_products

from refmoe.activations import gated, gated_backward, plain, plain_backward
from refmoe.config import ExpertsConfig, RoutingConfig
from refmoe.dispatch.rows import weighted_rows
from refmoe.formats import round_to
from refmoe.numerics import Named, Numerics
from refmoe.routing import front
from refmoe.scores import SCORE_FNS, sqrt_softplus_backward

KERNELS = [name for name, can_run, _ in kernels.available() if can_run]
FORMATS = ("float32", "bf16", "fp16")
EXPERTS = {
    "silu": ExpertsConfig(),
    "silu, clamped": ExpertsConfig(limit=1.5),
    "gpt-oss": ExpertsConfig(alpha=1.702, limit=7.0, linear_offset=1.0),
    "alpha": ExpertsConfig(alpha=0.3, linear_offset=-0.7),
    "gelu_tanh": ExpertsConfig(activation="gelu_tanh"),
    "gelu_tanh, clamped": ExpertsConfig(activation="gelu_tanh", limit=0.9),
    "relu": ExpertsConfig(activation="relu"),
    "relu, clamped": ExpertsConfig(activation="relu", limit=0.75),
    "relu2": ExpertsConfig(activation="relu2"),
    "gelu": ExpertsConfig(activation="gelu"),
    "gelu, clamped": ExpertsConfig(activation="gelu", limit=0.7, linear_offset=0.3),
    "capped": ExpertsConfig(gate_softcap=4.0, up_softcap=25.0, alpha=1.702, linear_offset=0.5),
    "up capped": ExpertsConfig(up_softcap=2.0, linear_offset=-0.7),
}
BOUNDED = RoutingConfig(logits_scale=-1.7, logits_softcap=0.5)
SPECIAL = np.array(
    [0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, 7.0, -7.0, 88.8, -88.8, -103.0, -104.5, 1e4, -1e4, 3.4e38, -3.4e38,
     1e-45, -1e-45, 1.1754944e-38, -1.2784645, -0.7524614, 2.0**-24, 1.5, -1.5, 65504.0, 65520.0],
    np.float32,
)  # fmt: skip

each_kernel = pytest.mark.parametrize("kernel", KERNELS)
each_format = pytest.mark.parametrize("store", FORMATS)


def compiled(kernel, store="float32", threads=1):
    return Numerics(store=store, backend="c", kernel=kernel, threads=threads)


def draw(store, size, count, seed):
    """Values of many magnitudes in the format, most of them near 1, where the activations bend."""
    rng = np.random.default_rng(seed)
    out = rng.standard_normal((count, size)) * rng.choice([1.0, 4.0, 20.0], (count, size))
    out[:, ::16] = np.ldexp(out[:, ::16], rng.integers(-140, 120, out[:, ::16].shape))
    return round_to(out, store)


def grid(store):
    """Every pair of the special values, thrice, the third one cycled."""
    special = round_to(SPECIAL.astype(np.float64), store)
    a, b = (side.ravel().copy() for side in np.meshgrid(special, special))
    return a, b, np.roll(np.resize(special, a.size), 3)


def every_result(experts, num, d, gate, up):
    yield "gated", gated(gate, up, experts, num)
    yield from zip(("d_gate", "d_up"), gated_backward(d, gate, up, experts, num), strict=True)
    if experts.limit is None and not experts.linear_offset and experts.gate_softcap is None:
        yield "plain", plain(gate, experts, num)
        yield "d_plain", plain_backward(d, gate, experts, num)


def assert_equal(got, want, *operands):
    wrong = np.flatnonzero(got.reshape(-1).view(np.uint32) != want.reshape(-1).view(np.uint32))
    assert not wrong.size, [tuple(np.ravel(a)[i] for a in (*operands, got, want)) for i in wrong[:5]]


WANTED = {}


def wanted(name, store, operands):
    """NumPy's results, made once for all kernels."""
    if (name, store) not in WANTED:
        WANTED[name, store] = dict(every_result(EXPERTS[name], Numerics(store=store, backend="numpy"), *operands))
    return WANTED[name, store]


@each_format
@each_kernel
@pytest.mark.parametrize("name", EXPERTS)
def test_activations_equal_numpy(name, kernel, store):
    """An odd size: the last lanes go through a buffer."""
    operands = draw(store, 2501, 3, seed=5)
    num = compiled(kernel, store)
    for what, got in every_result(EXPERTS[name], num, *operands):
        assert_equal(got, wanted(name, store, operands)[what], *operands)
    assert num.engine.calls["gated", kernel] and num.engine.calls["gated_backward", kernel]


def elementwise(num, d, z):
    """What a router evaluates element by element, and the softmax over tokens."""
    for name in ("sigmoid", "sqrt_softplus", "relu", "softmax_tokens"):
        table = (a.reshape(-1, 4) for a in (d, z)) if name == "softmax_tokens" else (d, z)
        d_scores, logits = (np.clip(a, -90, 90) if name == "softmax_tokens" else a for a in table)
        score, backward = SCORE_FNS[name]
        yield name, score(logits, num)
        yield f"d {name}", backward(d_scores, logits, num)
    yield "logits", front.bounded_logits(z, BOUNDED, "logits", num)
    yield "d_raw_logits", front.bounded_logits_backward(d, z, BOUNDED, num)
    yield "d_noise_logits", front.noise_std_backward(d, z, num)


@each_kernel
def test_scores_and_bounded_logits_equal_numpy(kernel):
    drawn = draw("float32", 996, 2, seed=6)
    special = SPECIAL[np.isfinite(SPECIAL)][:24]
    operands = [np.concatenate([a, edge]) for a, edge in zip(drawn, (np.roll(special, 5), special), strict=True)]
    if "scores" not in WANTED:
        WANTED["scores"] = dict(elementwise(Numerics(backend="numpy"), *operands))
    num = compiled(kernel)
    for what, got in elementwise(num, *operands):
        assert_equal(got, WANTED["scores"][what])
    least = {"gated": 5, "gated_backward": 4, "softmax": 1, "softmax_backward": 1}  # more where a list was too short
    assert all(num.engine.calls[what, kernel] >= count for what, count in least.items())


def test_where_a_product_leaves_float64_its_sign_is_not_lost():
    """The gate's part and the slope of the cap lie below 2^-500 each."""
    d, gate, up = (np.array([value], np.float32) for value in (1.5e10, -1.2e27, 6.3e20))
    made = gated_backward(d, gate, up, ExpertsConfig(gate_softcap=4.0, up_softcap=25.0), compiled(KERNELS[-1]))[1]
    assert made[0] == 0 and np.signbit(made[0])


@pytest.mark.parametrize("name", EXPERTS)
def test_special_operands_equal_numpy(name):
    operands = [a[::5].copy() for a in grid("float32")]
    want = dict(every_result(EXPERTS[name], Numerics(backend="numpy"), *operands))
    for kernel in KERNELS:
        for what, got in every_result(EXPERTS[name], compiled(kernel), *operands):
            assert_equal(got, want[what], *operands)


def test_far_beyond_the_activation_a_midpoint_is_told_from_its_neighbours():
    """d up is halfway between two bf16 numbers, and the slope 1 plus less than 2^-440."""
    d, gate, up = (np.array([value], np.float32) for value in (1.5, 100.0, 1.0 + 2.0**-7))
    for backend in ("c", "numpy"):
        num = Numerics(store="bf16", backend=backend)
        made, _ = gated_backward(d, gate, up, ExpertsConfig(activation="gelu_tanh"), num)
        assert made[0] == round_to(1.5 * up + 2.0**-30, "bf16")


# ---- midpoints ----


def factors_of_midpoints(store, count, seed):
    """w and x whose product is a midpoint of the format or one quantum of float32 beside it."""
    rng = np.random.default_rng(seed)
    keep = {"float32": 24, "bf16": 8, "fp16": 11}[store]
    x = round_to(rng.standard_normal(count), store)
    w = np.float32(1.0) + np.float32(2.0**-keep) * rng.integers(-3, 4, count).astype(np.float32)
    return w, x


@each_format
@each_kernel
def test_scaled_rows_equal_numpy(kernel, store):
    """Products of 16-bit operands are midpoints often; every one is decided, and NaN and infinities are right too."""
    w, x = (round_to(a.astype(np.float64), store) for a in factors_of_midpoints(store, 901, seed=3))
    rows = np.stack([x, draw(store, 901, 1, seed=4)[0], np.resize(SPECIAL, 901)], axis=1)
    num = compiled(kernel, store, threads=2)
    got = weighted_rows("d_y_rows", rows, w, num)
    assert_equal(got, weighted_rows("d_y_rows", rows, w, Numerics(store=store, backend="numpy")), rows)
    assert num.engine.calls["scaled_rows", kernel] == 1


def mp_silu(x, alpha=1):
    return x / (1 + mpmath.exp(-alpha * x))


def mp_gelu_tanh(x):
    a, b = mpmath.sqrt(8 / mpmath.pi), mpmath.mpf(0.044715)
    return x / (1 + mpmath.exp(-a * (x + b * x**3)))


def mp_slope(function):
    def slope(x):
        with mpmath.workdps(3 * DIGITS):
            h = mpmath.mpf(10) ** -DIGITS
            return (function(x + h) - function(x - h)) / (2 * h)

    return slope


HARD = {
    "silu": (ExpertsConfig(), mp_silu),
    "alpha": (ExpertsConfig(alpha=1.702), lambda x: mp_silu(x, mpmath.mpf(1.702))),
    "gelu_tanh": (ExpertsConfig(activation="gelu_tanh"), mp_gelu_tanh),
    "gelu": (ExpertsConfig(activation="gelu"), lambda x: x * mpmath.ncdf(x)),
    "capped": (ExpertsConfig(gate_softcap=4.0), lambda x: 4 * mpmath.tanh(x / 4) / (1 + mpmath.exp(-x))),
}


@pytest.mark.parametrize("name", HARD)
def test_next_to_a_midpoint_the_right_side_is_taken(name):
    """Distances around the declared bounds and far below them: a bound that is too small shows here."""
    experts, function = HARD[name]
    x = (np.random.default_rng(1).standard_normal(500) * (12 if name == "alpha" else 4)).astype(np.float32)
    hard = hard_products(function, x), hard_products(mp_slope(function), x)
    assert min(len(wanted) for _, _, wanted in hard) > 40
    for kernel in KERNELS:
        num = compiled(kernel)
        (x, q, value), (gate, d, d_gate) = hard
        one = np.ones_like
        assert_equal(gated(x, q, experts, num), value, x, q)
        assert_equal(gated_backward(q, x, one(x), experts, num)[1], value, x, q)
        assert_equal(gated_backward(d, gate, one(gate), experts, num)[0], d_gate, gate, d)
        if experts.gate_softcap is None:
            assert_equal(plain_backward(d, gate, experts, num), d_gate, gate, d)


def bounded(factors, z, num):
    """The soft cap of the logits times a factor, which C evaluates as it does an activation."""
    a, c = BOUNDED.logits_scale, BOUNDED.logits_softcap
    formula = Named("gated", lambda m, z, q: m.softcap(z * a, c) * q, ("softcap", a, None, 0.0, c))
    return num.evaluate("logits", formula, z, factors)


def sqrt_softplus(factors, z, num):
    formula = Named("gated", lambda m, z, q: m.sqrt_softplus(z) * q, ("sqrt_softplus", 1.0, None, 0.0))
    return num.evaluate("scores", formula, z, factors)


def bounded_backward(d, z, num):
    return front.bounded_logits_backward(d, z, BOUNDED, num)


def mp_sqrt_softplus(x):
    return mpmath.sqrt(mpmath.log1p(mpmath.exp(x)))


def mp_softcap(x):
    return mpmath.tanh(mpmath.mpf(-1.7) * x / 0.5) / 2


HARD_OF_A_ROUTER = {
    "sqrt_softplus": (mp_sqrt_softplus, lambda x: 0.5 / (1 + mpmath.exp(-x)) / mp_sqrt_softplus(x), 4,
                      sqrt_softplus, sqrt_softplus_backward),
    "softcap": (mp_softcap, lambda x: mpmath.mpf(-1.7) * (1 - 4 * mp_softcap(x) ** 2), 0.4, bounded, bounded_backward),
}  # fmt: skip


@pytest.mark.parametrize("name", HARD_OF_A_ROUTER)
def test_next_to_a_midpoint_scores_and_bounded_logits_take_the_right_side(name):
    """So many that some lie nearer than float64's own errors, where a bound that is too small errs."""
    function, derivative, width, there, back = HARD_OF_A_ROUTER[name]
    x = (np.random.default_rng(2).standard_normal(1500) * width).astype(np.float32)
    (z, q, value), (at, d, slope) = hard_products(function, x), hard_products(derivative, x)
    assert min(len(value), len(slope)) > 200
    for kernel in KERNELS:
        num = compiled(kernel)
        assert_equal(there(q, z, num), value, z, q)
        assert_equal(back(d, at, num), slope, at, d)
        assert num.engine.calls["gated", kernel] and num.engine.calls["gated_backward", kernel]


def test_exhaustive_walk_on_a_slice():
    """`make exhaustive` walks all of them."""
    walk = Path(__file__).parent / "exhaustive" / "compiled.py"
    assert runpy.run_path(str(walk))["main"](["--slice", "37/65536"]) == 0


# ---- what is left open ----


@each_kernel
def test_nothing_ordinary_is_left_open(kernel):
    """Else C would be right and slow: of a million elements it may leave a few."""
    rng = np.random.default_rng(7)
    d, gate, up = (rng.standard_normal((250, 400)).astype(np.float32) for _ in range(3))
    engine, experts = compiled(kernel).engine, EXPERTS["gpt-oss"]
    parameters = experts.activation, experts.alpha, experts.limit, experts.linear_offset
    rule = compiled(kernel)._rule("hidden_rows")
    made = engine.formula(rule, "gated", parameters, (gate, up))
    made += engine.formula(rule, "gated_backward", parameters, (d, gate, up))
    assert len(made) == 3 and sum(len(left) for _, left in made) <= 2


@each_kernel
def test_a_full_list_is_asked_for_again(kernel):
    gate, up = np.full((2, 3000), np.nan, np.float32)
    up[5] = gate[5] = 1.0
    rule = compiled(kernel)._rule("hidden_rows")
    ((_, left),) = compiled(kernel, threads=2).engine.formula(rule, "gated", ("silu", 1.0, None, 0.0), (gate, up))
    assert sorted(left) == [i for i in range(3000) if i != 5]


@pytest.mark.parametrize(
    "parameters",
    [("tanh", 1.0, None, 0.0), ("gelu", 1.5, None, 0.0), ("silu", 1.0, 2.0**-50, 0.0), ("silu", 1.0, None, 2.0**-70),
     ("relu", 1.0, 0.1, 0.0), ("relu", 1.0, None, 1.0), ("softcap", 1.0, None, 0.0),
     ("softcap", 1.0, None, 0.0, 2.0**-30), ("gelu", 1.0, None, 0.0, 3.0), ("silu", 2.0**-110, None, 0.0, 3.0),
     ("silu", 1.0, None, 0.0, None, 2.0**30)],
)  # fmt: skip
def test_parameters_beyond_the_proof_are_left_to_numpy(parameters):
    num = compiled(KERNELS[-1])
    one = np.ones(3, np.float32)
    assert num.engine.formula(num._rule("hidden_rows"), "gated", parameters, (one, one)) is None


def test_a_forced_tier_reads_every_formula_in_intervals():
    num = Numerics(backend="c", force_tier="exact")
    assert gated(*np.ones((2, 1, 2), np.float32), ExpertsConfig(), num).shape == (1, 2)
    assert "gated" not in {what for what, _ in num.engine.calls}
