"""The committed vectors as cases: what a kernel is given, and the judgement of what it made.   Spec 7.13"""

from copy import deepcopy
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ..compare import find_accumulator
from ..compare.groups import Grouping
from ..compare.judged import flat_verdict
from ..compare.stages import is_made
from ..compare.tracked import track
from ..compare.tracking import Tracking
from ..compare.verdicts import judge
from ..config import MoEConfig
from ..golden.cases import CALLS, CHAPTERS
from ..golden.classes import class_of, held_to_every_bit, measure
from ..golden.vectors import arrays_of
from ..numerics import Numerics
from ..refusals import require, require_flag, shown


class Case(NamedTuple):
    """One vector. `str(case)` is its id, such as "experts/7"."""

    id: str
    call: str  # what is computed: section 7.9
    config: dict  # fields other than their defaults
    profile: str
    store: str
    inputs: dict  # name -> array
    options: dict
    flags: tuple  # the bugs it is there for
    comment: str
    refused: str  # for input that must be refused: what the refusal must name

    @property
    def exact_in(self):
        """The formats in which every correct kernel makes every bit (spec 7.10); () if there is none."""
        return () if self.refused else _measure(self.id).exact_in

    @property
    def kind(self):
        """The class of the case: "exact", "rounded" or "invalid"."""
        return class_of(self.refused, self.exact_in)

    def __str__(self):
        return self.id


@lru_cache(maxsize=1024)
def _measure(case_id):
    case = find_case(case_id)
    return measure(case, case.inputs)


def cases(chapter=None, call=None, invalid=False):
    """The cases of a chapter and of a call, or all; `invalid`: those that must be refused, instead of the rest."""
    _require_known("chapter", chapter, CHAPTERS)
    _require_known("call", call, CALLS)
    require_flag("invalid", invalid)
    found = [case for name in CHAPTERS if chapter in (None, name) for case in _of_chapter(name)]
    found = [case for case in found if bool(case.refused) == invalid]
    kept = [case for case in found if call in (None, case.call)]
    calls, fix = ", ".join(sorted({case.call for case in found})) or "none", "choose another, or another chapter"
    require(kept, ValueError, "call", f"one that chapter {chapter} has with invalid={invalid} ({calls})", call, fix)
    return kept


def _require_known(argument, value, names):
    ok = value is None or (isinstance(value, str) and value in names)
    require(ok, ValueError, argument, f"one of {', '.join(names)}, or None", shown(value), "choose one")


def find_case(case_id):
    """The case of that id. Raises ValueError if there is none."""
    chapter = str(case_id).partition("/")[0]
    found = [c for c in (_of_chapter(chapter) if chapter in CHAPTERS else []) if c.id == str(case_id)]
    if not found:
        wanted = "CHAPTER/NUMBER of a vector or the directory of a bundle"
        fix = "refmoe.testing.cases lists the vectors"
        raise ValueError(f"case: expected {wanted}, got {case_id!r:.80}; {fix}")
    return found[0]


def bugs(case):
    """(flag, the bug that it names) of each flag of a case."""
    chapter = case.id.partition("/")[0]
    return [(flag, CHAPTERS[chapter].NOTES[flag][0]) for flag in case.flags]


def _of_chapter(chapter):
    for number, case in enumerate(_written(chapter), start=1):
        num = Numerics(profile=case.profile, store=case.store, backend="numpy")
        yield Case(f"{chapter}/{number}", case.call, deepcopy(case.config or {}), case.profile, case.store,
                   deepcopy(arrays_of(case, num)), dict(case.options or {}), tuple(case.flags), case.comment,
                   case.refused or "")  # fmt: skip


@lru_cache(maxsize=len(CHAPTERS))
def _written(chapter):
    # A chapter may change a dictionary after it has given it away, so each case is copied as it comes.
    return [deepcopy(case) for case in CHAPTERS[chapter].cases()]


def judge_vector(case, mine, accumulator=None):
    """name -> Verdict of what was submitted. Raises ValueError for a name that the case does not make, or a shape."""
    num = Numerics(profile=case.profile, store=case.store)
    own = "f64" if case.profile == "float64" else "f32"
    row = find_accumulator(own if accumulator is None else accumulator)
    law = _made(case, Tracking(num, row))
    unknown = sorted(mine.keys() - law.keys())
    if unknown or not mine:
        raise ValueError(f"{case.id}: expected any of {', '.join(law)}, got {unknown[0] if unknown else 'nothing'}")
    return [_verdict(case, name, got, law[name], num, row) for name, got in mine.items()]


def results(case, kind=Numerics):
    """name -> array of what the case makes, by the law, or under another policy of its class."""
    return _made(case, kind(profile=case.profile, store=case.store))


def _made(case, num):
    config = MoEConfig.from_dict(case.config) if case.config else None
    tracked = {n: track(a) if isinstance(num, Tracking) and a.dtype.kind == "f" else a for n, a in case.inputs.items()}
    made = CALLS[case.call](config, num, tracked, **case.options)
    return {name: array if isinstance(array, np.ndarray) else np.asarray(array)
            for name, array in made.items() if array is not None}  # fmt: skip


def _verdict(case, name, got, law, num, row):
    if got.values.shape != law.shape:
        raise ValueError(f"{case.id}: {name}: expected shape {law.shape}, got {got.values.shape}")
    exact = law.dtype.kind == "f" and held_to_every_bit(case.exact_in, got.dtype, row.name, case.store)
    if exact or law.dtype.kind != "f" or not is_made(law):
        wanted = np.asarray(law, got.values.dtype)
        differ = (got.values != wanted) & ~((got.values != got.values) & (wanted != wanted))
        return flat_verdict(name, got, differ)
    longest = max([1, *(size for array in case.inputs.values() for size in array.shape)])
    return judge(name, got, law, law, Grouping(), num, row.drift(longest))
