"""Chapter 7, checking: what is truncated, altered, forged or foreign is found out and named."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from golden_case import ROOT, add_one_bit, check, container, entry, forge, refused, reseal, write

import refmoe
from refmoe.golden import storage
from refmoe.safetensors import MAX_HEADER, open_tensors, write_tensors


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    directory = tmp_path_factory.mktemp("golden") / "bundle"
    write(directory)
    return directory


@pytest.fixture
def copy(made, tmp_path):
    """A copy of the bundle that a test may spoil."""
    return Path(shutil.copytree(made, tmp_path / "copy"))


# --- 7.8 what a check finds -------------------------------------------------------------------------------------------


def test_truncation_at_every_byte_of_the_manifest_is_found(copy):
    path = copy / "manifest.json"
    for length in reversed(range(path.stat().st_size)):
        os.truncate(path, length)
        assert "manifest.json" in refused(copy)


def test_truncation_of_the_tensors_is_found(copy):
    path, raw = copy / "tensors.safetensors", (copy / "tensors.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    with open_tensors(path) as reader:
        ends = {8 + length + e.end for e in reader.entries.values()}
    sizes = {*range(600), *range(length, length + 64), *ends, *(end - 1 for end in ends)} - {len(raw)}
    for size in sorted(sizes, reverse=True):
        os.truncate(path, size)
        assert "tensors.safetensors" in refused(copy)
    path.write_bytes(raw + b"\0")
    assert "too long" in refused(copy)


def put(path, place, byte):
    """Changes one byte of a file where it stands."""
    with open(path, "r+b") as file:
        file.seek(place)
        file.write(bytes([byte]))


def test_two_thousand_flipped_bits_are_found(copy):
    generator = random.Random(20)
    for name in ("manifest.json", "tensors.safetensors"):
        raw = (copy / name).read_bytes()
        for _ in range(1000):
            place = generator.randrange(len(raw))
            put(copy / name, place, raw[place] ^ 1 << generator.randrange(8))
            assert name in refused(copy)
            put(copy / name, place, raw[place])
    assert check(copy).differences == []


def test_a_flipped_payload_bit_names_its_tensor(copy):
    path = copy / "tensors.safetensors"
    with open_tensors(path) as reader:
        places = {name: 8 + len(reader.header) + e.begin for name, e in reader.entries.items()}
    raw = path.read_bytes()
    for name, place in places.items():
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
        assert f"tensor {name!r}: altered" in refused(copy)


FORGED = ("routing.logits", "plan.row_slot", "y", "grads.d_x", "grads.params.w_gate", "d_y", "x")


@pytest.mark.parametrize("name", FORGED)
def test_a_consistent_forgery_is_named(copy, name):
    forge(copy, name, add_one_bit)
    found = check(copy).differences
    assert [tensor for tensor, _ in found] == [name]
    assert "1 of" in found[0][1] and "recomputed" in found[0][1]


def test_a_forged_sample_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "SIZE_LIMIT", 100)
    write(tmp_path / "b")
    forge(tmp_path / "b", "grads.params.w_gate.sample", add_one_bit)
    assert [tensor for tensor, _ in check(tmp_path / "b").differences] == ["grads.params.w_gate"]


def test_forged_digests_and_descriptions_are_named(copy):
    def spoil(data):
        rows = {row["name"]: row for row in data["tensors"]}
        rows["params.w_up"]["sha256"] = "0" * 64
        rows["y"]["stage"] = "1.1"

    reseal(copy, spoil)
    assert [tensor for tensor, _ in check(copy).differences] == ["params.w_up", "y"]


def test_a_forged_configuration_shows_in_the_tensors(copy):
    reseal(copy, lambda data: data["config"]["routing"].update(normalize=True))
    assert check(copy).differences[0][0] == "routing.topk_weights"


SIZES = {
    "tokens": (lambda data: data["run"].update(tokens=10**12), r"d_y: .* \[1000000000000, 4\], .* says \[5, 4\]"),
    "hidden_size": (lambda data: data["config"].update(hidden_size=10**12), r"d_y: .* \[5, 1000000000000\], "),
    "num_experts": (lambda data: data["config"].update(num_experts=10**7), r"params.w_down: .* \[10000000, 4, 3\], "),
    "no row": (lambda data: data["tensors"].pop(2), r"params.w_router: .* \[4, 4\], .* says None"),
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_that_contradict_the_tensors_are_not_computed(copy, name):
    """A small file must not ask for terabytes, nor for hours."""
    reseal(copy, SIZES[name][0])
    assert re.search(r"manifest.json: does not describe a case \(" + SIZES[name][1], refused(copy))


@pytest.mark.parametrize("exponent", [101, -(2**70), "0"])
def test_a_recipe_far_from_float32_is_refused_in_words(copy, exponent):
    reseal(copy, lambda data: data["inputs"]["params.w_up"].update(exponent=exponent))
    assert "its case cannot be recomputed (exponent: expected an integer from -100 to 100, got " in refused(copy)


def test_a_forged_limit_is_found(copy):
    reseal(copy, lambda data: data["limits"].update(sample_count=3))
    assert check(copy).differences == [("", "the manifest is not the one that its case makes")]


def test_a_missing_tensor_is_named(copy):
    with open_tensors(copy / "tensors.safetensors") as reader:
        tensors = {n: (e.dtype, reader.codes(n)) for n, e in reader.entries.items() if n != "routing.scores"}
    write_tensors(copy / "tensors.safetensors", tensors)
    assert "tensor 'routing.scores': the tensor is missing" in refused(copy)
    reseal(copy, lambda data: data.update(tensors=[r for r in data["tensors"] if r["name"] != "routing.scores"]))
    assert check(copy).differences == [("routing.scores", "the case makes this tensor, the bundle lacks it")]


def test_a_tensor_too_many_is_named(copy):
    with open_tensors(copy / "tensors.safetensors") as reader:
        tensors = {n: (e.dtype, reader.codes(n)) for n, e in reader.entries.items()}
    write_tensors(copy / "tensors.safetensors", tensors | {"extra": tensors["y"]})
    assert "tensor 'extra': the manifest does not know" in refused(copy)


def test_a_header_that_is_not_canonical_is_refused(copy):
    path = copy / "tensors.safetensors"
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    path.write_bytes((length + 8).to_bytes(8, "little") + raw[8 : 8 + length] + b" " * 8 + raw[8 + length :])
    assert "not the canonical one" in refused(copy)


@pytest.mark.parametrize(("change", "message"), [
    ({"schema": {"name": "other", "version": 1}}, "schema is not"),
    ({"schema": {"name": "refmoe-golden-bundle", "version": 2}}, "schema is not"),
    ({"extra": 1}, "fields are not those"),
    ({"tensors": {}}, "list of tensors"),
    ({"tensors": [{}]}, "list of tensors"),
    ({"run": []}, "'run' is not an object"),
    ({"config": {}}, "does not describe a case"),
    ({"config": {"hidden_size": "4"}}, "does not describe a case"),
    ({"run": {"profile": "exact", "store": "float32", "tokens": -1, "backward": True}}, "does not describe a case"),
    ({"run": {"profile": "guess", "store": "float32", "tokens": 5, "backward": True}}, "does not describe a case"),
    ({"run": {"profile": [], "store": {}, "tokens": 5}}, "does not describe a case"),
    ({"inputs": {}}, "cannot be recomputed"),
    ({"inputs": {"x": {"source": "recipe"}}}, "cannot be recomputed"),
    ({"inputs": {"x": {"source": "stored"}, "params.nonsense": {"source": "stored"}}}, "nonsense"),
])  # fmt: skip
def test_a_foreign_or_malformed_manifest_is_refused(copy, change, message):
    reseal(copy, lambda data: data.update(change))
    assert message in refused(copy)


def test_malformed_rows_are_refused(copy):
    raw = (copy / "manifest.json").read_bytes()
    for field, value in (
        ("storage", {}),
        ("storage", []),
        ("shape", None),
        ("shape", [10**400]),
        ("dtype", "F8"),
        ("dtype", {}),
        ("name", 3),
    ):
        reseal(copy, lambda data, field=field, value=value: data["tensors"][0].update({field: value}))
        assert "copy/" in refused(copy)
        (copy / "manifest.json").write_bytes(raw)


def test_another_spec_version_is_said_to_be_so(copy):
    reseal(copy, lambda data: data.update(spec_version=refmoe.SPEC_VERSION + 1))
    assert f"SPEC_VERSION {refmoe.SPEC_VERSION + 1}" in refused(copy, code=2)


def test_what_cannot_be_read_is_code_2(copy, tmp_path):
    refused(tmp_path / "nowhere", code=2)
    (copy / "tensors.safetensors").unlink()
    assert "cannot be read" in refused(copy, code=2)
    (copy / "manifest.json").unlink()
    assert "manifest.json: cannot be read" in refused(copy, code=2)


GROWTH = """
import resource, sys
from refmoe.golden import BundleError, check_bundle
import refmoe
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for directory in sys.argv[1:]:
    try:
        check_bundle(directory, refmoe.SPEC_VERSION, backend="numpy")
    except BundleError as error:
        continue
    sys.exit(f"{directory} was accepted")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_what_a_header_claims_does_not_become_memory(made, tmp_path):
    """A header at the cap full of empty lists, lengths of 2^63, shapes of 2^60, a manifest of empty objects."""
    room = MAX_HEADER
    huge = {"a": entry(0, 4 << 58, [1 << 58])}
    texts = [b"[" + b"[]," * (room // 3 - 2) + b"[]]", b"{" * room, json.dumps(huge).encode()]
    directories = []
    for number, text in enumerate(texts):
        directories.append(Path(shutil.copytree(made, tmp_path / str(number))))
        container(directories[-1] / "tensors.safetensors", text)
    for number, text in enumerate((b"[" + b"{}," * (room // 3 - 2) + b"{}]", b"\x00" * room * 64), start=len(texts)):
        directories.append(Path(shutil.copytree(made, tmp_path / str(number))))
        (directories[-1] / "manifest.json").write_bytes(text)
    done = subprocess.run([sys.executable, "-c", GROWTH, *directories], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 64
