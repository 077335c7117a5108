"""The mutual information of tokens and experts, and its two halves.   Spec 4.8, 5.8"""

import numpy as np

from .scopes import spread


def mutual_information_loss(logits, scopes, config, num):
    """coefficient (sum_e P_e log P_e + mean_t H(p_t)): minus the mutual information; or one of the two.   Spec 4.8

    logits (T, E) -> scalar. P = mean_t p_t, H the entropy. Mod-Squad, ModuleFormer
    """
    loss, count = config.losses.mutual_information, len(scopes.tokens)

    def formula(m, z):
        total = m.sum(z * 0, axis=(-2, -1))
        if loss.terms == "both" and m.rows_agree(z):
            return total  # the halves are the same number
        if loss.terms != "conditional":
            log_mean = m.log_mean_softmax(z)
            total = total + m.sum(m.exp(log_mean) * log_mean)
        if loss.terms != "marginal":
            total = total + m.sum(m.entropy(z)) / count
        return total * loss.coefficient

    if not count:
        return np.zeros((), num.dtype)
    return num.evaluate("losses.mutual_information", formula, logits[scopes.tokens], core=2)


def mutual_information_loss_backward(d_loss, logits, scopes, config, num):
    """d_logits_j = coefficient / T p_j (a_j - sum_e p_e a_e), a = log P - z; log P or -z for one half.   Spec 5.8

    d_loss scalar, logits (T, E) -> d_logits_mutual_information (T, E)
    """
    loss, count = config.losses.mutual_information, len(scopes.tokens)

    def formula(m, z, d):
        p = m.softmax(z)
        slope = p * 0
        if loss.terms == "both" and m.rows_agree(z):
            return slope
        if loss.terms != "conditional":
            # marginal = sum_e P_e log P_e,   P_e = mean_t p_te
            slope = slope + m.centre(m.log_mean_softmax(z) + p * 0, p, z)
        if loss.terms != "marginal":
            # H = -sum_e p_e log p_e,   log p_e = z_e - lse
            slope = slope - m.centre(z, p, z)
        return p * slope * loss.coefficient * d / count

    if not count:
        return np.zeros_like(logits)
    z = logits[scopes.tokens]
    d = np.broadcast_to(d_loss, z.shape)
    return spread(num.evaluate("d_logits_mutual_information", formula, z, d, core=2), scopes, logits)
