"""A balanced assignment, found by a solver outside the law and accepted by its proof.   Spec 1.10; BASE"""

from fractions import Fraction

import numpy as np

from ..refusals import require


def check_assignment(logits, topk_indices, prices, num):
    """Accepts one expert a token, T / E tokens an expert, if no token would gain by moving at these prices.   Spec 1.10

    logits (T, E), topk_indices (T, 1), prices (E,) float64. Raises ValueError for another assignment.
    """
    _require_table("logits", logits)
    _require_table("topk_indices", topk_indices)
    (T, E), chosen = logits.shape, topk_indices[:, 0]
    counts = np.bincount(chosen[chosen >= 0], minlength=E)
    wanted, fix = f"{T} tokens shared out evenly among {E} experts", "balance them, or leave out given.assignment_duals"
    require(bool((counts * E == T).all()), ValueError, "given.topk_indices", wanted, counts.tolist(), fix)
    loses = np.signbit(_advantage(logits, chosen, prices, num))
    got = f"token {np.argwhere(loses)[0][0]} with more at expert {np.argwhere(loses)[0][1]}" if loses.any() else None
    wanted, fix = "prices at which each token has its best expert", "use refmoe.selection.solve_assignment"
    require(not loses.any(), ValueError, "given.assignment_duals", wanted, got, fix)


def is_unique_assignment(logits, topk_indices, prices):
    """Is no other balanced assignment as good? Experts that tokens could change between at no loss form no cycle.

    logits (T, E), topk_indices (T, 1), prices (E,) of an accepted assignment -> bool. Spec 1.10
    """
    _require_table("logits", logits)
    _require_table("topk_indices", topk_indices)
    v, arrows = [Fraction(price) for price in prices.tolist()], set()
    for row, (own,) in zip(logits.tolist(), topk_indices.tolist(), strict=True):
        best = Fraction(row[own]) - v[own]
        arrows |= {(own, e) for e, z in enumerate(row) if e != own and Fraction(z) - v[e] == best}
    left = set(range(len(v)))
    for _ in v:
        left = {a for a in left if any((a, b) in arrows for b in left)}
    return not left


def _require_table(name, table):
    """A NumPy array of two axes with at least one column."""
    ok = isinstance(table, np.ndarray) and table.dtype.kind in "fi"
    got = table.dtype if isinstance(table, np.ndarray) else type(table).__name__
    require(ok, TypeError, name, "a NumPy array of numbers", got, "convert it with numpy.asarray")
    ok = table.ndim == 2 and table.shape[1] > 0
    require(ok, ValueError, name, "two axes and a column", f"shape {table.shape}", "check its axes")


def _advantage(logits, chosen, prices, num):
    """By how much a token does better with its expert than with each: (z_i - v_i) - (z_e - v_e), by the exact sign."""
    own, price = np.take_along_axis(logits, chosen[:, None], axis=-1), prices[chosen][:, None]
    return num.sum("margin", [own, -price, -logits, prices[None]])


# --- the solver, outside the law -------------------------------------------------------------------------------------


def solve_assignment(logits):
    """The balanced assignment of most total logit, and prices that prove it.   Spec 1.10

    logits (T, E), E a divisor of T -> topk_indices (T, 1) int64, prices (E,) float64. Needs SciPy.
    """
    _require_table("logits", logits)
    from scipy.optimize import linear_sum_assignment

    T, E = logits.shape
    finite = bool(np.isfinite(logits).all())
    require(finite, ValueError, "logits", "finite numbers", "others", "look for NaN and overflow")
    require(T % E == 0, ValueError, "logits", f"a multiple of {E} tokens", T, "pad the batch")
    columns = np.repeat(logits.astype(np.float64), T // E, axis=1)
    chosen = linear_sum_assignment(columns, maximize=True)[1] // max(T // E, 1)
    gains = _gains(logits, chosen)
    for slack in (*(Fraction(2) ** -n for n in range(0, 50, 2)), Fraction(0)):
        prices = _prices(gains, slack)
        if prices is not None:
            break
    return chosen[:, None].astype(np.int64), np.array([float(v) for v in prices])


def _gains(logits, chosen):
    """gains[a][b]: what the token of a that gains most by moving to b would gain; None without tokens."""
    rows = [[Fraction(z) for z in row] for row in logits.tolist()]
    E = logits.shape[1]
    own = [[row for row, e in zip(rows, chosen.tolist(), strict=True) if e == a] for a in range(E)]
    return [[max((row[b] - row[a] for row in own[a]), default=None) for b in range(E)] for a in range(E)]


def _prices(gains, slack):
    """v with v_b - v_a >= gains[a][b] + slack, by longest paths; None if there are none."""
    steps = [(a, b, g + slack) for a, row in enumerate(gains) for b, g in enumerate(row) if a != b and g is not None]
    v = [Fraction(0)] * len(gains)
    for _ in range(len(gains) + 1):
        raised = list(v)
        for a, b, gain in steps:
            raised[b] = max(raised[b], v[a] + gain)
        if raised == v:
            return v
        v = raised
    return None
