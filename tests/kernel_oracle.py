"""What the kernels must give, from rational arithmetic alone.

Nothing here imports the package's own arithmetic: rounding, fused multiply-add and the three products are written
again, an output at a time, over `Fraction`.
"""

import math
from collections import namedtuple
from fractions import Fraction

import numpy as np

Rule = namedtuple("Rule", "profile format force_tier", defaults=(None,))
# precision, exponent of the least normal number, exponent of the first power of two beyond the largest finite number
FORMATS = {"float32": (24, -126, 128), "bf16": (8, -126, 128), "fp16": (11, -14, 16)}


# ---- one output ----

def power(exponent):
    return Fraction(2) ** exponent


def round_exact(q, name):
    """The number of the format nearest to the fraction, half to even; q = 0 is +0; beyond the largest, infinity."""
    precision, least, beyond = FORMATS[name]
    if q == 0:
        return 0.0
    size = abs(q)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent -= size < power(exponent)
    quantum = power(max(exponent, least) - precision + 1)
    rounded = round(size / quantum) * quantum  # Fraction rounds half to even
    return math.copysign(math.inf if rounded >= power(beyond) else float(rounded), q)


def exact_sum(terms, addends, name):
    """terms: pairs of floats; addends: floats -> the stored value."""
    parts = [a * b for a, b in terms if not math.isfinite(a * b)] + [c for c in addends if not math.isfinite(c)]
    if parts:
        return sum(parts)  # infinities of one sign, or NaN
    total = sum((Fraction(a) * Fraction(b) for a, b in terms), Fraction(0))
    return round_exact(sum(map(Fraction, addends), total), name)


def fused(a, b, c):
    """fma(a, b, c) in float32."""
    if not (math.isfinite(a) and math.isfinite(b) and math.isfinite(c)):
        return a * b + c
    q = Fraction(a) * Fraction(b) + Fraction(c)
    return round_exact(q, "float32") if q else a * b + c if a * b == 0 else 0.0


def chain_sum(terms, acc, bias, name):
    total = 0.0 if acc is None else acc
    for a, b in terms:
        total = fused(a, b, total)
    total = total if bias is None else fused(1.0, total, bias)
    if name == "float32" or total == 0 or not math.isfinite(total):
        return total
    return round_exact(Fraction(total), name)


def unfused_sum(terms, acc, bias):
    total = 0.0 if acc is None else acc
    for a, b in terms:
        total = total + a * b
    return total if bias is None else total + bias


def one_output(rule, terms, acc, bias):
    if rule.profile == "exact":
        return exact_sum(terms, [v for v in (acc, bias) if v is not None], rule.format)
    if rule.profile == "chain":
        return chain_sum(terms, acc, bias, rule.format)
    return unfused_sum(terms, acc, bias)


# ---- the three products ----

def product(rule, a, b, acc, bias):
    """out[i, j] for a (R, L), b (L, C), acc (R, C) or None, bias (C,) or None, through one_output."""
    out = np.empty((a.shape[0], b.shape[1]), dtype(rule))
    rows, columns = a.tolist(), b.T.tolist()
    for i, j in np.ndindex(out.shape):
        terms = list(zip(rows[i], columns[j], strict=True))
        addends = None if acc is None else float(acc[i, j]), None if bias is None else float(bias[j])
        out[i, j] = one_output(rule, terms, *addends)
    return out


def dtype(rule):
    return np.float64 if rule.profile == "float64" else np.float32


def grouped_matmul(rule, x, w, offsets, bias=None, acc=None):
    out = np.empty((len(x), w.shape[1]), dtype(rule))
    for e in range(len(w)):
        rows = slice(offsets[e], offsets[e + 1])
        addends = None if acc is None else acc[rows], None if bias is None else bias[e]
        out[rows] = product(rule, x[rows], w[e].T, *addends)
    return out


def grouped_matmul_backward_x(rule, pairs, offsets, acc=None):
    out = np.empty((len(pairs[0][0]), pairs[0][1].shape[2]), dtype(rule))
    for e in range(len(offsets) - 1):
        rows = slice(offsets[e], offsets[e + 1])
        a, b = np.concatenate([d[rows] for d, _ in pairs], axis=1), np.concatenate([w[e] for _, w in pairs])
        out[rows] = product(rule, a, b, None if acc is None else acc[rows], None)
    return out


def grouped_matmul_backward_w(rule, d, x, offsets, acc=None):
    out = np.empty((len(offsets) - 1, d.shape[1], x.shape[1]), dtype(rule))
    for e in range(len(out)):
        rows = slice(offsets[e], offsets[e + 1])
        out[e] = product(rule, d[rows].T, x[rows], None if acc is None else acc[e], None)
    return out
