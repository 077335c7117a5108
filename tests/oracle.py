"""One small layer written in mpmath without one line of the library, and its central differences."""

from itertools import product

import mpmath
import numpy as np

mpmath.mp.dps = 60
STEP = mpmath.mpf(10) ** -22  # the error of a central difference is of order STEP^2; rounding adds 10^-60 / STEP


def sigmoid(z):
    return 1 / (1 + mpmath.exp(-z))


def linear(w, x, b):
    return [mpmath.fdot(row, x) + bias for row, bias in zip(w, b, strict=True)]


def feed_forward(x, p, e, prefix, c):
    """Clamped SwiGLU with alpha, limit and offset, and biases."""
    at = lambda name: p[prefix + name][e]  # noqa: E731
    gate, up = linear(at("w_gate"), x, at("b_gate")), linear(at("w_up"), x, at("b_up"))
    gate = [min(g, mpmath.mpf(c.limit)) for g in gate]
    up = [max(min(u, mpmath.mpf(c.limit)), -mpmath.mpf(c.limit)) for u in up]
    hidden = [
        g * sigmoid(mpmath.mpf(c.alpha) * g) * (u + mpmath.mpf(c.linear_offset)) for g, u in zip(gate, up, strict=True)
    ]
    return linear(at("w_down"), hidden, at("b_down"))


def layer(p, chosen, config, d_y):
    """<d_y, y> + three losses: sigmoid scores, renormalised with an epsilon and scaled; a gated shared expert."""
    E, r, losses = config.num_experts, config.routing, config.losses
    total, probs, lse, importance = mpmath.mpf(0), [0] * E, mpmath.mpf(0), [0] * E
    for t, x in enumerate(p["x"]):
        z = linear(p["w_router"], x, p["router_bias"])
        s = [sigmoid(v) for v in z]
        den = sum(s[e] for e in chosen[t]) + mpmath.mpf(r.norm_eps)
        y = [mpmath.mpf(0)] * len(x)
        for e in chosen[t]:
            weight = mpmath.mpf(r.scaling_factor) * s[e] / den
            y = [a + weight * b for a, b in zip(y, feed_forward(x, p, e, "", config.experts), strict=True)]
        gate = sigmoid(mpmath.fdot(p["shared.w_shared_gate"][0], x))
        y = [a + gate * b for a, b in zip(y, feed_forward(x, p, 0, "shared.", config.experts), strict=True)]
        total += mpmath.fdot(d_y[t], y)
        probs = [a + b / sum(s) for a, b in zip(probs, s, strict=True)]
        powers = [mpmath.exp(v) for v in z]
        lse += mpmath.log(sum(powers)) ** 2
        importance = [a + b / sum(powers) for a, b in zip(importance, powers, strict=True)]
    T = len(p["x"])
    counts = [sum(e in row for row in chosen) for e in range(E)]
    balance = sum(n * q for n, q in zip(counts, probs, strict=True)) * E / (mpmath.mpf(config.top_k) * T * T)
    mean = sum(importance) / E
    spread = sum((i - mean) ** 2 for i in importance) / E / (mean**2 + mpmath.mpf(losses.importance.eps))
    parts = (losses.balance, balance), (losses.z, lse / T), (losses.importance, spread)
    return total + sum(mpmath.mpf(loss.coefficient) * value for loss, value in parts)


def gradients(arrays, chosen, config, d_y):
    """name -> gradient of `layer` with respect to every element of every array, rounded to float64."""
    exact = {name: np.vectorize(mpmath.mpf, otypes=[object])(array) for name, array in arrays.items()}
    d_y = np.vectorize(mpmath.mpf, otypes=[object])(d_y)
    out = {name: np.empty(array.shape) for name, array in arrays.items()}
    for name, array in exact.items():
        for at in product(*map(range, array.shape)):
            here, ends = array[at], []
            for sign in (1, -1):
                array[at] = here + sign * STEP
                ends.append(layer(exact, chosen, config, d_y))
            array[at] = here
            out[name][at] = float((ends[0] - ends[1]) / (2 * STEP))
    return out
