"""What the layer makes of the routed and the shared part: combination, norm, and back.   Spec 3.8, 5.9"""

from ..norms import rms_norm, rms_norm_backward

# shared_combine -> what the sum of the two parts is divided by, as a formula over an arithmetic
SHARED_COMBINES = {"sum": None, "average": lambda m: m.constant(2), "sqrt2": lambda m: m.sqrt(m.constant(2))}


def layer_output(routed, shared, params, experts, num):
    """y = norm((routed + shared) / c), c = 1, 2 or sqrt 2; without a shared part norm(routed).   Spec 3.8

    routed (T, D), shared (T, D) or None -> unnormed_y (T, D) and output_rms (T, 1), None without a norm, y (T, D)
    """
    name = "y" if experts.output_norm == "none" else "unnormed_y"
    divisor = SHARED_COMBINES[experts.shared_combine]
    if shared is None:
        made = routed
    elif divisor is None:
        made = num.sum(name, [routed, shared])
    else:
        made = num.evaluate(name, lambda m, a, b: (a + b) / divisor(m), routed, shared)
    if experts.output_norm == "none":
        return None, None, made
    names = "output_rms", "y"
    return made, *rms_norm(names, made, params.w_output_norm, experts.output_norm, experts.norm_eps, num)


def layer_output_backward(d_y, unnormed_y, output_rms, params, experts, num, into):
    """Through the norm, then d_routed = d / c, which the shared part receives too.   Spec 5.9

    d_y (T, D) -> d_unnormed_y (T, D) or None, d_routed (T, D), dictionary of parameter gradients by name
    """
    # y = norm(unnormed_y)
    names, kind = ("d_unnormed_y", "d_w_output_norm"), experts.output_norm
    saved = d_y, unnormed_y, output_rms, params.w_output_norm
    d, d_weight = rms_norm_backward(names, *saved, kind, num, into.w_output_norm)
    d_unnormed, grads = (None, {}) if kind == "none" else (d, {"w_output_norm": d_weight})
    # unnormed_y = (routed + shared) / c
    divisor = SHARED_COMBINES[experts.shared_combine]
    if divisor is not None:
        d = num.evaluate("d_routed", lambda m, d: d / divisor(m), d)
    return d_unnormed, d, grads
