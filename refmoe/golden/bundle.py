"""Writing a golden bundle: computed, written aside, renamed into place.   Spec 7.4"""

import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from ..config import MoEConfig
from ..numerics import Numerics
from ..refusals import require, require_flag, require_instance, require_listener, require_path, shown
from . import storage
from .containers import CONTAINERS, FILES
from .digests import SAMPLE_COUNT, sample_stride, tensor_digest
from .inputs import is_expert_tensor, make_inputs
from .manifest import SCHEMA, canonical, hexed, sealed, write_text
from .narrow import Options
from .ranks import check_ranks
from .run import compute, stage_of
from .storage import held_name
from .unfinished import unfinished, watched
from .weights import maker_pool

MANIFEST = "manifest.json"


class Written(NamedTuple):
    """What a run left behind: the manifest, the tokens each expert got, and seconds by step."""

    manifest: dict
    tokens_per_expert: object  # None where the bundle does not hold them, or nobody is chosen
    seconds: dict


def write_bundle(directory, config, num, spec_version, title, tokens, rows, stored=None, force=False, say=None,
                 options=None):  # fmt: skip
    """Computes a case and writes its bundle to `directory`, which appears by one rename when all is done.

    rows: `inputs.recipe_rows(...)`, with {"source": "stored"} for what `stored` (name -> carrier) supplies.
    say: called with the name of each step. Raises ValueError if the directory exists (and not force); whatever fails,
    nothing half done is left.
    """
    require_path("directory", directory)
    require_instance("config", config, MoEConfig, "use load_preset or MoEConfig.from_dict")
    require_instance("num", num, Numerics, "use Numerics()")
    options = Options() if options is None else options
    _require_options({} if stored is None else stored, force, say, options)
    directory = Path(directory)
    _require_place(directory, force)
    if options.ranks is not None:
        check_ranks(config, options.ranks)
    clock, label = _Clock(say), (spec_version, title, tokens, rows)
    clock.start("inputs")
    with (
        unfinished(directory, config, num, label, stored or {}, options) as work,
        watched(config, num, tokens, rows, say) as progress,
        maker_pool(work, progress) as pool,
        _aside(directory, force) as partial,
    ):
        clock.say = progress.step if progress else say
        inputs = make_inputs(config, num, tokens, rows, stored or {}, pool)
        made = list(compute(config, inputs, num, pool, clock.start, options))
        clock.start("writing")
        manifest = make_manifest(config, num, *label, made, options)
        CONTAINERS[options.container].write(partial, held_tensors(made))
        write_text(partial / MANIFEST, canonical(manifest))
    clock.start("")
    load = next((m.codes for m in made if m.name == "plan.assigned_per_expert"), None)
    return Written(manifest, load, clock.seconds)


def _require_options(stored, force, say, options):
    require_instance("stored", stored, Mapping, "key each array by its tensor's name", "a mapping to arrays")
    require_flag("force", force)
    require_listener("say", say)
    require_instance("options", options, Options, "use refmoe.golden.narrow.Options()", "Options or None")
    ok = isinstance(options.container, str) and options.container in CONTAINERS
    known, fix = ", ".join(CONTAINERS), "choose one of these"
    require(ok, ValueError, "options.container", f"one of {known}", shown(options.container), fix)


class _Clock:
    """Seconds by named step."""

    def __init__(self, say):
        self.seconds, self._name, self._since, self.say = {}, "", time.perf_counter(), say

    def start(self, name):
        now = time.perf_counter()
        if self.say:
            self.say(name)
        if self._name:
            self.seconds[self._name] = self.seconds.get(self._name, 0.0) + now - self._since
        self._name, self._since = name, now


@contextmanager
def _aside(directory, force):
    """DIR.partial, renamed to DIR at the end; removed when anything, Ctrl-C included, ends the work before that."""
    partial = directory.with_name(directory.name + ".partial")
    if partial.exists():  # of a run that was killed
        _require_bundle(partial)
        shutil.rmtree(partial)
    try:
        partial.mkdir(parents=True)
        yield partial
        _put_in_place(partial, directory, force)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _put_in_place(partial, directory, force):
    """The rename. A bundle that is replaced steps aside first, so that one of the two is there at every moment."""
    if not (force and directory.exists()):
        partial.rename(directory)
        return
    _require_bundle(directory)
    with tempfile.TemporaryDirectory(prefix=directory.name + ".old", dir=directory.parent) as old:
        directory.rename(Path(old) / "bundle")
        partial.rename(directory)


def _require_place(directory, force):
    if directory.exists():
        if not force:
            raise ValueError(
                f"--out: expected a directory that does not exist, {directory} does; choose another or pass --force"
            )
        _require_bundle(directory)


def _require_bundle(directory):
    """What is replaced must be a bundle, and nothing else that may lie in the way."""
    odd = (
        sorted(p.name for p in directory.iterdir() if p.name not in {MANIFEST, *FILES})
        if directory.is_dir()
        else ["a file"]
    )
    if odd:
        raise ValueError(
            f"--out: expected {directory} to hold a bundle and nothing else, found {odd[0]}; remove it yourself"
        )


def held_tensors(made):
    """name in the file -> (dtype, elements) of what is stored of a computed case."""
    return {held_name(m.name, m.kind): (m.dtype, m.codes) for m in made if m.codes is not None}


def make_manifest(config, num, spec_version, title, tokens, rows, made, options):
    """The manifest of a computed case, its own digest in it."""
    run = {"profile": num.profile, "store": num.store, "tokens": tokens, "backward": "d_y" in rows}
    return sealed({
        "schema": SCHEMA,
        "spec_version": spec_version,
        "title": title,
        "config": hexed(config.to_dict()),
        "run": run if options.ranks is None else run | {"ranks": options.ranks},
        "inputs": rows,
        "limits": {"stored_bytes": storage.SIZE_LIMIT, "sample_count": SAMPLE_COUNT} | options.narrow.limits(),
        "tensors": [tensor_row(m, options.narrow) for m in made],
    })  # fmt: skip


def tensor_row(made, narrow):
    """What the manifest says of one tensor."""
    held = {"kind": made.kind}
    if made.kind == "sample":
        held |= {"stride": sample_stride(made.shape), "count": int(made.codes.size)}
    if made.kind == "experts":
        held |= {"experts": list(narrow.experts), "shape": list(made.codes.shape)}
    if made.kind in ("sample", "experts"):
        held["sha256"] = tensor_digest(made.codes)
    return {
        "name": made.name,
        "role": made.role,
        "stage": stage_of(made.name),
        "dtype": made.dtype,
        "shape": list(made.shape),
        "sha256": made.sha256,
        "digest_of": "experts" if is_expert_tensor(made.name) else "bytes",
        "storage": held,
    }
