"""Selection: what is ranked, what is masked, what is given. Integers out, no gradient.   Spec 1.3, 1.4"""

import numpy as np


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
    """Replayed indices, as they stand: -1 is an unused slot.   Spec 1.6

    Raises ValueError for an id outside -1 .. E-1 or one that a token names twice.
    """
    low, high = topk_indices.min(initial=0), topk_indices.max(initial=-1)
    if low < -1 or high >= num_experts:
        raise ValueError(
            f"given.topk_indices: expected ids from -1 to {num_experts - 1}, got {int(low if low < -1 else high)}; "
            "use -1 for an unused slot"
        )
    ordered = np.sort(topk_indices, axis=-1)
    repeated = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    if repeated.any():
        token = int(np.nonzero(repeated.any(axis=-1))[0][0])
        raise ValueError(
            f"given.topk_indices: expected each token to name an expert once, got {topk_indices[token].tolist()} "
            f"for token {token}; replace the repeat by -1"
        )
    return topk_indices.astype(np.int64)

