"""Experts by hand: activations, clamps, biases, where the weight acts, the shared expert and its gate."""

import numpy as np
import pytest
from cases import config_of, make, same_bits

import refmoe
from refmoe import ExpertsConfig, Given, Numerics
from refmoe.activations import ACTIVATIONS, gated, gated_backward, plain, plain_backward
from refmoe.experts import (
    ExpertsRecord,
    expert_ffn,
    expert_ffn_backward,
    layer_output,
    layer_output_backward,
    post_norm,
    post_norm_backward,
    shared_expert,
    shared_expert_backward,
    weightless_experts,
    weightless_experts_backward,
)
from refmoe.norms import rms_norm, rms_norm_backward
from refmoe.recipes import MoEParams, SharedParams

EXACT = Numerics(backend="numpy")


def f32(values):
    return np.array(values, np.float32)


# --- activations -----------------------------------------------------------------------------------------------------

# act(0), act(1), act(-1), act(2): the float32 nearest to the exact value
VALUES = {
    "silu": [0, 0.7310585786300049, -0.2689414213699951, 1.7615941559557649],
    "gelu": [0, 0.8413447460685429, -0.15865525393145707, 1.9544997361036416],
    "gelu_tanh": [0, 0.8411919906082768, -0.15880800939172324, 1.9545976940877750],
    "relu": [0, 1, 0, 2],
    "relu2": [0, 1, 0, 4],
}
SLOPES = {
    "silu": [0.5, 0.9276705118714869, 0.07232948812851325, 1.0907842487848955],
    "gelu": [0.5, 1.0833154705876854, -0.08331547058768544, 1.0852318201962563],
    "gelu_tanh": [0.5, 1.0829640838457826, -0.08296408384578257, 1.0860992566236181],
    "relu": [0, 1, 0, 1],
    "relu2": [0, 2, 0, 4],
}
POINTS = f32([[0, 1, -1, 2]])


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_and_their_slopes(name):
    experts = ExpertsConfig(gated=False, activation=name)
    assert plain(POINTS, experts, EXACT).tolist() == f32([VALUES[name]]).tolist()
    assert plain_backward(np.ones_like(POINTS), POINTS, experts, EXACT).tolist() == f32([SLOPES[name]]).tolist()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gated_is_one_function_of_two_arguments(name):
    """act(g) u rounded once: at u = 3 that is not three times the rounded activation."""
    experts = ExpertsConfig(activation=name)
    up = np.full_like(POINTS, 3)
    want = f32([[3 * v for v in VALUES[name]]])
    got = gated(POINTS, up, experts, EXACT)
    np.testing.assert_allclose(got, want, rtol=2.0**-24)
    d_gate, d_up = gated_backward(np.full_like(POINTS, 2), POINTS, up, experts, EXACT)
    np.testing.assert_allclose(d_gate, f32([[6 * v for v in SLOPES[name]]]), rtol=2.0**-23)
    assert d_up.tolist() == f32([[2 * v for v in VALUES[name]]]).tolist()


def test_every_table_has_its_row_here():
    assert ACTIVATIONS.keys() == VALUES.keys() == SLOPES.keys()


def test_alpha_limit_and_offset():
    """gpt-oss: min(g, 7) sigmoid(1.702 min(g, 7)) (clip(u, -7, 7) + 1)."""
    experts = ExpertsConfig(alpha=1.702, limit=7.0, linear_offset=1.0)
    gate, up = f32([[7, 8, 1e30, -50, 0, 1]]), f32([[7, 7, 9, -9, 3, -9]])
    top = 7 / (1 + np.exp(-1.702 * 7)) * 8
    low = 1 / (1 + np.exp(-1.702)) * -6
    tiny = -50 / (1 + np.exp(1.702 * 50)) * -6
    np.testing.assert_allclose(gated(gate, up, experts, EXACT)[0], [top, top, top, tiny, 0, low], rtol=2.0**-23)
    d_gate, d_up = gated_backward(np.ones_like(gate), gate, up, experts, EXACT)
    # the gate is not clamped from below; up beyond the limit is a constant on both sides
    assert (d_gate[0, [1, 2]] == 0).all() and (d_gate[0, [0, 3, 4, 5]] != 0).all()
    assert (d_up[0, [2, 3, 5]] == 0).all() and (d_up[0, [0, 1]] != 0).all()
    assert d_gate[0, 4] == 2  # 1/2 (3 + 1)


def test_a_limit_after_the_activation():
    """Step-3.7: min(silu(g), L) clip(u, -L, L); silu(1.2784...) = 1 is inside, a little more is not."""
    experts = ExpertsConfig(activation="relu2", limit=4.0, limit_position="post")
    gate, up = f32([[2, 3, -5, 1, 2]]), f32([[5, 1, 2, -9, -4]])
    assert gated(gate, up, experts, EXACT).tolist() == [[16, 4, 0, -4, -16]]
    d_gate, d_up = gated_backward(np.ones_like(gate), gate, up, experts, EXACT)
    # at relu2(2) = 4, the limit, the gradient passes; up passes within its limits
    assert d_gate.tolist() == [[16, 0, 0, -8, -16]] and d_up.tolist() == [[0, 4, 0, 0, 4]]


def test_a_limit_after_silu_is_compared_exactly():
    """The float32 gates about the point where silu is 1/4: one clamped, one not, whatever silu rounds to."""
    limit = 0.25
    experts = ExpertsConfig(limit=limit, limit_position="post")
    gate = f32([0.415])
    while float(gate[0]) / (1 + np.exp(-float(gate[0]))) <= limit:
        gate = np.nextafter(gate, f32([1]))
    pair = f32([[np.nextafter(gate[0], np.float32(0)), gate[0]]])
    one = np.ones_like(pair)
    d_gate, _ = gated_backward(one, pair, one * 0.125, experts, EXACT)
    assert d_gate[0, 0] > 0 and d_gate[0, 1] == 0
    assert gated(pair, one * 0.125, experts, EXACT)[0, 1] == 0.25 * 0.125


def test_soft_caps():
    """c tanh(g / c) sigmoid(g) times c' tanh(u / c'); far out the parts are c and c'."""
    experts = ExpertsConfig(gate_softcap=4.0, up_softcap=25.0)
    gate, up = f32([[1, -2, 1e30, 0, -1e30]]), f32([[30, 1, 1e30, 5, 7]])
    want = [4 * np.tanh(0.25) / (1 + np.exp(-1)) * 25 * np.tanh(1.2)]
    want += [4 * np.tanh(-0.5) / (1 + np.exp(2)) * 25 * np.tanh(0.04), 100, 0, 0]
    np.testing.assert_allclose(gated(gate, up, experts, EXACT)[0], want, rtol=2.0**-23)
    d_gate, d_up = gated_backward(np.ones_like(gate), gate, up, experts, EXACT)
    assert d_gate[0, 2] == 0 and d_up[0, 2] == 0 and d_gate[0, 4] == 0
    assert d_gate[0, 3] == np.float32(25 * np.tanh(0.2) / 2)  # silu'(0) = 1/2 with or without the cap
    slope = (1 - np.tanh(1.2) ** 2) * 4 * np.tanh(0.25) / (1 + np.exp(-1))
    np.testing.assert_allclose(d_up[0, 0], slope, rtol=2.0**-23)


def test_the_shared_expert_may_have_its_own_activation_and_limit():
    routed = ExpertsConfig(limit=7.0, shared_intermediate_size=1, shared_limit=16.0, shared_activation="relu")
    assert (routed.of_shared().limit, routed.of_shared().activation) == (16.0, "relu")
    unclamped = ExpertsConfig(limit=10.0, shared_intermediate_size=1, shared_clamped=False)
    assert unclamped.of_shared().limit is None and unclamped.of_shared().activation == "silu"
    record = shared_expert(f32([[9, 9]]), SHARED, ExpertsConfig(
        activation="relu", limit=2.0, shared_intermediate_size=1, shared_limit=4.0
    ), EXACT)  # fmt: skip
    assert record.hidden_rows.tolist() == [[16]]


def test_not_a_number_passes_through_clamps_and_relu():
    experts = ExpertsConfig(activation="relu", limit=1.0)
    nan, one = f32([[np.nan]]), f32([[1]])
    for gate, up in ((nan, one), (one, nan)):
        assert np.isnan(gated(gate, up, experts, EXACT)).all()
        for num in (EXACT, Numerics("chain", backend="c")):  # clamped or not: the gradient of each is not known
            assert all(np.isnan(d).all() for d in gated_backward(one, gate, up, experts, num))
    assert np.isnan(plain(nan, ExpertsConfig(gated=False, activation="relu2"), EXACT)).all()


# --- the feed-forward network ----------------------------------------------------------------------------------------


def params(w_gate, w_up, w_down, **biases):
    arrays = {"w_gate": w_gate, "w_up": w_up, "w_down": w_down} | biases
    return MoEParams()._replace(**{name: f32(a) for name, a in arrays.items() if a is not None})


def test_each_expert_works_on_its_rows():
    # two experts, D = 2, F = 1; relu(g) u, all by hand
    p = params([[[1, 0]], [[0, 2]]], [[[0, 1]], [[1, 1]]], [[[1], [2]], [[3], [0]]])
    rows, offsets = f32([[1, 2], [-1, 5], [1, 3]]), np.array([0, 2, 3])
    gate, up, hidden, _, y = made = expert_ffn(rows, p, offsets, ExpertsConfig(activation="relu"), EXACT)
    assert gate.tolist() == [[1], [-1], [6]] and up.tolist() == [[2], [5], [4]]
    assert hidden.tolist() == [[2], [0], [24]] and y.tolist() == [[2, 4], [0, 0], [72, 0]]
    d_y = f32([[1, 1], [1, 1], [0, 7]])
    back, grads = expert_ffn_backward(d_y, rows, made, p, offsets, ExpertsConfig(activation="relu"), EXACT, MoEParams())
    # d_hidden = W_down^T d_y = 3, 3, 0;  d_gate = d_hidden u [g > 0];  d_up = d_hidden relu(g)
    assert back.d_hidden_rows.tolist() == [[3], [3], [0]]
    assert back.d_gate_rows.tolist() == [[6], [0], [0]] and back.d_up_rows.tolist() == [[3], [0], [0]]
    # d_x = d_gate W_gate + d_up W_up = 6 (1, 0) + 3 (0, 1)
    assert back.d_x_rows.tolist() == [[6, 3], [0, 0], [0, 0]]
    assert grads["w_down"].tolist() == [[[2], [2]], [[0], [168]]]
    assert grads["w_gate"].tolist() == [[[6, 12]], [[0, 0]]] and grads["w_up"].tolist() == [[[3, 6]], [[0, 0]]]
    assert grads.keys() == {"w_gate", "w_up", "w_down"}


def test_plain_experts_with_biases():
    p = params(None, [[[1, 1]], [[1, -1]]], [[[2], [1]], [[1], [1]]], b_up=[[1], [-1]], b_down=[[0.5, 0], [0, -0.5]])
    rows, offsets = f32([[1, 2], [4, 1]]), np.array([0, 1, 2])
    experts = ExpertsConfig(gated=False, activation="relu2", biases=True)
    gate, up, hidden, _, y = made = expert_ffn(rows, p, offsets, experts, EXACT)
    assert gate is None and up.tolist() == [[4], [2]] and hidden.tolist() == [[16], [4]]
    assert y.tolist() == [[32.5, 16], [4, 3.5]]
    none = MoEParams()
    back, grads = expert_ffn_backward(f32([[1, 0], [1, 1]]), rows, made, p, offsets, experts, EXACT, none)
    assert back.d_gate_rows is None and back.d_up_rows.tolist() == [[16], [8]]  # 2 * 8, 2 * 4
    assert back.d_x_rows.tolist() == [[16, 16], [8, -8]]
    assert grads["b_up"].tolist() == [[16], [8]] and grads["b_down"].tolist() == [[1, 0], [1, 1]]


def test_a_bias_is_inside_the_one_rounding():
    p = params([[[1, 2.0**-24]]], [[[1, 0]]], [[[1], [0]]], b_gate=[[2.0**-24]], b_up=[[0]], b_down=[[0, 0]])
    gate, *_ = expert_ffn(f32([[1, 1]]), p, np.array([0, 1]), ExpertsConfig(activation="relu", biases=True), EXACT)
    assert gate.tolist() == [[1 + 2.0**-23]]


# --- where the weight acts -------------------------------------------------------------------------------------------


def one_token(position):
    """x = 3 through relu2(2 x) / 4 with weight 1/2, sigmoid(0)."""
    config = config_of(
        hidden_size=1, intermediate_size=1, num_experts=1, top_k=1, routing={"score_fn": "sigmoid"},
        experts={"gated": False, "activation": "relu2", "weight_position": position},
    )  # fmt: skip
    p = params(None, [[[2]]], [[[0.25]]], w_router=[[0]])
    record = refmoe.moe_forward(f32([[3]]), p, config, EXACT)
    return record, refmoe.moe_backward(f32([[1]]), f32([[3]]), p, record, config, EXACT)


def test_weight_on_the_output():
    record, grads = one_token("output")
    assert record.experts.weighted_x_rows is None and record.experts.up_rows.tolist() == [[6]]
    assert record.experts.y_rows.tolist() == [[9]] and record.y.tolist() == [[4.5]]  # 36 / 4, half of it
    assert grads.d_y_rows.tolist() == [[0.5]] and grads.d_topk_weights.tolist() == [[9]]
    assert grads.d_x_experts.tolist() == [[3]]  # d/dx x^2 / 2 at 3
    assert grads.d_weighted_x_rows is None


def test_weight_on_the_input():
    record, grads = one_token("input")
    assert record.experts.weighted_x_rows.tolist() == [[1.5]] and record.experts.up_rows.tolist() == [[3]]
    assert record.experts.y_rows.tolist() == [[2.25]] and record.y.tolist() == [[2.25]]  # (w x)^2
    assert grads.d_y_rows.tolist() == [[1]] and grads.d_weighted_x_rows.tolist() == [[3]]  # 2 w x
    assert grads.d_topk_weights.tolist() == [[9]] and grads.d_x_experts.tolist() == [[1.5]]  # 2 w x^2, 2 w^2 x


def test_weight_on_the_hidden_rows():
    """x = 3: hidden 36, weighted 18, y = 18 / 4 + bias 1: the bias is not weighted."""
    config = config_of(
        hidden_size=1, intermediate_size=1, num_experts=1, top_k=1, routing={"score_fn": "sigmoid"},
        experts={"gated": False, "activation": "relu2", "weight_position": "hidden", "biases": True},
    )  # fmt: skip
    p = params(None, [[[2]]], [[[0.25]]], w_router=[[0]], b_up=[[0]], b_down=[[1]])
    record = refmoe.moe_forward(f32([[3]]), p, config, EXACT)
    assert record.experts.weighted_hidden_rows.tolist() == [[18]] and record.y.tolist() == [[5.5]]
    grads = refmoe.moe_backward(f32([[1]]), f32([[3]]), p, record, config, EXACT)
    assert grads.d_topk_weights.tolist() == [[9]] and grads.params.w_down.tolist() == [[[18]]]
    assert grads.rows.d_weighted_hidden_rows.tolist() == [[0.25]] and grads.rows.d_hidden_rows.tolist() == [[0.125]]
    assert grads.params.b_down.tolist() == [[1]] and grads.d_x_experts.tolist() == [[3]]


# --- experts without matrices ----------------------------------------------------------------------------------------

KINDS = {"constant_experts": 1, "identity_experts": 1, "zero_experts": 1}


def test_constant_identity_and_zero_experts():
    """One row each; W = 0, so the constant expert gives x / 2 + v / 2."""
    experts, offsets = ExpertsConfig(**KINDS), np.array([0, 1, 2, 3])
    p = MoEParams(w_constant=f32([[[0, 0], [0, 0]]]), constant=f32([[4, 8]]))
    x = f32([[2, -2], [-0.0, 5], [7, 7]])
    logits, weights, y = weightless_experts(x, offsets, p, experts, EXACT)
    assert logits.tolist() == [[0, 0]] and weights.tolist() == [[0.5, 0.5]]
    assert same_bits(y, f32([[3, 3], [-0.0, 5], [0, 0]]))
    d_y = f32([[1, 3], [-0.0, 2], [9, 9]])
    rows, grads = weightless_experts_backward(d_y, x, logits, weights, p, offsets, experts, EXACT, MoEParams())
    # d_a = <d, x>, <d, v> = -4, 28;  d_z = a_0 a_1 (d_a0 - d_a1) = -8 and its negative
    assert rows.d_constant_weights.tolist() == [[-4, 28]] and rows.d_constant_logits.tolist() == [[-8, 8]]
    assert same_bits(rows.d_x_rows, f32([[0.5, 1.5], [-0.0, 2], [0, 0]]))
    assert grads["constant"].tolist() == [[0.5, 1.5]] and grads["w_constant"].tolist() == [[[-16, 16], [16, -16]]]


def test_every_token_may_choose_experts_without_matrices_alone():
    """No row reaches a matrix: y = sum of weights times x, and the matrices have gradients of exactly +0."""
    few = {"identity_experts": 1, "zero_experts": 1}
    config = config_of(num_experts=2, top_k=2, experts=few, routing={"score_fn": "sigmoid"})
    x, p, d_y = make(config, EXACT, 4)
    given = Given(topk_indices=np.tile([2, 3], (4, 1)))
    record = refmoe.moe_forward(x, p, config, EXACT, given)
    assert record.plan.tokens_per_expert.tolist() == [0, 0, 4, 4] and record.experts.up_rows.shape == (0, 5)
    w = record.routing.topk_weights[:, :1].astype(np.float64)
    assert same_bits(record.y, (w * x).astype(np.float32))
    grads = refmoe.moe_backward(d_y, x, p, record, config, EXACT, given)
    assert same_bits(grads.params.w_down, np.zeros_like(p.w_down))
    assert same_bits(grads.d_x_experts, (w * d_y).astype(np.float32))
    assert (grads.d_topk_weights[:, 1] == 0).all() and (grads.d_topk_weights[:, 0] != 0).all()


def test_a_scaling_factor_reaches_identity_experts():
    """LongCat: weight times scaling factor times x."""
    config = config_of(num_experts=1, top_k=1, routing={"scaling_factor": 6.0}, experts={"identity_experts": 1})
    x, p, _ = make(config, EXACT, 1)
    given = Given(logits=f32([[0, 0]]), topk_indices=np.array([[1]]))
    assert same_bits(refmoe.moe_forward(x, p, config, EXACT, given).y, 3 * x)


# --- a narrower space, norms, the output -----------------------------------------------------------------------------

NAMES, BACK = ("latent_rms", "normed_latent_x"), ("d_latent_x", "d_w_latent_pre_norm")


def test_a_norm_by_hand():
    """x = (3, 4, 0, 0), eps 1/4 - 0: mean 25 / 4, rms 5 / 2 with eps 0, and weights (1, 2, 3, 4)."""
    x, w = f32([[3, 4, 0, 0]]), f32([1, 2, 3, 4])
    rms, normed = rms_norm(NAMES, x, w, "rms", 1e-30, EXACT)
    assert rms.tolist() == [[2.5]] and normed.tolist() == f32([[1.2, 3.2, 0, 0]]).tolist()
    centred = rms_norm(NAMES, x, w, "rms_centered", 1e-30, EXACT)[1]
    assert centred.tolist() == f32([[2.4, 4.8, 0, 0]]).tolist()
    # c d = (5, 0, 0, 5): sum c d x = 15, over 4 * 6.25: 3/5 of x taken away
    d_x, d_w = rms_norm_backward(BACK, f32([[5, 0, 0, 1.25]]), x, rms, w, "rms", EXACT)
    assert d_x.tolist() == f32([[(5 - 1.8) / 2.5, -2.4 / 2.5, 0, 2]]).tolist() and d_w.tolist() == [6, 0, 0, 0]
    more = rms_norm_backward(BACK, f32([[5, 0, 0, 1.25]]), x, rms, w, "rms", EXACT, into=f32([1, 1, 1, 1]))[1]
    assert more.tolist() == [7, 1, 1, 1]
    assert rms_norm(NAMES, x, None, "none", 1.0, EXACT) == (None, None)


def test_a_scale_before_the_norm():
    """Muse Spark: y = (1, 2, 0, 0), 1 + w = (3, 2, ., .), so (3, 4, 0, 0) over 5 / 2."""
    experts = ExpertsConfig(post_expert_norm="rms_input_scaled", norm_eps=1e-30)
    p = MoEParams(w_post_expert_norm=f32([2, 1, 5, 6]))
    made = post_norm(f32([[1, 2, 0, 0]]), p, experts, EXACT)
    assert made["scaled_y_rows"].tolist() == [[3, 4, 0, 0]] and made["y_rms"].tolist() == [[2.5]]
    assert made["normed_y_rows"].tolist() == f32([[1.2, 1.6, 0, 0]]).tolist()
    record = ExpertsRecord(y_rows=f32([[1, 2, 0, 0]]), **made)
    d_scaled, d_y, grads = post_norm_backward(f32([[5, 0, 0, 2.5]]), record, p, experts, EXACT, MoEParams())
    # sum d s = 15, over 4 * 6.25: 3/5 of s taken away
    assert d_scaled.tolist() == f32([[1.28, -0.96, 0, 1]]).tolist()
    np.testing.assert_allclose(d_y, [[3.84, -1.92, 0, 7]], rtol=2.0**-22)
    np.testing.assert_allclose(grads["w_post_expert_norm"], [1.28, -1.92, 0, 0], rtol=2.0**-22)


def test_the_norm_behind_an_expert_may_have_an_epsilon_of_its_own():
    """y = (1, 1), mean square 1: over the root of 1 + 3; norm_eps is left to the other norms."""
    p, rows = MoEParams(w_post_expert_norm=f32([0, 0])), f32([[1, 1]])
    for eps, root in ((3.0, 2.0), (None, 4.0)):
        experts = ExpertsConfig(post_expert_norm="rms_input_scaled", norm_eps=15.0, post_expert_norm_eps=eps)
        made = post_norm(rows, p, experts, EXACT)
        assert made["y_rms"].tolist() == [[root]] and made["normed_y_rows"].tolist() == [[1 / root] * 2]


def latent_layer(**fields):
    """One expert relu(2 u) of the latent u = x_0 + x_1, back as (u', 3 u'); weight 1/2."""
    config = config_of(
        hidden_size=2, intermediate_size=1, num_experts=1, top_k=1, routing={"score_fn": "sigmoid"},
        experts={"gated": False, "activation": "relu", "latent_size": 1, **fields},
    )  # fmt: skip
    p = params(None, [[[2]]], [[[1]]], w_router=[[0, 0]], w_latent_in=[[1, 1]], w_latent_out=[[1], [3]])
    return config, p


def test_experts_in_a_narrower_space():
    config, p = latent_layer()
    x = f32([[1, 2], [-4, 1]])
    record = refmoe.moe_forward(x, p, config, EXACT)
    assert record.experts.latent_x.tolist() == [[3], [-3]] and record.experts.x_rows.tolist() == [[3], [-3]]
    assert record.experts.latent_routed.tolist() == [[3], [0]] and record.y.tolist() == [[3, 9], [0, 0]]
    grads = refmoe.moe_backward(f32([[1, 1], [1, 0]]), x, p, record, config, EXACT)
    # d_latent_routed = 1 + 3, d_y = 2, d_x_rows = 4;  the second row is shut off
    assert grads.latent.d_latent_routed.tolist() == [[4], [1]] and grads.latent.d_latent_x.tolist() == [[4], [0]]
    assert grads.d_x_experts.tolist() == [[4, 4], [0, 0]] and grads.params.w_latent_in.tolist() == [[4, 8]]
    assert grads.params.w_latent_out.tolist() == [[3], [3]] and grads.d_topk_weights.tolist() == [[24], [0]]


def test_an_output_bias_is_added_once_in_the_one_rounding():
    config, p = latent_layer(output_bias=True)
    p = p._replace(output_bias=f32([2.0**-24, -1]))
    record = refmoe.moe_forward(f32([[1, 0], [0, 0]]), p, config, EXACT)
    assert record.y.tolist() == [[1, 2], [2.0**-24, -1]]  # 1 + 2^-24 is a tie, to even
    grads = refmoe.moe_backward(f32([[1, 2], [3, 4]]), f32([[1, 0], [0, 0]]), p, record, config, EXACT)
    assert grads.params.output_bias.tolist() == [4, 6]


def test_what_the_weights_leave_of_x():
    """BASE: alpha f(x) + (1 - alpha) x; a token that is dropped keeps x."""
    config = config_of(
        hidden_size=1, intermediate_size=1, num_experts=1, top_k=1, routing={"score_fn": "sigmoid"},
        experts={"gated": False, "activation": "relu", "residual": "complement"}, dispatch={"capacity": 1},
    )  # fmt: skip
    p, x = params(None, [[[1]]], [[[5]]], w_router=[[0]]), f32([[2], [3]])
    record = refmoe.moe_forward(x, p, config, EXACT)
    assert record.y.tolist() == [[6], [3]]  # 10 / 2 + 2 / 2
    grads = refmoe.moe_backward(f32([[1], [1]]), x, p, record, config, EXACT)
    assert grads.d_topk_weights.tolist() == [[8], [0]]  # 10 - 2, +0 where dropped
    assert grads.d_x_residual.tolist() == [[0.5], [1]] and grads.d_x_experts.tolist() == [[2.5], [0]]


def test_how_the_shared_part_is_combined():
    a, b, none = f32([[1, 2.0**-149]]), f32([[2, 0]]), MoEParams()
    for kind, want in (("sum", [3, 2.0**-149]), ("average", [1.5, 0]), ("sqrt2", [3 / np.sqrt(2), 2.0**-149])):
        experts = ExpertsConfig(shared_intermediate_size=1, shared_combine=kind)
        unnormed, rms, y = layer_output(a, b, none, experts, EXACT)
        assert unnormed is None and rms is None and y.tolist() == f32([want]).tolist()
        d = layer_output_backward(f32([[4, 0]]), None, None, none, experts, EXACT, none)
        assert d[0] is None and d[1][0, 0] == np.float32({"sum": 4, "average": 2, "sqrt2": 4 / np.sqrt(2)}[kind])
    experts = ExpertsConfig(shared_intermediate_size=1, output_norm="rms", norm_eps=1e-30)
    p = MoEParams(w_output_norm=f32([1, 1]))
    unnormed, rms, y = layer_output(f32([[1, 3]]), f32([[6, -2]]), p, experts, EXACT)
    assert unnormed.tolist() == [[7, 1]] and rms.tolist() == [[5]] and y.tolist() == f32([[1.4, 0.2]]).tolist()


# --- the shared expert -----------------------------------------------------------------------------------------------

SHARED = SharedParams(f32([[[1, 0]]]), f32([[[0, 1]]]), f32([[[1], [2]]]), None, None, None, f32([[1, -1]]))


def test_a_shared_expert_with_a_gate():
    experts = ExpertsConfig(activation="relu", shared_intermediate_size=1, shared_gate=True)
    x = f32([[2, 2], [-1, 3]])
    record = shared_expert(x, SHARED, experts, EXACT)
    assert record.hidden_rows.tolist() == [[4], [0]] and record.y_rows.tolist() == [[4, 8], [0, 0]]
    assert record.shared_gate_logits.tolist() == [[0], [-4]]
    assert record.shared_gate.tolist() == [[0.5], [np.float32(0.01798620996209156)]]
    assert record.shared.tolist() == [[2, 4], [0, 0]]
    d = f32([[1, 1], [1, 1]])
    back, grads = shared_expert_backward(d, x, SHARED, record, experts, EXACT, SharedParams())
    assert back.d_y_rows[0].tolist() == [0.5, 0.5] and back.d_shared_gate.tolist() == [[12], [0]]
    assert back.d_shared_gate_logits.tolist() == [[3], [0]]  # 12 / 4
    assert back.d_x_gate.tolist() == [[3, -3], [0, 0]]
    # d_hidden = 1/2 + 2/2 = 3/2, d_gate = 3/2 * 2, d_up = 3/2 * 2
    assert back.d_x_rows[0].tolist() == [3, 3] and back.d_x_shared[0].tolist() == [6, 0]
    assert grads["w_shared_gate"].tolist() == [[6, 6]]


def test_a_shared_expert_without_a_gate_is_added_as_it_is():
    config = config_of(
        hidden_size=2, intermediate_size=1, num_experts=2, top_k=1,
        experts={"activation": "relu", "shared_intermediate_size": 1},
    )  # fmt: skip
    shared = SHARED._replace(w_shared_gate=None)
    p = params(np.ones((2, 1, 2)), np.ones((2, 1, 2)), np.ones((2, 2, 1)), w_router=np.zeros((2, 2)))._replace(
        shared=shared
    )
    record = refmoe.moe_forward(f32([[2, 2]]), p, config, EXACT, Given(logits=f32([[0, 0]])))
    assert record.shared.shared_gate is None and same_bits(record.shared.shared, record.shared.y_rows)
    # (2 + 2) (2 + 2) with weight 1/2, and the shared (4, 8)
    assert record.routed.tolist() == [[8, 8]] and record.y.tolist() == [[12, 16]]


def test_the_sum_of_routed_and_shared_is_rounded_once():
    config = config_of(
        hidden_size=1, intermediate_size=1, num_experts=1, top_k=1, routing={"normalize": True},
        experts={"activation": "relu", "gated": False, "shared_intermediate_size": 1},
    )  # fmt: skip
    shared = SharedParams(None, f32([[[1]]]), f32([[[2.0**-24]]]), None, None, None, None)
    p = params(None, [[[1]]], [[[1 + 2.0**-23]]], w_router=[[0]])._replace(shared=shared)
    record = refmoe.moe_forward(f32([[1]]), p, config, EXACT)
    assert record.y.tolist() == [[1 + 2.0**-22]]  # 1 + 3 2^-24 is a tie, to even


def test_several_shared_experts_are_one_of_their_width():
    """Two experts of width 1, and one of width 2 made of them; then with weights of each token's own."""
    x = f32([[2, 2], [-1, 3]])
    two = SharedParams(f32([[[1, 0]], [[0, 1]]]), f32([[[0, 1]], [[1, 1]]]), f32([[[1], [2]], [[0], [1]]]))
    one = SharedParams(f32([[[1, 0], [0, 1]]]), f32([[[0, 1], [1, 1]]]), f32([[[1, 0], [2, 1]]]))
    experts = ExpertsConfig(activation="relu", shared_intermediate_size=1, shared_count=2)
    record = shared_expert(x, two, experts, EXACT)
    assert record.y_rows.tolist() == [[4, 8], [0, 0], [0, 8], [0, 6]] and record.shared.tolist() == [[4, 16], [0, 6]]
    merged = shared_expert(x, one, ExpertsConfig(activation="relu", shared_intermediate_size=2), EXACT)
    assert same_bits(merged.shared, record.shared)
    d = f32([[1, 1], [1, 1]])
    back, _ = shared_expert_backward(d, x, two, record, experts, EXACT, SharedParams())
    want, _ = shared_expert_backward(
        d, x, one, merged, ExpertsConfig(activation="relu", shared_intermediate_size=2), EXACT, SharedParams()
    )
    assert same_bits(back.d_x_shared, want.d_x_shared) and back.d_shared_weights is None
    w = f32([[0.5, 2], [1, 0.25]])
    weighed = shared_expert(x, two, experts, EXACT, w)
    assert weighed.shared.tolist() == [[2, 20], [0, 1.5]]
    back, _ = shared_expert_backward(d, x, two, weighed, experts, EXACT, SharedParams(), w)
    assert back.d_shared_weights.tolist() == [[12, 8], [0, 6]]
    assert back.d_y_rows.tolist() == [[0.5, 0.5], [1, 1], [2, 2], [0.25, 0.25]]
