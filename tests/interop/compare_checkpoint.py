"""Whole tiny models saved with save_pretrained, in shards, and one layer of each read back and run by refmoe."""

import json

import numpy as np
import pytest
import torch
from harness import FORWARD_BAR, GRADIENT_BAR, MARGIN_BAR, NUM
from whole import MODELS, build, module_of

import refmoe
from refmoe.__main__ import main
from refmoe.golden.digests import from_codes
from refmoe.models.checkpoint import FAMILIES, read_layer
from refmoe.recipes import assemble_params, name_params
from refmoe.safetensors import open_tensors

SEQUENCES, LENGTH = 2, 12
IDS = torch.arange(SEQUENCES * LENGTH).reshape(SEQUENCES, LENGTH) * 5 % 32


@pytest.fixture
def saved(request, tmp_path):
    """(row, block's input, its output and the gradient of its input, directory of the model in shards)."""
    row = request.param
    model = build(row)
    model.save_pretrained(tmp_path / "model", max_shard_size="8KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 2
    return row, *seen_and_made(model, row), tmp_path / "model"


def seen_and_made(model, row):
    """(x, y, d_x) of the block, a row a token: what it is called with when the model runs, what it makes of it, and the
    gradient of the sum of that.
    """
    block, generator = module_of(model, row.block), torch.Generator().manual_seed(1)
    if row.alone:
        args, kwargs = (torch.randn(SEQUENCES, LENGTH, 16, generator=generator), *token_ids(block)), {}
    else:
        args, kwargs = seen(model, block, torch.randint(3, 32, (SEQUENCES, LENGTH), generator=generator))
    x, *args = args if args else (kwargs.pop("hidden_states"),)
    x = x.detach().clone().requires_grad_()
    y = block(x, *args, **kwargs) if row.call is None else row.call(block, x)
    y = (y[0] if isinstance(y, tuple) else y).reshape(x.shape)
    if row.beside:
        y = y + module_of(model, row.beside)(x)
    y.sum().backward()
    return [t.detach().numpy().reshape(-1, x.shape[-1]) for t in (x, y, x.grad)]


def token_ids(block):
    """What a block that chooses by a table of token ids is given besides."""
    hashed = hasattr(getattr(block, "gate", None), "tid2eid")
    return [IDS] if hashed else []


def seen(model, block, ids):
    """The arguments of the block's first call when the model runs."""
    calls = []

    def note(module, args, kwargs):
        calls.append((args, kwargs))

    handle = block.register_forward_pre_hook(note, with_kwargs=True)
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        model(ids, **more)
    handle.remove()
    return calls[0]


def refmoes(layer, x):
    """(y, d_x) of the layer in float64, its selection nowhere close to a tie."""
    params = name_params(layer.params)
    wide = {name: a if callable(a) or a.dtype.kind != "f" else a.astype(np.float64) for name, a in params.items()}
    params, x = assemble_params(wide), x.astype(np.float64)
    by_table = layer.config.routing.selection == "hash"
    ids = IDS.reshape(-1).numpy() if by_table else None
    given = refmoe.Given(sequence_ids=np.repeat(np.arange(SEQUENCES), LENGTH), token_ids=ids)
    record = refmoe.moe_forward(x, params, layer.config, NUM, given)
    assert by_table or record.routing.margin.min() > MARGIN_BAR
    return record.y, refmoe.moe_backward(np.ones_like(x), x, params, record, layer.config, NUM, given).d_x


def ratio(ours, theirs):
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


@pytest.mark.parametrize("saved", MODELS, ids=lambda row: f"{row.model_type}, layer {row.layer}", indirect=True)
def test_a_saved_model_reads_back_as_the_layer_it_was(saved):
    row, x, y, d_x, directory = saved
    layer = read_layer(directory, row.layer)
    ours, d_ours = refmoes(layer, x)
    assert np.abs(y).max() > 0.1
    assert ratio(ours, y) <= FORWARD_BAR and ratio(d_ours, d_x) <= GRADIENT_BAR


COMMAND = [row for row in MODELS if row.model_type in ("mixtral", "gpt_oss", "deepseek_v3")]


@pytest.mark.parametrize("saved", COMMAND, ids=lambda row: row.model_type, indirect=True)
def test_the_command_line_makes_a_bundle_of_it(saved, tmp_path):
    """In float32 with one rounding a tensor: as close to transformers as that allows."""
    row, x, y, d_x, directory = saved
    out = tmp_path / "bundle"
    np.savez(tmp_path / "in.npz", x=x, d_y=np.ones_like(x))
    where = ["--checkpoint", str(directory), "--layer", str(row.layer), "--inputs", str(tmp_path / "in.npz")]
    assert main(["golden", *where, "--backend", "numpy", "--out", str(out)]) == 0
    assert main(["check", str(out), "--backend", "numpy"]) == 0
    with open_tensors(out / "tensors.safetensors") as reader:
        ours, d_ours = (from_codes(reader.codes(name), "F32") for name in ("y", "grads.d_x"))
    assert ratio(ours, y) <= FORWARD_BAR and ratio(d_ours, d_x) <= GRADIENT_BAR
    assert json.loads((out / "manifest.json").read_bytes())["inputs"]["params.w_up"]["format"] == "float32"


def test_every_family_that_transformers_ships_is_saved():
    """kimi_k2 has no class of its own there, its files name DeepSeek-V3's."""
    compared = {row.model_type for row in MODELS}
    inside = {
        "qwen3_vl_moe_text": "qwen3_vl_moe",
        "glm4v_moe_text": "glm4v_moe",
        "glm5_next_text": "glm5_next",
        "qwen3_omni_moe_text": "qwen3_omni_moe_thinker",
        "step3p5": "step3p7",
        "mistral_large4_text": "mistral_large4",
        "muse_spark_text": "muse_spark",
        "deepseek_ocr2_text": "deepseek_ocr2",
        "unlimited_ocr_text": "unlimited_ocr",
    }
    assert {name for name in FAMILIES if inside.get(name, name) not in compared} == {"kimi_k2"}
