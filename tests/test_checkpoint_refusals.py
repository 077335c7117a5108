"""Reading one layer of a checkpoint: what is refused, each time in one sentence that says what was looked for."""

import copy
import json
import os
import random

import checkpoint_cases as cases
import numpy as np
import pytest
from checkpoint_cases import CASES, MLP, D, E, F, block, each, expected, fused, save, stored, write

from refmoe.models.checkpoint import read_layer
from refmoe.models.checkpoint.shards import MAX_HEADER, MAX_JSON


def refused(directory, match, layer=1):
    with pytest.raises(ValueError, match=match) as caught:
        read_layer(directory, layer)
    assert "\n" not in str(caught.value)


def qwen3(tmp_path, change=lambda settings, tensors: None, shards=1):
    """A sound qwen3_moe layer, changed."""
    settings, tensors = cases.typed("qwen3_moe", cases.QWEN), block(each)(expected(cases.SOFTMAX0)[1])
    change(settings, tensors)
    return write(tmp_path / "model", settings, tensors, shards)


def drop(ending):
    """The change that removes every tensor whose name ends so."""

    def change(settings, tensors):
        gone = [name for name in tensors if name.endswith(ending)]
        assert gone
        for name in gone:
            del tensors[name]

    return change


def put(name, dtype, array):
    return lambda settings, tensors: tensors.update({MLP + name: (dtype, array)})


# --- the folder and config.json ---------------------------------------------------------------------------------------


def test_a_path_that_is_not_a_checkpoint(tmp_path):
    refused(tmp_path / "absent", r"absent: looked for a folder with config\.json")
    refused(tmp_path, r"config\.json: looked for this file, found none")
    (tmp_path / "config.json").write_text(json.dumps(cases.typed("qwen3_moe", cases.QWEN)))
    refused(tmp_path, r"looked for model\.safetensors or model\.safetensors\.index\.json, found neither")
    refused(tmp_path / "config.json", "looked for a folder")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1, "a": 2}', "\xff", "[" * 100000])
def test_a_config_that_is_not_an_object(tmp_path, text):
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    refused(tmp_path, r"config\.json: (not the JSON it must be|the JSON is nested too deep|expected a JSON object)")


def test_a_config_without_end(tmp_path):
    with open(tmp_path / "config.json", "wb") as file:
        file.truncate(MAX_JSON + 1)
    refused(tmp_path, f"expected at most {MAX_JSON} bytes, got {MAX_JSON + 1}")


@pytest.mark.parametrize(("change", "match"), [
    ({"model_type": "llama"}, r"expected a model_type with a declared layout \(afmoe, aria_text, .*\), got 'llama'"),
    ({"model_type": None}, "declared layout"),
    ({"model_type": ["qwen3_moe"]}, "declared layout"),
    ({"model_type": "zaya"}, r"'zaya' is not read: its router is a network with a state.*no field of MoEConfig states"),
    ({"model_type": "nllb-moe"}, r"'nllb-moe' is not read: transformers' own forward of it runs two of its experts"),
    ({"model_type": "doge"}, r"'doge' is not read: its experts are rows of an embedding"),
    ({"model_type": "ernie4_5_vl_moe"}, r"'ernie4_5_vl_moe' is not read: text and images have routers and experts of"),
    ({"num_experts": None}, r"looked for the field num_local_experts or num_experts, found none"),
    ({"num_local_experts": 5}, r"expected one value of num_local_experts and num_experts, got \[5, 4\]"),
    ({"hidden_act": "tanh"}, r"config\.json: .*activation"),
    ({"moe_intermediate_size": [5, 6]}, r"config\.json: .*intermediate_size: expected an integer"),
    ({"num_experts_per_tok": 9}, "top_k"),
    ({"hidden_size": 7}, r"mlp\.gate\.weight': expected shape \(4, 7\).*got \(4, 6\)"),
    ({"moe_intermediate_size": 3}, r"experts\.0\.gate_proj\.weight': expected shape \(3, 6\), which .*got \(5, 6\)"),
    ({"num_experts": 6}, r"gate\.weight': expected shape \(6, 6\)"),
    ({"quantization_config": {"quant_method": "awq"}}, "expected quant_method fp8 or mxfp4, got 'awq'"),
    ({"quantization_config": {}, "text_config": 3}, None),
    ({"quantization_config": [1]}, "expected quantization_config to be an object"),
    ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128]}}, r"weight_block_size \[rows, col"),
])  # fmt: skip
def test_a_config_that_does_not_fit(tmp_path, change, match):
    directory = qwen3(tmp_path, lambda settings, tensors: settings.update(change))
    if match is None:
        assert read_layer(directory, 1).config.num_experts == E
    else:
        refused(directory, match)


@pytest.mark.parametrize(("case", "change", "match"), [
    ("deepseek_v3 fused", {"scoring_func": "softmax"}, "expected scoring_func 'sigmoid' in this family, got 'softmax'"),
    ("deepseek_v2", {"norm_topk_prob": True}, "expected norm_topk_prob False in this family, got True"),
    ("deepseek_v3 fused", {"n_group": None}, "looked for the field n_group"),
    ("deepseek_v3 fused", {"n_shared_experts": "two"}, "expected an integer n_shared_experts"),
    ("nemotron_h old", {"moe_latent_size": 4}, "looked for .*fc1_latent_proj"),
    ("dbrx", {"ffn_config": {**cases.DBRX["ffn_config"], "moe_normalize_expert_weights": 2}}, "expert_weights 1 in"),
    ("dbrx", {"ffn_config": {**cases.DBRX["ffn_config"], "moe_normalize_expert_weights": None}}, "got None"),
    ("ernie4_5_moe old", {"use_bias": True}, "use_bias False"),
])  # fmt: skip
def test_a_rule_the_reading_is_not_for(tmp_path, case, change, match):
    settings, layer, tensors = CASES[case]
    refused(write(tmp_path / "model", {**settings, **change}, tensors(expected(layer)[1])), match)


@pytest.mark.parametrize("version", [None, "", "latest", 5])
def test_a_layout_that_depends_on_an_unknown_writer(tmp_path, version):
    settings, layer, tensors = CASES["qwen3_vl_moe new"]
    directory = write(tmp_path / "model", {**settings, "transformers_version": version}, tensors(expected(layer)[1]))
    if version == 5:
        assert read_layer(directory, 1).config.num_experts == E
    else:
        refused(directory, "looked for transformers_version, which alone tells the layout here")


@pytest.mark.parametrize("layers", [None, "two", []])
def test_an_encoder_of_unknown_depth(tmp_path, layers):
    settings, layer, tensors = CASES["switch"]
    directory = write(tmp_path / "model", {**settings, "num_layers": layers}, tensors(expected(layer)[1]))
    refused(directory, "expected an integer num_layers, of the encoder")


def test_a_model_inside_that_cannot_be_stated(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(cases.inside({}, "zaya", "zaya_vl")))
    refused(tmp_path, "'zaya' is not read: its router is a network with a state of its own")


# --- tensors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gone", "match"), [
    ("experts.3.up_proj.weight", r"1 are missing, the first is model\.layers\.1\.mlp\.experts\.3\.up_proj\.weight"),
    ("mlp.gate.weight", r"router model\.layers\.1\.mlp\.gate\.weight or language_model\.model\..*no layer has one"),
])  # fmt: skip
def test_a_missing_tensor(tmp_path, gone, match):
    refused(qwen3(tmp_path, drop(gone)), match)


@pytest.mark.parametrize("gone", ["gate.e_score_correction_bias", "shared_experts.down_proj.weight"])
def test_a_missing_bias_and_a_missing_shared_expert(tmp_path, gone):
    settings, layer, tensors = CASES["deepseek_v3 fused"]
    made = tensors(expected(layer)[1])
    drop(gone)(settings, made)
    refused(write(tmp_path / "model", settings, made), f"looked for .*{gone}")


def test_more_experts_than_there_are(tmp_path):
    def change(settings, tensors):
        settings["num_experts"] = 6
        tensors[f"{MLP}gate.weight"] = np.ones((6, D))

    looked = r"experts\.\{0\.\.5\}\.gate_proj\.weight, .*or else .*experts\.gate_up_proj"
    refused(qwen3(tmp_path, change), looked + r".*; 6 are missing, the first is .*experts\.4\.gate_proj\.weight")


@pytest.mark.parametrize("layer", [0, 2, 61])
def test_a_layer_without_experts_names_those_that_have_some(tmp_path, layer):
    looked = rf"layer {layer} of a qwen3_moe checkpoint: looked for its router "
    refused(qwen3(tmp_path), looked + ".*layers with one: 1$", layer)


@pytest.mark.parametrize("layer", [-1, "1", True, 1.0])
def test_a_layer_that_is_no_number(tmp_path, layer):
    refused(qwen3(tmp_path), "layer: expected a whole number from 0 on", layer)


@pytest.mark.parametrize(("dtype", "array", "match"), [
    ("I32", np.zeros((F, D), np.int32), r"up_proj\.weight': expected type F32 or .* or F8_E4M3 or F8_E5M2, got I32"),
    ("F64", np.zeros((F, D)), "got F64"),
    ("F4", np.zeros(F * D // 2, np.uint8).reshape(F, D // 2), "of F4 takes 8 bytes, its offsets give 15"),
    ("F9", np.zeros((F, D), np.uint8), "expected a type of whole bytes, got F9"),
])  # fmt: skip
def test_a_type_without_a_reading(tmp_path, dtype, array, match):
    def change(settings, tensors):
        tensors.update({f"{MLP}experts.{e}.up_proj.weight": (dtype, array) for e in range(E)})

    refused(qwen3(tmp_path, change), match)


@pytest.mark.parametrize("dtype", ["F32", "F8_E4M3"])
def test_experts_of_different_types(tmp_path, dtype):
    array = np.zeros((F, D), np.uint8 if dtype == "F8_E4M3" else np.float32)
    change = put("experts.2.up_proj.weight", dtype, array)
    refused(qwen3(tmp_path, change), f"expected type BF16, as its neighbours have, got {dtype}")


def test_a_router_in_codes(tmp_path):
    change = put("gate.weight", "F8_E4M3", np.zeros((E, D), np.uint8))
    refused(qwen3(tmp_path, change), "gate.weight': expected type F32 or BF16 or F16, got F8_E4M3")


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("weight_map", "match"), [
    (None, "expected a weight_map"), ([], "expected a weight_map"), ({"a": 3}, "expected a weight_map"),
    ({"gate.weight": "../model.safetensors"}, "files beside it"), ({"gate.weight": ".."}, "files beside it"),
    ({"gate.weight": "elsewhere.safetensors"}, r"elsewhere\.safetensors: .* it is missing"),
    ({"gate.weight": "other.safetensors"}, r"other\.safetensors: expected the tensor 'model\.layers\.1\.mlp\.gate"),
])  # fmt: skip
def test_an_index_that_is_wrong(tmp_path, weight_map, match):
    directory = qwen3(tmp_path)
    (directory / "model.safetensors").unlink()
    save(directory / "other.safetensors", {"a": stored(np.ones(2))})
    named = {MLP + name: file for name, file in weight_map.items()} if isinstance(weight_map, dict) else weight_map
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": named}))
    refused(directory, match)


def with_header(header, body=b"\0" * 8):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def row(shape=(2, 2), offsets=(0, 8), dtype="BF16"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(("content", "match"), [
    (b"", "truncated"), (b"\1\0\0", "truncated"), ((1 << 63).to_bytes(8, "little"), "truncated: the header claims"),
    (with_header(b"{"), "not the JSON it must be"), (with_header(b"[]"), "not a JSON object"),
    (with_header(b'{"a": 1, "a": 1}'), "twice"),
    (with_header({"a": row()}, b"\0" * 7), "truncated: the tensors end at byte 8 of a buffer of 7"),
    (with_header({"a": row()}, b"\0" * 9), "too long"),
    (with_header({"a": row(offsets=(1, 9))}, b"\0" * 9), "starts at byte 1 and leaves a gap after the header"),
    (with_header({"a": row(), "b": row(offsets=(4, 12))}, b"\0" * 12), "starts at byte 4 and overlaps a"),
    (with_header({"a": row(dtype="F9", offsets=(8, 0))}), "its offsets give -8"),
    (with_header({"a": row((2, 3))}), r"shape \[2, 3\] of BF16 takes 12 bytes, its offsets give 8"),
    (with_header({"a": row((-2, -2))}), "its shape is not a list of at most 8 sizes"),
    (with_header({"a": row(offsets=(0, 8, 9))}), "not two offsets"),
    (with_header({"a": 3}), "its header entry is not"),
    (with_header({"a": row((1 << 40, 1 << 40))}), "takes"),
    (with_header({"a": row((1,) * 8 + (4,))}), "its shape is not a list of at most 8 sizes"),
    (with_header({"a": row((1,) * 7 + (5,))}), "takes 10 bytes, its offsets give 8"),
    (with_header({"a": row((True, 4))}), "its shape is not a list of at most 8 sizes"),
])  # fmt: skip
def test_a_file_that_is_not_what_it_says(tmp_path, content, match):
    directory = qwen3(tmp_path)
    (directory / "model.safetensors").write_bytes(content)
    refused(directory, rf"model\.safetensors: .*{match}")


def test_a_header_over_the_limit(tmp_path):
    directory = qwen3(tmp_path)
    with open(directory / "model.safetensors", "wb") as file:
        file.write((MAX_HEADER + 1).to_bytes(8, "little"))
        file.truncate(MAX_HEADER + 100)
    refused(directory, f"claims {MAX_HEADER + 1} bytes, more than the {MAX_HEADER} that are read")


@pytest.mark.parametrize("cut", [1, 100, 1000])
def test_a_truncated_shard(tmp_path, cut):
    directory = qwen3(tmp_path, shards=2)
    path = directory / "model-00002-of-00002.safetensors"
    os.truncate(path, path.stat().st_size - cut)
    refused(directory, r"00002-of-00002\.safetensors: .*truncated")


# --- codes and scales -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "match"), [
    ({"change": drop("experts.2.up_proj.weight_scale_inv")}, r"looked for .*\.2\.up_proj\.weight_scale_inv, the"),
    ({"change": lambda s, t: s.pop("quantization_config")}, "expected weight_block_size in quantization_config"),
    ({"change": lambda s, t: s.update(quantization_config={"quant_method": "fp8"})}, "expected weight_block_size"),
    ({"change": lambda s, t: s["quantization_config"].update(weight_block_size=[2, 2])}, r"expected shape \(2, 3\)"),
    ({"dtype": "F16"}, "scale_inv': expected type F8_E8M0 or BF16 or F32, got F16"),
    ({"experts": fused, "wide": 5}, "expected gate and up on whole blocks of 2 rows, got 5 rows each"),
])  # fmt: skip
def test_fp8_codes_without_their_scales(tmp_path, options, match):
    refused(cases.fp8_checkpoint(tmp_path, **options)[0], match)


def test_codes_where_the_family_declares_no_scales(tmp_path):
    settings, layer, tensors = CASES["llama4"]
    made = tensors(expected(layer)[1])
    made[f"{cases.LLAMA4}experts.down_proj"] = "F8_E4M3", np.zeros((E, F, D), np.uint8)
    refused(write(tmp_path / "model", settings, made), "down_proj': expected type F32 or BF16 or F16, got F8_E4M3")


FLOAT_SCALES = put("experts.down_proj_scales", "F32", np.ones((E, 64, 1), np.float32))


@pytest.mark.parametrize(("options", "match"), [
    ({"change": drop("gate_up_proj_scales")}, r"looked for .*gate_up_proj_scales, the scales of U8 codes"),
    ({"change": drop("down_proj_blocks")}, "looked for .* or else .*1 are missing, the first is .*down_proj_blocks"),
    ({"change": drop("down_proj_bias")}, "looked for .*1 are missing, the first is .*down_proj_bias"),
    ({"hidden": 48}, "expected rows of whole blocks of 32 codes, got 48 columns"),
    ({"change": FLOAT_SCALES}, "down_proj_scales': expected type U8, got F32"),
    ({"change": lambda s, t: s.update(intermediate_size=64)}, r"proj_blocks': expected shape \(4, 128, 2, 16\)"),
])  # fmt: skip
def test_mxfp4_blocks_that_do_not_fit(tmp_path, options, match):
    refused(cases.mxfp4_checkpoint(tmp_path, **options)[0], match)


# --- files that nobody wrote ------------------------------------------------------------------------------------------

ODD = [None, 0, -1, 2, 10**30, 1.5, float("nan"), float("inf"), "x", "silu", "", [], [1], [None], {}, {"a": 1}, True]


def places(settings):
    """Every (object, key) of nested objects."""
    for key, value in settings.items():
        yield settings, key
        if isinstance(value, dict):
            yield from places(value)


@pytest.mark.parametrize("seed", range(4))
def test_whatever_a_checkpoint_holds_it_is_read_or_refused(tmp_path, seed):
    """Fields of any type, bytes of any value in headers and index: one sentence, and never another error."""
    rng, ends = random.Random(seed), set()
    for at in range(40):
        settings, layer, tensors = copy.deepcopy(CASES[rng.choice(list(CASES))])
        holder, key = rng.choice(list(places(settings)))
        holder[key] = rng.choice(ODD) if rng.random() < 0.6 else holder[key]
        directory = write(tmp_path / f"model{at}", settings, tensors(expected(layer)[1]), rng.choice((1, 2)))
        path = rng.choice(sorted(directory.glob("*.safetensors*")))
        raw = bytearray(path.read_bytes())
        for _ in range(rng.choice((0, 1, 3))):
            raw[rng.randrange(min(len(raw), 2500))] = rng.choice(b"0123456789[]{},:x\0\xff")
        path.write_bytes(raw)
        try:
            read_layer(directory, 1)
            ends.add("read")
        except ValueError as error:
            assert "\n" not in str(error)
            ends.add("refused")
    assert ends == {"read", "refused"}
