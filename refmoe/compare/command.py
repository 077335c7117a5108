"""`refmoe compare BUNDLE MINE`: who is wrong, where first, and perhaps why.   Spec 7.12"""

import sys
from typing import NamedTuple

from ..golden.errors import BundleError
from ..golden.verify import open_case
from ..writing import check_folder, write_whole
from .accumulators import ACCUMULATORS, find_accumulator
from .files import open_submission, read_map
from .guesses import guesses
from .judged import compare_tensors
from .page import html_page
from .report import json_report, junit_report, text_report


class Result(NamedTuple):
    """What the reports are made of."""

    title: str
    bundle: str
    mine: str
    comparison: object
    guesses: list
    rigorous: bool

    @property
    def passed(self):
        return self.comparison.passed(self.rigorous)


def add_arguments(command):
    """The arguments of `refmoe compare`."""
    command.add_argument("bundle", metavar="BUNDLE", help="a golden bundle")
    help_mine = "your tensors, under the bundle's names: a .safetensors or .npz file, or a directory of raw ones"
    command.add_argument("mine", metavar="MINE", help=help_mine)
    command.add_argument("--map", metavar="FILE", help='JSON {"your name": "the bundle\'s name"}')
    command.add_argument(
        "--accumulator", default="f32", help=f"how your sums are rounded: {', '.join(ACCUMULATORS)} (default: f32)"
    )
    command.add_argument("--rigorous", action="store_true", help="only what is wrong fails, not what is suspicious")
    shape = command.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="print the report as JSON")
    shape.add_argument("--junit", action="store_true", help="print the report as JUnit XML")
    command.add_argument("--html", metavar="FILE", help="write one page with error maps by expert as well")


def run(args, spec_version, say=str):
    """Exit status: 0 passed, 1 wrong or suspicious, 2 unreadable."""
    check_folder("--html", args.html)
    try:
        result = compare_files(args.bundle, args.mine, spec_version, args.map, args.accumulator, args.rigorous,
                               backend=args.backend, threads=args.threads, kernel=args.kernel, say=say)  # fmt: skip
    except BundleError as error:
        say("")
        print(f"refmoe: {error}", file=sys.stderr)
        return 2
    say("")
    if args.html:
        write_whole(args.html, html_page(result))
    shape = json_report if args.json else junit_report if args.junit else text_report
    print(shape(result))
    return 0 if result.passed else 1


def compare_files(bundle, mine, spec_version, names=None, accumulator="f32", rigorous=False, say=str, **engine):
    """The Result of a file against a bundle.

    Raises BundleError for files that cannot be read or are not what they must be, ValueError for a tensor or an
    accumulator that does not fit.
    """
    row = find_accumulator(accumulator)
    table = None if names is None else read_map(names)
    with open_submission(mine, table) as submitted, open_case(bundle, spec_version, **engine) as case:
        manifest, config, num, inputs = case
        rows = {r["name"]: r for r in manifest["tensors"] if r["role"] in ("record", "gradient")}
        _check_any(submitted, rows, mine)
        comparison = compare_tensors(config, inputs, num, submitted, row, rows, say)
        say("the cause")
        found = guesses(comparison, submitted, config, inputs, num)
    return Result(manifest["title"], str(bundle), str(mine), comparison, found, rigorous)


def _check_any(submitted, rows, path):
    if not submitted.keys() & rows.keys():
        names = ", ".join(sorted(submitted)[:5]) or "none"
        raise ValueError(f"{path}: expected tensors named as in the bundle (y, grads.d_x ...), got {names}; use --map")
