"""Cases of chapter 4 beside the layer: controllers between steps, and the balance loss pooled over layers."""

import numpy as np

from ... import losses
from .form import Case, f32, ints, sizes

NOTES = {
    "Pooled": ("layers averaged where they are pooled, or the reverse", "collapse that does not show"),
    "ControllerShare": ("ids without weights moved too, or left out of the sum", "a drift of the experts used"),
    "ControllerState": ("state not kept, or the new error taken for the old", "no damping"),
    "QuantileRank": ("K-th for (K+1)-th, or the sign of a bias that is subtracted", "all tokens on the busiest expert"),
    "Adaptive": ("equality taken for too many", "a coefficient that never rests at its target"),
}


# --- calls -----------------------------------------------------------------------------------------------------------


def pooled(config, num, arrays, given):
    """logits (L, T, E) of several layers to their common balance loss and its gradients."""
    layers = list(arrays["layers"])
    back = losses.pooled_balance_loss_backward(1.0, layers, config, num, given)
    made = {"balance": losses.pooled_balance_loss(layers, config, num, given)}
    return made | {f"d_logits_balance.{layer}": d for layer, d in enumerate(back)}


def controller(config, num, arrays, rule, **words):
    """One step of a controller; numbers among the words are hexadecimal floats."""
    words = {name: float.fromhex(w) if str(w).startswith("0x") else w for name, w in words.items()}
    return _STEPS[rule](config, num, **arrays, **words)


def _moved(rule):
    return lambda config, num, selection_bias, assigned_per_expert, rate: {
        "selection_bias": rule(selection_bias, assigned_per_expert, rate, num)
    }


def _share(config, num, selection_bias, assigned_per_expert, rate, expected):
    n = assigned_per_expert
    return {"selection_bias": losses.update_by_share(selection_bias, n, rate, expected, config, num)}


def _pid(config, num, selection_bias, assigned_per_expert, gains, load_integral, load_error):
    state = losses.PIDState(load_integral, load_error)
    bias, state = losses.update_by_pid(selection_bias, assigned_per_expert, gains.tolist(), state, num)
    return {"selection_bias": bias, "load_integral": state.integral, "load_error": state.previous}


def _quantile(config, num, scores, selection_bias, cutoff, rank):
    made = losses.update_by_quantile(scores, selection_bias, config.top_k, num, cutoff, rank)
    needed = losses.required_bias(scores, selection_bias, config.top_k, num, cutoff)
    return {"required_bias": needed, "selection_bias": made}


def _histogram(config, num, scores, selection_bias, bins):
    edges = losses.bias_edges(selection_bias, int(bins), num)
    counts = losses.bias_histogram(losses.required_bias(scores, selection_bias, config.top_k, num), edges)
    made = losses.update_by_histogram(counts, edges, selection_bias, config.top_k, num)
    return {"bias_edges": edges, "counts": counts, "selection_bias": made}


def _coefficient(config, num, coefficient, active, num_tokens, multiplier):
    made = losses.update_coefficient(coefficient, active, num_tokens, config.top_k, num, multiplier)
    return {"coefficient": made}


_STEPS = {
    "centred_sign": _moved(losses.update_by_centred_sign),
    "proportional": _moved(losses.update_in_proportion),
    "share": _share,
    "pid": _pid,
    "quantile": _quantile,
    "quantile_histogram": _histogram,
    "coefficient": _coefficient,
}


# --- cases -----------------------------------------------------------------------------------------------------------


def cases(fixture):
    """Every case of this file; `fixture`: the chapter's six rows of logits."""
    losses = {"balance": {"coefficient": 1.0, "divide_by_k": False, "selection": "plain"}}
    layers = {"layers": f32([fixture[:3], fixture[3:]]), "token_mask": np.array([1, 1, 0], bool)}
    flags = "Pooled", "PaddingMask"
    yield Case("two layers pooled, one padding token", flags, "pooled", layers, sizes(4, 2, losses=losses))
    collapsed = {"layers": f32([[[200, 0]] * 2, [[0, 200]] * 2])}
    config = sizes(2, 1, losses=losses)
    yield Case("two collapsed layers look perfect", ("Pooled",), "pooled", collapsed, config)
    bias, loads = f32([0.1, -0.1, 0.0, 2.0]), ints([5, 4, 1, 2])
    yield from _by_load({"selection_bias": bias, "assigned_per_expert": loads})
    scores = f32([[0.9, 0.5, 0.2, 0.1], [0.8, 0.7, 0.3, 0.6], [0.6, 0.9, 0.4, 0.2]])
    yield from _by_quantile({"scores": scores, "selection_bias": bias})
    for active in (12, 13):
        inputs = {"coefficient": f32(1e-8), "active": ints(active), "num_tokens": ints(6)}
        yield _step(f"{active} experts for six tokens", "Adaptive", inputs, rule="coefficient", multiplier=(1.2).hex())


def _by_load(inputs):
    for rule in ("centred_sign", "proportional"):
        yield _step(f"{rule} on loads 5 4 1 2", "ControllerSign", inputs, rule=rule, rate=(0.001).hex())
    words = {"rule": "share", "rate": (0.5).hex(), "expected": (1.5).hex()}
    yield _step("share of two experts with weights", "ControllerShare", inputs, num_experts=2, **words)
    state = {"gains": f32([0.5, 0.25, 2.0]), "load_integral": f32([0.3, 0, -0.7, 1]), "load_error": f32([0, 1, 0, -1])}
    yield _step("PID in its second step", "ControllerState", inputs | state, rule="pid")


def _by_quantile(inputs):
    for cutoff, rank in (("next", "next"), ("last", "last"), ("next", "mean")):
        words = {"rule": "quantile", "cutoff": cutoff, "rank": rank}
        yield _step(f"quantile: cutoff {cutoff}, rank {rank}", "QuantileRank", inputs, **words)
    yield _step("quantile from five bins", "QuantileRank", inputs, rule="quantile_histogram", bins="5")


def _step(comment, flag, inputs, num_experts=4, **options):
    return Case(comment, (flag,), "controller", inputs, sizes(num_experts, 2), options=options)
