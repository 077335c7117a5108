"""Experts that work in a narrower space, the norms on the way, and back.   Spec 3.7, 5.4, 5.5

The stages are the identity, and not stored, where the configuration does not ask for them.
"""

from ..norms import rms_norm, rms_norm_backward
from .records import LatentGrads


def latent_in(x, params, experts, num):
    """latent_x = W_in x;  normed_latent_x = norm(latent_x).   Spec 3.7   (Nemotron 3 Super, Muse Spark)

    x (T, D) -> these stages by name, what the experts read (T, l)
    """
    if not experts.latent_size:
        return {}, x
    latent = num.contract("latent_x", x, params.w_latent_in)
    names, weight = ("latent_rms", "normed_latent_x"), params.w_latent_pre_norm
    rms, normed = rms_norm(names, latent, weight, experts.latent_pre_norm, experts.norm_eps, num)
    stages = {"latent_x": latent, "latent_rms": rms, "normed_latent_x": normed}
    return stages, latent if normed is None else normed


def latent_in_backward(d_read, x, record, params, experts, num, into):
    """d_x = W_in^T d_latent_x;  d_w_latent_in = sum d_latent_x x.   Spec 5.4, 5.5

    d_read (T, l), x (T, D) -> d_x_experts (T, D), LatentGrads, dictionary of parameter gradients by name
    """
    if not experts.latent_size:
        return d_read, LatentGrads(), {}
    # normed_latent_x = norm(latent_x)
    names, kind = ("d_latent_x", "d_w_latent_pre_norm"), experts.latent_pre_norm
    saved = d_read, record.latent_x, record.latent_rms, params.w_latent_pre_norm
    d_latent, d_weight = rms_norm_backward(names, *saved, kind, num, into.w_latent_pre_norm)
    # latent_x = W_in x
    grads = {"w_latent_in": num.contract_backward_w("d_w_latent_in", d_latent, x, acc=into.w_latent_in)}
    d_x = num.contract_backward_x("d_x_experts", [(d_latent, params.w_latent_in)])
    normed = d_read if kind != "none" else None
    made = LatentGrads(d_normed_latent_x=normed, d_latent_x=d_latent)
    return d_x, made, grads | ({} if d_weight is None else {"w_latent_pre_norm": d_weight})


def latent_out(latent_routed, params, experts, num):
    """routed = W_out norm(latent_routed) + output_bias.   Spec 3.7   (Kimi K3 norms the sum)

    latent_routed (T, l) -> latent_routed_rms (T, 1), normed_latent_routed (T, l), routed (T, D)
    """
    names, weight = ("latent_routed_rms", "normed_latent_routed"), params.w_latent_post_norm
    rms, normed = rms_norm(names, latent_routed, weight, experts.latent_post_norm, experts.norm_eps, num)
    read = latent_routed if normed is None else normed
    return rms, normed, num.contract("routed", read, params.w_latent_out, bias=params.output_bias)


def latent_out_backward(d_routed, record, params, experts, num, into):
    """d_read = W_out^T d_routed, through the norm;  d_w_latent_out = sum d_routed read.   Spec 5.4, 5.5

    d_routed (T, D) -> d_latent_routed (T, l), LatentGrads, dictionary of parameter gradients by name
    """
    kind = experts.latent_post_norm
    read, name = record.latent_routed, "d_latent_routed"
    if kind != "none":
        read, name = record.normed_latent_routed, "d_normed_latent_routed"
    # routed = W_out read
    d_read = num.contract_backward_x(name, [(d_routed, params.w_latent_out)])
    grads = {"w_latent_out": num.contract_backward_w("d_w_latent_out", d_routed, read, acc=into.w_latent_out)}
    # normed_latent_routed = norm(latent_routed)
    names = "d_latent_routed", "d_w_latent_post_norm"
    saved = d_read, record.latent_routed, record.latent_routed_rms, params.w_latent_post_norm
    d_latent, d_weight = rms_norm_backward(names, *saved, kind, num, into.w_latent_post_norm)
    made = LatentGrads(d_normed_latent_routed=d_read if kind != "none" else None, d_latent_routed=d_latent)
    return d_latent, made, grads | ({} if d_weight is None else {"w_latent_post_norm": d_weight})
