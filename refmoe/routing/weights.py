"""The weights of the slots, and back.   Spec 1.5, 5.3"""

import numpy as np

from ..numerics import Named, by_engine
from ..refusals import require
from ..scores import ELEMENTWISE_SLOPES
from .scope import make_scores_backward
from .sparsemixer import sparsemixer_weights, sparsemixer_weights_backward


def topk_weights(logits, scores, topk_indices, kept, config, num, given=None):
    """The combine weights of the slots, by the one of four rules that the configuration selects.   Spec 1.5

    logits (T, E), scores (T, E), topk_indices (T, K), kept (T, K) bool: the slots that count, None for all used ones
    -> topk_weights (T, K)
    c is the scaling factor; a slot that does not count has weight +0.
    (a) softmax, normalised, eps 0:  c softmax(kept logits): one stage over the logits
    (b) not normalised:              c scores, or c scores / n with divide_by_count, n the slots that count
    (c) otherwise:                   c scores / (sum scores + eps), or over max(sum scores, eps), or over the p-norm
    (d) selection "sparsemixer":     c h softmax(logits near the largest), by rounds; h given.multipliers
    Outside (d) the slots of zero experts do not count.
    """
    routing = config.routing
    if routing.selection == "sparsemixer":
        multipliers = None if given is None else given.multipliers
        kept = topk_indices >= 0 if kept is None else kept
        return sparsemixer_weights(logits, topk_indices, kept, multipliers, config, num)
    c = routing.scaling_factor
    if softmax_of_kept(config):
        return _softmax_of_kept(logits, topk_indices, kept, c, config, num)
    s, kept = _at_slots(scores, topk_indices, kept, config, num)
    if routing.divide_by_count:
        return num.evaluate("topk_weights", _shared_out, s, kept, core=1, c=c)
    if not routing.normalize:
        w = s if c == 1.0 else num.evaluate("topk_weights", lambda m, s: s * c, s)
        return np.where(kept, w, np.zeros_like(w))
    _refuse_zero_sums(s, kept, routing)
    return num.evaluate("topk_weights", lambda m, s, u: _normalized(m, s, u, routing) * c, s, kept, core=1)


def _softmax_of_kept(logits, topk_indices, kept, c, config, num):
    at_once, counted = getattr(num, "kept_softmax", None), _num_counted(config)
    made = at_once and at_once("topk_weights", logits, topk_indices, kept, counted, c)
    if made is not None:
        return made
    z, kept = _at_slots(logits, topk_indices, kept, config, num)
    formula = Named("softmax", lambda m, z, u: m.masked_softmax(z, m.real(u) == 1) * c, c)
    return num.evaluate("topk_weights", formula, z, kept, core=1)


def topk_weights_backward(d_topk_weights, logits, scores, topk_indices, kept, config, num, given=None):
    """The router's task gradient: d_logits_task, and d_scores where the rule goes back through them.   Spec 5.3

    d_topk_weights (T, K) and the forward's arguments -> d_logits (T, E), d_scores (T, E) or None
    """
    routing = config.routing
    if routing.selection == "sparsemixer":
        return sparsemixer_weights_backward(d_topk_weights, logits, topk_indices, kept, config, num), None
    kept = kept & counted(topk_indices, config)
    used, index = topk_indices >= 0, _safe(topk_indices, kept)
    gathered = [_at(array, index) for array in (logits, scores)]
    if softmax_of_kept(config):
        # w = c softmax(z)
        c = routing.scaling_factor
        formula = Named("softmax_backward", lambda m, *stored: _kept_softmax_backward(m, *stored, c), c)
        d_z = num.evaluate("d_logits_task", formula, d_topk_weights, gathered[0], kept, core=1)
        return _scatter(d_z, topk_indices, used, logits), None
    if routing.score_fn in ELEMENTWISE_SLOPES:
        # w = c s / (sum s + eps),   s = s(z)
        slope = ELEMENTWISE_SLOPES[routing.score_fn]

        def formula(m, G, z, s, u):
            return _d_score(m, G, s, u, routing) * slope(m, z)

        d_z = num.evaluate("d_logits_task", formula, d_topk_weights, *gathered, kept, core=1)
        return _scatter(d_z, topk_indices, used, logits), None
    # w = c s / (sum s + eps),   s = softmax(z) over all experts: every logit takes part
    d_s = num.evaluate(
        "d_scores", lambda m, G, s, u: _d_score(m, G, s, u, routing), d_topk_weights, gathered[1], kept, core=1
    )
    d_scores = _scatter(d_s, topk_indices, used, logits)
    return make_scores_backward(d_scores, logits, config, num, given), d_scores


def softmax_of_kept(config):
    """True if the weights are a softmax over the logits kept, one stage forward and back.   Spec 1.5 (a)"""
    r = config.routing
    plain = r.norm_eps == 0.0 and r.norm_p == 1 and not config.dispatch.normalize_after_drop
    return r.score_fn == "softmax" and r.normalize and plain


def reads_scores(config):
    """False if only the selection may read the scores: no weight, drop or loss does.   Spec 1.5"""
    joint = config.routing.norm_over_shared or config.routing.selection == "sparsemixer"
    more = config.losses.present or config.losses.bias_update_rate
    return bool(joint or more or config.dispatch.limited or not softmax_of_kept(config))


def counted(topk_indices, config):
    """The slots that may weigh: those used, but for zero experts, whose share goes to the others.   Spec 1.5

    topk_indices (T, K) -> (T, K) bool
    """
    return (topk_indices >= 0) & (topk_indices < _num_counted(config))


def _num_counted(config):
    """Ids below it may weigh."""
    return config.num_choices - config.experts.zero_experts


def _kept_softmax_backward(m, G, z, used, c):
    """d_z_j = c w_j (G_j - sum_i G_i w_i)."""
    w = m.masked_softmax(z, m.real(used) == 1)
    G = m.where(m.real(used) == 1, G, 0)
    return w * m.centre(G, w, z) * c


def _shared_out(m, s, used, c):
    """c s / n over the n used slots."""
    return m.where(m.real(used) == 1, s, 0) * c / _count(m, used)


def _count(m, used):
    """How many slots are used; 1 where none is."""
    n = m.sum(used, keepdims=True)
    return m.where(m.real(n) == 0, 1, n)


def _normalized(m, s, used, routing):
    """s / den over the used slots; den = sum s + eps, or max(sum s, eps), or the p-norm of s."""
    s = m.where(m.real(used) == 1, s, 0)
    if routing.norm_p > 1:
        return s / m.root(_powers(m, s, routing.norm_p), routing.norm_p)
    return s / _denominator(m, m.sum(s, keepdims=True), routing)


def _denominator(m, total, routing):
    if routing.norm_eps_mode == "add":
        den = total + routing.norm_eps if routing.norm_eps else total
    else:
        den = m.where(m.real(total) < routing.norm_eps, routing.norm_eps, total)
    # A row without used slots has no weights; 1 keeps its zeros zero.
    return m.where(m.real(den) == 0, 1, den)


def _powers(m, s, p):
    """sum s^p of scores that are not negative, or 1 where all of them are 0: then the weights are, too."""
    none = m.real(m.max(s, keepdims=True)) == 0
    return m.where(none, 1, m.sum(m.power(s, p), keepdims=True))


def _d_score(m, G, s, used, routing):
    """d_s_j = c (G_j - sum_i G_i s_i / den) / den; not normalised: c G_j; a sum clamped to eps is a constant."""
    mask = m.real(used) == 1
    c = routing.scaling_factor
    G = m.where(mask, G, 0)
    if routing.divide_by_count:
        return G * c / _count(m, used)
    if not routing.normalize:
        return G * c
    s = m.where(mask, s, 0)
    if routing.norm_p > 1:
        return _d_score_of_norm(m, G, s, routing.norm_p) * c
    total = m.sum(s, keepdims=True)
    den = _denominator(m, total, routing)
    # sum_i s_i (G_j - G_i) + eps G_j, over den: the same number without cancelling
    numerator = _differences(m, G, s)
    if routing.norm_eps_mode == "add":
        numerator = numerator + G * routing.norm_eps if routing.norm_eps else numerator
    else:
        numerator = m.where(m.real(total) < routing.norm_eps, G * den, numerator)
    return m.where(mask, numerator * c / (den * den), 0)


def _d_score_of_norm(m, G, s, p):
    """With q = sum s^p: d_s_j = (G_j q - s_j^(p-1) sum_i G_i s_i) / q^(1 + 1/p), in differences as below."""
    q, before = _powers(m, s, p), m.power(s, p - 1)
    own, other = (..., slice(None), None), (..., None, slice(None))
    pairs = m.take(G, own) * m.take(before, other) - m.take(before, own) * m.take(G, other)
    return m.sum(pairs * m.take(s, other)) / (q * m.root(q, p))


def _differences(m, G, s):
    """sum_i s_i (G_j - G_i) for each j."""
    pairs = m.take(G, (..., slice(None), None)) - m.take(G, (..., None, slice(None)))
    return m.sum(pairs * m.take(s, (..., None, slice(None))))


def _refuse_zero_sums(s, kept, routing):
    counted = np.where(kept, s, np.zeros_like(s))
    zero = (counted == 0).all(axis=-1) & kept.any(axis=-1)
    got, fix = f"0 for token {zero.argmax() if len(zero) else None}", "set routing.norm_eps or raise its logits"
    ok = routing.norm_eps > 0.0 or not zero.any()
    require(ok, ValueError, "routing.normalize", "a positive sum of kept scores", got, fix)


def _at_slots(array, topk_indices, kept, config, num):
    """array[t, topk_indices[t, k]], (T, K), and which slots weigh; where one does not, another of its token stands."""
    made = by_engine(num, "at_slots", array, topk_indices, kept, _num_counted(config))
    if made is not None:
        return made
    weighs = counted(topk_indices, config) if kept is None else kept & counted(topk_indices, config)
    return _at(array, _safe(topk_indices, weighs)), weighs


def _at(array, index):
    """array[t, index[t, k]], (T, K)"""
    return array[np.arange(len(index))[:, None], index]


def _safe(topk_indices, used):
    """The indices, an unused slot pointing where a used one of its token does, so that every slot can be gathered."""
    if used.all():
        return topk_indices
    stand_in = np.take_along_axis(topk_indices, used.argmax(axis=-1)[:, None], axis=-1)
    return np.where(used, topk_indices, np.maximum(stand_in, 0))


def _scatter(values, topk_indices, used, like):
    """values (T, K) at their experts, +0 elsewhere -> (T, E)."""
    out = np.zeros_like(values, shape=like.shape, order="C")
    token, slot = np.nonzero(used)
    out[token, topk_indices[token, slot]] = values[token, slot]
    return out
