"""The table mutant by flag, and the flags of the cases: both are written, neither by hand."""

import textwrap
from collections import defaultdict

from refmoe.golden.cases import conformance

from . import rejected_by, suite
from .gallery import MUTANTS

BEGIN, END = "<!-- mutants: written by `make mutants` -->", "<!-- end of mutants -->"


def mutants_by_flag():
    """flag -> [(title, changes)], in the order of the notes."""
    found = defaultdict(list)
    for flag, title, *changes in MUTANTS:
        found[flag].append((title, changes))
    return {flag: found[flag] for flag in conformance.NOTES}


def table():
    """Markdown: a line a flag."""
    bearing = {flag: sum(flag in case.flags for case in suite()) for flag in conformance.NOTES}
    lines = ["| flag | cases | mutants that only its cases reject |", "| --- | --- | --- |"]
    for flag, mutants in mutants_by_flag().items():
        lines.append(f"| {flag} | {bearing[flag]} | {'; '.join(title for title, _ in mutants)} |")
    return "\n".join(lines)


def block():
    """What stands between the marks of the README."""
    said = f"{len(suite())} cases, {len(conformance.NOTES)} flags, {len(MUTANTS)} mutants"
    return f"{BEGIN}\n<details><summary>{said}</summary>\n\n{table()}\n\n</details>\n{END}"


def replaced(text):
    """A README with the table of today."""
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"expected {BEGIN} and {END} in the file, found none; add them where the table belongs")
    return before + block() + after


def caught():
    """comment -> the flags of the mutants that the case rejects: the matrix, computed."""
    found = {case.comment: [] for case in suite()}
    for flag, _, *changes in MUTANTS:
        for case in rejected_by(*changes):
            if flag not in found[case.comment]:
                found[case.comment].append(flag)
    return found


def flags_text(found):
    """The source of golden/cases/conformance_flags.py."""
    rows = []
    for comment, flags in found.items():
        text = f'"{comment}": [' + ", ".join(f'"{flag}"' for flag in flags) + "],"
        rows.append("\n".join(textwrap.wrap(text, 118, initial_indent="    ", subsequent_indent="        ")))
    head = '"""The bugs that each case of "conformance" catches; written by `make mutants`, which tries them all."""\n'
    return head + "\nFLAGS = {\n" + "\n".join(rows) + "\n}  # fmt: skip\n"
