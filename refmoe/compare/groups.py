"""Which expert an element of a tensor belongs to.   Spec 7.12"""

from typing import NamedTuple

import numpy as np

from ..golden.inputs import is_expert_tensor
from .stages import is_made

OF_PARTS = ("routed", "y", "grads.d_x", "grads.d_x_experts")  # sums over a token's experts


class Grouping(NamedTuple):
    """Elements by expert; of a sum over experts the parts, by row."""

    experts: int = 0
    labels: object = None  # broadcasts to the tensor: the expert of each element
    summed: bool = False  # is each element a sum over rows?
    tokens: object = None  # (N,) the token of each part
    parts: object = None  # (N, D)
    labels_of_parts: object = None  # (N,)

    def owners(self, array):
        """(R,) the expert of each row, ascending; None where a row has none, or several."""
        if self.labels is None or array.ndim == 0 or np.shape(self.labels)[:1] != array.shape[:1]:
            return None
        labels = np.asarray(self.labels)
        whole = labels.ndim == array.ndim and all(size == 1 for size in labels.shape[1:])
        return labels.reshape(-1) if whole and (np.diff(labels.reshape(-1)) >= 0).all() else None


def grouping(name, array, run, config):
    """The Grouping of the tensor `name`."""
    E, plan = config.num_choices, run.record.plan
    if is_expert_tensor(name.removeprefix("grads.")) and array.ndim and ".shared." not in name:
        return Grouping(array.shape[0], np.arange(array.shape[0]).reshape(-1, *[1] * (array.ndim - 1)), summed=True)
    if name.startswith("grads.params."):
        return Grouping(summed=True)
    if plan is None:
        return Grouping()
    tokens = len(plan.slot_row)
    if array.ndim == 2 and array.shape == (tokens, E):
        return Grouping(E, np.arange(E))
    if array.shape == plan.slot_row.shape and name.rpartition(".")[2].endswith("topk_weights"):
        return Grouping(E, np.asarray(run.record.routing.topk_indices))
    owners = np.repeat(np.arange(E), np.diff(plan.expert_offsets))
    if name.startswith(("experts.", "grads.rows.")) or (name.endswith("_rows") and ".shared." not in name):
        known = array.ndim == 2 and len(array) <= len(owners)
        return Grouping(E, owners[: len(array)][:, None]) if known else Grouping()
    if name in OF_PARTS:
        return _of_parts(name, array, run, config, owners)
    return Grouping()


def _of_parts(name, array, run, config, owners):
    plan, experts = run.record.plan, run.record.experts
    if name in ("routed", "y"):
        rows = experts.y_rows if experts.normed_y_rows is None else experts.normed_y_rows
    else:
        rows = run.grads.rows.d_x_rows
    if not is_made(rows) or rows.shape[1:] != array.shape[1:]:
        return Grouping()
    parts = np.asarray(rows, np.float64)
    if name in ("routed", "y") and config.experts.weight_position == "output":
        parts = parts * np.asarray(run.record.routing.topk_weights, np.float64).reshape(-1)[plan.row_slot][:, None]
    tokens = plan.row_slot // plan.slot_row.shape[1]
    return Grouping(config.num_choices, tokens=tokens, parts=parts, labels_of_parts=owners)
