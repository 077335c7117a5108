"""Routing by hand: small numbers whose steps stand in the comments."""

import dataclasses

import numpy as np
import pytest
from cases import CASES, config_of, differing, make, same_bits

import refmoe
from refmoe import Given, Numerics, RoutingConfig
from refmoe.routing import (
    choice_scores,
    front,
    joint_weights,
    joint_weights_backward,
    router_logits,
    scale_weights,
    scale_weights_backward,
    select_topk,
    topk_weights,
    topk_weights_backward,
)
from refmoe.scores import SCORE_FNS
from refmoe.selection import given as given_indices

EXACT = Numerics(backend="numpy")
FLOAT64 = Numerics("float64", backend="numpy")


def f32(values):
    return np.array(values, np.float32)


def of_ids(routing, indices, scores, zeros, **sections):
    """A configuration with as many ids as scores, the last `zeros` of them zero experts."""
    experts = {"experts": {"zero_experts": zeros}} if zeros else {}
    return config_of(routing=routing, top_k=len(indices), num_experts=len(scores) - zeros, **experts, **sections)


def weights(routing, scores, indices=(0, 1), kept=None, logits=None, zeros=0, **sections):
    """topk_weights of one token, as a list."""
    config = of_ids(routing, indices, scores, zeros, **sections)
    index = np.array([indices])
    kept = index >= 0 if kept is None else np.array([kept])
    logits = f32([logits if logits is not None else [0] * len(scores)])
    return topk_weights(logits, f32([scores]), index, kept, config, EXACT)[0].tolist()


# --- logits and scores -----------------------------------------------------------------------------------------------


def test_logits_are_one_contraction_with_the_bias_inside():
    # 1 + 2^-24 rounds to 1, and then 2^-24 more would be lost again; summed before the rounding they make 1 + 2^-23
    x, w = f32([[1, 2.0**-24]]), f32([[1, 1], [2, 0]])
    bias = f32([2.0**-24, -0.5])
    assert router_logits(x, w, bias, EXACT).tolist() == [[1 + 2.0**-23, 1.5]]
    assert router_logits(x, w, None, EXACT).tolist() == [[1, 2]]


def test_scores():
    z = f32([[0, 0, 0, 0]])
    assert SCORE_FNS["softmax"][0](z, EXACT).tolist() == [[0.25] * 4]
    assert SCORE_FNS["sigmoid"][0](z, EXACT).tolist() == [[0.5] * 4]
    assert SCORE_FNS["relu"][0](f32([[2.5, -1, -0.0]]), EXACT).tobytes() == f32([[2.5, 0, 0]]).tobytes()
    assert SCORE_FNS["sqrt_softplus"][0](z, EXACT)[0, 0] == np.float32(0.83255461115769775635)  # sqrt(log 2)
    far = f32([[200, -200, 0, 100]])
    assert SCORE_FNS["softmax"][0](far, EXACT).tolist() == [[1, 0, 0, np.float32(3.720075976020836e-44)]]  # e^-100
    assert SCORE_FNS["sigmoid"][0](far, EXACT).tolist() == [[1, 0, 0.5, 1]]
    assert SCORE_FNS["sqrt_softplus"][0](far, EXACT)[0].tolist() == [
        np.float32(200**0.5), np.float32(3.720075976020836e-44), np.float32(0.83255461115769775635), 10
    ]  # fmt: skip


def test_what_a_router_reads():
    # sum x^2 = 25 and D eps = 11: the root of 36 is 6
    assert front.input_norm(f32([[3, -4]]), f32([6, 12]), 5.5, EXACT).tolist() == [[3, -8]]
    assert front.jitter(f32([[3, -4]]), f32([[0.5, 1.25]]), EXACT).tolist() == [[1.5, -5]]
    # d_x_j = (u_j g_j q - x_j sum u g x) / q^(3/2), with u g = (6, 12), their sum with x = -30
    d_x, d_norm = front.input_norm_backward(f32([[1, 1]]), f32([[3, -4]]), f32([6, 12]), 5.5, "d_x_router", EXACT)
    assert d_x.tolist() == [[np.float32((6 * 36 + 3 * 30) / 216), np.float32((12 * 36 - 4 * 30) / 216)]]
    assert d_norm.tolist() == [0.5, np.float32(-4 / 6)]


def test_gradients_of_the_norm_that_cancel_are_seen_to_be_zero():
    """Two tokens whose roots are irrational and rational multiples of each other: sqrt 2 and sqrt 8."""
    x, d = f32([[1, 0.5], [2, 1.0], [1, 0.5]]), f32([[1, 1], [1, 3], [-2, -4]])
    _, d_norm = front.input_norm_backward(d, x, f32([1, 1]), 2.0**-60, "d_x_router", EXACT)
    x = f32([[1, 0], [2, 0], [1, 0]])  # the same direction, eps gone beside it: d x / |x| = 1 + 1 - 2
    _, exact = front.input_norm_backward(d, x, f32([1, 1]), 0.0, "d_x_router", EXACT)
    assert exact.tobytes() == f32([0, 0]).tobytes()
    assert abs(d_norm).max() < 1e-6  # here the epsilon keeps the roots apart, and the sums from being zero


def test_bounded_and_noisy_logits():
    routing = RoutingConfig(logits_scale=0.5)
    assert front.bounded_logits(f32([[3, -5]]), routing, "logits", EXACT).tolist() == [[1.5, -2.5]]
    assert front.bounded_logits_backward(f32([[2, 8]]), f32([[3, -5]]), routing, EXACT).tolist() == [[1, 4]]
    capped = RoutingConfig(logits_scale=2.0, logits_softcap=30.0)
    far = front.bounded_logits(f32([[0, -0.0, 1e30, -1e30, 15]]), capped, "logits", EXACT)
    assert far.tobytes() == f32([[0, 0, 30, -30, 30 * 0.76159415595576488]]).tobytes()  # 30 tanh 1
    slopes = front.bounded_logits_backward(f32([[1, 1, 1]]), f32([[0, 1e30, 15]]), capped, EXACT)
    assert slopes.tolist() == [[2, 0, np.float32(2 * 0.41997434161402606)]]  # 1 - tanh(1)^2
    assert front.noise_std(f32([[0, -200]]), 0.01, EXACT).tolist() == [[np.float32(0.70314718), np.float32(0.01)]]
    noisy = front.noisy_logits(f32([[1, 2]]), f32([[2, -1]]), f32([[0.25, 4]]), EXACT)
    assert noisy.tolist() == [[1.5, -2]]
    d_clean, d_std = front.noisy_logits_backward(f32([[3, 5]]), f32([[2, -1]]), [f32([[1, 1]])], [], EXACT)
    assert d_clean.tolist() == [[4, 6]] and d_std.tolist() == [[6, -5]]


@pytest.mark.parametrize("name", ["jittered_router", "jittered_block", "noisy", "noisy_fixed"])
def test_without_noise_and_jitter_a_router_is_evaluated(name):
    """The fields without their arrays change no bit; and given logits leave nothing but a layer's jitter to do."""
    config = CASES[name]
    off = dataclasses.replace(config.routing, jitter="none", noise="none", noise_std=0.0, noise_floor=0.01)
    x, params, d_y = make(config, EXACT, 5)
    plain = params._replace(w_noise=None)
    got = refmoe.moe_forward(x, params, config, EXACT)
    want = refmoe.moe_forward(x, plain, dataclasses.replace(config, routing=off), EXACT)
    assert not differing(got, want)
    grads = refmoe.moe_backward(d_y, x, params, got, config, EXACT)
    assert grads.params.w_noise is None and grads.router.d_jittered_x is None
    given = Given(logits=got.routing.logits, jitter=x if config.routing.jitter == "block" else None)
    live = refmoe.moe_forward(x, params, config, EXACT, given)
    assert live.routing.router_x is None and (live.routing.jittered_x is None) == (given.jitter is None)
    back = refmoe.moe_backward(d_y, x, params, live, config, EXACT, given)
    assert back.d_x_router is None and back.params.w_router is None and back.d_x is not None


# --- selection -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ranked", "k", "want"),
    [
        ([1, 3, 2], 3, [1, 2, 0]),
        ([2, 2, 2], 2, [0, 1]),
        ([-0.0, 0.0, -0.0], 3, [0, 1, 2]),
        ([0.0, -0.0, 1.0], 2, [2, 0]),
        ([-1, -np.inf, -1, 5], 3, [3, 0, 2]),
        ([7], 1, [0]),
        ([1e-45, 0, -1e-45], 3, [0, 1, 2]),
    ],
)
def test_selection_is_descending_and_ties_go_to_the_lowest_id(ranked, k, want):
    assert select_topk(f32([ranked]), k).tolist() == [want]
    assert select_topk(f32([ranked]), k).dtype == np.int64


def test_many_ties_are_stable():
    ranked = np.tile(f32([1, 0]), 50)[None]
    assert select_topk(ranked, 100)[0].tolist() == [*range(0, 100, 2), *range(1, 100, 2)]


def ranking(scores, bias=None, logits=None, **routing):
    logits = f32([logits or scores])
    bias = None if bias is None else f32(bias)
    ranked, groups = choice_scores(logits, f32([scores]), bias, RoutingConfig(**routing), EXACT)
    return ranked[0].tolist(), None if groups is None else groups[0].tolist()


def test_the_selection_bias_is_added_with_one_rounding():
    assert ranking([0.5, 0.25], [0.25, -1]) == ([0.75, -0.75], None)
    assert ranking([1, 1], [2.0**-24, 3 * 2.0**-25])[0] == [1, 1 + 2.0**-23]
    assert ranking([0.5, 0.25], logits=[-3, 4], selection_base="logits") == ([-3, 4], None)
    assert ranking([0.5, 0.25], [1, 1], logits=[-3, 4], selection_base="logits") == ([-2, 5], None)


GROUPED = {"num_groups": 2, "top_groups": 1}


def test_groups_are_ranked_by_the_sum_of_their_best():
    scores = [0.5, 0.125, 0.25, 0.4375]  # sums of two: 0.625, 0.6875; best ones: 0.5, 0.4375
    inf = float("inf")
    assert ranking(scores, **GROUPED) == ([-inf, -inf, 0.25, 0.4375], [0.625, 0.6875])
    assert ranking(scores, **GROUPED, group_score_topn=1) == ([0.5, 0.125, -inf, -inf], [0.5, 0.4375])
    assert ranking([0.5, 0.25, 0.25, 0.5], **GROUPED)[0][2:] == [-inf, -inf]  # a tie goes to the first group
    assert ranking(scores, [0, 1, 0, 0], **GROUPED)[1] == [1.625, 0.6875]  # the bias counts in a group's score


def test_a_groups_score_is_rounded_once():
    # 1 + 2^-24 + 2^-24 rounds to 1 + 2^-23 in one go, and stays 1 step by step
    scores = [1, 2.0**-24, 2.0**-24, 1, 2.0**-24, 0]
    assert ranking(scores, num_groups=2, group_score_topn=3)[1] == [1 + 2.0**-23, 1]


def test_masked_groups_at_zero_outrank_negative_scores_and_at_minus_infinity_do_not():
    scores, bias = (
        [0.5, 0.5, 0.25, 0.25],
        [-0.75] * 4,
    )  # choice scores -0.25, -0.25 | -0.5, -0.5: the first group is kept
    ranked, _ = ranking(scores, bias, **GROUPED, group_mask="zero")
    assert ranked == [-0.25, -0.25, 0, 0] and select_topk(f32([ranked]), 2).tolist() == [[2, 3]]
    ranked, _ = ranking(scores, bias, **GROUPED, group_mask="-inf")
    assert ranked[:2] == [-0.25, -0.25] and select_topk(f32([ranked]), 2).tolist() == [[0, 1]]


@pytest.mark.parametrize("normalize", [False, True])
def test_the_selection_bias_chooses_but_does_not_weigh(normalize):
    config = config_of(
        routing={"score_fn": "sigmoid", "selection_bias": True, "normalize": normalize}, num_experts=4, top_k=2
    )
    x, params, _ = make(config, EXACT, 1)
    params = params._replace(selection_bias=f32([0, 0, 1, 0.75]))
    given = Given(logits=f32([[2, 1, 0, 0]]))
    record = refmoe.moe_forward(x, params, config, EXACT, given).routing
    assert record.topk_indices.tolist() == [[2, 3]]  # 0.881, 0.731, 1.5, 1.25
    assert record.scores[0, 2:].tolist() == [0.5, 0.5] and record.topk_weights.tolist() == [[0.5, 0.5]]


# --- weights ---------------------------------------------------------------------------------------------------------


def test_weights_without_normalisation_are_scaled_scores():
    assert weights({}, [0.5, 0.25, 0.25]) == [0.5, 0.25]
    assert weights({"scaling_factor": 2.5}, [0.5, 0.25, 0.25], (2, 0)) == [0.625, 1.25]
    third = float(np.float32(1 / 3))
    assert weights({"scaling_factor": 0.1}, [third, 0.5])[0] == np.float32(third * 0.1)


def test_weights_normalised_with_an_epsilon():
    add = {"normalize": True, "norm_eps": 0.25, "score_fn": "sigmoid"}
    assert weights(add, [0.5, 0.25, 0.75]) == [0.5, 0.25]  # over 0.75 + 0.25
    clamp = add | {"norm_eps_mode": "clamp"}
    assert weights(clamp | {"norm_eps": 2.0}, [0.5, 0.25, 0.75]) == [0.25, 0.125]  # over max(0.75, 2)
    assert weights(clamp | {"norm_eps": 0.5}, [0.75, 0.25, 0.75]) == [0.75, 0.25]  # over max(1, 0.5)
    assert weights(clamp | {"norm_eps": 1.0}, [0.75, 0.25, 0.75]) == [0.75, 0.25]  # at the edge both agree
    assert weights(add | {"scaling_factor": 4.0}, [0.5, 0.25, 0.75]) == [2, 1]
    tiny = weights(add | {"norm_eps": 1e-20}, [0.5, 0.25, 0.75])
    assert tiny == [np.float32(2 / 3), np.float32(1 / 3)]
    assert weights(add, [0.0, 0.0, 0.75]) == [0, 0]  # the epsilon is what it is for


def test_weights_over_a_p_norm():
    two = {"normalize": True, "norm_p": 2, "score_fn": "sigmoid"}
    assert weights(two, [0.75, 1.0, 0.5]) == [np.float32(0.6), np.float32(0.8)]  # over 1.25, exactly
    assert weights(two | {"scaling_factor": 5.0}, [0.75, 1.0, 0.5]) == [3, 4]
    assert weights(two, [0.75, 1.0, 0.5], (2, -1)) == [1, 0]
    three = two | {"norm_p": 3, "scaling_factor": 6.0}
    assert weights(three, [0.375, 0.5, 0.625], (0, 1, 2)) == [3, 4, 5]  # 27 + 64 + 125 = 216
    assert weights(two, [1e-30, 0.0], (0, 1)) == [1, 0]
    # d_s_j = (G_j q - s_j sum G s) / q^1.5 with q = 25/16: (25/16 - 9/16, -3/4) / (125/64) at G = (1, 0), times 1/4
    want = [np.float32(16 / 125), np.float32(-12 / 125), 0]
    assert backward(two, [1, 0], [0.75, 1.0, 0.5]) == (want, None)


def test_the_slots_of_zero_experts_weigh_nothing_and_change_no_sum():
    last = {"experts": {"zero_experts": 1}}
    for routing in ({"normalize": True}, {"normalize": True, "score_fn": "sigmoid"}):
        got = weights(routing, [0.5, 0.5, 0.75], (2, 0), logits=[0, 0, 300], zeros=1)
        assert got == [0, 1]
        d_logits, _ = backward(routing, [4, 8], [0.5, 0.5, 0.75], (2, 0), [0, 0, 300], zeros=1)
        assert d_logits == [0, 0, 0]
    assert weights({}, [0.5, 0.25, 0.25], (0, 2), zeros=1) == [0.5, 0]
    assert weights({"normalize": True}, [0.5, 0.25, 0.25], (2,), zeros=1) == [0]  # a token that skips the layer
    config = config_of(routing={"normalize": True, "scaling_factor": 3.0}, num_experts=1, top_k=2, **last)
    x, params, _ = make(config, EXACT, 1)
    record = refmoe.moe_forward(x, params, config, EXACT, Given(logits=f32([[-1, 5]])))
    assert record.routing.topk_indices.tolist() == [[1, 0]] and record.routing.topk_weights.tolist() == [[0, 3]]


JOINT = {"score_fn": "sigmoid", "normalize": True, "norm_over_shared": True}


def test_routed_and_shared_experts_share_one_sum():
    config = config_of(routing=JOINT | {"scaling_factor": 8.0}, experts={"shared_intermediate_size": 2}, num_experts=3)
    scores, shared, indices = f32([[0.5, 0.25, 0.75]] * 2), f32([[0.25, 1.0]] * 2), np.array([[0, 1], [2, -1]])
    made = joint_weights(scores, shared, indices, indices >= 0, config, EXACT)
    assert made[0].tolist() == [[2, 1], [3, 0]] and made[1].tolist() == [[1, 4], [1, 4]]  # over 2, both times
    # d_s_j = c (G_j q - sum G s) / q^2 with G = (1, 0 | 0, 2), q = 2, sum G s = 2.5: -1/2, -5/2 | -5/2, 3/2, times 8/4
    z, H = np.zeros((2, 3), np.float32), f32([[0, 2]] * 2)
    saved = z, f32([[0, 0]] * 2), scores, shared, indices, indices >= 0
    d_logits, d_shared = joint_weights_backward(f32([[1, 0]] * 2), H, *saved, config, EXACT)
    assert d_logits[0].tolist() == [-0.25, -1.25, 0] and d_shared[0].tolist() == [-1.25, 0.75]
    assert d_logits[1, :2].tolist() == [0, 0] and d_logits[1, 2] == (2 - 2.75) / 4 * 8 / 4


def test_learned_scales_multiply_the_stored_weights():
    unscaled, indices = f32([[0.25, 0.75], [1.0, 0.0]]), np.array([[2, 0], [1, -1]])
    expert, common = f32([0.5, -2, 4]), f32([8])
    assert scale_weights(unscaled, expert, None, indices, EXACT).tolist() == [[1, 0.375], [-2, 0]]
    assert scale_weights(unscaled, None, common, indices, EXACT).tolist() == [[2, 6], [8, 0]]
    assert same_bits(scale_weights(unscaled, expert, common, indices, EXACT), f32([[8, 3], [-16, 0.0]]))
    G = f32([[1, 2], [3, 5]])
    back = scale_weights_backward(G, unscaled, expert, common, indices, EXACT, None, None)
    assert back[0].tolist() == [[32, 8], [-48, 20]]
    assert back[1].tolist() == [2 * 0.75 * 8, 3 * 8, 0.25 * 8]
    assert back[2].tolist() == [0.25 * 4 + 2 * 0.75 * 0.5 + 3 * -2]
    more = scale_weights_backward(G, unscaled, expert, common, indices, EXACT, expert, common)
    assert more[1].tolist() == [12.5, 22, 6] and more[2].tolist() == [back[2][0] + 8]
    # three factors, one rounding: 2^-200 on the way is no underflow
    tiny = scale_weights(f32([[2.0**-100]]), f32([2.0**-100]), f32([2.0**100]), np.array([[0]]), EXACT)
    assert tiny.tolist() == [[2.0**-100]]


def test_normalised_softmax_reads_the_logits():
    """Two equal logits have weights of one half, whatever the stored scores are."""
    assert weights({"normalize": True}, [0.1, 0.7], logits=[3, 3]) == [0.5, 0.5]
    assert weights({"normalize": True, "scaling_factor": 3.0}, [0.1, 0.7], logits=[3, 3]) == [1.5, 1.5]
    assert weights({"normalize": True}, [1, 0], logits=[1e30, -1e30]) == [1, 0]
    assert weights({"normalize": True, "norm_eps": 0.25}, [0.5, 0.25], logits=[9, 9]) == [0.5, 0.25]  # here the scores


def test_unused_slots_weigh_nothing_and_change_no_sum():
    sigmoid = {"normalize": True, "score_fn": "sigmoid"}
    assert weights(sigmoid, [0.5, 0.5, 0.75], (1, -1)) == [1, 0]
    assert weights({"normalize": True}, [0.5, 0.5, 0.75], (-1, 2)) == [0, 1]
    assert weights({}, [0.5, 0.5, 0.75], (-1, 2)) == [0, 0.75]
    assert weights(sigmoid, [0.5, 0.5, 0.75], (-1, -1)) == [0, 0]
    out = topk_weights(
        f32([[0, 0]]), f32([[0.5, 0.5]]), np.array([[-1, 1]]), np.array([[False, True]]), config_of(), EXACT
    )
    assert same_bits(out, f32([[0.0, 0.5]]))


def test_after_a_drop_the_kept_slots_share_the_weight():
    after = {"dispatch": {"capacity": 1, "normalize_after_drop": True}}
    assert weights({"normalize": True}, [0.5, 0.25, 0.25], (0, 1, 2), [True, False, True], **after) == [
        np.float32(2 / 3), 0, np.float32(1 / 3)
    ]  # fmt: skip
    assert weights({"normalize": True}, [0.5, 0.25], (0, 1), [False, False], **after) == [0, 0]
    # both tokens want expert 0 first; the second one loses it, and its other choice takes all the weight
    config = config_of(routing={"normalize": True, "score_fn": "sigmoid"}, num_experts=3, top_k=2, **after)
    x, params, _ = make(config, EXACT, 2)
    record = refmoe.moe_forward(x, params, config, EXACT, Given(logits=f32([[0, -1, -9], [0, -9, -1]])))
    raw = np.float32(0.2689414213699951)  # sigmoid(-1)
    assert record.routing.topk_indices.tolist() == [[0, 1], [0, 2]]
    assert record.routing.raw_topk_weights.tolist() == [[0.5, raw], [0.5, raw]]
    assert record.plan.slot_row.tolist() == [[0, 1], [-1, 2]]
    total = 0.5 + float(raw)  # exact in binary64
    assert record.routing.topk_weights.tolist() == [[np.float32(0.5 / total), np.float32(float(raw) / total)], [0, 1]]


def test_before_a_drop_the_weight_of_a_dropped_slot_is_lost():
    config = config_of(
        routing={"normalize": True, "score_fn": "sigmoid"}, dispatch={"capacity": 1}, num_experts=3, top_k=2
    )
    x, params, _ = make(config, EXACT, 2)
    record = refmoe.moe_forward(x, params, config, EXACT, Given(logits=f32([[0, -1, -9], [0, -9, -1]])))
    assert record.plan.slot_row.tolist() == [[0, 1], [-1, 2]] and record.routing.raw_topk_weights is None
    assert same_bits(record.routing.topk_weights[0], record.routing.topk_weights[1])


# --- reported only ---------------------------------------------------------------------------------------------------


def test_log_sum_exp_and_margin():
    config = config_of(num_experts=4, top_k=2, routing={"selection_base": "logits"})
    x, params, _ = make(config, EXACT, 2)
    record = refmoe.moe_forward(x, params, config, EXACT, Given(logits=f32([[3, 1, 2, 0.25], [0, 0, 0, 0]]))).routing
    assert record.margin.tolist() == [1, 0]
    assert record.lse.tolist() == [np.float32(3.4492540), np.float32(1.3862943611198906)]  # log 31.4769, log 4
    grouped = config_of(num_experts=4, top_k=2, routing={"selection_base": "logits", "num_groups": 2})
    record = refmoe.moe_forward(x, params, grouped, EXACT, Given(logits=f32([[3, 1, 2, 0.25], [0, 0, 0, 0]]))).routing
    assert record.margin.tolist() == [np.inf, np.inf]  # the next expert is masked


# --- replay ----------------------------------------------------------------------------------------------------------


def test_given_indices_keep_their_order_and_take_live_weights():
    config = config_of(routing={"score_fn": "sigmoid"}, num_experts=4, top_k=3)
    x, params, _ = make(config, EXACT, 1)
    given = Given(logits=f32([[0, 9, -9, 0]]), topk_indices=np.array([[3, -1, 2]], np.int32))
    record = refmoe.moe_forward(x, params, config, EXACT, given).routing
    assert record.topk_indices.tolist() == [[3, -1, 2]] and record.topk_indices.dtype == np.int64
    assert record.topk_weights.tolist() == [[0.5, 0, record.scores[0, 2]]]
    assert given_indices(np.zeros((0, 3), np.int64), 4).shape == (0, 3)


# --- back ------------------------------------------------------------------------------------------------------------


def backward(routing, G, scores, indices=(0, 1), logits=None, num=EXACT, zeros=0, **sections):
    config = of_ids(routing, indices, scores, zeros, **sections)
    index = np.array([indices])
    cast = lambda a: np.array([a], num.dtype)  # noqa: E731
    logits = [0] * len(scores) if logits is None else logits
    d_logits, d_scores = topk_weights_backward(cast(G), cast(logits), cast(scores), index, index >= 0, config, num)
    return d_logits[0].tolist(), None if d_scores is None else d_scores[0].tolist()


def test_weights_backward_by_hand():
    # softmax of two zeros, w = (1/2, 1/2): d_z = w_j (G_j - mean G)
    assert backward({"normalize": True, "scaling_factor": 2.0}, [1, 0], [0.5, 0.5, 0]) == ([0.5, -0.5, 0], None)
    # sigmoid'(0) = 1/4
    assert backward({"score_fn": "sigmoid"}, [4, 8], [0.5, 0.5, 0.5], (2, 0)) == ([2, 0, 1], None)
    # the slope of max(z, 0) is 1 above 0, and 0 at 0 and below
    relu = backward({"score_fn": "relu", "scaling_factor": 2.0}, [4, 8, 3], [0.5, 0, 0], (0, 1, 2), [0.5, 0.0, -1.0])
    assert relu == ([8, 0, 0], None)
    # s = (1/2, 1/2), den = 1 + 1: d_s_j = (G_j - (G_0 + G_1) / 4) / 2 = 3/8, -1/8 at G = (1, 0), times 1/4
    add = {"score_fn": "sigmoid", "normalize": True, "norm_eps": 1.0}
    assert backward(add, [1, 0], [0.5, 0.5, 0.5]) == ([0.09375, -0.03125, 0], None)
    # softmax, all experts: d_s = (4, 0, 0, 0), p = 1/4: d_z = p_j (d_s_j - 1)
    assert backward({}, [4, 0], [0.25] * 4, (0, 3)) == ([0.75, -0.25, -0.25, -0.25], [4, 0, 0, 0])


@pytest.mark.parametrize(("eps", "want"), [(0.5, [0.0625, -0.0625]), (1.0, [0.0625, -0.0625]), (2.0, [0.125, 0.0])])
def test_a_clamped_sum_is_a_constant_strictly_below_its_epsilon(eps, want):
    # s = (1/2, 1/2). Over the sum 1: d_s = G_j - (G_0 + G_1) / 2, so (1/4, -1/4) at G = (1/2, 0); over 2: G / 2
    clamp = {"score_fn": "sigmoid", "normalize": True, "norm_eps": eps, "norm_eps_mode": "clamp"}
    scale = 2.0 if eps == 2.0 else 1.0
    assert backward(clamp, [0.5 * scale, 0], [0.5, 0.5, 0.5])[0][:2] == want


def test_unused_slots_have_no_gradient():
    assert backward({"normalize": True}, [1, 0], [0.5, 0.5, 0], (0, -1)) == ([0, 0, 0], None)
    assert backward({"score_fn": "sigmoid"}, [4, 0], [0.5, 0.5], (1, -1)) == ([0, 1], None)
    assert backward({"score_fn": "sigmoid"}, [4, 0], [0.5, 0.5], (-1, -1), num=FLOAT64) == ([0, 0], None)
