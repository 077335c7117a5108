"""Permute and combine, and back.   Spec 2.3, 2.4, 5.6"""

import numpy as np

from ..numerics import Gathered, Named, by_engine
from .plan import row_tokens, row_weights


def permute(x, plan, num=None):
    """x_rows[r] = x[token of row r]: a copy of bits.   Spec 2.3

    x (T, D), num whose engine makes the copy, or None -> x_rows (N, D)
    """
    made = by_engine(num, "permute", x, plan.row_slot, plan.slot_row.shape[1])
    return x[row_tokens(plan)] if made is None else made


def permute_backward(d_x_rows, plan, num, name="d_x_experts"):
    """d_x[t] = sum over the rows of t, exact and rounded once; +0 without rows.   Spec 5.6

    d_x_rows (N, D) -> d_x_experts (T, D)
    """
    # x_rows[r] = x[token of row r]
    return num.sum(name, _by_slot(d_x_rows, plan))


def combine(y_rows, topk_weights, plan, num, name="routed", more=()):
    """routed[t] = sum_k topk_weights[t, k] y_rows[row of (t, k)], exact and rounded once.   Spec 2.4

    y_rows (N, D), topk_weights (T, K), or None for weights of 1; more: further terms of the sum (3.8) -> (T, D)
    """
    at_once = None if topk_weights is None or more else getattr(num, "weighted_sum", None)
    made = at_once and at_once(name, y_rows, topk_weights, plan.slot_row)
    if made is not None:
        return made
    parts = _by_slot(y_rows, plan)
    if topk_weights is None:
        return num.sum(name, [*parts, *more])
    return num.sum(name, [*((topk_weights[:, k, None], part) for k, part in enumerate(parts)), *more])


def combine_backward(d_routed, y_rows, topk_weights, plan, num, name="d_y_rows", residual=None):
    """d_y_rows = w d_routed of the row's token;  d_topk_weights = <d_routed, y_row>, +0 where dropped.   Spec 5.6

    d_routed (T, D), y_rows (N, D), topk_weights (T, K) -> d_y_rows (N, D), d_topk_weights (T, K). With a residual x
    (T, D), which the weights take from routed (3.8): d_topk_weights = <d_routed, y_row> - <d_routed, x>, one stage.
    """
    # routed[t] = sum_k topk_weights[t, k] (y_rows[row of (t, k)] - x[t])
    token = row_tokens(plan)
    d_y_rows = num.sum(name, [(row_weights(topk_weights, plan)[:, None], Gathered(d_routed, token))])
    d_rows = permute(d_routed, plan, num)
    if residual is not None:
        d_rows = np.concatenate([d_rows, -d_rows], axis=1)
        y_rows = np.concatenate([y_rows, permute(residual, plan, num)], axis=1)
    return d_y_rows, slot_values(num.contract_rows("d_topk_weights", d_rows, y_rows), plan)


def kept_weights(topk_weights, plan):
    """The weights of slots that have a row, +0 elsewhere.   Spec 2.4

    topk_weights (T, K) -> (T, K)
    """
    return np.where(plan.slot_row >= 0, topk_weights, np.zeros_like(topk_weights))


def weighted_rows(name, rows, weights, num):
    """weights[r] rows[r], rounded once.   Spec 3.3

    rows (N, D), weights (N,) -> (N, D)
    """
    return num.evaluate(name, Named("scaled_rows", lambda m, w, x: w * x), weights[:, None], rows)


def slot_values(values, plan):
    """values (N,) by row -> (T, K) by slot, +0 where no row.   Spec 2.1"""
    out = np.zeros_like(values, shape=plan.slot_row.size)
    out[plan.row_slot] = values
    return out.reshape(plan.slot_row.shape)


def _by_slot(rows, plan):
    """K arrays (T, D): the row of each token's k-th slot, +0 where it has none."""
    return [Gathered(rows, plan.slot_row[:, k]) for k in range(plan.slot_row.shape[1])]
