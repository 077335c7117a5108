"""Balance loss, z-loss, importance loss, each with its backward, and the selection-bias controller.   Spec 4, 5.8

A loss is one stage over logits and integers; fractions and mean probabilities are never rounded on the way. Counts are
constants of the way back. Masked tokens are neither counted nor averaged.
"""

from typing import NamedTuple

import numpy as np

from . import selection


class Losses(NamedTuple):
    """Scalars, None where not configured; as `d_losses`, their upstream gradients."""

    balance: object = None
    z: object = None
    importance: object = None
    balance_counts: object = None  # (S, E) int64: the counts each scope's fractions were made of


class Scopes(NamedTuple):
    """The tokens over which fractions are taken: one scope for the batch, or one a sequence."""

    tokens: object  # (V,) the unmasked tokens
    scope: object  # (V,) the scope of each
    tokens_local: object  # (S,) tokens of each scope in this batch
    tokens_counted: object  # (S,) tokens its counts stand for, earlier micro-batches included


# --- counts: Spec 4.1 ------------------------------------------------------------------------------------------------


def loss_scopes(num_tokens, config, given):
    """Which tokens each scope of the balance loss has.   Spec 4.1, 4.5"""
    tokens = np.arange(num_tokens) if given.token_mask is None else np.flatnonzero(given.token_mask)
    loss = config.losses.balance
    by_sequence = loss is not None and loss.scope == "sequence"
    labels = given.sequence_ids[tokens] if by_sequence else np.zeros(len(tokens), np.int64)
    scope = np.unique(labels, return_inverse=True)[1].reshape(-1)
    local = np.bincount(scope).astype(np.int64)
    counted = local
    if loss is not None and loss.scope == "global" and given.counts_so_far is not None:
        choices = config.top_k if loss.counts == "all" else 1
        counted = local + int(given.counts_so_far.sum()) // choices
    return Scopes(tokens, scope, local, counted)


def balance_counts(scores, topk_indices, scopes, config, given):
    """n_e by scope: of all choices or the first, in the actual selection or the plain top K of the scores.   Spec 4.1

    scores (T, E), topk_indices (T, K) -> (S, E) int64
    """
    loss = config.losses.balance
    chosen = topk_indices if loss.selection == "actual" else selection.ranked(scores, config.top_k)
    chosen = chosen[scopes.tokens, : 1 if loss.counts == "first" else None]
    counts = np.zeros((len(scopes.tokens_local), config.num_choices), np.int64)
    np.add.at(counts, (np.where(chosen >= 0, scopes.scope[:, None], 0), chosen), chosen >= 0)
    if loss.scope == "global" and given.counts_so_far is not None and len(counts):
        counts = counts + given.counts_so_far
    return counts


# --- balance: Spec 4.1, 5.8 ------------------------------------------------------------------------------------------


def balance_loss(logits, counts, scopes, config, num):
    """coefficient E sum_e f_e P_e, averaged over scopes;  f_e = n_e / (K T) or n_e / T,  P_e = mean probs.   Spec 4.1

    logits (T, E), counts (S, E) -> scalar
    """
    loss = config.losses.balance

    def formula(m, z, n, divisor):
        total = m.sum(n * _probs(m, z, loss.probs) / divisor, axis=(-2, -1))
        return total * (m.constant(loss.coefficient) * config.num_choices)

    return _over_tokens(num, "losses.balance", formula, logits, counts, scopes, config, core=2)


def balance_loss_backward(d_loss, logits, counts, scopes, config, num):
    """d_logits_j = a p_j (n_j - sum_e n_e p_e) for softmax, alike for the sigmoids; +0 for masked tokens.   Spec 5.8

    d_loss scalar, logits (T, E), counts (S, E) -> d_logits_balance (T, E)
    """
    loss = config.losses.balance

    def formula(m, z, n, divisor, d):
        # loss = scale sum_te n_e p_te / divisor_t,   scale = coefficient E
        scale = m.constant(loss.coefficient) * config.num_choices
        return _probs_backward(m, z, n, loss.probs) * scale * d / divisor

    rows = _over_tokens(num, "d_logits_balance", formula, logits, counts, scopes, config, d_loss, core=1)
    return _spread(rows, scopes, logits)


def _probs(m, z, kind):
    if kind == "softmax":
        return m.softmax(z)
    s = m.sigmoid(z)
    return s / m.sum(s, keepdims=True) if kind == "normalized_sigmoid" else s


def _probs_backward(m, z, n, kind):
    """d_z of sum_e n_e p_e."""
    if kind == "softmax":
        p = m.softmax(z)
        return p * m.centre(n, p, z)
    if kind == "sigmoid":
        return n * m.sigmoid_derivative(z)
    return m.sigmoid_derivative(z) / m.sum(m.sigmoid(z), keepdims=True) * m.sigmoid_centre(n, z)


def _over_tokens(num, name, formula, logits, counts, scopes, config, *scalars, core):
    """Reads the formula over the unmasked tokens, with each token's counts and the integer its fractions are over."""
    if not len(scopes.tokens):
        return np.zeros((0, logits.shape[1]) if core == 1 else (), num.dtype)
    loss = config.losses.balance
    norm = config.top_k if loss.counts == "all" and loss.divide_by_k else 1
    divisor = norm * scopes.tokens_counted * scopes.tokens_local * len(scopes.tokens_local)
    table = counts[scopes.scope], divisor[scopes.scope][:, None]
    extra = [np.broadcast_to(scalar, (len(scopes.tokens), 1)) for scalar in scalars]
    return num.evaluate(name, formula, logits[scopes.tokens], *table, *extra, core=core)


def _spread(rows, scopes, like):
    out = np.zeros(like.shape, rows.dtype)
    out[scopes.tokens] = rows
    return out


# --- z: Spec 4.2, 5.8 ------------------------------------------------------------------------------------------------


def z_loss(logits, scopes, config, num):
    """coefficient / T sum_t lse_t^2.   Spec 4.2

    logits (T, E) -> scalar
    """
    if not len(scopes.tokens):
        return np.zeros((), num.dtype)
    c, count = config.losses.z.coefficient, len(scopes.tokens)

    def formula(m, z):
        lse = m.logsumexp(z)
        return m.sum(lse * lse) * c / count

    return num.evaluate("losses.z", formula, logits[scopes.tokens], core=2)


def z_loss_backward(d_loss, logits, scopes, config, num):
    """d_logits_j = 2 coefficient / T lse p_j.   Spec 5.8

    d_loss scalar, logits (T, E) -> d_logits_z (T, E)
    """
    c, count = config.losses.z.coefficient, len(scopes.tokens)

    def formula(m, z, d):
        # loss = c / T sum_t lse_t^2,   d lse / d z_j = p_j
        lse = m.take(m.logsumexp(z), (..., None))
        return lse * m.softmax(z) * (2 * m.constant(c)) * d / count

    d = np.broadcast_to(d_loss, (count, 1))
    return _spread(num.evaluate("d_logits_z", formula, logits[scopes.tokens], d, core=1), scopes, logits)


# --- importance: Spec 4.3, 5.8 ---------------------------------------------------------------------------------------


def importance_loss(logits, topk_indices, scopes, config, num):
    """coefficient Var(I) / (mean(I)^2 + eps),  I_e = sum_t g_te.   Spec 4.3; Shazeer et al. 2017

    logits (T, E), topk_indices (T, K) -> scalar
    """
    if not len(scopes.tokens):
        return np.zeros((), num.dtype)
    loss = config.losses.importance

    def formula(m, z, chosen):
        gates = m.masked_softmax(z, m.real(chosen) == 1)
        variance, scale = _moments(m, m.sum(gates, axis=-2), loss, config.num_choices)
        return variance / scale * loss.coefficient

    return num.evaluate("losses.importance", formula, *_gate_inputs(logits, topk_indices, scopes, loss), core=2)


def importance_loss_backward(d_loss, logits, topk_indices, scopes, config, num):
    """d_logits_tj = 2 coefficient / ((E - ddof) S) g_tj (I_j - sum_e g_te I_e).   Spec 5.8

    d_loss scalar, logits (T, E), topk_indices (T, K) -> d_logits_importance (T, E)
    """
    loss, E = config.losses.importance, config.num_choices
    if not len(scopes.tokens):
        return np.zeros_like(logits)

    def formula(m, z, chosen, d):
        # loss = c V / S,   V = Var(I),   S = mean(I)^2 + eps,   I = sum_t g_t,   g_t = softmax(z_t)
        # The gates of a token sum to one, so mean(I) and S are constants, and the mean drops out of V's centred slope.
        gates = m.masked_softmax(z, m.real(chosen) == 1)
        importance = m.sum(gates, axis=-2)
        _, scale = _moments(m, importance, loss, E)
        slope = m.centre(importance + gates * 0, gates, z) * 2 / (E - loss.ddof)
        return gates * slope / scale * loss.coefficient * d

    inputs = _gate_inputs(logits, topk_indices, scopes, loss)
    d = np.broadcast_to(d_loss, inputs[0].shape)
    return _spread(num.evaluate("d_logits_importance", formula, *inputs, d, core=2), scopes, logits)


def _moments(m, importance, loss, num_experts):
    mean = m.sum(importance, keepdims=True) / num_experts
    deviation = importance - mean
    variance = m.sum(deviation * deviation, keepdims=True) / (num_experts - loss.ddof)
    return m.last(variance), m.last(mean * mean + loss.eps)


def _gate_inputs(logits, topk_indices, scopes, loss):
    """Logits and the experts that count: all, or the chosen; others take a chosen logit, so as not to set the shift."""
    z = logits[scopes.tokens]
    if loss.gates == "softmax":
        return z, np.ones(z.shape)
    chosen = np.zeros((len(z), z.shape[1] + 1), bool)
    np.put_along_axis(chosen, topk_indices[scopes.tokens], True, axis=-1)  # -1 falls on the spare column
    chosen = chosen[:, :-1]
    stand_in = np.take_along_axis(z, chosen.argmax(axis=-1)[:, None], axis=-1)
    return np.where(chosen, z, stand_in), chosen


LOSSES = {
    "balance": (balance_loss, balance_loss_backward),
    "z": (z_loss, z_loss_backward),
    "importance": (importance_loss, importance_loss_backward),
}


# --- the controller: Spec 4.4 ----------------------------------------------------------------------------------------


def update_selection_bias(selection_bias, assigned_per_expert, rate, num):
    """selection_bias + rate sign(mean(n) - n): no gradient; sign(0) = 0, decided in integers.   Spec 4.4; DeepSeek-V3

    selection_bias (E,), assigned_per_expert (E,) -> (E,)
    """
    n = np.asarray(assigned_per_expert, np.int64)
    direction = np.sign(n.sum() - len(n) * n)
    return num.sum("selection_bias", [selection_bias, direction * float(rate)])
