"""What a router does to its input and to its logits, and back.   Spec 1.1, 5.1

    x -> jittered_x -> router_x -> raw_logits -> clean_logits -> logits

Each stage exists only where a configuration asks for it; without any, the logits are one contraction over x.
"""

import numpy as np

from ..numerics import Named
from ..scores import SIGMOID


def jitter(x, factors, num):
    """jittered_x = x * factors, element by element; the factors are given, never drawn.   Spec 1.1

    x (T, D), factors (T, D) -> jittered_x (T, D). Switch, Mixtral: factors uniform in 1 - eps .. 1 + eps
    """
    return num.evaluate("jittered_x", lambda m, x, f: x * f, x, factors)


def jitter_backward(d_jittered_x, factors, name, num):
    """d_x = d_jittered_x * factors, as the stage `name`.   Spec 5.1

    d_jittered_x (T, D), factors (T, D) -> (T, D)
    """
    # jittered_x = x factors
    return num.evaluate(name, lambda m, d, f: d * f, d_jittered_x, factors)


def input_norm(x, router_norm, eps, num):
    """router_x = x router_norm / sqrt(D) / sqrt(mean(x^2) + eps) = x router_norm / sqrt(sum x^2 + D eps).   Spec 1.1

    x (T, D), router_norm (D,) -> router_x (T, D). Gemma 4's router: RMSNorm, learned vector, D^-1/2
    """
    return num.evaluate("router_x", _scaled_rms, x, router_norm, core=1, eps=eps)


def input_norm_backward(d_router_x, x, router_norm, eps, name, num, into_norm=None):
    """d_x = (q d g - x sum d g x) / q^(3/2), q = sum x^2 + D eps;  d_router_norm = sum_t d x / sqrt(q).   Spec 5.1

    d_router_x (T, D), x (T, D), router_norm (D,) -> d_x (T, D) as the stage `name`, d_router_norm (D,)
    """
    # router_x = x g / sqrt(q)
    d_x = num.evaluate(name, _scaled_rms_backward, d_router_x, x, router_norm, core=1, eps=eps)
    start = np.zeros_like(router_norm) if into_norm is None else into_norm
    if not len(x):
        return d_x, start
    d_norm = num.evaluate("d_router_norm", _norm_weight_backward, d_router_x, x, start[None], core=2, eps=eps)
    return d_x, d_norm[0]


def _scaled_rms(m, x, g, eps):
    return x * g / m.sqrt(_square_sum(m, x, eps))


def _square_sum(m, x, eps):
    """sum x^2 + D eps."""
    return m.sum(x * x, keepdims=True) + m.constant(eps) * np.shape(m.real(x))[-1]


def _scaled_rms_backward(m, d, x, g, eps):
    q, inner = _square_sum(m, x, eps), d * g
    return (inner * q - x * m.sum(inner * x, keepdims=True)) / (q * m.sqrt(q))


def _norm_weight_backward(m, d, x, start, eps):
    return m.sum_over_roots(d * x, _square_sum(m, x, eps)) + start


def _softcap(a, c):
    """The activation c tanh(a z / c), without a limit or an offset."""
    return "softcap", a, None, 0.0, c


def bounded_logits(raw_logits, routing, name, num):
    """logits = a raw_logits, or c tanh(a raw_logits / c) with a soft cap c, as the stage `name`.   Spec 1.1

    raw_logits (T, E) -> (T, E)
    """
    a, c = routing.logits_scale, routing.logits_softcap
    if c is None:
        return num.evaluate(name, lambda m, z: z * a, raw_logits)
    formula = Named("gated", lambda m, z: m.softcap(z * a, c), _softcap(a, c))
    return num.evaluate(name, formula, raw_logits)


def bounded_logits_backward(d_logits, raw_logits, routing, num):
    """d_raw_logits = a d_logits, or a d_logits (1 - tanh(a raw_logits / c)^2).   Spec 5.1

    d_logits (T, E), raw_logits (T, E) -> d_raw_logits (T, E)
    """
    a, c = routing.logits_scale, routing.logits_softcap
    if c is None:
        # logits = a raw
        return num.evaluate("d_raw_logits", lambda m, d: d * a, d_logits)
    # logits = c tanh(a raw / c)
    slope = Named("gated_backward", lambda m, d, z: d * a * m.softcap_derivative(z * a, c), _softcap(a, c))
    return num.evaluate("d_raw_logits", slope, d_logits, raw_logits)


def noise_std(noise_logits, floor, num):
    """noise_std = softplus(noise_logits) + floor.   Spec 1.1; Shazeer et al. 2017

    noise_logits (T, E) -> noise_std (T, E)
    """
    return num.evaluate("noise_std", lambda m, z: m.softplus(z) + floor, noise_logits)


def noise_std_backward(d_noise_std, noise_logits, num):
    """d_noise_logits = d_noise_std sigmoid(noise_logits).   Spec 5.1

    d_noise_std (T, E), noise_logits (T, E) -> d_noise_logits (T, E)
    """
    # noise_std = softplus(noise_logits) + floor; its slope, sigmoid, times d is what C calls "gated": act(z) up
    formula = Named("gated", lambda m, z, d: d * m.sigmoid(z), SIGMOID.parameters)
    return num.evaluate("d_noise_logits", formula, noise_logits, d_noise_std)


def noisy_logits(clean_logits, noise, noise_std, num):
    """logits = clean_logits + noise * noise_std; the noise is given, never drawn.   Spec 1.1

    clean_logits (T, E), noise (T, E), noise_std (T, E) -> logits (T, E)
    """
    return num.sum("logits", [clean_logits, (noise, noise_std)])


def noisy_logits_backward(d_logits, noise, more_clean, more_std, num):
    """d_clean_logits = d_logits;  d_noise_std = d_logits * noise; each plus what other readers send.   Spec 5.1

    d_logits (T, E), noise (T, E), more_clean and more_std: lists of (T, E) -> d_clean_logits, d_noise_std (T, E)
    """
    # logits = clean + noise std
    d_clean = num.sum("d_clean_logits", [d_logits, *more_clean])
    return d_clean, num.sum("d_noise_std", [(d_logits, noise), *more_std])
