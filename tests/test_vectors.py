"""The committed vectors: fresh, well-formed, small, and reproduced by every backend and kernel."""

import json
from functools import cache
from pathlib import Path

import jsonschema
import numpy as np
import pytest

import refmoe
from refmoe import kernels
from refmoe.golden import vectors
from refmoe.golden.cases import CALLS, CHAPTERS, run
from refmoe.golden.cases.form import Case, Recipe, f32, sizes
from refmoe.golden.cases.losses import FIXTURE, NINE
from refmoe.golden.digests import sha256
from refmoe.recipes import generate
from refmoe.safetensors import DTYPES, element_bytes

FOLDER = Path(__file__).parent.parent / "spec" / "vectors"
SUITES = {chapter: json.loads((FOLDER / chapter / f"{chapter}.json").read_bytes()) for chapter in CHAPTERS}
KERNELS = [name for name, can_run, _ in kernels.available() if can_run]
ENGINES = [("numpy", None), *(("c", name) for name in KERNELS)]

# The nine values of the fixture, from an independent computation in binary64.
PUBLISHED = {
    "all choices, divided by k": 1.1331110351249711,
    "all choices, undivided": 2.2662220702499423,
    "first choices": 1.1940449967926121,
    "row-normalised sigmoid": 1.0609437054810311,
    "raw sigmoid": 2.392294731684883,
    "CV^2 of the full softmax": 0.07310077909154199,
    "CV^2 of the kept gates": 0.29819941850183085,
    "CV^2 of the kept gates, unbiased": 0.3975992246691078,
    "router z-loss": 3.404649313371019,
}


def parsed(tensor):
    """A tensor of a file as an array, read by the chapter's description alone."""
    if "recipe" in tensor:
        return generate(tensor["name"], tensor["shape"], tensor["seed"], tensor["recipe"], tensor["exponent"])
    read = float.fromhex if tensor["dtype"].startswith("F") else int
    return np.array([read(word) for word in tensor["values"].split()], DTYPES[tensor["dtype"]]).reshape(tensor["shape"])


def same(array, tensor):
    """Do the bits of an array agree with a tensor of a file?"""
    array = np.asarray(array)
    if list(array.shape) != tensor["shape"] or array.dtype != DTYPES[tensor["dtype"]]:
        return False
    if "sha256" in tensor:
        return sha256(element_bytes(array)) == tensor["sha256"]
    return array.tobytes() == parsed(tensor).tobytes()


def from_file(row):
    """A case as its file states it."""
    inputs = {name: parsed(tensor) for name, tensor in row["inputs"].items()}
    return Case(
        row["comment"],
        tuple(row["flags"]),
        row["call"],
        inputs,
        row["config"] or None,
        row["profile"],
        row["store"],
        row.get("options"),
    )


suite_text = cache(vectors.suite_text)  # what takes seconds to make is read by several tests


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_suite_is_what_the_code_makes(chapter):
    assert (FOLDER / chapter / f"{chapter}.json").read_bytes() == suite_text(chapter)


def test_nothing_else_lies_among_the_vectors():
    found = {str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*") if path.is_file()}
    assert found == {"schema.json", *(f"{chapter}/{chapter}.json" for chapter in CHAPTERS)}


def test_the_vectors_are_small():
    assert sum(path.stat().st_size for path in FOLDER.rglob("*.json")) <= 3 * 1024 * 1024


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_suite_follows_the_schema(chapter):
    schema = json.loads((FOLDER / "schema.json").read_bytes())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(SUITES[chapter], schema)


def test_the_schema_refuses():
    schema = json.loads((FOLDER / "schema.json").read_bytes())
    spoiled = json.loads((FOLDER / "routing" / "routing.json").read_bytes())
    spoiled["cases"][0]["expected"]["scores"]["values"] += " 0.5"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(spoiled, schema)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_flag_has_a_note_and_every_note_a_case(chapter):
    suite = SUITES[chapter]
    used = {flag for case in suite["cases"] for flag in case["flags"]}
    assert used == set(suite["notes"])
    assert [case["id"] for case in suite["cases"]] == list(range(1, len(suite["cases"]) + 1))
    comments = [(case["comment"], case["call"], case["store"], case["profile"]) for case in suite["cases"]]
    assert len(set(comments)) == len(comments)


def test_every_call_is_used():
    assert {case["call"] for suite in SUITES.values() for case in suite["cases"]} == set(CALLS)


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: "-".join(filter(None, engine)))
@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_engine_reproduces_the_file(chapter, engine):
    """From the file alone: nothing here reads the code that wrote it but the calls themselves."""
    backend, kernel = engine
    for row in SUITES[chapter]["cases"]:
        if row["result"] == "invalid":
            continue
        num = refmoe.Numerics(profile=row["profile"], store=row["store"], backend=backend, kernel=kernel)
        made = run(from_file(row), num, from_file(row).inputs)
        assert set(made) == set(row["expected"]), row["comment"]
        for name, array in made.items():
            assert same(array, row["expected"][name]), f"{row['id']} {row['comment']}: {name} {array}"


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_invalid_cases_are_refused_by_name(chapter):
    rows = [row for row in SUITES[chapter]["cases"] if row["result"] == "invalid"]
    for row in rows:
        num = refmoe.Numerics(profile=row["profile"], store=row["store"], backend="numpy")
        with pytest.raises((ValueError, TypeError), match=row["expected"]["error"]):
            run(from_file(row), num, from_file(row).inputs)
    assert len(rows) >= (8 if chapter == "routing" else 0)


def nine(name, profile):
    """One value of the fixture under a profile."""
    num = refmoe.Numerics(profile=profile, backend="numpy")
    case = Case(name, (), "loss", {"logits": f32(FIXTURE)}, sizes(4, 2, losses=NINE[name]))
    made = run(case, num, {"logits": np.array(FIXTURE, num.dtype)})
    return made[next(iter(NINE[name]))]


@pytest.mark.parametrize("name", NINE)
def test_the_nine_values_in_binary64(name):
    assert abs(float(nine(name, "float64")) - PUBLISHED[name]) <= 4 * np.spacing(PUBLISHED[name])


@pytest.mark.parametrize("name", NINE)
def test_the_nine_values_are_committed_under_exact(name):
    row = next(row for row in SUITES["losses"]["cases"] if row["comment"] == f"fixture: {name}")
    value = nine(name, "exact")
    assert row["profile"] == "exact"
    assert same(value, row["expected"][next(iter(NINE[name]))])
    assert abs(float(value) - PUBLISHED[name]) < 1e-6  # the logits were rounded to float32 first


def test_the_exact_class_is_exact():
    """The case of small integers has the same outputs under every profile and store that can hold it."""
    row = next(row for row in SUITES["gradients"]["cases"] if "ExactClass" in row["flags"])
    outputs = []
    for profile, store in (("exact", "float32"), ("chain", "float32"), ("float64", "float64")):
        num = refmoe.Numerics(profile=profile, store=store, backend="numpy")
        inputs = {n: a.astype(num.dtype) if a.dtype == np.float32 else a for n, a in from_file(row).inputs.items()}
        outputs.append(run(from_file(row), num, inputs))
    for other in outputs[1:]:
        assert set(other) == set(outputs[0])
        for name, array in other.items():
            assert np.array_equal(outputs[0][name], array), name
    assert any(np.abs(outputs[0][name]).max() > 100 for name in ("y", "d_x", "params.w_gate"))


def test_a_stale_file_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(vectors, "spec_folder", lambda: tmp_path)
    monkeypatch.setattr(vectors, "suite_text", suite_text)
    assert vectors.check_vectors() == [f"spec/vectors/{chapter}/{chapter}.json" for chapter in CHAPTERS]
    vectors.write_vectors()
    assert vectors.check_vectors() == []
    path = tmp_path / "vectors" / "losses" / "losses.json"
    path.write_bytes(path.read_bytes().replace(b"0x1p+0", b"0x1p+1", 1))
    assert vectors.check_vectors() == ["spec/vectors/losses/losses.json"]


def test_written_tensors_read_back():
    values = np.array([0.0, -0.0, 1.5, np.inf, -np.inf, np.nan, 2.0**-149, -(2.0**-126)], np.float32)
    assert same(values, vectors.written_tensor(values))
    assert same(values, vectors.written_tensor(values, longest=3))
    assert not same(values, vectors.written_tensor(-values))
    assert same(generate("x", (2, 3), 0), vectors.written_tensor(generate("x", (2, 3), 0)))
    assert np.array_equal(
        parsed(vectors.written_tensor(Recipe("x", (2, 3), "wide", 4, -2))), generate("x", (2, 3), 4, "wide", -2)
    )
