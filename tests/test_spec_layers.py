"""The law against the library: whole layers, forward and backward, with not a bit of difference."""

from fractions import Fraction

import numpy as np
import pytest
from law_bridge import (
    LAW,
    PROFILES,
    agree,
    config_of,
    differences,
    hard_logits,
    law_params,
    operands,
    policy,
    stored_params,
    tame,
    to_law,
    wild,
)

import refmoe
from refmoe.models import presets
from refmoe.recipes import init_given, name_params

# --- layers ----------------------------------------------------------------------------------------------------------


def run_both(config, profile, store, x, d_y, params, given, d_losses=None, d_logits=None):
    """Forward and backward by the law and by the library; every stored tensor compared."""
    num, law, cfg = policy(profile, store), LAW.Law(profile, store), config.to_dict()
    params, arrays = stored_params(params, store), refmoe.Given(**given)
    record = refmoe.moe_forward(x, params, config, num, arrays)
    if d_losses is not None:  # upstream numbers for the losses there are; another is refused
        d_losses = {name: d for name, d in d_losses.items() if getattr(config.losses, name) is not None}
    d = None if d_losses is None else refmoe.Losses(**d_losses)
    grads = refmoe.moe_backward(d_y, x, params, record, config, num, arrays, d_losses=d, d_logits=d_logits)
    scalars, law_given = law_params(params), {name: to_law(a) for name, a in given.items()}
    X = to_law(x)
    law_record = LAW.layer_forward(X, scalars, cfg, law, law_given)
    agree(law_record, record, "record")
    made = LAW.layer_backward(to_law(d_y), X, scalars, law_record, cfg, law, law_given, d_losses, to_law(d_logits))
    named = {name: array for name, array in name_params(grads.params).items() if array is not None}
    agree(made.pop("params"), named, "grads.params")
    agree(made, {name: getattr(grads, name) for name in grads._fields if name != "params"}, "grads")
    return record


T = 8
SEQUENCES = {"sequence_ids": np.array([3, 3, 3, 3, 3, 1, 1, 1]), "token_mask": np.arange(T) != 6}


@pytest.mark.parametrize(("profile", "store"), PROFILES)
@pytest.mark.parametrize("name", presets.FAMILIES)
def test_presets(name, profile, store):
    config = refmoe.load_preset(name, scale="minimal")
    D = config.hidden_size
    run_both(
        config,
        profile,
        store,
        tame(store, (T, D), 1),
        tame(store, (T, D), 2),
        refmoe.init_params(config, seed=5),
        SEQUENCES,
    )


def replayed(E, K):
    indices = np.stack([np.roll(np.arange(E), -t)[:K] for t in range(T)])
    indices[1, 0], indices[4] = -1, -1
    return indices


EVERYTHING = {
    "balance": {"coefficient": 0.5},
    "z": {"coefficient": 0.25},
    "importance": {"coefficient": 0.125, "gates": "topk"},
}
KITCHEN_SINK = {
    "an orthogonal router": {
        "routing": {"norm_over_shared": True, "score_fn": "sigmoid", "normalize": True, "router_bias": True},
        "experts": {"shared_intermediate_size": 3, "identity_experts": 1},
        "losses": {"orthogonality": {"coefficient": 0.5}, "z": {"coefficient": 0.25}},
    },
    "an orthogonal router, by squares": {
        "routing": {"jitter": "router", "input_norm": "rms_scaled", "noise": "fixed", "noise_std": 0.5},
        "losses": {"orthogonality": {"coefficient": 0.3, "form": "frobenius"}, "load": {"coefficient": 0.5}},
    },
    "load under learned noise": {
        "routing": {"noise": "learned", "normalize": True, "logits_softcap": 2.0},
        "losses": {"load": {"coefficient": 0.5}, "importance": {"coefficient": 0.25, "gates": "topk"}},
    },
    "load under fixed noise": {
        "routing": {"noise": "fixed", "noise_std": 0.5},
        "losses": {"load": {"coefficient": 0.5, "threshold": "kth", "eps": 1e-10}},
    },
    "load without noise": {"losses": {"load": {"coefficient": 0.5}}},
    "losses over devices": {
        "losses": {
            "balance": {"coefficient": 0.3, "probs": "relu"},
            "importance": {"coefficient": 0.2, "form": "deviation"},
            "device": {"coefficient": 0.5, "num_devices": 2, "scope": "sequence"},
            "communication": {"coefficient": 0.7, "num_devices": 3, "device_limit": 2, "probs": "normalized_sigmoid"},
            "mutual_information": {"coefficient": 0.9},
        },
    },
    "input weights, dropped by probability": {
        "routing": {"score_fn": "sigmoid", "router_bias": True, "scaling_factor": 1.3},
        "dispatch": {"capacity": 2, "drop_policy": "probability", "slot_order": "token_major"},
        "experts": {"weight_position": "input", "activation": "gelu", "biases": True},
        "losses": {"balance": {"coefficient": 0.1, "probs": "normalized_sigmoid"}},
    },
    "normalised after the drop": {
        "routing": {"normalize": True, "selection_bias": True, "selection_base": "logits"},
        "dispatch": {"capacity_factor": 0.8, "normalize_after_drop": True, "drop_policy": "probability"},
        "experts": {"gated": False, "activation": "relu2", "shared_intermediate_size": 2, "shared_gate": True},
        "losses": EVERYTHING,
    },
    "square roots of softplus, groups masked by zero": {
        "routing": {
            "score_fn": "sqrt_softplus",
            "selection_bias": True,
            "num_groups": 3,
            "top_groups": 2,
            "group_mask": "zero",
            "normalize": True,
            "norm_eps": 1.5,
            "norm_eps_mode": "clamp",
        },
        "experts": {"activation": "gelu_tanh", "gated": False, "biases": True, "shared_intermediate_size": 2},
        "losses": EVERYTHING,
    },
    "the best of each group": {
        "top_k": 4,
        "routing": {"selection": "per_group", "num_groups": 2, "score_fn": "sigmoid", "selection_bias": True},
        "losses": EVERYTHING,
    },
    "logits balanced by Sinkhorn": {
        "top_k": 1,
        "routing": {"selection_base": "sinkhorn", "sinkhorn_iterations": 3, "score_fn": "sigmoid"},
    },
    "a sampled second expert": {
        "routing": {"second_expert": "sampled", "normalize": True},
        "dispatch": {"capacity": 2, "normalize_after_drop": True},
        "losses": EVERYTHING,
    },
    "experts that choose": {
        "routing": {"selection": "expert_choice", "selection_bias": True, "normalize": True},
        "dispatch": {"capacity": 2, "capacity_scope": "sequence"},
        "losses": EVERYTHING,
    },
    "experts that choose by a softmax over tokens": {
        "routing": {
            "selection": "expert_choice",
            "score_fn": "softmax_tokens",
            "divide_by_count": True,
            "scaling_factor": 1.5,
        },
        "dispatch": {"capacity_factor": 0.75, "capacity_scope": "sequence"},
        "experts": {"weight_position": "input"},
    },
    "a softmax over tokens, normalised": {
        "routing": {"score_fn": "softmax_tokens", "normalize": True, "norm_eps": 0.125},
        "losses": EVERYTHING,
    },
    "two rounds of SparseMixer": {
        "routing": {
            "selection": "sparsemixer",
            "selection_base": "logits",
            "sparsemixer_eps": 0.5,
            "scaling_factor": 1.5,
            "per_expert_scale": True,
        },
        "losses": EVERYTHING,
    },
    "experts above a threshold": {
        "routing": {"selection": "threshold", "score_fn": "relu", "scaling_factor": 2.5},
        "dispatch": {"capacity": 3, "normalize_after_drop": False},
        "losses": EVERYTHING,
    },
    "experts that make up p, normalised after the drop": {
        "routing": {"selection": "top_p", "top_p": 0.5, "normalize": True},
        "dispatch": {"capacity": 4, "normalize_after_drop": True},
        "experts": {"shared_intermediate_size": 2},
        "losses": EVERYTHING,
    },
    "experts by table": {
        "top_k": 3,
        "routing": {
            "selection": "hash",
            "hash_vocab_size": 5,
            "score_fn": "sqrt_softplus",
            "normalize": True,
            "norm_eps": 1e-20,
            "scaling_factor": 1.5,
        },
        "losses": EVERYTHING,
    },
    "one expert a token": {
        "top_k": 1,
        "routing": {"normalize": True},
        "experts": {"activation": "relu"},
        "losses": EVERYTHING,
    },
    "positive parts of the logits": {
        "routing": {"score_fn": "relu", "normalize": True, "norm_eps": 0.25, "selection_bias": True},
        "experts": {"activation": "relu"},
        "losses": EVERYTHING,
    },
    "a router's own input, capped logits, learned noise": {
        "routing": {
            "jitter": "router",
            "input_norm": "rms_scaled",
            "router_bias": True,
            "logits_scale": 1.7,
            "logits_softcap": 0.75,
            "noise": "learned",
            "normalize": True,
        },
        "experts": {"activation": "relu", "shared_intermediate_size": 2},
        "losses": EVERYTHING,
    },
    "the whole layer jittered, fixed noise": {
        "routing": {"jitter": "block", "logits_scale": -0.3, "noise": "fixed", "noise_std": 0.3, "score_fn": "sigmoid"},
        "experts": {"activation": "relu2", "shared_intermediate_size": 2, "shared_gate": True},
    },
    "an input norm alone": {
        "routing": {"input_norm": "rms_scaled", "input_norm_eps": 0.25, "jitter": "block", "noise": "learned"},
        "experts": {"activation": "relu", "gated": False},
    },
    "the 3-norm of the scores": {
        "routing": {"score_fn": "sigmoid", "normalize": True, "norm_p": 3, "scaling_factor": 1.5},
        "experts": {"activation": "relu"},
    },
    "zero experts beside the normaliser": {
        "top_k": 4,
        "routing": {"normalize": True},
        "dispatch": {"capacity": 3, "normalize_after_drop": True},
        "experts": {"activation": "relu", "zero_experts": 3},
    },
    "one sum over routed and shared experts": {
        "routing": {
            "score_fn": "sigmoid",
            "normalize": True,
            "norm_over_shared": True,
            "global_scale": True,
            "scaling_factor": 1.5,
            "selection_bias": True,
        },
        "experts": {"activation": "relu", "shared_intermediate_size": 2, "shared_count": 3},
        "losses": EVERYTHING,
    },
    "the same after the drop": {
        "routing": {"score_fn": "sigmoid", "normalize": True, "norm_over_shared": True, "input_norm": "rms_scaled"},
        "dispatch": {"capacity": 2, "normalize_after_drop": True},
        "experts": {"activation": "relu2", "shared_intermediate_size": 2},
    },
    "learned scales, dropped": {
        "routing": {"score_fn": "sigmoid", "normalize": True, "per_expert_scale": True, "global_scale": True},
        "dispatch": {"capacity": 2, "normalize_after_drop": True, "drop_policy": "probability"},
        "experts": {"activation": "relu"},
    },
    "learned scales, all choices": {
        "routing": {"scaling_factor": 1.5, "per_expert_scale": True},
        "dispatch": {"capacity": 2, "drop_policy": "probability"},
        "experts": {"activation": "relu2", "weight_position": "input"},
    },
    "a coin for the second expert": {
        "routing": {"normalize": True, "second_expert": "random", "second_expert_factor": 1.25},
        "dispatch": {"capacity_factor": 1.0, "capacity_rule": "fastmoe_switch", "slot_order": "batch_prioritized"},
        "losses": EVERYTHING,
    },
    "lots, stand-ins and protected tokens": {
        "top_k": 3,
        "routing": {"normalize": True},
        "dispatch": {
            "capacity_factor": 0.4,
            "capacity_devices": 3,
            "capacity_scope": "sequence",
            "drop_policy": "random",
            "keep_at_most": 2,
            "normalize_after_drop": True,
        },
    },
    "a soft mixture": {
        "top_k": 1,
        "num_experts": 3,
        "routing": {"selection": "soft", "slots_per_expert": 2},
        "experts": {"biases": True, "limit": 0.25, "shared_intermediate_size": 2},
    },
    "a soft mixture of each sequence": {
        "top_k": 1,
        "num_experts": 2,
        "routing": {"selection": "soft", "soft_scope": "sequence", "soft_norm_eps": 0.5},
        "experts": {"gated": False, "activation": "relu2"},
    },
    "every expert": {"top_k": 6, "routing": {"score_fn": "sigmoid", "normalize": True, "norm_eps": 1e-20}},
}


@pytest.mark.parametrize(("profile", "store"), PROFILES)
@pytest.mark.parametrize("name", KITCHEN_SINK)
def test_every_other_choice(name, profile, store):
    config = config_of(**KITCHEN_SINK[name])
    upstream = {"balance": 2.0, "z": -0.5, "importance": 3.0, "device": 0.3, "communication": -1.5}
    upstream |= {"mutual_information": 1.25, "load": -0.75, "orthogonality": -1.75}
    inputs = [tame(store, (T, config.hidden_size), seed) for seed in (3, 4)]
    d_logits = tame("float32", (T, config.num_logits), 9)
    given = SEQUENCES | init_given(config, T)
    if config.dispatch.drop_policy == "random":
        given["protected"] = np.arange(T) == 4
    run_both(config, profile, store, *inputs, refmoe.init_params(config, seed=2), given, upstream, d_logits)


@pytest.mark.parametrize(("profile", "store"), [("exact", "bf16"), ("chain", "float32")])
def test_replay_and_given_logits(profile, store):
    config = config_of(
        routing={"normalize": True},
        losses={
            **EVERYTHING,
            "balance": {"coefficient": 1.0, "scope": "global"},
            "orthogonality": {"coefficient": 0.1},
        },
    )
    x, d_y, params = tame(store, (T, 5), 3), tame(store, (T, 5), 4), refmoe.init_params(config)
    given = {**SEQUENCES, "topk_indices": replayed(6, 2), "counts_so_far": np.array([4, 0, 2, 2, 0, 0])}
    run_both(config, profile, store, x, d_y, params, given)
    record = run_both(
        config, profile, store, x, d_y, params, {**given, "logits": hard_logits(1, (T, 6), distant=False)}
    )
    assert record.routing.choice_scores is None


@pytest.mark.parametrize(("profile", "store"), [("exact", "float32"), ("chain", "bf16")])
def test_a_sampled_choice_of_sparsemixer(profile, store):
    """Choices that are not the largest, with their multipliers; one that does not survive; unused slots."""
    config = config_of(routing={"selection": "sparsemixer", "selection_base": "logits", "sparsemixer_eps": 0.5})
    x, d_y, params = tame(store, (T, 5), 3), tame(store, (T, 5), 4), refmoe.init_params(config)
    multipliers = np.where(np.arange(16).reshape(8, 2) % 3 == 0, 1, 1 / 3).astype(np.float32)
    given = {**SEQUENCES, "topk_indices": replayed(6, 2), "multipliers": multipliers}
    record = run_both(config, profile, store, x, d_y, params, given)
    assert (record.routing.topk_weights != 0).any() and (record.routing.topk_weights == 0).any()
    hard = {**given, "logits": hard_logits(1, (T, 6), distant=False)}
    run_both(config, profile, store, x, d_y, params, hard)


def test_wide_operands_and_overflow():
    """Subnormals, underflow, infinities on the way through a layer; given logits keep the router finite."""
    config = config_of(experts={"limit": 7.0, "alpha": 1.702, "linear_offset": 1.0, "biases": True})
    given = {"topk_indices": replayed(6, 2), "logits": hard_logits(4, (T, 6), distant=False)}
    params = refmoe.recipes.init_params(config, seed=3, recipe="wide")
    for profile, store in PROFILES:
        x = operands(store, (T, 5), 5, "finite edges")
        run_both(config, profile, store, x, wild(store, (T, 5), 6), params, given)


def test_a_planted_bit_is_seen():
    """The comparison itself: one unit in the last place, one sign of zero, one missing tensor."""
    law, got = {"a": [Fraction(1), Fraction(0)], "b": None}, {"a": np.array([1, 0], np.float32), "b": None}
    assert not differences(law, got)
    assert differences(law, {**got, "a": np.array([1 + 2.0**-23, 0], np.float32)})
    assert differences(law, {**got, "a": np.array([1, -0.0], np.float32)})
    assert differences(law, {**got, "b": np.zeros(1, np.float32)})
