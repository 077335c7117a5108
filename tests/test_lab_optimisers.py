"""Optimisers and schedules of the lab: against the papers' formulas, in bits, and what they refuse."""

from math import sqrt

import numpy as np
import pytest

import refmoe
from refmoe.lab import optimisers, schedules
from refmoe.lab.optimisers import Optimiser
from refmoe.lab.trees import named, rebuilt
from refmoe.recipes import generate

CONFIG = refmoe.MoEConfig(hidden_size=4, intermediate_size=3, num_experts=3, top_k=2)


def scalars(optimiser, p, gradients, rates):
    """The papers' formulas on one number, with the powers taken as powers."""
    m = v = 0.0
    o = optimiser
    for t, (g, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        if o.kind == "adamw":
            p -= rate * o.weight_decay * p
        else:
            g = g + o.weight_decay * p
        if o.kind == "sgd":
            m = o.momentum * m + g
            p -= rate * m
            continue
        m, v = o.beta1 * m + (1 - o.beta1) * g, o.beta2 * v + (1 - o.beta2) * g**2
        p -= rate * (m / (1 - o.beta1**t)) / (sqrt(v / (1 - o.beta2**t)) + o.eps)
    return p


@pytest.mark.parametrize("kind", optimisers.OPTIMISERS)
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_a_rule_is_its_papers_formula(kind, decay):
    optimiser = Optimiser(kind, momentum=0.8, beta1=0.7, beta2=0.9, eps=1e-3, weight_decay=decay)
    p = generate("p", (5,), 0).astype(np.float64)
    gradients = [generate(f"g{t}", (5,), 0).astype(np.float64) for t in range(7)]
    rates = [0.1 + 0.01 * t for t in range(7)]
    want = [scalars(optimiser, p[i], [g[i] for g in gradients], rates) for i in range(5)]
    state = optimisers.start(optimiser, (p,))
    for g, rate in zip(gradients, rates, strict=True):
        state = optimisers.step(optimiser, (p,), (g,), state, rate)
    assert state.steps == 7
    assert np.abs(p - want).max() <= 1e-14


@pytest.mark.parametrize("kind", optimisers.OPTIMISERS)
def test_an_element_is_updated_as_if_it_were_alone(kind):
    """Blocks and vector instructions change no bit."""
    optimiser, size = Optimiser(kind, weight_decay=0.1), (1 << 14) + 5
    p, g = generate("p", (size,), 0), generate("g", (size,), 0, "wide")
    alone = [(p[i : i + 1].copy(), g[i : i + 1]) for i in (0, 7, 1 << 14, size - 1)]
    for params, grads in [(p, g), *alone]:
        state = optimisers.start(optimiser, (params,))
        for _ in range(3):
            state = optimisers.step(optimiser, (params,), (grads,), state, 0.01)
    assert p.dtype == np.float32
    assert [a[0] for a, _ in alone] == [p[i] for i in (0, 7, 1 << 14, size - 1)]


def test_parameters_of_the_layer_are_stepped_in_place_and_constants_stay():
    config = refmoe.MoEConfig(
        hidden_size=4, intermediate_size=3, num_experts=3, top_k=2,
        routing=refmoe.RoutingConfig(selection_bias=True, score_fn="sigmoid"),
    )  # fmt: skip
    params, num = refmoe.init_params(config), refmoe.Numerics("chain", backend="numpy")
    before = {name: array.copy() for name, array in named(params).items()}
    x = generate("x", (6, 4), 0)
    grads = refmoe.moe_backward(x, x, params, refmoe.moe_forward(x, params, config, num), config, num)
    optimiser = Optimiser("adam")
    optimisers.step(optimiser, params, grads.params, optimisers.start(optimiser, params), 0.01)
    same = {name for name, array in named(params).items() if (array == before[name]).all()}
    assert same == {"selection_bias"} and "selection_bias" not in optimisers.start(optimiser, params).first


def test_trees_are_named_and_rebuilt():
    params = refmoe.init_params(refmoe.load_preset("deepseek-v3", scale="minimal"))
    tree = (params, (params.w_router, None))
    arrays = named(tree)
    assert "0.shared.w_gate" in arrays and arrays["1.0"] is params.w_router and "1.1" not in arrays
    again = rebuilt(tree, {name: array + 1 for name, array in arrays.items()})
    assert type(again[0]) is type(params) and (again[0].shared.w_gate == params.shared.w_gate + 1).all()
    assert again[1][1] is None and again[0].b_gate is None


def test_a_gradient_that_does_not_fit_is_refused_and_nothing_has_changed():
    optimiser = Optimiser("sgd")
    params = refmoe.init_params(CONFIG)
    before = {name: array.copy() for name, array in named(params).items()}
    state, ones = optimisers.start(optimiser, params), {n: np.ones_like(a) for n, a in named(params).items()}
    grads = rebuilt(params, ones)
    bad = [
        (grads._replace(w_down=ones["w_up"][:1]), ValueError, r"grads\.w_down: expected shape \(3, 4, 3\), got \(1, 3"),
        (grads._replace(w_down=ones["w_down"].astype(np.float64)), TypeError, r"grads\.w_down: expected float32, got"),
        (grads._replace(b_up=np.ones((3, 3), np.float32)), ValueError, r"grads\.b_up: expected no gradient, got one;"),
    ]
    for wrong, error, text in bad:
        with pytest.raises(error, match=text):
            optimisers.step(optimiser, params, wrong, state, 0.1)
    with pytest.raises(ValueError, match=r"rate: expected a finite number, at least 0, got nan; "):
        optimisers.step(optimiser, params, grads, state, float("nan"))
    with pytest.raises(ValueError, match=r"rate: expected a finite number, at least 0, got -1e-09; "):
        optimisers.step(optimiser, params, grads, state, -1e-9)
    assert optimisers.step(optimiser, params, grads, state, 0.0).steps == 1  # as a schedule begins
    frozen = params._replace(w_up=params.w_up.transpose(0, 2, 1).copy().transpose(0, 2, 1))
    with pytest.raises(ValueError, match=r"params\.w_up: expected an array that can be changed in place"):
        optimisers.step(optimiser, frozen, grads, state, 0.1)
    assert all((array == before[name]).all() for name, array in named(params).items())


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"kind": "lion"}, r"kind: expected one of sgd, adam, adamw, got 'lion'; "),
        ({"beta2": 1.0}, r"beta2: expected a number from 0 up to, not including, 1, got 1\.0; "),
        ({"eps": -1.0}, r"eps: expected a finite number, at least 0, got -1\.0; "),
    ],
)
def test_constants_out_of_range_are_refused(settings, text):
    with pytest.raises(ValueError, match=text):
        Optimiser(**settings)


def test_a_schedule_is_linear_between_its_points():
    schedule = schedules.Schedule(((2, 1.0), (6, 3.0), (7, 0.5)))
    assert [schedule.rate(t) for t in range(9)] == [1.0, 1.0, 1.0, 1.5, 2.0, 2.5, 3.0, 0.5, 0.5]
    assert schedules.constant(0.25).rate(10**9) == 0.25
    assert [schedules.table([3, 1, 2]).rate(t) for t in range(4)] == [3, 1, 2, 2]


def test_warm_up_reaches_the_peak_and_decays_to_the_end():
    schedule = schedules.warm_up_and_decay(1.0, 4, 8, last=0.5)
    assert [schedule.rate(t) for t in range(9)] == [0.25, 0.5, 0.75, 1.0, 0.875, 0.75, 0.625, 0.5, 0.5]
    assert schedules.warm_up_and_decay(2.0, 0, 3).rate(1) == 1.0
    assert schedules.warm_up_and_decay(2.0, 0, 1).rate(0) == 2.0
    assert schedules.warm_up_and_decay(2.0, 1, 3).rate(0) == 2.0


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: schedules.Schedule(()), r"points: expected at least one \(step, rate\), got none; "),
        (lambda: schedules.Schedule(((1, 0.1), (1, 0.2))), r"points: expected ascending steps, got "),
        (lambda: schedules.constant(float("inf")), r"points: expected finite rates, at least 0, got "),
        (lambda: schedules.warm_up_and_decay(1.0, 5, 5), r"warm_up: expected from 0 to below the 5 steps, got 5; "),
    ],
)
def test_schedules_that_make_no_sense_are_refused(make, text):
    with pytest.raises(ValueError, match=text):
        make()
