"""The law against the library: activations and losses, with not a bit of difference."""

import json
import re

import numpy as np
import pytest
from law_bridge import (
    LAW,
    PROFILES,
    SPEC,
    STORES,
    agree,
    config_of,
    edge_values,
    hard_logits,
    law_params,
    operands,
    policy,
    stored_params,
    tame,
    to_law,
    wild,
)
from test_spec_layers import SEQUENCES, T, run_both

import refmoe
from refmoe import activations, experts, losses, norms, routing, scores
from refmoe.formats import round_to

# --- 3: experts ------------------------------------------------------------------------------------------------------

FORMS = [
    {},
    {"alpha": 1.702, "limit": 7.0, "linear_offset": 1.0},
    {"limit": 3.0},
    {"alpha": 0.25},
    {"gated": False},
]
AFTER = {"limit": 3.0, "limit_position": "post"}
CAPPED = [
    {"gate_softcap": 4.0, "up_softcap": 25.0},
    {"gate_softcap": 1.0 + 2.0**-24, "up_softcap": 0.7, "alpha": 1.702, "linear_offset": -0.5},
]
FORMS_OF = (
    [(name, form) for name in activations.ACTIVATIONS for form in (*FORMS, AFTER)]
    + [("silu", form) for form in (*CAPPED, {**AFTER, "limit": 0.0, "linear_offset": 1.0})]
    + [("relu2", {"up_softcap": 25.0})]
)


def activation_arguments(store):
    """Pairs of edges, values about the clamps and about the roots of the slopes, and a wide range."""
    edges = edge_values(store)
    near = round_to(
        np.array([3.0, 7.0, -7.0, -1.2784645, -0.7517916, -0.7524614, -5.5, 9.5, -13.7, -30.0, -60.0]), store
    )
    some = np.concatenate([edges, near, np.nextafter(near, np.float32(0)) if store == "float32" else near])
    rng = np.random.default_rng(4)
    d, g, u = (np.concatenate([rng.choice(some, 240), wild(store, 80, seed, scale=12)]) for seed in (1, 2, 3))
    g[: len(some)] = some
    u[: len(near)] = near
    return d, g, u


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize(("activation", "form"), FORMS_OF, ids=lambda v: v if isinstance(v, str) else json.dumps(v))
def test_activations(activation, form, store):
    if activation != "silu" and "alpha" in form:
        form = {name: value for name, value in form.items() if name != "alpha"}
    config, num = config_of(experts={"activation": activation, **form}), policy("exact", store)
    choices, (d, g, u) = config.to_dict()["experts"], activation_arguments(store)
    gates = to_law(g) if config.experts.gated else [None] * len(u)
    rows = list(zip(to_law(d), gates, to_law(u)))
    hidden = [LAW.stored(store, LAW.hidden(gate, up, choices)) for _, gate, up in rows]
    d_up = [LAW.stored(store, LAW.d_up(*row, choices)) for row in rows]
    if not config.experts.gated:
        agree(hidden, activations.plain(u, config.experts, num), "hidden")
        agree(d_up, activations.plain_backward(d, u, config.experts, num), "d_up")
        return
    agree(hidden, activations.gated(g, u, config.experts, num), "hidden")
    made_gate, made_up = activations.gated_backward(d, g, u, config.experts, num)
    agree([LAW.stored(store, LAW.d_gate(*row, choices)) for row in rows], made_gate, "d_gate")
    agree(d_up, made_up, "d_up")


# --- whole layers ----------------------------------------------------------------------------------------------------

LAYERS = {
    "clamped after the activation, the shared expert otherwise": {
        "routing": {"score_fn": "sigmoid", "normalize": True},
        "experts": {
            "limit": 0.05,
            "limit_position": "post",
            "shared_intermediate_size": 2,
            "shared_limit": 0.2,
            "shared_activation": "gelu_tanh",
        },
    },
    "soft caps": {
        "routing": {"score_fn": "sigmoid"},
        "experts": {
            "gate_softcap": 0.5,
            "up_softcap": 0.75,
            "alpha": 1.702,
            "linear_offset": 1.0,
            "shared_intermediate_size": 2,
        },
    },
    "scaled, then normed": {
        "experts": {"latent_size": 3, "post_expert_norm": "rms_input_scaled", "norm_eps": 0.1, "biases": True},
    },
    "a norm behind the experts with an epsilon of its own": {
        "experts": {
            "latent_size": 3,
            "latent_pre_norm": "rms_centered",
            "post_expert_norm": "rms_input_scaled",
            "post_expert_norm_eps": 0.5,
            "norm_eps": 1e-3,
        },
    },
    "several shared experts": {
        "routing": {"score_fn": "sigmoid"},
        "experts": {"shared_intermediate_size": 2, "shared_count": 3, "biases": True},
    },
    "a narrower space": {
        "routing": {"score_fn": "sigmoid", "normalize": True},
        "experts": {"gated": False, "activation": "relu2", "latent_size": 3, "shared_intermediate_size": 2},
    },
    "a narrower space, three norms and a bias": {
        "routing": {"normalize": True},
        "experts": {
            "latent_size": 3,
            "latent_pre_norm": "rms_centered",
            "post_expert_norm": "rms_centered",
            "latent_post_norm": "rms",
            "output_bias": True,
            "norm_eps": 1e-3,
        },
    },
    "a narrower space, weights before, experts without matrices": {
        "num_experts": 4,
        "routing": {"score_fn": "sigmoid"},
        "experts": {
            "latent_size": 2,
            "latent_post_norm": "rms_centered",
            "latent_pre_norm": "rms",
            "weight_position": "input",
            "constant_experts": 1,
            "identity_experts": 1,
            "biases": True,
        },
    },
    "what the weights leave of x": {
        "routing": {"score_fn": "sigmoid"},
        "dispatch": {"capacity": 2},
        "experts": {"residual": "complement", "output_bias": True, "post_expert_norm": "rms"},
    },
    "averaged and normed": {
        "experts": {"shared_intermediate_size": 2, "shared_combine": "average", "output_norm": "rms_centered"},
    },
    "over the root of two": {
        "routing": {"normalize": True},
        "experts": {"shared_intermediate_size": 2, "shared_gate": True, "shared_combine": "sqrt2", "output_bias": True},
    },
    "normed without a shared expert, weighted inside": {
        "experts": {"post_expert_norm": "rms", "weight_position": "hidden", "output_norm": "rms"},
    },
    "experts without matrices": {
        "num_experts": 3,
        "top_k": 4,
        "routing": {"normalize": True, "selection_bias": True, "scaling_factor": 1.5},
        "experts": {"constant_experts": 2, "identity_experts": 1, "zero_experts": 1, "biases": True},
        "losses": {"balance": {"coefficient": 0.5}, "importance": {"coefficient": 0.5}},
    },
    "experts without matrices, weighted before, dropped": {
        "num_experts": 3,
        "top_k": 3,
        "routing": {"score_fn": "sigmoid"},
        "dispatch": {"capacity": 2},
        "experts": {"identity_experts": 2, "constant_experts": 1, "weight_position": "input"},
    },
    "weighted inside": {
        "routing": {"score_fn": "sigmoid", "normalize": True},
        "experts": {"weight_position": "hidden", "biases": True, "shared_intermediate_size": 2},
    },
    "limits of the routed experts alone": {
        "experts": {"limit": 0.05, "shared_intermediate_size": 2, "shared_clamped": False, "shared_activation": "relu"},
    },
}


@pytest.mark.parametrize(("profile", "store"), PROFILES)
@pytest.mark.parametrize("count", [1, 2])
def test_shared_experts_that_are_weighed(count, profile, store):
    """The router's weights of shared experts (1.5), here given; the layer hands them over."""
    config = config_of(experts={"shared_intermediate_size": 2, "shared_count": count})
    params, law, num = stored_params(refmoe.init_params(config), store), LAW.Law(profile, store), policy(profile, store)
    x, d = (tame(store, (4, 5), seed) for seed in (1, 2))
    w = tame("float32", (4, count), 3)
    record = experts.shared_expert(x, params.shared, config.experts, num, w)
    scalars, W = law_params(params), to_law(w)
    found = LAW.run_shared(to_law(x), scalars, config.to_dict(), law, W)
    agree(found, record, "shared")
    none = refmoe.recipes.SharedParams()
    made, grads = experts.shared_expert_backward(d, x, params.shared, record, config.experts, num, none, w)
    stages, named = LAW.shared_backward(to_law(d), to_law(x), found, scalars, config.to_dict(), law, W)
    agree(stages, made, "stages")
    agree(named, grads, "params")


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("kind", ["rms", "rms_centered"])
@pytest.mark.parametrize("values", ["finite edges", "edges", "wild", "squares"])
def test_norms(values, kind, store):
    """Over the whole range of a format, beyond it, and where the root is rational: both ways."""
    names, eps = ("latent_rms", "normed_latent_x"), 1e-6 if values != "squares" else 0.25
    config = config_of(experts={"latent_size": 4, "latent_pre_norm": kind, "norm_eps": eps})
    law, cfg, num = LAW.Law("exact", store), config.to_dict(), policy("exact", store)
    if values == "squares":  # mean 3 / 4 or 6, and 1 / 4: the roots are 1 and 5 / 2
        x = round_to(np.array([[1, 1, 1, 0], [2, -2, 4, 0], [0, -1, 1, 1], [0, 0, 0, 0]], np.float32), store)
        d, w = x[::-1].copy(), np.array([1, -3, 0.5, 0], np.float32)
    else:
        x, d = (operands(store, (6, 4), seed, values) for seed in (1, 2))
        w = operands(store, (4,), 3, values)
    x[0], d[0] = 0, 0
    made = norms.rms_norm(names, x, w, kind, eps, num)
    X, W = to_law(x), to_law(w)
    found = LAW.norm_rows(names, X, W, kind, cfg, law)
    agree(found[0], made[0], "rms")
    agree(found[1], made[1], "normed")
    back = "d_latent_x", "d_w_latent_pre_norm"
    d_x, d_w = norms.rms_norm_backward(back, d, x, made[0], w, kind, num)
    law_x, law_w = LAW.rms_norm_backward(back, to_law(d), X, found[0], W, kind, law)
    agree(law_x, d_x, "d_x")
    agree(law_w, d_w, "d_w")


@pytest.mark.parametrize(("profile", "store"), PROFILES)
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name, profile, store):
    config = config_of(**LAYERS[name])
    x, d_y = (tame(store, (T, config.hidden_size), seed) for seed in (3, 4))
    run_both(config, profile, store, x, d_y, refmoe.init_params(config, seed=2), SEQUENCES)


# --- 4: losses -------------------------------------------------------------------------------------------------------


def fixture_table():
    """The logits and the nine rows of 4.5, read from the chapter."""
    text = (SPEC / "4-losses.md").read_text(encoding="utf-8").split("## 4.5")[1]
    logits = [[float(v) for v in row.split(",")] for row in re.findall(r"^\| \d \| (.+) \|$", text, re.MULTILINE)]
    rows = re.findall(r"^\| (balance|importance|z).*\| `(\{.*\})` \| ([\d.]+) \|$", text, re.MULTILINE)
    return np.array(logits), [(name, json.loads(fields), float(value)) for name, fields, value in rows]


NINE = fixture_table()[1]


def test_there_are_nine():
    assert len(NINE) == 9 and fixture_table()[0].shape == (6, 4)


@pytest.mark.parametrize(("name", "fields", "value"), NINE, ids=lambda v: str(v))
def test_nine_values(name, fields, value):
    """The exact value rounds to the number in the table; the float64 profile is within 4 ulp of it."""
    z = fixture_table()[0]
    config = config_of(num_experts=4, losses={name: {"coefficient": 1.0, **fields}})
    indices = routing.select_topk(z, 2)
    record = {"logits": to_law(z), "scores": to_law(z), "topk_indices": to_law(indices)}
    formula = LAW.LOSSES[name](record, config.to_dict())
    assert float(LAW.stored("float64", formula)) == value
    given = refmoe.Given(logits=z, topk_indices=indices)
    params = refmoe.init_params(config)
    in_float64 = type(params)(*[a if a is None else a.astype(np.float64) for a in params])
    record = refmoe.moe_forward(np.zeros((6, 5)), in_float64, config, policy("float64", "float64"), given)
    assert abs(float(getattr(record.losses, name)) - value) <= 4 * np.spacing(value)


BALANCES = [
    {"counts": counts, "divide_by_k": divide, "probs": probs, "scope": scope, "selection": selection}
    for probs in ("softmax", "normalized_sigmoid", "sigmoid", "relu")
    for counts, divide, scope, selection in (
        ("all", True, "batch", "actual"), ("all", False, "sequence", "plain"), ("first", True, "global", "actual"),
        ("all", True, "global", "plain"), ("first", True, "sequence", "plain"),
    )
]  # fmt: skip
LOSS_CASES = [
    *(("balance", fields) for fields in BALANCES),
    ("z", {}),
    *(
        ("importance", {"gates": g, "ddof": d, "eps": e})
        for g in ("softmax", "topk")
        for d in (0, 1)
        for e in (0.0, 1e-10)
    ),
    ("load", {}),
    *(("load", {"noisy": True, "threshold": at, "ddof": d}) for at, d in (("others", 0), ("others", 1), ("kth", 0))),
    *(("orthogonality", {"form": form}) for form in ("l1", "frobenius")),
    *(("mutual_information", {"terms": terms}) for terms in ("both", "marginal", "conditional")),
    *(("importance", {"gates": g, "form": "deviation"}) for g in ("softmax", "topk")),
    *(
        (name, {"num_devices": n, "probs": probs, "scope": scope} | limit)
        for name, limit in (("device", {}), ("communication", {"device_limit": 2}))
        for n, probs, scope in ((2, "softmax", "batch"), (3, "normalized_sigmoid", "sequence"), (6, "sigmoid", "batch"))
    ),
]


def loss_inputs(kind, T=7, E=6):
    if kind == "hard":
        return hard_logits(6, (T, E), distant=False)
    if kind == "level":
        return np.zeros((T, E), np.float32)
    z = np.tile(np.array([1.5, 1.5, -1.5, 0.5, -0.5, 0.0], np.float32), (T, 1))  # mirrored and permuted rows
    return np.stack([np.roll(row, t) for t, row in enumerate(z)])


@pytest.mark.parametrize("kind", ["hard", "level", "rolled"])
@pytest.mark.parametrize(
    ("name", "fields"), LOSS_CASES, ids=lambda v: v if isinstance(v, str) else "-".join(map(str, v.values()))
)
def test_losses(name, fields, kind):
    said = {field: value for field, value in fields.items() if field != "noisy"}
    config, num = config_of(losses={name: {"coefficient": 0.013, **said}}), policy()
    z = loss_inputs(kind)
    indices = routing.select_topk(z[:, ::-1], 2).copy()
    indices[2, 1] = -1
    s = scores.SCORE_FNS["softmax"][0](z, num)
    given = {"token_mask": np.arange(7) != 4, "sequence_ids": np.array([5, 5, 5, 2, 1, 2, 2])}
    if fields.get("scope") == "global":
        given["counts_so_far"] = np.array([3, 0, 1, 5, 0, 1])
    stages = {"logits": z, "scores": s, "topk_indices": indices}
    if fields.get("noisy"):
        stages |= {"clean_logits": np.roll(z, 1, axis=0), "noise_std": 0.5 + np.abs(z[:, ::-1]) / 8}
    if name == "orthogonality":
        stages["router_gram"] = np.where(np.eye(6) * (np.arange(6) % 2), np.float32(1), z[:6])
    arguments = losses.loss_arguments(refmoe.routing.RoutingRecord(**stages), config, refmoe.Given(**given))[name]
    record = {stage: to_law(array) for stage, array in stages.items()}
    law_given, cfg = {k: to_law(v) for k, v in given.items()}, config.to_dict()
    forward, backward = losses.LOSSES[name]
    made = forward(*arguments, config, num)
    agree([LAW.stored("float32", LAW.LOSSES[name](record, cfg, law_given))], np.reshape(made, (1,)), "loss")
    for upstream in (1.0, -0.3):
        law = LAW.gradients_of_loss(name, upstream, record, cfg, law_given)
        made = backward(upstream, *arguments, config, num)
        made = made if isinstance(made, tuple) else (made,)
        agree(law, dict(zip(losses.GIVES[name], made, strict=True)), f"backward {upstream}")


@pytest.mark.parametrize("form", ["l1", "frobenius"])
@pytest.mark.parametrize("far", [np.inf, -np.inf, np.nan, 3e38, -1e-45])
def test_inner_products_at_the_ends_of_the_format(form, far):
    config, num = config_of(losses={"orthogonality": {"coefficient": 0.7, "form": form}}), policy()
    gram = np.array([[1, far, 0], [far, far, 1 + 2.0**-23], [0, 1 + 2.0**-23, -3e38]], np.float32)
    law, cfg = {"router_gram": to_law(gram)}, config.to_dict()
    made = losses.orthogonality_loss(gram, config, num)
    agree([LAW.stored("float32", LAW.orthogonality_loss(law, cfg))], np.reshape(made, (1,)), "loss")
    agree(LAW.orthogonality_backward(-0.3, law, cfg), losses.orthogonality_loss_backward(-0.3, gram, config, num), "d")


@pytest.mark.parametrize("coefficient", [1 + 2.0**-24, 1 + 3 * 2.0**-24])
def test_a_coefficient_is_exact(coefficient):
    """Perfect balance gives exactly the coefficient, here a tie of float32."""
    config = config_of(num_experts=3, top_k=1, losses={"balance": {"coefficient": coefficient}})
    z = np.zeros((3, 3), np.float32)
    record = {"logits": to_law(z), "scores": None, "topk_indices": [[0], [1], [2]]}
    scopes = losses.loss_scopes(3, config.losses.balance, config, refmoe.Given())
    made = losses.balance_loss(z, np.ones((1, 3), np.int64), scopes, config, policy())
    agree([LAW.stored("float32", LAW.balance_loss(record, config.to_dict()))], np.reshape(made, (1,)))


def test_selection_bias_controller():
    b = np.concatenate([edge_values("float32", infinite=False), wild("float32", 20, 3)])
    n = np.random.default_rng(1).integers(0, 5, len(b))
    for rate in (0.001, 0.0, 1.0):
        agree(LAW.update_selection_bias(to_law(b), to_law(n), rate), refmoe.update_selection_bias(b, n, rate, policy()))
