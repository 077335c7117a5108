"""What a case is, and the small helpers that case files are written with.   Spec 7.9"""

from typing import NamedTuple

import numpy as np


class Case(NamedTuple):
    """One vector: what is called on what. Its expected values are computed when the file is written."""

    comment: str  # why the case exists
    flags: tuple  # keys of the suite's notes: the bugs it catches
    call: str  # a row of CALLS
    inputs: dict  # name -> array or Recipe
    config: dict | None = (
        None  # fields that differ from their defaults; the four sizes where the call reads a configuration
    )
    profile: str = "exact"
    store: str = "float32"
    options: dict | None = None  # words that the call takes beside tensors
    refused: str = ""  # for an invalid case: what the error message names


class Recipe(NamedTuple):
    """A tensor given by rule (7.2) instead of by value."""

    name: str
    shape: tuple
    recipe: str = "bell"
    seed: int = 0
    exponent: int = 0


def f32(*values):
    """A float32 tensor from nested numbers."""
    return np.array(values[0] if len(values) == 1 else values, np.float32)


def ints(*values):
    """An int64 tensor from nested numbers."""
    return np.array(values[0] if len(values) == 1 else values, np.int64)


def sizes(num_experts, top_k, hidden_size=1, intermediate_size=1, **sections):
    """The dictionary of a configuration."""
    first = {"hidden_size": hidden_size, "intermediate_size": intermediate_size}
    return {**first, "num_experts": num_experts, "top_k": top_k, **sections}


def above(value, steps=1):
    """The float32 that many steps above a value (below, if negative)."""
    value = np.float32(value)
    for _ in range(abs(steps)):
        value = np.nextafter(value, np.float32(np.inf if steps > 0 else -np.inf))
    return float(value)
