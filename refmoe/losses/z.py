"""The router z-loss and its way back.   Spec 4.2, 5.8"""

import numpy as np

from .scopes import spread


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
    return spread(num.evaluate("d_logits_z", formula, logits[scopes.tokens], d, core=1), scopes, logits)
