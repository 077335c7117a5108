"""The three grouped products in NumPy: what C must match, bit for bit.   Spec 6.3

Every product is reduced to `out = a @ b` for one expert, contracted over L: a (R, L), b (L, C), plus an addend.
"""

from collections import Counter
from typing import NamedTuple

import numpy as np

from ..formats import canonical_nan, round_to
from .rounding import UNIT, exact_sum, exact_value, expand, round_pair, rounding_test, two_sum
from .terms import value_of
from .wide import chain, doubled, is_wide


class Rule(NamedTuple):
    """How a contraction is rounded."""

    profile: str  # exact, chain, float64
    format: str  # of the result
    force_tier: str | None = None  # exact only: send every output at least to "compensated" or "exact"


class NumpyEngine:
    """The reference engine. `calls` and `tiers` count what it did, for tests and reports."""

    name = "numpy"
    kernel = None
    threads = 1
    reads_codes = None

    def __init__(self):
        self.calls = Counter()
        self.tiers = Counter()

    def formula(self, rule, name, parameters, stored):
        """None: no formula is compiled; each is read by `Numerics`."""

    def grouped_matmul(self, rule, x_rows, w, offsets, bias=None, acc=None):
        """out[n, m] = sum_k x[n, k] w[e(n), m, k] (+ bias[e(n), m]) (+ acc[n, m])."""
        self.calls["grouped_matmul", self.kernel] += 1
        out = np.empty((x_rows.shape[0], w.shape[1]), x_rows.dtype)
        for e, rows in _segments(offsets):
            out[rows] = self._product(rule, x_rows[rows], w[e].T, _row(bias, e), _part(acc, rows))
        return out

    def grouped_matmul_backward_x(self, rule, pairs, offsets, acc=None):
        """out[n, k] = sum over the pairs, then over m, of d[n, m] w[e(n), m, k] (+ acc[n, k])."""
        self.calls["grouped_matmul_backward_x", self.kernel] += 1
        first_d, first_w = pairs[0]
        out = np.empty((first_d.shape[0], first_w.shape[2]), first_d.dtype)
        for e, rows in _segments(offsets):
            a = np.concatenate([d[rows] for d, _ in pairs], axis=1)
            b = np.concatenate([w[e] for _, w in pairs], axis=0)
            out[rows] = self._product(rule, a, b, None, _part(acc, rows))
        return out

    def grouped_matmul_backward_w(self, rule, d_rows, x_rows, offsets, acc=None):
        """out[e, m, k] = sum over the rows n of e, ascending, of d[n, m] x[n, k] (+ acc[e, m, k])."""
        self.calls["grouped_matmul_backward_w", self.kernel] += 1
        out = np.empty((len(offsets) - 1, d_rows.shape[1], x_rows.shape[1]), d_rows.dtype)
        for e, rows in _segments(offsets):
            out[e] = self._product(rule, d_rows[rows].T, x_rows[rows], None, _part(acc, e))
        return out

    def sum(self, rule, terms):
        """round(exact sum of the terms), each one or two factors (array, index or None)."""
        self.calls["sum", self.kernel] += 1
        with np.errstate(invalid="ignore", over="ignore", under="ignore"):
            values = [value_of(term, lambda array: np.asarray(array, np.float64)) for term in terms]
            return exact_sum(values, rule.format)  # a product of float32 is exact in float64

    def _product(self, rule, a, b, bias, acc):
        wide = rule.profile != "float64" and b.dtype == np.float64 and is_wide(b)
        if rule.profile == "exact":
            a, b = doubled(a, b) if wide else (a, b)
            return self._exact(rule, a.astype(np.float64), b.astype(np.float64), _addends(a, b, bias, acc))
        step = _chain if rule.profile == "chain" else _unfused
        return step(rule, a, b, bias, acc)

    def _exact(self, rule, a, b, addend):
        """round(exact a @ b + addend): tiers of rising cost, each taking what the one before left undecided."""
        with np.errstate(invalid="ignore", over="ignore"):
            approximate = a @ b  # products of float32 are exact in float64; any order will do, the bound covers it
            value, error = approximate, _bound(a, b)
            for part in addend:
                value, lost = two_sum(value, part)
                error = error + np.abs(lost)
            out, decided = rounding_test(value, error, rule.format)
        if rule.force_tier is None:
            self.tiers["rounding_test"] += int(decided.sum())
            decided = self._grid(a, b, addend, value, out, decided, rule)
        else:
            decided = ~np.isfinite(value)
            self.tiers["rounding_test"] += int(decided.sum())
        return self._compensated(a, b, addend, out, decided, rule)

    def _grid(self, a, b, addend, value, out, decided, rule):
        """If all products are multiples of 2^q and K max|a| max|b| < 2^(q + 53), the float64 sum is exact."""
        if decided.all() or addend or not _on_grid(a, b):
            return decided
        out[~decided] = round_to(value[~decided] + 0.0, rule.format)
        self.tiers["grid"] += int((~decided).sum())
        return np.ones_like(decided)

    def _compensated(self, a, b, addend, out, decided, rule):
        rows, columns = np.nonzero(~decided)
        for at in range(0, len(rows), 4096):
            r, c = rows[at : at + 4096], columns[at : at + 4096]
            terms = [np.zeros(len(r)), *(a[r].T * b[:, c]), *(part[r, c] for part in addend)]
            out[r, c] = self._few(terms, rule)
        return out

    def _few(self, terms, rule):
        done = np.zeros(len(terms[0]), bool)
        out = np.empty(len(done), np.float32)
        if rule.force_tier != "exact":
            out, done = round_pair(*expand(terms), rule.format)
        self.tiers["compensated"] += int(done.sum())
        self.tiers["exact"] += int((~done).sum())
        for i in np.nonzero(~done)[0]:
            out[i] = exact_value([float(term[i]) for term in terms], rule.format)
        return out


def _segments(offsets):
    return ((e, slice(int(offsets[e]), int(offsets[e + 1]))) for e in range(len(offsets) - 1))


def _row(array, e):
    return None if array is None else array[e]


def _part(array, index):
    return None if array is None else array[index]


def _addends(a, b, bias, acc):
    shape = (a.shape[0], b.shape[1])
    return [np.broadcast_to(part, shape).astype(np.float64) for part in (bias, acc) if part is not None]


def _bound(a, b):
    """|float64 sum - exact| for every order of summation: (L - 1) u |a_i| |b_j| by Cauchy-Schwarz, doubled."""
    terms = a.shape[1]
    if terms <= 1:
        return np.zeros((a.shape[0], b.shape[1]))
    norms = np.outer(np.sqrt((a * a).sum(axis=1)), np.sqrt((b * b).sum(axis=0)))
    return norms * (2.002 * terms * UNIT)


def _on_grid(a, b):
    """True if the products are multiples of one quantum and few enough for their sums to be exact in float64."""
    if not (np.isfinite(a).all() and np.isfinite(b).all()) or a.size == 0 or b.size == 0:
        return False
    quantum = _quantum(a) + _quantum(b)
    largest = float(np.abs(a).max()) * float(np.abs(b).max()) * a.shape[1]
    return largest == 0 or np.frexp(largest)[1] <= quantum + 53


def _quantum(array):
    """The largest q such that every element is a multiple of 2^q."""
    significand, exponent = np.frexp(array[array != 0])
    if significand.size == 0:
        return 0
    whole = np.ldexp(np.abs(significand), 53).astype(np.int64)
    trailing = np.frexp((whole & -whole).astype(np.float64))[1] - 1
    return int((exponent - 53 + trailing).min())


def fused_multiply_add(a, b, c):
    """round(a * b + c) to float32, one rounding.   Spec 6.3

    a, b, c float32, broadcast -> float32. The product is exact in float64; rounding the float64 sum again goes wrong
    only if that sum is a midpoint of float32 or below its normal range, and just those elements are repaired.
    """
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        product = a.astype(np.float64) * b.astype(np.float64)
        total = product + c
        suspicious = (total.view(np.int64) & 0x1FFFFFFF) == 0x10000000
        suspicious |= (np.abs(total) < 2.0**-126) & (total != 0)
        out = total.astype(np.float32)
    if suspicious.any():
        c = np.broadcast_to(c, total.shape)[suspicious].astype(np.float64)
        head, tail = two_sum(np.broadcast_to(product, total.shape)[suspicious], c)
        out[suspicious] = round_pair(head, tail, np.zeros_like(head), "float32")[0]
    return out


def _chain(rule, a, b, bias, acc):
    """acc = fma(a_k, b_k, acc), k ascending from +0 or from the accumulator; the bias last; then the format."""
    shape = (a.shape[0], b.shape[1])
    total = np.zeros(shape, np.float32) if acc is None else acc.astype(np.float32)
    if b.dtype == np.float64 and is_wide(b):
        total, a = chain(a, b, total), a[:, :0]
    for k in range(a.shape[1]):
        total = fused_multiply_add(a[:, k, None], b[None, k, :], total)
    with np.errstate(invalid="ignore", over="ignore"):
        total = total if bias is None else total + bias
    return canonical_nan(total) if rule.format == "float32" else round_to(total, rule.format)


def _unfused(rule, a, b, bias, acc):
    """acc = acc + (a_k * b_k) in binary64, k ascending; the bias last."""
    total = np.zeros((a.shape[0], b.shape[1])) if acc is None else acc.copy()
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        for k in range(a.shape[1]):
            total = total + a[:, k, None] * b[None, k, :]
        total = total if bias is None else total + bias
    return canonical_nan(total)
