"""The norm of each expert's output, one weight for all experts, and back.   Spec 3.7, 5.5"""

from ..norms import rms_norm, rms_norm_backward


def post_norm(y_rows, params, experts, num):
    """normed_y_rows = norm(y_rows); or scaled_y_rows = y_rows (1 + w) first, and the norm of that.   Spec 3.7

    y_rows (N, D) -> scaled_y_rows (N, D), y_rms (N, 1), normed_y_rows (N, D) by name, None where there is none.
    A scale before the norm, and an epsilon of its own, are Muse Spark's.
    """
    kind, weight, scaled = experts.post_expert_norm, params.w_post_expert_norm, None
    eps = experts.norm_eps if experts.post_expert_norm_eps is None else experts.post_expert_norm_eps
    if kind == "rms_input_scaled":
        scaled = num.evaluate("scaled_y_rows", lambda m, y, w: y * (1 + w), y_rows, weight)
        y_rows, kind, weight = scaled, "rms", None
    rms, normed = rms_norm(("y_rms", "normed_y_rows"), y_rows, weight, kind, eps, num)
    return {"scaled_y_rows": scaled, "y_rms": rms, "normed_y_rows": normed}


def post_norm_backward(d_out, record, params, experts, num, into):
    """d_y_rows, through the norm and the scale;  d_w = sum over the rows of d_scaled y.   Spec 5.5

    d_out (N, D) -> d_scaled_y_rows (N, D) or None, d_y_rows (N, D), dictionary of the gradient of the weight by name
    """
    kind, weight, acc = experts.post_expert_norm, params.w_post_expert_norm, into.w_post_expert_norm
    if kind != "rms_input_scaled":
        # normed_y_rows = norm(y_rows)
        names = "d_y_rows", "d_w_post_expert_norm"
        d_y, d_w = rms_norm_backward(names, d_out, record.y_rows, record.y_rms, weight, kind, num, acc)
        return None, d_y, {} if d_w is None else {"w_post_expert_norm": d_w}
    # normed_y_rows = scaled_y_rows / y_rms
    names = "d_scaled_y_rows", ""
    d_scaled, _ = rms_norm_backward(names, d_out, record.scaled_y_rows, record.y_rms, None, "rms", num)
    # scaled_y_rows = y_rows (1 + w)
    d_y = num.evaluate("d_y_rows", lambda m, d, w: d * (1 + w), d_scaled, weight)
    terms = list(zip(d_scaled, record.y_rows, strict=True))
    d_w = num.sum("d_w_post_expert_norm", [weight * 0 if acc is None else acc, *terms])
    return d_scaled, d_y, {"w_post_expert_norm": d_w}
