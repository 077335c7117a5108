"""Losses that are sums of counts times probabilities: what balance, device and communication losses share.

Spec 4.1, 4.6, 5.8
"""

import numpy as np

from .scopes import spread


def products(name, logits, counts, divisor, scopes, factors, probs, num):
    """The product of the factors, times sum_te n_e p_te / divisor of t's scope.   Spec 4.1

    logits (T, E), counts (S, E), divisor (S,) integers, factors: a coefficient and an integer -> scalar
    """

    def formula(m, z, n, divisor):
        total = m.sum(n * PROBS[probs][0](m, z) / divisor, axis=(-2, -1))
        return total * (m.constant(factors[0]) * factors[1])

    return _over_tokens(num, name, formula, logits, counts, divisor, scopes, core=2)


def products_backward(name, d_loss, logits, counts, divisor, scopes, factors, probs, num):
    """d_logits_j = a p_j (n_j - sum_e n_e p_e) for softmax, alike for the others; +0 for masked tokens.   Spec 5.8

    d_loss scalar and the forward's arguments -> d_logits (T, E)
    """

    def formula(m, z, n, divisor, d):
        # loss = scale sum_te n_e p_te / divisor_t,   scale = coefficient E
        scale = m.constant(factors[0]) * factors[1]
        return PROBS[probs][1](m, z, n) * scale * d / divisor

    rows = _over_tokens(num, name, formula, logits, counts, divisor, scopes, d_loss, core=1)
    return spread(rows, scopes, logits)


def _over_tokens(num, name, formula, logits, counts, divisor, scopes, *scalars, core):
    """Reads the formula over the unmasked tokens, with each token's counts and the integer its fractions are over."""
    if not len(scopes.tokens):
        return np.zeros((0, logits.shape[1]) if core == 1 else (), num.dtype)
    table = counts[scopes.scope], divisor[scopes.scope][:, None]
    extra = [np.broadcast_to(scalar, (len(scopes.tokens), 1)) for scalar in scalars]
    return num.evaluate(name, formula, logits[scopes.tokens], *table, *extra, core=core)


# --- the probabilities, and the gradient of sum_e n_e p_e with respect to the logits ---------------------------------


def _softmax_slope(m, z, n):
    p = m.softmax(z)
    return p * m.centre(n, p, z)


def _normalized_sigmoid(m, z):
    s = m.sigmoid(z)
    return s / m.sum(s, keepdims=True)


def _normalized_sigmoid_slope(m, z, n):
    return m.sigmoid_derivative(z) / m.sum(m.sigmoid(z), keepdims=True) * m.sigmoid_centre(n, z)


PROBS = {
    "softmax": (lambda m, z: m.softmax(z), _softmax_slope),
    "normalized_sigmoid": (_normalized_sigmoid, _normalized_sigmoid_slope),
    "sigmoid": (lambda m, z: m.sigmoid(z), lambda m, z, n: n * m.sigmoid_derivative(z)),
    "relu": (lambda m, z: m.relu(z), lambda m, z, n: n * m.step(z)),
}
