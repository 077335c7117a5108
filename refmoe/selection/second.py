"""A second expert by noisy logits.   Spec 1.8"""

import numpy as np

from .ranked import ranked, topk_margin


def sampled_second(offer, num):
    """The best by choice score, then the best of the others by logits + noise.   Spec 1.8; DeepSpeed, NLLB

    choice_scores (T, E), logits (T, E), given.noise (T, E) -> second_choice_scores (T, E), -inf at the first choice,
    topk_indices (T, 2), margin (T,): the smaller of both decisions'
    """
    first = ranked(offer.choice_scores, 1)
    second = num.sum("second_choice_scores", [offer.logits, offer.given.noise])
    np.put_along_axis(second, first, -np.inf, axis=-1)
    margin = np.minimum(topk_margin(offer.choice_scores, 1, num), topk_margin(second, 1, num))
    return second, np.concatenate([first, ranked(second, 1)], axis=-1), margin
