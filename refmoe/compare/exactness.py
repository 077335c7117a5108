"""Sums that no order can spoil: every partial sum is a number of the accumulator.   Spec 7.12

If every product is a multiple of 2^q, q not below the least exponent, and S = sum |a b| <= 2^(q + p), then so is every
partial sum in any order, and p bits hold it: each implementation must give the same bits.
"""

import numpy as np

from ..formats import FORMATS
from .noted import NOTHING, last_bit

SAMPLE = 64  # elements of an operand that are looked at first: most operands are told by them


def adds_exactly(terms, size, bits, name, operands=None):
    """Is every partial sum exact, with significands of `bits` bits in the range of the format `name`?

    terms: tuples of one or two arrays, the factors of the products; size: the greatest S; operands: the bits an operand
    may have, or None for any.
    """
    row = FORMATS[name]
    if not size <= row.largest:  # not a number included
        return False
    for read in (lambda a: a.reshape(-1)[:SAMPLE], lambda a: a):
        least = min((sum(quantum(read(a)) for a in term) for term in terms), default=np.inf)
        if not _fits(size, least, bits, row.quantum):
            return False
        if operands and not all(significand(read(a)) <= operands for term in terms for a in term):
            return False
    return True


def _fits(size, least, bits, quantum):
    return size == 0 or (least >= quantum and np.log2(size) <= least + bits)


def quantum(values):
    """The greatest q such that every element is a multiple of 2^q; infinite where all are zero."""
    least = last_bit(values).min(initial=NOTHING)
    return least if least < NOTHING else np.inf


def significand(values):
    """The most bits that an element takes from its first to its last that is set."""
    exponents = np.where(values == 0, -np.inf, np.frexp(values)[1])
    return (exponents - np.where(values == 0, 0.0, last_bit(values))).max(initial=0.0)
