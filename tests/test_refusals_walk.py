"""Every function of the outer doors, called with what is none of its arguments: one sentence each, no raw error.

The doors are found by their names in `__all__`: a new function is walked as soon as it is listed.
"""

import inspect
from importlib import import_module

import numpy as np
import pytest

import refmoe
from refmoe import formats, losses, selection
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


# ---- rooms behind the doors that are entered from outside too: number formats, and what runs between two steps ----

BESIDE = (*losses.CONTROLLERS.values(), losses.required_bias, losses.bias_edges, losses.bias_histogram,
          losses.pooled_balance_loss, losses.pooled_balance_loss_backward, selection.is_causal,
          *(found for found in map(vars(formats).get, formats.__all__) if inspect.isfunction(found)))  # fmt: skip
RIGHT = {("pack_nibbles", "a list"), ("unpack_nibbles", "a list"), ("canonical_nan", "an empty array")}


@pytest.mark.parametrize("function", BESIDE, ids=lambda function: function.__name__)
def test_what_is_no_argument_of_a_format_or_a_controller_gets_one_sentence(function):
    assert len(BESIDE) > 20
    for what, bad in BAD.items():
        if (function.__name__, what) not in RIGHT:
            refused(function, {p.name: bad for p in needed(function)}, what)


LAYERS = [np.zeros((3, 4), np.float32)] * 2
NUM = refmoe.Numerics(backend="numpy")
POOLED = refmoe.MoEConfig(hidden_size=2, intermediate_size=2, num_experts=4, top_k=1,
                          losses=refmoe.LossesConfig(balance=refmoe.BalanceLoss(selection="plain")))  # fmt: skip
BIAS, SCORES, COUNTS = np.zeros(4, np.float32), np.zeros((3, 4), np.float32), np.ones(4, np.int64)
EDGES = np.arange(6, dtype=np.float32)
ALONE = {  # a call that is right, and values that are wrong in it one at a time
    "pid": (losses.update_by_pid, (BIAS, COUNTS, (1, 2, 3), None, NUM), {2: ((1, 2), (1, 2, None)), 3: (0, BIAS)}),
    "required bias": (losses.required_bias, (SCORES, BIAS, 1, NUM), {0: (SCORES[0], COUNTS), 2: (0, True), 3: (0,)}),
    "quantile": (losses.update_by_quantile, (SCORES, BIAS, 1, NUM), {1: (BIAS[1:],), 2: (1.5,)}),
    "edges": (losses.bias_edges, (BIAS, 5, NUM), {0: (BIAS[:0],), 1: (0, 2.5)}),
    "histogram": (losses.bias_histogram, (SCORES, EDGES), {0: (COUNTS,), 1: (EDGES[:1], EDGES[::-1])}),
    "by histogram": (losses.update_by_histogram, (np.ones((4, 5), int), EDGES, BIAS, 1, NUM),
                     {0: (SCORES, COUNTS), 1: (EDGES[1:],), 2: (BIAS[1:],), 3: (0,)}),
    "coefficient": (losses.update_coefficient, (np.float32(1), 3, 2, 1, NUM),
                    {0: (np.float32("nan"), "1"), 1: (-1, 2.5), 2: (None,), 3: (0,)}),
    "pooled": (losses.pooled_balance_loss, (LAYERS, POOLED, NUM, refmoe.Given()),
               {0: ([], LAYERS[0], [LAYERS[0][:, 1:]], [LAYERS[0], LAYERS[0][1:]]), 3: ({},)}),
    "pooled, back": (losses.pooled_balance_loss_backward, (1.0, LAYERS, POOLED, NUM, refmoe.Given()),
                     {0: (None, "1", np.ones(2))}),
    "nibbles": (formats.pack_nibbles, ([1, 15],), {0: ([1, 16], [1, 200], [1.5, 1], [-1, 1], [1], 3)}),
    "two nibbles": (formats.unpack_nibbles, ([1, 255],), {0: ([1, 256], [1.5], 3)}),
}  # fmt: skip


@pytest.mark.parametrize("name", ALONE)
def test_one_wrong_argument_beside_right_ones_gets_one_sentence(name):
    function, right, wrong = ALONE[name]
    function(*right)
    names = [p.name for p in needed(function)]
    for at, values in wrong.items():
        for bad in values:
            refused(function, dict(zip(names, (*right[:at], bad, *right[at + 1 :]), strict=True)), bad)


def refused(function, arguments, what):
    try:
        function(**arguments)
    except (TypeError, ValueError) as error:
        assert is_one_sentence(str(error)), (what, str(error))
    else:
        pytest.fail(f"{what} was taken")


def test_more_threads_than_any_machine_has_are_refused():
    with pytest.raises(ValueError, match="threads: expected a positive count, got 999999999; give at most 1024"):
        refmoe.kernels.load(threads=999999999)
