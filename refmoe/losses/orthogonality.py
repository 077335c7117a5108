"""The orthogonality loss: how far the router's rows are from orthonormal, whatever the tokens are.   Spec 4.10, 5.8"""

import numpy as np


def orthogonality_loss(router_gram, config, num):
    """coefficient sum_ef |G_ef - I_ef|, or the sum of the squares;  G = w_router w_router^T.   Spec 4.10

    router_gram (E, E) -> scalar; None where logits were given: the router takes no part, and the loss is +0. SimBal
    """
    if router_gram is None:
        return np.zeros((), num.dtype)
    loss = config.losses.orthogonality
    distance = FORMS[loss.form][0]

    def formula(m, gram, identity):
        return m.sum(distance(m, gram, identity), axis=(-2, -1)) * m.constant(loss.coefficient)

    return num.evaluate("losses.orthogonality", formula, router_gram, _identity(router_gram), core=2)


def orthogonality_loss_backward(d_loss, router_gram, config, num):
    """d_G = coefficient sign(G - I), or 2 coefficient (G - I); from there to w_router it is 5.1.   Spec 5.8

    d_loss scalar, router_gram (E, E) -> d_router_gram_orthogonality (E, E); None without router_gram
    """
    if router_gram is None:
        return None
    loss = config.losses.orthogonality
    slope = FORMS[loss.form][1]

    def formula(m, gram, identity, d):
        # loss = c sum_ef distance(G_ef, I_ef)
        return slope(m, gram, identity) * m.constant(loss.coefficient) * d

    d = np.broadcast_to(d_loss, router_gram.shape)
    return num.evaluate("d_router_gram_orthogonality", formula, router_gram, _identity(router_gram), d)


def _identity(gram):
    return np.eye(len(gram), dtype=np.int64)


def _absolute(m, gram, identity):
    return m.where(m.real(gram) < m.real(identity), identity - gram, gram - identity)


def _absolute_slope(m, gram, identity):
    """sign(G - I), 0 at 0; the last difference is that 0, or NaN."""
    below = m.where(m.real(gram) < m.real(identity), -1, gram - identity)
    return m.where(m.real(gram) > m.real(identity), 1, below)


def _square(m, gram, identity):
    return (gram - identity) * (gram - identity)


def _square_slope(m, gram, identity):
    return (gram - identity) * 2


FORMS = {"l1": (_absolute, _absolute_slope), "frobenius": (_square, _square_slope)}
