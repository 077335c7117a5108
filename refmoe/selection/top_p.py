"""As many experts as make up a share of the scores.   Spec 1.8"""

import numpy as np

from .ranked import listed, ranked


def top_p(offer, config, num):
    """The fewest of the best whose scores sum to at least p, compared exactly; all if none do.   Spec 1.8

    scores (T, E), choice_scores (T, E) -> topk_indices (T, K), K the largest count, -1 where unused;
    margin (T,): the smallest change of a sum or of a choice score that would change the set
    """
    choice = offer.choice_scores
    order = ranked(choice, choice.shape[1])
    beyond = _beyond(np.take_along_axis(offer.scores, order, axis=-1), config.routing.top_p, num)
    reached = ~np.signbit(beyond)  # a sum short of p by less than any stored value is -0
    reached[:, -1] = True
    last = reached.argmax(axis=-1)
    taken = np.zeros(choice.shape, bool)
    np.put_along_axis(taken, order, np.arange(choice.shape[1]) <= last[:, None], axis=-1)
    return listed(choice, taken), _margin(np.take_along_axis(choice, order, axis=-1), beyond, last, num)


def _beyond(best_first, p, num):
    """The sum of the best n scores minus p, for each n: rounded, with the sign of the exact value."""
    terms = list(best_first.T)
    sums = [num.sum("margin", [*terms[: n + 1], np.full(len(best_first), -p)]) for n in range(len(terms))]
    return np.stack(sums, axis=-1)


def _margin(best_first, beyond, last, num):
    """The smallest of: the gap to the next expert, what the sum has beyond p, what it lacked before its last expert."""
    T, E = best_first.shape
    tokens, infinite = np.arange(T), np.full(T, np.inf, num.dtype)
    following = np.minimum(last + 1, E - 1)
    gap = num.sum("margin", [best_first[tokens, last], -best_first[tokens, following]])
    surplus, lacked = beyond[tokens, last], -beyond[tokens, last - 1]
    ends = last == E - 1
    return np.min([np.where(ends, infinite, np.minimum(gap, surplus)), np.where(last == 0, infinite, lacked)], axis=0)
