"""The stage from tokens to logits, and back.   Spec 1.1, 5.1"""

import numpy as np

from ..scores import SIGMOID
from . import front
from .record import RoutingRecord


def router_logits(x, w_router, router_bias, num, name="logits"):
    """logits = x w_router^T + router_bias: one contraction, float32 in every store.   Spec 1.1

    x (T, D), w_router (E, D), router_bias (E,) or None -> logits (T, E), as the stage `name`
    """
    return num.contract(name, x, w_router, bias=router_bias)


def router_logits_backward(
    d_logits, x, w_router, router_bias, num, into_w=None, into_bias=None, others=(), name="d_x_router", of_gram=()
):
    """d_x = d_logits w_router;  d_w_router = d_logits^T x + (d_G + d_G^T) w_router;  d_router_bias = sum_t d_logits.

    Spec 5.1

    d_logits (T, E), x (T, D), w_router (E, D) -> d_x (T, D), d_w_router (E, D), d_router_bias (E,) or None
    `others`: pairs (d, w) of more linear maps that read the same x; d_x, the stage `name`, is one contraction over all.
    `of_gram`: gradients d_G (E, E) of router_gram; d_w_router is one contraction over the rows of all its readers.
    The parameters' gradients are added to `into_w` and `into_bias` where given.
    """
    # logits = x w_router^T + router_bias
    d_x = num.contract_backward_x(name, [(d_logits, w_router), *others])
    # router_gram = w_router w_router^T
    readers = [(d_logits, x), *((d, w_router) for d_gram in of_gram for d in (d_gram.T, d_gram))]
    d_rows, rows = readers[0] if len(readers) == 1 else map(np.concatenate, zip(*readers, strict=True))
    d_w_router = num.contract_backward_w("d_w_router", d_rows, rows, acc=into_w)
    if router_bias is None:
        return d_x, d_w_router, None
    return d_x, d_w_router, num.sum_rows("d_router_bias", d_logits, start=into_bias)


# --- the stage -------------------------------------------------------------------------------------------------------


def make_logits(x, params, config, num, given):
    """Every stage from tokens to logits; given logits take the place of all but the jitter of a whole layer.   Spec 1.1

    x (T, D) -> RoutingRecord of what was made
    """
    routing, made = config.routing, {}
    live = given.logits is None
    if is_jittered(routing, given) and (live or routing.norm_over_shared or routing.jitter == "block"):
        x = made["jittered_x"] = front.jitter(x, given.jitter, num)
    if routing.input_norm == "rms_scaled" and (live or routing.norm_over_shared):
        x = made["router_x"] = front.input_norm(x, params.router_norm, routing.input_norm_eps, num)
    if routing.norm_over_shared:
        made["shared_logits"] = num.contract("shared_logits", x, params.w_shared_router)
        made["shared_scores"] = num.evaluate("shared_scores", SIGMOID, made["shared_logits"])
    if not live:
        return RoutingRecord(**made, logits=given.logits)
    noisy, bounded = is_noisy(routing, given), is_bounded(routing)
    clean = "clean_logits" if noisy else "logits"
    linear = "raw_logits" if bounded else clean
    made[linear] = router_logits(x, params.w_router, params.router_bias, num, linear)
    if bounded:
        made[clean] = front.bounded_logits(made["raw_logits"], routing, clean, num)
    if noisy:
        made |= _noise(x, made["clean_logits"], params, routing, num, given)
    if config.losses.orthogonality is not None:
        made["router_gram"] = num.contract("router_gram", params.w_router, params.w_router)
    return RoutingRecord(**made)


def make_logits_backward(d_logits, d_shared_logits, x, record, params, config, num, given, into, more):
    """From the logits' gradient through every stage that made them, to x and the parameters.   Spec 5.1

    d_logits (T, E), d_shared_logits (T, n) or None; x (T, D): what the layer reads; more: lists of further gradients of
    clean_logits, noise_std, router_gram -> d_x_router (T, D), stages by name, parameter gradients by name. With given
    logits only the shared experts' logits lead back.
    """
    routing = config.routing
    jittered = record.jittered_x is not None and routing.jitter == "router"
    source = record.jittered_x if jittered else x
    seen = source if record.router_x is None else record.router_x
    before = "d_jittered_x" if jittered else "d_x_router"
    name = before if record.router_x is None else "d_router_x"
    made, grads, others = {}, {}, []
    if given.logits is None:
        d_logits, others, made, grads = _to_linear(d_logits, seen, record, params, routing, num, given, into, more)
    if d_shared_logits is not None:
        grads["w_shared_router"] = num.contract_backward_w(
            "d_w_shared_router", d_shared_logits, seen, acc=into.w_shared_router
        )
        others.append((d_shared_logits, params.w_shared_router))
    if given.logits is None:
        saved, places = (seen, params.w_router, params.router_bias), (into.w_router, into.router_bias)
        of_gram = more.get("router_gram", ())
        d_x, grads["w_router"], d_bias = router_logits_backward(d_logits, *saved, num, *places, others, name, of_gram)
        grads |= {} if d_bias is None else {"router_bias": d_bias}
    elif others:
        d_x = num.contract_backward_x(name, others)
    else:
        return None, made, grads
    if record.router_x is not None:
        made["d_router_x"], saved = d_x, (source, params.router_norm, routing.input_norm_eps)
        d_x, grads["router_norm"] = front.input_norm_backward(d_x, *saved, before, num, into.router_norm)
    if jittered:
        made["d_jittered_x"] = d_x
        d_x = front.jitter_backward(d_x, given.jitter, "d_x_router", num)
    return d_x, made, grads


def _to_linear(d_logits, seen, record, params, routing, num, given, into, more):
    """Back to the linear map: its gradient, further pairs (d, w) of maps of the same input, stages, gradients."""
    made, grads, others = {}, {}, []
    if record.noise_std is not None:
        extra = more.get("clean_logits", ()), more.get("noise_std", ())
        d_logits, d_std = front.noisy_logits_backward(d_logits, given.noise, *extra, num)
        made["d_clean_logits"] = d_logits
        if record.noise_logits is not None:
            d_noise = front.noise_std_backward(d_std, record.noise_logits, num)
            made |= {"d_noise_std": d_std, "d_noise_logits": d_noise}
            grads["w_noise"] = num.contract_backward_w("d_w_noise", d_noise, seen, acc=into.w_noise)
            others.append((d_noise, params.w_noise))
    if record.raw_logits is not None:
        d_logits = made["d_raw_logits"] = front.bounded_logits_backward(d_logits, record.raw_logits, routing, num)
    return d_logits, others, made, grads


def is_bounded(routing):
    """Are the router's logits scaled or capped?   Spec 1.1"""
    return routing.logits_scale != 1.0 or routing.logits_softcap is not None


def is_jittered(routing, given):
    """Is the input multiplied by given factors? Without them the field changes nothing: evaluation.   Spec 1.1"""
    return routing.jitter != "none" and given.jitter is not None


def is_noisy(routing, given):
    """Is given noise added to the logits? Without it the field changes nothing: evaluation.   Spec 1.1"""
    return routing.noise != "none" and given.noise is not None


def _noise(x, clean_logits, params, routing, num, given):
    """The stages of noisy logits; a fixed standard deviation is a stage too, so that readers find it in one place."""
    made = {}
    if routing.noise == "learned":
        made["noise_logits"] = num.contract("noise_logits", x, params.w_noise)
        made["noise_std"] = front.noise_std(made["noise_logits"], routing.noise_floor, num)
    else:
        made["noise_std"] = num.sum("noise_std", [np.full(clean_logits.shape, routing.noise_std)])
    return made | {"logits": front.noisy_logits(clean_logits, given.noise, made["noise_std"], num)}
