"""Gradients at kinks and ties, where they are exactly zero, how their sources sum, how they accumulate."""

import numpy as np
import pytest
from cases import CASES, CONFIGS, completed, config_of, differing, make, run, same_bits, with_sequences
from planting import Lazy, Sink

import refmoe
from refmoe import Given, Losses, Numerics
from refmoe.activations import ACTIVATIONS, gated, gated_backward, plain, plain_backward
from refmoe.check import STEP, Complex128
from refmoe.config import ExpertsConfig
from refmoe.formats import round_to
from refmoe.losses import GIVES
from refmoe.numerics.rounding import exact_sum
from refmoe.recipes import CONSTANT_PARAMS, MoEParams, SharedParams, generate, name_params, parameter_shapes
from refmoe.routing import topk_weights_backward

EXACT = Numerics(backend="numpy")
FLOAT64 = Numerics("float64", backend="numpy")


# --- kinks, clamps and ties ------------------------------------------------------------------------------------------


def one_sided(function, at, side):
    """The derivative of the piece that holds just beside `at`, by complex step."""
    return np.imag(function(np.nextafter(at, side * np.inf) + 1j * STEP)) / STEP


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh", "relu", "relu2"])
def test_clamps_pass_the_gradient_at_their_limits_and_stop_it_beyond(activation):
    experts = ExpertsConfig(activation=activation, limit=1.0, linear_offset=0.5)
    edges = [np.nextafter(1.0, 0.0), 1.0, np.nextafter(1.0, 2.0), 7.0]
    gate, up = np.array([edges]), np.full((1, 4), 0.25)
    one = np.ones((1, 4))
    d_gate, _ = gated_backward(one, gate, up, experts, FLOAT64)
    inside = one_sided(lambda g: ACTIVATIONS[activation][0](Complex128(), g, 1.0) * 0.75, 1.0, -1)
    np.testing.assert_allclose(d_gate[0, :2], inside, rtol=1e-13)  # the limit is inclusive
    assert same_bits(d_gate[0, 2:], np.zeros(2))
    up = np.array([[*edges[:3], -1.0]])
    _, d_up = gated_backward(one, np.full((1, 4), 0.5), up, experts, FLOAT64)
    value = gated(np.full((1, 1), 0.5), np.full((1, 1), 0.5), experts, FLOAT64)[0, 0]  # act(0.5) (0.5 + 0.5)
    np.testing.assert_allclose(d_up[0], [value, value, 0, value], rtol=1e-13)
    assert d_up[0, 2] == 0


@pytest.mark.parametrize(("activation", "above"), [("relu", 1.0), ("relu2", 0.0)])
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_relu_has_gradient_zero_at_zero(activation, above, zero):
    experts = ExpertsConfig(activation=activation, gated=False)
    act = ACTIVATIONS[activation][0]
    assert one_sided(lambda u: act(Complex128(), u, 1.0), 0.0, 1) == pytest.approx(above, abs=1e-300)
    assert one_sided(lambda u: act(Complex128(), u, 1.0), 0.0, -1) == 0
    for num in (EXACT, FLOAT64):
        at = np.array([[zero, -1e-30, 1e-30]], num.dtype)
        d = plain_backward(np.full((1, 3), -3, num.dtype), at, experts, num)
        assert same_bits(d[0, :2], np.zeros(2, num.dtype))  # +0, whatever the signs
        assert d[0, 2] == (-3 if activation == "relu" else num.dtype(-6) * num.dtype(1e-30))
        assert same_bits(plain(at, experts, num)[0, :2], np.zeros(2, num.dtype))


def test_a_tie_takes_the_gradient_of_the_selection_that_was_made():
    """Two experts with equal logits at the edge of the selection: each choice, given, has its own gradient."""
    config = config_of(routing={"score_fn": "sigmoid"}, top_k=1)
    x, params, d_y = make(config, FLOAT64, 2)
    logits = np.full((2, 6), -1.0)
    logits[:, [1, 4]] = 0.5
    grads = {}
    for expert in (1, 4):
        given = Given(logits=logits, topk_indices=np.full((2, 1), expert))
        record = refmoe.moe_forward(x, params, config, FLOAT64, given)
        g = refmoe.moe_backward(d_y, x, params, record, config, FLOAT64, given)
        # y = sigmoid(z) FFN_e(x), so d_z = sigmoid'(z) <d_y, FFN_e(x)>
        s = 1 / (1 + np.exp(-0.5))
        want = s * (1 - s) * (d_y * record.experts.y_rows).sum(axis=1)
        np.testing.assert_allclose(g.d_logits_task[:, expert], want, rtol=1e-13)
        assert same_bits(np.delete(g.d_logits_task, expert, axis=1), np.zeros((2, 5)))
        grads[expert] = g
    given = Given(logits=logits)
    record = refmoe.moe_forward(x, params, config, FLOAT64, given)
    assert (record.routing.topk_indices == 1).all()  # the tie goes to the lowest id
    g = refmoe.moe_backward(d_y, x, params, record, config, FLOAT64, given)
    assert not differing(g, grads[1]) and differing(g, grads[4])


# --- where the gradient is exactly zero, and where not ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("routing", "reaches_all"),
    [
        ({"score_fn": "sigmoid"}, False),
        ({"score_fn": "sqrt_softplus", "normalize": True, "norm_eps": 0.5}, False),
        ({"normalize": True}, False),
        ({}, True),
        ({"normalize": True, "norm_eps": 0.5}, True),
    ],
)
@pytest.mark.parametrize("num", [EXACT, Numerics("chain", "bf16", backend="numpy"), FLOAT64], ids=lambda n: n.profile)
def test_unselected_experts_get_a_task_gradient_only_through_a_softmax_over_all(routing, reaches_all, num):
    record, grads = run(config_of(routing=routing), num)
    unselected = np.ones(grads.d_logits_task.shape, bool)
    np.put_along_axis(unselected, record.routing.topk_indices, False, axis=-1)
    there = grads.d_logits_task[unselected]
    if reaches_all:
        assert (there != 0).all()
    else:
        assert same_bits(there, np.zeros_like(there))
    assert (grads.d_logits_task[~unselected] != 0).all()


@pytest.mark.parametrize("num", [EXACT, Numerics("exact", "bf16", backend="numpy"), FLOAT64], ids=lambda n: n.store)
def test_top_1_renormalised_has_no_task_gradient(num):
    record, grads = run(CASES["top_1"], num)
    assert (record.routing.topk_weights == 1).all()
    assert same_bits(grads.d_logits_task, np.zeros_like(grads.d_logits_task))
    assert same_bits(grads.params.w_router, np.zeros_like(grads.params.w_router))
    assert (grads.d_topk_weights != 0).all()


@pytest.mark.parametrize("num", [EXACT, Numerics("chain", backend="numpy"), FLOAT64], ids=lambda n: n.profile)
def test_an_expert_without_tokens_has_gradient_plus_zero(num):
    config = config_of(routing={"score_fn": "sigmoid"}, experts={"biases": True})
    given = Given(topk_indices=np.tile([4, 1, 0], (8, 1)))
    record, grads = run(config, num, given=given)
    assert record.plan.tokens_per_expert.tolist() == [8, 8, 0, 0, 8, 0]
    for name in ("w_gate", "w_up", "w_down", "b_gate", "b_up", "b_down"):
        gradient = getattr(grads.params, name)
        assert same_bits(gradient[[2, 3, 5]], np.zeros_like(gradient[:3])), name
        assert (gradient[[0, 1, 4]] != 0).any(axis=tuple(range(1, gradient.ndim))).all(), name


def test_dropped_slots_give_nothing_back():
    record, grads = run(CASES["before_drop"], EXACT)
    dropped = record.plan.slot_row < 0
    assert dropped.any() and same_bits(grads.d_topk_weights[dropped], np.zeros(dropped.sum(), np.float32))
    given = with_sequences(8)._replace(topk_indices=np.full((8, 3), -1))
    _, grads = run(CASES["before_drop"], EXACT, given=given)
    assert same_bits(grads.d_x_experts, np.zeros((8, 6), np.float32)) and same_bits(
        grads.d_x, np.zeros((8, 6), np.float32)
    )


def test_the_selection_bias_has_no_gradient():
    record, grads = run(CASES["groups"], EXACT)
    assert record.routing.choice_scores is not None and grads.params.selection_bias is None


# --- sums of sources -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("store", ["float32", "bf16"])
def test_sources_are_kept_and_sum_to_the_whole(name, store):
    num = Numerics("exact", store, backend="numpy")
    _, g = run(CONFIGS[name], num)
    by_name = {field: d for field, d in g._asdict().items() if d is not None}
    parts = [d for field, d in by_name.items() if field.startswith("d_x_")]
    whole = g.router.d_jittered_x if CONFIGS[name].routing.jitter == "block" else g.d_x
    assert same_bits(whole, exact_sum([p.astype(np.float64) for p in parts], store))
    sources = {field: d for field, d in by_name.items() if field.startswith("d_logits_")}
    assert same_bits(g.d_logits, exact_sum([p.astype(np.float64) for p in sources.values()], "float32"))
    losses = [loss for loss in GIVES if getattr(CONFIGS[name].losses, loss) and f"d_logits_{loss}" in GIVES[loss]]
    assert sources.keys() == {"d_logits_task", *(f"d_logits_{loss}" for loss in losses)}


def test_an_upstream_gradient_of_the_logits_is_one_more_source():
    config = CASES["sqrt_softplus_add"]
    x, params, d_y = make(config, EXACT)
    more = generate("more", (8, 6), 0)
    record = refmoe.moe_forward(x, params, config, EXACT)
    without = refmoe.moe_backward(d_y, x, params, record, config, EXACT)
    g = refmoe.moe_backward(d_y, x, params, record, config, EXACT, d_logits=more)
    sources = (g.d_logits_task, g.d_logits_balance, g.d_logits_z, g.d_logits_importance, more)
    assert same_bits(g.d_logits, exact_sum([s.astype(np.float64) for s in sources], "float32"))
    assert same_bits(g.d_logits_task, without.d_logits_task) and not same_bits(g.d_x_router, without.d_x_router)


def test_upstream_gradients_of_the_losses_scale_their_sources():
    config = CASES["sqrt_softplus_add"]
    x, params, d_y = make(config, EXACT)
    record = refmoe.moe_forward(x, params, config, EXACT)
    ones = refmoe.moe_backward(d_y, x, params, record, config, EXACT)
    g = refmoe.moe_backward(
        d_y, x, params, record, config, EXACT, d_losses=Losses(balance=-2.0, z=np.float32(0.5), importance=0.0)
    )
    assert same_bits(g.d_logits_balance, -2 * ones.d_logits_balance)
    assert same_bits(g.d_logits_z, ones.d_logits_z / 2)
    assert same_bits(g.d_logits_importance, np.zeros_like(g.d_logits_importance))
    partly = refmoe.moe_backward(d_y, x, params, record, config, EXACT, d_losses=Losses(z=np.float32(0.5)))
    assert same_bits(partly.d_logits_balance, ones.d_logits_balance)  # one not given is 1


# --- accumulation ----------------------------------------------------------------------------------------------------


def _first_with_each_parameter():
    """Names of configurations that have all trained parameters among them, in every way that one is summed."""
    seen, names = set(CONSTANT_PARAMS), []
    for name, config in CONFIGS.items():
        ways = config.experts.post_expert_norm, config.experts.weight_position, config.routing.selection
        new = {*parameter_shapes(config), *ways} - seen
        names += [name] if new else []
        seen |= new
    return names


@pytest.mark.parametrize("name", _first_with_each_parameter())
def test_every_gradient_is_added_to_what_is_there(name):
    config = CONFIGS[name]
    x, params, d_y = make(config, EXACT)
    given = completed(with_sequences(8), config, EXACT, 8)
    record = refmoe.moe_forward(x, params, config, EXACT, given)
    alone = name_params(refmoe.moe_backward(d_y, x, params, record, config, EXACT, given).params)
    start = {n: (g * np.float32(0.375) + np.float32(0.25)) for n, g in alone.items()}
    into = _complete(refmoe.recipes.assemble_params(start), params)
    added = name_params(refmoe.moe_backward(d_y, x, params, record, config, EXACT, given, into=into).params)
    assert added.keys() == alone.keys() == parameter_shapes(config).keys() - set(CONSTANT_PARAMS)
    for n, got in added.items():
        assert (np.abs(got - (start[n] + alone[n])) <= 2.0**-22 * (np.abs(start[n]) + np.abs(alone[n]))).all(), n


@pytest.mark.parametrize("name", ["weight_on_input", "gpt-oss-20b", "qwen1.5-moe-a2.7b"])
@pytest.mark.parametrize("store", ["float32", "fp16"])
@pytest.mark.parametrize("backend", ["numpy", "c"])
def test_accumulating_into_arrays_rounds_the_exact_sum_once(name, store, backend):
    """A sum of exact products plus what is there: not the rounded gradient plus what is there."""
    config, num = CONFIGS[name], Numerics("exact", store, backend=backend)
    wide = Numerics("float64", backend="numpy")  # bf16-recipe products sum exactly in binary64 here
    x, params, d_y = make(config, num, recipe="bf16")
    given = with_sequences(8)
    record = refmoe.moe_forward(x, params, config, num, given)
    grads = refmoe.moe_backward(d_y, x, params, record, config, num, given)
    start = {n: round_to(0.37 * g.astype(np.float64) + 1e-3, store) for n, g in name_params(grads.params).items()}
    into = refmoe.recipes.assemble_params(start)
    into = _complete(into, params)
    added = refmoe.moe_backward(d_y, x, params, record, config, num, given, into=into)
    rows = grads.rows
    want = {
        "w_down": _products(grads.d_y_rows, record.experts.hidden_rows, record.plan.expert_offsets, wide),
        "w_up": _products(rows.d_up_rows, _read(record), record.plan.expert_offsets, wide),
        "w_router": grads.d_logits.astype(np.float64).T @ x,
    }
    for field, exact in want.items():
        tolerance = 2.0**-40 * np.abs(exact).max()
        got, begun = getattr(added.params, field), getattr(into, field)
        low, high = (round_to(begun + exact + sign * tolerance, store) for sign in (-1, 1))
        assert ((low <= got) & (got <= high)).all(), field
    for field, gradient in name_params(added.params).items():
        twice = round_to(start[field].astype(np.float64) + name_params(grads.params)[field], store)
        assert np.abs(gradient - twice).max() <= np.abs(twice).max() * 2.0**-6, field
    assert not differing(added._replace(params=None), grads._replace(params=None))


def _complete(into, params):
    """A MoEParams with a place for every nested field."""
    return into if params.shared is None else into._replace(shared=into.shared or SharedParams())


def _read(record):
    weighted = record.experts.weighted_x_rows
    return record.experts.x_rows if weighted is None else weighted


def _products(d_rows, x_rows, offsets, num):
    return num.contract_backward_w("d_w_up", d_rows.astype(np.float64), x_rows.astype(np.float64), offsets)


def test_sinks_and_lazy_weights_are_visited_once_an_expert_in_each_direction():
    config = CASES["weight_on_input"]
    x, params, d_y = make(config, EXACT)
    given = with_sequences(8)
    record = refmoe.moe_forward(x, params, config, EXACT, given)
    want = refmoe.moe_backward(d_y, x, params, record, config, EXACT, given)
    lazy = {name: Lazy(getattr(params, name)) for name in ("w_gate", "w_up", "w_down")}
    sinks = {name: Sink() for name in lazy}
    shared = SharedParams()
    into = MoEParams(shared=shared)._replace(**sinks)
    read = params._replace(**lazy)
    assert not differing(refmoe.moe_forward(x, read, config, EXACT, given), record)
    busy = np.flatnonzero(record.plan.tokens_per_expert).tolist()
    assert all(source.reads == busy for source in lazy.values())  # the forward reads an expert with rows once
    got = refmoe.moe_backward(d_y, x, read, record, config, EXACT, given, into=into)
    assert all(source.reads == busy + busy for source in lazy.values())
    for name, sink in sinks.items():
        assert sink.experts == list(range(config.num_experts))
        assert same_bits(np.stack(sink.taken), getattr(want.params, name))
        assert getattr(got.params, name) is sink
    rest = dict.fromkeys(sinks)
    assert not differing(
        got._replace(params=got.params._replace(**rest)), want._replace(params=want.params._replace(**rest))
    )


def test_rules_that_need_no_scores_return_none_for_them():
    config = CASES["top_1"]
    one = np.zeros((1, 1), np.int64)
    arrays = np.ones((1, 1), np.float32), np.zeros((1, 6), np.float32), np.full((1, 6), 1 / 6, np.float32)
    d_logits, d_scores = topk_weights_backward(*arrays, one, one >= 0, config, EXACT)
    assert d_scores is None and same_bits(d_logits, np.zeros((1, 6), np.float32))
