"""Verify a kernel in five lines, with whatever arrays it makes.   Spec 7.13

    import pytest
    from refmoe.testing import assert_conforms, cases

    @pytest.mark.parametrize("case", cases(call="expert_ffn"), ids=str)
    def test_my_kernel(case):
        assert_conforms(case, my_kernel(**case.inputs))

`pytest -p refmoe.testing.plugin` gives a test that asks for `refmoe_case` one run a case instead.
"""

from pathlib import Path

from ..compare.accumulators import find_accumulator
from ..compare.command import Result
from ..compare.guesses import guesses
from ..compare.judged import compare_tensors
from ..compare.report import place, text_report
from ..compare.verdicts import PASSED, SUSPICIOUS
from ..golden.bundle import MANIFEST
from ..golden.verify import open_case
from ..refusals import require_flag, require_path
from .arrays import read_array
from .vectors import Case, bugs, cases, find_case, judge_vector, results

__all__ = ["Case", "assert_conforms", "cases", "find_case"]


def assert_conforms(case, got, accumulator=None, rigorous=False):
    """Raises AssertionError, with a report, unless what was got is what the law allows.

    case: a Case, its id ("experts/7"), or the directory of a golden bundle. got: name -> array, or one array where the
    case makes one; partial results are judged as far as they go. accumulator: how your sums are rounded (spec 7.12);
    by default "f32", or "f64" where the case is in binary64. An exact case is held to every bit (spec 7.10).
    rigorous: accept what is only suspicious.
    Raises ValueError or TypeError for names, shapes or types that do not fit.
    """
    if not isinstance(case, Case):
        require_path("case", case)
    require_flag("rigorous", rigorous)
    if not isinstance(case, Case) and (Path(case) / MANIFEST).is_file():
        _assert_bundle(Path(case), got, "f32" if accumulator is None else accumulator, rigorous)
        return
    case = case if isinstance(case, Case) else find_case(case)
    verdicts = judge_vector(case, _named(got, lambda: list(results(case))), accumulator)
    bad = [v for v in verdicts if v.verdict != PASSED and not (rigorous and v.verdict == SUSPICIOUS)]
    if bad:
        said = [f"{v.name} is {v.verdict}: {place(v)}" for v in bad]
        flags = [f"flag {flag}: {bug}" for flag, bug in bugs(case)]
        raise AssertionError("\n".join([f"{case.id}, {case.kind}: {case.comment}", *said, *flags]))


def _named(got, names):
    if isinstance(got, dict):
        return {name: read_array(name, array) for name, array in got.items() if array is not None}
    known = names()
    if len(known) != 1:
        raise ValueError(f"got: expected a dictionary with any of {', '.join(known)}, got one array")
    return {known[0]: read_array(known[0], got)}


def _assert_bundle(directory, got, accumulator, rigorous):
    from .. import SPEC_VERSION

    mine = _named(got, lambda: ["y"])
    with open_case(directory, SPEC_VERSION) as (manifest, config, num, inputs):
        rows = {r["name"]: r for r in manifest["tensors"] if r["role"] in ("record", "gradient")}
        comparison = compare_tensors(config, inputs, num, mine, find_accumulator(accumulator), rows)
        if comparison.unknown:
            raise ValueError(f"got: expected tensors of {directory}, got {comparison.unknown[0]!r}; rename it")
        if not comparison.passed(rigorous):
            found = guesses(comparison, mine, config, inputs, num)
            raise AssertionError(text_report(Result(manifest["title"], directory, "got", comparison, found, rigorous)))
