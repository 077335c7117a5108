"""The comparison of training speeds compares one model: both sides go down the same losses."""

from itertools import islice

import numpy as np
import pytest

from refmoe.bench import training


@pytest.mark.parametrize("implementation", training.SIDES[1:])
def test_both_sides_train_the_same_model(implementation):
    config = training.make_config(1)
    ours, theirs = training.make_refmoe(config, 1)[0], training.make_torch(config, 1, implementation)[0]
    losses = np.array([[ours(*batch), theirs(*batch)] for batch in islice(training.batches_of(config), 4)])
    assert np.abs(losses[:, 0] - losses[:, 1]).max() <= 1e-5
    assert losses[-1, 0] < losses[0, 0] - 0.1
