"""The stage: logits to selection.   Spec 1"""

import numpy as np

from .. import selection
from ..refusals import require
from ..scores import SCORE_FNS
from .choice import choice_scores, margin, select_topk
from .logits import router_logits
from .record import RoutingRecord


def route(x, params, config, num, given):
    """Logits to selection; the weights follow in `layer`, which may have to drop slots first.   Spec 1

    x (T, D) -> RoutingRecord with topk_weights still None
    """
    logits = given.logits if given.logits is not None else router_logits(x, params.w_router, params.router_bias, num)
    _refuse_nonfinite(logits)
    scores = SCORE_FNS[config.routing.score_fn][0](logits, num)
    lse = num.evaluate("lse", lambda m, z: m.logsumexp(z), logits, core=1)
    if given.topk_indices is not None:
        indices = selection.given(given.topk_indices, config.num_choices)
        return RoutingRecord(logits=logits, scores=scores, topk_indices=indices, lse=lse)
    ranked, group_scores = choice_scores(logits, scores, params.selection_bias, config.routing, num)
    indices = select_topk(ranked, config.top_k)
    return RoutingRecord(
        logits=logits,
        scores=scores,
        choice_scores=ranked,
        group_scores=group_scores,
        topk_indices=indices,
        lse=lse,
        margin=margin(ranked, config.top_k, num),
    )


def _refuse_nonfinite(logits):
    bad = ~np.isfinite(logits)
    if bad.any():
        token, expert = np.argwhere(bad)[0].tolist()
        got, fix = f"{logits[token, expert]} for token {token}, expert {expert}", "check x and w_router"
        require(False, ValueError, "logits", "finite values", got, fix)
