"""Formulas of whole rows in C give NumPy's bits: softmax, its gradient, log-sum-exp, over all or some of a row."""

import mpmath
import numpy as np
import pytest

from refmoe import kernels

if kernels.build_error() is not None:
    pytest.skip(f"no compiled module: {kernels.build_error()}", allow_module_level=True)

from refmoe import scores
from refmoe.config import MoEConfig, RoutingConfig
from refmoe.numerics import Named, Numerics
from refmoe.routing.weights import topk_weights, topk_weights_backward

KERNELS = [name for name, can_run, _ in kernels.available() if can_run]
LOG_SUM_EXP = Named("log_sum_exp", lambda m, z: m.logsumexp(z))
NUMPY = Numerics(backend="numpy")

each_kernel = pytest.mark.parametrize("kernel", KERNELS)


def compiled(kernel, threads=2):
    return Numerics(backend="c", kernel=kernel, threads=threads)


def draw(rows, length, spread, seed=1):
    """Logits and gradients; some rows of equal logits, of equal gradients, of one logit far above the others."""
    rng = np.random.default_rng(seed)
    z = (rng.standard_normal((rows, length)) * spread).astype(np.float32)
    d = rng.standard_normal((rows, length)).astype(np.float32)
    z[0], d[1], d[2] = z[0, 0], d[1, 0], 0
    z[3, -1], z[4, 0], z[5], z[6] = 390, 1000, -1e30, z[6] * np.float32(1e-30)
    return d, z


def weights_config(length):
    return MoEConfig(
        hidden_size=4, intermediate_size=4, num_experts=length, top_k=length,
        routing=RoutingConfig(normalize=True, scaling_factor=2.5),
    )  # fmt: skip


def every_result(d, z, kept, num):
    yield "softmax", scores.softmax(z, num)
    yield "softmax_backward", scores.softmax_backward(d, z, num)
    yield "log_sum_exp", num.evaluate("lse", LOG_SUM_EXP, z, core=1)
    yield "sigmoid", scores.sigmoid(z, num)
    yield "sigmoid_backward", scores.sigmoid_backward(d, z, num)
    config, experts = weights_config(z.shape[1]), np.tile(np.arange(z.shape[1]), (len(z), 1))
    yield "weights", topk_weights(z, None if kept is None else z, experts, kept, config, num)
    yield "weights_backward", topk_weights_backward(d, z, z, experts, kept, config, num)[0]


def assert_equal(got, want, what):
    wrong = np.argwhere(got.view(np.uint32) != want.view(np.uint32))
    assert not len(wrong), (what, [(tuple(i), got[tuple(i)], want[tuple(i)]) for i in wrong[:5]])


WANTED = {}


def case(length, spread):
    if (length, spread) not in WANTED:
        d, z = draw(30 if length < 20 else 10, length, spread)
        kept = np.random.default_rng(2).random(z.shape) < 0.7
        kept[7] = False
        WANTED[length, spread] = d, z, kept, list(every_result(d, z, kept, NUMPY))
    return WANTED[length, spread]


@pytest.mark.parametrize("spread", (1.0, 40.0))
@pytest.mark.parametrize("length", (1, 2, 8, 17, 70))
@each_kernel
@pytest.mark.filterwarnings("ignore:top_k=1")
def test_rows_equal_numpy(kernel, length, spread):
    d, z, kept, want = case(length, spread)
    num = compiled(kernel)
    for (what, got), (_, value) in zip(every_result(d, z, kept, num), want, strict=True):
        assert_equal(got, value, what)
    asked = {what for what, _ in num.engine.calls}
    assert asked == {"softmax", "softmax_backward", "log_sum_exp", "gated", "gated_backward", "at_slots"}


@each_kernel
def test_rows_with_infinities_equal_numpy(kernel):
    """A mask of groups makes logits of -inf; a gradient may be anything."""
    d, z = draw(12, 5, 2.0)
    z[8, 2] = z[9, 0] = -np.inf
    d[10, 1], d[11, 3] = np.inf, np.nan
    for formula in (scores.softmax_backward, lambda _, z, num: scores.softmax(z, num)):
        assert_equal(formula(d, z, compiled(kernel)), formula(d, z, NUMPY), "non-finite")


@each_kernel
def test_nothing_ordinary_is_left_open(kernel):
    d, z = (a[8:] for a in draw(2008, 64, 3.0))
    num = compiled(kernel)
    rule = num._rule("lse")
    made = [num.engine.formula(rule, "softmax", 1.0, (z,)), num.engine.formula(rule, "softmax_backward", 1.0, (d, z)),
            num.engine.formula(rule, "log_sum_exp", None, (z,))]  # fmt: skip
    assert sum(len(left) for ((_, left),) in made) <= 6


# ---- the weights of few slots ----


@each_kernel
def test_few_slots_are_one_softmax_of_what_stands_there(kernel):
    """Slots that weigh nothing: unused ones, dropped ones, experts without weight. NumPy has no such call."""
    rng, num, c = np.random.default_rng(3), compiled(kernel), 2.5
    z, indices = draw(40, 16, 3.0)[1], rng.permuted(np.tile(np.arange(16), (40, 1)), axis=1)[:, :6].copy()
    indices[::3, 4], indices[7] = -1, -1
    for kept in (None, rng.random(indices.shape) < 0.8):
        made = num.kept_softmax("topk_weights", z, indices, kept, 13, c)
        weighs = (indices >= 0) & (indices < 13) & (True if kept is None else kept)
        stands = np.where(weighs, np.take_along_axis(z, np.maximum(indices, 0), axis=1), z[:, :1])
        formula = Named("softmax", lambda m, z, u: m.masked_softmax(z, m.real(u) == 1) * c, c)
        assert_equal(made, NUMPY.evaluate("topk_weights", formula, stands, weighs, core=1), kept)
    assert num.engine.calls == {("at_slots", kernel): 2, ("softmax", kernel): 2}
    assert NUMPY.kept_softmax("topk_weights", z, indices, None, 13, c) is None


@each_kernel
def test_what_is_open_or_not_few_is_read_as_any_formula(kernel):
    """A midpoint, which C leaves open, at first without room to say so; 1024 slots; ids that C does not read."""
    midpoint = 1 + 2.0**-24  # times 1/2
    for tokens, c, kind, calls in ((3, midpoint, np.int64, 3), (512, 2.5, np.int64, 1), (3, 2.5, np.int32, 1)):
        z, indices = np.zeros((tokens, 2), np.float32), np.tile(np.arange(2, dtype=kind), (tokens, 1))
        config = MoEConfig(hidden_size=4, intermediate_size=4, num_experts=2, top_k=2,
                           routing=RoutingConfig(normalize=True, scaling_factor=c))  # fmt: skip
        num = compiled(kernel)
        assert num.kept_softmax("topk_weights", z, indices, None, 2, c) is None
        num.engine.calls.clear()
        got = topk_weights(z, None, indices, None, config, num)
        assert_equal(got, topk_weights(z, None, indices, None, config, NUMPY), (tokens, c, kind))
        assert num.engine.calls["softmax", kernel] == calls


# ---- midpoints ----


def rows_next_to_midpoints(count):
    """Two logits d = j 2^-23 apart, j odd: p = 1/2 + d/4 - d^3/48 + ..., just below the midpoint 1/2 + j 2^-25.

    The distances go from 2^-74 to 2^-38: around what the bound of float64 decides, and far below.
    """
    j = 2 * np.unique(np.exp2(np.linspace(0, 11.5, count)).astype(int)) + 1
    z = np.stack([j * 2.0**-23, np.zeros(len(j))], axis=1).astype(np.float32)
    return z, (0.5 + (j - 1) / 2 * 2.0**-24).astype(np.float32)


@each_kernel
def test_next_to_a_midpoint_the_right_side_is_taken_and_c_takes_it(kernel):
    """A bound that is too small shows here: what lies on the midpoint in float64 would go to the even side."""
    z, below = rows_next_to_midpoints(400)
    num = compiled(kernel)
    used = np.ones((len(z), 3), bool)
    used[:, 1] = False
    between = np.insert(z, 1, 7.0, axis=1)
    for stored, column in (((z,), 0), ((z[:, ::-1].copy(),), 1), ((between, used), 0)):
        ((out, left),) = num.engine.formula(num._rule("lse"), "softmax", 1.0, stored)
        assert len(left) == 0
        assert_equal(out[:, column], below, "midpoints")
    first = z[:4]
    assert_equal(scores.softmax(first, num), scores.softmax(first, NUMPY), "the nearest")


def factor_next_to_midpoint(z):
    """c, c p_0 rounded, and how far c p_0 is from a midpoint, of itself: c is the quotient nearest to it."""
    with mpmath.workprec(300):
        share = 1 / mpmath.fsum(mpmath.exp(mpmath.mpf(float(x)) - float(z[0])) for x in z)
        below = np.float32(float(share) * 1.3)
        above = np.nextafter(below, np.float32(np.inf))
        middle = (mpmath.mpf(float(below)) + float(above)) / 2
        c = float(middle / share)
        return c, below if c * share < middle else above, abs(float(c * share / middle - 1))


def hard_rows():
    """Long rows, which are 2^-54 from a midpoint and nearer, and of 6000 rows of two those within 2^-61."""
    rng = np.random.default_rng(3)
    for length, spread in [(9, 4.0), (40, 1.0), (40, 12.0), (300, 2.0)] * 3:
        z = (rng.standard_normal(length) * spread).astype(np.float32)
        yield z, *factor_next_to_midpoint(z)[:2]
    for z in (rng.standard_normal((6000, 2)) * 3).astype(np.float32):
        c, want, distance = factor_next_to_midpoint(z)
        if distance < 2.0**-61:
            yield z, c, want


def test_what_float64_cannot_decide_pairs_of_doubles_decide_right():
    rows = list(hard_rows())
    assert len(rows) > 40
    for kernel in KERNELS:
        num = compiled(kernel)
        for z, c, want in rows:
            ((out, left),) = num.engine.formula(num._rule("lse"), "softmax", c, (z[None],))
            assert len(left) == 0 and out[0, 0] == want, (z, c)


def test_a_share_on_a_midpoint_is_left_to_numpy():
    """Equal logits: p = 1/2, and c p lies halfway between two numbers of float32."""
    num, c = compiled(KERNELS[-1]), 1 + 2.0**-24
    z = np.ones((1, 2), np.float32)
    ((_, left),) = num.engine.formula(num._rule("lse"), "softmax", c, (z,))
    assert list(left) == [0]
    share = Named("softmax", lambda m, z: m.softmax(z) * m.constant(c), c)
    assert_equal(num.evaluate("lse", share, z, core=1), np.full((1, 2), 0.5, np.float32), "tie")


def test_rows_beyond_the_proof_are_left_to_numpy():
    num = compiled(KERNELS[-1])
    for c, length in ((1.0, 1025), (0.0, 3), (-1.0, 3), (2.0**101, 3)):
        assert num.engine.formula(num._rule("lse"), "softmax", c, (np.ones((2, length), np.float32),)) is None
