"""The root mean square of a row, division by it, and back: the one norm of the layer.   Spec 3.7, 5.5"""

import numpy as np

# kind -> what multiplies x / rms, as a formula over an arithmetic; None where the weight is left out
NORMS = {"rms": lambda m, w: w, "rms_centered": lambda m, w: 1 + w}


def rms_norm(names, x, weight, kind, eps, num):
    """rms = sqrt(mean(x^2) + eps);  out = x c / rms, c = weight, or 1 + weight if centred.   Spec 3.7

    x (N, D), weight (D,) or None for c = 1; names of the two stages -> rms (N, 1), out (N, D); kind "none": None, None
    """
    if kind == "none":
        return None, None
    size = x.shape[-1]
    rms = num.evaluate(names[0], lambda m, x: m.sqrt(m.sum(x * x, keepdims=True) / size + eps), x, core=1)
    if weight is None:
        return rms, num.evaluate(names[1], lambda m, x, rms: x / rms, x, rms)
    return rms, num.evaluate(names[1], lambda m, x, w, rms: x * NORMS[kind](m, w) / rms, x, weight, rms)


def rms_norm_backward(names, d_out, x, rms, weight, kind, num, into=None):
    """d_x = (c d - x sum(c d x) / (D rms^2)) / rms;  d_weight = sum over the rows of d x / rms.   Spec 5.5

    d_out (N, D), x (N, D), rms (N, 1), weight (D,); names of the two stages -> d_x (N, D), d_weight (D,) or None
    """
    if kind == "none":
        return d_out, None
    size = x.shape[-1]

    def d_x(m, d, x, rms, w=1):
        # out = x c / rms,   rms^2 = sum(x^2) / D + eps
        scaled = d if weight is None else d * NORMS[kind](m, w)
        return (scaled - x * m.sum(scaled * x, keepdims=True) / (rms * rms * size)) / rms

    def d_weight(m, d, x, rms, start):
        # out = x c / rms,   c = weight, or 1 + weight
        return start + m.sum(d * x / rms, keepdims=True)

    if weight is None:
        return num.evaluate(names[0], d_x, d_out, x, rms, core=1), None
    made = num.evaluate(names[0], d_x, d_out, x, rms, weight, core=1)
    start = np.zeros_like(weight) if into is None else into
    if len(x) == 0:
        return made, start
    return made, num.evaluate(names[1], d_weight, d_out.T, x.T, rms.T, start[:, None], core=1)[:, 0]
