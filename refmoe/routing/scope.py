"""Scores by the tokens they are taken over, and back.   Spec 1.2, 5.2"""

import numpy as np

from ..dispatch import capacity_scopes
from ..scores import SCORE_FNS

OVER_TOKENS = ("softmax_tokens",)  # scores that read all tokens of a scope; of the others each token is its own


def make_scores(logits, config, num, given):
    """The scores of the logits; a score over tokens within each scope that shares a capacity.   Spec 1.2

    logits (T, E) -> scores (T, E)
    """
    return _by_scope(SCORE_FNS[config.routing.score_fn][0], [logits], config, num, given)


def make_scores_backward(d_scores, logits, config, num, given):
    """d_logits from d_scores, by the same scopes.   Spec 5.2

    d_scores (T, E), logits (T, E) -> d_logits (T, E)
    """
    return _by_scope(SCORE_FNS[config.routing.score_fn][1], [d_scores, logits], config, num, given)


def _by_scope(function, arrays, config, num, given):
    if config.routing.score_fn not in OVER_TOKENS:
        return function(*arrays, num)
    made = np.zeros_like(arrays[0], order="C")
    for tokens in capacity_scopes(len(made), config.dispatch, given):
        if len(tokens):
            made[tokens] = function(*(array[tokens] for array in arrays), num)
    return made
