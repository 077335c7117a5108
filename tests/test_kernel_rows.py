"""Formulas of whole rows in C give NumPy's bits: softmax, its gradient, log-sum-exp, over all or some of a row."""

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
    assert asked == {"softmax", "softmax_backward", "log_sum_exp", "gated", "gated_backward"}


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


def test_rows_beyond_the_proof_are_left_to_numpy():
    num = compiled(KERNELS[-1])
    for c, length in ((1.0, 1025), (0.0, 3), (-1.0, 3), (2.0**101, 3)):
        assert num.engine.formula(num._rule("lse"), "softmax", c, (np.ones((2, length), np.float32),)) is None
