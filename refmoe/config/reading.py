"""Configurations from dictionaries and JSON files, strictly; and the field names of Hugging Face.   Spec 0.3"""

import dataclasses
import difflib
import json
import os
from pathlib import Path

from ..refusals import require

# Field names of Hugging Face configs, and where they live here. Values are translated by _HF_VALUES. A name is here if
# it means the same wherever it is met. Left out on purpose: what one family reads in its own way (topk_method,
# output_multiplier, moe_norm_min, expert_selection_fn, use_expert_bias ...: models/checkpoint/families), amplitudes of
# noise, which is given as an array here (router_jitter_noise, which Phi-3.5-MoE reads as an epsilon besides), the
# router's dtype, which is float32, and router_aux_loss_coef, whose loss pools the layers (spec 4.7) or not.
HF_NAMES = {
    "num_local_experts": "num_experts",
    "n_routed_experts": "num_experts",
    "num_experts_per_tok": "top_k",
    "num_experts_per_token": "top_k",
    "moe_num_experts": "num_experts",
    "moe_topk": "top_k",
    "moe_top_k": "top_k",
    "moe_k": "top_k",
    "top_k_experts": "top_k",
    "moe_intermediate_size": "intermediate_size",
    "expert_ffn_hidden_size": "intermediate_size",
    "router_bias": "routing.router_bias",
    "moe_router_activation_func": "routing.score_fn",
    "num_expert_group": "routing.num_groups",
    "moe_renormalize": "routing.normalize",
    "moe_routed_scaling_factor": "routing.scaling_factor",
    "moe_router_scaling_factor": "routing.scaling_factor",
    "router_scaling_factor": "routing.scaling_factor",
    "route_scale": "routing.scaling_factor",
    "apply_router_weight_on_input": "experts.weight_position",
    "moe_apply_router_weight_on_input": "experts.weight_position",
    "mlp_hidden_act": "experts.activation",
    "hidden_activation": "experts.activation",
    "mlp_gate_softcap": "experts.gate_softcap",
    "mlp_up_softcap": "experts.up_softcap",
    "shared_intermediate_size": "experts.shared_intermediate_size",
    "moe_shared_expert_intermediate_size": "experts.shared_intermediate_size",
    "shared_expert_combination_strategy": "experts.shared_combine",
    "scoring_func": "routing.score_fn",
    "n_group": "routing.num_groups",
    "topk_group": "routing.top_groups",
    "norm_topk_prob": "routing.normalize",
    "norm_topk_eps": "routing.norm_eps",
    "norm_topk_p": "routing.norm_p",
    "norm_over_shared": "routing.norm_over_shared",
    "moe_normalize_expert_weights": "routing.norm_p",
    "routed_scaling_factor": "routing.scaling_factor",
    "e_score_correction_bias": "routing.selection_bias",
    "router_input_norm": "routing.input_norm",
    "router_logits_scale": "routing.logits_scale",
    "router_logit_softcapping": "routing.logits_softcap",
    "moe_router_logit_softcapping": "routing.logits_softcap",
    "per_expert_scale": "routing.per_expert_scale",
    "router_global_scale": "routing.global_scale",
    "group_score_topn": "routing.group_score_topn",
    "second_expert_policy": "routing.second_expert",
    "expert_capacity": "dispatch.capacity",
    "batch_prioritized_routing": "dispatch.slot_order",
    "normalize_router_prob_before_dropping": "dispatch.normalize_after_drop",
    "hidden_act": "experts.activation",
    "swiglu_alpha": "experts.alpha",
    "swiglu_limit": "experts.limit",
    "swiglu_limit_position": "experts.limit_position",
    "glu_linear_offset": "experts.linear_offset",
    "gate_softcap": "experts.gate_softcap",
    "up_softcap": "experts.up_softcap",
    "shared_act": "experts.shared_activation",
    "expert_bias": "experts.biases",
    "zero_expert_num": "experts.identity_experts",
    "moe_latent_size": "experts.latent_size",
    "gated": "experts.gated",
    "shared_expert_intermediate_size": "experts.shared_intermediate_size",
    "shared_expert_gate": "experts.shared_gate",
    "router_z_loss_coef": "losses.z.coefficient",
}
# A number of shared experts, each as wide as a routed one: their sum is one expert of all their width.
SHARED_COUNTS = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts")
# zero_expert_type: what zero_expert_num counts
_ZERO_EXPERTS = {kind: f"experts.{kind}_experts" for kind in ("identity", "zero", "constant")}
_ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh", "swish": "silu"}
_ON_INPUT = {False: "output", True: "input"}
_HF_VALUES = {
    "second_expert_policy": {"sampling": "sampled"},
    "batch_prioritized_routing": {False: "slot_major", True: "batch_prioritized"},
    "normalize_router_prob_before_dropping": {False: True, True: False},
    "scoring_func": {"sqrtsoftplus": "sqrt_softplus"},
    **dict.fromkeys(("hidden_act", "mlp_hidden_act", "hidden_activation", "shared_act"), _ACTIVATIONS),
    **dict.fromkeys(("apply_router_weight_on_input", "moe_apply_router_weight_on_input"), _ON_INPUT),
}


def with_house_names(data):
    """The dictionary with Hugging Face's flat field names moved to their places; other keys as they are."""
    _require(isinstance(data, dict), TypeError, "config", "an object of fields", type(data).__name__)
    out = {key: (dict(value) if isinstance(value, dict) else value) for key, value in data.items()}
    _zero_experts(out)
    for alias in [key for key in out if key in HF_NAMES]:
        value = out.pop(alias)
        value = _HF_VALUES.get(alias, {}).get(value, value) if isinstance(value, str | bool) else value
        _place(out, HF_NAMES[alias].split("."), value, alias)
    _shared_experts(out)
    return out


def _zero_experts(out):
    """zero_expert_num under the kind that zero_expert_type names, or as identities."""
    kind = out.pop("zero_expert_type", None)
    if kind is None:
        return
    known, wanted = kind in list(_ZERO_EXPERTS), "one of " + ", ".join(_ZERO_EXPERTS)
    _require(known, ValueError, "zero_expert_type", wanted, kind, "choose one of these")
    if "zero_expert_num" in out:
        _place(out, _ZERO_EXPERTS[kind].split("."), out.pop("zero_expert_num"), "zero_expert_num")


def _shared_experts(out):
    """A number of shared experts as the width of one, n times intermediate_size; none for null or 0."""
    for alias in [name for name in SHARED_COUNTS if name in out]:
        count, wide = out.pop(alias) or 0, out.get("intermediate_size")
        _require(type(count) is int and count >= 0, ValueError, alias, "a whole number", count)
        joint, fix = out.get("routing") or {}, "give experts.shared_count and experts.shared_intermediate_size"
        ok = not (count and isinstance(joint, dict) and joint.get("norm_over_shared"))
        _require(ok, ValueError, alias, "experts apart where the router weighs each", count, fix)
        if count and type(wide) is int:
            _place(out, ["experts", "shared_intermediate_size"], count * wide, alias)


def _place(out, path, value, alias):
    for name in path[:-1]:
        out = out.setdefault(name, {})
    _require(path[-1] not in out, ValueError, alias, f"not together with {path[-1]}", value, f"give {path[-1]} once")
    out[path[-1]] = value


def build(section, data, where):
    """The section made of nested dictionaries. ValueError for an unknown or a missing key."""
    _require(isinstance(data, dict), TypeError, where, f"an object of {section.__name__} fields", data)
    known = {f.name: f for f in dataclasses.fields(section)}
    for key in data:
        _require(key in known, ValueError, where, "known fields", key, _suggestion(key, known))
    missing = [n for n, f in known.items() if _is_required(f) and n not in data]
    _require(not missing, ValueError, where, "the fields " + ", ".join(missing), "an object without them", "add them")
    values = {}
    for key, value in data.items():
        inner = known[key].metadata.get("section")
        nested = inner is not None and isinstance(value, dict)
        values[key] = build(inner, value, f"{where}.{key}") if nested else value
    return section(**values)


def _is_required(spec):
    return spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING


def _suggestion(key, known):
    close = difflib.get_close_matches(str(key), [*known, *HF_NAMES], n=1)
    return f"did you mean {close[0]!r}?" if close else "known fields are " + ", ".join(known)


def load_json(path):
    """The object in a JSON file; repeated keys, NaN and infinities are refused by name. ValueError names the file."""
    _require(isinstance(path, str | os.PathLike), TypeError, "path", "the path of a JSON file", path)
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except FileNotFoundError:
        raise ValueError(f"{path}: expected a JSON file, found none; check the path") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected readable JSON, got {error}; correct the file") from None


def _unique(pairs):
    keys = [key for key, _ in pairs]
    repeated = {key for key in keys if keys.count(key) > 1}
    if repeated:
        raise ValueError(f"the key {sorted(repeated)[0]!r} twice")
    return dict(pairs)


def _no_constant(name):
    raise ValueError(f"the number {name}, which JSON does not have")


def _require(condition, error, where, expected, got, fix="correct the field"):
    require(condition, error, where, expected, repr(got), fix)
