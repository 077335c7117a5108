"""Training a decoder, step by step: what a run is, and what each step gives.

A run repeats bit for bit, whatever the machine, backend or number of threads, from its key: seed, configuration, digest
of the text.
"""

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .. import SPEC_VERSION
from ..config import MoEConfig
from ..losses import update_selection_bias
from ..recipes import DRAWN, carried, init_given, tensor_key
from ..refusals import require
from . import optimisers
from .decoder import DecoderConfig, DecoderRecord, decoder_backward, decoder_forward, init_decoder
from .decoder.model import layer_losses, make_given
from .optimisers import Optimiser, OptimiserState
from .schedules import Schedule, constant
from .text import draw_batch, held_out_part, training_part, windows


@dataclass(frozen=True)
class TrainingConfig:
    """Everything a run needs beside its seed and its text; `sequences` is B, those of one step."""

    decoder: DecoderConfig
    optimiser: Optimiser = dataclasses.field(default_factory=Optimiser)
    schedule: Schedule = dataclasses.field(default_factory=lambda: constant(1e-3))
    sequences: int = 16

    def __post_init__(self):
        ok = isinstance(self.sequences, int) and self.sequences > 0
        require(ok, ValueError, "sequences", "a whole number from 1 on", repr(self.sequences), "give the batch's size")

    def to_dict(self):
        return dataclasses.asdict(self) | {"decoder": self.decoder.to_dict()}


class TrainingState(NamedTuple):
    """A run between two steps; its arrays are changed in place by the next."""

    step: int  # steps done
    params: object  # DecoderParams
    optimiser: OptimiserState


class Step(NamedTuple):
    """What one step gave. `loss` is the cross entropy in nats a byte, before the step changed the parameters."""

    step: int  # from 0
    rate: float
    loss: float
    total: float  # the loss with those of the layers
    losses: tuple  # a block: name -> value of its layer's losses
    loads: tuple  # a block: tokens for each expert (E,), before any drop; None where it is dense
    record: DecoderRecord
    grads: object  # DecoderParams


def run_key(config, corpus, seed, num):
    """What decides every bit of a run: the same key, the same bits."""
    return {
        "spec_version": SPEC_VERSION,
        "seed": seed,
        "text": corpus.digest,
        "profile": num.profile,
        "config": config.to_dict(),
    }


def start(config, seed, num):
    """The state before the first step."""
    params = init_decoder(config.decoder, seed, num.dtype)
    return TrainingState(0, params, optimisers.start(config.optimiser, params))


def train(state, steps, config, corpus, seed, num):
    """Goes on from a state until `steps` steps are done in all; yields (state, Step) after each.

    The arrays of the state are changed in place; what a step needs is drawn from the seed and the step's number.
    """
    data = training_part(corpus)
    for step in range(state.step, steps):
        state, made = train_step(state, *_batch(data, config, seed, step), config, seed, num)
        yield state, made


def train_step(state, tokens, targets, config, seed, num):
    """One step on a batch (B, S) -> state, Step."""
    decoder, rate = config.decoder, config.schedule.rate(state.step)
    given = _given(tokens, decoder, seed, state.step, num)
    record = decoder_forward(tokens, targets, state.params, decoder, num, given)
    grads = decoder_backward(tokens, targets, state.params, record, decoder, num, given)
    moved = optimisers.step(config.optimiser, state.params, grads, state.optimiser, rate, num.engine)
    loads = tuple(map(_load, decoder.blocks, record.blocks))
    _balance(state.params, decoder, loads, num)
    losses = tuple(map(_losses, decoder.blocks, record.blocks))
    made = Step(state.step, rate, float(record.loss), float(record.total), losses, loads, record, grads)
    return TrainingState(state.step + 1, state.params, moved), made


def evaluate(params, config, corpus, num, sequences=16):
    """The mean cross entropy over evenly spaced windows of the text that is held out, in nats a byte."""
    data, S = held_out_part(corpus), config.decoder.context
    fix = "give a longer text or a shorter context"
    require(len(data) > S, ValueError, "text", f"more than {S} bytes held out", len(data), fix)
    tokens, targets = windows(data, np.arange(sequences) * (len(data) - S - 1) // max(sequences - 1, 1), S)
    return float(decoder_forward(tokens, targets, params, config.decoder, num).loss)


def _batch(data, config, seed, step):
    return draw_batch(data, config.sequences, config.decoder.context, seed, step)


def _given(tokens, decoder, seed, step, num):
    """What follows from the tokens, and what random rules read, drawn for this step and block."""

    def with_draws(at, given):
        block = decoder.blocks[at]
        if given is None:
            return None
        drawn = init_given(block, tokens.size, tensor_key(seed, f"given.{step}.{at}"))
        return given._replace(**{name: carried(drawn[name], num.dtype) for name in DRAWN if name in drawn})

    return tuple(with_draws(at, given) for at, given in enumerate(make_given(tokens, decoder)))


def _load(block, record):
    plan = getattr(record.feed_forward, "plan", None)
    return None if plan is None else plan.assigned_per_expert


def _losses(block, record):
    return {name: float(value) for name, value in layer_losses(block, record.feed_forward).items()}


def _balance(params, decoder, loads, num):
    """The selection bias of each layer that has a rate for it moves by the sign rule, in place."""
    for block, inner, load in zip(decoder.blocks, params.blocks, loads, strict=True):
        if isinstance(block, MoEConfig) and block.losses.bias_update_rate:
            bias = inner.feed_forward.selection_bias
            bias[:] = update_selection_bias(bias, load, block.losses.bias_update_rate, num)
