"""SGD with momentum, Adam and AdamW over trees of parameters; every written operation is rounded once.

    state = start(optimiser, params)
    state = step(optimiser, params, grads, state, rate)        # params and state's arrays are changed in place

No power is taken: those of the betas are products carried from step to step, in binary64. A constant of a formula is
rounded to the format of the arrays it meets.
"""

from dataclasses import dataclass
from math import isfinite, sqrt
from typing import NamedTuple

import numpy as np

from ..recipes import CONSTANT_PARAMS
from ..refusals import require
from .trees import named

_BLOCK = 1 << 14  # elements updated at a time: an update's temporaries stay in cache


@dataclass(frozen=True)
class Optimiser:
    """The rule and its constants; a rule reads those it names.

    kind "sgd" (momentum, weight_decay), "adam" or "adamw" (beta1, beta2, eps, weight_decay). Raises ValueError for
    constants outside their ranges.
    """

    kind: str = "adamw"
    momentum: float = 0.9
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self):
        wanted = f"one of {', '.join(OPTIMISERS)}"
        require(self.kind in OPTIMISERS, ValueError, "kind", wanted, repr(self.kind), "choose one of these")
        for name in ("momentum", "beta1", "beta2"):
            value = getattr(self, name)
            require(0 <= value < 1, ValueError, name, "a number from 0 up to, not including, 1", value, "lower it")
        for name in ("eps", "weight_decay"):
            value, fix = getattr(self, name), "use 0 to leave it out"
            require(value >= 0 and isfinite(value), ValueError, name, "a finite number, at least 0", value, fix)


class OptimiserState(NamedTuple):
    """What an optimiser keeps between steps: moments by the names of the parameters, products of the betas."""

    steps: int
    first: dict  # the velocity of SGD, the first moment of Adam
    second: dict  # the second moment of Adam; empty for SGD
    beta1_power: float = 1.0  # beta1^steps
    beta2_power: float = 1.0


def start(optimiser, params):
    """Moments of +0 for every parameter that carries a gradient."""
    arrays = {name: array for name, array in named(params).items() if not _is_constant(name)}
    zeros = [{name: np.zeros_like(array, order="C") for name, array in arrays.items()} for _ in range(2)]
    return OptimiserState(0, zeros[0], {} if optimiser.kind == "sgd" else zeros[1])


def step(optimiser, params, grads, state, rate, engine=None):
    """One step: the arrays of params and state are changed in place -> the new state.

    grads: a tree like params; what has no gradient stays as it is. rate: the step's learning rate. engine: whose C may
    take the step, to the same bits.
    Raises TypeError or ValueError, before anything is changed, for a gradient that does not fit its parameter.
    """
    rate = float(rate)
    require(rate >= 0 and isfinite(rate), ValueError, "rate", "a finite number, at least 0", rate, "check the schedule")
    arrays, gradients = named(params), named(grads)
    names = [name for name in state.first if name in gradients]
    for name in gradients:
        known = name in state.first
        require(known, ValueError, f"grads.{name}", "no gradient", "one", "the state was started for other parameters")
    for name in names:
        _check_pair(name, arrays[name], gradients[name])
    state = state._replace(
        steps=state.steps + 1,
        beta1_power=state.beta1_power * optimiser.beta1,
        beta2_power=state.beta2_power * optimiser.beta2,
    )
    update = OPTIMISERS[optimiser.kind]
    compiled = _compiled(optimiser, state, rate, engine)
    for name in names:
        moments = [m[name] for m in (state.first, state.second) if name in m]
        if not compiled(gradients[name], arrays[name], *moments):
            for part in _blocks(arrays[name], gradients[name], *moments):
                update(optimiser, state, rate, *part)
    return state


def _compiled(optimiser, state, rate, engine):
    """adamw(g, p, m, v) in C, whether it took the step; without an engine that has it, none does."""
    function = getattr(engine, optimiser.kind, None)
    if function is None:
        return lambda *_: False
    o = optimiser
    scales = rate / (1 - state.beta1_power), 1 / sqrt(1 - state.beta2_power), o.eps
    constants = (1 - rate * o.weight_decay, o.beta1, 1 - o.beta1, o.beta2, 1 - o.beta2, *scales)
    return lambda *arrays: function(constants, *arrays)


# --- the rules: each changes one block of a parameter and of its moments ----------------------------------------------


def sgd(optimiser, state, rate, p, g, v):
    """v = momentum v + (g + decay p);  p = p - rate v.   PyTorch's SGD without dampening"""
    if optimiser.weight_decay:
        g = g + p * optimiser.weight_decay
    v *= optimiser.momentum
    v += g
    p -= v * rate


def adam(optimiser, state, rate, p, g, m, v):
    """m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g g;  p = p - rate/c1 m / (sqrt(v / c2) + eps);  c_i = 1 - b_i^t.

    A decay is added to the gradient, g + decay p.   Kingma and Ba 2015
    """
    if optimiser.weight_decay:
        g = g + p * optimiser.weight_decay
    _moments(optimiser, g, m, v)
    p -= _direction(optimiser, state, rate, m, v)


def adamw(optimiser, state, rate, p, g, m, v):
    """As Adam, but the decay acts on the parameter: p = p (1 - rate decay) first.   Loshchilov and Hutter 2019"""
    if optimiser.weight_decay:
        p *= 1 - rate * optimiser.weight_decay
    _moments(optimiser, g, m, v)
    p -= _direction(optimiser, state, rate, m, v)


OPTIMISERS = {"sgd": sgd, "adam": adam, "adamw": adamw}


def _moments(optimiser, g, m, v):
    m *= optimiser.beta1
    m += g * (1 - optimiser.beta1)
    v *= optimiser.beta2
    v += g * (1 - optimiser.beta2) * g


def _direction(optimiser, state, rate, m, v):
    """rate / c1 m / (sqrt(v) / sqrt(c2) + eps)."""
    root = np.sqrt(v)
    root *= 1 / sqrt(1 - state.beta2_power)
    root += optimiser.eps
    direction = m * (rate / (1 - state.beta1_power))
    direction /= root
    return direction


# --- parts ------------------------------------------------------------------------------------------------------------


def _is_constant(name):
    return name.rpartition(".")[2] in CONSTANT_PARAMS


def _blocks(*arrays):
    """The same elements of each array, as flat views, a block at a time."""
    flat = [array.reshape(-1) for array in arrays]
    for at in range(0, len(flat[0]), _BLOCK):
        yield [array[at : at + _BLOCK] for array in flat]


def _check_pair(name, array, gradient):
    in_place = array.flags.c_contiguous and array.flags.writeable
    fix = "copy it with numpy.array(..., order='C')"
    require(in_place, ValueError, f"params.{name}", "an array that can be changed in place", "one that cannot", fix)
    got = getattr(gradient, "shape", type(gradient).__name__)
    require(got == array.shape, ValueError, f"grads.{name}", f"shape {array.shape}", got, "give one a parameter")
    got = gradient.dtype.name
    require(gradient.dtype == array.dtype, TypeError, f"grads.{name}", array.dtype.name, got, "use one format")
