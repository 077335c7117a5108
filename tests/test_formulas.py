"""Formulas of one stage: the exact value, by eighty digits of mpmath, rounded once into every format."""

from fractions import Fraction

import mpmath
import numpy as np
import pytest
from cases import config_of

from refmoe import ExpertsConfig, Numerics
from refmoe.activations import ACTIVATIONS, gated, gated_backward, plain, plain_backward
from refmoe.formats import round_fraction
from refmoe.routing import topk_weights, topk_weights_backward
from refmoe.scores import SCORE_FNS

mp = mpmath.mp.clone()
mp.dps = 80
NUMS = {store: Numerics("exact", store, backend="numpy") for store in ("float32", "bf16", "fp16")}
SPECIAL = [0.0, -0.0, 1e-45, -1e-45, 1e-38, -1e-38, 1e-30, -1e-30, 1, -1, 30, -30, 87, -87, 88.8, -104, -150]
SPECIAL += [1e5, -1e5, 1e30, -1e30, 3e38, -3e38]
ROOTS = [-1.2784645, -0.7517916, -0.7524614]  # where silu', gelu' and gelu_tanh' change their sign


def f32(values):
    return np.array(values, np.float32)


def points(count, seed):
    """float32 over the whole range, most of them where the functions bend, with extremes and neighbours of roots."""
    rng = np.random.default_rng(seed)
    sign = rng.choice([-1, 1], count)
    wide = sign * 2.0 ** rng.uniform(-149, 128, count)
    near = rng.normal(size=count) * rng.choice([1, 5, 20], count)
    root = rng.choice(ROOTS, count) * (1 + rng.normal(size=count) * 2.0 ** -rng.integers(4, 24, count))
    out = np.where(rng.random(count) < 0.3, wide, np.where(rng.random(count) < 0.8, near, root)).astype(np.float32)
    out[: len(SPECIAL)] = SPECIAL
    return out


def rounded(values, store):
    """mpf numbers, each rounded once."""
    return np.array([round_fraction(exactly(v), store) for v in values], np.float32)


def exactly(v):
    """The Fraction of an mpf, with what no format can tell from zero or infinity brought within reach."""
    sign, man, exp, bits = mp.mpf(v)._mpf_
    if man == 0:
        return Fraction(0)
    if not -1200 < exp + bits < 1200:
        man, exp = 1, 1200 if exp + bits > 0 else -1200
    return (-1 if sign else 1) * Fraction(int(man)) * Fraction(2) ** int(exp)


def agree(got, values, store):
    want = rounded(values, store).reshape(got.shape)
    different = got.view(np.uint32) != want.view(np.uint32)
    assert not different.any(), (
        different.sum(),
        np.argwhere(different)[:3].tolist(),
        got[different][:3],
        want[different][:3],
    )


# --- one argument ----------------------------------------------------------------------------------------------------


def sigmoid(x):
    return 1 / (1 + mp.exp(-x))


def softplus(x):
    return max(x, 0) + mp.log1p(mp.exp(-abs(x)))


def normal(x):
    return mp.erfc(-x / mp.sqrt(2)) / 2


def cubic(x):
    return mp.sqrt(8 / mp.pi) * (x + mp.mpf(0.044715) * x**3)


def silu_slope(x):
    return sigmoid(x) * (1 + x * sigmoid(-x))


def gelu_tanh_slope(x):
    inner = mp.sqrt(8 / mp.pi) * (1 + 3 * mp.mpf(0.044715) * x**2)
    return sigmoid(cubic(x)) + x * inner * sigmoid(cubic(x)) * sigmoid(-cubic(x))


VALUES = {
    "silu": lambda x: x * sigmoid(x),
    "gelu": lambda x: x * normal(x),
    "gelu_tanh": lambda x: x * sigmoid(cubic(x)),
    "relu": lambda x: max(x, mp.mpf(0)),
    "relu2": lambda x: max(x, mp.mpf(0)) ** 2,
}
SLOPES = {
    "silu": silu_slope,
    "gelu": lambda x: normal(x) + x * mp.exp(-x * x / 2) / mp.sqrt(2 * mp.pi),
    "gelu_tanh": gelu_tanh_slope,
    "relu": lambda x: mp.mpf(x > 0),
    "relu2": lambda x: 2 * max(x, mp.mpf(0)),
}
SCORES = {
    "sigmoid": (sigmoid, lambda x: sigmoid(x) * sigmoid(-x)),
    "sqrt_softplus": (lambda x: mp.sqrt(softplus(x)), lambda x: sigmoid(x) / (2 * mp.sqrt(softplus(x)))),
}


def exact(array):
    return [mp.mpf(float(v)) for v in array.reshape(-1)]


def test_each_table_has_its_row_here():
    assert VALUES.keys() == SLOPES.keys() == ACTIVATIONS.keys()
    assert SCORES.keys() | {"softmax", "softmax_tokens", "relu"} == SCORE_FNS.keys()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_over_the_whole_range(name):
    experts, x, d = ExpertsConfig(gated=False, activation=name), points(2100, 1), points(2100, 2)[::-1].copy()
    values, slopes = [VALUES[name](v) for v in exact(x)], [SLOPES[name](v) for v in exact(x)]
    back = [a * b for a, b in zip(exact(d), slopes, strict=True)]
    for store, num in NUMS.items():
        agree(plain(x, experts, num), values, store)
        agree(plain_backward(d, x, experts, num), back, store)
        agree(plain_backward(np.ones_like(x), x, experts, num), slopes, store)


@pytest.mark.parametrize("name", SCORES)
def test_elementwise_scores_over_the_whole_range(name):
    forward, backward = SCORE_FNS[name]
    x, d = points(2100, 3), points(2100, 4)[::-1].copy()
    agree(forward(x, NUMS["bf16"]), [SCORES[name][0](v) for v in exact(x)], "float32")  # float32 in every store
    slopes = [SCORES[name][1](v) for v in exact(x)]
    agree(backward(d, x, NUMS["fp16"]), [a * b for a, b in zip(exact(d), slopes, strict=True)], "float32")


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("store", NUMS)
def test_gated_activations_are_one_rounding_of_both_arguments(name, store):
    alpha = 1.702 if name == "silu" else 1.0
    experts = ExpertsConfig(activation=name, alpha=alpha, limit=7.0, linear_offset=1.0)
    gate, up, d = points(700, 5), points(700, 6)[::-1].copy(), points(700, 7)
    up[100:130], gate[200:230], up[300:330] = -1, 7, -7  # the zero of up + 1, and both limits
    values, d_gate, d_up = [], [], []
    for g, u, back in zip(exact(gate), exact(up), exact(d), strict=True):
        inner, line = min(g, mp.mpf(7)) * mp.mpf(alpha), max(min(u, mp.mpf(7)), mp.mpf(-7)) + 1
        act, slope = VALUES[name](inner) / mp.mpf(alpha), SLOPES[name](inner)
        values.append(act * line)
        d_gate.append(back * line * slope if g <= 7 else mp.mpf(0))
        d_up.append(back * act if abs(u) <= 7 else mp.mpf(0))
    num = NUMS[store]
    agree(gated(gate, up, experts, num), values, store)
    got = gated_backward(d, gate, up, experts, num)
    agree(got[0], d_gate, store)
    agree(got[1], d_up, store)


@pytest.mark.parametrize(
    ("name", "low", "high", "slopes"),
    [
        ("silu", 0, np.inf, (0, 1)),
        ("gelu", 0, np.inf, (0, 1)),
        ("gelu_tanh", 0, np.inf, (0, 1)),
        ("relu", 0, np.inf, (0, 1)),
        ("relu2", 0, np.inf, (0, np.inf)),
    ],
)
def test_limits_at_the_infinities(name, low, high, slopes):
    experts, ends = ExpertsConfig(gated=False, activation=name), f32([-np.inf, np.inf, np.nan])
    for num in NUMS.values():
        value, slope = plain(ends, experts, num), plain_backward(f32([1, 1, 1]), ends, experts, num)
        assert value.tobytes() == f32([low, high, np.nan]).tobytes()
        assert slope.tobytes() == f32([*slopes, np.nan]).tobytes()


def test_limits_of_the_scores():
    ends = f32([-np.inf, np.inf])
    assert SCORE_FNS["sigmoid"][0](ends, NUMS["float32"]).tobytes() == f32([0, 1]).tobytes()
    assert SCORE_FNS["sqrt_softplus"][0](ends, NUMS["float32"]).tobytes() == f32([0, np.inf]).tobytes()


# --- rows ------------------------------------------------------------------------------------------------------------


def softmax(row):
    powers = [mp.exp(v) for v in row]
    return [p / sum(powers) for p in powers]


def centred(weights, values):
    """w_j (v_j - sum_i w_i v_i), written so that equal values give exactly zero."""
    return [
        w * sum(u * (v - x) for u, x in zip(weights, values, strict=True)) for w, v in zip(weights, values, strict=True)
    ]


def rows(count, width, seed):
    """Rows of ordinary, of far apart and of equal entries; gaps stay below 1000."""
    rng = np.random.default_rng(seed)
    out = rng.normal(size=(count, width)) * rng.choice([1e-3, 1, 10, 60], (count, 1))
    out[::11] = out[::11, :1]
    return out.astype(np.float32)


def test_softmax_and_its_backward():
    z, d = rows(700, 3, 1), rows(700, 3, 2)[::-1].copy()
    d[5::17] *= f32(1e30)
    p = [softmax(exact(row)) for row in z]
    agree(SCORE_FNS["softmax"][0](z, NUMS["float32"]), [v for row in p for v in row], "float32")
    back = [v for weights, row in zip(p, d, strict=True) for v in centred(weights, exact(row))]
    agree(SCORE_FNS["softmax"][1](d, z, NUMS["float32"]), back, "float32")


def test_renormalised_softmax_and_its_backward():
    """One stage over the logits of the kept slots, forward and back; +0 elsewhere."""
    config = config_of(routing={"normalize": True, "scaling_factor": 2.5}, num_experts=5)
    z, G = rows(400, 5, 3), rows(400, 3, 4)[::-1].copy()
    index = np.argsort(-z, axis=1, kind="stable")[:, :3]
    scores = SCORE_FNS["softmax"][0](z, NUMS["float32"])
    kept = np.take_along_axis(z, index, axis=1)
    w = [softmax(exact(row)) for row in kept]
    got = topk_weights(z, scores, index, index >= 0, config, NUMS["float32"])
    agree(got, [mp.mpf(2.5) * v for row in w for v in row], "float32")
    d_z, none = topk_weights_backward(G, z, scores, index, index >= 0, config, NUMS["float32"])
    back = [mp.mpf(2.5) * v for weights, row in zip(w, G, strict=True) for v in centred(weights, exact(row))]
    agree(np.take_along_axis(d_z, index, axis=1), back, "float32")
    assert none is None and np.count_nonzero(d_z) <= 1200


@pytest.mark.parametrize("mode", ["add", "clamp"])
@pytest.mark.parametrize("score", ["sigmoid", "sqrt_softplus", "softmax"])
def test_weights_over_stored_scores_and_their_backward(score, mode):
    """c s_j / den with the stored scores; d_s = c (G_j - sum G_i s_i / den) / den, times s'(z) if elementwise."""
    eps = 0.75
    routing = {"score_fn": score, "normalize": True, "norm_eps": eps, "norm_eps_mode": mode, "scaling_factor": 2.5}
    config, num = config_of(routing=routing, num_experts=5), NUMS["float32"]
    z, G = rows(250, 5, 5), rows(250, 3, 6)[::-1].copy()
    index = np.argsort(-z, axis=1, kind="stable")[:, :3]
    scores = SCORE_FNS[score][0](z, num)
    gathered = np.take_along_axis(scores, index, axis=1)
    forward, back = [], []
    for s, g in zip(map(exact, gathered), map(exact, G), strict=True):
        total = sum(s)
        constant = mode == "clamp" and total < eps
        den = total + eps if mode == "add" else max(total, mp.mpf(eps))
        forward += [mp.mpf(2.5) * v / den for v in s]
        slack = eps if mode == "add" else 0
        for g_j in g:
            pull = sum(v * (g_j - g_i) for v, g_i in zip(s, g, strict=True)) + slack * g_j
            back.append(mp.mpf(2.5) * (g_j / den if constant else pull / den**2))
    agree(topk_weights(z, scores, index, index >= 0, config, num), forward, "float32")
    d_z, d_scores = topk_weights_backward(G, z, scores, index, index >= 0, config, num)
    if score == "softmax":
        agree(np.take_along_axis(d_scores, index, axis=1), back, "float32")
        agree(d_z, [v for a, b in zip(z, d_scores) for v in centred(softmax(exact(a)), exact(b))], "float32")
    else:
        slopes = [SCORES[score][1](v) for v in exact(np.take_along_axis(z, index, axis=1))]
        agree(np.take_along_axis(d_z, index, axis=1), [a * b for a, b in zip(back, slopes, strict=True)], "float32")


def test_softmax_of_logits_far_apart():
    z = rows(300, 3, 8) * f32(1e30)
    p = [v for row in z for v in softmax(exact(row))]
    agree(SCORE_FNS["softmax"][0](z, NUMS["float32"]), p, "float32")


def test_log_sum_exp():
    z = rows(400, 4, 7)
    z[::13] *= f32(1e30)
    got = NUMS["float32"].evaluate("lse", lambda m, z: m.logsumexp(z), z, core=1)
    want = []
    for row in map(exact, z):
        top = max(row)
        want.append(top + mp.log(sum(mp.exp(v - top) for v in row)))
    agree(got, want, "float32")
