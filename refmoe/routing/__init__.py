"""The router's stage: from tokens to the experts they choose and the weights they give, and back.   Spec 1, 5.1-5.3

    logits -> scores -> choice scores -> selection -> weights

Only the logits and the scores carry gradient; what is chosen is a constant of the way back.
"""

from .choice import choice_scores, select_topk
from .front import jitter_backward
from .joint import joint_weights, joint_weights_backward
from .logits import is_jittered, make_logits, make_logits_backward, router_logits, router_logits_backward
from .record import RouterGrads, RoutingRecord
from .scales import scale_weights, scale_weights_backward
from .sparsemixer import ESTIMATORS, sparsemixer_weights, sparsemixer_weights_backward
from .stage import refuse_nonfinite, route, weigh, weigh_backward
from .weights import reads_scores, softmax_of_kept, topk_weights, topk_weights_backward

__all__ = [
    "ESTIMATORS",
    "RouterGrads",
    "RoutingRecord",
    "choice_scores",
    "is_jittered",
    "jitter_backward",
    "joint_weights",
    "joint_weights_backward",
    "make_logits",
    "make_logits_backward",
    "reads_scores",
    "refuse_nonfinite",
    "route",
    "router_logits",
    "router_logits_backward",
    "scale_weights",
    "scale_weights_backward",
    "select_topk",
    "softmax_of_kept",
    "sparsemixer_weights",
    "sparsemixer_weights_backward",
    "topk_weights",
    "topk_weights_backward",
    "weigh",
    "weigh_backward",
]
