"""As many experts as are good enough: every one above a threshold.   Spec 1.8"""

import numpy as np

from .ranked import listed


def threshold(offer, config, num):
    """Every expert whose choice score exceeds the threshold, compared exactly.   Spec 1.8; ReMoE with ReLU scores

    choice_scores (T, E) -> topk_indices (T, K), K the largest count and at least 1, -1 where unused;
    margin (T,): the smallest distance of a choice score from the threshold
    """
    choice, limit = offer.choice_scores, np.float64(config.routing.threshold)
    distance = np.abs(num.sum("margin", [choice, -limit]))
    return listed(choice, choice.astype(np.float64) > limit), np.min(distance, axis=-1)
