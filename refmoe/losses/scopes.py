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


def device_counts(scores, topk_indices, scopes, config, given):
    """Choices of any expert of e's device, by scope; an id without weights is on no device and has 0.   Spec 4.6

    topk_indices (T, K) -> (S, E) int64
    """
    devices = config.losses.device.num_devices
    device, used = _devices(topk_indices[scopes.tokens], devices, config)
    counts = np.zeros((len(scopes.tokens_local), devices), np.int64)
    np.add.at(counts, (np.where(used, scopes.scope[:, None], 0), device), used)
    return _by_id(counts, config)


def communication_counts(scores, topk_indices, scopes, config, given):
    """Tokens that chose at least one expert of e's device, by scope.   Spec 4.6

    topk_indices (T, K) -> (S, E) int64
    """
    devices = config.losses.communication.num_devices
    device, used = _devices(topk_indices[scopes.tokens], devices, config)
    sent = np.zeros((len(device), devices + 1), np.int64)
    np.put_along_axis(sent, np.where(used, device, devices), 1, axis=-1)  # an unused slot falls on the spare column
    counts = np.zeros((len(scopes.tokens_local), devices), np.int64)
    np.add.at(counts, scopes.scope, sent[:, :-1])
    return _by_id(counts, config)


def _devices(chosen, devices, config):
    """The device of each slot's expert, and whether it has one: experts lie on devices in runs of equal length."""
    used = (chosen >= 0) & (chosen < config.num_experts)
    return np.where(used, chosen, 0) // (config.num_experts // devices), used


def _by_id(counts, config):
    """counts (S, devices) -> (S, E): an expert has its device's."""
    by_expert = np.repeat(counts, config.num_experts // counts.shape[1], axis=1)
    return np.pad(by_expert, ((0, 0), (0, config.num_choices - config.num_experts)))


def spread(rows, scopes, like):
    """rows (V, E) at their tokens, +0 for the masked ones -> (T, E).   Spec 4.5"""
    out = np.zeros_like(rows, shape=like.shape, order="C")
    out[scopes.tokens] = rows
    return out
