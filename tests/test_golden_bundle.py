"""Chapter 7, writing: the same bytes everywhere, all or nothing."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from golden_case import ROOT, check, contents, tiny, write

import refmoe
from refmoe import kernels
from refmoe.formats import decode
from refmoe.golden import bundle, manifest, run, storage
from refmoe.recipes import generate
from refmoe.safetensors import open_tensors
from refmoe.selection import solve_assignment

KERNELS = [name for name, can_run, _ in kernels.available() if can_run]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    directory = tmp_path_factory.mktemp("golden") / "bundle"
    write(directory)
    return directory


# --- 7.4 manifest and bundle ------------------------------------------------------------------------------------------


def test_the_manifest_is_canonical_and_says_what_the_case_is(made):
    raw = (made / "manifest.json").read_bytes()
    data = json.loads(raw)
    assert raw == (json.dumps(data, sort_keys=True, indent=1) + "\n").encode()
    assert refmoe.MoEConfig.from_dict(data["config"]) == tiny()
    assert data["run"] == {"profile": "exact", "store": "float32", "tokens": 5, "backward": True}
    without = {key: value for key, value in data.items() if key != "digest"}
    assert data["digest"] == hashlib.sha256((json.dumps(without, sort_keys=True, indent=1) + "\n").encode()).hexdigest()
    text = raw.decode()
    text = re.sub(r'"stage": "\d\.\d+"|-?0x[0-9a-f.]+p[+-]\d+', "", text)
    assert not re.search(r"\d\.\d", text), "a decimal float"
    for word in (str(made), os.uname().nodename, np.__version__, "numpy", "avx", "threads"):
        assert word not in text


def test_a_float_has_no_place_in_a_manifest():
    with pytest.raises(TypeError, match=r"got the float 0\.5"):
        manifest.canonical({"a": [{"b": 0.5}]})


HEXADECIMAL = {
    "0x1.8p+1": 3.0,
    "0x0p+0": 0.0,
    "-0x0p+0": -0.0,
    "0x0.0000000000001p-1022": 5e-324,
    "0x1.999999999999ap-4": 0.1,
    "inf": float("inf"),
    "0x1p+10": 1024.0,
}


@pytest.mark.parametrize("text", HEXADECIMAL)
def test_hexadecimal_floats(text):
    value = HEXADECIMAL[text]
    assert manifest.hex_float(value) == text
    assert float.fromhex(text).hex() == value.hex()


def test_names_are_the_records_names(made):
    names = [row["name"] for row in json.loads((made / "manifest.json").read_bytes())["tensors"]]
    assert names[:6] == ["x", "d_y", "params.w_router", "params.w_gate", "params.w_up", "params.w_down"]
    assert {"routing.logits", "routing.topk_indices", "plan.row_slot", "experts.gate_rows", "routed", "y"} <= set(names)
    assert {"grads.d_x", "grads.d_logits_task", "grads.rows.d_gate_rows", "grads.params.w_gate"} <= set(names)
    assert len(names) == len(set(names))


def test_every_stage_is_a_section_of_the_law(made):
    headings = {
        m for path in (ROOT / "spec").glob("[0-9]-*.md") for m in re.findall(r"^## (\d\.\d+) ", path.read_text(), re.M)
    }
    assert set(run.STAGES.values()) <= headings


def test_the_same_case_gives_the_same_bytes(made, tmp_path):
    write(tmp_path / "again")
    assert contents(made) == contents(tmp_path / "again")


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_kernel_gives_numpys_bytes(made, tmp_path, kernel, threads):
    write(tmp_path / "c", backend="c", kernel=kernel, threads=threads)
    assert contents(made) == contents(tmp_path / "c")


@pytest.mark.parametrize("limit", [0, 100, 8 << 20])
def test_sampled_gradients_have_the_digests_of_stored_ones(made, tmp_path, monkeypatch, limit):
    """Below the limit arrays, above it sinks; and weights lazily or at once."""
    monkeypatch.setattr(storage, "SIZE_LIMIT", limit)
    monkeypatch.setattr("refmoe.golden.inputs.LAZY_BYTES", limit)
    write(tmp_path / "other")
    rows = [
        {row["name"]: row["sha256"] for row in json.loads((d / "manifest.json").read_bytes())["tensors"]}
        for d in (made, tmp_path / "other")
    ]
    assert rows[0] == rows[1]
    assert check(tmp_path / "other").differences == []


CASES = {
    "plain": {},
    "chain": {"profile": "chain"},
    "float64": {"profile": "float64"},
    "bf16": {"store": "bf16"},
    "fp16": {"store": "fp16"},
    "no way back": {"backward": False},
    "no tokens": {"tokens": 0},
    "another seed": {"seed": 2**63 + 11},
    "by table": {"config": tiny(routing={"selection": "hash", "hash_vocab_size": 9})},
}


@pytest.mark.parametrize("name", CASES)
def test_a_bundle_checks(name, tmp_path):
    write(tmp_path / "b", **CASES[name])
    checked = check(tmp_path / "b")
    assert checked.differences == []
    assert checked.tensors == len(checked.manifest["tensors"])


@pytest.mark.parametrize("preset", ["deepseek-v3", "switch-base-8", "gpt-oss-20b", "qwen1.5-moe-a2.7b"])
def test_presets_check_on_the_other_backend(preset, tmp_path):
    write(tmp_path / "b", refmoe.load_preset(preset, scale="minimal"))
    assert check(tmp_path / "b", backend="auto").differences == []


def test_narrow_tensors_are_written_as_codes(tmp_path):
    write(tmp_path / "b", store="bf16")
    with open_tensors(tmp_path / "b" / "tensors.safetensors") as reader:
        assert {n: reader.entries[n].dtype for n in ("x", "y", "routing.logits", "plan.row_slot")} == {
            "x": "BF16", "y": "BF16", "routing.logits": "F32", "plan.row_slot": "I64"}  # fmt: skip
        x = decode(reader.codes("x"), "bf16")
    assert np.array_equal(x, generate("x", (5, 4), 0, "bf16"))


# --- writing: all or nothing ------------------------------------------------------------------------------------------


def test_an_existing_directory_is_kept(made, tmp_path):
    before = contents(made)
    with pytest.raises(ValueError, match="does not exist"):
        write(made, seed=5)
    assert contents(made) == before
    write(tmp_path / "b")
    write(tmp_path / "b", seed=5, force=True)
    assert contents(tmp_path / "b") != before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b"]


@pytest.mark.parametrize("step", ["compute", "write_text"])
def test_a_failed_replacement_keeps_what_was_there(made, tmp_path, monkeypatch, step):
    def fail(*arguments, **options):
        raise OSError("disk full")

    write(tmp_path / "b")
    monkeypatch.setattr(bundle, step, fail)
    with pytest.raises(OSError, match="disk full"):
        write(tmp_path / "b", seed=5, force=True)
    assert contents(tmp_path / "b") == contents(made)
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_force_replaces_bundles_and_nothing_else(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").write_text("years")
    with pytest.raises(ValueError, match=r"found thesis\.tex"):
        write(tmp_path / "b", force=True)
    (tmp_path / "c.partial").mkdir()
    (tmp_path / "c.partial" / "thesis.tex").write_text("years")
    with pytest.raises(ValueError, match=r"found thesis\.tex"):
        write(tmp_path / "c")
    assert (tmp_path / "b" / "thesis.tex").exists() and (tmp_path / "c.partial" / "thesis.tex").exists()


@pytest.mark.parametrize("step", ["held_tensors", "write_text", "make_manifest", "compute"])
@pytest.mark.parametrize(
    "error", [OSError("disk full"), KeyboardInterrupt(), MemoryError()], ids=lambda e: type(e).__name__
)
def test_a_failed_run_leaves_nothing(tmp_path, monkeypatch, step, error):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(bundle, step, fail)
    with pytest.raises(type(error)):
        write(tmp_path / "deep" / "b")
    assert list((tmp_path / "deep").iterdir()) == []


def test_a_killed_runs_remains_are_replaced(tmp_path):
    (tmp_path / "b.partial").mkdir()
    (tmp_path / "b.partial" / "tensors.safetensors").write_bytes(b"half")
    write(tmp_path / "b")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b"]
    assert check(tmp_path / "b").differences == []


def default_signals():
    """A job in the background of a shell inherits an ignored SIGINT; the run under test must not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_real_interrupt_leaves_nothing(tmp_path):
    """SIGINT and SIGTERM at several moments of a run that takes seconds."""
    (tmp_path / "c.json").write_text(
        json.dumps({"hidden_size": 512, "intermediate_size": 512, "num_experts": 64, "top_k": 2})
    )
    command = [
        sys.executable,
        "-m",
        "refmoe",
        "golden",
        "--config",
        "c.json",
        "--out",
        "b",
        "--backend",
        "numpy",
        "--tokens",
        "256",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for number, (wait, code) in {signal.SIGINT: (0.0, 130), signal.SIGTERM: (0.3, 143)}.items():
        running = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=default_signals
        )
        until = time.monotonic() + 20
        while not (tmp_path / "b.partial").exists() and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(wait)
        running.send_signal(number)
        _, errors = running.communicate(timeout=30)
        assert running.returncode == code, errors
        assert "Traceback" not in errors
        assert len(errors.splitlines()) <= 1
        assert [p.name for p in tmp_path.iterdir()] == ["c.json"]


def test_a_balanced_assignment_is_held_with_its_proof_and_only_if_it_is_the_only_best_one(tmp_path):
    config = tiny(routing={"selection": "assignment", "selection_base": "logits", "score_fn": "sigmoid"}, top_k=1)
    logits = generate("logits", (8, 4), 1)
    indices, prices = solve_assignment(logits)
    arrays = {"x": generate("x", (8, 4), 0), "logits": logits, "topk_indices": indices, "assignment_duals": prices}
    write(tmp_path / "b", config, arrays)
    assert check(tmp_path / "b").differences == []
    zeros = np.zeros((8, 4), np.float32)
    indices, prices = solve_assignment(zeros)
    arrays |= {"logits": zeros, "topk_indices": indices, "assignment_duals": prices}
    with pytest.raises(ValueError, match=r"^given\.topk_indices: expected the only best assignment, got one of sev"):
        write(tmp_path / "c", config, arrays)
