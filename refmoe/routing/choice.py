"""What is ranked, and what is chosen. No gradient.   Spec 1.3, 1.4, 1.7"""

import numpy as np

from .. import selection


def choice_scores(logits, scores, selection_bias, routing, num):
    """What is ranked: the base (scores or logits), plus the selection bias, masked by groups.   Spec 1.3

    logits (T, E), scores (T, E), selection_bias (E,) or None -> choice_scores (T, E), group_scores (T, G) or None
    """
    ranked = logits if routing.selection_base == "logits" else scores
    if selection_bias is not None:
        ranked = num.sum("choice_scores", [ranked, selection_bias[None]])
    return selection.grouped(ranked, routing, num) if routing.num_groups > 1 else (ranked, None)


def select_topk(choice_scores, top_k):
    """The top_k best experts of each token, best first; ties to the lowest id.   Spec 1.4

    choice_scores (T, E) -> topk_indices (T, K)
    """
    return selection.ranked(choice_scores, top_k)


def margin(choice_scores, top_k, num):
    """K-th minus (K+1)-th choice score of each token; infinite where the next is masked, or there is none.   Spec 1.7

    choice_scores (T, E) -> margin (T,)
    """
    ordered = -np.sort(-choice_scores, axis=-1)
    if ordered.shape[-1] == top_k:
        return np.full(len(ordered), np.inf, num.dtype)
    last, following = ordered[:, top_k - 1], ordered[:, top_k]
    masked = np.isneginf(following)
    difference = num.sum("margin", [last, -np.where(masked, last, following)])
    return np.where(masked, num.dtype(np.inf), difference)
