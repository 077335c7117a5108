"""Weights of more than 29 bits: their products with float32 numbers have more than binary64 holds.   Spec 6.2, 6.3

The exact product of a code and its scales has up to 31 bits (int8 with float32 scales, NVFP4). Such a weight is split
into two parts of at most 29 bits, whose products with a float32 number are exact again.
"""

import numpy as np

from .rounding import exact_value, expand, round_pair

_LOW = np.int64((1 << 24) - 1)  # the bits of a binary64 significand beyond the first 29


def is_wide(weights):
    """Is there a number of more than 29 significant bits among binary64 weights?"""
    bits = np.ascontiguousarray(weights).view(np.int64)
    return bool(((bits & _LOW != 0) & np.isfinite(weights)).any())


def split(weights):
    """(high, low) with high + low = weights, at most 29 bits each; low is 0 beside an infinity or NaN."""
    bits = np.ascontiguousarray(weights).view(np.int64)
    high = np.where(np.isfinite(weights), (bits & ~_LOW).view(np.float64), weights)
    with np.errstate(invalid="ignore"):
        return high, np.where(np.isfinite(weights), weights - high, 0.0)


def doubled(a, b):
    """(a', b') in binary64 with a' @ b' = a @ b, every product of theirs exact; a (R, L), b (L, C)."""
    a = a.astype(np.float64)
    return np.concatenate([a, _finite(a)], axis=1), np.concatenate(split(b), axis=0)


def chain(a, b, total):
    """total = fma(a_k, b_k, total) in float32, k ascending.   a (R, L) float32, b (L, C) wide, total (R, C) float32"""
    wide, (high, low) = a.astype(np.float64), split(b)
    rest = _finite(wide)
    with np.errstate(invalid="ignore"):
        for k in range(a.shape[1]):
            total = _fused(wide[:, k, None] * high[k], rest[:, k, None] * low[k], total)
    return total


def _finite(a):
    """`a` without its infinities and NaN, which the high parts have seen: none may meet a low part that is zero."""
    return np.where(np.isfinite(a), a, 0.0)


def _fused(first, second, c):
    """round(first + second + c) to float32, once; first is the greater part of a product, zero only if that is."""
    with np.errstate(all="ignore"):
        plain = first + c  # zeros by IEEE 754, infinities, NaN
        out, decided = round_pair(*expand([first, second, c.astype(np.float64)]), "float32")
        plainly = (first == 0) | ~np.isfinite(plain)
        out = np.where(plainly, plain, out).astype(np.float32)
    for at in zip(*np.nonzero(~decided & ~plainly), strict=True):
        out[at] = exact_value([float(term[at]) for term in (first, second, c)], "float32")
    return out
