"""Chapter 7, checkpoints: a layer of a Hugging Face directory as a bundle, through the command line."""

import json
import os
import re
import tracemalloc
from fractions import Fraction

import checkpoint_cases as cases
import numpy as np
import pytest
from checkpoint_cases import CASES, MLP, E, block, each, expected, fp8_checkpoint, mxfp4_checkpoint, stored, write
from golden_case import add_one_bit, container, contents, forge, refused, reseal
from law_bridge import LAW, to_law

from refmoe.__main__ import main
from refmoe.formats import Packed
from refmoe.models.checkpoint import read_layer
from refmoe.models.checkpoint.shards import MAX_HEADER
from refmoe.recipes import name_params
from refmoe.safetensors import open_tensors


def golden(directory, out, *more, layer=1):
    """The status of a run of the command on a layer."""
    return main(
        ["golden", "--checkpoint", str(directory), "--layer", str(layer), "--tokens", "5", "--out", str(out), *more]
    )


def checked(out, *more):
    return main(["check", str(out), *more])


def rows_of(out):
    return {row["name"]: row for row in json.loads((out / "manifest.json").read_bytes())["tensors"]}


def checkpoint(tmp_path, case, shards=1):
    settings, layer, tensors = CASES[case]
    return write(tmp_path / "model", settings, tensors(expected(layer)[1]), shards)


# --- bundles ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["mixtral old", "gpt_oss bf16", "dbrx", "llama4", "switch", "nemotron_h old"])
def test_a_layer_becomes_a_bundle_that_checks(tmp_path, case, capsys):
    directory, out = checkpoint(tmp_path, case, shards=2), tmp_path / "bundle"
    assert golden(directory, out) == 0
    said = capsys.readouterr()
    assert f"layer 1 of a {CASES[case][0].get('text_config', CASES[case][0])['model_type']} checkpoint: E 4" in said.out
    assert "of 2 files opened" in said.err and str(tmp_path) not in (out / "manifest.json").read_text()
    assert checked(out, "--backend", "numpy") == 0


def test_the_bundle_is_that_of_the_same_weights_but_for_their_width(tmp_path):
    """Every tensor that the layer makes has the digest it has when the parameters come by recipe."""
    settings, layer, tensors = CASES["deepseek_v3 fused"]
    config, params = expected(layer)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    directory = write(tmp_path / "model", settings, tensors(params))
    np.savez(tmp_path / "own.npz", x=np.ones((5, cases.D), np.float32), **params)
    assert golden(directory, tmp_path / "one") == 0
    own = ["--config", str(tmp_path / "config.json"), "--inputs", str(tmp_path / "own.npz")]
    assert main(["golden", *own, "--out", str(tmp_path / "two")]) == 0
    x = tmp_path / "x.npz"
    np.savez(x, x=np.ones((5, cases.D), np.float32))
    assert golden(directory, tmp_path / "three", "--inputs", str(x)) == 0
    two, three = rows_of(tmp_path / "two"), rows_of(tmp_path / "three")
    made = [name for name, row in two.items() if row["role"] in ("record", "gradient")]
    assert two.keys() == three.keys() and len(made) > 20
    assert all(two[name] == three[name] for name in made)
    assert three["params.w_up"]["dtype"] == "BF16" and two["params.w_up"]["dtype"] == "F32"


@pytest.mark.parametrize("scales", ["F32", "BF16", "F8_E8M0"])
@pytest.mark.parametrize("numerics", [["exact"], ["chain", "--store", "bf16"], ["float64"]], ids=lambda n: n[0])
def test_fp8_codes_and_scales_are_in_the_bundle(tmp_path, scales, numerics):
    directory, _, _ = fp8_checkpoint(tmp_path, each, scales)
    out = tmp_path / "bundle"
    assert golden(directory, out, "--profile", *numerics) == 0
    assert checked(out, "--backend", "numpy") == 0
    same_codes(out, read_layer(directory, 1).params, {"E4M3": "F8_E4M3"}, scales)


def test_mxfp4_codes_and_scales_are_in_the_bundle(tmp_path):
    directory, *_ = mxfp4_checkpoint(tmp_path)
    assert golden(directory, tmp_path / "bundle") == 0
    assert checked(tmp_path / "bundle", "--backend", "numpy") == 0
    same_codes(tmp_path / "bundle", read_layer(directory, 1).params, {"E2M1": "U8"}, "F8_E8M0")


def same_codes(out, params, types, scales):
    """The bundle holds the checkpoint's codes and scales, bit for bit, and its rows say how to read them."""
    sources = json.loads((out / "manifest.json").read_bytes())["inputs"]
    packed = {name: p for name, p in name_params(params).items() if isinstance(p, Packed)}
    assert packed
    with open_tensors(out / "tensors.safetensors") as reader:
        for name, p in packed.items():
            row = sources[f"params.{name}"]
            assert row == {"source": "packed", "format": p.format, "block": list(p.block)}
            assert reader.entry(f"params.{name}").dtype == types[p.format]
            assert reader.entry(f"params.{name}.scales").dtype == scales
            for e in range(len(p)):
                assert reader.codes(f"params.{name}", e).tobytes() == np.ascontiguousarray(p.codes[e]).tobytes()
                assert reader.codes(f"params.{name}.scales", e).tobytes() == np.ascontiguousarray(p.scales[e]).tobytes()


@pytest.mark.parametrize("fmt", ["E4M3", "E2M1"])
def test_a_reader_needs_the_bundle_and_the_law_alone(tmp_path, fmt):
    """The rows of the gate out of codes and scales by the chapter's fences, as the bundle has them."""
    directory = fp8_checkpoint(tmp_path, each, "F32")[0] if fmt == "E4M3" else mxfp4_checkpoint(tmp_path)[0]
    assert golden(directory, tmp_path / "bundle") == 0
    block = json.loads((tmp_path / "bundle" / "manifest.json").read_bytes())["inputs"]["params.w_up"]["block"]
    with open_tensors(tmp_path / "bundle" / "tensors.safetensors") as reader:
        names = ("experts.x_rows", "experts.up_rows", "plan.expert_offsets", "params.w_up", "params.w_up.scales")
        x, wanted, offsets, codes, scales = (reader.codes(name) for name in names)
        bias = reader.codes("params.b_up") if fmt == "E2M1" else np.zeros((E, codes.shape[1]), np.float32)
    scale = (lambda code: LAW.decode_scale(int(code))) if fmt == "E2M1" else (lambda value: Fraction(float(value)))
    for e in range(E):
        own = codes[e].tolist()
        if fmt == "E2M1":
            own = [[LAW.nibble(own, m, k) for k in range(x.shape[1])] for m in range(len(own))]
        factors = [[scale(s) for s in row] for row in scales[e]]
        read = (own, factors, block, lambda code: LAW.decode_small(code, fmt))
        for n in range(offsets[e], offsets[e + 1]):
            for m in range(0, len(own), 3):
                w = [LAW.packed_weight(*read, m, k) for k in range(x.shape[1])]
                pairs = list(zip(to_law(x[n]), w, strict=True))
                assert to_law(wanted[n, m]) == LAW.contract_exact(pairs, to_law(bias[e, m]), "float32")


def test_the_same_checkpoint_gives_the_same_bytes_however_it_is_stored(tmp_path):
    """Old names and new ones, one file and several, one expert a tensor and all in one."""
    made = []
    for name, shards in (("mixtral old", 1), ("mixtral old", 3), ("mixtral fused", 1)):
        place = tmp_path / f"{name}{shards}"
        place.mkdir()
        assert golden(checkpoint(place, name, shards), place / "bundle") == 0
        made.append(contents(place / "bundle"))
    assert made[0] == made[1] == made[2]


def test_weights_pass_through_expert_by_expert(tmp_path):
    """Neither writing nor checking holds a tensor of weights, here of 4 MiB, as a whole."""
    layer = {**cases.SOFTMAX0, "hidden_size": 256, "intermediate_size": 256, "num_experts": 32}
    settings = {**cases.typed("mixtral", cases.MIXTRAL), "hidden_size": 256, "intermediate_size": 256}
    settings["num_local_experts"] = 32
    directory = write(tmp_path / "model", settings, block(cases.fused)(expected(layer)[1]))
    for step in (
        lambda: golden(directory, tmp_path / "bundle", "--no-backward", "--backend", "numpy"),
        lambda: checked(tmp_path / "bundle", "--backend", "numpy"),
    ):
        tracemalloc.start()
        assert step() == 0
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4 << 20


# --- forgeries --------------------------------------------------------------------------------------------------------


@pytest.fixture
def packed(tmp_path):
    """A bundle of codes and scales."""
    assert golden(fp8_checkpoint(tmp_path, each, "F32")[0], tmp_path / "bundle") == 0
    return tmp_path / "bundle"


@pytest.mark.parametrize("name", ["params.w_gate", "params.w_gate.scales", "params.shared.w_down"])
def test_altered_codes_and_scales_are_named(packed, name, capsys):
    forge(packed, name, add_one_bit)
    assert checked(packed, "--backend", "numpy") == 1
    assert "differ" in capsys.readouterr().err


def change_row(name, **fields):
    return lambda data: data["inputs"][name].update(fields)


@pytest.mark.parametrize(("change", "match"), [
    (change_row("params.w_gate", format="E5M2"), "expected type F8_E5M2, got F8_E4M3"),
    (change_row("params.w_gate", format="E9M9"), "cannot be recomputed"),
    (change_row("params.w_gate", format=["E4M3"]), "cannot be recomputed"),
    (change_row("params.w_gate", block=[2, 0]), "expected a block of two sizes"),
    (change_row("params.w_gate", block=[2]), "expected a block of two sizes"),
    (change_row("params.w_gate", block="24"), "expected a block of two sizes"),
    (change_row("params.w_gate", block=[1, 4]), "scales of expert"),
    (change_row("params.w_gate", block=7), "cannot be recomputed"),
    (change_row("params.w_router", source="packed", format="float32", block=None), "expected codes of experts"),
    (lambda data: data["inputs"].update(x={"source": "packed", "format": "bf16", "block": None}), "got F32|missing"),
])  # fmt: skip
def test_a_forged_description_of_codes_is_refused(packed, change, match):
    reseal(packed, change)
    assert re.search(match, refused(packed))


@pytest.mark.parametrize("row", [{"block": None}, {"source": "stored"}])
def test_codes_without_their_scales_are_other_weights(packed, row):
    reseal(packed, change_row("params.w_gate", **row))
    assert checked(packed, "--backend", "numpy") == 1


# --- refusals ---------------------------------------------------------------------------------------------------------


def sound(tmp_path):
    return checkpoint(tmp_path, "qwen3_moe", shards=2)


def absent(tmp_path):
    return tmp_path / "nowhere"


def truncated(tmp_path):
    directory = sound(tmp_path)
    path = directory / "model-00002-of-00002.safetensors"
    os.truncate(path, path.stat().st_size - 1)
    return directory


def long_header(tmp_path):
    directory = checkpoint(tmp_path, "qwen3_moe")
    with open(directory / "model.safetensors", "wb") as file:
        file.write((MAX_HEADER + 1).to_bytes(8, "little"))
        file.truncate(MAX_HEADER + 100)
    return directory


def missing_file(tmp_path):
    directory = sound(tmp_path)
    (directory / "model-00001-of-00002.safetensors").unlink()
    return directory


def changed(tmp_path, **fields):
    directory = sound(tmp_path)
    settings = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(settings | fields))
    return directory


def without_a_tensor(tmp_path):
    tensors = block(each)(expected(cases.SOFTMAX0)[1])
    del tensors[f"{MLP}experts.3.up_proj.weight"]
    return write(tmp_path / "model", cases.typed("qwen3_moe", cases.QWEN), tensors)


def of_full_width(tmp_path):
    tensors = block(each)(expected(cases.SOFTMAX0)[1])
    tensors = {name: stored(np.float32(1 / 3) + array, "F32") for name, array in tensors.items()}
    return write(tmp_path / "model", cases.typed("qwen3_moe", cases.QWEN), tensors)


def nonsense(tmp_path):
    directory = checkpoint(tmp_path, "qwen3_moe")
    container(directory / "model.safetensors", b"{")
    return directory


@pytest.mark.parametrize(("make", "more", "match"), [
    (absent, [], "looked for a folder with config.json"),
    (truncated, [], "truncated"),
    (long_header, [], f"claims {MAX_HEADER + 1} bytes, more than the {MAX_HEADER} that are read"),
    (missing_file, [], "names this file, and it is missing"),
    (nonsense, [], "not the JSON it must be"),
    (lambda p: changed(p, model_type="llama"), [], "expected a model_type with a declared layout (afmoe, aria_text,"),
    (lambda p: changed(p, hidden_size=7), [], "expected shape (4, 7), which config.json and the family's layout give"),
    (without_a_tensor, [], "the first is model.layers.1.mlp.experts.3.up_proj.weight"),
    (sound, ["--layer", "5"], "layers with one: 1"),
    (sound, ["--config", "c.json"], "--checkpoint: expected it with --layer N and nothing else that names a layer"),
    (sound, ["mixtral-8x7b"], "nothing else that names a layer, got a preset as well"),
    (sound, ["--inputs", "own.npz"], "--inputs: expected no parameters beside --checkpoint, got 'w_up'"),
    (of_full_width, ["--store", "bf16"], "params.w_router: expected values that bf16 can represent"),
])  # fmt: skip
def test_a_checkpoint_that_cannot_be_read_is_one_sentence(tmp_path, capsys, monkeypatch, make, more, match):
    directory, out = make(tmp_path), tmp_path / "out" / "bundle"
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "own.npz", w_up=np.ones((E, cases.F, cases.D), np.float32))
    before = sorted(tmp_path.rglob("*"))
    assert golden(directory, out, *more) == 2
    said = capsys.readouterr()
    assert not said.out and match in said.err.splitlines()[-1] and "Traceback" not in said.err
    assert sorted(p for p in tmp_path.rglob("*") if p.name != "out") == before


def test_a_layer_without_a_checkpoint_and_the_other_way_round(tmp_path, capsys):
    assert main(["golden", "mixtral-8x7b", "--layer", "3", "--out", str(tmp_path / "b")]) == 2
    assert "--layer: expected beside --checkpoint DIR" in capsys.readouterr().err
    assert main(["golden", "--checkpoint", str(tmp_path), "--out", str(tmp_path / "b")]) == 2
    assert "got no layer" in capsys.readouterr().err
