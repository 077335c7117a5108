"""The best by rank, alone and group by group; and the mask of other groups.   Spec 1.3, 1.4, 1.8"""

import numpy as np


def ranked(choice_scores, top_k):
    """The ids of the top_k largest entries, best first; ties to the lowest id, -0 equal to +0.   Spec 1.4

    choice_scores (T, E), no NaN -> topk_indices (T, K) int64
    """
    return np.argsort(-choice_scores, axis=-1, kind="stable")[:, :top_k].astype(np.int64)


def listed(choice_scores, taken):
    """The ids taken, best first, with -1 behind them: as many slots as the largest count, and at least 1.   Spec 1.8

    choice_scores (T, E), taken (T, E) bool -> topk_indices (T, K) int64
    """
    counts = np.count_nonzero(taken, axis=-1)
    order = ranked(np.where(taken, choice_scores, choice_scores.dtype.type(-np.inf)), counts.max(initial=1))
    return np.where(np.arange(order.shape[1]) < counts[:, None], order, -1)


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


def topk(offer, config, num):
    """The K best of each token.   Spec 1.4

    choice_scores (T, E) -> topk_indices (T, K), margin (T,)
    """
    return ranked(offer.choice_scores, config.top_k), topk_margin(offer.choice_scores, config.top_k, num)


def topk_margin(choice_scores, top_k, num):
    """K-th minus (K+1)-th choice score; infinite where the next expert is masked, or there is none.   Spec 1.7

    choice_scores (..., E) -> (...)
    """
    ordered = -np.sort(-choice_scores, axis=-1)
    if ordered.shape[-1] == top_k:
        return np.full(ordered.shape[:-1], np.inf, num.dtype)
    last, following = ordered[..., top_k - 1], ordered[..., top_k]
    masked = np.isneginf(following)
    difference = num.sum("margin", [last, -np.where(masked, last, following)])
    return np.where(masked, num.dtype(np.inf), difference)


def per_group(offer, config, num):
    """The K / G best of each of the G groups, listed by rank over all of them.   Spec 1.8; Pangu Pro MoGE

    choice_scores (T, E) -> topk_indices (T, K), margin (T,): the smallest of the groups' margins
    """
    choice, groups = offer.choice_scores, config.routing.num_groups
    share, size = config.top_k // groups, choice.shape[1] // groups
    by_group = choice.reshape(len(choice), groups, size)
    best = np.argsort(-by_group, axis=-1, kind="stable")[..., :share] + size * np.arange(groups)[:, None]
    taken = np.zeros(choice.shape, bool)
    np.put_along_axis(taken, best.reshape(len(choice), config.top_k), True, axis=-1)
    kept = np.where(taken, choice, choice.dtype.type(-np.inf))
    return ranked(kept, config.top_k), np.min(topk_margin(by_group, share, num), axis=-1)
