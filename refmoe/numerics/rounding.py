"""Deciding how an exact real value rounds, from a float64 approximation of it.   Spec 6.3

A result is *decided* when both ends of the interval that must contain the exact value round to the same bits in the
format that will be stored. What a test cannot decide is passed on; nothing is ever guessed.
"""

import numpy as np

from ..formats import canonical_nan, round_to

UNIT = 2.0**-53  # unit roundoff of float64
_SLACK = 1.0 + 2.0**-30  # covers the roundings made while an error bound itself is computed


def two_sum(a, b):
    """s + r = a + b exactly, s = round(a + b), for finite operands in any order."""
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def rounding_test(value, error, name):
    """The exact value lies strictly within value -+ error (error 0: it is `value`).

    value, error float64 -> (carrier in format `name`, decided). Infinities and NaN in `value` are taken as they stand.
    """
    value = value + 0.0  # an exact zero is +0
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.where(error > 0, error * _SLACK + UNIT * np.abs(value), error)
        low, high = value - error, value + error
        # An end at zero is not reached: the exact value keeps the sign of the side it lies on.
        high = np.where((high == 0) & (value < 0), -0.0, high)
        low, high = round_to(low, name), round_to(high, name)
    finite = np.isfinite(value)
    bounded = finite & ~np.isnan(error)
    out = np.where(bounded, high, round_to(value, name))
    return out, np.asarray(same_bits(low, high) & bounded | ~finite)


def same_bits(a, b):
    """Element by element: the same value and the same sign of zero."""
    integer = np.uint64 if a.dtype == np.float64 else np.uint32
    return a.view(integer) == b.view(integer)


def round_pair(head, tail, error, name):
    """The exact value lies within (head + tail) -+ error, where head = round(head + tail).

    float64 arrays -> (carrier, decided). The head is moved to the odd neighbour on the tail's side (round to odd),
    which rounds to every format of at most 51 bits as the exact sum does.
    """
    head = head + 0.0
    low, high = _toward_odd(head, tail - error), _toward_odd(head, tail + error)
    low, high = round_to(low, name), round_to(high, name)
    near = error <= np.abs(head) * 2.0**-57  # the whole interval lies between the neighbours of the head
    finite = np.isfinite(head)
    out = np.where(finite, high, round_to(head, name))
    return out, same_bits(low, high) & near | ~finite


def _toward_odd(head, tail):
    bits = np.ascontiguousarray(head).view(np.int64)
    step = np.where((tail > 0) == (head > 0), 1, -1)
    move = (tail != 0) & (bits & 1 == 0) & np.isfinite(tail) & (head != 0)
    return np.where(move, bits + step, bits).view(np.float64)


def expand(terms):
    """head + tail = sum of the terms to within error; error 0 says exactly.

    terms: float64 arrays of one shape -> (head, tail, error). TwoSum keeps the error of each addition; the errors are
    summed the same way, and what that loses is bounded.
    """
    head = np.zeros(np.shape(terms[0]))
    carry, error = np.zeros_like(head), np.zeros_like(head)
    with np.errstate(invalid="ignore"):
        for term in terms:
            head, lost = two_sum(head, term)
            carry, lost = two_sum(carry, lost)
            error = error + np.abs(lost)
        total, tail = two_sum(head, carry)
    bad = ~np.isfinite(head)  # infinities and NaN have no error terms
    return np.where(bad, head, total), np.where(bad, 0.0, tail), np.where(bad, 0.0, error * _SLACK)


def exact_sum(terms, name):
    """round(exact sum of the terms) to the format `name`; the order of the terms cannot matter.   Spec 6.4

    terms: non-empty list of float64 arrays that broadcast to one shape -> carrier.
    """
    terms = np.broadcast_arrays(*terms)
    out, decided = round_pair(*expand(terms), name)
    for index in zip(*np.nonzero(~decided), strict=True):
        out[index] = exact_value([float(term[index]) for term in terms], name)
    return out


def exact_value(terms, name):
    """round(exact sum) of a list of finite Python floats, with correctly rounded sums as the last word."""
    from math import fsum  # correctly rounded for finite terms whose partial sums stay finite

    head = fsum(terms)
    tail = fsum([*terms, -head])
    out, _ = round_pair(np.array([head]), np.array([tail]), np.zeros(1), name)
    return out[0]


def sequential_sum(terms):
    """((+0 + t_1) + t_2) + ...: the unfused recurrence of the float64 profile.   Spec 6.4"""
    total = np.zeros(np.broadcast_shapes(*(np.shape(term) for term in terms)))
    for term in terms:
        total = total + term
    return canonical_nan(total)
