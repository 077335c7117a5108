"""Chapter 7.11.1, quantised layers: codes, scales and dequantised values in bundles that check themselves."""

import json
import re

import numpy as np
import pytest
from golden_case import add_one_bit, check, forge, refused, reseal, tiny
from golden_case import write as write_tiny
from law_bridge import LAW, agree, to_law

from refmoe.__main__ import main
from refmoe.formats import FORMATS, SCHEMES, decode, quantise
from refmoe.golden import storage
from refmoe.recipes import generate
from refmoe.safetensors import open_tensors

CASES = [(name, rule, ["exact"]) for name, row in SCHEMES.items() for rule in row.rules]
CASES += [(name, rule, ["chain", "--store", "bf16"]) for name, rule in (("int8", "amax"), ("mxfp4", "up"))]
SIZES = {"hidden_size": 35, "intermediate_size": 3, "num_experts": 2, "top_k": 1}
SHARED = {"experts": {"shared_intermediate_size": 2}}


def golden(tmp_path, scheme, rule=None, name="bundle", *more):
    """A bundle of a small layer with odd sizes and a shared expert."""
    (tmp_path / "config.json").write_text(json.dumps(SIZES | SHARED))
    chosen = ["--weights", scheme, *(["--scale-rule", rule] if rule else [])]
    places = ["--config", str(tmp_path / "config.json"), "--out", str(tmp_path / name)]
    return main(["golden", *places, "--tokens", "3", *chosen, *more])


def tensors(directory):
    """name -> (safetensors type, elements)."""
    with open_tensors(directory / "tensors.safetensors") as reader:
        return {name: (entry.dtype, reader.codes(name)) for name, entry in reader.entries.items()}


def manifest(directory):
    return json.loads((directory / "manifest.json").read_bytes())


def by_law(codes, fmt, columns):
    """The values of codes as a file holds them, by the chapter's fences."""
    if fmt in ("E2M1", "int4"):
        codes = [[LAW.nibble(line, 0, k) for k in range(columns)] for line in codes[:, None].tolist()]
    value = LAW.decode_integer if fmt in LAW.INTEGER_BITS else LAW.decode_small
    return [[value(int(code) & 0xFF, fmt) for code in line] for line in codes]


def scale_values(dtype, scales):
    name = next(row.name for row in FORMATS.values() if row.safetensors == dtype)
    return to_law(decode(scales.view(f"u{scales.itemsize}"), name))


@pytest.mark.parametrize(("scheme", "rule", "numerics"), CASES)
def test_a_bundle_holds_what_the_law_makes_of_the_recipe(tmp_path, scheme, rule, numerics):
    """Codes, scales and dequantised values of every matrix, and rows of a stage, from the manifest and the fences."""
    given = rule if len(SCHEMES[scheme].rules) > 1 else None
    assert golden(tmp_path, scheme, given, "bundle", "--profile", *numerics) == 0
    assert check(tmp_path / "bundle").differences == []
    held, rows = tensors(tmp_path / "bundle"), manifest(tmp_path / "bundle")["inputs"]
    law = LAW.Law(numerics[0], "bf16" if "bf16" in numerics else "float32")
    quantised = [name for name, row in rows.items() if row["source"] == "quantised"]
    assert len(quantised) == 6 and all(rows[name]["rule"] == rule for name in quantised)
    for name in ("params.w_up", "params.shared.w_down"):
        row, shape = rows[name], held[f"{name}.dequantised"][1].shape
        made = generate(row["name"], shape, row["seed"], row["recipe"], row["exponent"])
        for e in range(shape[0]):
            values, scales, tensor = LAW.quantise(to_law(made[e]), scheme, rule)
            assert values == by_law(held[name][1][e], SCHEMES[scheme].format, shape[2])
            dtype, found = held[f"{name}.scales"]
            assert scales == scale_values(dtype, found[e])
            if SCHEMES[scheme].tensor_scale:
                agree(tensor, held[f"{name}.tensor_scales"][1][e])
            read = values, scales, SCHEMES[scheme].block, lambda v: v
            products = [[LAW.packed_weight(*read, m, k, tensor) for k in range(shape[2])] for m in range(shape[1])]
            wanted = [[LAW.convert(p, law.store) for p in line] for line in products]
            assert wanted == scale_values(*held[f"{name}.dequantised"])[e]
            if name == "params.w_up":
                a_stage(held, e, products, law)


def a_stage(held, e, products, law):
    """The first row of an expert in up_rows."""
    offsets = held["plan.expert_offsets"][1]
    if offsets[e] < offsets[e + 1]:
        x = scale_values(*held["experts.x_rows"])[offsets[e]]
        got = scale_values(*held["experts.up_rows"])[offsets[e]]
        assert [LAW.contract("up_rows", list(zip(x, w, strict=True)), law) for w in products] == got


@pytest.mark.parametrize("scheme", ["fp8-block", "nvfp4", "int8"])
def test_every_engine_and_profile_checks_it(tmp_path, scheme):
    for profile in ("exact", "chain", "float64"):
        assert golden(tmp_path, scheme, None, profile, "--profile", profile) == 0
        for backend in ("numpy", "auto"):
            assert check(tmp_path / profile, backend=backend).differences == []


def test_forged_codes_scales_and_values_are_named(tmp_path):
    names = ("params.w_up", "params.w_up.scales", "params.w_up.tensor_scales", "params.w_up.dequantised")
    for at, name in enumerate(names):
        assert golden(tmp_path, "nvfp4", None, f"bundle{at}") == 0
        forge(tmp_path / f"bundle{at}", name, add_one_bit)
        assert [tensor for tensor, _ in check(tmp_path / f"bundle{at}").differences] == [name]


@pytest.mark.parametrize(("field", "value"), [("scheme", "mxfp5"), ("rule", "nearest"), ("rule", None), ("seed", "x")])
def test_a_row_that_cannot_be_is_refused(tmp_path, field, value):
    assert golden(tmp_path, "mxfp4", "up") == 0
    reseal(tmp_path / "bundle", lambda data: data["inputs"]["params.w_up"].update({field: value}))
    assert "its case cannot be recomputed" in refused(tmp_path / "bundle")


def test_only_matrices_of_experts_are_quantised(tmp_path):
    assert golden(tmp_path, "mxfp4", "up") == 0
    reseal(tmp_path / "bundle", lambda data: data["inputs"]["params.w_router"].update(source="quantised"))
    assert "params.w_router: expected matrices of experts" in refused(tmp_path / "bundle")


def test_another_rule_is_another_bundle_and_the_check_sees_it(tmp_path):
    assert golden(tmp_path, "mxfp4", "up") == 0
    reseal(tmp_path / "bundle", lambda data: data["inputs"]["params.w_up"].update(rule="floor"))
    assert check(tmp_path / "bundle").differences[0][0].startswith("params.w_up")


def test_large_tensors_are_sampled_and_have_the_same_digests(tmp_path, monkeypatch):
    assert golden(tmp_path, "int4", None, "whole") == 0
    monkeypatch.setattr(storage, "SIZE_LIMIT", 10)
    assert golden(tmp_path, "int4", None, "sampled") == 0
    assert check(tmp_path / "sampled").differences == []
    whole, sampled = ({row["name"]: row for row in manifest(tmp_path / n)["tensors"]} for n in ("whole", "sampled"))
    names = [name for name in whole if name.startswith("params.w_up")]
    assert len(names) == 3
    for name in names:
        assert whole[name]["sha256"] == sampled[name]["sha256"] and sampled[name]["storage"]["kind"] == "sample"
    assert whole["params.w_up"]["digest_of"] == whole["params.w_up.dequantised"]["digest_of"] == "experts"


def test_experts_are_quantised_one_at_a_time(tmp_path, monkeypatch):
    from refmoe.golden import inputs, quantised

    monkeypatch.setattr(inputs, "LAZY_BYTES", 10)
    seen = []
    monkeypatch.setattr(quantised, "quantise", lambda w, *rest: seen.append(w.shape) or quantise(w, *rest))
    assert golden(tmp_path, "fp8-rows") == 0 and set(seen) == {(1, 3, 35), (1, 35, 3), (1, 2, 35), (1, 35, 2)}
    monkeypatch.undo()
    assert check(tmp_path / "bundle").differences == []


@pytest.mark.parametrize(("scheme", "rule"), [("nvfp4", None), ("int8", None), ("mxfp6-e2m3", "even"), ("int4", None)])
def test_packed_weights_of_ones_own_travel_with_all_their_scales(tmp_path, scheme, rule):
    """Through the library: the row says what the bundle holds, the check reads it back from there."""
    own = quantise(generate("own", (4, 4, 3), 1), scheme, rule, (1, 2))
    write_tiny(tmp_path / "bundle", tiny(), {"w_down": own})
    assert check(tmp_path / "bundle").differences == []
    row = manifest(tmp_path / "bundle")["inputs"]["params.w_down"]
    assert row["format"] == own.format and row.get("tensor_scales", False) == (scheme == "nvfp4")
    assert row.get("columns") == (3 if scheme in ("nvfp4", "int4") else None)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--weights", "fp9"], "scheme: expected one of fp8-block, .*, got 'fp9'"),
        (["--weights", "mxfp4"], "rule: expected one of floor, up, even for mxfp4, got None; name it"),
        (["--weights", "nvfp4", "--scale-rule", "up"], "rule: expected one of amax for nvfp4, got 'up'"),
        (["--scale-rule", "up"], "--scale-rule: expected beside --weights SCHEME, got 'up' alone"),
        (["--weights", "int8", "--inputs", "OWN"], "--weights: expected expert weights by recipe, got your own params"),
    ],
)
def test_refusals_on_the_command_line(tmp_path, capsys, options, said):
    np.savez(tmp_path / "own.npz", w_up=np.zeros((2, 3, 35), np.float32))
    (tmp_path / "config.json").write_text(json.dumps(SIZES))
    more = [str(tmp_path / "own.npz") if word == "OWN" else word for word in options]
    status = main(["golden", "--config", str(tmp_path / "config.json"), "--out", str(tmp_path / "no"), *more])
    error = capsys.readouterr().err
    assert status == 2 and len(error.strip().splitlines()) == 1 and not (tmp_path / "no").exists()
    assert re.search(said, error)
