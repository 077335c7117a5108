"""The balance loss and its way back.   Spec 4.1, 5.8"""

import numpy as np

from .scopes import spread


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
    return spread(rows, scopes, logits)


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
