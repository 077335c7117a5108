"""Learned factors of the weights, one an expert and one of all, and back.   Spec 1.5, 5.3"""

import numpy as np


def scale_weights(unscaled_topk_weights, expert_scale, global_scale, topk_indices, num):
    """topk_weights = unscaled_topk_weights expert_scale[e] global_scale: one stage.   Spec 1.5

    unscaled_topk_weights (T, K), expert_scale (E,) and global_scale (1,) or None, topk_indices (T, K)
    -> topk_weights (T, K)
    """
    factors = _factors(expert_scale, global_scale, topk_indices)
    return num.evaluate("topk_weights", _product, unscaled_topk_weights, *factors)


def scale_weights_backward(
    d_topk_weights,
    unscaled_topk_weights,
    expert_scale,
    global_scale,
    topk_indices,
    num,
    into_expert=None,
    into_global=None,
    also=(),
):
    """d_unscaled = d_w expert_scale[e] global_scale; each scale's gradient sums d_w times the other two.   Spec 5.3

    d_topk_weights (T, K) and the forward's arguments
    -> d_unscaled_topk_weights (T, K), d_expert_scale (E,) or None, d_global_scale (1,) or None
    The scales' gradients are added to `into_expert` and `into_global` where given; `also`: two factors (T, n) of more
    products that the gradient of the global scale sums.
    """
    # w = unscaled expert_scale[e] global_scale
    both = expert_scale, global_scale
    d_unscaled = num.evaluate("d_unscaled_topk_weights", _product, d_topk_weights, *_factors(*both, topk_indices))
    used, d_expert, d_global = topk_indices >= 0, None, None
    products = d_topk_weights, unscaled_topk_weights
    if expert_scale is not None:
        others = [*products, *_factors(None, global_scale, topk_indices)]
        start = np.zeros_like(expert_scale) if into_expert is None else into_expert
        d_expert = _sums("d_expert_scale", others, [topk_indices == e for e in range(len(start))], start, num)
    if global_scale is not None:
        others = [array[used] for array in (*products, *_factors(expert_scale, None, topk_indices))]
        if also:
            more = [*also, np.ones_like(also[0])]
            others = [_in_line(array, of_shared) for array, of_shared in zip(others, more)]
        start = np.zeros_like(global_scale) if into_global is None else into_global
        d_global = _sums("d_global_scale", others, [...], start, num)
    return d_unscaled, d_expert, d_global


def scale_shared_weights(unscaled_shared_weights, global_scale, num):
    """shared_weights = unscaled_shared_weights global_scale.   Spec 1.5

    unscaled_shared_weights (T, n), global_scale (1,) -> shared_weights (T, n)
    """
    return num.evaluate("shared_weights", _product, unscaled_shared_weights, global_scale[None])


def scale_shared_weights_backward(d_shared_weights, global_scale, num):
    """d_unscaled_shared_weights = d_shared_weights global_scale.   Spec 5.3

    d_shared_weights (T, n), global_scale (1,) -> (T, n)
    """
    # shared_weights = unscaled global_scale
    return num.evaluate("d_unscaled_shared_weights", _product, d_shared_weights, global_scale[None])


def _factors(expert_scale, global_scale, topk_indices):
    """The scales at each slot; an unused slot has the first expert's, and weighs +0 all the same."""
    factors = [] if expert_scale is None else [expert_scale[np.maximum(topk_indices, 0)]]
    return factors if global_scale is None else [*factors, np.broadcast_to(global_scale, topk_indices.shape)]


def _product(m, first, *others):
    for other in others:
        first = first * other
    return first


def _sums(name, factors, masks, start, num):
    """start[i] + the sum over masks[i] of the factors' product, for each i: one stage an entry."""
    made = np.zeros_like(start)
    for i, mask in enumerate(masks):
        first, *others = [array[mask] for array in factors]
        terms = _in_line(start[i : i + 1], first), *(_in_line(np.ones(1, num.dtype), other) for other in others)
        made[i] = num.evaluate(name, lambda m, *f: m.sum(_product(m, *f)), *terms, core=1)
    return made


def _in_line(first, second):
    """All elements of one array, then all of the other."""
    return np.concatenate([first.reshape(-1), second.reshape(-1)])
