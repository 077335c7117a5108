"""The tables of `elementary`, made of integers at import: no library function has a hand in them."""

from fractions import Fraction
from math import isqrt

import numpy as np

from .fixed_point import fixed_ln2, fixed_log, fixed_pi

_Q = 96  # integers are in units of 2^-96


def _to_float(n, q=_Q):
    return n / (1 << q)


def _high_and_low(n, keep, q=_Q):
    """n 2^-q as a multiple of 2^-keep plus a float64 remainder."""
    high = (n + (1 << q - keep - 1) >> q - keep) << q - keep
    return _to_float(high, q), _to_float(n - high, q)


def _powers_of_two():
    """2^(j/64), j = 0..63, as float64 head (nearest) and tail."""
    root = 2 << _Q
    for _ in range(6):
        root = isqrt(root << _Q)
    power, rows = 1 << _Q, []
    for _ in range(64):
        head = _to_float(power)
        rows.append((head, _to_float(power - (int(head * 2.0**52) << _Q - 52))))
        power = power * root >> _Q
    return np.array(rows).T.copy()


EXP_HEAD, EXP_TAIL = _powers_of_two()
LN2_64_HIGH, LN2_64_LOW = _high_and_low(fixed_ln2(_Q) >> 6, 41)  # the high part has 35 bits
PER_LN2 = _to_float((64 << 2 * _Q) // fixed_ln2(_Q))


def _logarithms():
    """Per bin of z in [0.6875, 1.375): c near 1/z with 21 bits, -ln c as a multiple of 2^-42 and a remainder.

    Both bins that touch 1 have c = 1.
    """
    rows = []
    for j in range(128):
        start = (LOG_START >> 45) + j << 45
        low, high = np.array([start, start + (1 << 45)]).view(np.float64)
        c = 1.0 if 1.0 in (low, high) else float(np.rint(2.0**21 / (low + high))) / 2.0**20
        rows.append((c, *(_high_and_low(-_log_of(c), 42) if c != 1.0 else (0.0, 0.0))))
    return np.array(rows).T.copy()


def _log_of(c):
    n, q, _ = fixed_log(Fraction(c), _Q)
    return n >> q - _Q


LOG_START = 0x3FE6000000000000  # 0.6875
LOG_FACTOR, LOG_HIGH, LOG_LOW = _logarithms()
LN2_HIGH, LN2_LOW = _high_and_low(fixed_ln2(_Q), 42)


def _erfcx_taylor():
    """Per interval of v = x + 1 (32 a binade, x from 0.75 to 31): centre, then the Taylor coefficients about it."""
    pi = fixed_pi(_Q)
    per_root_pi = (1 << 2 * _Q) // isqrt(pi << _Q)
    rows = []
    for i in range(ERFC_FIRST, 32 * 5):
        c = (65 + 2 * (i % 32)) * 2.0 ** (i // 32 - 6) - 1.0
        rows.append((c, *(_to_float(n) for n in _iterated_erfc(c, per_root_pi))))
    return np.array(rows).T.copy()


def _iterated_erfc(c, per_root_pi):
    """Taylor coefficients a_n of e^(x^2) erfc(x) at c.

    e^(x^2) erfc(x) obeys y' = 2 x y - 2 / sqrt(pi), so t_n = |a_n| obeys t_{n-1} = c t_n + (n + 1)/2 t_{n+1} with
    t_{-1} = 1 / sqrt(pi): a positive continued fraction for t_n / t_{n-1}, run downwards.
    """
    centre, ratio, ratios = int(c * 64) << _Q - 6, 0, []
    for n in range(ERFC_DEGREE + 20 + int(350 / (c * c)), 0, -1):
        ratio = (1 << 2 * _Q) // (centre + (n * ratio >> 1))
        if n <= ERFC_DEGREE + 1:
            ratios.append(ratio)
    t, coefficients = per_root_pi, []
    for n in range(ERFC_DEGREE + 1):
        t = t * ratios[-1 - n] >> _Q
        coefficients.append(-t if n % 2 else t)
    return coefficients


ERFC_DEGREE = 9
ERFC_FIRST = 24
ERFC_TAYLOR = _erfcx_taylor()


def _erf_series():
    """2/sqrt(pi) (-1)^n / (n! (2n+1)), n = 0..14, the first less 1."""
    two_per_root_pi = (2 << 2 * _Q) // isqrt(fixed_pi(_Q) << _Q)
    rows, factorial = [_to_float(two_per_root_pi - (1 << _Q))], 1
    for n in range(1, 15):
        factorial *= -n
        rows.append(two_per_root_pi / (factorial * (2 * n + 1) << _Q))
    return tuple(rows)


ERF_SERIES = _erf_series()
