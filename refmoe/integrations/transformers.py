"""refmoe as an experts implementation inside transformers, forward and backward.   Spec 3.1-3.3, 5.4-5.6

    register()                                    once
    model.set_experts_implementation("refmoe")    or experts_implementation="refmoe" when a model is loaded

The model keeps its own router; its experts, the combine and the gradients of both come from refmoe. Needs torch and
transformers 5, which are imported inside `register`. Everything runs on the CPU.
"""

from functools import lru_cache, partial
from math import inf

import numpy as np

from ..config import ExpertsConfig, MoEConfig
from ..dispatch import make_plan
from ..experts import routed_experts, routed_experts_backward
from ..inputs import Given
from ..numerics import Numerics
from ..recipes import MoEParams
from ..refusals import require
from ..selection import given as check_indices

# How transformers names activations -> how the house does.
_ACTIVATIONS = {
    "silu": "silu",
    "SiLU": "silu",
    "SiLUActivation": "silu",
    "Inkling2SoftcappedSwiGLU": "silu",
    "GELUActivation": "gelu",
    "GELUTanh": "gelu_tanh",
    "ReLU": "relu",
    "ReLUSquaredActivation": "relu2",
}
# Experts with a gate of their own: field -> the attribute that holds it, or its value.
_GATES = {
    "BeamExperts": {},
    "DeepseekV4Experts": {"limit": "limit"},
    "Glm5NextTextExperts": {"limit": "swiglu_limit"},
    "GptOssExperts": {"alpha": "alpha", "limit": "limit", "linear_offset": 1.0},
    "HYV4Experts": {"limit": "swiglu_limit"},
    "Inkling2Experts": {"gate_softcap": "act_fn.gate_softcap.softcap", "up_softcap": "act_fn.up_softcap.softcap"},
    "MiniMaxM3VLExperts": {"alpha": "swiglu_alpha", "limit": "swiglu_limit", "linear_offset": 1.0},
    "OpenAIPrivacyFilterExperts": {"alpha": "alpha", "limit": "limit", "linear_offset": 1.0},
    "Step3p7Experts": {"limit": "limit"},
}
# Norms of each expert's output: class -> the field that states it. The weight and the epsilon are its own.
_POST_NORMS = {"MuseSparkTextInputScaledRMSNorm": "rms_input_scaled"}
_CLAMPED_AFTER = "_fp8_experts_clamp_after_activation"  # how a module says so
_STORES = {"torch.float32": "float32", "torch.bfloat16": "bf16", "torch.float16": "fp16", "torch.float64": "float64"}


def register(name="refmoe", profile="exact"):
    """Makes refmoe an experts implementation of transformers under `name`; models then run on it, forward and backward.

    profile "exact" or "chain" for models in float32, bf16 or fp16; a model in float64 runs in profile "float64".
    Raises ImportError without torch and transformers 5. The registered function raises ValueError or TypeError for
    experts that refmoe cannot state, or tensors that are not on the CPU.
    """
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    require(profile in ("exact", "chain"), ValueError, "profile", "'exact' or 'chain'", repr(profile), "choose one")
    ALL_EXPERTS_FUNCTIONS.register(name, partial(experts_forward, profile=profile))


def experts_forward(experts, hidden_states, top_k_index, top_k_weights, profile="exact"):
    """routed[t] = sum_k weight[t, k] FFN_e(x[t]), with gradients of x, the weights and the experts' parameters.

    experts: a module under transformers' `use_experts_implementation`; hidden_states (T, D), top_k_index (T, K) with
    ids of E and beyond for slots of other machines, top_k_weights (T, K) -> (T, D)
    """
    on_cpu = hidden_states.device.type == "cpu"
    require(on_cpu, TypeError, "hidden_states", "a tensor on the CPU", hidden_states.device, "move the model")
    dtype = str(hidden_states.dtype)
    require(dtype in _STORES, TypeError, "hidden_states", f"one of {', '.join(_STORES)}", dtype, "convert the model")
    store = _STORES[dtype]
    num = _numerics("float64" if store == "float64" else profile, store)
    tensors = [_value(experts, name) for name in parameter_names(experts)]
    return _function().apply(experts, num, top_k_index, hidden_states, top_k_weights, *tensors)


@lru_cache
def _numerics(profile, store):
    return Numerics(profile=profile, store=store)


@lru_cache
def _function():
    """The node of torch's graph, made when torch is first needed."""
    import torch
    from torch.autograd.function import once_differentiable

    class RoutedExperts(torch.autograd.Function):
        @staticmethod
        def forward(ctx, experts, num, indices, x, weights, *tensors):
            config = describe(experts, x.shape[-1], indices.shape[-1])
            indices, arrays = _indices(indices, config.num_experts), [_array(t, num) for t in (x, weights, *tensors)]
            params = cut(experts, dict(zip(parameter_names(experts), arrays[2:], strict=True)))
            plan = make_plan(indices, arrays[1], config, Given())
            record, routed = routed_experts(arrays[0], arrays[1], plan, params, config.experts, num)
            # Saved as tensors too, so that torch notices if one is changed before the way back.
            ctx.save_for_backward(x, weights, *tensors)
            ctx.state = experts, num, config, plan, params, record, arrays
            return torch.from_numpy(routed).to(x.dtype)

        @staticmethod
        @once_differentiable
        def backward(ctx, d_routed):
            inputs = ctx.saved_tensors
            experts, num, config, plan, params, record, arrays = ctx.state
            saved = *arrays[:2], plan, record
            none = MoEParams()
            d_routed = _array(d_routed, num)
            grads, named = routed_experts_backward(d_routed, *saved, params, config.experts, num, none)
            joined = join(experts, named)
            made = [grads.d_x_experts, grads.d_topk_weights, *(joined[name] for name in parameter_names(experts))]
            back = [torch.from_numpy(d).to(t.dtype) for d, t in zip(made, inputs, strict=True)]
            return (None, None, None, *back)

    return RoutedExperts


def _array(tensor, num):
    """A carrier: the tensor's values in the policy's NumPy type, its own memory where that is possible."""
    tensor = tensor.detach().cpu()
    return np.ascontiguousarray((tensor.double() if num.profile == "float64" else tensor.float()).numpy())


def _indices(indices, num_experts):
    """int64, an id of E or beyond (a slot that another machine computes) as an unused slot."""
    ids = indices.detach().cpu().numpy().astype(np.int64)
    return check_indices(np.where(ids >= num_experts, -1, ids), num_experts)


# --- what the module says of itself -----------------------------------------------------------------------------------


def describe(experts, hidden_size, top_k):
    """The configuration of an experts module, from what it declares; ValueError if refmoe cannot state it."""
    who = type(experts).__name__
    _, F = weight_shape(experts)
    rules = _gate(experts, who) | _post_norm(experts, who)
    section = ExpertsConfig(
        gated=experts.has_gate, activation=_activation(experts, who), biases=experts.has_bias, **rules
    )
    E = experts.num_experts
    return MoEConfig(hidden_size=hidden_size, intermediate_size=F, num_experts=E, top_k=top_k, experts=section)


def _gate(experts, who):
    """The fields of ExpertsConfig that state the gate."""
    from transformers.integrations.moe import _default_apply_gate

    if not experts.has_gate or type(experts)._apply_gate is _default_apply_gate:
        return {}
    known, fix = who in _GATES, "leave this model on transformers' own experts"
    require(known, ValueError, who, f"the usual gate or that of {', '.join(_GATES)}", "another gate", fix)
    values = {name: _value(experts, held) for name, held in _GATES[who].items()}
    if values.get("limit") == inf:
        values["limit"] = None
    after = values.get("limit") is not None and getattr(experts, _CLAMPED_AFTER, False)
    return values | ({"limit_position": "post"} if after else {})


def _post_norm(experts, who):
    """The fields of ExpertsConfig that state the norm of each expert's output."""
    if not experts.has_post_expert_norm:
        return {}
    norm, wanted = experts.post_expert_norm, f"one of {', '.join(_POST_NORMS)}"
    known, fix = type(norm).__name__ in _POST_NORMS, "leave this model on transformers' own experts"
    require(known, ValueError, f"{who}.post_expert_norm", wanted, type(norm).__name__, fix)
    return {"post_expert_norm": _POST_NORMS[type(norm).__name__], "post_expert_norm_eps": norm.eps}


def _value(experts, held):
    """The attribute at a dotted path, or the value itself."""
    for name in held.split(".") if isinstance(held, str) else ():
        experts = getattr(experts, name)
    return experts if isinstance(held, str) else held


def _activation(experts, who):
    function = getattr(experts, "act_fn", None)
    if function is None:  # a gate of its own, which is a silu with alpha
        return "silu"
    name = getattr(function, "__name__", type(function).__name__)
    fix = "leave this model on transformers' own experts"
    require(name in _ACTIVATIONS, ValueError, f"{who}.act_fn", f"one of {', '.join(_ACTIVATIONS)}", name, fix)
    return _ACTIVATIONS[name]


# --- its layout, as it declares it ------------------------------------------------------------------------------------

POST_NORM = "post_expert_norm.weight"


def parameter_names(experts):
    """The names of the module's parameters, in one order."""
    first = "gate_up_proj" if experts.has_gate else "up_proj"
    names = [first, "down_proj"]
    names += [f"{name}_bias" for name in names] if experts.has_bias else []
    return [*names, POST_NORM] if experts.has_post_expert_norm else names


def weight_shape(experts):
    """(D, F) of its down projection, which is (E, D, F), or (E, F, D) if it declares itself transposed."""
    _, rows, columns = experts.down_proj.shape
    return (columns, rows) if experts.is_transposed else (rows, columns)


def cut(experts, arrays):
    """The module's arrays by name -> MoEParams: transposed back, gate and up taken apart."""
    first, down, *biases = (arrays[name] for name in parameter_names(experts) if name != POST_NORM)
    parts = {"w_post_expert_norm": arrays.get(POST_NORM)}
    parts |= {"w_down": _turned(experts, down)} | _split(experts, "w", _turned(experts, first))
    if biases:
        parts |= {"b_down": biases[1]} | _split(experts, "b", biases[0])
    return MoEParams(**{name: parts.get(name) for name in MoEParams._fields})


def join(experts, named):
    """Gradients by refmoe's names -> by the module's, in its layout: the inverse of `cut`."""
    arrays = [_turned(experts, _merge(experts, "w", named)), _turned(experts, named["w_down"])]
    if experts.has_bias:
        arrays += [_merge(experts, "b", named), named["b_down"]]
    if experts.has_post_expert_norm:
        arrays.append(named["w_post_expert_norm"])
    return dict(zip(parameter_names(experts), arrays, strict=True))


def _turned(experts, array):
    return np.ascontiguousarray(np.swapaxes(array, 1, 2)) if experts.is_transposed else array


def _places(experts):
    """Where the rows of gate and of up are, on the axis they share."""
    F = weight_shape(experts)[1]
    halves = slice(0, F), slice(F, 2 * F)
    return halves if experts.is_concatenated else (slice(0, None, 2), slice(1, None, 2))


def _split(experts, kind, array):
    if not experts.has_gate:
        return {f"{kind}_up": array}
    gate, up = (np.ascontiguousarray(array[:, place]) for place in _places(experts))
    return {f"{kind}_gate": gate, f"{kind}_up": up}


def _merge(experts, kind, named):
    up = named[f"{kind}_up"]
    if not experts.has_gate:
        return up
    out = np.empty((up.shape[0], 2 * up.shape[1], *up.shape[2:]), up.dtype)
    for place, array in zip(_places(experts), (named[f"{kind}_gate"], up), strict=True):
        out[:, place] = array
    return out
