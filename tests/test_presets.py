"""Presets are data: complete, sourced, and known to no line of code."""

import ast
import dataclasses
import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest

import refmoe
from refmoe.config import MoEConfig
from refmoe.models import load_preset, names, preset_info
from refmoe.models import presets as module
from refmoe.recipes import generate

ROOT = Path(__file__).parent.parent
SCHEMA = json.loads((ROOT / "spec/presets/schema.json").read_text())

# What the public sources say of the seven layers: hidden, expert width, experts, per token, shared width.
SIZES = {
    "deepseek-v3": (7168, 2048, 256, 8, 2048),
    "gpt-oss-20b": (2880, 2880, 32, 4, 0),
    "mixtral-8x7b": (4096, 14336, 8, 2, 0),
    "olmoe-1b-7b": (2048, 1024, 64, 8, 0),
    "qwen1.5-moe-a2.7b": (2048, 1408, 60, 4, 5632),
    "qwen3-30b-a3b": (2048, 768, 128, 8, 0),
    "switch-base-8": (768, 3072, 8, 1, 0),
}
NAMES = tuple(SIZES)


def leaves(section, prefix=""):
    """Dotted paths of the values of a nested dictionary."""
    for key, value in section.items():
        path = f"{prefix}{key}"
        yield from leaves(value, path + ".") if isinstance(value, dict) else [path]


def at(section, path):
    for key in path.split("."):
        section = section[key]
    return section


def test_names():
    assert names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_file_follows_the_schema(name):
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.Draft202012Validator(SCHEMA).validate(preset_info(name))


def test_schema_has_the_fields_of_the_configuration():
    def compare(section, schema):
        fields = {f.name: f.metadata.get("section") for f in dataclasses.fields(section)}
        assert set(fields) == set(schema)
        for name, inner in fields.items():
            if inner is not None:
                compare(inner, schema[name]["properties"])

    compare(MoEConfig, SCHEMA["$defs"]["config"]["properties"])


@pytest.mark.parametrize("name", NAMES)
def test_every_field_has_its_source_and_no_other(name):
    info = preset_info(name)
    assert set(leaves(info["full"])) == set(info["sources"])


@pytest.mark.parametrize("name", NAMES)
def test_sizes(name):
    c = load_preset(name)
    sizes = c.hidden_size, c.intermediate_size, c.num_experts, c.top_k, c.experts.shared_intermediate_size
    assert sizes == SIZES[name]


# The limit of a clamp is a size too: the minimal one must bind on inputs of ordinary size.
SIZE_FIELDS = {
    "hidden_size",
    "intermediate_size",
    "num_experts",
    "top_k",
    "routing.num_groups",
    "routing.top_groups",
    "experts.shared_intermediate_size",
    "dispatch.capacity",
    "experts.limit",
}


@pytest.mark.parametrize("name", NAMES)
def test_minimal_changes_sizes_only_and_is_tiny(name):
    info, full, minimal = preset_info(name), load_preset(name).to_dict(), load_preset(name, scale="minimal").to_dict()
    changed = {path for path in leaves(full) if at(full, path) != at(minimal, path)}
    assert changed <= SIZE_FIELDS
    assert set(leaves(info["minimal"])) <= SIZE_FIELDS
    assert minimal["hidden_size"] <= 8 and minimal["intermediate_size"] <= 6 and 4 <= minimal["num_experts"] <= 8


@pytest.mark.parametrize("name", NAMES)
def test_minimal_sizes_tell_axes_apart(name):
    c = load_preset(name, scale="minimal")
    assert len({c.hidden_size, c.intermediate_size, c.experts.shared_intermediate_size}) == 3


def forward(name):
    """The record of twelve tokens in two sequences through the minimal layer, and its configuration."""
    config = load_preset(name, scale="minimal")
    x = generate("x", (12, config.hidden_size), seed=5, exponent=1)
    given = refmoe.Given(sequence_ids=np.repeat([0, 1], 6))
    return config, refmoe.moe_forward(x, refmoe.init_params(config), config, refmoe.Numerics(backend="numpy"), given)


@pytest.mark.parametrize("name", NAMES)
def test_minimal_layers_work_every_expert(name):
    _, record = forward(name)
    assert np.isfinite(record.y).all() and (record.plan.tokens_per_expert > 0).all()


def test_minimal_capacity_drops_and_minimal_limit_binds():
    """What the two presets' notes promise of their tiny scale."""
    _, record = forward("switch-base-8")
    assert 0 < record.plan.tokens_per_expert.sum() < record.plan.assigned_per_expert.sum() == 12
    config, record = forward("gpt-oss-20b")
    limit = config.experts.limit
    for rows, bound in (
        (record.experts.gate_rows, record.experts.gate_rows > limit),
        (record.experts.up_rows, abs(record.experts.up_rows) > limit),
    ):
        assert 0.05 * rows.size < bound.sum() < 0.95 * rows.size


def test_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"preset: expected one of .*got 'mixtral-8x7'; did you mean 'mixtral-8x7b'\?"):
        load_preset("mixtral-8x7")
    with pytest.raises(ValueError, match="refmoe presets"):
        load_preset("zzzz")
    with pytest.raises(ValueError, match="got 'schema'"):
        load_preset("schema")
    with pytest.raises(ValueError, match=r"got '\.\./presets/mixtral-8x7b'"):
        load_preset("../presets/mixtral-8x7b")


def test_unknown_scale_is_refused():
    with pytest.raises(ValueError, match="scale: expected one of full, minimal, got 'tiny'"):
        load_preset("mixtral-8x7b", scale="tiny")


@pytest.mark.parametrize("change", [{"extra": 1}, {"name": "other"}, {"notes": None}])
def test_a_file_that_is_not_a_preset_is_refused(tmp_path, monkeypatch, change):
    info = preset_info("mixtral-8x7b") | change
    info = {key: value for key, value in info.items() if value is not None}
    (tmp_path / "mixtral-8x7b.json").write_text(json.dumps(info))
    monkeypatch.setattr(module, "presets_folder", lambda: tmp_path)
    with pytest.raises(ValueError, match=r"mixtral-8x7b\.json: expected the keys"):
        load_preset("mixtral-8x7b")


def test_an_unknown_field_in_a_preset_is_refused(tmp_path, monkeypatch):
    info = preset_info("mixtral-8x7b")
    info["full"]["routing"]["normalise"] = True
    (tmp_path / "mixtral-8x7b.json").write_text(json.dumps(info))
    monkeypatch.setattr(module, "presets_folder", lambda: tmp_path)
    with pytest.raises(ValueError, match="got 'normalise'; did you mean 'normalize'"):
        load_preset("mixtral-8x7b")


def test_no_code_tests_a_models_name():
    """A preset's name, or the family in it, is never compared with, matched or looked up in refmoe."""
    words = {name.split("-")[0] for name in NAMES} | set(NAMES)
    for path in sorted((ROOT / "refmoe").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare | ast.Dict | ast.Subscript | ast.MatchValue):
                texts = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
                assert not words & texts, f"{path.name}:{node.lineno} decides by a model's name"
