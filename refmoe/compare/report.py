"""The report of a comparison: for people, as JSON, as JUnit.   Spec 7.12"""

import json
from math import isfinite
from xml.sax.saxutils import quoteattr

from ..golden.run import stage_of
from .verdicts import PASSED, SUSPICIOUS

NAMES = 8  # of a list that are shown


def text_report(result):
    """What to fix first, then a line a stage."""
    comparison = result.comparison
    rows = [headline(result), ""]
    if comparison.first is not None:
        rows += [*first_lines(result), ""]
    width = max(5, *(len(v.name) for v in comparison.verdicts))
    figures = f"{'matched':>8} {'ulp':>9} {'of rigorous':>12} {'of expected':>12}"
    head = f"  {'stage':{width}}  {'verdict':10} {figures}  worst"
    rows += [head, *(_row(v, width) for v in comparison.verdicts), ""]
    return "\n".join(rows + notes(comparison))


def headline(result):
    comparison, done = result.comparison, [v.verdict for v in result.comparison.verdicts]
    counts = ", ".join(f"{done.count(word)} {word}" for word in ("wrong", "suspicious", "passed") if word in done)
    verdict = "passed" if result.passed else "NOT PASSED"
    return f"{verdict}: {result.mine} against {result.title}, accumulator {comparison.accumulator.name}: {counts}"


def first_lines(result):
    """The first stage that did not pass, where, and why perhaps."""
    v = result.comparison.first
    lines = [f"first: {v.name} (section {stage_of(v.name)}) is {v.verdict}; {place(v)}"]
    lines += [f"       it adds {v.added:.3g}; what it reads had moved it by {v.inherited:.3g}"]
    worst = max(v.by_expert, key=lambda t: t.excess, default=v.trend)
    worst = worst if worst.excess > v.trend.excess else v.trend
    if worst.excess > 1:
        whose = "the tensor" if worst.group < 0 else f"expert {worst.group}"
        slope = f"slope {1 + worst.slope:.6g} (1 within {worst.slope_limit:.2g})"
        mean = f"mean error {worst.bias:.3g} (0 within {worst.bias_limit:.2g})"
        lines += [f"       systematic in {whose}: {slope}, {mean}"]
    lines += [f"       {v.note}"] if v.note else []
    return lines + [f"guess: {text}" for text in result.guesses]


def place(v):
    """Where the worst element of a verdict lies."""
    expert = f", expert {v.worst_expert}" if v.worst_expert >= 0 else ""
    return f"worst at {list(v.place)}{expert}: {v.of_rigorous:.3g} of the rigorous bound" if v.place else "as a whole"


def notes(comparison):
    lines = []
    if comparison.missing:
        lines.append(f"not submitted: {_listed(comparison.missing)}")
    if comparison.unknown:
        lines.append(f"not of this case, and not judged: {_listed(comparison.unknown)}")
    if comparison.free:
        lines.append(f"tokens whose scores are too close to call: {comparison.free}, of which {comparison.swapped} "
                     f"route otherwise and {comparison.excused} are not judged")  # fmt: skip
    return lines


def _listed(names):
    more = len(names) - NAMES
    return ", ".join(names[:NAMES]) + (f" and {more} more" if more > 0 else "")


def _row(v, width):
    worst = f"{list(v.place)}" + (f" expert {v.worst_expert}" if v.worst_expert >= 0 else "") if v.place else ""
    figures = f"{v.matched:8.2%} {v.ulp:9.3g} {v.of_rigorous:12.3g} {v.of_statistical:12.3g}"
    mark = " " if v.verdict == PASSED else "!" if v.verdict == SUSPICIOUS else "X"
    return f"{mark} {v.name:{width}}  {v.verdict:10} {figures}  {worst}".rstrip()


# --- for machines ----------------------------------------------------------------------------------------------------


def json_report(result):
    """The same as one object; a number that is not finite is a string."""
    comparison, first = result.comparison, result.comparison.first
    return json.dumps({
        "passed": result.passed,
        "title": result.title,
        "accumulator": comparison.accumulator.name,
        "rigorous": result.rigorous,
        "first": None if first is None else first.name,
        "guesses": result.guesses,
        "free_tokens": {"all": comparison.free, "otherwise": comparison.swapped, "not_judged": comparison.excused},
        "missing": comparison.missing,
        "unknown": comparison.unknown,
        "stages": [_stage(v) for v in comparison.verdicts],
    }, indent=1, allow_nan=False)  # fmt: skip


def _stage(v):
    fields = {k: _finite(getattr(v, k)) for k in ("name", "verdict", "elements", "matched", "ulp", "added", "inherited",
                                                  "unfinished", "worst_expert", "note")}  # fmt: skip
    more = {"section": stage_of(v.name), "of_rigorous": _finite(v.of_rigorous), "place": list(v.place),
            "of_statistical": _finite(v.of_statistical), "trend": _trend(v.trend)}  # fmt: skip
    return fields | more | {"by_expert": [_trend(t) for t in v.by_expert]}


def _trend(t):
    return {name: _finite(getattr(t, name)) for name in t._fields}


def _finite(value):
    return str(value) if isinstance(value, float) and not isfinite(value) else value


def junit_report(result):
    """A test a stage."""
    verdicts = result.comparison.verdicts
    bad = [v for v in verdicts if not _fine(v, result)]
    name = quoteattr("refmoe compare: " + result.title)
    rows = [f'<testsuite name={name} tests="{len(verdicts)}" failures="{len(bad)}">']
    rows += [_case(v, result) for v in verdicts]
    return "\n".join(['<?xml version="1.0" encoding="UTF-8"?>', *rows, "</testsuite>"])


def _fine(v, result):
    return v.verdict == PASSED or (result.rigorous and v.verdict == SUSPICIOUS)


def _case(v, result):
    open_tag = f"  <testcase classname={quoteattr('section ' + stage_of(v.name))} name={quoteattr(v.name)}"
    if _fine(v, result):
        return open_tag + "/>"
    more = "; ".join(result.guesses) if v is result.comparison.first else ""
    text = f"{v.verdict}: {place(v)}" + (f"; {v.note}" if v.note else "") + (f"; guess: {more}" if more else "")
    return f"{open_tag}><failure message={quoteattr(text)}/></testcase>"
