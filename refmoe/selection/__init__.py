"""Selection: what is ranked, what is masked, what is given. Integers out, no gradient.   Spec 1.3, 1.4, 1.8

A rule takes an `Offer` and gives the experts of each token and the margin of that choice. One row of SELECTIONS a rule.
"""

from typing import NamedTuple

from ..config import MoEConfig
from ..refusals import require_instance
from .assignment import check_assignment, is_unique_assignment, solve_assignment
from .expert_choice import expert_choice
from .hashed import hashed
from .ranked import grouped, listed, per_group, ranked, topk, topk_margin
from .replay import check_given, given, require_distinct
from .second import sampled_second
from .sinkhorn import sinkhorn
from .sparsemixer import sparsemixer
from .threshold import threshold
from .top_p import top_p

__all__ = ["SELECTIONS", "Offer", "Rule", "given", "grouped", "is_causal", "per_group", "ranked", "require_distinct"]
__all__ += ["check_assignment", "check_given", "is_unique_assignment", "solve_assignment", "sampled_second", "sinkhorn"]
__all__ += ["expert_choice", "hashed", "listed", "sparsemixer", "threshold", "top_p", "topk", "topk_margin"]


class Offer(NamedTuple):
    """What a rule may choose by."""

    logits: object  # (T, E)
    scores: object  # (T, E)
    choice_scores: object  # (T, E), what is ranked; None for a rule that ranks nothing
    params: object  # MoEParams
    given: object  # Given


class Rule(NamedTuple):
    """How experts are chosen."""

    choose: object  # (offer, config, num) -> topk_indices (T, K), margin (T,) or None
    causal: bool = True  # does a token's choice depend on itself and earlier tokens alone?
    ranks: bool = True  # are there choice scores?
    fixed: bool = True  # does a token have top_k experts? If not, K is the largest count, and top_k a nominal number


SELECTIONS = {
    "topk": Rule(topk),
    "per_group": Rule(per_group),
    "hash": Rule(hashed, ranks=False),
    "threshold": Rule(threshold, fixed=False),
    "top_p": Rule(top_p, fixed=False),
    "sparsemixer": Rule(sparsemixer),
    "assignment": Rule(topk),  # in evaluation; a balanced assignment is given
    "expert_choice": Rule(expert_choice, causal=False, fixed=False),
}


def is_causal(config):
    """Does a token's output depend on itself and earlier tokens of its sequence alone?   Spec 1.9

    Not where a rule, a score or a base of ranking looks across tokens, nor where a capacity lets later slots in first.
    """
    require_instance("config", config, MoEConfig, "use load_preset or MoEConfig")
    soft = Rule(None, causal=False)  # chooses nobody, and mixes everybody
    dispatch, rule = config.dispatch, SELECTIONS.get(config.routing.selection, soft)
    one = config.top_k == 1 and rule.fixed  # slot-major lets a later token's first choice in before a second one
    in_order = dispatch.slot_order == "token_major" or (dispatch.slot_order == "slot_major" and one)
    queue = dispatch.capacity_scope == "sequence" and dispatch.drop_policy == "position" and in_order
    routing = config.routing
    across = not rule.causal or routing.score_fn == "softmax_tokens" or routing.selection_base == "sinkhorn"
    return not across and (queue or not dispatch.limited)
