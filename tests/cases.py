"""What the tests of the layer share: configurations that between them use every field, inputs, runs, comparison."""

import warnings

import numpy as np
import selection_cases

import refmoe
from refmoe import (
    BalanceLoss,
    CommunicationLoss,
    DeviceLoss,
    DispatchConfig,
    ExpertsConfig,
    Given,
    ImportanceLoss,
    LoadLoss,
    LossesConfig,
    MoEConfig,
    MutualInformationLoss,
    OrthogonalityLoss,
    RoutingConfig,
    ZLoss,
)
from refmoe.formats import round_to
from refmoe.models import FAMILIES, load_preset
from refmoe.recipes import INTEGER_PARAMS, assemble_params, generate, init_given, init_params, name_params

PRESETS = FAMILIES
BASE = {"hidden_size": 6, "intermediate_size": 5, "num_experts": 6, "top_k": 3}
STORES = [(profile, store) for profile in ("exact", "chain") for store in ("float32", "bf16", "fp16")] + [
    ("float64", "float64")
]


def config_of(routing=None, dispatch=None, experts=None, losses=None, **sizes):
    """Sections as dictionaries of their fields, on the sizes of BASE."""
    kinds = {"routing": RoutingConfig, "dispatch": DispatchConfig, "experts": ExpertsConfig}
    given = {"routing": routing, "dispatch": dispatch, "experts": experts}
    sections = {name: kinds[name](**fields) for name, fields in given.items() if fields is not None}
    return MoEConfig(**BASE | sizes, **sections, losses=losses or LossesConfig())


def losses_of(balance=None, z=None, importance=None, **others):
    """Sections as dictionaries of their fields; the coefficient of z stands alone."""
    kinds = {
        "device": DeviceLoss,
        "communication": CommunicationLoss,
        "mutual_information": MutualInformationLoss,
        "load": LoadLoss,
        "orthogonality": OrthogonalityLoss,
    }
    return LossesConfig(
        balance=None if balance is None else BalanceLoss(coefficient=0.3, **balance),
        z=None if z is None else ZLoss(coefficient=z),
        importance=None if importance is None else ImportanceLoss(coefficient=0.5, **importance),
        **{name: kinds[name](**{"coefficient": 0.4} | fields) for name, fields in others.items()},
    )


def constant_weight():
    """One expert a token, its weight divided by itself: warned of, and allowed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return config_of(routing={"normalize": True}, top_k=1)


CASES = {
    "sqrt_softplus_add": config_of(
        routing={
            "score_fn": "sqrt_softplus",
            "normalize": True,
            "norm_eps": 1e-3,
            "scaling_factor": 1.5,
            "selection_bias": True,
        },
        losses=losses_of({}, 0.2, {"eps": 1e-10}),
    ),
    "relu_scores": config_of(
        routing={"score_fn": "relu", "selection_base": "logits", "normalize": True, "norm_eps": 0.1},
        losses=losses_of({}, 0.2),
    ),
    "router_input_norm": config_of(
        routing={"input_norm": "rms_scaled", "input_norm_eps": 0.1, "normalize": True, "per_expert_scale": True},
    ),
    "capped_logits": config_of(
        routing={"logits_scale": -0.7, "logits_softcap": 0.5, "router_bias": True, "normalize": True},
        losses=losses_of({}, 0.2),
    ),
    "scaled_logits": config_of(routing={"score_fn": "sigmoid", "logits_scale": 1.5}),
    "jittered_router": config_of(
        routing={"jitter": "router", "input_norm": "rms_scaled", "logits_softcap": 0.5, "noise": "learned"},
        experts={"shared_intermediate_size": 3},
    ),
    "jittered_block": config_of(
        routing={"jitter": "block", "normalize": True},
        experts={"shared_intermediate_size": 3},
        losses=losses_of({}, 0.2),
    ),
    "noisy": config_of(
        routing={"noise": "learned", "noise_floor": 0.125, "normalize": True}, losses=losses_of({}, 0.2)
    ),
    "noisy_fixed": config_of(routing={"noise": "fixed", "noise_std": 1 / 6, "logits_scale": 2.0}),
    "two_norm": config_of(routing={"normalize": True, "norm_p": 2}, losses=losses_of({}, 0.2)),
    "three_norm": config_of(routing={"score_fn": "sigmoid", "normalize": True, "norm_p": 3, "scaling_factor": 1.5}),
    "zero_experts_normalized": config_of(routing={"normalize": True}, experts={"zero_experts": 3}, top_k=4),
    "zero_experts_sigmoid": config_of(
        routing={"score_fn": "sigmoid", "normalize": True, "norm_eps": 0.1, "scaling_factor": 2.0},
        experts={"zero_experts": 2, "identity_experts": 1},
    ),
    "joint_sum": config_of(
        routing={
            "score_fn": "sigmoid",
            "normalize": True,
            "norm_over_shared": True,
            "global_scale": True,
            "per_expert_scale": True,
            "selection_bias": True,
            "scaling_factor": 2.5,
        },
        experts={"shared_intermediate_size": 3, "shared_count": 2},
        losses=losses_of({}, 0.2),
    ),
    "joint_sum_after_drop": config_of(
        routing={
            "score_fn": "sigmoid",
            "normalize": True,
            "norm_over_shared": True,
            "norm_eps": 0.1,
            "input_norm": "rms_scaled",
            "jitter": "router",
        },
        dispatch={"capacity": 2, "normalize_after_drop": True},
        experts={"shared_intermediate_size": 3},
    ),
    "scaled_weights": config_of(
        routing={"normalize": True, "scaling_factor": 2.0, "per_expert_scale": True, "global_scale": True},
    ),
    "scaled_after_drop": config_of(
        routing={"score_fn": "sigmoid", "normalize": True, "per_expert_scale": True},
        dispatch={"capacity": 2, "normalize_after_drop": True},
    ),
    "sigmoid_gelu": config_of(
        routing={"score_fn": "sigmoid"},
        experts={"activation": "gelu", "biases": True},
        losses=losses_of({"probs": "sigmoid", "counts": "first"}, 0.2, {}),
    ),
    "sigmoid_clamp": config_of(
        routing={"score_fn": "sigmoid", "normalize": True, "norm_eps": 1.6, "norm_eps_mode": "clamp"},
        experts={"activation": "gelu_tanh", "limit": 0.3, "linear_offset": 0.5},
        losses=losses_of({"probs": "normalized_sigmoid", "scope": "sequence"}, None, {"gates": "topk", "ddof": 1}),
    ),
    "softmax_all": config_of(
        experts={"activation": "relu2"}, losses=losses_of({"scope": "sequence", "counts": "first"})
    ),
    "softmax_eps": config_of(
        routing={"normalize": True, "norm_eps": 0.05},
        experts={"gated": False, "activation": "relu2", "biases": True},
        losses=losses_of({"scope": "global"}, None, {"gates": "topk"}),
    ),
    "after_drop": config_of(
        routing={"normalize": True, "selection_base": "logits"},
        dispatch={"capacity": 2, "normalize_after_drop": True},
        experts={"gated": False, "activation": "relu"},
        losses=losses_of({"divide_by_k": False}),
    ),
    "after_drop_sigmoid": config_of(
        routing={"score_fn": "sigmoid", "normalize": True, "router_bias": True},
        dispatch={
            "capacity_factor": 0.7,
            "drop_policy": "probability",
            "normalize_after_drop": True,
            "slot_order": "token_major",
        },
        losses=losses_of({"selection": "plain"}),
    ),
    "before_drop": config_of(
        routing={"normalize": True, "scaling_factor": 2.5},
        dispatch={"capacity_factor": 0.7, "drop_policy": "probability", "capacity_scope": "sequence"},
    ),
    "coin": config_of(
        top_k=2,
        routing={"normalize": True, "second_expert": "random", "second_expert_factor": 1.5},
        dispatch={"capacity_factor": 1.0, "capacity_rule": "mesh_tf"},
    ),
    "coin_after_drop": config_of(
        top_k=2,
        routing={"normalize": True, "second_expert": "random", "second_expert_factor": 3.0},
        dispatch={"capacity": 2, "normalize_after_drop": True, "slot_order": "batch_prioritized"},
    ),
    "stand_in": config_of(dispatch={"capacity": 2, "keep_at_most": 1}),
    "lots_by_device": config_of(
        routing={"score_fn": "sigmoid"},
        dispatch={
            "capacity_factor": 0.8,
            "capacity_devices": 3,
            "drop_policy": "random",
            "min_capacity": 1,
            "capacity_multiple": 2,
        },
    ),
    "soft": config_of(top_k=1, routing={"selection": "soft", "slots_per_expert": 2}, experts={"biases": True}),
    "soft_by_sequence": config_of(
        top_k=1,
        num_experts=3,
        routing={"selection": "soft", "soft_scope": "sequence", "soft_norm_eps": 0.01},
        experts={"activation": "gelu", "gated": False, "shared_intermediate_size": 4},
    ),
    "weight_on_input": config_of(
        routing={"score_fn": "sigmoid"},
        experts={
            "weight_position": "input",
            "shared_intermediate_size": 4,
            "shared_activation": "gelu_tanh",
            "biases": True,
            "shared_gate": True,
            "alpha": 1.702,
            "limit": 0.2,
            "linear_offset": 1.0,
        },
    ),
    "plain_shared": config_of(
        experts={"gated": False, "activation": "gelu", "shared_intermediate_size": 4, "shared_activation": "relu"}
    ),
    "top_1": constant_weight(),
    "top_all": config_of(
        routing={"normalize": True, "num_groups": 3, "top_groups": 3}, losses=losses_of({}, 0.2), top_k=6
    ),
    "groups": config_of(
        routing={
            "score_fn": "sigmoid",
            "normalize": True,
            "num_groups": 3,
            "top_groups": 2,
            "group_score_topn": 1,
            "group_mask": "zero",
            "selection_bias": True,
        },
        top_k=2,
    ),
    "several_shared": config_of(
        routing={"score_fn": "sigmoid"},
        experts={"shared_intermediate_size": 3, "shared_count": 3, "biases": True, "limit": 0.2, "shared_limit": 0.1},
    ),
    "latent": config_of(
        routing={"score_fn": "sigmoid", "normalize": True},
        experts={"gated": False, "activation": "relu2", "latent_size": 4, "shared_intermediate_size": 3},
    ),
    "latent_norms": config_of(
        routing={"normalize": True},
        experts={
            "latent_size": 4,
            "latent_pre_norm": "rms_centered",
            "post_expert_norm": "rms_centered",
            "latent_post_norm": "rms",
            "output_bias": True,
            "norm_eps": 1e-3,
        },
        losses=losses_of({}, 0.2),
    ),
    "scaled_then_normed": config_of(
        routing={"score_fn": "sigmoid"},
        experts={"latent_size": 4, "post_expert_norm": "rms_input_scaled", "norm_eps": 0.1},
    ),
    "own_epsilon": config_of(
        routing={"score_fn": "sigmoid", "logits_scale": 0.5},
        experts={
            "latent_size": 4,
            "latent_pre_norm": "rms_centered",
            "post_expert_norm": "rms_input_scaled",
            "post_expert_norm_eps": 0.5,
            "norm_eps": 1e-3,
        },
    ),
    "latent_input": config_of(
        routing={"score_fn": "sigmoid"},
        experts={
            "latent_size": 3,
            "latent_pre_norm": "rms",
            "latent_post_norm": "rms_centered",
            "weight_position": "input",
            "constant_experts": 1,
            "identity_experts": 1,
        },
    ),
    "post_norm_hidden": config_of(
        experts={"post_expert_norm": "rms", "weight_position": "hidden", "output_norm": "rms"}
    ),
    "complement": config_of(
        routing={"score_fn": "sigmoid"},
        dispatch={"capacity": 2},
        experts={"residual": "complement", "output_bias": True, "post_expert_norm": "rms", "identity_experts": 0},
    ),
    "averaged": config_of(
        experts={"shared_intermediate_size": 3, "shared_combine": "average", "output_norm": "rms_centered"}
    ),
    "root_of_two": config_of(
        routing={"normalize": True},
        experts={"shared_intermediate_size": 3, "shared_gate": True, "shared_combine": "sqrt2", "output_bias": True},
    ),
    "weightless": config_of(
        routing={"normalize": True, "selection_bias": True, "router_bias": True, "scaling_factor": 1.5},
        experts={"constant_experts": 2, "identity_experts": 2, "zero_experts": 1, "biases": True},
        losses=losses_of({}, 0.2, {}),
        top_k=5,
        num_experts=3,
    ),
    "longcat": config_of(
        routing={"selection_bias": True, "scaling_factor": 6.0}, experts={"identity_experts": 3}, num_experts=5
    ),
    "weightless_input": config_of(
        routing={"score_fn": "sigmoid"},
        experts={"weight_position": "input", "constant_experts": 1, "identity_experts": 1, "zero_experts": 1},
        num_experts=3,
    ),
    "weight_on_hidden": config_of(
        routing={"score_fn": "sigmoid", "normalize": True},
        experts={"weight_position": "hidden", "biases": True, "shared_intermediate_size": 3},
    ),
    "limit_after": config_of(
        routing={"score_fn": "sigmoid", "normalize": True},
        experts={
            "limit": 0.1,
            "limit_position": "post",
            "linear_offset": 0.5,
            "shared_intermediate_size": 4,
            "shared_limit": 0.3,
            "shared_activation": "gelu",
        },
    ),
    "soft_caps": config_of(
        routing={"normalize": True},
        experts={
            "gate_softcap": 0.5,
            "up_softcap": 0.75,
            "alpha": 1.702,
            "shared_intermediate_size": 4,
            "shared_activation": "silu",
        },
    ),
    "shared_unclamped": config_of(
        experts={
            "limit": 0.1,
            "biases": True,
            "shared_intermediate_size": 4,
            "shared_clamped": False,
            "shared_activation": "relu2",
            "shared_gate": True,
        },
    ),
    "devices": config_of(
        losses=losses_of(
            {"probs": "relu"},
            None,
            {"form": "deviation"},
            device={"num_devices": 2, "scope": "sequence"},
            communication={"num_devices": 3, "device_limit": 2, "probs": "normalized_sigmoid"},
        ),
    ),
    "devices_sigmoid": config_of(
        routing={"score_fn": "sigmoid"},
        losses=losses_of(
            device={"num_devices": 6, "probs": "sigmoid"},
            communication={"num_devices": 2, "scope": "sequence", "probs": "sigmoid"},
        ),
    ),
    "devices_normalized": config_of(
        losses=losses_of(
            device={"num_devices": 3, "probs": "normalized_sigmoid"},
            communication={"num_devices": 3, "device_limit": 2},
            mutual_information={"terms": "marginal"},
        )
    ),
    "load": config_of(
        routing={"noise": "learned", "noise_floor": 0.125, "normalize": True},
        losses=losses_of(importance={"gates": "topk"}, load={"eps": 1e-3}),
    ),
    "load_kth": config_of(
        routing={"noise": "fixed", "noise_std": 0.25, "logits_scale": 2.0},
        losses=losses_of(None, 0.2, load={"threshold": "kth", "ddof": 1}),
    ),
    "load_counted": config_of(routing={"score_fn": "sigmoid"}, losses=losses_of(load={})),
    "orthogonal": config_of(
        routing={"router_bias": True, "normalize": True}, losses=losses_of({}, orthogonality={"form": "l1"})
    ),
    "orthogonal_squares": config_of(
        routing={"noise": "learned", "jitter": "router", "input_norm": "rms_scaled", "logits_softcap": 2.0},
        experts={"identity_experts": 1, "zero_experts": 1},
        losses=losses_of(load={}, orthogonality={"form": "frobenius"}),
    ),
    "information": config_of(routing={"normalize": True}, losses=losses_of(mutual_information={})),
    "certainty": config_of(losses=losses_of(mutual_information={"terms": "conditional"})),
    "one_expert": config_of(num_experts=1, top_k=1, routing={"score_fn": "sigmoid"}, losses=losses_of({}, 0.2)),
}

CASES |= {
    name: config_of(**fields | {"losses": losses_of(**fields.get("losses", {}))})
    for name, fields in selection_cases.FIELDS.items()
}

CONFIGS = {name: load_preset(name, scale="minimal") for name in PRESETS} | CASES


def make(config, num, num_tokens=8, seed=0, recipe=None):
    """(x, params, d_y) in the carriers of `num`, with values its store can hold."""
    recipe = recipe or ("bell" if num.store in ("float32", "float64") else "bf16")
    named = name_params(init_params(config, seed, recipe)).items()
    arrays = {n: a if n in INTEGER_PARAMS else carried(a, num) for n, a in named}
    x, d_y = (carried(generate(name, (num_tokens, config.hidden_size), seed, recipe), num) for name in ("x", "d_y"))
    return x, assemble_params(arrays), d_y


def carried(array, num):
    """The array as a carrier of the store of `num`."""
    return round_to(array.astype(np.float64), num.store)


def with_sequences(num_tokens, length=3):
    """Given with the sequences a configuration may count by, and one padding token."""
    tokens = np.arange(num_tokens)
    return Given(sequence_ids=tokens // length, token_mask=tokens != min(5, num_tokens - 1))


def completed(given, config, num, num_tokens):
    """Given, and what the rules of the configuration would have drawn."""
    missing = {n: a for n, a in init_given(config, num_tokens).items() if getattr(given, n) is None}
    return given._replace(**{n: refmoe.recipes.carried(a, num.dtype) for n, a in missing.items()})


def run(config, num, num_tokens=8, seed=0, given=None, recipe=None):
    """Forward and backward -> record, grads."""
    x, params, d_y = make(config, num, num_tokens, seed, recipe)
    given = completed(with_sequences(num_tokens) if given is None else given, config, num, num_tokens)
    record = refmoe.moe_forward(x, params, config, num, given)
    return record, refmoe.moe_backward(d_y, x, params, record, config, num, given)


def tensors(value, name=""):
    """Dotted name -> array, of every tensor inside nested records."""
    if value is None:
        return {}
    if not hasattr(value, "_fields"):
        return {name: np.asarray(value)}
    found = {}
    for field in value._fields:
        found |= tensors(getattr(value, field), f"{name}.{field}".lstrip("."))
    return found


def differing(got, want):
    """Names whose arrays do not have the same type, shape and bits."""
    got, want = tensors(got), tensors(want)
    assert got.keys() == want.keys()
    return [name for name in want if not same_bits(got[name], want[name])]


def same_bits(a, b):
    a, b = np.asarray(a), np.asarray(b)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
