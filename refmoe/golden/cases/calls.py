"""What a vector's `call` stands for: a function from inputs by name to results by name, made of the public pairs."""

import numpy as np

from ... import activations, dispatch, experts, losses, routing
from ...config import MoEConfig
from ...formats import decode, dequantise, encode, quantise, round_to
from ...inputs import Given
from ...layer import moe_backward, moe_forward
from ...losses import Losses
from ...recipes import assemble_params
from ...selection.replay import given as replayed
from . import controllers

ROUTER_PARAMS = ("w_router", "router_bias", "selection_bias", "hash_table")
LAYER_GIVEN = (
    *("token_mask", "sequence_ids", "token_ids", "topk_indices", "logits", "counts_so_far"),
    *("coin", "priority", "protected", "noise", "jitter", "multipliers", "assignment_duals"),
)
# Stages of the router that only some configurations have.
ROUTER_STAGES = (
    *("jittered_x", "router_x", "raw_logits", "clean_logits", "noise_logits", "noise_std"),
    *("unscaled_topk_weights", "shared_logits", "shared_scores", "unscaled_shared_weights", "shared_weights"),
    "router_gram",
)


def run(case, num, arrays):
    """name -> array: what the case's call makes of its inputs under the policy `num`."""
    config = MoEConfig.from_dict(case.config) if case.config else None
    made = CALLS[case.call](config, num, arrays, **(case.options or {}))
    return {name: np.asarray(array) for name, array in made.items() if array is not None}


def _given(arrays):
    return Given(**{name: arrays[name] for name in LAYER_GIVEN if name in arrays})


def _named(record, *names):
    return {name: getattr(record, name) for name in names}


def route(config, num, arrays):
    """Logits (or x and w_router) to weights; with d_topk_weights also the way back."""
    params = assemble_params({n: arrays[n] for n in ROUTER_PARAMS if n in arrays})
    record = routing.route(arrays.get("x"), params, config, num, _given(arrays))
    used = record.topk_indices >= 0
    saved = record.logits, record.scores, record.topk_indices
    record = record._replace(topk_weights=routing.topk_weights(*saved, used, config, num, _given(arrays)))
    made = _named(record, "logits", "scores", "choice_scores", "group_scores", "topk_indices", "topk_weights")
    made |= _named(record, "row_potentials", "column_potentials", "second_choice_scores")
    if "logits" in arrays:
        del made["logits"]
    if "d_topk_weights" in arrays:
        back = routing.topk_weights_backward(arrays["d_topk_weights"], *saved, used, config, num, _given(arrays))
        made |= dict(zip(("d_logits_task", "d_scores"), back, strict=True))
    return made


def plan(config, num, arrays):
    """topk_indices and topk_weights to the plan."""
    weights = arrays.get("topk_weights", np.zeros(arrays["topk_indices"].shape, num.dtype))
    return dispatch.make_plan(arrays["topk_indices"], weights, config, _given(arrays), arrays.get("scores"))._asdict()


def rows(config, num, arrays):
    """Permute and combine under the plan of topk_indices, and both ways back."""
    given_plan = dispatch.make_plan(arrays["topk_indices"], arrays["topk_weights"], config, _given(arrays))
    y_rows, weights, d_routed = arrays["y_rows"], arrays["topk_weights"], arrays["d_routed"]
    d_y_rows, d_weights = dispatch.combine_backward(d_routed, y_rows, weights, given_plan, num)
    return {
        "x_rows": dispatch.permute(arrays["x"], given_plan),
        "routed": dispatch.combine(y_rows, weights, given_plan, num),
        "d_y_rows": d_y_rows,
        "d_topk_weights": d_weights,
        "d_x_experts": dispatch.permute_backward(arrays["d_x_rows"], given_plan, num),
    }


def activation(config, num, arrays):
    """gate, up and d_hidden to hidden, d_gate and d_up; without gate the plain expert."""
    up, d_hidden = arrays["up_rows"], arrays["d_hidden_rows"]
    if not config.experts.gated:
        back = activations.plain_backward(d_hidden, up, config.experts, num)
        return {"hidden_rows": activations.plain(up, config.experts, num), "d_up_rows": back}
    gate = arrays["gate_rows"]
    d_gate, d_up = activations.gated_backward(d_hidden, gate, up, config.experts, num)
    return {"hidden_rows": activations.gated(gate, up, config.experts, num), "d_gate_rows": d_gate, "d_up_rows": d_up}


def expert_ffn(config, num, arrays):
    """x_rows, expert_offsets, weights and d_y_rows to every stage of the experts and of their way back."""
    params = assemble_params({n: a for n, a in arrays.items() if n.startswith(("w_", "b_"))})
    x_rows, offsets, choices = arrays["x_rows"], arrays["expert_offsets"], config.experts
    made = experts.expert_ffn(x_rows, params, offsets, choices, num)
    nothing = params._replace(**dict.fromkeys(params._fields))
    back, grads = experts.expert_ffn_backward(arrays["d_y_rows"], x_rows, made, params, offsets, choices, num, nothing)
    return made._asdict() | back._asdict() | {f"d_{name}": grad for name, grad in grads.items()}


def routed(config, num, arrays):
    """x through the experts that topk_indices and topk_weights name, and back: every stage of a kernel."""
    params = assemble_params({n: a for n, a in arrays.items() if n.startswith(("w_", "b_"))})
    x, weights, choices = arrays["x"], arrays["topk_weights"], config.experts
    replayed(arrays["topk_indices"], config.num_choices)
    made = dispatch.make_plan(arrays["topk_indices"], weights, config, _given(arrays))
    x_rows, offsets = dispatch.permute(x, made), made.expert_offsets
    ffn = experts.expert_ffn(x_rows, params, offsets, choices, num)
    d_y_rows, d_weights = dispatch.combine_backward(arrays["d_y"], ffn.y_rows, weights, made, num)
    nothing = params._replace(**dict.fromkeys(params._fields))
    back, grads = experts.expert_ffn_backward(d_y_rows, x_rows, ffn, params, offsets, choices, num, nothing)
    forward = made._asdict() | {"x_rows": x_rows} | ffn._asdict()
    forward["routed"] = dispatch.combine(ffn.y_rows, weights, made, num)
    backward = {"d_y_rows": d_y_rows, "d_topk_weights": d_weights} | back._asdict()
    backward["d_x_experts"] = dispatch.permute_backward(back.d_x_rows, made, num)
    return forward | backward | {f"d_{name}": grad for name, grad in grads.items()}


def loss(config, num, arrays):
    """logits to every configured loss and its gradient; the selection is the call's own unless it is given."""
    given = _given(arrays)
    record = routing.route(None, assemble_params({"selection_bias": arrays.get("selection_bias")}), config, num, given)
    record = record._replace(**{n: arrays[n] for n in ("clean_logits", "noise_std", "router_gram") if n in arrays})
    made = losses.all_losses(record, config, num, given)
    back = losses.loss_gradients(None, record, config, num, given)
    return {name: value for name, value in made._asdict().items() if value is not None} | back


def pooled(config, num, arrays):
    """The logits of several layers to their common balance loss."""
    return controllers.pooled(config, num, arrays, _given(arrays))


def selection_bias(config, num, arrays, rate):
    """One step of the selection-bias controller."""
    updated = losses.update_selection_bias(
        arrays["selection_bias"], arrays["assigned_per_expert"], float.fromhex(rate), num
    )
    return {"selection_bias": updated}


def layer(config, num, arrays):
    """A whole layer, there and back: outputs, gradients by source, gradients of every parameter."""
    params = assemble_params({n.removeprefix("params."): a for n, a in arrays.items() if n.startswith("params.")})
    given, x = _given(arrays), arrays["x"]
    record = moe_forward(x, params, config, num, given)
    grads = moe_backward(arrays["d_y"], x, params, record, config, num, given, d_logits=arrays.get("d_logits"))
    forward = {"y": record.y} | _named(record.routing, "topk_indices", "topk_weights", *ROUTER_STAGES)
    mixed = {} if record.soft is None else _flat(record.soft, "soft.")
    return forward | mixed | _flat(record.losses or Losses()) | _flat(grads)


def _flat(record, prefix=""):
    out = {}
    for name, value in record._asdict().items():
        out |= _flat(value, f"{prefix}{name}.") if isinstance(value, tuple) else {prefix + name: value}
    return out


def contract(config, num, arrays):
    """One group: out[n, m] = sum_k x_rows[n, k] w[m, k] + bias[m]."""
    return {"out": num.contract("y_rows", arrays["x_rows"], arrays["w"], bias=arrays.get("bias"))}


def total(config, num, arrays):
    """The sum over the first axis, one rounding."""
    return {"out": num.sum("routed", list(arrays["terms"]))}


def function(config, num, arrays, name):
    """An elementary function, or softmax along the last axis."""
    core = 1 if name in ("softmax", "logsumexp") else 0
    return {"out": num.evaluate("hidden_rows", lambda m, t: getattr(m, name)(t), arrays["t"], core=core)}


def rounding(config, num, arrays):
    """float64 values to the nearest of the store's format."""
    return {"out": round_to(arrays["value"], num.store)}


def encoding(config, num, arrays, format, overflow):
    """float64 values to the nearest of a format of 8 bits and less, and their codes."""
    values = round_to(arrays["value"], format, overflow)
    return {"out": values, "codes": encode(values, format).astype(np.int64)}


def quantising(config, num, arrays, scheme, rule, block=None):
    """Matrices to codes (as they lie in bytes), scales and products; x_rows with the first of them."""
    packed = quantise(arrays["values"], scheme, rule, None if block is None else map(int, block.split()))
    scales = packed.scales if packed.scales.dtype == np.float32 else decode(packed.scales, packed.scale_format)
    made = {"codes": packed.codes.astype(np.int64), "scales": scales, "tensor_scales": packed.tensor_scales}
    return made | {"dequantised": dequantise(packed), "up_rows": num.contract("up_rows", arrays["x_rows"], packed(0))}


CALLS = {
    "route": route, "plan": plan, "rows": rows, "activation": activation, "expert_ffn": expert_ffn, "routed": routed,
    "loss": loss, "pooled": pooled, "controller": controllers.controller,
    "selection_bias": selection_bias, "layer": layer, "contract": contract, "sum": total, "function": function,
    "round": rounding, "encode": encoding, "quantise": quantising,
}  # fmt: skip
