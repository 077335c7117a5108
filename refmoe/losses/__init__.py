"""The losses a router adds to the task's, each with its backward; and the controllers beside them.   Spec 4, 5.8

A loss is one stage over logits and integers; fractions and mean probabilities are never rounded on the way. Counts are
constants of the way back. Masked tokens are neither counted nor averaged. One reads no tokens: orthogonality.
"""

from typing import NamedTuple

from .balance import (
    balance_loss,
    balance_loss_backward,
    communication_loss,
    communication_loss_backward,
    device_loss,
    device_loss_backward,
)
from .controllers import (
    CONTROLLERS,
    PIDState,
    bias_edges,
    bias_histogram,
    required_bias,
    update_by_centred_sign,
    update_by_histogram,
    update_by_pid,
    update_by_quantile,
    update_by_share,
    update_coefficient,
    update_in_proportion,
    update_selection_bias,
)
from .importance import importance_loss, importance_loss_backward
from .load import load_loss, load_loss_backward
from .mutual import mutual_information_loss, mutual_information_loss_backward
from .orthogonality import orthogonality_loss, orthogonality_loss_backward
from .pooled import pooled_balance_loss, pooled_balance_loss_backward
from .scopes import Scopes, balance_counts, communication_counts, device_counts, loss_scopes
from .z import z_loss, z_loss_backward


class Losses(NamedTuple):
    """Scalars, None where not configured; as `d_losses`, their upstream gradients."""

    balance: object = None
    z: object = None
    importance: object = None
    balance_counts: object = None  # (S, E) int64: the counts each scope's fractions were made of
    device: object = None
    communication: object = None
    mutual_information: object = None
    load: object = None
    orthogonality: object = None


LOSSES = {
    "balance": (balance_loss, balance_loss_backward),
    "z": (z_loss, z_loss_backward),
    "importance": (importance_loss, importance_loss_backward),
    "device": (device_loss, device_loss_backward),
    "communication": (communication_loss, communication_loss_backward),
    "mutual_information": (mutual_information_loss, mutual_information_loss_backward),
    "load": (load_loss, load_loss_backward),
    "orthogonality": (orthogonality_loss, orthogonality_loss_backward),
}

# What a pair reads, in the order of its arguments: fields of the routing record, `counts` and `scopes`.
READS = {
    "balance": ("logits", "counts", "scopes"),
    "z": ("logits", "scopes"),
    "importance": ("logits", "topk_indices", "scopes"),
    "device": ("logits", "counts", "scopes"),
    "communication": ("logits", "counts", "scopes"),
    "mutual_information": ("logits", "scopes"),
    "load": ("clean_logits", "noise_std", "logits", "topk_indices", "scopes"),
    "orthogonality": ("router_gram",),
}

# The gradients a backward returns, in order.
GIVES = {
    "balance": ("d_logits_balance",),
    "z": ("d_logits_z",),
    "importance": ("d_logits_importance",),
    "device": ("d_logits_device",),
    "communication": ("d_logits_communication",),
    "mutual_information": ("d_logits_mutual_information",),
    "load": ("d_logits_load", "d_clean_logits_load", "d_noise_std_load"),
    "orthogonality": ("d_router_gram_orthogonality",),
}

# Who was chosen how often, for the losses whose fractions count it.
COUNTS = {"balance": balance_counts, "device": device_counts, "communication": communication_counts}


def loss_arguments(routing, config, given, counts=None):
    """name -> what that loss reads, for every loss the configuration has.   Spec 4.5

    routing: a record with logits, scores and topk_indices. counts: the balance loss's, taken over from another run.
    """
    return {name: _arguments(name, routing, config, given, counts) for name in config.losses.present}


def _arguments(name, routing, config, given, counts):
    scopes = loss_scopes(len(routing.logits), getattr(config.losses, name), config, given)
    if name in COUNTS and (counts is None or name != "balance"):
        counts = COUNTS[name](routing.scores, routing.topk_indices, scopes, config, given)
    beside = {"scopes": scopes, "counts": counts}
    return tuple(beside[read] if read in beside else getattr(routing, read) for read in READS[name])


def all_losses(routing, config, num, given, counts=None):
    """Every loss the configuration has, and the counts behind the balance loss.   Spec 4.5"""
    arguments = loss_arguments(routing, config, given, counts)
    made = {name: LOSSES[name][0](*read, config, num) for name, read in arguments.items()}
    if "balance" in arguments:
        made["balance_counts"] = arguments["balance"][READS["balance"].index("counts")]
    return Losses(**made)


def loss_gradients(d_losses, routing, config, num, given, counts=None):
    """name of the gradient -> its tensor, for every loss the configuration has; 1 for a missing number.   Spec 5.8"""
    found = {}
    for name, read in loss_arguments(routing, config, given, counts).items():
        upstream = None if d_losses is None else getattr(d_losses, name)
        made = LOSSES[name][1](1.0 if upstream is None else upstream, *read, config, num)
        found |= dict(zip(GIVES[name], made if isinstance(made, tuple) else (made,), strict=True))
    return {name: gradient for name, gradient in found.items() if gradient is not None}


__all__ = [
    "CONTROLLERS",
    "COUNTS",
    "GIVES",
    "LOSSES",
    "READS",
    "Losses",
    "PIDState",
    "Scopes",
    "all_losses",
    "balance_counts",
    "bias_edges",
    "bias_histogram",
    "balance_loss",
    "balance_loss_backward",
    "communication_counts",
    "communication_loss",
    "communication_loss_backward",
    "device_counts",
    "device_loss",
    "device_loss_backward",
    "importance_loss",
    "importance_loss_backward",
    "load_loss",
    "load_loss_backward",
    "loss_arguments",
    "loss_gradients",
    "loss_scopes",
    "mutual_information_loss",
    "mutual_information_loss_backward",
    "orthogonality_loss",
    "orthogonality_loss_backward",
    "pooled_balance_loss",
    "pooled_balance_loss_backward",
    "required_bias",
    "update_by_centred_sign",
    "update_by_histogram",
    "update_by_pid",
    "update_by_quantile",
    "update_by_share",
    "update_coefficient",
    "update_in_proportion",
    "update_selection_bias",
    "z_loss",
    "z_loss_backward",
]
