"""Experts that choose their tokens.   Spec 1.8"""

import numpy as np

from ..dispatch import capacity_of, capacity_scopes
from .ranked import ranked


def expert_choice(offer, config, num):
    """Every expert takes its C best tokens of each scope, ties to the lowest token.   Spec 1.8; Zhou et al. 2022

    choice_scores (T, E) -> topk_indices (T, K), a token's experts by id, K the largest count and at least 1, -1 where
    unused; margin (T,): the smallest distance of a token's choice scores from where an expert's choice would change
    """
    choice = offer.choice_scores
    taken, margin = np.zeros(choice.shape, bool), np.full(len(choice), np.inf, num.dtype)
    for tokens in capacity_scopes(len(choice), config.dispatch, offer.given):
        if not len(tokens):
            continue
        limit = capacity_of(config.dispatch, len(tokens), config.top_k, config.num_experts)
        limit = len(tokens) if limit is None else min(limit, len(tokens))
        best = ranked(choice[tokens].T, limit)
        taken[tokens[best], np.arange(choice.shape[1])[:, None]] = True
        margin[tokens] = np.min(_distances(choice[tokens].T, limit, taken[tokens].T, num), axis=0, initial=np.inf)
    return _by_id(taken), margin


def _distances(by_expert, limit, taken, num):
    """By expert and token: what a token taken has above the next one, or what one left out lacks to the last taken."""
    ordered = -np.sort(-by_expert, axis=-1)
    missing = np.where(taken, limit == ordered.shape[1], limit == 0)  # there is no next one, or no last one
    following = ordered[:, min(limit, ordered.shape[1] - 1), None]
    edge = np.where(taken, following, ordered[:, max(limit, 1) - 1, None])
    return np.where(missing, num.dtype(np.inf), np.abs(num.sum("margin", [by_expert, -edge])))


def _by_id(taken):
    counts = np.count_nonzero(taken, axis=-1)
    order = np.argsort(~taken, axis=-1, kind="stable")[:, : counts.max(initial=1)].astype(np.int64)
    return np.where(np.arange(order.shape[1]) < counts[:, None], order, -1)
