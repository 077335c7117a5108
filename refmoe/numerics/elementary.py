"""One fixed float64 algorithm for each elementary function: the same bits on every machine.

Only + - * / , rint, comparisons, selection, table look-up and integer operations on the bits, one IEEE rounding for
each written operation, so that C can repeat them one to one. Every function takes float64 arrays of any shape, has
its limits at the infinities, keeps odd symmetry (also of zeros), and gives the one quiet NaN for a NaN and outside
its domain.

|computed - exact| <= RELATIVE_BOUND |exact| + ABSOLUTE_BOUND everywhere; the second term is needed only where the
exact value is below 2^-1022. In the proofs beside the code u = 2^-53, a rounding is a factor 1 + d with |d| <= u, and
products of errors (below 2^-100) are swallowed by the margin left up to the stated bound; so |exact| may also be read
as |computed|.
"""

import numpy as np

from . import elementary_tables as tables

UNIT = 2.0**-53
RELATIVE_BOUND = {
    "exp": 1.0625 * UNIT,
    "expm1": 4.25 * UNIT,
    "log": 2.125 * UNIT,
    "log1p": 2.625 * UNIT,
    "sigmoid": 3.125 * UNIT,
    "tanh": 5.75 * UNIT,
    "softplus": 4 * UNIT,
    "erf": 2.5 * UNIT,
    "erfc": 5.5 * UNIT,
}
ABSOLUTE_BOUND = 2.0**-1060

_BLOCK = 4096  # elements read at a time: the temporaries of a block stay in the second-level cache


def _blockwise(core, x):
    x = np.asarray(x, dtype=np.float64)
    flat, out = x.reshape(-1), np.empty(x.size)
    with np.errstate(all="ignore"):
        for start in range(0, x.size, _BLOCK):
            block, value = flat[start : start + _BLOCK], out[start : start + _BLOCK]
            value[...] = core(block)
            np.copyto(value, np.nan, where=value != value)
    return out.reshape(x.shape)


def _bits(x):
    return np.ascontiguousarray(x).view(np.int64)


def _power_of_two(e):
    """2^e for -1022 <= e <= 1023."""
    return ((e + 1023) << 52).view(np.float64)


def _horner(x, coefficients):
    """sum_i coefficients[i] x^i, evaluated from the highest down: one product, one sum a step."""
    total = coefficients[-1]
    for c in coefficients[-2::-1]:
        total = total * x + c
    return total


# --- exp ------------------------------------------------------------------------------------------


_EXPM1 = (1 / 2, 1 / 6, 1 / 24, 1 / 120, 1 / 720)


def _exp_parts(x, low=0.0):
    """exp(x + low) = 2^e (head + body), body = tail + head expm1(r); x + low = k ln2/64 + r, k = 64 e + j.

    head + tail = 2^(j/64). For |x| < 800, |low| < 2^-15. k high has 17 + 35 bits, exact; so is x - k high, a multiple
    of 2^-60 below 2^-7 (or x itself, k = 0). |r| < 0.00545 < 2^-7 is rounded by 2^-61; k low brings 2^-77, `low` at
    most 2^-66. expm1(r): the series stops r^7/5040 < 2^-64.9 short, r^2 (...) rounds by 1.56 u r^2, the last sum by
    2^-61: 0.0083 u in all. The product with head < 2 and the sum with tail round by 2^-60 at most (2^-61 for head <
    1.41), and tail expm1(r) < 0.0055 u head is left out. Altogether body is off by less than 0.022 u head (taken over
    all j).
    """
    k = np.rint(x * tables.PER_LN2)
    r = (x - k * tables.LN2_64_HIGH) - (k * tables.LN2_64_LOW - low)
    p = r + r * r * _horner(r, _EXPM1)
    k = k.astype(np.int64)
    j = k & 63
    head = tables.EXP_HEAD[j]
    return k >> 6, head, tables.EXP_TAIL[j] + head * p


def _exp(x):
    """u for head + body >= 0.994 head, 0.0225 u for body: 1.03 u. Scaling is exact, or rounds a subnormal by 2^-1075.

    Below -746 the value is under 2^-1076 and comes out as 0; above 710 it overflows.
    """
    e, head, body = _exp_parts(np.minimum(np.maximum(x, -746.0), 710.0))
    half = e >> 1
    return (head + body) * _power_of_two(half) * _power_of_two(e - half)


def _expm1(x):
    """(2^e head - 1) + 2^e body; the first term is exact for |k| <= 64, where the two nearly cancel.

    k = 0: the first term is 0 and r = x, so u + 1.56 u |r| + r^6/5040: 1.06 u. k = -1 is the worst: 2^e body is off by
    0.0169 u, |value| > 0.0054: 3.12 u, and u for the last sum: 4.12 u (k = 1: 4.10 u, |k| > 1 less and less; beyond
    64 the first term rounds by at most u of itself: 2.2 u). Below -40 the value is -1 within 0.04 u.
    """
    e, head, body = _exp_parts(np.minimum(np.maximum(x, -40.0), 710.0))
    first = np.minimum(e, 1000)
    s = _power_of_two(first)
    y = ((s * head - 1.0) + s * body) * _power_of_two(e - first)
    return np.copysign(y, x)


# --- log ------------------------------------------------------------------------------------------


_LOG1P = (-1 / 2, 1 / 3, -1 / 4, 1 / 5, -1 / 6, 1 / 7, -1 / 8)


def _log_sum(s, d=None, shift=0):
    """log(s + d) + shift ln2 = k ln2 - log c + log1p(r): s = 2^k z normal, |d| <= u s, c near 1/z, r = c (z + d) - 1.

    d stands for d 2^-k. z = high + low with 32 and 21 bits: high c, high c - 1 and low c are exact. r rounds once,
    with d twice, by 2^-62 for |r| < 2^-8; never where c = 1, k = 0: there r = s - 1 or, with d, the x of log1p
    itself. The series stops r^9/9 short and r^2 (...) rounds by 1.55 u r^2. k ln2_high - log_high c is a multiple of
    2^-42 below 2^11, exact; the low parts bring 2^-84. c = 1, k = 0: |r| < 2^-7: (1 + 1.55 |r|) u + r^8/9: 1.03 u.
    Other bins: the sum r + q rounds by 2^-62; against the least |log| of the bin 0.0039: 2.01 u, with d 2.50 u (where
    s > 1: 1.51 u, 1.76 u), all taken over the table; k <> 0: 1.04 u.
    """
    bits = _bits(s)
    t = bits - tables.LOG_START
    k, j = t >> 52, (t >> 45) & 127
    z = bits - (k << 52)
    high = (z & -(1 << 21)).view(np.float64)
    low = z.view(np.float64) - high
    c = tables.LOG_FACTOR[j]
    r = (high * c - 1.0) + low * c
    if d is not None:
        r = r + d * _power_of_two(-np.minimum(k, 200)) * c
    q = r * r * _horner(r, _LOG1P)
    k = (k + shift).astype(np.float64)
    return (k * tables.LN2_HIGH + tables.LOG_HIGH[j]) + (r + (q + (k * tables.LN2_LOW + tables.LOG_LOW[j])))


def _log(x):
    """A subnormal x is scaled by 2^54 first."""
    tiny = x < 2.0**-1022
    y = _log_sum(np.where(tiny, x * 2.0**54, x), None, np.where(tiny, -54, 0))
    return _at_edges(y, x, 0.0)


def _log1p(x):
    """s + d = 1 + x exactly (TwoSum)."""
    s = 1.0 + x
    back = s - 1.0
    y = _log_sum(s, (1.0 - (s - back)) + (x - back))
    return np.copysign(_at_edges(y, x, -1.0), x)


def _at_edges(y, x, edge):
    y = np.where(x > edge, y, np.where(x == edge, -np.inf, np.nan))
    return np.where(x == np.inf, np.inf, y)


# --- sigmoid, tanh, softplus ----------------------------------------------------------------------


def _sigmoid(x):
    """1 / (1 + t) or t / (1 + t), t = exp(-|x|) within 1.03 u.

    t contributes at most 1.03 u / (1 + t), the sum u / (1 + t), the quotient u: 3.03 u for x < 0, 2.03 u for x >= 0.
    """
    t = _exp(-np.abs(x))
    return np.where(x < 0.0, t, 1.0) / (1.0 + t)


def _tanh(x):
    """-t / (2 + t), t = expm1(-2 |x|): the error of t times 2 / (2 + t), then u / (2 + t) and u.

    k = 0: 1.06 u 1.003 + 1.5 u; k = -1: 4.12 u 1.003 + 1.51 u = 5.65 u; less and less below, 4.1 u in the end.
    """
    t = _expm1(-2.0 * np.abs(x))
    return np.copysign(t / (2.0 + t), x)


def _softplus(x):
    """max(x, 0) + log1p(t), t = exp(-|x|) <= 1: 3.8 u.

    1.03 u from t (condition t / ((1 + t) log1p t) <= 1), 1.76 u from log1p above 0, u for the sum.
    """
    return np.maximum(x, 0.0) + _log1p(_exp(-np.abs(x)))


# --- erf, erfc ------------------------------------------------------------------------------------


def _erf_near(x):
    """x + x w for |x| <= 0.75, w = 2/sqrt(pi) - 1 - x^2 (...), |w| < 0.129.

    The series stops below 2^-57.5. w is off by 0.91 u: 1/8 each for its first constant, the last product and the last
    sum, 0.21 for x^2, 0.32 for the inner sum. Then |w| u and u |1 + w|, 1 + w > 0.948: (0.91 + 0.129 + 0.05) / 0.948
    + 1 = 2.15 u.
    """
    return x + x * _horner(x * x, tables.ERF_SERIES)


def _erfc_far(x):
    """e^(-x^2) (e^(x^2) erfc(x)) for x in [0.75, 28]: x^2 = square + low, both factors by table.

    high^2 has 52 bits; low < 2^-15.2 rounds by 2^-67. h = x - centre is exact, |h| a_1 < 0.02 a_0: the polynomial is
    off by u for a_0, u for its last sum, 0.07 u within, 0.02 u for the terms from h^10 on. 1.03 u +
    2.09 u + u: 4.12 u.
    """
    high = (_bits(x) & -(1 << 27)).view(np.float64)
    square, low = high * high, (x - high) * (x + high)
    e, head, body = _exp_parts(-square, -low)
    i = np.clip((_bits(x + 1.0) >> 47) - ((0x3FF << 5) + tables.ERFC_FIRST), 0, tables.ERFC_TAYLOR.shape[1] - 1)
    h = x - tables.ERFC_TAYLOR[0][i]
    y = (head + body) * _horner(h, [column[i] for column in tables.ERFC_TAYLOR[1:]])
    half = e >> 1
    return y * _power_of_two(half) * _power_of_two(e - half)


def _erf(x):
    """Far out 1 - erfc: 4.12 u 0.289 / 0.711 + 0.71 u = 2.4 u; near 2.15 u."""
    a = np.abs(x)
    far = 1.0 - _erfc_far(np.minimum(np.maximum(a, 0.75), 28.0))
    return np.where(a < 0.75, _erf_near(x), np.copysign(far, x))


def _erfc(x):
    """Far out 4.12 u; near, worst at 0.75: 5.3 u.

    There erf is off by (0.91 x + |x w| + 0.04) u + 2^-54 = 1.26 u, and erfc > 0.2888 rounds by 2^-55.
    """
    a = np.abs(x)
    far = _erfc_far(np.minimum(np.maximum(a, 0.75), 28.0))
    return np.where(a < 0.75, 1.0 - _erf_near(x), np.where(x < 0.0, 2.0 - far, far))


# --- the functions: float64 arrays of any shape in and out ----------------------------------------


def exp(x):
    """e^x; 0 and inf at the infinities."""
    return _blockwise(_exp, x)


def expm1(x):
    """e^x - 1."""
    return _blockwise(_expm1, x)


def log(x):
    """Natural logarithm; -inf at either zero, NaN below."""
    return _blockwise(_log, x)


def log1p(x):
    """log(1 + x); -inf at -1, NaN below."""
    return _blockwise(_log1p, x)


def sigmoid(x):
    """1 / (1 + e^-x)."""
    return _blockwise(_sigmoid, x)


def tanh(x):
    """(e^2x - 1) / (e^2x + 1)."""
    return _blockwise(_tanh, x)


def softplus(x):
    """log(1 + e^x)."""
    return _blockwise(_softplus, x)


def erf(x):
    """2/sqrt(pi) times the integral of e^(-t^2) from 0 to x."""
    return _blockwise(_erf, x)


def erfc(x):
    """1 - erf(x), accurate also where erf(x) is nearly 1."""
    return _blockwise(_erfc, x)
