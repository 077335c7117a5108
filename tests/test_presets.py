"""Presets are data: complete, sourced, and known to no line of code. Their model sections: test_accounting."""

import ast
import dataclasses
import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest

import refmoe
from refmoe.check import make_given
from refmoe.config import MoEConfig
from refmoe.models import listing, load_preset, names, preset_info
from refmoe.models import presets as module
from refmoe.recipes import generate

ROOT = Path(__file__).parent.parent
SCHEMA = json.loads((ROOT / "spec/presets/schema.json").read_text())

# What the public sources say of the layers: hidden, expert width, experts, per token, shared width.
SIZES = {
    "arctic": (7168, 4864, 128, 2, 0),
    "dbrx": (6144, 10752, 16, 4, 0),
    "deepseek-v2": (5120, 1536, 160, 6, 2 * 1536),
    "deepseek-v2-lite": (2048, 1408, 64, 6, 2 * 1408),
    "deepseek-v3": (7168, 2048, 256, 8, 2048),
    "deepseek-v3.2": (7168, 2048, 256, 8, 2048),
    "deepseek-v4-flash": (4096, 2048, 256, 6, 2048),
    "deepseek-v4-pro": (7168, 3072, 384, 6, 3072),
    "dots.llm1": (4096, 1408, 128, 6, 2 * 1408),
    "ernie-4.5-21b-a3b": (2560, 1536, 64, 6, 2 * 1536),
    "ernie-4.5-300b-a47b": (8192, 3584, 64, 8, 0),
    "glm-4.5": (5120, 1536, 160, 8, 1536),
    "glm-4.5-air": (4096, 1408, 128, 8, 1408),
    "glm-4.6": (5120, 1536, 160, 8, 1536),
    "glm-4.7": (5120, 1536, 160, 8, 1536),
    "glm-4.7-flash": (2048, 1536, 64, 4, 1536),
    "glm-5": (6144, 2048, 256, 8, 2048),
    "gpt-oss-120b": (2880, 2880, 128, 4, 0),
    "gpt-oss-20b": (2880, 2880, 32, 4, 0),
    "granite-3.1-1b-a400m": (1024, 512, 32, 8, 0),
    "granite-3.1-3b-a800m": (1536, 512, 40, 8, 0),
    "grok-1": (6144, 32768, 8, 2, 0),
    "hunyuan-a13b": (4096, 3072, 64, 8, 3072),
    "hy3-preview": (4096, 1536, 192, 8, 1536),
    "jamba-v0.1": (4096, 14336, 16, 2, 0),
    "kimi-k2": (7168, 2048, 384, 8, 2048),
    "kimi-k3": (7168, 3072, 896, 16, 2 * 3072),
    "laguna-xs.2": (2048, 512, 256, 8, 512),
    "lfm2-8b-a1b": (2048, 1792, 32, 4, 0),
    "longcat-flash": (6144, 2048, 512, 12, 0),
    "llama-4-maverick": (5120, 8192, 128, 1, 8192),
    "llama-4-scout": (5120, 8192, 16, 1, 8192),
    "mimo-v2-flash": (4096, 2048, 256, 8, 0),
    "minimax-m2": (3072, 1536, 256, 8, 0),
    "minimax-m3": (6144, 3072, 128, 4, 3072),
    "mistral-large-3": (7168, 4096, 128, 4, 4096),
    "mixtral-8x22b": (6144, 16384, 8, 2, 0),
    "mixtral-8x7b": (4096, 14336, 8, 2, 0),
    "nemotron-3-nano": (2688, 1856, 128, 6, 3712),
    "nemotron-3-super": (4096, 2688, 512, 22, 5376),
    "nemotron-3-ultra": (8192, 5120, 512, 22, 10240),
    "olmoe-1b-7b": (2048, 1024, 64, 8, 0),
    "phi-3.5-moe": (4096, 6400, 16, 2, 0),
    "qwen1.5-moe-a2.7b": (2048, 1408, 60, 4, 5632),
    "qwen3-235b-a22b": (4096, 1536, 128, 8, 0),
    "qwen3-30b-a3b": (2048, 768, 128, 8, 0),
    "qwen3-next-80b-a3b": (2048, 512, 512, 10, 512),
    "qwen3.5-35b-a3b": (2048, 512, 256, 8, 512),
    "qwen3.5-397b-a17b": (4096, 1024, 512, 10, 1024),
    "solar-open-100b": (4096, 1280, 128, 8, 1280),
    "switch-base-128": (768, 3072, 128, 1, 0),
    "switch-base-8": (768, 3072, 8, 1, 0),
}
# Every family of published layers, and the presets that state it. Rows of several presets differ in sizes alone, or in
# what the family's models chose differently.
FAMILIES = {
    "Mixtral, MiniMax-Text-01, Qwen3-VL": "mixtral-8x7b mixtral-8x22b minimax-text-01 qwen3-vl-235b-a22b",
    "OLMoE, FlexOlmo, Jamba": "olmoe-1b-7b flexolmo-7x7b-1t jamba-v0.1",
    "Qwen3-MoE, Mellum, Qwen3-Omni thinker": "qwen3-30b-a3b qwen3-235b-a22b mellum2-12b-a2.5b qwen3-omni-30b-a3b",
    "Qwen1.5/2-MoE": "qwen1.5-moe-a2.7b",
    "Qwen3-Next, Qwen3.5, Qwen4-exp, Omni talker": "qwen3-next-80b-a3b qwen3.5-35b-a3b qwen3.5-397b-a17b qwen4-exp "
    "qwen3-omni-30b-a3b-talker",
    "Hunyuan v1": "hunyuan-a13b",
    "DBRX": "dbrx",
    "Grok-1": "grok-1",
    "Arctic": "arctic",
    "Granite x4": "granite-3.1-1b-a400m granite-3.1-3b-a800m granite-moe-7b-1b-active-shared-experts "
    "granite-4.0-h-small granite-swash-3b-a600m",
    "Aria": "aria",
    "GPT-OSS, privacy filter": "gpt-oss-20b gpt-oss-120b privacy-filter",
    "ERNIE 4.5": "ernie-4.5-21b-a3b ernie-4.5-300b-a47b",
    "DeepSeek-V2": "deepseek-v2 deepseek-v2-lite",
    "DeepSeek-V3/R1/V3.2": "deepseek-v3 deepseek-v3.2",
    "Kimi-K2": "kimi-k2",
    "GLM-4.5/4.6/5": "glm-4.5 glm-4.5-air glm-4.6 glm-4.7 glm-4.7-flash glm-5",
    "dots1, Ling, Kimi-Linear, EXAONE-MoE, Solar-Open": "dots.llm1 ling-3.0-flash kimi-linear-48b-a3b "
    "k-exaone-236b-a23b solar-open-100b",
    "MiMo-V2-Flash, BEAM": "mimo-v2-flash beam-1.0-501b-a23b",
    "A.X K2": "a.x-k2",
    "Mistral 4 / Large 3 / Large 4": "mistral-small-4-119b mistral-large-3 mistral-large-4-1t-a52b",
    "GLM5-next": "glm-5.3-flash",
    "HY-V4": "hy4-preview",
    "HY-V3, AFMoE": "hy3-preview trinity-mini",
    "MiniMax-M2": "minimax-m2",
    "MiniMax-M3": "minimax-m3",
    "Cohere2-MoE": "command-a-plus-05-2026 north-mini-code",
    "Step-3.7": "step-3.7-flash",
    "Inkling2": "inkling-2-small",
    "Pangu Pro": "pangu-pro-moe-72b",
    "Flint": "flint",
    "Laguna": "laguna-xs.2",
    "LFM2-MoE": "lfm2-8b-a1b",
    "Kolibri1": "kolibri-1",
    "Nemotron-3 Nano / Super": "nemotron-3-nano nemotron-3-super nemotron-3-ultra",
    "DeepSeek-V4": "deepseek-v4-flash deepseek-v4-flash-hash deepseek-v4-pro",
    "Llama 4": "llama-4-scout llama-4-maverick",
    "Switch": "switch-base-8 switch-base-128",
    "NLLB": "nllb-moe-54b",
    "ReMoE": "remoe",
    "ZAYA": "zaya1-8b",
    "LongCat-Flash": "longcat-flash",
    "Gemma-4, DiffusionGemma": "gemma-4-26b-a4b diffusiongemma-26b-a4b",
    "PhiMoE": "phi-3.5-moe",
    "MoE++": "moe-plus-plus",
    "Kimi-K3": "kimi-k3",
    "JetMoE": "jetmoe-8b",
    "A.X K1": "a.x-k1",
    "Muse Spark": "muse-spark-816b-a42b",
    "Inkling": "inkling",
}
NAMES = tuple(sorted(name for row in FAMILIES.values() for name in row.split()))


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


def test_every_family_has_its_presets():
    """50 rows of families: each is stated by presets of the tree, each preset belongs to one row."""
    assert len(NAMES) == len(set(NAMES)) and set(SIZES) <= set(NAMES)
    assert len(FAMILIES) == 50


@pytest.mark.parametrize("name", SIZES)
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
    "experts.shared_limit",
    "experts.latent_size",
    "experts.constant_experts",
    "experts.identity_experts",
    "experts.zero_experts",
    "routing.hash_vocab_size",
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
    sizes = c.hidden_size, c.intermediate_size, c.experts.shared_intermediate_size, c.experts.latent_size or None
    assert len(set(sizes)) == 4


def forward(name):
    """The record of 24 tokens in two sequences through the minimal layer, and its configuration."""
    config = load_preset(name, scale="minimal")
    x = generate("x", (24, config.hidden_size), seed=5, exponent=1)
    given = make_given(config, 24)._replace(token_mask=None, sequence_ids=np.repeat([0, 1], 12))
    return config, refmoe.moe_forward(x, refmoe.init_params(config), config, refmoe.Numerics(backend="numpy"), given)


@pytest.mark.parametrize("name", NAMES)
def test_minimal_layers_work_every_expert(name):
    _, record = forward(name)
    assert np.isfinite(record.y).all() and (record.plan.tokens_per_expert > 0).all()


def test_minimal_capacity_drops_and_minimal_limit_binds():
    """What the presets' notes promise of their tiny scale."""
    for name in NAMES:
        config, record = forward(name)
        if config.dispatch.capacity is not None:
            kept, wanted = record.plan.tokens_per_expert.sum(), record.plan.assigned_per_expert.sum()
            assert 0 < kept < wanted == 24 * config.top_k, name
        if config.experts.limit is not None:
            assert _binds(record.experts, config.experts), name
            shared = config.experts.of_shared()
            assert record.shared is None or shared.limit is None or _binds(record.shared, shared), name


def _binds(part, experts):
    """Does the clamp meet some of the rows, and leave others alone?"""
    gate = part.gate_rows / (1 + np.exp(-part.gate_rows)) if experts.limit_position == "post" else part.gate_rows
    shares = (gate > experts.limit).mean(), (abs(part.up_rows) > experts.limit).mean()
    return all(0.05 < share < 0.95 for share in shares)


# Where a family's rule is not what its name or a newer relative suggests: the fields that tell them apart.
RULES = {
    "deepseek-v2": {"routing.normalize": False, "routing.group_score_topn": 1, "routing.scaling_factor": 16.0},
    "deepseek-v3.2": {"routing.normalize": True, "routing.group_score_topn": 2, "routing.scaling_factor": 2.5},
    "deepseek-v4-pro": {"routing.score_fn": "sqrt_softplus", "experts.limit": 10.0, "routing.num_groups": 1},
    "ernie-4.5-21b-a3b": {"routing.score_fn": "softmax", "routing.selection_bias": True, "routing.norm_eps": 1e-12,
                          "routing.norm_eps_mode": "clamp"},
    "grok-1": {"routing.normalize": False, "experts.activation": "gelu_tanh"},
    "jamba-v0.1": {"routing.normalize": False},
    "kimi-k2": {"routing.num_groups": 1, "routing.scaling_factor": 2.827, "routing.norm_eps": 1e-20},
    "lfm2-8b-a1b": {"routing.norm_eps": 1e-6, "routing.selection_bias": True},
    "llama-4-scout": {"experts.weight_position": "input", "routing.score_fn": "sigmoid", "routing.normalize": False},
    "minimax-m2": {"routing.norm_eps": 0.0, "routing.score_fn": "sigmoid"},
    "minimax-m3": {"experts.alpha": 1.702, "experts.linear_offset": 1.0, "routing.scaling_factor": 2.0},
    "longcat-flash": {"experts.identity_experts": 256, "routing.scaling_factor": 6.0, "routing.normalize": False},
    "mistral-large-3": {"routing.score_fn": "softmax", "routing.selection_bias": False, "routing.norm_eps": 1e-20},
    "nemotron-3-nano": {"experts.gated": False, "experts.activation": "relu2", "routing.scaling_factor": 2.5},
    "nemotron-3-super": {"experts.latent_size": 1024, "routing.scaling_factor": 5.0, "experts.activation": "relu2"},
    "qwen3-next-80b-a3b": {"routing.normalize": True, "experts.shared_gate": True},
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_rules(name):
    config = load_preset(name).to_dict()
    assert {path: at(config, path) for path in RULES[name]} == RULES[name]


@pytest.mark.parametrize("name", NAMES)
def test_a_model_that_is_not_counted_says_why(name):
    info = preset_info(name)
    assert info["model"] is not None or any(note.startswith("No model section: ") for note in info["notes"])


def test_the_list_names_every_preset_and_its_unverified_fields():
    text = listing.overview()
    lines = dict(zip(text.splitlines(), [*text.splitlines()[1:], ""]))
    for name in NAMES:
        (line,) = [line for line in lines if line.split()[0] == name]
        doubtful = [field for field, row in preset_info(name)["sources"].items() if not row["verified"]]
        assert (lines[line].strip().startswith("unverified: ")) == bool(listing.unverified(preset_info(name)))
        assert not doubtful or set(doubtful) <= set(lines[line].strip().removeprefix("unverified: ").split(", "))


def test_one_preset_is_shown_with_its_sources():
    text = listing.details("aria")
    assert "UNVERIFIED: " in text and "    hidden_size = 4096\n" in text and "    routing.score_fn = softmax\n" in text
    lines = [line for line in listing.details("gpt-oss-20b").splitlines() if line.startswith("    ")]
    shown = [line.split(" = ")[0].strip() for line in lines]
    assert sorted(shown) == sorted(preset_info("gpt-oss-20b")["sources"])
    assert "Unverified around the layer: model." in listing.details("arctic")


def test_what_looks_ahead_is_said():
    lines = [line for line in listing.overview().splitlines() if line.endswith("Not causal.")]
    assert "nllb-moe-54b" in {line.split()[0] for line in lines}  # a capacity for the batch
    assert "mixtral-8x7b" not in {line.split()[0] for line in lines}
    assert "not causal: " in listing.details("nllb-moe-54b") and "not causal" not in listing.details("switch-base-8")


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
    """A preset's name, or the family in it, is never compared with, matched or looked up in refmoe.

    A checkpoint is different: its own config names an architecture, and its tensors lie as that architecture declares.
    The table of these declarations is the one dictionary that may be keyed by such names.
    """
    words = {name.split("-")[0] for name in NAMES} | {*NAMES}
    # K-EXAONE begins like a key, MoE++ like a block's part; training takes steps, and a run notes its command
    words = {word for word in words if len(word) > 1} - {"moe", "step", "command"}
    declared = ROOT / "refmoe/models/checkpoint/families"
    for path in sorted((ROOT / "refmoe").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if declared in path.parents and isinstance(node, ast.Dict):
                continue
            if isinstance(node, ast.Compare | ast.Dict | ast.Subscript | ast.MatchValue):
                texts = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
                assert not words & texts, f"{path.name}:{node.lineno} decides by a model's name"
