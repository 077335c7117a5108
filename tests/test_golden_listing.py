"""Chapter 7.4.2: what `--list` says is what is then made."""

import json

import pytest
from golden_case import tiny, write

import refmoe
from refmoe.__main__ import main
from refmoe.golden import storage
from refmoe.golden.inputs import prepare
from refmoe.golden.listing import listing
from refmoe.golden.narrow import Options, narrowed
from refmoe.golden.quantised import quantised_rows

NUM = refmoe.Numerics(backend="numpy")
CASES = {
    "whole": {},
    "narrowed": {"experts": [1], "stages": ["y", "experts", "grads.params", "plan"]},
    "ranks": {"ranks": 1},
    "forward": {"backward": False},
    "bf16": {"store": "bf16"},
}
PRESETS = ("deepseek-v3", "gpt-oss-20b", "switch-base-8", "qwen3-30b-a3b")


def listed(config, tokens=5, backward=True, store=None, ranks=None, experts=None, stages=None, scheme=None, rule=None):
    num = refmoe.Numerics(backend="numpy", store=store)
    tokens, rows, stored = prepare(config, num, tokens, backward, 0, {})
    rows = quantised_rows(rows, scheme, rule)
    options = Options(narrow=narrowed(config, experts, stages), ranks=ranks)
    return listing(config, num, tokens, rows, stored, options)


def held(directory):
    """What was made: (name, type, shape, kind) of each tensor, and the bytes of the payload."""
    rows = json.loads((directory / "manifest.json").read_bytes())["tensors"]
    path = directory / "tensors.safetensors"
    header = int.from_bytes(path.read_bytes()[:8], "little")
    found = [(r["name"], r["dtype"], tuple(r["shape"]), r["storage"]["kind"]) for r in rows]
    return found, path.stat().st_size - 8 - header


@pytest.mark.parametrize("limit", [200, 8 << 20])
@pytest.mark.parametrize(("preset", "name"), [(p, "whole") for p in PRESETS] + [(PRESETS[0], n) for n in CASES])
def test_the_list_is_what_is_made(tmp_path, monkeypatch, preset, name, limit):
    monkeypatch.setattr(storage, "SIZE_LIMIT", limit)
    config = refmoe.load_preset(preset, scale="minimal")
    write(tmp_path / "b", config, **CASES[name])
    made, (want, size) = listed(config, **CASES[name]), held(tmp_path / "b")
    assert [row[:4] for row in made.tensors] == want
    assert made.bytes == size


@pytest.mark.parametrize(("scheme", "rule"), [("fp8-block", None), ("mxfp4", "even"), ("nvfp4", None)])
def test_the_list_of_a_quantised_layer(tmp_path, scheme, rule):
    config = refmoe.load_preset("qwen3-30b-a3b", scale="minimal")
    asked = ["golden", "qwen3-30b-a3b", "--scale", "minimal", "--tokens", "5", "--backend", "numpy"]
    named = ["--weights", scheme, *(["--scale-rule", rule] if rule else [])]
    assert main([*asked, *named, "--out", str(tmp_path / "b")]) == 0
    made, (want, size) = listed(config, scheme=scheme, rule=rule), held(tmp_path / "b")
    assert [row[:4] for row in made.tensors] == want
    assert made.bytes == size


def test_a_full_size_layer_is_listed_without_being_made(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["golden", "qwen3-30b-a3b", "--tokens", "2", "--list"]) == 0
    said = capsys.readouterr().out
    assert "params.w_gate" in said and "128 x 768 x 2048" in said and "GiB of memory (an estimate)" in said
    assert list(tmp_path.iterdir()) == []


def test_a_stage_that_is_not_there_is_refused_before_anything_is_made(capsys, tmp_path):
    (tmp_path / "c.json").write_text(json.dumps(tiny().to_dict()))
    asked = ["golden", "--config", str(tmp_path / "c.json"), "--tokens", "3", "--out", str(tmp_path / "b")]
    assert main([*asked, "--stages", "y,experts.gate"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("refmoe: error: --stages: expected names of tensors below ") and "'experts.gate'" in error
    assert [p.name for p in tmp_path.iterdir()] == ["c.json"]
    assert main(asked[:-2]) == 2 and "--out: expected the directory" in capsys.readouterr().err


SOFT = {"top_k": 1, "routing": {"selection": "soft", "slots_per_expert": 2}}


@pytest.mark.parametrize("sections", [{}, SOFT], ids=["y", "soft"])
def test_a_report_without_a_load_to_show(capsys, tmp_path, sections):
    (tmp_path / "c.json").write_text(json.dumps(tiny(**sections).to_dict()))
    asked = ["golden", "--config", str(tmp_path / "c.json"), "--tokens", "3", "--out", str(tmp_path / "b")]
    assert main([*asked, *(["--stages", "y,routing"] if not sections else [])]) == 0
    said = capsys.readouterr().out
    assert "digest " in said and "expert " not in said
    assert main(["check", str(tmp_path / "b")]) == 0
