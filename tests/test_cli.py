"""The command line: what each command prints, its exit status, and errors of one sentence."""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import refmoe
from refmoe.__main__ import main, parser
from refmoe.golden import manifest, report
from refmoe.models import names

ROOT = Path(__file__).parent.parent
GOLDEN = ["golden", "qwen3-30b-a3b", "--scale", "minimal", "--tokens", "6", "--backend", "numpy"]


@pytest.fixture
def bundle(tmp_path, capsys):
    assert main([*GOLDEN, "--out", str(tmp_path / "b")]) == 0
    capsys.readouterr()
    return tmp_path / "b"


def refused(capsys, *arguments):
    """The only line on standard error of a command that must fail with status 2."""
    try:
        status = main([str(a) for a in arguments])
    except SystemExit as left:  # argparse's own refusals
        status = left.code
    out, err = capsys.readouterr()
    assert status == 2
    assert out == ""
    assert "Traceback" not in err
    (line,) = err.splitlines()
    return line


# --- golden -----------------------------------------------------------------------------------------------------------


def test_golden_reports_in_few_lines(tmp_path, capsys):
    assert main([*GOLDEN, "--out", str(tmp_path / "b")]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert len(out.splitlines()) <= 40
    digest = json.loads((tmp_path / "b" / "manifest.json").read_bytes())["digest"]
    assert "qwen3-30b-a3b (minimal scale)" in out and "6 tokens, forward and backward" in out
    for word in ("expert   0", "rounding_test", "seconds", "MiB", digest, "backend numpy", "BLAS"):
        assert word in out
    shares = [float(share) for share in re.findall(r"([\d.]+)%", out)]
    assert abs(sum(shares) - 100) < 0.01


def test_golden_takes_every_option(tmp_path, capsys):
    config = tmp_path / "c.json"
    config.write_text(
        json.dumps({"hidden_size": 4, "intermediate_size": 3, "num_experts": 4, "num_experts_per_tok": 2})
    )
    np.savez(tmp_path / "in.npz", x=np.ones((3, 4), np.float32), w_gate_up=np.ones((4, 4, 6), np.float32))
    arrays = ["--inputs", tmp_path / "in.npz", "--layout", "in_out", "--gate-up", "interleaved"]
    choices = ["--profile", "chain", "--store", "bf16", "--no-backward", "--seed", "3", "--backend", "numpy"]
    arguments = ["golden", "--config", config, *arrays, *choices, "--out", tmp_path / "b"]
    assert main([str(a) for a in arguments]) == 0
    assert "3 tokens, forward\n" in capsys.readouterr().out
    data = json.loads((tmp_path / "b" / "manifest.json").read_bytes())
    assert data["run"] == {"profile": "chain", "store": "bf16", "tokens": 3, "backward": False}
    assert data["inputs"]["params.w_gate"] == {"source": "stored"}
    assert data["inputs"]["params.w_down"]["seed"] == 3
    assert main(["check", str(tmp_path / "b"), "--backend", "numpy"]) == 0


def test_float64_has_its_own_store(tmp_path, capsys):
    assert main([*GOLDEN, "--profile", "float64", "--out", str(tmp_path / "b")]) == 0
    assert "store float64" in capsys.readouterr().out
    assert main([*GOLDEN, "--profile", "float64", "--store", "f64", "--out", str(tmp_path / "c")]) == 0
    assert (tmp_path / "b" / "manifest.json").read_bytes() == (tmp_path / "c" / "manifest.json").read_bytes()


MISTAKES = {
    "an unknown preset": (["golden", "qwen3-30b-a3", "--out", "b"], "qwen3-30b-a3b"),
    "no preset": (["golden", "--out", "b"], "got neither"),
    "two sources": (["golden", "mixtral-8x7b", "--config", "c.json", "--out", "b"], "got both"),
    "no file": (["golden", "--config", "none.json", "--out", "b"], "none.json"),
    "no JSON": (["golden", "--config", "bad.json", "--out", "b"], "bad.json"),
    "an impossible configuration": (["golden", "--config", "k.json", "--out", "b"], "top_k"),
    "an unknown key": (["golden", "--config", "key.json", "--out", "b"], "top_k"),
    "no output": (GOLDEN, "--out"),
    "negative tokens": ([*GOLDEN, "--tokens", "-1", "--out", "b"], "--tokens"),
    "a fraction of a token": ([*GOLDEN, "--tokens", "1.5", "--out", "b"], "whole number"),
    "a store without profile": ([*GOLDEN, "--store", "f64", "--out", "b"], "store"),
    "a store too narrow": ([*GOLDEN, "--profile", "float64", "--store", "bf16", "--out", "b"], "store"),
    "an unknown kernel": (["golden", "mixtral-8x7b", "--backend", "c", "--kernel", "neon", "--out", "b"], "neon"),
    "no inputs": ([*GOLDEN, "--inputs", "none.npz", "--out", "b"], "none.npz"),
    "inputs of another kind": ([*GOLDEN, "--inputs", "bad.json", "--out", "b"], ".npz"),
    "a directory in the way": ([*GOLDEN, "--out", "there"], "--force"),
    "a file in the way": ([*GOLDEN, "--force", "--out", "bad.json"], "bad.json"),
    "a parent that is a file": ([*GOLDEN, "--out", "bad.json/b"], "bad.json"),
    "no command": ([], "COMMAND"),
    "an unknown command": (["gold"], "gold"),
    "an unknown option": ([*GOLDEN, "--colour", "red", "--out", "b"], "--colour"),
    "gradients of nothing": (["gradients", "nothing"], "nothing"),
    "a missing value": (["golden", "mixtral-8x7b", "--tokens"], "--tokens"),
    "a number too long": (["gradients", "mixtral-8x7b", "--seed", "9" * 99], "at most 18 digits"),
    "a line break": (["gold\nen"], "gold"),
    "an argument too many": (["check", "a", "b"], "`refmoe check`, got 'b'"),
    "two of which one": (["compare", "a", "b", "--json", "--junit"], "not allowed with argument --json"),
    "a place that is not there": (["params", "mixtral-8x7b", "--plot", "none/a.png"], "a folder that exists"),
    "a picture of no kind": (["params", "mixtral-8x7b", "--plot", "a.gif"], ".png, .svg or .pdf"),
    "a roofline of no kind": (["bench", "--quick", "--plot", "roof"], ".png, .svg or .pdf"),
    "a routing of no kind": (["route", "--record", "c.npz", "--json", "o.json", "--plot", "x"], ".png, .svg or .pdf"),
    "a folder for a file": (["params", "mixtral-8x7b", "--plot", "there"], "which is a folder"),
    "a kernel to time": (["bench", "--quick", "--kernel", "none"], "refmoe: error: kernel: expected one of"),
    "a budget": (["bench", "--budget", "nan"], "a finite number above 0"),
    "threads without end": (["bench", "--threads", "100000"], "from 1 to 256"),
    "seeds without end": (["lab", "run", "E1", "--seeds", "99999999"], "from 1 to 1000"),
    "processes without end": (["lab", "run", "E1", "--jobs", "99999"], "from 1 to 256"),
    "sequences without end": (["lab", "train", "--sequences", "9999999999"], "from 1 to 4096"),
    "a report in a folder": (["lab", "report", "--runs", "there", "--out", "there"], "there"),
}


def every_command(parser, words=()):
    """The words of each command and sub-command that has no others below it, and its parser."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        yield words, parser
    for name, inner in below[0].choices.items() if below else ():
        yield from every_command(inner, (*words, name))


def mistakes_of(parser):
    """Words that a command cannot take: an unknown option, one without its value, or with what it cannot be."""
    yield ["--no-such-option"]
    for action in parser._actions:
        if action.option_strings and action.nargs is None:
            yield action.option_strings[-1:]
            if action.choices or (action.type and action.type.__name__ != "_words"):
                yield [action.option_strings[-1], "no such value"]


def test_every_mistake_of_every_command_is_one_line(capsys):
    whole, count = parser(), 0
    for words, inner in every_command(whole):
        for mistake in mistakes_of(inner):
            with pytest.raises(SystemExit) as left:
                whole.parse_args([*words, *mistake])
            out, err = capsys.readouterr()
            assert left.value.code == 2 and not out and re.fullmatch(r"refmoe: error: [^\n]+\n", err), (words, err)
            assert f"`refmoe {' '.join(words)} --help` shows" in err
            count += 1
    assert count > 80


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence_and_nothing_is_written(name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "k.json").write_text('{"hidden_size": 4, "intermediate_size": 3, "num_experts": 2, "top_k": 3}')
    (tmp_path / "key.json").write_text('{"hidden_size": 4, "intermediate_size": 3, "num_experts": 2, "topk": 1}')
    (tmp_path / "c.json").write_text("{}")
    (tmp_path / "there").mkdir()
    before = sorted(p.name for p in tmp_path.rglob("*"))
    arguments, message = MISTAKES[name]
    assert message in refused(capsys, *arguments)
    assert sorted(p.name for p in tmp_path.rglob("*")) == before


def test_tokens_that_contradict_x_are_refused(tmp_path, capsys):
    np.savez(tmp_path / "in.npz", x=np.ones((3, 7), np.float32))
    assert "--tokens: expected 3" in refused(capsys, *GOLDEN, "--inputs", tmp_path / "in.npz", "--out", tmp_path / "b")
    assert not (tmp_path / "b").exists()


# --- check ------------------------------------------------------------------------------------------------------------


def test_check_agrees(bundle, capsys):
    assert main(["check", str(bundle)]) == 0
    out, err = capsys.readouterr()
    assert "every bit agrees" in out
    assert err == ""


def test_check_finds_a_flipped_bit(bundle, capsys):
    path = bundle / "tensors.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 64
    path.write_bytes(raw)
    assert main(["check", str(bundle)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "tensors.safetensors: tensor 'y': altered" in err
    assert len(err.splitlines()) == 1


def test_check_lists_what_recomputation_contradicts(bundle, capsys):
    data = json.loads((bundle / "manifest.json").read_bytes())
    data["config"]["routing"]["scaling_factor"] = "0x1p+1"
    data = manifest.sealed({key: value for key, value in data.items() if key != "digest"})
    (bundle / "manifest.json").write_bytes(manifest.canonical(data))
    assert main(["check", str(bundle)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert "tensors differ" in lines[0]
    assert "tensor 'routing.topk_weights': 18 of 18 elements differ, first at [0, 0]" in lines[1]
    assert len(lines) <= 12


def test_check_says_what_it_cannot_read(tmp_path, bundle, capsys):
    assert "not a directory" in refused(capsys, "check", tmp_path / "nowhere")
    data = json.loads((bundle / "manifest.json").read_bytes()) | {"spec_version": 99}
    data = manifest.sealed({key: value for key, value in data.items() if key != "digest"})
    (bundle / "manifest.json").write_bytes(manifest.canonical(data))
    assert "SPEC_VERSION 99" in refused(capsys, "check", bundle)
    (bundle / "manifest.json").unlink()
    (bundle / "manifest.json").mkdir()
    assert "manifest.json: cannot be read" in refused(capsys, "check", bundle)


# --- the other commands -----------------------------------------------------------------------------------------------


def test_presets_lists_them_all(capsys):
    assert main(["presets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == list(names())


def test_presets_shows_what_nobody_could_verify(capsys):
    assert main(["presets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    below = {line.split()[0]: after for line, after in pairwise([*lines, ""]) if not line.startswith(" ")}
    assert re.match(r" +unverified: hidden_size, ", below["arctic"])
    assert "unverified" not in below["mixtral-8x7b"]


def test_params_counts_a_model(capsys):
    assert main(["params", "mixtral-8x7b"]) == 0
    assert "46,702,792,704" in capsys.readouterr().out
    assert main(["params", "no-such-model"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_info_and_kernels(capsys):
    assert main(["info"]) == 0
    assert re.search(rf"SPEC_VERSION +{refmoe.SPEC_VERSION}\n", capsys.readouterr().out)
    assert main(["kernels"]) == 0
    assert capsys.readouterr().out.strip()


@pytest.mark.filterwarnings("error")  # the command's own cases warn nobody
def test_vectors_check(capsys):
    assert main(["vectors", "--check"]) == 0
    assert re.fullmatch(r"\d+ suites made again, every byte agrees\n", capsys.readouterr().out)


def test_gradients(capsys):
    assert main(["gradients", "mixtral-8x7b"]) == 0
    assert "w_gate" in capsys.readouterr().out


def test_the_module_runs_as_a_program(bundle):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "refmoe"]
    done = subprocess.run([*command, "check", bundle], capture_output=True, text=True, env=environment, cwd=bundle)
    assert done.returncode == 0, done.stderr
    done = subprocess.run(
        [*command, "check", bundle / "none"], capture_output=True, text=True, env=environment, cwd=bundle
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_a_closed_pipe_is_no_traceback():
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    shell = shutil.which("sh")
    script = f"{sys.executable} -u -m refmoe presets | head -1"
    done = subprocess.run([shell, "-c", script], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.stdout.split()[0] == names()[0]
    assert "Traceback" not in done.stderr


def test_an_interrupt_is_one_line(capsys, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("refmoe.info.show_config", interrupted)
    assert main(["info"]) == 130
    assert capsys.readouterr().err.count("\n") == 1


# --- the chart --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("experts", [1, 8, 16, 17, 128, 512, 1000])
def test_the_load_chart_is_small_and_complete(experts):
    counts = np.arange(experts) % 7
    lines = report.load_chart(counts)
    assert len(lines) <= 17
    assert max(map(len, lines)) <= 100
    if experts > 16:
        assert sum(int(line.split()[-1]) for line in lines[1:]) == counts.sum()
        assert sum(line.count(mark) for line in lines[1:] for mark in report.MARKS[1:]) == np.count_nonzero(counts)


def test_bars_show_whatever_is_not_zero():
    assert report.bar(0, 10, 8) == ""
    assert report.bar(1, 1000, 8) == "█"
    assert report.bar(10, 10, 8) == "█" * 8
    assert report.load_chart(np.zeros(4, int))[0] == "  expert   0      0 "
