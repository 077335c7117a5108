"""One file a contestant. Each has `prepare(inputs, options) -> Loaded`, and imports its library there."""

from typing import NamedTuple

import numpy as np


class Loaded(NamedTuple):
    """A contestant with its case in memory."""

    calls: dict  # setting -> function without arguments that computes once; a forward's, or y of a step, is returned
    facts: dict  # versions, core type, whatever decides its speed
    checks: bool = True  # is y to be held against the formula?
    more: object = None  # function that tells more of the last call
    read: object = np.asarray  # from what a call returns to an array
