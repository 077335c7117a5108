"""The configuration: complete with four fields, strict in everything else."""

import dataclasses
import json
import warnings

import numpy as np
import pytest

import refmoe
from refmoe.config import DispatchConfig, ExpertsConfig, LossesConfig, MoEConfig, RoutingConfig
from refmoe.config.reading import HF_NAMES
from refmoe.models import load_preset, names
from refmoe.recipes import generate

BASE = {"hidden_size": 7, "intermediate_size": 5, "num_experts": 6, "top_k": 2}
SECTIONS = {"routing": RoutingConfig, "dispatch": DispatchConfig, "experts": ExpertsConfig, "losses": LossesConfig}
FIELDS = [(section, f) for section, kind in SECTIONS.items() for f in dataclasses.fields(kind)]


# --- neutral defaults ---------------------------------------------------------------------------------------------

# field -> configurations that must give the bits of BASE although they say something. Most fields are neutral at their
# default; these are neutral at other values too, or need a companion to be allowed at all.
ALSO_NEUTRAL = {
    "routing.selection_base": [{"routing": {"selection_base": "logits"}}],
    "routing.top_groups": [{"routing": {"num_groups": 3, "top_groups": 3}}],
    "routing.num_groups": [{"routing": {"num_groups": 2, "top_groups": 2}}],
    "routing.group_score_topn": [{"routing": {"group_score_topn": 1}}],
    "routing.group_mask": [{"routing": {"group_mask": "zero"}}],
    "routing.selection": [{"routing": {"selection": "per_group"}}],  # of one group
    "routing.norm_eps_mode": [{"routing": {"norm_eps_mode": "clamp"}}],
    "routing.jitter": [{"routing": {"jitter": "router"}}, {"routing": {"jitter": "block"}}],  # without given factors
    "routing.noise": [{"routing": {"noise": "learned", "noise_floor": 0.5}}],  # without given noise
    "routing.noise_std": [{"routing": {"noise": "fixed", "noise_std": 0.5}}],
    "dispatch.capacity": [{"dispatch": {"capacity": 10**6}}],
    "dispatch.capacity_factor": [{"dispatch": {"capacity_factor": 6.0}}],
    "dispatch.capacity_rule": [{"dispatch": {"capacity_factor": 0.0, "capacity_rule": "tutel"}}],  # no limit
    "dispatch.min_capacity": [{"dispatch": {"capacity_factor": 0.0, "min_capacity": 9}}],
    "dispatch.capacity_multiple": [{"dispatch": {"capacity_factor": 0.1, "capacity_multiple": 9}}],
    "dispatch.capacity_scope": [{"dispatch": {"capacity_scope": "sequence"}}],
    "dispatch.drop_policy": [{"dispatch": {"drop_policy": "probability"}}],
    "experts.limit": [{"experts": {"limit": 1e30}}, {"experts": {"limit": 1e30, "limit_position": "post"}}],
    "dispatch.slot_order": [{"dispatch": {"slot_order": order}} for order in ("token_major", "batch_prioritized")],
    "dispatch.keep_at_most": [{"dispatch": {"capacity": 10**6, "keep_at_most": 2}}],
    "dispatch.capacity_devices": [{"dispatch": {"capacity": 10**6, "capacity_devices": 3}}],
    "losses.balance": [{"losses": {"balance": {}}}, {"losses": {"balance": {"coefficient": 0.0, "probs": "sigmoid"}}}],
    "losses.z": [{"losses": {"z": {}}}],
    "losses.importance": [{"losses": {"importance": {"gates": "topk", "eps": 0.5}}}],
    "losses.device": [{"losses": {"device": {"num_devices": 3}}}],
    "losses.communication": [{"losses": {"communication": {"num_devices": 2, "device_limit": 2}}}],
    "losses.mutual_information": [{"losses": {"mutual_information": {"terms": "marginal"}}}],
    "losses.load": [{"losses": {"load": {"threshold": "kth"}}}],
    "losses.orthogonality": [{"losses": {"orthogonality": {"form": form}}} for form in ("l1", "frobenius")],
    "losses.bias_update_rate": [{"losses": {"bias_update_rate": 0.25}}],  # read by the controller, not by the layer
}


def run(fields):
    """Every tensor of a forward and backward pass, by name."""
    config = MoEConfig.from_dict(BASE | fields)
    num = refmoe.Numerics(backend="numpy")
    x = generate("x", (9, 7), seed=1)
    d_y = generate("d_y", (9, 7), seed=1)
    params = refmoe.init_params(config, seed=3)
    record = refmoe.moe_forward(x, params, config, num)
    grads = refmoe.moe_backward(d_y, x, params, record, config, num)
    return dict(tensors(record, "record")) | dict(tensors(grads, "grads"))


def tensors(value, name):
    if hasattr(value, "_fields"):
        for field in value._fields:
            yield from tensors(getattr(value, field), f"{name}.{field}")
    elif value is not None:
        yield name, np.asarray(value)


def four_numbers():
    """The layer that four numbers say, written without a configuration: what "neutral" is measured by."""
    num, params = refmoe.Numerics(backend="numpy"), refmoe.init_params(MoEConfig(**BASE), seed=3)
    x, d_y = generate("x", (9, 7), seed=1), generate("d_y", (9, 7), seed=1)
    logits = num.contract("logits", x, params.w_router)
    scores = num.evaluate("scores", lambda m, z: m.softmax(z), logits, core=1)
    ids = np.argsort(-scores, axis=-1, kind="stable")[:, :2]
    w = np.take_along_axis(scores, ids, axis=-1)
    rows = [[expert(num, x[t : t + 1], d_y[t : t + 1], w[t, k : k + 1], params, e) for k, e in enumerate(ids[t])]
            for t in range(9)]  # fmt: skip
    y_rows, d_x_rows, d_w = (np.array([[r[i] for r in of_token] for of_token in rows]) for i in range(3))
    y = num.sum("y", [(w[:, k, None], y_rows[:, k]) for k in (0, 1)])
    d_scores = np.zeros_like(scores)
    np.put_along_axis(d_scores, ids, d_w[..., 0], axis=-1)
    back = lambda m, d, z: m.softmax(z) * (d - m.sum(d * m.softmax(z), keepdims=True))  # noqa: E731
    d_logits = num.evaluate("d_logits_task", back, d_scores, logits, core=1)
    d_x_experts = num.sum("d_x_experts", [d_x_rows[:, k] for k in (0, 1)])
    d_x_router = num.contract_backward_x("d_x_router", [(d_logits, params.w_router)])
    return {
        "record.routing.logits": logits, "record.routing.scores": scores, "record.routing.topk_indices": ids,
        "record.routing.topk_weights": w, "record.y": y, "grads.d_logits": d_logits, "grads.d_x_experts": d_x_experts,
        "grads.d_x": num.sum("d_x", [d_x_experts, d_x_router]),
        "grads.params.w_router": num.contract_backward_w("d_w_router", d_logits, x),
    }  # fmt: skip


def expert(num, x, d_y, weight, params, e):
    """silu(gate) * up, down; and back -> y_row (D,), d_x_row (D,), d_weight (1,)."""
    w_gate, w_up, w_down = params.w_gate[e], params.w_up[e], params.w_down[e]
    gate, up = num.contract("gate_rows", x, w_gate), num.contract("up_rows", x, w_up)
    hidden = num.evaluate("hidden_rows", lambda m, g, u: m.silu(g) * u, gate, up)
    y = num.contract("y_rows", hidden, w_down)
    d_y_row = num.evaluate("d_y_rows", lambda m, d, w: d * w, d_y, weight)
    d_hidden = num.contract_backward_x("d_hidden_rows", [(d_y_row, w_down)])
    d_gate = num.evaluate("d_gate_rows", lambda m, d, g, u: d * u * m.silu_derivative(g), d_hidden, gate, up)
    d_up = num.evaluate("d_up_rows", lambda m, d, g: d * m.silu(g), d_hidden, gate)
    d_x = num.contract_backward_x("d_x_rows", [(d_gate, w_gate), (d_up, w_up)])
    return y[0], d_x[0], num.contract_rows("d_topk_weights", d_y, y)


@pytest.fixture(scope="module")
def plain():
    return run({})


def test_four_numbers_and_neutral_defaults_are_the_layer_without_a_configuration(plain):
    """Of every default: one that is not neutral changes these bits."""
    for name, want in four_numbers().items():
        assert plain[name].dtype == want.dtype and plain[name].tobytes() == want.tobytes(), name


def assert_same_bits(got, want, but=()):
    """Equal bytes for every tensor that both have; those only one has belong to what the field switches on."""
    shared = [name for name in want if name in got and not name.startswith(but)]
    assert {"record.y", "grads.d_x", "grads.params.w_router", "grads.params.w_gate"} <= set(shared)
    for name in shared:
        assert got[name].dtype == want[name].dtype and got[name].tobytes() == want[name].tobytes(), name


def test_a_field_that_says_its_default_says_nothing():
    """So that the layer above, which no field speaks of, is that of each field at its default."""
    for section, field in FIELDS:
        assert MoEConfig.from_dict(BASE | {section: {field.name: field.default}}) == MoEConfig(**BASE), field.name


@pytest.mark.parametrize(("name", "fields"), [(n, f) for n, cases in ALSO_NEUTRAL.items() for f in cases])
def test_other_neutral_values_change_no_bit(name, fields, plain):
    but = ("record.routing.choice_scores", "record.routing.margin") if name == "routing.selection_base" else ()
    assert_same_bits(run(fields), plain, but)


def test_the_comparison_sees_a_change(plain):
    with pytest.raises(AssertionError):
        assert_same_bits(run({"routing": {"scaling_factor": 1.5}}), plain)


def test_four_fields_are_a_configuration():
    config = MoEConfig(**BASE)
    assert config == MoEConfig.from_dict(BASE)
    required = [f.name for f in dataclasses.fields(MoEConfig) if f.default is f.default_factory is dataclasses.MISSING]
    assert required == list(BASE)


# --- Hugging Face names -------------------------------------------------------------------------------------------

ALIASES = {
    "num_local_experts": (6, 6),
    "n_routed_experts": (6, 6),
    "num_experts_per_tok": (2, 2),
    "num_experts_per_token": (2, 2),
    "moe_num_experts": (6, 6),
    "moe_topk": (2, 2),
    "moe_top_k": (2, 2),
    "moe_k": (2, 2),
    "top_k_experts": (2, 2),
    "moe_intermediate_size": (5, 5),
    "expert_ffn_hidden_size": (5, 5),
    "router_bias": (True, True),
    "moe_router_activation_func": ("sigmoid", "sigmoid"),
    "num_expert_group": (3, 3),
    "moe_renormalize": (True, True),
    "moe_routed_scaling_factor": (2.5, 2.5),
    "moe_router_scaling_factor": (3, 3.0),
    "router_scaling_factor": (2.5, 2.5),
    "route_scale": (8, 8.0),
    "apply_router_weight_on_input": (True, "input"),
    "moe_apply_router_weight_on_input": (False, "output"),
    "mlp_hidden_act": ("relu2", "relu2"),
    "hidden_activation": ("gelu_pytorch_tanh", "gelu_tanh"),
    "mlp_gate_softcap": (4, 4.0),
    "mlp_up_softcap": (25, 25.0),
    "shared_intermediate_size": (9, 9),
    "moe_shared_expert_intermediate_size": (9, 9),
    "shared_expert_combination_strategy": ("average", "average"),
    "scoring_func": ("sqrtsoftplus", "sqrt_softplus"),
    "n_group": (3, 3),
    "topk_group": (2, 2),
    "norm_topk_prob": (True, True),
    "norm_topk_eps": (1e-20, 1e-20),
    "norm_topk_p": (2, 2),
    "norm_over_shared": (True, True),
    "moe_normalize_expert_weights": (2, 2),
    "routed_scaling_factor": (2.5, 2.5),
    "e_score_correction_bias": (True, True),
    "group_score_topn": (1, 1),
    "router_input_norm": ("rms_scaled", "rms_scaled"),
    "router_logits_scale": (0.5, 0.5),
    "router_logit_softcapping": (30, 30.0),
    "moe_router_logit_softcapping": (30, 30.0),
    "per_expert_scale": (True, True),
    "router_global_scale": (True, True),
    "second_expert_policy": ("sampling", "sampled"),
    "batch_prioritized_routing": (True, "batch_prioritized"),
    "normalize_router_prob_before_dropping": (False, True),
    "expert_capacity": (4, 4),
    "hidden_act": ("gelu_pytorch_tanh", "gelu_tanh"),
    "swiglu_alpha": (1.702, 1.702),
    "swiglu_limit": (7, 7.0),
    "swiglu_limit_position": ("post", "post"),
    "gate_softcap": (4, 4.0),
    "up_softcap": (25, 25.0),
    "shared_act": ("gelu_pytorch_tanh", "gelu_tanh"),
    "glu_linear_offset": (1, 1.0),
    "expert_bias": (True, True),
    "zero_expert_num": (2, 2),
    "moe_latent_size": (4, 4),
    "gated": (False, False),
    "shared_expert_intermediate_size": (9, 9),
    "shared_expert_gate": (True, True),
    "router_z_loss_coef": (0.001, 0.001),
}
COMPANIONS = {
    "normalize_router_prob_before_dropping": {"norm_topk_prob": True},
    "norm_topk_eps": {"norm_topk_prob": True},
    "norm_topk_p": {"norm_topk_prob": True},
    "norm_over_shared": {"norm_topk_prob": True, "scoring_func": "sigmoid", "shared_expert_intermediate_size": 4},
    "moe_normalize_expert_weights": {"norm_topk_prob": True},
    "shared_act": {"shared_expert_intermediate_size": 4},
    "shared_expert_combination_strategy": {"shared_expert_intermediate_size": 4},
    "n_group": {"topk_group": 2},
    "num_expert_group": {"topk_group": 2},
    "topk_group": {"n_group": 3},
    "shared_expert_gate": {"shared_expert_intermediate_size": 9},
}


def test_every_alias_is_tested():
    assert set(ALIASES) == set(HF_NAMES)


@pytest.mark.parametrize("alias", sorted(HF_NAMES))
def test_alias(alias):
    given, want = ALIASES[alias]
    path = HF_NAMES[alias].split(".")
    data = {key: value for key, value in BASE.items() if key != path[0]}
    value = MoEConfig.from_dict(data | {alias: given} | COMPANIONS.get(alias, {})).to_dict()
    for key in path:
        value = value[key]
    assert value == want and type(value) is type(want)


@pytest.mark.parametrize("name", ["n_shared_experts", "num_shared_experts", "moe_num_shared_experts"])
def test_a_number_of_shared_experts_is_a_width(name):
    """n experts of the routed width F = 5 are one of n F; none where the number is 0 or null."""
    for count, width in ((2, 10), (0, 0), (None, 0)):
        assert MoEConfig.from_dict(BASE | {name: count}).experts.shared_intermediate_size == width
    with pytest.raises(ValueError, match=f"{name}: expected a whole number, got 1.5"):
        MoEConfig.from_dict(BASE | {name: 1.5})
    joint = {"norm_topk_prob": True, "scoring_func": "sigmoid", "norm_over_shared": True}
    with pytest.raises(ValueError, match=f"{name}: expected experts apart where the router weighs each, got 2; give"):
        MoEConfig.from_dict(BASE | joint | {name: 2})


@pytest.mark.parametrize("kind", ["identity", "zero", "constant"])
def test_the_kind_of_zero_experts(kind):
    experts = MoEConfig.from_dict(BASE | {"zero_expert_num": 2, "zero_expert_type": kind}).experts
    assert getattr(experts, f"{kind}_experts") == experts.num_weightless == 2
    assert MoEConfig.from_dict(BASE | {"zero_expert_type": kind}).experts.num_weightless == 0
    with pytest.raises(ValueError, match="zero_expert_type: expected one of identity, zero, constant, got 'copy'"):
        MoEConfig.from_dict(BASE | {"zero_expert_num": 2, "zero_expert_type": "copy"})


@pytest.mark.parametrize("name", ["topk_method", "router_jitter_noise", "router_aux_loss_coef", "output_multiplier"])
def test_names_that_families_read_in_their_own_way_are_unknown(name):
    with pytest.raises(ValueError, match=f"config: expected known fields, got '{name}'"):
        MoEConfig.from_dict(BASE | {name: 0.5})


def test_an_alias_beside_its_own_field_is_refused():
    with pytest.raises(ValueError, match="num_local_experts: expected not together with num_experts"):
        MoEConfig.from_dict(BASE | {"num_local_experts": 6})
    twice = BASE | {"num_local_experts": 6, "n_routed_experts": 6}
    del twice["num_experts"]
    with pytest.raises(ValueError, match="give num_experts once"):
        MoEConfig.from_dict(twice)


# --- refusals -----------------------------------------------------------------------------------------------------

CHOICE = {"selection": "expert_choice"}
MIXER = {"selection": "sparsemixer", "selection_base": "logits"}
REFUSALS = [
    (
        {"routing": {"norm_over_shared": True}},
        "routing.score_fn: expected 'sigmoid' with routing.norm_over_shared, got 'softmax'; leave norm_over_shared out",
    ),
    (
        {"routing": {"norm_over_shared": True, "score_fn": "sigmoid", "normalize": True}},
        "routing.norm_over_shared: expected False without shared experts, got True; set experts.shared_inter",
    ),
    ({"routing": {"norm_p": 2}}, "routing.norm_p: expected 1 without normalize, got 2; set routing.normalize=True"),
    (
        {"routing": {"normalize": True, "norm_p": 2, "norm_eps": 0.5}},
        "routing.norm_eps: expected 0 with norm_p above 1, got 0.5; a norm of scores is not 0 where a score is not",
    ),
    ({"routing": {"input_norm_eps": 0.5}}, "routing.input_norm_eps: expected its default without input_norm, got 0.5"),
    (
        {"routing": {"input_norm": "rms_scaled", "input_norm_eps": 0}},
        "routing.input_norm_eps: expected a positive number, got 0.0; 0 / 0 has no value",
    ),
    ({"routing": {"logits_scale": 0}}, "routing.logits_scale: expected a number other than 0, got 0.0"),
    ({"routing": {"logits_softcap": 0}}, "routing.logits_softcap: expected a positive number or None, got 0.0"),
    (
        {"routing": {"noise": "fixed"}},
        "routing.noise_std: expected a positive number with noise='fixed', 0 without, got 0.0",
    ),
    (
        {"routing": {"noise": "learned", "noise_std": 0.5}},
        "routing.noise_std: expected a positive number with noise='fixed', 0 without, got 0.5",
    ),
    ({"routing": {"noise_floor": 0.5}}, "routing.noise_floor: expected its default without noise='learned', got 0.5"),
    ({"routing": {"selection": "best"}}, "selection: expected one of 'topk'"),
    (
        {"routing": {"selection": "per_group", "num_groups": 4}},
        "num_groups: expected a divisor of num_experts = 6, got 4",
    ),
    (
        {"routing": {"selection": "per_group", "num_groups": 3}},
        "top_k: expected a multiple of num_groups = 3 with selection 'per_group', got 2; every group gives",
    ),
    (
        {"routing": {"selection": "per_group", "num_groups": 2, "top_groups": 2}},
        "routing.top_groups: expected 1 with selection 'per_group', got 2; every group gives its share of top_k",
    ),
    ({"routing": {"threshold": 0.5}}, "routing.threshold: expected 0.0 with selection 'topk', got 0.5; set selection="),
    ({"routing": {"top_p": 0.5}}, "routing.top_p: expected 1.0 with selection 'topk', got 0.5; set selection='top_p'"),
    ({"routing": {"selection": "top_p", "top_p": 0.0}}, "routing.top_p: expected a positive sum, got 0.0; every set"),
    (
        {"routing": {"selection": "threshold"}, "losses": {"balance": {"scope": "global"}}},
        "losses.balance.scope: expected 'batch' or 'sequence' for all choices, got 'global'; selection 'threshold'",
    ),
    (
        {"routing": {"selection": "top_p"}, "dispatch": {"drop_policy": "random", "capacity": 1}},
        "dispatch.drop_policy: expected 'position' or 'probability', got 'random'; selection 'top_p' gives a token any",
    ),
    (
        {"routing": {"selection": "threshold", "second_expert": "random"}},
        "routing.second_expert: expected 'all', got 'random'; selection 'threshold' gives a token any",
    ),
    (
        {"routing": {"selection": "expert_choice"}},
        "dispatch.capacity: expected a capacity or capacity_factor with selection 'expert_choice', got None; every",
    ),
    (
        {"routing": {"selection": "expert_choice"}, "dispatch": {"capacity": 1, "keep_at_most": 1}},
        "dispatch.keep_at_most: expected None with selection 'expert_choice', got 1; experts that choose drop nothing",
    ),
    (
        {"routing": CHOICE, "dispatch": {"capacity": 1}, "losses": {"balance": {"counts": "first"}}},
        "losses.balance.counts: expected 'all' with selection 'expert_choice', got 'first'; a token's experts",
    ),
    (
        {"routing": CHOICE, "dispatch": {"capacity": 1}, "experts": {"zero_experts": 1}},
        "experts: expected no experts without weights with selection 'expert_choice', got 1; what has no weights",
    ),
    (
        {"routing": {"divide_by_count": True, "normalize": True}},
        "routing.divide_by_count: expected False with routing.normalize, got True; a weight is shared out among",
    ),
    (
        {"routing": {"score_fn": "softmax_tokens"}, "dispatch": {"capacity_scope": "sequence"}},
        "dispatch.capacity_scope: expected 'batch' without a capacity, got 'sequence'; a scope is that of a capacity",
    ),
    (
        {"routing": {"sinkhorn_iterations": 3}},
        "routing.sinkhorn_iterations: expected 16 with selection_base 'scores', got 3; set selection_base='sinkhorn'",
    ),
    (
        {"routing": {"selection": "hash", "hash_vocab_size": 5, "selection_base": "sinkhorn"}},
        "routing.selection_base: expected 'scores' with selection 'hash', got 'sinkhorn'; a table ranks nothing",
    ),
    (
        {"routing": {"second_expert": "sampled", "selection": "per_group"}},
        "routing.selection: expected 'topk' with a sampled second expert, got 'per_group'; a sampled second expert is",
    ),
    (
        {"routing": {"second_expert": "sampled", "noise": "learned"}},
        "routing.noise: expected 'none' with a sampled second expert, got 'learned'; given.noise is what it is",
    ),
    (
        {"routing": {"second_expert": "sampled", "num_groups": 2, "top_groups": 2}},
        "routing.num_groups: expected 1 with a sampled second expert, got 2; a sampled second expert is the best of",
    ),
    ({"routing": {"second_expert": "sampled"}, "top_k": 3}, "routing.second_expert: expected 'all' with top_k = 3"),
    (
        {"routing": {"selection": "assignment", "selection_base": "logits"}},
        "top_k: expected 1 with selection 'assignment', got 2; BASE assigns one expert a token, by logits",
    ),
    (
        {"routing": {"selection": "assignment"}, "top_k": 1},
        "routing.selection_base: expected 'logits' with selection 'assignment', got 'scores'; BASE assigns one",
    ),
    ({"routing": {"sparsemixer_eps": 0.5}}, "routing.sparsemixer_eps: expected 0.01 with selection 'topk', got 0.5"),
    ({"routing": MIXER, "top_k": 3}, "top_k: expected 2 with selection 'sparsemixer', got 3; SparseMixer has"),
    (
        {"routing": MIXER | {"selection_base": "scores"}},
        "routing.selection_base: expected 'logits' with selection 'sparsemixer', got 'scores'; SparseMixer has",
    ),
    (
        {"routing": MIXER | {"normalize": True}},
        "routing.normalize: expected False with selection 'sparsemixer', got True; SparseMixer has",
    ),
    ({"routing": {"selection": "hash"}}, "expected the size of the vocabulary with selection 'hash', got 0; the table"),
    (
        {"routing": {"hash_vocab_size": 9}},
        "routing.hash_vocab_size: expected 0 with selection 'topk', got 9; set selection",
    ),
    (
        {"routing": {"selection": "hash", "hash_vocab_size": 9, "selection_bias": True}},
        "routing.selection_bias: expected False with selection 'hash', got True; a table ranks nothing",
    ),
    (
        {"routing": {"selection": "hash", "hash_vocab_size": 9, "num_groups": 2}},
        "routing.num_groups: expected 1 with selection 'hash', got 2; groups belong to",
    ),
    ({"top_k": 7}, "top_k: expected at most num_experts = 6, got 7; lower top_k to 6 or add experts"),
    ({"top_k": 0}, "top_k: expected at least 1, got 0"),
    ({"hidden_size": -1}, "hidden_size: expected at least 1, got -1"),
    ({"routing": {"num_groups": 4}}, "routing.num_groups: expected a divisor of num_experts = 6, got 4"),
    ({"routing": {"top_groups": 2}}, "routing.top_groups: expected at most num_groups = 1, got 2; set top_groups to 1"),
    ({"experts": {"alpha": -1.0}}, "experts.alpha: expected a positive number, got -1.0"),
    (
        {"num_experts": 1, "top_k": 1, "losses": {"importance": {"ddof": 1}}},
        "losses.importance.ddof: expected 0 with one expert, got 1",
    ),
    ({"routing": {"num_groups": 3, "top_groups": 4}}, "routing.top_groups: expected at most num_groups = 3, got 4"),
    (
        {"routing": {"num_groups": 3, "group_score_topn": 3}},
        "routing.group_score_topn: expected at most the 2 experts of a group",
    ),
    ({"top_k": 3, "routing": {"num_groups": 3}}, "top_k: expected at most 2, the experts of kept groups, got 3"),
    ({"routing": {"norm_eps": 0.5}}, "routing.norm_eps: expected 0 without normalize, got 0.5"),
    ({"routing": {"normalize": True, "norm_eps": -1.0}}, "norm_eps: expected at least 0.0, got -1.0"),
    (
        {"routing": {"score_fn": "softplus"}},
        "score_fn: expected one of 'softmax', 'softmax_tokens', 'sigmoid', 'sqrt_softplus', 'relu', got 'softplus'",
    ),
    ({"routing": {"scaling_factor": float("nan")}}, "scaling_factor: expected a finite number, got nan"),
    ({"dispatch": {"capacity": -1}}, "capacity: expected at least 0, got -1"),
    ({"dispatch": {"capacity_factor": float("inf")}}, "capacity_factor: expected a finite number, got inf"),
    (
        {"dispatch": {"capacity": 2, "capacity_factor": 1.0}},
        "dispatch.capacity: expected either capacity or capacity_factor",
    ),
    (
        {"dispatch": {"capacity": 2, "capacity_rule": "vmoe"}},
        "dispatch.capacity_rule: expected 'ceil' without capacity_factor, got 'vmoe'; set dispatch.capacity_factor",
    ),
    ({"dispatch": {"min_capacity": 4}}, "dispatch.min_capacity: expected 0 without capacity_factor, got 4"),
    ({"dispatch": {"capacity_multiple": 8}}, "dispatch.capacity_multiple: expected 1 without capacity_factor, got 8"),
    (
        {"dispatch": {"drop_policy": "random"}},
        "dispatch.drop_policy: expected a capacity for 'random', got 'random'; set dispatch.capacity or",
    ),
    ({"dispatch": {"keep_at_most": 1}}, "dispatch.keep_at_most: expected None without a capacity, got 1"),
    ({"dispatch": {"capacity_devices": 2}}, "dispatch.capacity_devices: expected None without a capacity, got 2"),
    (
        {"dispatch": {"capacity": 2, "capacity_devices": 4}},
        "dispatch.capacity_devices: expected a divisor of num_experts = 6, got 4",
    ),
    ({"top_k": 3, "routing": {"second_expert": "random"}}, "routing.second_expert: expected 'all' with top_k = 3"),
    ({"routing": {"second_expert_factor": 5.0}}, "routing.second_expert_factor: expected 2.0 without a coin, got 5.0"),
    ({"dispatch": {"capacity_multiple": 0}}, "capacity_multiple: expected at least 1, got 0"),
    (
        {"dispatch": {"normalize_after_drop": True}},
        "dispatch.normalize_after_drop: expected False without routing.normalize",
    ),
    (
        {"experts": {"activation": "gelu", "alpha": 1.702}},
        "experts.alpha: expected 1.0 unless the activation is silu, got 1.702",
    ),
    (
        {"experts": {"gated": False, "limit": 7.0}},
        "experts.limit: expected no limit and no linear_offset without gated",
    ),
    (
        {"experts": {"gated": False, "linear_offset": 1.0}},
        "experts.limit: expected no limit and no linear_offset without gated",
    ),
    (
        {"experts": {"gated": False, "up_softcap": 4.0}},
        "experts.gate_softcap: expected no soft caps without gated, got (None, 4.0)",
    ),
    (
        {"experts": {"zero_experts": 1, "weight_position": "hidden"}},
        "experts.weight_position: expected 'output' or 'input' with experts without weights, got 'hidden'",
    ),
    (
        {"experts": {"latent_pre_norm": "rms"}},
        "experts.latent_pre_norm: expected 'none' without latent_size, got 'rms'",
    ),
    (
        {"experts": {"latent_post_norm": "rms_centered"}},
        "experts.latent_post_norm: expected 'none' without latent_size, got 'rms_centered'",
    ),
    (
        {"experts": {"output_norm": "rms", "norm_eps": 0.0}},
        "experts.norm_eps: expected a positive number where there is a norm, got 0.0",
    ),
    (
        {"experts": {"post_expert_norm_eps": 0.5}},
        "experts.post_expert_norm_eps: expected None without post_expert_norm, got 0.5",
    ),
    (
        {"experts": {"post_expert_norm": "rms", "post_expert_norm_eps": 0.0}},
        "experts.post_expert_norm_eps: expected a positive number or None, got 0.0",
    ),
    (
        {"experts": {"post_expert_norm": "rms", "zero_experts": 1}},
        "experts.post_expert_norm: expected 'none' with experts without weights, got 'rms'",
    ),
    (
        {"experts": {"residual": "complement", "latent_size": 3}},
        "experts.residual: expected 'none' with latent_size, or with the weight elsewhere than on the output, got (3,",
    ),
    (
        {"experts": {"residual": "complement", "weight_position": "input"}},
        "experts.residual: expected 'none' with latent_size, or with the weight elsewhere than on the output",
    ),
    (
        {"experts": {"shared_combine": "average"}},
        "experts.shared_combine: expected 'sum' without a shared expert, got 'average'",
    ),
    ({"experts": {"shared_count": 0}}, "shared_count: expected at least 1, got 0"),
    (
        {"experts": {"shared_count": 2}},
        "experts.shared_count: expected 1 without a shared expert, or with shared_gate, got 2",
    ),
    (
        {"experts": {"shared_count": 2, "shared_intermediate_size": 3, "shared_gate": True}},
        "experts.shared_count: expected 1 without a shared expert, or with shared_gate, got 2",
    ),
    ({"experts": {"output_norm": "layer"}}, "output_norm: expected one of 'none', 'rms', 'rms_centered', got 'layer'"),
    ({"experts": {"zero_experts": -1}}, "zero_experts: expected at least 0, got -1"),
    ({"top_k": 9, "experts": {"zero_experts": 2}}, "at most num_experts and experts without weights = 8"),
    ({"experts": {"gate_softcap": 0.0}}, "experts.gate_softcap: expected a positive number, got 0.0"),
    ({"experts": {"up_softcap": 0.0}}, "experts.up_softcap: expected a positive number, got 0.0"),
    (
        {"experts": {"activation": "gelu", "gate_softcap": 4.0}},
        "experts.gate_softcap: expected None unless the activation is silu, got 4.0",
    ),
    (
        {"experts": {"limit": 7.0, "up_softcap": 4.0}},
        "experts.limit: expected None with a soft cap, which bounds the same, got 7.0",
    ),
    (
        {"experts": {"shared_activation": "gelu"}},
        "experts.shared_activation: expected no choice for a shared expert without one",
    ),
    (
        {"experts": {"shared_clamped": False}},
        "experts.shared_activation: expected no choice for a shared expert without one",
    ),
    (
        {"experts": {"shared_intermediate_size": 3, "shared_limit": 7.0, "shared_clamped": False}},
        "experts.shared_limit: expected None without gated, or with shared_clamped=False, got 7.0",
    ),
    (
        {"experts": {"shared_intermediate_size": 3, "gate_softcap": 7.0, "shared_activation": "relu"}},
        "experts.shared_activation: expected silu with gate_softcap, got 'relu'",
    ),
    (
        {"experts": {"shared_intermediate_size": 3, "gate_softcap": 7.0, "shared_limit": 1.0}},
        "experts.shared_limit: expected None with a soft cap, got 1.0",
    ),
    ({"experts": {"shared_gate": True}}, "experts.shared_gate: expected False without a shared expert, got True"),
    ({"experts": {"limit": -7.0}}, "limit: expected at least 0.0, got -7.0"),
    ({"losses": {"balance": {"scope": "world"}}}, "scope: expected one of 'batch', 'sequence', 'global', got 'world'"),
    (
        {"losses": {"importance": {"form": "deviation", "ddof": 1}}},
        "losses.importance.form: expected no ddof and no eps with 'deviation', got (1, 0.0)",
    ),
    ({"losses": {"orthogonality": {"form": "l2"}}}, "form: expected one of 'l1', 'frobenius', got 'l2'"),
    ({"top_k": 6, "losses": {"load": {}}}, "losses.load: expected a top_k below the 6 ids, got 6"),
    (
        {"losses": {"device": {"num_devices": 4}}},
        "losses.device.num_devices: expected a divisor of num_experts = 6, got 4; give each device as many experts",
    ),
    (
        {"losses": {"communication": {"num_devices": 2, "device_limit": 3}}},
        "losses.communication.device_limit: expected at most num_devices = 2, got 3",
    ),
    ({"losses": {"importance": {"ddof": 2}}}, "ddof: expected one of 0, 1, got 2"),
    ({"losses": {"importance": {"ddof": True}}}, "ddof: expected one of 0, 1, got True"),
    ({"num_expert": 6}, "config: expected known fields, got 'num_expert'; did you mean 'num_experts'?"),
    (
        {"routing": {"normalise": True}},
        "config.routing: expected known fields, got 'normalise'; did you mean 'normalize'?",
    ),
    (
        {"losses": {"zzz": {}}},
        "config.losses: expected known fields, got 'zzz'; known fields are balance, z, importance",
    ),
]
TYPES = [
    ({"top_k": 2.0}, "top_k: expected an integer, got 2.0"),
    ({"top_k": True}, "top_k: expected an integer, got True"),
    ({"top_k": "2"}, "top_k: expected an integer, got '2'"),
    ({"top_k": None}, "top_k: expected an integer, got None"),
    ({"routing": {"normalize": 1}}, "normalize: expected True or False, got 1"),
    (
        {"routing": {"scaling_factor": "2.5"}},
        "scaling_factor: expected a number or a hexadecimal float string, got '2.5'",
    ),
    ({"routing": {"scaling_factor": True}}, "scaling_factor: expected a number, got True"),
    ({"routing": 3}, "routing: expected a RoutingConfig, got 3"),
    ({"losses": {"z": 0.001}}, "z: expected a ZLoss, got 0.001"),
]
TOO_LARGE = [
    ({"routing": {"scaling_factor": "0xzz"}}, "scaling_factor: expected a number that binary64 holds, got 0xzz"),
    ({"routing": {"scaling_factor": "0x1p9999"}}, "scaling_factor: expected a number that binary64 holds, got 0x1p9"),
    ({"routing": {"scaling_factor": 10**400}}, "scaling_factor: expected a number that binary64 holds, got 1000000000"),
    ({"hidden_size": 1 << 63}, "hidden_size: expected an integer below 2^63, got 9223372036854775808"),
]


@pytest.mark.parametrize(("fields", "message"), [*REFUSALS, *TOO_LARGE])
def test_impossible_values_are_refused_by_name(fields, message):
    with pytest.raises(ValueError) as caught:
        MoEConfig.from_dict(BASE | fields)
    assert message in str(caught.value)


@pytest.mark.parametrize(("fields", "message"), TYPES)
def test_wrong_types_are_refused_by_name(fields, message):
    with pytest.raises(TypeError) as caught:
        MoEConfig.from_dict(BASE | fields)
    assert message in str(caught.value)


def test_missing_fields_are_named():
    with pytest.raises(ValueError, match="expected the fields intermediate_size, top_k"):
        MoEConfig.from_dict({"hidden_size": 7, "num_experts": 6})
    with pytest.raises(TypeError, match="expected an object of fields, got 'list'"):
        MoEConfig.from_dict([])


def test_a_constant_may_be_a_hexadecimal_float():
    config = MoEConfig.from_dict(BASE | {"experts": {"alpha": "0x1.b3b646p+0"}})
    assert config.experts.alpha == float.fromhex("0x1.b3b646p+0")


def test_a_configuration_prints_what_it_says_and_can_be_read_back():
    config = MoEConfig(**BASE, routing=RoutingConfig(score_fn="sigmoid"), losses=LossesConfig(z=refmoe.ZLoss()))
    assert repr(MoEConfig(**BASE)) == "MoEConfig(hidden_size=7, intermediate_size=5, num_experts=6, top_k=2)"
    assert repr(config).endswith("routing=RoutingConfig(score_fn='sigmoid'), losses=LossesConfig(z=ZLoss()))")
    for name in names():
        config = load_preset(name)
        assert eval(repr(config), vars(refmoe)) == config


def test_configurations_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        MoEConfig(**BASE).top_k = 1


# --- files --------------------------------------------------------------------------------------------------------

BAD_FILES = [
    ('{"top_k": 2, "top_k": 3}', "the key 'top_k' twice"),
    ('{"routing": {"normalize": true, "normalize": true}}', "the key 'normalize' twice"),
    ('{"hidden_size": NaN}', "the number NaN, which JSON does not have"),
    ('{"hidden_size": -Infinity}', "the number -Infinity"),
    ('{"hidden_size": 7', "expected readable JSON"),
    ("\ufeff{}", "expected readable JSON"),
    ("[" * 100_000, "expected readable JSON"),
]


@pytest.mark.parametrize(("text", "message"), BAD_FILES, ids=range(len(BAD_FILES)))
def test_bad_files_are_refused_by_name(tmp_path, text, message):
    path = tmp_path / "config.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError) as caught:
        MoEConfig.from_json(path)
    assert "config.json" in str(caught.value) and message in str(caught.value)


def test_a_file_that_is_not_text_or_not_there(tmp_path):
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe{}")
    unreadable = "expected readable JSON"
    for name, message in (("bytes.json", unreadable), ("absent.json", "found none"), (".", unreadable)):
        with pytest.raises(ValueError, match=message):
            MoEConfig.from_json(tmp_path / name)
    with pytest.raises(TypeError, match=r"^path: expected the path of a JSON file, got 3; "):
        MoEConfig.from_json(3)


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("scale", ["full", "minimal"])
def test_round_trip(tmp_path, name, scale):
    config = load_preset(name, scale=scale)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.to_dict()))
    assert MoEConfig.from_dict(config.to_dict()) == config == MoEConfig.from_json(path)


@pytest.mark.parametrize("fields", [{}, {"score_fn": "sigmoid"}, {"norm_p": 2}])
def test_a_router_without_a_gradient_is_warned_of(fields):
    sizes = {"hidden_size": 4, "intermediate_size": 3, "num_experts": 4}
    with pytest.warns(UserWarning, match="top_k=1 with routing.normalize.*the router gets no gradient") as caught:
        MoEConfig(**sizes, top_k=1, routing=RoutingConfig(normalize=True, **fields))
    assert len(caught) == 1 and caught[0].filename == __file__  # it points at who made the configuration
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for other in ({"normalize": False, "norm_p": 1}, {"normalize": True, "norm_eps": 1e-20, "norm_p": 1}):
            MoEConfig(**sizes, top_k=1, routing=RoutingConfig(**fields | other))
        MoEConfig(**sizes, top_k=2, routing=RoutingConfig(normalize=True, **fields))
        MoEConfig(**sizes, top_k=1, routing=RoutingConfig(normalize=True, selection="threshold"))
