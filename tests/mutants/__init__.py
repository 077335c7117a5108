"""Deliberately wrong layers, and what the suite "conformance" says of each: its flags are proven by them.

python -m tests.mutants --write README.md     the table mutant by flag, between its marks
"""

import difflib
from functools import cache
from pathlib import Path

import numpy as np

from refmoe.testing import assert_conforms, cases

SOURCE = (Path(__file__).parent / "plain.py").read_text(encoding="utf-8")


@cache
def suite():
    """Every case of the suite, those to be refused last."""
    return [*cases("conformance"), *cases("conformance", invalid=True)]


def text_of(*changes):
    """plain.py with lines replaced; each old text must stand there exactly once."""
    text = SOURCE
    for old, new in changes:
        if text.count(old) != 1:
            raise ValueError(f"expected one place with {old!r}, found {text.count(old)}; make it longer")
        text = text.replace(old, new)
    return text


def diff_lines(*changes):
    """Lines that a change takes away or adds."""
    pairs = difflib.unified_diff(SOURCE.splitlines(), text_of(*changes).splitlines(), lineterm="", n=0)
    return sum(line[0] in "+-" and line[:3] not in ("+++", "---") for line in pairs)


def built(*changes):
    """The function `run` of the changed text."""
    names = {"__name__": "mutant"}
    exec(compile(text_of(*changes), "mutant", "exec"), names)
    return names["run"]


def outcome(run, case):
    """What it makes of a case, or the error it ends in."""
    try:
        with np.errstate(all="ignore"):
            return run(case)
    except Exception as error:
        return error


@cache
def right(case_id):
    """What the right implementation makes."""
    return outcome(built(), next(case for case in suite() if case.id == case_id))


def rejects(case, made, accumulator=None):
    """Does the case reject this? Invalid input must end in a ValueError, anything else be made as it should be."""
    if case.refused:
        return not isinstance(made, ValueError)
    if isinstance(made, Exception):
        return True
    try:
        assert_conforms(case, {name: array for name, array in made.items() if name not in case.inputs}, accumulator)
    except (AssertionError, ValueError, TypeError):
        return True
    return False


def rejected_by(*changes):
    """The cases that reject a changed plain.py. What agrees with the right one in every bit is judged with it."""
    run = built(*changes)
    return [case for case in suite() if not _same(made := outcome(run, case), right(case.id)) and rejects(case, made)]


def _same(made, other):
    if isinstance(made, Exception) or isinstance(other, Exception):
        return type(made) is type(other)
    return made.keys() == other.keys() and all(np.array_equal(made[n], other[n], equal_nan=True) for n in made)
