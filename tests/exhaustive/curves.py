"""The activations of csrc/formulas_curves.h for the exhaustive walk: by NumPy and SciPy in binary64, and by mpmath.

Of each: x -> (value, the sizes that enter it, what stands in the exponential), and x -> value to many digits.
"""

import mpmath
import numpy as np
from scipy.special import expit, ndtr

LOGITS_CAP, GATE_CAP = 30.0, 4.0


def gelu(x):
    return x * ndtr(np.clip(x, -30, 30)), np.abs(x) * ndtr(np.clip(x, -30, 30)), np.clip(x, -30, 30) ** 2 / 2


def gelu_slope(x):
    x = np.clip(x, -30, 30)  # beyond, it is 0 or 1 in every format, with room to spare
    density = np.exp(-x * x / 2) / np.sqrt(2 * np.pi)
    return ndtr(x) + x * density, ndtr(x) + np.abs(x) * density, x * x / 2


def sqrt_softplus(x):
    root = np.sqrt(np.logaddexp(0.0, np.maximum(x, -600)))
    return root, root, np.clip(np.abs(x), 0, 600)


def sqrt_softplus_slope(x):
    slope = expit(np.maximum(x, -600)) / (2 * sqrt_softplus(x)[0])
    return slope, slope, np.clip(np.abs(x), 0, 600)


def softcap(x):
    value = LOGITS_CAP * np.tanh(x / LOGITS_CAP)
    return value, np.abs(value), np.zeros_like(x)


def _per_cosh_squared(v):
    return 4 * expit(2 * v) * expit(-2 * v)


def softcap_slope(x):
    x = np.clip(x, -9000, 9000)
    slope = _per_cosh_squared(x / LOGITS_CAP)
    return slope, slope, np.abs(2 * x / LOGITS_CAP)


def capped_silu(x):
    value = GATE_CAP * np.tanh(x / GATE_CAP) * expit(np.clip(x, -600, 600))
    return value, np.abs(value), np.clip(np.abs(x), 0, 600)


def capped_silu_slope(x):
    x = np.clip(x, -600, 600)
    slope, along = _per_cosh_squared(x / GATE_CAP), GATE_CAP * np.tanh(x / GATE_CAP) * expit(-x)
    return expit(x) * (slope + along), expit(x) * (slope + np.abs(along)), np.abs(x)


def true_sqrt_softplus(x):
    return mpmath.sqrt(mpmath.log1p(mpmath.exp(x)))


def true_sqrt_softplus_slope(x):
    return 1 / (1 + mpmath.exp(-x)) / (2 * true_sqrt_softplus(x))


def true_capped_silu(x):
    return GATE_CAP * mpmath.tanh(x / GATE_CAP) / (1 + mpmath.exp(-x))


def true_capped_silu_slope(x):
    s, other = 1 / (1 + mpmath.exp(-x)), 1 / (1 + mpmath.exp(x))
    return s * (mpmath.sech(x / GATE_CAP) ** 2 + GATE_CAP * mpmath.tanh(x / GATE_CAP) * other)


PLAIN, CAP = (1.0, None, 0.0), (1.0, None, 0.0, LOGITS_CAP)
# name -> (parameters of the named formula, is it the slope, by library, by mpmath)
CURVES = {
    "gelu": (("gelu", *PLAIN), False, gelu, lambda x: x * mpmath.ncdf(x)),
    "gelu'": (("gelu", *PLAIN), True, gelu_slope, lambda x: mpmath.ncdf(x) + x * mpmath.npdf(x)),
    "sqrt_softplus": (("sqrt_softplus", *PLAIN), False, sqrt_softplus, true_sqrt_softplus),
    "sqrt_softplus'": (("sqrt_softplus", *PLAIN), True, sqrt_softplus_slope, true_sqrt_softplus_slope),
    "softcap": (("softcap", *CAP), False, softcap, lambda x: LOGITS_CAP * mpmath.tanh(x / LOGITS_CAP)),
    "softcap'": (("softcap", *CAP), True, softcap_slope, lambda x: mpmath.sech(x / LOGITS_CAP) ** 2),
    "capped_silu": (("silu", *PLAIN, GATE_CAP), False, capped_silu, true_capped_silu),
    "capped_silu'": (("silu", *PLAIN, GATE_CAP), True, capped_silu_slope, true_capped_silu_slope),
}
