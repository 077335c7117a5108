"""Controllers: what moves the selection bias, or a coefficient, between steps. No gradient.   Spec 4.4

Each is one stage over stored numbers and integer counts, rounded once; signs and ranks are decided exactly. Counts of
micro-batches are summed before a controller sees them. Counting a batch twice, as recomputation of activations does,
leaves the sign rules as they are, and those that read fractions of one sum; the proportional rule moves twice as far.
"""

from typing import NamedTuple

import numpy as np

from .. import selection
from ..numerics import Numerics
from ..refusals import is_finite_number, require, require_array, require_count, require_instance, shown


def update_selection_bias(selection_bias, assigned_per_expert, rate, num):
    """selection_bias + rate sign(mean(n) - n): no gradient; sign(0) = 0, decided in integers.   Spec 4.4; DeepSeek-V3

    selection_bias (E,), assigned_per_expert (E,) -> (E,)
    Raises TypeError or ValueError naming the argument, as every controller does.
    """
    _check_step(selection_bias, assigned_per_expert, num, rate=rate)
    return num.sum("selection_bias", [selection_bias, _direction(assigned_per_expert) * float(rate)])


def update_by_centred_sign(selection_bias, assigned_per_expert, rate, num):
    """selection_bias + rate (s - mean(s)), s = sign(mean(n) - n): the biases keep their sum.   Spec 4.4; torchtitan

    selection_bias (E,), assigned_per_expert (E,) -> (E,)
    """
    _check_step(selection_bias, assigned_per_expert, num, rate=rate)
    s = _direction(assigned_per_expert)

    def formula(m, b, s, total):
        return b + (s - total / len(selection_bias)) * m.constant(rate)

    return num.evaluate("selection_bias", formula, selection_bias, s, _total(s))


def update_in_proportion(selection_bias, assigned_per_expert, rate, num):
    """selection_bias + rate (mean(n) - n).   Spec 4.4; an ablation of the loss-free paper

    selection_bias (E,), assigned_per_expert (E,) -> (E,)
    """
    _check_step(selection_bias, assigned_per_expert, num, rate=rate)
    n = np.asarray(assigned_per_expert, np.int64)

    def formula(m, b, n, total):
        return b + (total / len(selection_bias) - n) * m.constant(rate)

    return num.evaluate("selection_bias", formula, selection_bias, n, _total(n))


def update_by_share(selection_bias, assigned_per_expert, rate, expected, config, num):
    """selection_bias + rate (expected / (K N) - n / sum(n)) for the N ids with weights; others stay.   Spec 4.4

    selection_bias (E,), assigned_per_expert (E,); expected: the experts with weights that a token is to use on
    average -> (E,). LongCat-Flash
    """
    _check_step(selection_bias, assigned_per_expert, num, rate=rate, expected=expected)
    n, N = np.asarray(assigned_per_expert, np.int64), config.num_experts
    if not n.sum():
        return selection_bias

    def formula(m, b, n, total):
        return b + (m.constant(expected) / (config.top_k * N) - n / total) * m.constant(rate)

    moved = num.evaluate("selection_bias", formula, selection_bias[:N], n[:N], _total(n))
    return np.concatenate([moved, selection_bias[N:]])


def _check_step(selection_bias, assigned_per_expert, num, **numbers):
    """A bias for each expert, a count for each, and the numbers that say how far to go."""
    require_instance("num", num, Numerics, "use Numerics()")
    num.check_stored("selection_bias", selection_bias, (np.size(selection_bias),))
    n, name, fix = np.asarray(assigned_per_expert), "assigned_per_expert", "pass record.plan.assigned_per_expert"
    require(n.dtype.kind in "iu", TypeError, name, "integers", n.dtype, fix)
    require(n.shape == selection_bias.shape, ValueError, name, f"shape {selection_bias.shape}", n.shape, fix)
    require(not (n < 0).any(), ValueError, name, "counts from 0 on", n.tolist(), fix)
    for name, number in numbers.items():
        require(is_finite_number(number), ValueError, name, "a finite number", shown(number), "correct it")


class PIDState(NamedTuple):
    """What the PID controller keeps between steps."""

    integral: object  # (E,), the sum of the load errors so far
    previous: object  # (E,), the last load error


def update_by_pid(selection_bias, assigned_per_expert, gains, state, num):
    """b + kp e + ki sum(e) + kd (e - previous e), e = 1 - E n / sum(n) the load error.   Spec 4.4

    selection_bias (E,), assigned_per_expert (E,), gains (kp, ki, kd), state PIDState or None at the start
    -> selection_bias (E,), PIDState
    """
    ok = isinstance(gains, list | tuple) and len(gains) == 3
    require(ok, TypeError, "gains", "three numbers (kp, ki, kd)", shown(gains), "give a tuple of them")
    _check_step(selection_bias, assigned_per_expert, num, **dict(zip(("kp", "ki", "kd"), gains, strict=True)))
    if state is not None:
        require_instance("state", state, PIDState, "give what the last step returned", "PIDState or None")
    n, E = np.asarray(assigned_per_expert, np.int64), len(selection_bias)
    state = PIDState(np.zeros_like(selection_bias), np.zeros_like(selection_bias)) if state is None else state
    some = n if n.sum() else np.ones_like(n)  # nothing was chosen: no error
    error = num.evaluate("load_error", lambda m, n, total: 1 - n * E / total, some, _total(some))
    integral = num.sum("load_integral", [state.integral, error])

    def formula(m, b, error, integral, previous):
        kp, ki, kd = map(m.constant, gains)
        return b + error * kp + integral * ki + (error - previous) * kd

    bias = num.evaluate("selection_bias", formula, selection_bias, error, integral, state.previous)
    return bias, PIDState(integral, error)


# --- by quantile: Kimi K3, Megatron ----------------------------------------------------------------------------------


def required_bias(scores, selection_bias, top_k, num, cutoff="next"):
    """The bias at which a token would reach for an expert: cutoff_t - score_te.   Spec 4.4

    scores (T, E), selection_bias (E,) -> (T, E). cutoff "next": the (K+1)-th largest biased score; "last": the K-th
    """
    require_instance("num", num, Numerics, "use Numerics()")
    require_array("scores", scores, "f", 2, "give a row a token, a column an expert")
    num.check_stored("scores", scores, scores.shape, is_read=False)
    top_k, fix = require_count("top_k", top_k), "with every expert in use there is nothing to balance"
    require(top_k < scores.shape[1], ValueError, "top_k", f"less than the {scores.shape[1]} experts", top_k, fix)
    ok = isinstance(cutoff, str) and cutoff in ("last", "next")
    require(ok, ValueError, "cutoff", "'last' or 'next'", shown(cutoff), "choose one")
    num.check_stored("selection_bias", selection_bias, scores.shape[1:])
    biased = num.sum("choice_scores", [scores, selection_bias[None]])
    place = {"last": top_k - 1, "next": top_k}[cutoff]
    at = selection.ranked(biased, place + 1)[:, place:]
    return num.sum("required_bias", [np.take_along_axis(biased, at, axis=-1), -scores])


def update_by_quantile(scores, selection_bias, top_k, num, cutoff="next", rank="next"):
    """The bias at which q = floor(T K / E) tokens reach for each expert, less its mean.   Spec 4.4

    scores (T, E) of unmasked tokens, what is ranked before the bias is added -> (E,). rank "next": the (q+1)-th
    smallest required bias; "last": the q-th; "mean": half their sum. Kimi K3 ranks sigmoids plus a bias; Megatron
    ranks logits minus one, so that its numbers are the negatives of these.
    """
    ok = isinstance(rank, str) and rank in ("next", "last", "mean")
    require(ok, ValueError, "rank", "'next', 'last' or 'mean'", shown(rank), "choose one")
    needed = np.sort(required_bias(scores, selection_bias, top_k, num, cutoff), axis=0)
    T, E = needed.shape
    last = max(T * top_k // E - 1, 0)
    following = T * top_k // E  # there is one, as top_k < E
    low, high = {"next": (following,) * 2, "last": (last,) * 2, "mean": (last, following)}[rank]

    def formula(m, low, high):
        middle = (low + high) / 2
        return middle - m.sum(middle, keepdims=True) / E

    return num.evaluate("selection_bias", formula, needed[low], needed[high], core=1) if T else selection_bias


def bias_edges(selection_bias, bins, num):
    """bins + 1 edges from min(b) - 1 to max(b) + 1, evenly spaced, each rounded once.   Spec 4.4

    selection_bias (E,) -> (bins + 1,)
    """
    require_instance("num", num, Numerics, "use Numerics()")
    bins = require_count("bins", bins)
    _require_bias(selection_bias, num)

    def formula(m, i, low, high):
        return low - 1 + (high - low + 2) * i / bins

    return num.evaluate("bias_edges", formula, np.arange(bins + 1), selection_bias.min(), selection_bias.max())


def bias_histogram(needed, edges):
    """How many tokens require a bias of each bin, by expert; a bin holds its lower edge.   Spec 4.4

    needed (T, E) from `required_bias`, edges (bins + 1,) -> (E, bins) int64, to be summed over micro-batches.
    What lies outside the edges counts in the outermost bin.
    """
    require_array("needed", needed, "f", 2, "give what required_bias returned")
    _require_edges(edges)
    bins = len(edges) - 1
    at = np.clip(np.searchsorted(edges, needed, side="right") - 1, 0, bins - 1)
    counts = np.zeros((needed.shape[1], bins), np.int64)
    np.add.at(counts, (np.arange(needed.shape[1])[None], at), 1)
    return counts


def _require_bias(selection_bias, num):
    require_array("selection_bias", selection_bias, "f", 1, "give one number an expert")
    num.check_stored("selection_bias", selection_bias, selection_bias.shape)
    ok, fix = len(selection_bias) > 0, "give one number an expert"
    require(ok, ValueError, "selection_bias", "the biases of some experts", "none", fix)


def _require_edges(edges):
    require_array("edges", edges, "f", 1, "give what bias_edges returned")
    ok = len(edges) > 1 and bool((np.diff(edges) >= 0).all())
    require(ok, ValueError, "edges", "two or more that ascend", shown(edges), "give what bias_edges returned")


def update_by_histogram(counts, edges, selection_bias, top_k, num):
    """The K / E quantile of each expert's histogram, linear within its bin, less the mean.   Spec 4.4; Kimi K3

    counts (E, bins), edges (bins + 1,) -> (E,)
    """
    require_instance("num", num, Numerics, "use Numerics()")
    require_array("counts", counts, "iu", 2, "give what bias_histogram returned")
    _require_edges(edges)
    E, bins = counts.shape
    wanted, got = f"{bins + 1} edges for counts of {bins} bins", len(edges)
    require(got == bins + 1, ValueError, "edges", wanted, got, "give those the counts were made with")
    num.check_stored("selection_bias", selection_bias, (E,))
    top_k = require_count("top_k", top_k)
    below = np.cumsum(counts, axis=1)
    tokens = int(below[0, -1])
    if not tokens:
        return selection_bias
    at = np.argmax(below * E >= tokens * top_k, axis=1)  # the first bin that reaches T K / E
    inside = counts[np.arange(E), at]
    missing = tokens * top_k - (below[np.arange(E), at] - inside) * E

    def formula(m, low, high, missing, inside):
        quantile = low + (high - low) * missing / (inside * E)
        return quantile - m.sum(quantile, keepdims=True) / E

    return num.evaluate("selection_bias", formula, edges[at], edges[at + 1], missing, inside, core=1)


# --- a coefficient: ReMoE --------------------------------------------------------------------------------------------


def update_coefficient(coefficient, active, num_tokens, top_k, num, multiplier=1.2):
    """coefficient times the multiplier if a token uses more than K experts on average, else over it.   Spec 4.4

    active: experts used, summed over num_tokens tokens (of every layer and rank) -> scalar, to be given as the
    upstream number of the loss. ReMoE starts at 1e-8
    """
    require_instance("num", num, Numerics, "use Numerics()")
    for name, value in (("coefficient", coefficient), ("multiplier", multiplier)):
        ok, fix = is_finite_number(np.squeeze(value)), "correct it"
        require(ok, ValueError, name, "a finite number", shown(value), fix)
    for name, value in (("active", active), ("num_tokens", num_tokens)):
        ok = np.size(value) == 1 and np.asarray(value).dtype.kind in "iu" and int(value) >= 0
        require(ok, ValueError, name, "a count", shown(value), "sum it over all micro-batches")
    dense = int(active) > int(num_tokens) * require_count("top_k", top_k)

    def formula(m, c):
        return c * m.constant(multiplier) if dense else c / m.constant(multiplier)

    return num.evaluate("d_losses", formula, coefficient)


CONTROLLERS = {
    "sign": update_selection_bias,
    "centred_sign": update_by_centred_sign,
    "proportional": update_in_proportion,
    "share": update_by_share,
    "pid": update_by_pid,
    "quantile": update_by_quantile,
    "quantile_histogram": update_by_histogram,
    "coefficient": update_coefficient,
}


def _direction(assigned_per_expert):
    """sign(mean(n) - n) of each expert."""
    n = np.asarray(assigned_per_expert, np.int64)
    return np.sign(n.sum() - len(n) * n)


def _total(n):
    return np.array(n.sum())
