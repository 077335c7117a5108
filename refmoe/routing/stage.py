"""The stages: tokens to selection, selection to weights, and back.   Spec 1, 5.3"""

import numpy as np

from .. import selection
from ..numerics import Named, by_engine
from ..refusals import require
from .choice import choice_scores
from .joint import joint_weights, joint_weights_backward
from .logits import make_logits
from .record import RouterGrads
from .scales import (
    scale_shared_weights,
    scale_shared_weights_backward,
    scale_weights,
    scale_weights_backward,
)
from .scope import make_scores
from .weights import topk_weights, topk_weights_backward


def route(x, params, config, num, given, reports=True, needs_scores=True):
    """Logits to selection; the weights follow in `layer`, which may have to drop slots first.   Spec 1

    x (T, D) -> RoutingRecord with topk_weights still None, without lse unless `reports`, without scores where nobody
    needs them and the selection is given
    """
    record = make_logits(x, params, config, num, given)
    logits = record.logits
    for made in (record.raw_logits, record.shared_logits, logits):
        refuse_nonfinite(made, num)
    needs_scores = needs_scores or given.topk_indices is None
    scores = make_scores(logits, config, num, given) if needs_scores else None
    lse = num.evaluate("lse", LOG_SUM_EXP, logits, core=1) if reports else None
    if given.topk_indices is not None:
        indices = selection.given(given.topk_indices, config.num_choices)
        if given.assignment_duals is not None:
            selection.check_assignment(logits, indices, given.assignment_duals, num)
        return record._replace(scores=scores, topk_indices=indices, lse=lse)
    return _choose(record._replace(scores=scores, lse=lse), params, config, num, given)


LOG_SUM_EXP = Named("log_sum_exp", lambda m, z: m.logsumexp(z))


def _choose(record, params, config, num, given):
    """What is ranked, and who is chosen."""
    routing, logits, scores = config.routing, record.logits, record.scores
    rule, last = selection.SELECTIONS[routing.selection], ()
    if routing.selection_base == "sinkhorn":
        rows, columns = selection.sinkhorn(logits, routing.sinkhorn_iterations, num)
        record = record._replace(row_potentials=rows, column_potentials=columns)
        last = (rows[-1], columns[-1]) if len(rows) else ()
    if rule.ranks:
        ranked, groups = choice_scores(logits, scores, params.selection_bias, routing, num, last)
        record = record._replace(choice_scores=ranked, group_scores=groups)
    offer = selection.Offer(logits, scores, record.choice_scores, params, given)
    if routing.second_expert == "sampled" and given.noise is not None:
        second, indices, margin = selection.sampled_second(offer, num)
        return record._replace(second_choice_scores=second, topk_indices=indices, margin=margin)
    indices, margin = rule.choose(offer, config, num)
    return record._replace(topk_indices=indices, margin=margin)


def weigh(record, kept, params, config, num, given=None):
    """The weights of the slots that count and of weighted shared experts, and their learned scales.   Spec 1.5

    kept (T, K) bool, or None for all used ones -> the record with topk_weights, and unscaled ones where they are scaled
    """
    if config.routing.norm_over_shared:
        kept = record.topk_indices >= 0 if kept is None else kept
        saved = record.scores, record.shared_scores, record.topk_indices, kept
        weights, shared = joint_weights(*saved, config, num)
    else:
        weights = topk_weights(record.logits, record.scores, record.topk_indices, kept, config, num, given)
        shared = None
    made = {"topk_weights": weights, "shared_weights": shared}
    if params.expert_scale is not None or params.global_scale is not None:
        scaled = scale_weights(weights, params.expert_scale, params.global_scale, record.topk_indices, num)
        made |= {"unscaled_topk_weights": weights, "topk_weights": scaled}
    if shared is not None and params.global_scale is not None:
        scaled = scale_shared_weights(shared, params.global_scale, num)
        made |= {"unscaled_shared_weights": shared, "shared_weights": scaled}
    return record._replace(**made)


def weigh_backward(d_topk_weights, d_shared_weights, record, kept, params, config, num, into, given=None):
    """From the weights to the logits, the scores and the scales.   Spec 5.3

    d_topk_weights (T, K), d_shared_weights (T, n) or None
    -> d_logits_task (T, E), d_scores (T, E) or None, RouterGrads, parameter gradients by name
    """
    made, grads, also = RouterGrads(), {}, ()
    if record.unscaled_shared_weights is not None:
        also = (d_shared_weights, record.unscaled_shared_weights)
        d_shared_weights = scale_shared_weights_backward(d_shared_weights, params.global_scale, num)
        made = made._replace(d_unscaled_shared_weights=d_shared_weights)
    if record.unscaled_topk_weights is not None:
        saved = record.unscaled_topk_weights, params.expert_scale, params.global_scale, record.topk_indices
        d_topk_weights, *d_scales = scale_weights_backward(
            d_topk_weights, *saved, num, into.expert_scale, into.global_scale, also
        )
        made = made._replace(d_unscaled_topk_weights=d_topk_weights)
        grads = {name: d for name, d in zip(("expert_scale", "global_scale"), d_scales) if d is not None}
    saved = record.logits, record.scores, record.topk_indices, kept
    if not config.routing.norm_over_shared:
        return *topk_weights_backward(d_topk_weights, *saved, config, num, given), made, grads
    saved = record.logits, record.shared_logits, record.scores, record.shared_scores, record.topk_indices, kept
    task, d_shared_logits = joint_weights_backward(d_topk_weights, d_shared_weights, *saved, config, num)
    return task, None, made._replace(d_shared_logits=d_shared_logits), grads


def refuse_nonfinite(logits, num):
    """Raises ValueError for a logit that is not finite.   Spec 1.1"""
    if logits is None or _is_finite(logits, num):
        return
    token, expert = np.argwhere(~np.isfinite(logits))[0].tolist()
    got, fix = f"{logits[token, expert]} for token {token}, expert {expert}", "check x and w_router"
    require(False, ValueError, "logits", "finite values", got, fix)


def _is_finite(logits, num):
    made = by_engine(num, "is_finite", logits)
    return np.isfinite(logits).all() if made is None else made
