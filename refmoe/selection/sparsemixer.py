"""SparseMixer's choice: the best, then the best of the rest.   Spec 1.8"""

import numpy as np

from .ranked import ranked, topk_margin


def sparsemixer(offer, config, num):
    """The two largest logits, in order; a sampled choice is replayed.   Spec 1.8; Phi-3.5-MoE

    choice_scores (T, E), the logits -> topk_indices (T, 2), margin (T,): of the first against the second choice, or of
    the second against the third, whichever is smaller
    """
    choice = offer.choice_scores
    return ranked(choice, 2), np.minimum(topk_margin(choice, 1, num), topk_margin(choice, 2, num))
