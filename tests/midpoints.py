"""Operands that put a product next to a midpoint of float32: p / q near a value, p odd, by continued fractions."""

import mpmath
import numpy as np

DIGITS = 60
BITS = 24  # of float32


def odd_neighbours(value):
    """(p, q), coprime, p odd of 25 bits, q at most 24, |value - p/q| < 1/q^2; value an mpf in [1, 2)."""
    p, q, before_p, before_q, rest = 1, 0, 0, 1, value
    while q < 1 << BITS:
        whole = int(mpmath.floor(rest))
        p, q, before_p, before_q = whole * p + before_p, whole * q + before_q, p, q
        if p % 2 and 1 << BITS <= p < 2 << BITS and q < 1 << BITS:
            yield p, q
        if rest == whole:
            break
        rest = 1 / (rest - whole)


def hard_products(function, arguments):
    """x, q, round(function(x) q) to float32: the exact products lie 2^-46 to 2^-60 of themselves from a midpoint.

    function of an mpf; x float32 -> three float32 arrays
    """
    rows = []
    with mpmath.workdps(DIGITS):
        for x in arguments:
            value = function(mpmath.mpf(float(x)))
            mantissa, exponent = mpmath.frexp(abs(value))
            for p, q in odd_neighbours(2 * mantissa):
                nearest = (p + (1 if 2 * mantissa * q > p else -1)) // 2
                rows.append((x, q, np.ldexp(nearest if value > 0 else -nearest, int(exponent))))
    return np.array(rows).T.astype(np.float32)
