"""Controllers of the selection bias and of a coefficient: by hand, by law, over micro-batches."""

import re
from fractions import Fraction

import numpy as np
import pytest
from cases import config_of, make, same_bits
from law_bridge import LAW, agree, edge_values, policy, tame, to_law, wild

import refmoe
from refmoe import Numerics
from refmoe.losses import (
    CONTROLLERS,
    PIDState,
    bias_edges,
    bias_histogram,
    required_bias,
    update_by_centred_sign,
    update_by_histogram,
    update_by_pid,
    update_by_quantile,
    update_by_share,
    update_coefficient,
    update_in_proportion,
    update_selection_bias,
)
from refmoe.recipes import generate

EXACT = Numerics(backend="numpy")
COUNTS = np.array([5, 4, 1, 2])


def f32(*values):
    return np.array(values, np.float32)


def test_the_table_holds_eight():
    assert len(CONTROLLERS) == 8 and all(callable(one) for one in CONTROLLERS.values())


# --- by hand ---------------------------------------------------------------------------------------------------------


def test_centred_signs_leave_the_sum_of_the_biases():
    """Signs -1, -1, 1, 1 have mean 0; signs -1, 1, 1, 1 mean 1/2."""
    assert update_by_centred_sign(f32(1, 2, 3, 4), COUNTS, 0.5, EXACT).tolist() == [0.5, 1.5, 3.5, 4.5]
    assert update_by_centred_sign(f32(0, 0, 0, 0), np.array([9, 1, 1, 1]), 1.0, EXACT).tolist() == [-1.5, 0.5, 0.5, 0.5]


def test_a_proportional_step_is_the_missing_load():
    assert update_in_proportion(f32(0, 0, 0, 1), COUNTS, 0.25, EXACT).tolist() == [-0.5, -0.25, 0.5, 1.25]


def test_shares_of_the_experts_with_weights():
    """Two of four ids have weights, K = 2: each of the two is to have 1.5 / (2 2) = 3/8 of the choices."""
    config = config_of(num_experts=2, top_k=2)
    got = update_by_share(f32(0, 0, 7, 7), np.array([1, 4, 2, 1]), 1.0, 1.5, config, EXACT)
    assert got.tolist() == [0.25, -0.125, 7, 7]
    assert update_by_share(f32(1, 2, 3, 4), np.zeros(4, int), 1.0, 1.5, config, EXACT).tolist() == [1, 2, 3, 4]


def test_pid_by_hand():
    """Errors 1 - 4 n / 12; then the integral doubles and the difference vanishes."""
    bias, state = update_by_pid(f32(0, 0, 0, 0), np.array([6, 3, 3, 0]), (0.5, 0.25, 2.0), None, EXACT)
    assert state.previous.tolist() == state.integral.tolist() == [-1, 0, 0, 1]
    assert bias.tolist() == [-2.75, 0, 0, 2.75]
    bias, state = update_by_pid(bias, np.array([6, 3, 3, 0]), (0.5, 0.25, 2.0), state, EXACT)
    assert state.integral.tolist() == [-2, 0, 0, 2] and bias.tolist() == [-3.75, 0, 0, 3.75]
    resting, state = update_by_pid(bias, np.zeros(4, int), (0.0, 1.0, 0.0), state, EXACT)
    assert resting.tolist() == [-5.75, 0, 0, 5.75] and state.previous.tolist() == [0] * 4


def test_the_coefficient_of_remoe():
    """More than K on average: times 1.2, as binary64 has it; else divided."""
    for active, want in ((13, Fraction(1e-8) * Fraction(1.2)), (12, Fraction(1e-8) / Fraction(1.2))):
        got = update_coefficient(np.float32(1e-8), active, 6, 2, EXACT)
        start = Fraction(float(np.float32(1e-8)))
        assert abs(Fraction(float(got)) / (want * start / Fraction(1e-8)) - 1) < 2**-24


def test_a_quantile_step_balances_a_skewed_batch():
    """The busiest of eight experts has more than twice its share before, and near its share after a few steps."""
    rng = np.random.default_rng(0)
    scores = (1 / (1 + np.exp(-rng.standard_normal((800, 8)) - np.arange(8) / 4))).astype(np.float32)
    bias, busiest = f32(*[0] * 8), []
    for _ in range(4):
        chosen = np.argsort(-(scores + bias))[:, :2]
        busiest.append(np.bincount(chosen.ravel(), minlength=8).max() / 200)
        bias = update_by_quantile(scores, bias, 2, EXACT)
    assert busiest[0] > 2 and busiest[1] < 1.3 and busiest[3] < 1.1
    assert abs(bias.astype(np.float64).sum()) < 1e-6


def test_the_conventions_of_the_quantile():
    """Two experts, K = 1, scores s and 0 of four tokens: required biases -s and 0 or s, by cutoff."""
    scores = f32(4, 3, 2, 1)[:, None] * f32(1, 0)[None]
    needed = required_bias(scores, f32(0, 0), 1, EXACT)
    assert needed.tolist() == [[-4, 0], [-3, 0], [-2, 0], [-1, 0]]
    assert required_bias(scores, f32(0, 0), 1, EXACT, cutoff="last")[:, 1].tolist() == [4, 3, 2, 1]
    # q = 2: the third smallest is -2, the second -3; less the mean with 0
    assert update_by_quantile(scores, f32(0, 0), 1, EXACT).tolist() == [-1, 1]
    assert update_by_quantile(scores, f32(0, 0), 1, EXACT, rank="last").tolist() == [-1.5, 1.5]
    assert update_by_quantile(scores, f32(0, 0), 1, EXACT, rank="mean").tolist() == [-1.25, 1.25]
    # Megatron's numbers: beta = the (q+1)-th largest of s - cutoff, to be subtracted: the negative of the first
    margins = np.sort(scores - scores.min(axis=1, keepdims=True), axis=0)[::-1]
    beta = margins[2] - margins[2].mean()
    assert (-beta).tolist() == [-1, 1]
    with pytest.raises(ValueError, match="top_k: expected less than the 2 experts, got 2"):
        required_bias(scores, f32(0, 0), 2, EXACT)


def test_histogram_by_hand():
    """Four bins over [-1, 1]; the quantile 1/2 of four tokens is where two of them lie below."""
    edges = bias_edges(f32(0, 0), 4, EXACT)
    assert edges.tolist() == [-1, -0.5, 0, 0.5, 1]
    needed = f32(-0.75, -0.5, 0.25, 9)[:, None] * f32(1, 0)[None]
    counts = bias_histogram(needed, edges)
    assert counts.tolist() == [[1, 1, 1, 1], [0, 0, 4, 0]]
    # expert 0: all of bin 1, its upper edge 0; expert 1: half of bin 2, 0.25; less the mean
    assert update_by_histogram(counts, edges, f32(0, 0), 1, EXACT).tolist() == [-0.125, 0.125]
    assert update_by_histogram(counts * 0, edges, f32(3, 1), 1, EXACT).tolist() == [3, 1]
    counts[0] = 2, 0, 0, 2  # bin 0 is enough: its upper edge -0.5, whatever lies beyond the empty bins
    assert update_by_histogram(counts, edges, f32(0, 0), 1, EXACT).tolist() == [-0.375, 0.375]


def test_the_histogram_is_near_the_exact_quantile():
    rng = np.random.default_rng(0)
    scores = (1 / (1 + np.exp(-rng.standard_normal((400, 8)) - np.arange(8) / 4))).astype(np.float32)
    bias = f32(*[0] * 8)
    exact = update_by_quantile(scores, bias, 2, EXACT)
    edges = bias_edges(bias, 1000, EXACT)
    counts = bias_histogram(required_bias(scores, bias, 2, EXACT), edges)
    halves = [bias_histogram(required_bias(part, bias, 2, EXACT), edges) for part in (scores[:150], scores[150:])]
    assert (sum(halves) == counts).all()  # histograms of micro-batches add up
    assert np.abs(update_by_histogram(counts, edges, bias, 2, EXACT) - exact).max() < 5e-3


# --- micro-batches ---------------------------------------------------------------------------------------------------


def test_counting_twice():
    """Recomputed activations count a batch twice: signs and fractions do not see it, the proportional rule does."""
    b, twice, config = f32(0.1, -0.2, 0.3, 0), 2 * COUNTS, config_of(num_experts=4, top_k=2)
    same = {
        "sign": lambda n: update_selection_bias(b, n, 0.01, EXACT),
        "centred_sign": lambda n: update_by_centred_sign(b, n, 0.01, EXACT),
        "share": lambda n: update_by_share(b, n, 0.01, 2.0, config, EXACT),
        "pid": lambda n: update_by_pid(b, n, (0.1, 0.1, 0.1), None, EXACT)[0],
    }
    assert all(same_bits(rule(COUNTS), rule(twice)) for rule in same.values())
    once, doubled = (update_in_proportion(b, n, 0.01, EXACT) for n in (COUNTS, twice))
    assert np.allclose(doubled - b, 2 * (once - b)) and not same_bits(once, doubled)


def test_counts_of_micro_batches_are_summed():
    config = config_of(num_experts=4, top_k=2)
    x, params, _ = make(config, EXACT, 8)
    whole = refmoe.moe_forward(x, params, config, EXACT).plan.assigned_per_expert
    parts = [refmoe.moe_forward(p, params, config, EXACT).plan.assigned_per_expert for p in (x[:3], x[3:])]
    assert (sum(parts) == whole).all()


# --- by law ----------------------------------------------------------------------------------------------------------


def biases(kind):
    return {
        "edges": edge_values("float32", infinite=False),
        "wild": wild("float32", (12,), 3),
        "tame": tame("float32", (6,), 1),
    }[kind]


@pytest.mark.parametrize("kind", ["edges", "wild", "tame"])
@pytest.mark.parametrize("rate", [0.001, 0.0, -1.5])
def test_rates_by_law(kind, rate):
    b, num = biases(kind), policy()
    n = np.random.default_rng(1).integers(0, 7, len(b))
    B, N = to_law(b), to_law(n)
    agree(LAW.update_by_centred_sign(B, N, rate), update_by_centred_sign(b, n, rate, num))
    agree(LAW.update_in_proportion(B, N, rate), update_in_proportion(b, n, rate, num))
    config = config_of(num_experts=len(b) - 2, top_k=3)
    agree(LAW.update_by_share(B, N, rate, 1.7, config.to_dict()), update_by_share(b, n, rate, 1.7, config, num))
    zeros, last = np.zeros_like(b), np.roll(b, 1)
    for state in (PIDState(zeros, zeros), PIDState(last, b)):
        law = LAW.update_by_pid(B, N, (rate, 0.3, 2.0), *map(to_law, state))
        bias, made = update_by_pid(b, n, (rate, 0.3, 2.0), state, num)
        agree(list(law), np.stack([bias, *made]))


@pytest.mark.parametrize(("tokens", "top_k"), [(1, 1), (7, 2), (9, 5), (12, 3)])
@pytest.mark.parametrize("cutoff", ["next", "last"])
def test_quantiles_by_law(tokens, top_k, cutoff):
    num, b = policy(), tame("float32", (6,), 2)
    for scores in (tame("float32", (tokens, 6), 4), np.round(tame("float32", (tokens, 6), 5) * 2) / 2):
        S, B = to_law(scores.astype(np.float32)), to_law(b)
        needed = required_bias(scores.astype(np.float32), b, top_k, num, cutoff)
        agree(LAW.required_bias(S, B, top_k, cutoff), needed)
        for rank in ("next", "last", "mean"):
            got = update_by_quantile(scores.astype(np.float32), b, top_k, num, cutoff, rank)
            agree(LAW.update_by_quantile(S, B, top_k, cutoff, rank), got)
        edges = bias_edges(b, 7, num)
        agree(LAW.bias_edges(B, 7), edges)
        counts = bias_histogram(needed, edges)
        assert LAW.bias_histogram(to_law(needed), to_law(edges)) == counts.tolist()
        law = LAW.update_by_histogram(counts.tolist(), to_law(edges), B, top_k)
        agree(law, update_by_histogram(counts, edges, b, top_k, num))


def test_the_coefficient_by_law():
    for value in (1e-8, 2.0**-149, 0.0, 3e38):
        for active in (5, 6, 7):
            law = LAW.update_coefficient(to_law(np.float32(value)), active, 3, 2, 1.2)
            agree([law], np.reshape(update_coefficient(np.float32(value), active, 3, 2, policy()), (1,)))


# --- the door --------------------------------------------------------------------------------------------------------

BIAS = np.zeros(4, np.float32)
WRONG = [
    ("selection_bias", [0.0] * 4, TypeError, "selection_bias: expected a NumPy array of shape (4,), got list"),
    ("selection_bias", BIAS.astype(float), TypeError, "selection_bias: expected native float32 in profile 'exact'"),
    ("selection_bias", BIAS[None], ValueError, "selection_bias: expected shape (4,), got (1, 4)"),
    ("assigned_per_expert", COUNTS / 2, TypeError, "assigned_per_expert: expected integers, got float64"),
    ("assigned_per_expert", COUNTS[:3], ValueError, "assigned_per_expert: expected shape (4,), got (3,)"),
    ("assigned_per_expert", -COUNTS, ValueError, "assigned_per_expert: expected counts from 0 on, got [-5, "),
    ("rate", float("nan"), ValueError, "rate: expected a finite number, got nan"),
    ("rate", 1j, ValueError, "rate: expected a finite number, got 1j"),
    ("rate", "fast", ValueError, "rate: expected a finite number, got 'fast'"),
]


@pytest.mark.parametrize("rule", ["sign", "centred_sign", "proportional", "share", "pid"])
@pytest.mark.parametrize(("name", "value", "error", "message"), WRONG)
def test_what_a_controller_is_given_is_looked_at(rule, name, value, error, message):
    given = {"selection_bias": BIAS, "assigned_per_expert": COUNTS, "rate": 0.5} | {name: value}
    rate = given.pop("rate")
    share = {"rate": rate, "expected": 2, "config": config_of(num_experts=4)}
    more = {"pid": {"gains": (0.1, rate, 0.1), "state": None}, "share": share}
    if rule == "pid":
        message = message.replace("rate:", "ki:")
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        CONTROLLERS[rule](**given, **more.get(rule, {"rate": rate}), num=EXACT)


@pytest.mark.parametrize("wrong", [{"cutoff": "first"}, {"rank": "first"}, {"top_k": 0}, {"top_k": 4}])
def test_what_a_quantile_is_asked_for_is_looked_at(wrong):
    (name,) = wrong
    scores = generate("scores", (5, 4), 0)
    with pytest.raises(ValueError, match=f"^{name}: expected "):
        CONTROLLERS["quantile"](**{"scores": scores, "selection_bias": BIAS, "top_k": 2} | wrong, num=EXACT)
