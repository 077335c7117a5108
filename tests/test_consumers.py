"""The consumers: short, as the page and the README show them; C accepted and its wrong copies refused; exports.

The others run in `make consumers`, with compilers and libraries that this suite does without.
"""

import json
import random
import re
import subprocess
from pathlib import Path
from textwrap import dedent

import jsonschema
import numpy as np
import pytest
from consumers import run

import refmoe
from refmoe.__main__ import main
from refmoe.golden import raw, write_bundle
from refmoe.golden.exports import EXPORTS
from refmoe.golden.inputs import recipe_rows
from refmoe.recipes import init_params, name_params
from refmoe.safetensors import open_tensors

ROOT = Path(__file__).parent.parent
SOURCES = [p for p in run.HERE.iterdir() if p.suffix in (".c", ".h", ".cpp", ".mjs", ".py") and p.name != "run.py"]


# --- the files -------------------------------------------------------------------------------------------------------


def region(path, name):
    """What stands between the comments `--- name ---` and `--- end ---` of a file."""
    mark = r"^[ ]*(?:/\*|//|#) --- {} ---[^\n]*\n"
    found = re.findall(mark.format(name) + "(.*?)" + mark.format("end"), path.read_text(), re.MULTILINE | re.DOTALL)
    return dedent("".join(found)).rstrip() + "\n"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.name)
def test_a_consumer_is_short(path):
    assert len(path.read_text().splitlines()) < 100


def test_every_source_belongs_to_a_consumer():
    assert {c.source for c in run.CONSUMERS.values()} | {"refmoe_bundle.h"} == {p.name for p in SOURCES}


def test_the_page_shows_the_recipes_that_run():
    text = (ROOT / "spec/recipes.md").read_text(encoding="utf-8")
    shown = re.findall(r"\(`tests/consumers/(\S+)`\)\n\n```\w+\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert [name for name, _ in shown] == ["refmoe_bundle.h", "layer.mjs", "torch_block.py", "jax_block.py"]
    for name, fence in shown:
        assert fence == region(run.HERE / name, "recipe"), f"spec/recipes.md differs from {name}"


def test_the_readme_shows_the_five_lines_that_run():
    lines = region(run.HERE / "torch_block.py", "five lines")
    assert len(lines.splitlines()) == 5
    assert f"```\n{lines}```\n" in (ROOT / "README.md").read_text(encoding="utf-8")


# --- C, and the run itself -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """The bundles of `make consumers`, made in this process."""
    folder = tmp_path_factory.mktemp("bundles")
    for name, options in run.BUNDLES.items():
        golden = ["golden", "--config", str(run.HERE / "case.json"), "--tokens", str(run.TOKENS)]
        assert main([*golden, *options, "--out", str(folder / name)]) == 0
    return {name: folder / name for name in run.BUNDLES}


def test_c_is_accepted_and_its_wrong_copies_are_refused(bundles, tmp_path):
    run.prove("C", run.CONSUMERS["C"], tmp_path, bundles)


def test_a_wrong_copy_that_passes_is_an_error(bundles, tmp_path):
    harmless = run.CONSUMERS["C"]._replace(mistakes={"nothing is wrong": ("verify.c", "Your kernel:", "My kernel:")})
    with pytest.raises(run.Broken, match="C: accepted although nothing is wrong"):
        run.prove("C", harmless, tmp_path, bundles)


def test_a_mistake_that_does_not_apply_or_does_not_build_is_an_error(tmp_path):
    c = run.CONSUMERS["C"]
    with pytest.raises(run.Broken, match="expected 'no such text' once, it stands there 0 times"):
        run.copied(c, tmp_path / "a", ("verify.c", "no such text", ""))
    with pytest.raises(run.Broken, match="build: exit status"):
        run.copied(c, tmp_path / "b", ("verify.c", "static int failures;", ""))


def test_only_listed_consumers_may_be_skipped(bundles, capsys, monkeypatch):
    monkeypatch.setattr(run, "make_bundles", lambda folder: bundles)
    absent = {"JAX": run.CONSUMERS["JAX"]._replace(tool=["no-such-tool"])}
    assert run.run(absent) == 0
    assert "skipped" in capsys.readouterr().out
    assert run.run(absent, may_be_skipped={}) == 1
    assert capsys.readouterr().out.endswith("consumers: JAX FAILED\n")
    assert "C" not in run.MAY_BE_SKIPPED and "PyTorch" not in run.MAY_BE_SKIPPED
    assert run.MAY_BE_SKIPPED.keys() <= run.CONSUMERS.keys()


def test_the_table_of_first_values_is_read_whole():
    assert {recipe for recipe, *_ in run.first_values()} == set(refmoe.recipes.RECIPES)
    with pytest.raises(run.Refused, match="first values"):
        run.check_values("")


def altered(whole, draw, case):
    """A bundle's two files with one of them cut, or three of its bytes other."""
    spoilt = {name: bytearray(data) for name, data in whole.items()}
    header = 8 + int.from_bytes(whole["tensors.safetensors"][:8], "little")
    target, size = [(spoilt["manifest.json"], None), (spoilt["tensors.safetensors"], header)][case % 2]
    if case % 4 < 2:
        del target[draw.randrange(len(target)) :]
    else:
        for _ in range(3):
            target[draw.randrange(size or len(target))] = draw.choice(b'0123456789",[]{}:\0F')
    return spoilt


def lying(whole):
    """Bundles that claim of x, the last tensor but one, what is not there: in the header, then in the manifest."""
    entry = rb'("x":\{"data_offsets":\[)(\d+),(\d+)(\],"dtype":")F32(","shape":\[)64,32'
    for new in (rb"\g<1>\2,\3\4F32\g<5>99,99", rb"\g<1>\2,999999\4F32\g<5>64,32", rb"\g<1>\3,\2\4F32\g<5>64,32",
                rb"\g<1>\2,\3\4F64\g<5>64,16", rb"\g<1>\2,\3\4F3\g<5>64,128"):  # fmt: skip
        text, count = re.subn(entry, new, whole["tensors.safetensors"])
        assert count == 1 and len(text) == len(whole["tensors.safetensors"])
        yield whole | {"tensors.safetensors": text}
    nine, huge = rb"\g<1>" + b"1, " * 9, rb"\g<1>536870912, 536870912, 64, "
    for old, new in (
        (rb'("x": \{\s+"exponent": )0', rb"\g<1>2147483600"),
        (rb'("x": \{[^}]*"recipe": ")bell', rb"\g<1>bill"),
        (rb'("name": "x",[^}]*"shape": \[\s+)', nine),
        (rb'("name": "x",[^}]*"shape": \[\s+)', huge),
    ):
        text, count = re.subn(old, new, whole["manifest.json"])
        assert count == 1
        yield whole | {"manifest.json": text}


def test_the_header_reads_nothing_outside_a_file(bundles, tmp_path):
    """A verdict or a refusal of what was altered, a refusal of what lies, and nothing that a sanitizer would name."""
    flags = ["-std=c11", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    subprocess.run([run.CC, *flags, run.HERE / "verify.c", "-o", tmp_path / "verify"], check=True)
    draw, quiet = random.Random(5), {"ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1"}
    whole = {p.name: p.read_bytes() for p in bundles["f32"].iterdir()}
    cases = [((2,), files) for files in lying(whole)] + [((0, 1, 2), altered(whole, draw, n)) for n in range(40)]
    for codes, files in cases:
        for name, data in files.items():
            (tmp_path / name).write_bytes(data)
        done = subprocess.run([tmp_path / "verify", tmp_path], capture_output=True, env=quiet)
        assert done.returncode in codes and b"ERROR" not in done.stderr, done.stderr.decode()


# --- exports ---------------------------------------------------------------------------------------------------------

NAME = {"type": "string", "minLength": 1}
TEXT = {"type": "string"}
TYPE = {"enum": ["float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float4_e2m1", "int64", "int32",
                 "int16", "int8", "bool"]}  # fmt: skip


def closed(required, optional=()):
    """An object with these fields and no others."""
    fields = {**required, **dict(optional)}
    return {"type": "object", "properties": fields, "required": list(required), "additionalProperties": False}


# The published schema of FlashInfer-Bench (docs/flashinfer_trace/definition.md and workload.md), closed.
SIZE = {"type": "integer", "minimum": 0}
AXIS = {"oneOf": [closed({"type": {"const": "const"}, "value": SIZE}, {"description": TEXT}),
                  closed({"type": {"const": "var"}}, {"description": TEXT})]}  # fmt: skip
TENSOR = closed({"shape": {"type": ["array", "null"], "items": NAME}, "dtype": TYPE}, {"description": TEXT})
DEFINITION = closed(
    {"name": NAME, "op_type": NAME, "axes": {"type": "object", "additionalProperties": AXIS},
     "inputs": {"type": "object", "additionalProperties": TENSOR},
     "outputs": {"type": "object", "additionalProperties": TENSOR}, "reference": NAME},
    {"tags": {"type": "array", "items": NAME}, "description": TEXT, "constraints": {"type": "array", "items": NAME}},
)  # fmt: skip
INPUT = closed({"type": {"const": "safetensors"}, "path": NAME, "tensor_key": NAME})
WORKLOAD = closed({
    "definition": NAME, "solution": {"type": "null"}, "evaluation": {"type": "null"},
    "workload": closed({"uuid": NAME, "axes": {"type": "object", "additionalProperties": {"type": "integer"}},
                        "inputs": {"type": "object", "additionalProperties": INPUT}}),
})  # fmt: skip
TYPES = {"F32": "float32", "BF16": "bfloat16", "I32": "int32"}


@pytest.fixture(scope="module")
def exports(bundles, tmp_path_factory):
    """(bundle, form) -> directory."""
    folder, made = tmp_path_factory.mktemp("exports"), {}
    for label, bundle in bundles.items():
        for form in EXPORTS:
            made[label, form] = folder / f"{label}-{form}"
            assert main(["export", str(bundle), "--to", form, str(made[label, form])]) == 0
    return made


def stages(root):
    """(definition, workload, path of its tensors) of every workload of a trace set."""
    for path in sorted(root.glob("definitions/*/*.json")):
        definition = json.loads(path.read_text())
        assert (path.parent.name, path.stem) == (definition["op_type"], definition["name"])
        for line in (root / "workloads" / path.parent.name / f"{path.stem}.jsonl").read_text().splitlines():
            row = json.loads(line)
            jsonschema.validate(row, WORKLOAD)
            assert row["definition"] == definition["name"]
            (blob,) = {read["path"] for read in row["workload"]["inputs"].values()}
            yield definition, row["workload"], root / blob


@pytest.mark.parametrize("label", run.BUNDLES)
def test_a_trace_set_follows_the_published_schema(exports, label):
    root = exports[label, "flashinfer-bench"]
    found = list(stages(root))
    assert sorted(d["op_type"] for d, _, _ in found) == ["grouped_gemm"] * 3 + ["moe"]
    assert len({w["uuid"] for _, w, _ in found}) == len(found)
    for definition, workload, path in found:
        jsonschema.validate(definition, DEFINITION)
        sizes = {n: axis.get("value", workload["axes"].get(n)) for n, axis in definition["axes"].items()}
        assert workload["axes"].keys() == {n for n, axis in definition["axes"].items() if axis["type"] == "var"}
        assert all(eval(text, {}, sizes) for text in definition["constraints"])
        namespace = compile(definition["reference"], "reference", "exec")
        assert "run" in namespace.co_names
        with open_tensors(path) as reader:
            (golden,) = reader.entries.keys() - definition["inputs"].keys()
            specs = definition["inputs"] | {golden: next(iter(definition["outputs"].values()))}
            for name, spec in specs.items():
                entry = reader.entry(name)
                assert (TYPES[entry.dtype], list(entry.shape)) == (spec["dtype"], [sizes[a] for a in spec["shape"]])


def test_a_trace_set_holds_the_bits_of_the_bundle(bundles, exports):
    """The two joined matrices, up first; ids and offsets as int32; the golden output."""
    params = name_params(init_params(refmoe.MoEConfig.from_json(run.HERE / "case.json"), seed=3))
    with open_tensors(bundles["f32"] / "tensors.safetensors") as bundle:
        for definition, _, path in stages(exports["f32", "flashinfer-bench"]):
            with open_tensors(path) as reader:
                (golden,) = reader.entries.keys() - definition["inputs"].keys()
                assert np.array_equal(reader.codes(golden), bundle.codes(golden))
                if definition["op_type"] == "moe":
                    joined = np.concatenate([params["w_up"], params["w_gate"]], axis=1)
                    assert np.array_equal(reader.codes("gemm1_weights"), joined)
                    assert np.array_equal(reader.codes("topk_ids"), bundle.codes("routing.topk_indices"))
                    assert np.array_equal(reader.codes("hidden_states"), bundle.codes("x"))
                else:
                    weight = {"experts.gate_rows": "w_gate", "experts.up_rows": "w_up", "experts.y_rows": "w_down"}
                    assert np.array_equal(reader.codes("b"), params[weight[golden]])
                    assert np.array_equal(reader.codes("offsets"), bundle.codes("plan.expert_offsets"))


def test_raw_holds_every_input(exports):
    root = exports["f32", "raw"]
    title, *rows = (root / raw.INDEX).read_text().splitlines()
    data = (root / raw.TENSORS).read_bytes()
    config = refmoe.MoEConfig.from_json(run.HERE / "case.json")
    wanted = {f"params.{name}": array for name, array in name_params(init_params(config, seed=3)).items()}
    wanted |= {name: refmoe.recipes.generate(name, (run.TOKENS, 32), 3) for name in ("x", "d_y")}
    assert title == raw.TITLE
    lines = {name: (dtype, *map(int, numbers)) for name, dtype, *numbers in map(str.split, rows)}
    for name, array in wanted.items():
        dtype, offset, size, *shape = lines[name]
        assert (dtype, tuple(shape)) == ("F32", array.shape)
        assert data[offset : offset + size] == array.tobytes()
    assert {"y", "routing.topk_indices", "grads.params.w_gate"} <= lines.keys()
    assert sum(size for _, _, size, *_ in lines.values()) == len(data)


def tree(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.mark.parametrize("form", EXPORTS)
def test_the_same_bundle_gives_the_same_bytes(bundles, exports, tmp_path, form):
    assert main(["export", str(bundles["f32"]), "--to", form, str(tmp_path / "again")]) == 0
    assert tree(tmp_path / "again") == tree(exports["f32", form])


def bundle_of(tmp_path, config, **policy):
    num = refmoe.Numerics(**policy)
    rows = recipe_rows(config, num, 4, False, 0)
    write_bundle(tmp_path / "bundle", config, num, refmoe.SPEC_VERSION, "a case", 4, rows)
    return tmp_path / "bundle"


@pytest.mark.parametrize(
    ("changes", "policy", "said"),
    [
        ({"experts": {"biases": True}}, {}, "experts.biases True"),
        ({"experts": {"gated": False, "activation": "relu"}}, {}, "experts.activation 'relu'"),
        ({"experts": {"limit": 7.0}}, {}, "experts.limit 7.0"),
        ({"dispatch": {"capacity": 2}}, {}, "a capacity"),
        ({}, {"profile": "float64"}, "values of type F64"),
    ],
)
def test_a_layer_that_no_definition_can_say_is_refused(tmp_path, capsys, changes, policy, said):
    sizes = {"hidden_size": 4, "intermediate_size": 3, "num_experts": 2, "top_k": 1}
    bundle = bundle_of(tmp_path, refmoe.MoEConfig.from_dict(sizes | changes), **policy)
    assert main(["export", str(bundle), "--to", "flashinfer-bench", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert f"expected plain silu experts in 32 or 16 bits, got {said}; use --to raw" in err
    assert len(err.splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]
    assert main(["export", str(bundle), "--to", "raw", str(tmp_path / "out")]) == 0


def test_bad_places_and_bundles_are_refused_in_one_line(bundles, tmp_path, capsys):
    (tmp_path / "taken").mkdir()
    altered = tmp_path / "altered"
    altered.mkdir()
    for path in bundles["f32"].iterdir():
        data = bytearray(path.read_bytes())
        data[-9] ^= 1
        (altered / path.name).write_bytes(data)
    for bundle, out, code in ((bundles["f32"], "taken", 2), (tmp_path / "none", "out", 2), (altered, "out", 1)):
        assert main(["export", str(bundle), "--to", "raw", str(tmp_path / out)]) == code
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["altered", "taken"]


def test_an_export_that_fails_leaves_nothing(bundles, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(raw, "write", full)
    assert main(["export", str(bundles["f32"]), "--to", "raw", str(tmp_path / "out")]) == 2
    assert list(tmp_path.iterdir()) == []


def test_weights_larger_than_the_room_are_exported_an_expert_at_a_time(tmp_path, monkeypatch):
    """The lazy path of recipes gives the same bytes."""
    config = refmoe.MoEConfig.from_json(run.HERE / "case.json")
    bundle = bundle_of(tmp_path, config)
    assert main(["export", str(bundle), "--to", "raw", str(tmp_path / "eager")]) == 0
    monkeypatch.setattr("refmoe.golden.inputs.LAZY_BYTES", 0)
    assert main(["export", str(bundle), "--to", "raw", str(tmp_path / "lazy")]) == 0
    assert tree(tmp_path / "lazy") == tree(tmp_path / "eager")
