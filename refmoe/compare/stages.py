"""Every stage of a case, with what another implementation may make of it, on the law's inputs and on its own.

Spec 7.12
"""

from typing import NamedTuple

import numpy as np

from ..formats import FORMATS
from ..golden.inputs import stage_name
from ..golden.run import flattened
from ..inputs import Given
from ..layer import moe_backward, moe_forward
from ..numerics import FORMAT_OF
from .late import LateGradient, late_gradients
from .tracked import Tracked, track
from .tracking import Submitted, Tracking

LATE = ("d_w_gate", "d_w_up", "d_w_down")


class Run(NamedTuple):
    """One passage through the layer: the records, and their tensors by name in causal order."""

    record: object
    grads: object
    tensors: dict
    made: int  # elements that stages made
    lost: list  # stages whose operands came without what was known of them


def passage(config, inputs, num, accumulator, topk_indices=None, submitted=None):
    """The layer under `Tracking`; with another's selection, and with another's tensors in place of the law's."""
    tracking = Tracking(num, accumulator, submitted, late=LATE)
    given = Given(**inputs.given)
    if topk_indices is not None:
        given = given._replace(topk_indices=topk_indices)
    x = track(inputs.x)
    record = moe_forward(x, inputs.params, config, tracking, given=given, keep="all")
    tensors = dict(flattened("", record))
    grads = None
    if inputs.d_y is not None:
        into = late_gradients(inputs.params)
        grads = moe_backward(track(inputs.d_y), x, inputs.params, record, config, tracking, given=given, into=into)
        tensors |= dict(flattened("grads", grads))
    return Run(record, grads, tensors, tracking.ledger.made, tracking.ledger.lost)


def submission(run, mine, first=()):
    """The submitted tensors by the origin of their elements. A copy of a submitted tensor is judged, and not read.

    first: names whose elements count before those they are copies of.
    """
    given, values = np.zeros(run.made + 1, bool), np.zeros(run.made + 1)
    for name, array in sorted(run.tensors.items(), key=lambda row: row[0] not in first):
        if name in mine and is_made(array) and mine[name].values.shape == array.shape:
            origin = array.part("origin")
            new = ~given[origin]
            values[origin[new]] = mine[name].values[new]
            given[origin] = True
    given[0] = False
    return Submitted(given, values)


def is_made(array):
    """Did stages make this tensor, and is it known how?"""
    return isinstance(array, Tracked) and array.parts is not None


def is_late(array):
    """Is this made an expert at a time?"""
    return isinstance(array, LateGradient)


def coarser_formats(name, dtype, num):
    """The rows of FORMATS that a submitted value went through: that of the stage, and the submitted type's."""
    stage = stage_name(name)
    format_name = num.format_of(stage) if stage in FORMAT_OF else num.store
    return [FORMATS[format_name], *(row for row in FORMATS.values() if row.safetensors == dtype and not row.integer)]
