"""Formulas, sums and written operations share out their numbers by one piece: each is made once, whoever makes it."""

import os
import signal

import numpy as np
import pytest

from refmoe import kernels

if kernels.build_error() is not None:
    pytest.skip(f"no compiled module: {kernels.build_error()}", allow_module_level=True)

from cases import same_bits

from refmoe.activations import gated
from refmoe.config import ExpertsConfig
from refmoe.lab import optimisers
from refmoe.lab.decoder import DecoderNumerics
from refmoe.lab.decoder.norm import rms_norm
from refmoe.scores import softmax

ROWS = [1, 2, 7, 8, 9, 16, 33, 257, 900]
WIDE = 300  # more terms than a thread sums on its stack


def made_by(num, rows):
    """What each of the three files makes of `rows` rows; AdamW in place, so that a number made twice is seen."""
    rng = np.random.default_rng(rows)
    x, y, d = rng.standard_normal((3, rows, 96)).astype(np.float32)
    optimiser = optimisers.Optimiser("adamw", weight_decay=0.1)
    state = optimisers.start(optimiser, (x,))
    many = [rng.standard_normal((rows, 3)).astype(np.float32) for _ in range(WIDE)]
    yield gated(x, y, ExpertsConfig(), num)
    yield softmax(x, num)
    yield num.sum("y", [x, (y, d)])
    yield num.sum("y", many)
    yield from rms_norm(x, y[0], 1e-6, num)
    moved = optimisers.step(optimiser, (x,), (d,), state, 0.01, num.engine)
    yield from (x, *moved.first.values(), *moved.second.values())


@pytest.mark.parametrize("rows", ROWS)
def test_any_number_of_threads_makes_the_same(rows):
    want = list(made_by(DecoderNumerics("chain", backend="c", threads=1), rows))
    for threads in (2, 3, 7):
        num = DecoderNumerics("chain", backend="c", threads=threads)
        assert all(same_bits(got, one) for got, one in zip(made_by(num, rows), want, strict=True))
        assert {"gated", "softmax", "sum", "rms_norm", "adamw"} <= {name for name, _ in num.engine.calls}


def test_one_thread_makes_what_numpy_makes():
    want = made_by(DecoderNumerics("chain", backend="numpy"), 9)
    got = made_by(DecoderNumerics("chain", backend="c", threads=1), 9)
    assert all(same_bits(one, other) for one, other in zip(got, want, strict=True))


def test_a_forked_child_makes_them_alone():
    """Its parent's threads did not come along: waiting for them would never end."""
    num = DecoderNumerics("chain", backend="c", threads=2)
    want = list(made_by(num, 900))
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        os._exit(0 if all(same_bits(a, b) for a, b in zip(made_by(num, 900), want, strict=True)) else 1)
    assert os.waitpid(child, 0)[1] == 0
