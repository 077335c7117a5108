"""The law against the library: routing and dispatch, with not a bit of difference."""

import json

import numpy as np
import pytest
from law_bridge import LAW, PROFILES, agree, config_of, hard_logits, operands, policy, to_law, wild

import refmoe
from refmoe import dispatch, routing, scores

# --- 1: routing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("score_fn", LAW.SCORE_FNS)
def test_scores(score_fn):
    z, G, num = hard_logits(1), wild("float32", (24, 6), 2), policy()
    G[6], G[7] = 1.25, 0.0
    forward, backward = scores.SCORE_FNS[score_fn]
    agree([LAW.SCORE_FNS[score_fn](row) for row in to_law(z)], forward(z, num), "scores")
    pairs = list(zip(to_law(G), to_law(z)))
    if score_fn == "softmax":
        agree([LAW.softmax_backward(g, row) for g, row in pairs], backward(G, z, num), "backward")
    else:
        agree([LAW.elementwise_backward(g, row, score_fn) for g, row in pairs], backward(G, z, num), "backward")


@pytest.mark.parametrize("mask", ["-inf", "zero"])
@pytest.mark.parametrize(("groups", "kept", "topn"), [(1, 1, 2), (2, 1, 3), (3, 2, 1), (3, 2, 2), (6, 4, 1)])
@pytest.mark.parametrize("base", ["scores", "logits"])
def test_choice_and_selection(base, groups, kept, topn, mask):
    fields = {
        "num_groups": groups,
        "top_groups": kept,
        "group_score_topn": topn,
        "group_mask": mask,
        "selection_base": base,
    }
    config, num = config_of(routing={**fields, "selection_bias": True}), policy()
    rng = np.random.default_rng(groups)
    z, s = hard_logits(2), rng.choice([0.0, 0.25, 0.5, 1.0, 2.0**-149], (24, 6)).astype(np.float32)
    for bias in (None, np.array([-0.5, 0.0, -0.0, 0.25, -1.0, -0.5], np.float32)):
        choice, of_groups = routing.choice_scores(z, s, bias, config.routing, num)
        law = [LAW.choice_scores(a, b, to_law(bias), config.to_dict()["routing"]) for a, b in zip(to_law(s), to_law(z))]
        agree([c for c, _ in law], choice, "choice_scores")
        agree(None if groups == 1 else [g for _, g in law], of_groups, "group_scores")
        for K in (1, 2):
            agree([LAW.select_topk(c, K) for c, _ in law], routing.select_topk(choice, K), "topk_indices")


WEIGHT_RULES = [
    {},
    {"scaling_factor": 2.5},
    {"normalize": True},
    {"normalize": True, "scaling_factor": 0.1},
    {"normalize": True, "norm_eps": 1e-20},
    {"divide_by_count": True},
    {"divide_by_count": True, "scaling_factor": 0.7},
    {"normalize": True, "norm_eps": 0.7, "scaling_factor": 1.7},
    {"normalize": True, "norm_eps": 0.5, "norm_eps_mode": "clamp"},
    {"normalize": True, "norm_eps": 0.25, "norm_eps_mode": "clamp", "scaling_factor": 2.5},
    {"normalize": True, "norm_p": 2},
    {"normalize": True, "norm_p": 3, "scaling_factor": 1.5},
]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("rule", WEIGHT_RULES, ids=json.dumps)
@pytest.mark.parametrize("score_fn", LAW.SCORE_FNS)
def test_weights(score_fn, rule, after):
    if after and not rule.get("normalize"):
        rule = {**rule, "normalize": True, "divide_by_count": False}
    config = config_of(routing={"score_fn": score_fn, **rule}, dispatch={"normalize_after_drop": after}, top_k=3)
    num, cfg, rng = policy(), config.to_dict(), np.random.default_rng(7)
    z = hard_logits(3, distant=False)
    if score_fn != "softmax":
        z = np.maximum(z, np.float32(-20))
    if score_fn == "relu" and rule.get("normalize") and not rule.get("norm_eps"):  # a sum of 0 is refused
        z = np.abs(z) + np.float32(0.125)
    s = scores.SCORE_FNS[score_fn][0](z, num)
    s[8] = np.float32(0.25)
    indices = np.argsort(rng.random(z.shape), axis=-1)[:, :3]
    indices[9:12, 1], indices[11, 0], indices[12] = -1, -1, -1
    kept = (indices >= 0) & (rng.random(indices.shape) < 0.7) if after else indices >= 0
    G = wild("float32", indices.shape, 8)
    G[:4] = 0.375
    rows = list(zip(*map(to_law, (z, s, indices, kept))))
    agree(
        [LAW.topk_weights(a, b, i, cfg, k) for a, b, i, k in rows],
        routing.topk_weights(z, s, indices, kept, config, num),
        "w",
    )
    d_logits, d_scores = routing.topk_weights_backward(G, z, s, indices, kept, config, num)
    law = [LAW.topk_weights_backward(g, a, b, i, cfg, k) for g, (a, b, i, k) in zip(to_law(G), rows)]
    agree([d for d, _ in law], d_logits, "d_logits")
    agree(None if law[0][1] is None else [d for _, d in law], d_scores, "d_scores")


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("rule", [r for r in WEIGHT_RULES if r.get("normalize") and "norm_p" not in r], ids=json.dumps)
def test_weights_over_routed_and_shared_experts(rule, after):
    routing_fields = {"score_fn": "sigmoid", "norm_over_shared": True, **rule}
    config = config_of(routing=routing_fields, experts={"shared_intermediate_size": 2}, top_k=3)
    num, cfg, rng = policy(), config.to_dict(), np.random.default_rng(7)
    z, of_shared = np.maximum(hard_logits(3, distant=False), np.float32(-20)), hard_logits(5, (24, 2), distant=False)
    s, h = (scores.SCORE_FNS["sigmoid"][0](a, num) for a in (z, of_shared))
    indices = np.argsort(rng.random(z.shape), axis=-1)[:, :3]
    indices[9:12, 1], indices[12] = -1, -1
    kept = (indices >= 0) & (rng.random(indices.shape) < 0.7) if after else indices >= 0
    G, H = wild("float32", indices.shape, 8), wild("float32", h.shape, 9)
    rows = list(zip(*map(to_law, (s, h, indices, kept))))
    law = [LAW.weigh_jointly(a, b, i, {}, cfg, k) for a, b, i, k in rows]
    made = routing.joint_weights(s, h, indices, kept, config, num)
    agree([w["topk_weights"] for w in law], made[0], "w")
    agree([w["shared_weights"] for w in law], made[1], "shared")
    saved = list(zip(*map(to_law, (G, H, z, of_shared, s, h, indices))))
    law = [LAW.joint_backward(*row, cfg, k) for row, (*_, k) in zip(saved, rows)]
    back = routing.joint_weights_backward(G, H, z, of_shared, s, h, indices, kept, config, num)
    agree([d for d, _ in law], back[0], "d_logits")
    agree([d for _, d in law], back[1], "d_shared_logits")


def test_weights_of_nothing_are_refused_by_both():
    config = config_of(routing={"score_fn": "sigmoid", "normalize": True})
    z = np.full((1, 6), -1000.0, np.float32)
    s, indices = scores.SCORE_FNS["sigmoid"][0](z, policy()), np.array([[0, 1]])
    with pytest.raises(ValueError, match="sum"):
        routing.topk_weights(z, s, indices, indices >= 0, config, policy())
    with pytest.raises(ValueError, match="0/0"):
        LAW.topk_weights(to_law(z)[0], to_law(s)[0], [0, 1], config.to_dict())


# --- 2: dispatch -----------------------------------------------------------------------------------------------------

QUEUES = [(policy_, order) for policy_ in dispatch.DROP_POLICIES for order in dispatch.SLOT_ORDERS]
LIMITS = [
    {},
    {"capacity": 0},
    {"capacity": 2},
    {"capacity_factor": 0.7},
    {"capacity_factor": 1.1, "keep_at_most": 1},
    {"capacity": 2, "keep_at_most": 2},
    {"capacity": 5, "capacity_devices": 3},
    {"capacity_factor": 0.6, "capacity_devices": 2, "keep_at_most": 2},
]


def plan_both(fields, top_k, seed):
    """A plan of the law and of the library, on ties, unused slots, masked and protected tokens, three sequences."""
    config, rng = (
        config_of(dispatch=fields.get("dispatch", {}), routing=fields.get("routing", {}), top_k=top_k),
        np.random.default_rng(seed),
    )
    indices = np.argsort(rng.random((13, 6)), axis=-1)[:, :top_k]
    indices[indices == rng.integers(0, 6)] = -1
    weights = rng.choice([0.0, -0.0, 0.25, 0.5], indices.shape).astype(np.float32)
    scores = rng.choice([-0.0, 0.0, 0.25, 0.5, 0.75], (13, 6)).astype(np.float32)
    given = {"token_mask": rng.random(13) < 0.8, "sequence_ids": rng.choice([7, 2, 4], 13)}
    if config.dispatch.limited and seed % 2:
        given["protected"] = rng.random(13) < 0.3
    if config.dispatch.drop_policy == "random":
        given["priority"] = rng.choice([0.0, -0.0, 0.5, 1.5], indices.shape).astype(np.float32)
    if config.routing.second_expert == "random":
        given["coin"] = rng.choice([0.0, 0.375, 0.75, 1 - 2.0**-24], 13).astype(np.float32)
    made = dispatch.make_plan(indices, weights, config, refmoe.Given(**given), scores)
    law_given = {name: to_law(array) for name, array in given.items()}
    agree(LAW.make_plan(to_law(indices), to_law(weights), config.to_dict(), law_given, to_law(scores)), made)
    return made


@pytest.mark.parametrize(("drop_policy", "slot_order"), QUEUES)
@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("scope", ["batch", "sequence"])
def test_plans(drop_policy, slot_order, limit, scope):
    if not limit and drop_policy == "random":
        return
    fields = {"drop_policy": drop_policy, "slot_order": slot_order, "capacity_scope": scope, **limit}
    for seed in (4, 5):
        plan_both({"dispatch": fields}, 3, seed)


@pytest.mark.parametrize("factor", [0.0, 1.5, 2.0, 5.0])
@pytest.mark.parametrize("limit", LIMITS)
def test_plans_with_a_coin(factor, limit):
    routing = {"second_expert": "random"} | ({} if factor == 2.0 else {"second_expert_factor": factor})
    made = plan_both({"routing": routing, "dispatch": limit}, 2, 7)
    assert factor or not (made.slot_row[:, 1] >= 0).any()


@pytest.mark.parametrize("rule", dispatch.CAPACITY_RULES)
def test_capacities(rule):
    """Every rule over factors on and off the ends of its roundings."""
    assert LAW.CAPACITY_RULES.keys() == dispatch.CAPACITY_RULES.keys()
    for factor in (0.0, 0.1, 0.25, 0.5, 0.7, 1.0, 1.25, 1.1, 2.0, 7.3):
        for more in ({}, {"min_capacity": 3, "capacity_multiple": 4}):
            fields = {"capacity_factor": factor, "capacity_rule": rule, **more}
            for top_k, tokens in ((k, t) for k in (1, 2, 3) for t in (0, 1, 5, 9, 10, 64)):
                config = config_of(dispatch=fields, top_k=top_k)
                made = dispatch.capacity_of(config.dispatch, tokens, top_k, config.num_experts)
                assert LAW.capacity(tokens, config.to_dict()) == made, (fields, top_k, tokens)


@pytest.mark.parametrize("kind", ["edges", "wild"])
@pytest.mark.parametrize(("profile", "store"), PROFILES)
def test_dispatch_products(profile, store, kind):
    """Combine, permute and their ways back on rows that hold infinities, NaN and subnormals."""
    config, num, law = config_of(dispatch={"capacity": 3}), policy(profile, store), LAW.Law(profile, store)
    rng = np.random.default_rng(1)
    indices = np.argsort(rng.random((8, 6)), axis=-1)[:, :2]
    weights = wild("float32", (8, 2), 2)
    plan = dispatch.make_plan(indices, weights, config, refmoe.Given())
    rows, d = operands(store, (len(plan.row_slot), 5), 3, kind), operands(store, (8, 5), 4, kind)
    cfg, P, W = config.to_dict(), LAW.make_plan(to_law(indices), to_law(weights), config.to_dict()), to_law(weights)
    agree(LAW.combine(to_law(rows), W, P, cfg, law), dispatch.combine(rows, weights, plan, num), "routed")
    agree(LAW.permute_backward(to_law(rows), P, cfg, law), dispatch.permute_backward(rows, plan, num), "d_x_experts")
    d_y_rows, d_w = dispatch.combine_backward(d, rows, weights, plan, num)
    d_rows = LAW.permute(to_law(d), P, cfg)
    agree(LAW.weigh_rows("d_y_rows", d_rows, W, P, law), d_y_rows, "d_y_rows")
    agree(LAW.d_weights(d_rows, to_law(rows), P, law), d_w, "d_topk_weights")
