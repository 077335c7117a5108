"""The two ends of the decoder, tied by one table: embedding, and cross entropy; each with its way back."""

from typing import NamedTuple

import numpy as np

from ...numerics import Named

LOG_SUM_EXP = Named("log_sum_exp", lambda m, z: m.logsumexp(z))


class HeadRecord(NamedTuple):
    logits: object  # (T, V)
    token_losses: object  # (T,)
    loss: object  # the mean


def embed(tokens, embedding, positions):
    """x = embedding[token] + positions[place].

    tokens (B, S), embedding (V, D), positions (S', D) with S' >= S, or None -> (T, D)
    """
    x = embedding[tokens]
    x = x if positions is None else x + positions[: tokens.shape[1]]
    return x.reshape(-1, embedding.shape[1])


def embed_backward(d_x, tokens, d_embedding, positions, num):
    """The head's d_embedding plus the rows of each token;  d_positions = sum over the sequences.

    d_x (T, D), tokens (B, S), d_embedding (V, D) -> d_embedding (V, D), d_positions like positions
    """
    # x = embedding[token] + positions[place]
    flat = tokens.reshape(-1)
    counts = np.bincount(flat, minlength=len(d_embedding))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    rows = d_x[np.argsort(flat, kind="stable")]
    d_embedding = num.sum_rows("d_embedding", rows, offsets, d_embedding)
    if positions is None:
        return d_embedding, None
    d_positions = np.zeros_like(positions)
    by_place = d_x.reshape(*tokens.shape, -1)
    d_positions[: tokens.shape[1]] = num.sum("d_positions", list(by_place))
    return d_embedding, d_positions


def cross_entropy(x, embedding, targets, num):
    """logits = embedding x;  loss = mean over the tokens of log(sum_j exp(logits_j)) - logits_target.

    x (T, D), embedding (V, D), targets (B, S) -> HeadRecord
    """
    logits = num.contract("head_logits", x, embedding)
    lse = num.evaluate("lse", LOG_SUM_EXP, logits, core=1)
    losses = lse - logits[np.arange(len(x)), targets.reshape(-1)]
    return HeadRecord(logits, losses, num.sum_rows("loss", losses[:, None])[0] / len(x))


def cross_entropy_backward(x, embedding, targets, record, num):
    """d_logits = (softmax(logits) - [target]) / T.

    x (T, D), embedding (V, D) -> d_x (T, D), d_embedding (V, D)
    """
    # loss = mean(lse - logits_target)
    T = len(x)
    share = Named("softmax", lambda m, z: m.softmax(z) * m.constant(1 / T), 1 / T)
    d_logits = num.evaluate("d_head_logits", share, record.logits, core=1)
    d_logits[np.arange(T), targets.reshape(-1)] -= 1 / T
    # logits = embedding x
    d_x = num.contract_backward_x("d_final_x", [(d_logits, embedding)])
    return d_x, num.contract_backward_w("d_embedding", d_logits, x)
