"""The importance loss and its way back.   Spec 4.3, 5.8"""

import numpy as np

from .scopes import spread


def importance_loss(logits, topk_indices, scopes, config, num):
    """coefficient Var(I) / (mean(I)^2 + eps),  I_e = sum_t g_te; or coefficient sum_e (I_e / T - 1 / E)^2.   Spec 4.3

    logits (T, E), topk_indices (T, K) -> scalar. Shazeer et al. 2017
    """
    loss = config.losses.importance

    def formula(m, z, chosen):
        gates = m.masked_softmax(z, m.real(chosen) == 1)
        variance, scale = _moments(m, m.column_sums(gates, z), loss, config.num_choices)
        return variance / scale * loss.coefficient

    z, chosen = _gate_inputs(logits, topk_indices, scopes, loss)
    return num.evaluate("losses.importance", formula, z, chosen, core=2) if chosen.any() else np.zeros((), num.dtype)


def importance_loss_backward(d_loss, logits, topk_indices, scopes, config, num):
    """d_logits_tj = 2 coefficient / (n S) g_tj (I_j - sum_e g_te I_e), n = E - ddof or 1, S the divisor.   Spec 5.8

    d_loss scalar, logits (T, E), topk_indices (T, K) -> d_logits_importance (T, E)
    """
    loss, E = config.losses.importance, config.num_choices

    def formula(m, z, chosen, d):
        # loss = c V / S,   V = Var(I),   S = mean(I)^2 + eps,   I = sum_t g_t,   g_t = softmax(z_t)
        # The gates of a token sum to one, so mean(I) and S are constants, and the mean drops out of V's centred slope.
        gates = m.masked_softmax(z, m.real(chosen) == 1)
        importance = m.column_sums(gates, z)
        _, scale = _moments(m, importance, loss, E)
        slope = m.centre(importance + gates * 0, gates, z) * 2 / _over(loss, E)
        return gates * slope / scale * loss.coefficient * d

    inputs = _gate_inputs(logits, topk_indices, scopes, loss)
    if not inputs[1].any():
        return np.zeros_like(logits)
    d = np.broadcast_to(d_loss, inputs[0].shape)
    return spread(num.evaluate("d_logits_importance", formula, *inputs, d, core=2), scopes, logits)


def _moments(m, importance, loss, num_experts):
    """How far the importances spread, and what that is divided by."""
    total = m.sum(importance, keepdims=True)
    mean = total / num_experts
    spread_out = m.squared_deviations(importance) / _over(loss, num_experts)
    return m.last(spread_out), m.last(total * total if loss.form == "deviation" else mean * mean + loss.eps)


def _over(loss, num_experts):
    return 1 if loss.form == "deviation" else num_experts - loss.ddof


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
