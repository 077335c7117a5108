"""What the weights leave of the token itself, and back.   Spec 3.8, 5.9"""

from .. import dispatch


def complement(x, topk_weights, plan):
    """(1 - sum_k w_k) x over the slots that have a row, as terms of a sum: x, then -w_k x.   Spec 3.8   (BASE)"""
    kept = dispatch.kept_weights(topk_weights, plan)
    return [x, *((-kept[:, k, None], x) for k in range(kept.shape[1]))]


def complement_backward(d_routed, topk_weights, plan, num):
    """d_x_residual = (1 - sum_k w_k) d_routed.   Spec 5.9

    d_routed (T, D), topk_weights (T, K) -> (T, D). The weights' part goes with `combine_backward`.
    """
    # routed = ... + x - sum_k w_k x
    return num.sum("d_x_residual", complement(d_routed, topk_weights, plan))
