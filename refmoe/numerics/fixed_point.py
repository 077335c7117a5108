"""Numbers m 2^e and elementary functions summed in integers: the floor under `precise` and the tables of `elementary`.

A triple (n, q, err) stands for a real number strictly between (n - err) 2^-q and (n + err) 2^-q, where q may be any
integer at all; every `err` is justified where it is set, with room to spare, for `bits` up to 4000. `bits` is the
relative precision asked for, the working precision is GUARD bits more, so that err 2^-q stays below 2^-(bits + 8) of
the value.
"""

from fractions import Fraction
from functools import lru_cache
from math import isqrt

import numpy as np

GUARD = 40  # working bits beyond those asked for


def integer_root(n, p):
    """The largest integer r with r^p <= n, by Newton's steps from above."""
    if p == 2:
        return isqrt(n)
    r = 1 << -(-n.bit_length() // p)
    while r**p > n:
        r = ((p - 1) * r + n // r ** (p - 1)) // p
    return r


class Dyadic:
    """m 2^e, of any integers m and e. Products and comparisons are exact, and never shift by a difference of sizes."""

    __slots__ = ("m", "e")

    def __init__(self, m, e=0):
        self.m, self.e = m, e

    @property
    def top(self):
        """t with 2^(t-1) <= |value| < 2^t, of a number that is not zero."""
        return self.m.bit_length() + self.e

    def __repr__(self):
        return f"{self.m / (1 << self.m.bit_length())}*2**{self.top}"

    def __neg__(self):
        return Dyadic(-self.m, self.e)

    def __abs__(self):
        return Dyadic(abs(self.m), self.e)

    def __mul__(self, other):
        """Times a Dyadic or an int."""
        if isinstance(other, Dyadic):
            return Dyadic(self.m * other.m, self.e + other.e)
        return Dyadic(self.m * other, self.e)

    __rmul__ = __mul__

    def __eq__(self, other):
        return _order(self, other) == 0

    def __lt__(self, other):
        return _order(self, other) < 0

    def __le__(self, other):
        return _order(self, other) <= 0

    def __gt__(self, other):
        return _order(self, other) > 0

    def __ge__(self, other):
        return _order(self, other) >= 0

    __hash__ = None


def _order(a, b):
    """An integer of the sign of a - b; b a Dyadic or any real number but NaN. Only numbers of one size are shifted."""
    if not isinstance(b, Dyadic):
        if isinstance(b, (float, np.floating)) and np.isinf(b):
            return -1 if b > 0 else 1
        b = as_fraction(b)
        a, b = Dyadic(a.m * b.denominator, a.e), Dyadic(b.numerator)
    if not (a.m > 0 < b.m or a.m < 0 > b.m):
        return a.m - b.m
    if gap := a.top - b.top:
        return gap if a.m > 0 else -gap
    shift = a.e - b.e
    return (a.m << shift) - b.m if shift >= 0 else a.m - (b.m << -shift)


def as_fraction(number):
    """The exact value of a Fraction, an int, a finite float or a Dyadic (whose exponent is written out)."""
    if isinstance(number, Fraction):
        return number
    if isinstance(number, Dyadic):
        if number.e >= 0 or not number.m:
            return Fraction(number.m << number.e if number.m else 0)
        return Fraction(number.m, 1 << -number.e)
    return Fraction(int(number)) if isinstance(number, (int, np.integer)) else Fraction(float(number))


# Directed rounding: each result is at most the exact one, and - f(-x) at least.


def below(number, bits):
    """The largest Dyadic not above the number that has `bits` significant bits (one more where a negative carries)."""
    if isinstance(number, Dyadic):
        m, e = number.m, number.e
    else:
        number = as_fraction(number)
        m, d = number.numerator, number.denominator
        e = 1 - d.bit_length()
        if d & (d - 1):
            e += m.bit_length() - bits - 1
            m = (m << -e) // d if e <= 0 else m // (d << e)
    extra = m.bit_length() - bits
    return Dyadic(m >> extra, e + extra) if extra > 0 else Dyadic(m, e)


def above(number, bits):
    return -below(-number, bits)


def sum_below(a, b, bits):
    """a + b, or at most a unit in the place bits + 1 of the larger below it, where the smaller does not reach there."""
    if not (a.m and b.m):
        return a if a.m else b
    if a.top < b.top:
        a, b = b, a
    longer = max(0, bits + 2 - a.m.bit_length())
    if b.top <= a.e - longer:
        return Dyadic((a.m << longer) - (b.m < 0), a.e - longer)
    shift = a.e - b.e
    return Dyadic((a.m << shift) + b.m, b.e) if shift >= 0 else Dyadic(a.m + (b.m << -shift), a.e)


def inverse_below(a, bits):
    """1 / a, rounded down, of a number that is not zero."""
    shift = bits + a.m.bit_length()
    return Dyadic((1 << shift) // a.m, -shift - a.e)


# Constants and functions.


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
    """e^x: k = rint(x / ln2), r = (x - k ln2) / 2^8, e^r by its series, squared 8 times, times 2^k.

    From |x| = 2^16 on, x and ln2 have 64 j spare bits, so that |x| 2^-64j < 2^16. Error in units of 2^-w: r off by
    (|k| + 1) / 2^(8 + 64j) + 1 < 2^9 + 2 with |k| 2^-64j < 2^17; |r| < 2^-9, hence at most w / 9 terms, each off by 2:
    below 1500 together. Each squaring doubles the relative error and adds 1: below 2^8 1501 e^|r| < 2^20.
    """
    w = bits + GUARD
    spare = max(0, exponent(x) + 48 >> 6 << 6)
    x, ln2 = to_fixed(x, w + spare), fixed_ln2(w + spare)
    k = (2 * x + ln2) // (2 * ln2)
    r = x - k * ln2 >> 8 + spare
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
    """e^x - 1 for 2^-(bits+1) < |x| < 1/2: its series, at a precision relative to x.

    At most 1000 terms, each off by 2.
    """
    e = -exponent(x)
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


def fixed_log(x, bits, scale=0):
    """ln(2^scale x) for x > 0: without a scale |x - 1| > 2^-(bits+1), with one |2^scale x - 1| > 1/8.

    Within 1/8 of 1: 2 atanh((x - 1) / (x + 1)) at a precision relative to x - 1. Elsewhere x = 2^k m with 1/2 < m <
    2, and four square roots bring m to within 0.045 of 1: 32 atanh, each of its w / 11 terms off by 3 and its
    argument by 5: below 2^19 together, where |ln x| > 0.1; plus (k + scale) ln2, off by |k + scale|.
    """
    if not scale and abs(x - 1) < Fraction(1, 8):
        t = (x - 1) / (x + 1)
        w = bits + GUARD - exponent(t)
        return 2 * fixed_atanh(to_fixed(t, w), w), w, 1 << 14
    w = bits + GUARD
    k = exponent(x)
    m = to_fixed(x / (1 << k) if k >= 0 else x * (1 << -k), w)
    for _ in range(4):
        m = isqrt(m << w)
    one = 1 << w
    log = 32 * fixed_atanh((m - one << w) // (m + one), w) + (k + scale) * fixed_ln2(w)
    return log, w, (1 << 19) + abs(k + scale)


def fixed_sigmoid(x, bits):
    """e^x / (1 + e^x) for x < 0.

    n is off by err, the denominator (at least 1) by err + 1 units of 2^-w, n < 1.5 2^w: the quotient by less than
    4 err.
    """
    n, q, err = fixed_exp(x, bits)
    w = bits + GUARD
    return (n << w) // ((1 << w) + (n >> q - w)), q, err << 4


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
