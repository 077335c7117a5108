"""What is ranked, and the plain rule of choosing. No gradient.   Spec 1.3, 1.4"""

from .. import selection


def choice_scores(logits, scores, selection_bias, routing, num):
    """What is ranked: the base (scores or logits), plus the selection bias, masked by groups.   Spec 1.3

    logits (T, E), scores (T, E), selection_bias (E,) or None -> choice_scores (T, E), group_scores (T, G) or None
    """
    ranked = logits if routing.selection_base == "logits" else scores
    if selection_bias is not None:
        ranked = num.sum("choice_scores", [ranked, selection_bias[None]])
    masked = routing.selection == "topk" and routing.num_groups > 1
    return selection.grouped(ranked, routing, num) if masked else (ranked, None)


def select_topk(choice_scores, top_k):
    """The top_k best experts of each token, best first; ties to the lowest id.   Spec 1.4

    choice_scores (T, E) -> topk_indices (T, K)
    """
    return selection.ranked(choice_scores, top_k)
