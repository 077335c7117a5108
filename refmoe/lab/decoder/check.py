"""Every gradient of a whole decoder against complex step, element by element."""

import numpy as np

from ...check import STEP, ComplexStep
from ...recipes import CONSTANT_PARAMS, generate, generate_ids
from ..trees import named, rebuilt
from .model import decoder_backward, decoder_forward, forward, make_given
from .params import init_decoder
from .policy import DecoderNumerics


class WholeModelStep(ComplexStep):
    """A policy with what a decoder's forward asks of `DecoderNumerics`, in complex128."""

    def contract_backward_x(self, name, pairs, offsets):
        ((d, w),) = pairs
        return np.concatenate([d[a:b] @ part for part, a, b in zip(w, offsets, offsets[1:], strict=False)])

    def sum_rows(self, name, rows):
        return np.sum(rows, axis=0)

    def compiled(self, name, *arguments):
        """None: C knows no complex numbers."""


def check_decoder(config, seed=0, sequences=2, backend="numpy"):
    """name -> max|gradient - reference| / max|reference| of each parameter, in profile float64.

    The reference is the imaginary part of record.total at p + ih, over h; selections and counts are those of the real
    run. Every element is stepped: meant for models of some thousand parameters.
    """
    num = DecoderNumerics("float64", backend=backend)
    params = _with_gains(init_decoder(config, seed, np.float64), seed)
    ids = generate_ids("tokens", (sequences, config.context + 1), seed, config.vocab_size)
    tokens, targets, given = ids[:, :-1], ids[:, 1:], make_given(ids[:, :-1], config)
    record = decoder_forward(tokens, targets, params, config, num, given)
    grads = named(decoder_backward(tokens, targets, params, record, config, num, given))

    def total(name, value):
        moved = rebuilt(params, {name: value})
        return forward(tokens, targets, moved, config, WholeModelStep(), given, record).total

    return {name: _error(grads[name], array, lambda v, name=name: total(name, v)) for name, array in _checked(params)}


def _with_gains(params, seed):
    """With norms whose gains are not 1: an error beside a gain of 1 cannot be seen."""
    gains = {name: array for name, array in named(params).items() if name.endswith("_norm")}
    return rebuilt(params, {n: a + generate(n, a.shape, seed, exponent=-1).astype(a.dtype) for n, a in gains.items()})


def _checked(params):
    return [(name, array) for name, array in named(params).items() if name.rpartition(".")[2] not in CONSTANT_PARAMS]


def _error(gradient, at, function):
    want = np.empty(at.size)
    for i in range(at.size):
        moved = at.astype(np.complex128)
        moved.reshape(-1)[i] += 1j * STEP
        want[i] = np.imag(function(moved)) / STEP
    scale = np.abs(want).max()
    error = np.abs(gradient.reshape(-1) - want).max()
    return float(error / scale) if scale else float(error)
