"""The report of a comparison: for people, as JSON, as JUnit.   Spec 7.12"""

import json
from math import isfinite
from xml.sax.saxutils import quoteattr

from ..golden.run import stage_of
from .verdicts import PASSED, SUSPICIOUS

NAMES = 8  # of a list that are shown
FEW = 3  # experts whose trend gets a line


def text_report(result):
    """What to fix first, then a line a stage."""
    comparison = result.comparison
    rows = [headline(result), ""]
    if comparison.first is not None:
        rows += [*first_lines(result), ""]
    width = max(5, *(len(v.name) for v in comparison.verdicts))
    figures = f"{'matched':>8} {'ulp':>9} {'of rigorous':>12} {'of expected':>12} {'of trend':>9}"
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
    lines += [f"       systematic in {said(t)}" for t in systematic(v)]
    lines += [f"       {v.note}"] if v.note else []
    return lines + [f"guess: {text}" for text in result.guesses]


def systematic(v):
    """The trends beyond their limit that are worth a line: the worst few experts and blocks, or the tensor."""
    ordered = sorted(v.trends.by_expert, key=lambda t: -t.excess)[:FEW]
    block = [v.trends.block] if v.trends.block is not None else []
    return [t for t in [v.trends.whole, *ordered, *block] if t.excess > 1]


def whose(t):
    """What a trend is of."""
    rows = f"rows {t.rows[0]} to {t.rows[1]}" if t.rows else ""
    expert = f"expert {t.group}" if t.group >= 0 else ""
    return ", ".join(part for part in (expert, rows) if part) or "the tensor"


def said(t):
    slope = f"slope {1 + t.slope:.6g} (1 within {t.slope_limit:.2g})"
    return f"{whose(t)}: {slope}, mean error {t.bias:.3g} (0 within {t.bias_limit:.2g})"


def place(v):
    """Where the worst element of a verdict lies."""
    expert = f", expert {v.worst_expert}" if v.worst_expert >= 0 else ""
    return f"worst at {list(v.place)}{expert}: {v.of_rigorous:.3g} of the rigorous bound" if v.place else "as a whole"


def notes(comparison):
    exact = [v.name for v in comparison.verdicts if v.elements and v.exact == v.elements]
    lines = [f"exact, so that no bit may differ: {_listed(exact)}"] if exact else []
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
    figures += f" {v.trends.worst.excess:9.3g}"
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
                                                  "unfinished", "exact", "worst_expert", "note")}  # fmt: skip
    more = {"section": stage_of(v.name), "of_rigorous": _finite(v.of_rigorous), "place": list(v.place),
            "of_statistical": _finite(v.of_statistical), "trend": _trend(v.trends.whole)}  # fmt: skip
    block = v.trends.block and _trend(v.trends.block)
    return fields | more | {"by_expert": [_trend(t) for t in v.trends.by_expert], "worst_block": block}


def _trend(t):
    fields = {name: _finite(value) for name, value in t._asdict().items() if name != "rows"}
    return fields | {"rows": list(t.rows)} if t.rows else fields


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
