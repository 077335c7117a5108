"""Elementary functions summed in integers: the floor under `precise` and under the tables of `elementary`.

A triple (n, q, err) stands for a real number strictly between (n - err) 2^-q and (n + err) 2^-q; every `err` is
justified where it is set, with room to spare, for `bits` up to 4000. `bits` is the relative precision asked for, the
working precision is GUARD bits more, so that err 2^-q stays below 2^-(bits + 8) of the value.
"""

from fractions import Fraction
from functools import lru_cache
from math import isqrt

GUARD = 40  # working bits beyond those asked for
HUGE = 1 << 16  # an argument of exp beyond this many is answered by a limit, not computed


@lru_cache(maxsize=64)
def fixed_ln2(q):
    """ln 2 in units of 2^-q, off by less than 1: 18 atanh(1/26) - 2 atanh(1/4801) + 8 atanh(1/8749), 24 spare bits."""
    return 18 * _arc(26, q + 24, 1) - 2 * _arc(4801, q + 24, 1) + 8 * _arc(8749, q + 24, 1) >> 24


@lru_cache(maxsize=64)
def fixed_pi(q):
    """pi in units of 2^-q, off by less than 1: 16 atan(1/5) - 4 atan(1/239), 24 spare bits."""
    return 16 * _arc(5, q + 24, -1) - 4 * _arc(239, q + 24, -1) >> 24


def _arc(a, q, sign):
    """atanh(1/a) (sign 1) or atan(1/a) (sign -1) in units of 2^-q; each of its at most q / 4 terms is off by 2."""
    power, total, i, s = (1 << q) // a, 0, 1, 1
    while power:
        total += s * (power // i)
        power //= a * a
        i += 2
        s *= sign
    return total


def to_fixed(value, q):
    """A Fraction in units of 2^-q, rounded down."""
    return (value.numerator << q) // value.denominator


def exponent(value):
    """An integer e with 2^(e-1) < |value| < 2^(e+1)."""
    return abs(value.numerator).bit_length() - value.denominator.bit_length()


def fixed_exp(x, bits):
    """e^x for |x| <= HUGE: k = rint(x / ln2), r = (x - k ln2) / 2^8, e^r by its series, squared 8 times, times 2^k.

    Error in units of 2^-w: r off by (|k| + 1) / 2^8 + 1 < 2^9 + 2 with |k| < 2^17; |r| < 2^-9, hence at most w / 9
    terms, each off by 2: below 1500 together. Each squaring doubles the relative error and adds 1: below 2^8 1501
    e^|r| < 2^20.
    """
    w = bits + GUARD
    x, ln2 = to_fixed(x, w), fixed_ln2(w)
    k = (2 * x + ln2) // (2 * ln2)
    r = x - k * ln2 >> 8
    total = term = 1 << w
    i = 1
    while term > 1 or term < -1:
        term = (term * r >> w) // i
        total += term
        i += 1
    for _ in range(8):
        total = total * total >> w
    return total, w - k, 1 << 20


def fixed_expm1(x, bits):
    """e^x - 1 for 2^-(bits+1) < |x| <= HUGE; the series, for |x| < 1/2, at a precision relative to x.

    Error: |x| > 1/4 that of fixed_exp, relative to at least 0.22. Else at most 1000 terms, each off by 2.
    """
    e = -exponent(x)
    if e < 2:
        n, q, err = fixed_exp(x, bits + 4)
        return (n - (1 << q), q, err) if q >= 0 else ((n << -q) - 1, 0, err << -q)
    w = bits + GUARD + e
    x = to_fixed(x, w)
    total = term = x
    i = 2
    while term > 1 or term < -1:
        term = (term * x >> w) // i
        total += term
        i += 1
    return total, w, 1 << 12


def fixed_atanh(t, w):
    """atanh(t 2^-w) in units of 2^-w, for |t| 2^-w < 1/14: at most w / 7 terms, each off by less than 3."""
    square = t * t >> w
    total, i = t, 1
    while t > 1 or t < -1:
        t = t * square >> w
        i += 2
        total += t // i
    return total


def fixed_log(x, bits):
    """ln x for x > 0, |x - 1| > 2^-(bits+1).

    Within 1/8 of 1: 2 atanh((x - 1) / (x + 1)) at a precision relative to x - 1. Elsewhere x = 2^k m with 1/2 < m <
    2, and four square roots bring m to within 0.045 of 1: 32 atanh, each of its w / 11 terms off by 3 and its
    argument by 5, plus k ln2, off by |k|: below 2^20 together for |k| < 2^19, where |ln x| > 0.1.
    """
    if abs(x - 1) < Fraction(1, 8):
        t = (x - 1) / (x + 1)
        w = bits + GUARD - exponent(t)
        return 2 * fixed_atanh(to_fixed(t, w), w), w, 1 << 14
    w = bits + GUARD
    k = exponent(x)
    m = to_fixed(x / (1 << k) if k >= 0 else x * (1 << -k), w)
    for _ in range(4):
        m = isqrt(m << w)
    one = 1 << w
    return 32 * fixed_atanh((m - one << w) // (m + one), w) + k * fixed_ln2(w), w, 1 << 20


def fixed_sigmoid(x, bits):
    """1 / (1 + e^-x) for x > 0, e^x / (1 + e^x) for x < 0, |x| <= HUGE.

    n is off by err, the denominator (at least 1) by err + 1 units of 2^-w, n < 1.5 2^w: the quotient by less than
    4 err.
    """
    n, q, err = fixed_exp(-abs(x), bits)
    w = bits + GUARD
    one = 1 << w
    below = one + (n >> q - w)
    return (one << w) // below if x > 0 else (n << w) // below, w if x > 0 else q, err << 4


def fixed_tanh(x, bits):
    """y / (2 - y) with y = 1 - e^-2x, for x > 0; the slope of y / (2 - y) is at most 2 for y in (0, 1)."""
    n, q, err = fixed_expm1(-2 * x, bits)
    return (-n << q) // ((2 << q) + n), q, 4 * err + 4


def fixed_erf_sum(x, bits):
    """sum_n (2 x^2)^n / (1 3 5 .. (2n+1)) for 0 < x, x^2 <= 2^12: positive terms, fewer than 2^14 of them.

    A term's own error of 2 units is multiplied on its way by ratios of terms, which sum to at most the total; the
    error of 2 x^2 costs at most 2 totals: below 2^16 totals.
    """
    w = bits + GUARD + 8
    double_square = to_fixed(2 * x * x, w)
    total = term = 1 << w
    i = 3
    while term:
        term = (term * double_square >> w) // i
        total += term
        i += 2
    return total, w, (total >> w - 24) + (1 << 20)


def fixed_erfc_sum(x, bits):
    """sum_n (-1)^n (2n-1)!! / (2 x^2)^n = erfc(x) x sqrt(pi) e^(x^2), enveloped by its terms, up to one below 2^-w.

    There is one if 4 x^2 > 3 (bits + 80): the least term is near e^(-x^2) < 2^(-1.08 (bits + 80)). Fewer than 2^12
    terms, each off by 1 more than the one before: below 2^23, and the first omitted term below 1.
    """
    w = bits + GUARD
    inverse = to_fixed(1 / (2 * x * x), w)
    total = term = 1 << w
    i = 1
    while term:
        term = -(term * inverse * i >> w)
        total += term
        i += 2
    return total, w, 1 << 24
