"""Weights that routed and shared experts share one normaliser for, and back.   Spec 1.5, 5.3"""

import numpy as np

from ..scores import ELEMENTWISE_SLOPES
from .weights import _d_score, _normalized, _safe, _scatter, counted


def joint_weights(scores, shared_scores, topk_indices, kept, config, num):
    """w_j = c s_j / q of the kept slots and h_m / q times c of the shared experts, q = sum s + sum h + eps.   Spec 1.5

    scores (T, E), shared_scores (T, n), topk_indices (T, K) -> weights (T, K) and (T, n). Inkling
    """
    routing, K = config.routing, topk_indices.shape[1]
    s, used = _joined(scores, shared_scores, topk_indices, kept, config)
    c = routing.scaling_factor
    w = num.evaluate("topk_weights", lambda m, s, u: _normalized(m, s, u, routing) * c, s, used, core=1)
    return w[:, :K].copy(), w[:, K:].copy()


def joint_weights_backward(
    d_weights, d_shared_weights, logits, shared_logits, scores, shared_scores, topk_indices, kept, config, num
):
    """Each d_s by the rule of a normalised sum over all of them, times the sigmoid's slope at its logit.   Spec 5.3

    d_weights (T, K), d_shared_weights (T, n) and the forward's arguments
    -> d_logits_task (T, E), d_shared_logits (T, n)
    """
    routing, K = config.routing, topk_indices.shape[1]
    s, used = _joined(scores, shared_scores, topk_indices, kept, config)
    z, _ = _joined(logits, shared_logits, topk_indices, kept, config)
    G, slope = np.concatenate([d_weights, d_shared_weights], axis=-1), ELEMENTWISE_SLOPES[routing.score_fn]

    def formula(m, G, z, s, u):
        return _d_score(m, G, s, u, routing) * slope(m, z)

    # w = c s / q,  h / q times c,   s = s(z)
    d_z = num.evaluate("d_logits_task", formula, G, z, s, used, core=1)
    d_logits = _scatter(d_z[:, :K], topk_indices, topk_indices >= 0, logits)
    return d_logits, d_z[:, K:].copy()


def _joined(by_expert, by_shared, topk_indices, kept, config):
    """Values of the slots and of the shared experts side by side, and which of them count."""
    kept = kept & counted(topk_indices, config)
    of_slots = np.take_along_axis(by_expert, _safe(topk_indices, kept), axis=-1)
    used = np.concatenate([kept, np.ones(by_shared.shape, bool)], axis=-1)
    return np.concatenate([of_slots, by_shared], axis=-1), used
