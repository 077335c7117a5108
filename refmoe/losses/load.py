"""The load loss: how unequal the expected loads of the experts are, under noise drawn anew.   Spec 4.9, 5.8"""

import numpy as np

from .. import selection
from ..refusals import require
from .scopes import spread


def load_loss(clean_logits, noise_std, logits, topk_indices, scopes, config, num):
    """coefficient Var(L) / (mean(L)^2 + eps),  L_e = sum_t Phi((clean_te - threshold_te) / std_te).   Spec 4.9

    clean_logits (T, E), noise_std (T, E), logits (T, E) with the noise -> scalar. Shazeer et al. 2017; V-MoE
    Without noise (clean_logits None) L_e is the count of e in topk_indices (T, K), and there is no gradient.
    """
    loss = config.losses.load
    if clean_logits is None:
        loads = _counted(topk_indices, scopes, config)
        if not loads.any():
            return np.zeros((), num.dtype)
        return num.evaluate("losses.load", lambda m, n: _variation(m, n, loss) * loss.coefficient, loads, core=1)
    if not len(scopes.tokens):
        return np.zeros((), num.dtype)
    table = _table(clean_logits, noise_std, logits, scopes, config)

    def formula(m, clean, std, threshold, inside):
        return _variation(m, m.cdf_sums((clean - threshold) / std), loss) * loss.coefficient

    return num.evaluate("losses.load", formula, *table, core=2)


def load_loss_backward(d_loss, clean_logits, noise_std, logits, topk_indices, scopes, config, num):
    """With u = (clean - threshold) / std and q = dloss/dL_e phi(u) / std:  d_clean = q,  d_std = -q u,  and the logit
    that is a threshold takes -sum q over the experts it is the threshold of.   Spec 5.8

    d_loss scalar and the forward's arguments -> d_logits_load, d_clean_logits_load, d_noise_std_load (T, E);
    without noise +0 and None, None
    """
    loss, nothing = config.losses.load, np.zeros_like(logits)
    if clean_logits is None:
        return nothing, None, None
    if not len(scopes.tokens):
        return nothing, nothing, nothing
    table = _table(clean_logits, noise_std, logits, scopes, config)
    table = *table, np.broadcast_to(d_loss, table[0].shape)

    def slope(m, clean, std, threshold, d):
        # loss = c V / S,   L_e = sum_t Phi(u_te),   u = (clean - threshold) / std
        u = (clean - threshold) / std
        return u, _variation_slope(m, m.cdf_sums(u), loss) * m.normal_density(u) / std * loss.coefficient * d

    def d_clean(m, clean, std, threshold, inside, d):
        return slope(m, clean, std, threshold, d)[1]

    def d_std(m, clean, std, threshold, inside, d):
        u, q = slope(m, clean, std, threshold, d)
        return -(q * u)

    def d_threshold(m, clean, std, threshold, inside, d, wanted):
        q = slope(m, clean, std, threshold, d)[1]
        return -m.sum(m.where(m.real(inside) == wanted, q, 0), keepdims=True)

    rows = [num.evaluate("d_logits_load", d_threshold, *table, core=2, wanted=wanted) for wanted in (0, 1)]
    d_logits = np.zeros(table[0].shape, rows[0].dtype)
    at = _ranked(logits[scopes.tokens], config)
    for place, row in zip(at, rows, strict=True):
        np.put_along_axis(d_logits, place, row, axis=-1)
    back = (
        num.evaluate("d_clean_logits_load", d_clean, *table, core=2),
        num.evaluate("d_noise_std_load", d_std, *table, core=2),
    )
    return tuple(spread(d, scopes, logits) for d in (d_logits, *back))


def _variation(m, loads, loss):
    """Var(L) / (mean(L)^2 + eps)."""
    E = np.shape(m.real(loads))[-1]
    mean = m.sum(loads, keepdims=True) / E
    return m.last(m.squared_deviations(loads) / (E - loss.ddof) / (mean * mean + loss.eps))


def _variation_slope(m, loads, loss):
    """d(V / S) / dL_e = 2 (L_e - mean) / (n S) - 2 V mean / (E S^2),   V = Var(L), S = mean^2 + eps, n = E - ddof."""
    E = np.shape(m.real(loads))[-1]
    mean = m.sum(loads, keepdims=True) / E
    scale = mean * mean + loss.eps
    variance = m.squared_deviations(loads) / (E - loss.ddof)
    return m.deviations(loads) * 2 / (E - loss.ddof) / scale - variance * mean * 2 / (scale * scale * E)


def _table(clean_logits, noise_std, logits, scopes, config):
    """Clean logits, deviations, thresholds and who is among the best, of the unmasked tokens."""
    clean, std, noisy = (array[scopes.tokens] for array in (clean_logits, noise_std, logits))
    fix = "raise routing.noise_floor: a load needs noise everywhere"
    ok = bool((np.real(std) > 0).all())
    require(ok, ValueError, "noise_std", "positive numbers with losses.load", "zeros", fix)
    last, following = (np.take_along_axis(noisy, at, axis=-1) for at in _ranked(noisy, config))
    inside = (np.real(noisy) > np.real(following)) & (config.losses.load.threshold == "others")
    return clean, std, np.where(inside, following, last), inside


def _ranked(noisy, config):
    """The ids of the K-th and the (K+1)-th largest logit of each token."""
    order = selection.ranked(np.real(noisy), config.top_k + 1)
    return order[:, -2:-1], order[:, -1:]


def _counted(topk_indices, scopes, config):
    chosen = topk_indices[scopes.tokens]
    return np.bincount(chosen[chosen >= 0], minlength=config.num_choices)
