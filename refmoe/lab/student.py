"""One layer that learns a task, step by step: forward, error, backward, optimiser, controller. All in float64."""

from collections import deque
from typing import NamedTuple

import numpy as np

from ..config import ExpertsConfig, MoEConfig
from ..inputs import Given
from ..layer import moe_backward, moe_forward
from ..recipes import init_params
from . import optimisers
from .measures import dead_experts, matched_accuracy, max_violation, normalised_error, shared_information
from .tasks import TEST, in_float64, study

ADAM = optimisers.Optimiser("adam")


class Step(NamedTuple):
    """What one step of training leaves to look at."""

    step: int
    error: float  # of the batch, before the step: mean squared error over the variance of the target
    record: object  # MoERecord
    grads: object  # MoEGrads
    params: object  # after the step


def layer(hidden_size, width, num_experts, top_k, **sections):
    """MoEConfig with plain ReLU experts with biases, unless a section says otherwise."""
    sections.setdefault("experts", ExpertsConfig(gated=False, activation="relu", biases=True))
    return MoEConfig(
        hidden_size=hidden_size, intermediate_size=width, num_experts=num_experts, top_k=top_k, **sections
    )


def start_params(config, seed):
    """By recipe, as float64; a selection bias starts at zero."""
    params = in_float64(init_params(config, seed))
    bias = params.selection_bias
    return params if bias is None else params._replace(selection_bias=np.zeros_like(bias))


def given_of(batch, config):
    """What the configuration reads beside x."""
    return Given(sequence_ids=batch.sequence_ids if config.needs_sequences else None)


def train(config, task, steps, tokens, rate, seed=None, control=None, more=None):
    """Yields a Step each step. control(selection_bias, record) -> the next one; more(batch) -> Given besides."""
    num = study()
    params = start_params(config, task.seed if seed is None else seed)
    state = optimisers.start(ADAM, params)
    for at in range(steps):
        batch = task.batch(at, tokens)
        given = given_of(batch, config) if more is None else more(batch)
        record = moe_forward(batch.x, params, config, num, given, keep="backward")
        off = record.y - batch.target
        grads = moe_backward(off * (2.0 / off.size), batch.x, params, record, config, num, given)
        state = optimisers.step(ADAM, params, grads.params, state, rate)
        if control is not None:
            params = params._replace(selection_bias=control(params.selection_bias, record))
        yield Step(at, normalised_error(record.y, batch.target), record, grads, params)


def trained(*arguments, **options):
    """The last Step of `train`."""
    (step,) = deque(train(*arguments, **options), maxlen=1)
    return step


def judge(params, config, task, tokens=1024):
    """Numbers of a trained layer on a test batch: error, dead experts, imbalance, agreement with the truth."""
    batch = task.batch(TEST, tokens)
    record = moe_forward(batch.x, params, config, study(), given_of(batch, config))
    counts, first = record.plan.assigned_per_expert, record.routing.topk_indices[:, 0]
    numbers = {
        "error": normalised_error(record.y, batch.target),
        "dead": dead_experts(counts),
        "max_violation": max_violation(counts),
        "shared_information": shared_information(first, batch.label),
    }
    if config.num_experts == 8 and int(batch.label.max()) < 8:
        numbers["matched_accuracy"] = matched_accuracy(first, batch.label, 8)
    return numbers
