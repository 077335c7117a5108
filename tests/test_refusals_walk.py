"""Every function of the outer doors, called with what is none of its arguments: one sentence each, no raw error.

The doors are found by their names in `__all__`: a new function is walked as soon as it is listed.
"""

import inspect
from importlib import import_module

import numpy as np
import pytest

import refmoe
from refmoe.safetensors import FileError

DOORS = ("golden", "golden.exports", "models", "models.checkpoint", "compare", "testing", "encodings",
         "selection.assignment")  # fmt: skip
BAD = {"None": None, "a list": [1, 2], "a string": "no such thing", "an int": 3, "a NaN": float("nan"),
       "an empty array": np.zeros(0, np.float32), "a huge number": 10**30}  # fmt: skip
SOLVERS = ["check_assignment", "is_unique_assignment", "solve_assignment"]


def functions():
    """(name, function) of all doors; the assignment's module lists nothing, its functions are of selection's list."""
    for door in ("", *DOORS):
        module = import_module(f"refmoe.{door}") if door else refmoe
        for name in getattr(module, "__all__", SOLVERS):
            found = getattr(module, name)
            if inspect.isfunction(found):
                yield f"{door or 'refmoe'}.{name}", found


def needed(function):
    """The parameters that must be given."""
    parameters = inspect.signature(function).parameters.values()
    return [p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


FUNCTIONS = {name: function for name, function in functions() if needed(function)}


def is_one_sentence(said):
    """What was wrong, what was expected, what came, how to mend it."""
    return ": expected " in said and ", got " in said and "; " in said and "\n" not in said


def test_the_walk_finds_the_doors():
    assert {"refmoe.moe_forward", "golden.check_bundle", "encodings.to_slots"} <= FUNCTIONS.keys()
    assert len(FUNCTIONS) > 30


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_no_argument_gets_one_sentence(name):
    for what, bad in BAD.items():
        with pytest.raises((TypeError, ValueError, FileError)) as refused:
            FUNCTIONS[name](**{p.name: bad for p in needed(FUNCTIONS[name])})
        said = str(refused.value)
        if isinstance(refused.value, FileError):  # of a file: "no such thing: is not a ..."
            assert said.startswith("no such thing: ") and "\n" not in said
            continue
        assert is_one_sentence(said), (what, said)


def test_more_threads_than_any_machine_has_are_refused():
    with pytest.raises(ValueError, match="threads: expected a positive count, got 999999999; give at most 1024"):
        refmoe.kernels.load(threads=999999999)
