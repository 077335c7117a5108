"""The tokens a loss is about, by scope, and who was chosen among them: integers.   Spec 4.1, 4.5"""

from typing import NamedTuple

import numpy as np

from .. import selection


class Scopes(NamedTuple):
    """The tokens over which fractions are taken: one scope for the batch, or one a sequence."""

    tokens: object  # (V,) the unmasked tokens
    scope: object  # (V,) the scope of each
    tokens_local: object  # (S,) tokens of each scope in this batch
    tokens_counted: object  # (S,) tokens its counts stand for, earlier micro-batches included


def loss_scopes(num_tokens, loss, config, given):
    """Which tokens each scope of a loss has; `loss` is its section, whose scope is the batch unless it says otherwise.

    Spec 4.1, 4.5
    """
    tokens = np.arange(num_tokens) if given.token_mask is None else np.flatnonzero(given.token_mask)
    kind = getattr(loss, "scope", "batch")
    labels = given.sequence_ids[tokens] if kind == "sequence" else np.zeros(len(tokens), np.int64)
    scope = np.unique(labels, return_inverse=True)[1].reshape(-1)
    local = np.bincount(scope).astype(np.int64)
    counted = local
    if kind == "global" and given.counts_so_far is not None:
        choices = config.top_k if loss.counts == "all" else 1
        counted = local + int(given.counts_so_far.sum()) // choices
    return Scopes(tokens, scope, local, counted)


def balance_counts(scores, topk_indices, scopes, config, given):
    """n_e by scope: of all choices or the first, in the actual selection or the plain top K of the scores.   Spec 4.1

    scores (T, E), topk_indices (T, K) -> (S, E) int64
    """
    loss = config.losses.balance
    chosen = topk_indices if loss.selection == "actual" else selection.ranked(scores, config.top_k)
    chosen = chosen[scopes.tokens, : 1 if loss.counts == "first" else None]
    counts = np.zeros((len(scopes.tokens_local), config.num_choices), np.int64)
    np.add.at(counts, (np.where(chosen >= 0, scopes.scope[:, None], 0), chosen), chosen >= 0)
    if loss.scope == "global" and given.counts_so_far is not None and len(counts):
        counts = counts + given.counts_so_far
    return counts


def spread(rows, scopes, like):
    """rows (V, E) at their tokens, +0 for the masked ones -> (T, E).   Spec 4.5"""
    out = np.zeros(like.shape, rows.dtype)
    out[scopes.tokens] = rows
    return out
