"""The comparison of training speeds compares one model: both sides go down the same losses."""

import numpy as np
import pytest

from refmoe.bench import training
from refmoe.lab.text import draw_batch

# A text of its own: with that of spec/ any changed sentence may bring a token whose two best experts are so near that
# sums in another order choose differently, and from there on losses differ by more than roundings. (After such a change
# PyTorch's grouped_mm left PyTorch's eager at the fourth step, by 3e-4; refmoe stayed with eager.)
TEXT = np.frombuffer(b"".join(b"%d squared is %d. " % (n, n * n) for n in range(1000)), np.uint8)


@pytest.mark.parametrize("implementation", training.SIDES[1:])
def test_both_sides_train_the_same_model(implementation):
    config = training.make_config(1)
    ours, theirs = training.make_refmoe(config, 1)[0], training.make_torch(config, 1, implementation)[0]
    batches = [draw_batch(TEXT, config.sequences, config.decoder.context, 0, step) for step in range(4)]
    losses = np.array([[ours(*batch), theirs(*batch)] for batch in batches])
    assert np.abs(losses[:, 0] - losses[:, 1]).max() <= 1e-5
    assert losses[-1, 0] < losses[0, 0] - 0.1
