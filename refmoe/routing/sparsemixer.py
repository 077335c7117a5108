"""SparseMixer's weights: two experts, each from a softmax of its own, and back.   Spec 1.5, 5.3; Phi-3.5-MoE"""

import numpy as np

# Rules whose way back, in training, is an estimator of a gradient and not the derivative of their forward.   Spec 5.3
ESTIMATORS = {"sparsemixer": "with given.multipliers, which the forward reads and the way back does not"}


def sparsemixer_weights(logits, topk_indices, kept, multipliers, config, num):
    """w_k = c h_k softmax(z over round k's survivors) at the round's expert.   Spec 1.5 (d)

    logits (T, E), topk_indices (T, 2), kept (T, 2) bool, multipliers h (T, 2), or None for 1 -> topk_weights (T, 2)
    """
    c = config.routing.scaling_factor
    rounds = _rounds(logits, topk_indices, kept, config, num)
    h = np.ones(topk_indices.shape, num.dtype) if multipliers is None else multipliers

    def formula(m, z, near, own, h):
        p = m.masked_softmax(z, m.real(near) == 1)
        return m.sum(m.where(m.real(own) == 1, p, 0) * h * c)

    return num.evaluate("topk_weights", formula, *rounds, h[..., None], core=1)


def sparsemixer_weights_backward(d_topk_weights, logits, topk_indices, kept, config, num):
    """d_z_j = c sum_k G_k p_ki (delta_ij - p_kj), i the expert of round k: without h.   Spec 5.3

    d_topk_weights G (T, 2), logits (T, E) -> d_logits (T, E). Exact in evaluation; in training an estimator.
    """
    c = config.routing.scaling_factor

    def formula(m, z, near, own, G):
        # w_k = c h_k p_ki,   p_k = softmax over the survivors of round k
        p = m.masked_softmax(z, m.real(near) == 1)
        values = m.where(m.real(own) == 1, G, 0)
        return m.sum(p * m.centre(values, p, z) * c, axis=-2)

    rounds = _rounds(logits, topk_indices, kept, config, num)
    return num.evaluate("d_logits_task", formula, *rounds, d_topk_weights[..., None], core=2)


def _rounds(logits, topk_indices, kept, config, num):
    """Of both rounds, (T, 2, E): the logits, who survives, and where the round's expert stands.

    Round 2 is without round 1's expert; in its place stands the largest of the rest, so as not to set the shift.
    """
    experts = np.arange(logits.shape[1])
    own = kept[..., None] & (topk_indices[..., None] == experts)
    gone = topk_indices[:, :1] == experts
    z = np.real(logits)
    tops = [np.max(z, axis=-1, keepdims=True), np.max(np.where(gone, -np.inf, z), axis=-1, keepdims=True)]
    near = np.stack([_near(z, top.astype(z.dtype), config.routing.sparsemixer_eps, num) for top in tops], axis=1)
    near[:, 1] &= ~gone
    return np.stack([logits, np.where(gone, tops[1].astype(logits.dtype), logits)], axis=1), near, own


def _near(z, top, eps, num):
    """Where (top - z) / max(|z|, top) <= 2 eps: by the sign of the exact value, which a rounded value keeps."""
    scale = np.maximum(np.abs(z), top)
    room = num.evaluate("margin", lambda m, z, top, scale: z - top + scale * (2 * eps), z, top, scale)
    return ~np.signbit(np.real(room))
