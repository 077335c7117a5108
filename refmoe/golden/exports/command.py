"""`refmoe export BUNDLE --to FORM OUT`: a bundle's case in a form that others read.   Spec 7.14"""

import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

from ...refusals import require, require_path
from .. import raw
from ..errors import BundleError
from ..verify import open_bundle, open_case
from . import flashinfer
from .whole import whole_tensors


def _raw(directory, manifest, config, tensors):
    raw.write(directory, tensors)
    return [f"{len(tensors)} tensors, inputs made by their recipes among them"]


# form -> write(directory, manifest, config, tensors): lines for people
EXPORTS = {"raw": _raw, "flashinfer-bench": flashinfer.write}


def add_arguments(command):
    """The arguments of `refmoe export`."""
    command.add_argument("bundle", metavar="BUNDLE", help="a golden bundle")
    command.add_argument("--to", choices=EXPORTS, required=True, help="raw bytes and a text index, or a trace set")
    command.add_argument("out", metavar="OUT", help="a directory that does not exist; it appears when all is done")


def run(args, spec_version):
    """Writes the export and says what is in it. Exit status: that of `refmoe check` for a bundle that is not one."""
    try:
        lines = export_bundle(args.bundle, args.to, args.out, spec_version)
    except BundleError as error:
        print(f"refmoe: {error}", file=sys.stderr)
        return error.code
    print(*lines, f"written  {args.out}", sep="\n")
    return 0


def export_bundle(bundle, form, out, spec_version):
    """Lines about what was written to `out`, which appears by one rename; the same bundle gives the same bytes.

    Raises BundleError for a bundle that is not one, ValueError for a place that is taken, or a case that the form
    cannot say.
    """
    require_path("bundle", bundle)
    require_path("OUT", out)
    out = Path(out)
    if out.exists():
        raise ValueError(f"OUT: expected a directory that does not exist, {out} does; choose another")
    ok = isinstance(form, str) and form in EXPORTS
    require(ok, ValueError, "form", f"one of {', '.join(EXPORTS)}", f"{form!r:.80}", "choose one of these")
    with open_bundle(bundle, spec_version) as (manifest, reader), open_case(bundle, spec_version) as (_, config, *case):
        tensors = whole_tensors(manifest, reader, *case)
        with _aside(out) as partial:
            lines = EXPORTS[form](partial, manifest, config, tensors)
    sampled = ", ".join(row["name"] for row in manifest["tensors"] if row["name"] not in tensors)
    return [*lines, f"left out, since the bundle has samples of them alone: {sampled}"] if sampled else lines


@contextmanager
def _aside(out):
    """A directory beside the final one, renamed at the end; removed when anything ends the work before that."""
    partial = out.with_name(out.name + ".partial")
    if partial.exists():
        raise ValueError(f"OUT: expected no {partial} of an export that was killed, it is there; remove it")
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
