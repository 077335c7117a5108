"""The grouped product and its two backward products, expert by expert.   Spec 3.1, 5.4

Rows of an expert lie together: rows expert_offsets[e] .. expert_offsets[e+1] belong to expert e. Weights are an array
(E, M, K), or anything with a `shape` that gives expert e's (M, K) array when called as w(e): a memory map, a recipe, a
checkpoint. Their gradient goes into an array, or into a sink with take(e, d_w). Each expert is visited once.
"""

from itertools import pairwise

import numpy as np

from .refusals import require


def grouped_matmul(name, x_rows, w, expert_offsets, bias, num):
    """out[n] = w[e(n)] x[n] + bias[e(n)].   Spec 3.1

    x_rows (N, K), w (E, M, K), bias (E, M) or None -> (N, M)
    """
    if is_at_once(num, w):
        return num.contract(name, x_rows, w, expert_offsets, bias)
    out = np.zeros_like(x_rows, shape=(len(x_rows), w.shape[1]), order="C")
    for e, rows in _experts_with_rows(expert_offsets):
        (own,) = _of_all(name, [w], e, num)
        out[rows] = num.contract(name, x_rows[rows], own, bias=None if bias is None else bias[e])
    return out


def grouped_matmul_backward_x(name, pairs, expert_offsets, num):
    """out[n] = sum over the pairs of w[e(n)]^T d[n]: one stage, the first pair's terms first.   Spec 5.4

    pairs [(d_rows (N, M), w (E, M, K)), ...] -> (N, K)
    """
    if is_at_once(num, *(w for _, w in pairs)):
        return num.contract_backward_x(name, pairs, expert_offsets)
    out = np.zeros_like(pairs[0][0], shape=(len(pairs[0][0]), pairs[0][1].shape[2]), order="C")
    for e, rows in _experts_with_rows(expert_offsets):
        own = _of_all(name, [w for _, w in pairs], e, num)
        out[rows] = num.contract_backward_x(name, [(d[rows], w) for (d, _), w in zip(pairs, own, strict=True)])
    return out


def grouped_matmul_backward_w(name, d_rows, x_rows, expert_offsets, into, num):
    """d_w[e] = sum over the rows n of e of d[n] x[n]^T, exactly +0 for an expert without rows.   Spec 5.4

    d_rows (N, M), x_rows (N, K) -> (E, M, K); with `into`: added to that array, or given to that sink (then the sink is
    returned), but for the experts of which it says that it needs them no more
    """
    if into is None or isinstance(into, np.ndarray):
        return num.contract_backward_w(name, d_rows, x_rows, expert_offsets, acc=into)
    needs = getattr(into, "needs", lambda e: True)
    for e, rows in enumerate(_all(expert_offsets)):
        if needs(e):
            into.take(e, num.contract_backward_w(name, d_rows[rows], x_rows[rows]))
    return into


def bias_gradient(name, d_rows, expert_offsets, into, num):
    """d_b[e] = sum over the rows n of e of d[n], exact and rounded once.   Spec 5.4

    d_rows (N, M) -> (E, M)
    """
    return num.sum_rows(name, d_rows, expert_offsets, into)


def is_at_once(num, *weights):
    """Whether one contraction takes all experts.   Spec 3.1"""
    arrays = all(isinstance(w, np.ndarray) for w in weights)
    return arrays or getattr(num, "takes_codes", lambda *weights: False)(*weights)


def _of_all(name, weights, e, num):
    """Expert e's weights: codes where the engine reads all of them, else numbers."""
    if all(hasattr(w, "one") for w in weights):
        own = [w.one(e) for w in weights]
        if is_at_once(num, *own):
            return own
    return [_of(name, w, e) for w in weights]


def _of(name, w, e):
    """Expert e's weights. Raises TypeError or ValueError for what a source should not have given."""
    if isinstance(w, np.ndarray):
        return w[e]
    made, argument, fix = w(e), f"{name}, expert {e}", "correct the source of the weights"
    is_array = isinstance(made, np.ndarray)
    require(is_array, TypeError, argument, "a NumPy array", type(made).__name__, fix)
    wide_enough = made.dtype in (np.float32, np.float64) and made.dtype.isnative
    require(wide_enough, TypeError, argument, "native float32 or float64", made.dtype.str, fix)
    shape = tuple(w.shape[1:])
    require(made.shape == shape, ValueError, argument, f"shape {shape}", made.shape, fix)
    return made


def _all(offsets):
    return [slice(int(a), int(b)) for a, b in pairwise(offsets)]


def _experts_with_rows(offsets):
    return [(e, rows) for e, rows in enumerate(_all(offsets)) if rows.stop > rows.start]
