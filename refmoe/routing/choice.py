"""What is ranked, and the plain rule of choosing. No gradient.   Spec 1.3, 1.4"""

from .. import selection


def choice_scores(logits, scores, selection_bias, routing, num, potentials=()):
    """What is ranked: the base (scores, or logits and their potentials), plus the bias, masked by groups.   Spec 1.3

    logits (T, E), scores (T, E), selection_bias (E,) or None, potentials: Sinkhorn's last (T,) and (E,)
    -> choice_scores (T, E), group_scores (T, G) or None
    """
    base = scores if routing.selection_base == "scores" else logits
    terms = [base, *(f[:, None] for f in potentials[:1]), *(g[None] for g in potentials[1:])]
    terms += [] if selection_bias is None else [selection_bias[None]]
    ranked = base if len(terms) == 1 else num.sum("choice_scores", terms)
    masked = routing.selection == "topk" and routing.num_groups > 1
    return selection.grouped(ranked, routing, num) if masked else (ranked, None)


def select_topk(choice_scores, top_k):
    """The top_k best experts of each token, best first; ties to the lowest id.   Spec 1.4

    choice_scores (T, E) -> topk_indices (T, K)
    """
    return selection.ranked(choice_scores, top_k)
