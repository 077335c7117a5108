"""Selection: what is ranked, what is masked, what is given. Integers out, no gradient.   Spec 1.3, 1.4"""

import numpy as np

from .refusals import require


def ranked(choice_scores, top_k):
    """The ids of the top_k largest entries, best first; ties to the lowest id, -0 equal to +0.   Spec 1.4

    choice_scores (T, E), no NaN -> topk_indices (T, K) int64
    """
    return np.argsort(-choice_scores, axis=-1, kind="stable")[:, :top_k].astype(np.int64)


def grouped(choice_scores, routing, num):
    """Entries outside the best groups become -inf or 0; a group's score is the sum of its best n entries.   Spec 1.3

    choice_scores (T, E) -> choice_scores (T, E), group_scores (T, G). Ties to the lowest group id.
    """
    T, E = choice_scores.shape
    by_group = choice_scores.reshape(T, routing.num_groups, E // routing.num_groups)
    best = -np.sort(-by_group, axis=-1)[..., : routing.group_score_topn]
    group_scores = num.sum("group_scores", [best[..., n] for n in range(best.shape[-1])])
    kept = np.zeros((T, routing.num_groups, 1), bool)
    np.put_along_axis(kept[..., 0], ranked(group_scores, routing.top_groups), True, axis=-1)
    fill = choice_scores.dtype.type(-np.inf if routing.group_mask == "-inf" else 0.0)
    return np.where(kept, by_group, fill).reshape(T, E), group_scores


def given(topk_indices, num_experts):
    """Replayed indices, as they stand: their order is kept, -1 is an unused slot.   Spec 1.6

    topk_indices (T, K) -> the same, int64. Raises ValueError for an id outside -1 .. E-1, or one a token names twice.
    """
    outside = topk_indices[(topk_indices < -1) | (topk_indices >= num_experts)]
    wanted, fix = f"ids from -1 to {num_experts - 1}", "use -1 for an unused slot"
    require(not outside.size, ValueError, "given.topk_indices", wanted, outside[:1], fix)
    ordered = np.sort(topk_indices, axis=-1)
    repeats = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any(axis=-1)
    wanted, fix = "each token to name an expert once", "replace the repeat by -1"
    require(not repeats.any(), ValueError, "given.topk_indices", wanted, topk_indices[repeats][:1].tolist(), fix)
    return topk_indices.astype(np.int64)
