"""The committed vectors: made from the cases, written canonically, stale when the code says otherwise.   Spec 7.9"""

import json
import warnings

import numpy as np

from ..models.presets import spec_folder
from ..numerics import Numerics
from ..recipes import generate
from ..safetensors import element_bytes
from .cases import CHAPTERS, Recipe, run
from .classes import class_of, measure
from .digests import sha256, stored_dtype
from .manifest import hex_float, hexed

SCHEMA = {"name": "refmoe-vectors", "version": 1}
LONGEST = 48  # elements; a longer expected tensor stands as its digest


def suite_text(chapter):
    """The bytes of one suite's file."""
    from .. import SPEC_VERSION

    module = CHAPTERS[chapter]
    longest = getattr(module, "LONGEST", LONGEST)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a router without a gradient is what a case is there to show
        cases = [_written(number, case, longest) for number, case in enumerate(module.cases(), start=1)]
    return compact({
        "schema": SCHEMA,
        "spec_version": SPEC_VERSION,
        "chapter": chapter,
        "about": module.ABOUT,
        "notes": {flag: {"bug": bug, "effect": effect} for flag, (bug, effect) in module.NOTES.items()},
        "cases": cases,
    }).encode() + b"\n"  # fmt: skip


def compact(value, indent="\n"):
    """Canonical JSON for reading: sorted keys, ASCII; what contains no object stands on one line."""
    if not isinstance(value, (dict, list)) or not _has_objects(value):
        return json.dumps(value, sort_keys=True, ensure_ascii=True, allow_nan=False)
    inner = indent + " "
    if isinstance(value, list):
        return "[" + ",".join(inner + compact(item, inner) for item in value) + indent + "]"
    rows = (f"{inner}{json.dumps(key)}: {compact(value[key], inner)}" for key in sorted(value))
    return "{" + ",".join(rows) + indent + "}"


def _has_objects(value):
    return any(isinstance(item, dict) for item in (value.values() if isinstance(value, dict) else value))


def write_vectors():
    """Writes every suite below spec/vectors and returns the names of the files."""
    for chapter in CHAPTERS:
        path = suite_path(chapter)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(suite_text(chapter))
    return [_name(chapter) for chapter in CHAPTERS]


def check_vectors():
    """The names of the files that are missing or differ from what the code makes now."""
    return [_name(chapter) for chapter in CHAPTERS if not _is_fresh(chapter)]


def suite_path(chapter):
    """Where a suite's file stands."""
    return spec_folder() / "vectors" / chapter / f"{chapter}.json"


def _is_fresh(chapter):
    path = suite_path(chapter)
    return path.exists() and path.read_bytes() == suite_text(chapter)


def _name(chapter):
    return f"spec/vectors/{chapter}/{chapter}.json"


def _written(number, case, longest):
    expected = {"error": case.refused} if case.refused else outcome(case, longest=longest)
    return {
        "id": number,
        "comment": case.comment,
        "flags": list(case.flags),
        "call": case.call,
        "config": hexed(case.config or {}),
        "profile": case.profile,
        "store": case.store,
        "inputs": {name: written_tensor(value) for name, value in case.inputs.items()},
        "expected": expected,
        "result": "invalid" if case.refused else "valid",
    } | ({"options": case.options} if case.options else {}) | _class(case, expected)


def _class(case, expected):
    """exact, rounded or invalid; the formats of the first, the chains and magnitudes of the second; margins."""
    if case.refused:
        return {"class": class_of(case.refused, ())}
    exact_in, stages, margins = measure(case, arrays_of(case, Numerics(case.profile, case.store, backend="numpy")))
    said = {"class": class_of("", exact_in)}
    chains = {} if exact_in else {name: _chain(stage, expected[name]) for name, stage in stages.items()}
    said |= {"exact_in": list(exact_in)} if exact_in else {"sums": chains} if chains else {}
    return said | ({} if margins is None else {"margins": written_tensor(margins)})


def _chain(stage, expected):
    """The longest sum of a stage, and the magnitudes beside values that stand in the file."""
    said = {"terms": stage.terms}
    return said | ({"magnitude": written_tensor(stage.magnitude)} if "values" in expected else {})


def outcome(case, backend="numpy", kernel=None, longest=LONGEST):
    """name -> written tensor of everything a valid case makes, on any backend."""
    num = Numerics(profile=case.profile, store=case.store, backend=backend, kernel=kernel)
    made = run(case, num, arrays_of(case, num))
    return {name: written_tensor(array, longest) for name, array in made.items()}


def arrays_of(case, num):
    """The inputs of a case as carriers."""
    return {name: _array(value).astype(num.dtype) if _is_float(value) else value for name, value in case.inputs.items()}


def _is_float(value):
    return isinstance(value, Recipe) or value.dtype == np.float32


def _array(value):
    if isinstance(value, Recipe):
        return generate(value.name, value.shape, value.seed, value.recipe, value.exponent)
    return value


def written_tensor(value, longest=None):
    """A tensor as it stands in a file: shape, dtype and values as one string, or its rule, or its digest."""
    if isinstance(value, Recipe):
        return value._asdict() | {"shape": list(value.shape)}
    value = np.asarray(value)
    dtype = stored_dtype(value, {"float32": "float32", "float64": "float64"}.get(value.dtype.name))
    row = {"shape": list(value.shape), "dtype": dtype}
    if longest is not None and value.size > longest:
        return row | {"sha256": sha256(element_bytes(value))}
    words = (
        (hex_float(v) for v in value.ravel().tolist())
        if value.dtype.kind == "f"
        else (str(int(v)) for v in value.ravel())
    )
    return row | {"values": " ".join(words)}
