"""Training in the lab: runs repeat bit for bit from their key, go on where they stopped, and say what they refuse."""

import html
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cases import same_bits

from refmoe import LossesConfig, MoEConfig, RoutingConfig
from refmoe.__main__ import main
from refmoe.lab import schedules, training
from refmoe.lab.checkpoints import read_checkpoint, write_checkpoint
from refmoe.lab.decoder import DecoderConfig, DecoderNumerics, DenseConfig
from refmoe.lab.optimisers import Optimiser
from refmoe.lab.runs import Interrupted
from refmoe.lab.text import Corpus, draw_batch, held_out_part, load_corpus, training_part
from refmoe.lab.training import TrainingConfig, run_key, train
from refmoe.lab.training_run import run_training
from refmoe.lab.trees import named
from refmoe.safetensors import FileError

MOE = MoEConfig(
    hidden_size=8, intermediate_size=4, num_experts=3, top_k=2,
    routing=RoutingConfig(score_fn="sigmoid", normalize=True, selection_bias=True, noise="fixed", noise_std=0.1),
    losses=LossesConfig(bias_update_rate=0.01),
)  # fmt: skip
CONFIG = TrainingConfig(
    DecoderConfig(8, 2, 12, (MOE, DenseConfig(8, 6))),
    Optimiser("adamw", weight_decay=0.1),
    schedules.warm_up_and_decay(3e-3, 2, 8),
    sequences=2,
)
CORPUS = load_corpus()
NUM = DecoderNumerics("chain", threads=1)


def steps_of(num, steps=3, config=CONFIG):
    made = list(train(training.start(config, 0, num), steps, config, CORPUS, 0, num))
    return made[-1][0], [step for _, step in made]


def same_state(a, b):
    pairs = [(named(a.params), named(b.params))] + [
        (getattr(a.optimiser, name), getattr(b.optimiser, name)) for name in ("first", "second")
    ]
    same = all(p.keys() == q.keys() and all(same_bits(p[n], q[n]) for n in p) for p, q in pairs)
    return same and a.step == b.step and a.optimiser[3:] == b.optimiser[3:]


# --- runs repeat ------------------------------------------------------------------------------------------------------


def test_backends_and_threads_train_to_the_same_bits():
    want, steps = steps_of(DecoderNumerics("chain", backend="numpy"))
    for num in (NUM, DecoderNumerics("chain", threads=2)):
        state, again = steps_of(num)
        assert same_state(state, want)
        assert [s.loss for s in again] == [s.loss for s in steps]


def test_a_step_says_what_it_did():
    state, steps = steps_of(NUM)
    assert state.step == 3 and [s.step for s in steps] == [0, 1, 2]
    assert [s.rate for s in steps] == [CONFIG.schedule.rate(t) for t in range(3)]
    assert abs(steps[0].loss - np.log(256)) < 0.1  # it knows nothing yet
    assert all(s.loads[1] is None and s.loads[0].sum() == 2 * 12 * 2 for s in steps)
    assert steps[0].record.blocks[0].feed_forward.routing.topk_indices.shape == (24, 2)
    assert steps[0].total == steps[0].loss and steps[0].losses == ({}, {})


def test_the_selection_bias_moves_against_the_load():
    first, (step,) = steps_of(NUM, 1)
    before = training.start(CONFIG, 0, NUM).params.blocks[0].feed_forward.selection_bias
    after, load = first.params.blocks[0].feed_forward.selection_bias, step.loads[0]
    assert (np.sign(after - before) == np.sign(load.mean() - load)).all() and (after != before).any()


def test_noise_is_drawn_anew_for_each_step_and_block():
    twice = TrainingConfig(DecoderConfig(8, 2, 12, (MOE, MOE)), sequences=2)
    tokens, _ = draw_batch(training_part(CORPUS), 2, 12, 0, 0)
    drawn = [training._given(tokens, twice.decoder, 0, step, NUM)[at].noise for step in (0, 1) for at in (0, 1)]
    assert len({noise.tobytes() for noise in drawn}) == 4


def test_a_small_model_learns():
    config = TrainingConfig(CONFIG.decoder, Optimiser("adamw"), schedules.constant(1e-2), sequences=4)
    _, steps = steps_of(NUM, 40, config)
    assert np.mean([s.loss for s in steps[-5:]]) < 4.0 < steps[0].loss


def test_a_held_out_text_is_evaluated_and_never_drawn(monkeypatch):
    read = []
    monkeypatch.setattr(training, "draw_batch", lambda data, *rest: (read.append(data), draw_batch(data, *rest))[1])
    steps_of(NUM, 1)
    assert len(read) == 1 and same_bits(read[0], training_part(CORPUS))
    data = np.concatenate([np.zeros(9000, np.uint8), np.ones(1000, np.uint8)])
    corpus = Corpus("made", "0", data)
    assert not training_part(corpus).any() and held_out_part(corpus).all()
    assert len(training_part(corpus)) + len(held_out_part(corpus)) == len(data)
    state, _ = steps_of(NUM)
    loss = training.evaluate(state.params, CONFIG, CORPUS, NUM)
    assert 4 < loss < 6 and training.evaluate(state.params, CONFIG, CORPUS, NUM) == loss


# --- the key and the text ---------------------------------------------------------------------------------------------


def test_the_key_names_all_that_decides_the_bits():
    key = run_key(CONFIG, CORPUS, 0, NUM)
    assert set(key) == {"spec_version", "seed", "text", "profile", "config"}
    assert json.loads(json.dumps(key))["config"]["decoder"]["blocks"][0]["kind"] == "moe"
    others = [
        run_key(CONFIG, CORPUS, 1, NUM),
        run_key(CONFIG, CORPUS._replace(digest="other"), 0, NUM),
        run_key(CONFIG, CORPUS, 0, DecoderNumerics("float64")),
        run_key(TrainingConfig(CONFIG.decoder), CORPUS, 0, NUM),
    ]
    assert all(other != key for other in others)
    assert run_key(CONFIG, CORPUS, 0, DecoderNumerics("chain", backend="numpy")) == key


def test_the_text_is_the_laws_or_a_file(tmp_path):
    assert b"mixture-of-experts layer" in CORPUS.data.tobytes() and len(CORPUS.digest) == 64
    (tmp_path / "own.txt").write_bytes(b"abc" * 400)
    own = load_corpus(tmp_path / "own.txt")
    assert own.data.tobytes() == b"abc" * 400 and own.source == "own.txt" and own.digest != CORPUS.digest
    for bad, text in [
        (tmp_path / "none.txt", r"text: expected a file that can be read, got '.*none.txt' \(No such file"),
        (tmp_path, r"text: expected a file that can be read, got .*; give another, or leave it out for the text of"),
    ]:
        with pytest.raises(ValueError, match=text):
            load_corpus(bad)
    (tmp_path / "short.txt").write_bytes(b"abc")
    with pytest.raises(ValueError, match="text: expected at least 1024 bytes, got 3 in "):
        load_corpus(tmp_path / "short.txt")


def test_a_batch_is_windows_and_the_bytes_after_them():
    data = np.arange(200, dtype=np.uint8)
    tokens, targets = draw_batch(data, 5, 20, 0, 3)
    assert (targets == tokens + 1).all() and (np.diff(tokens, axis=1) == 1).all() and tokens.shape == (5, 20)
    others = [draw_batch(data, 5, 20, seed, step)[0] for seed, step in [(0, 4), (1, 3)]]
    assert not any((other == tokens).all() for other in others)
    edge = draw_batch(data[:21], 3, 20, 0, 0)
    assert (edge[0][:, 0] == 0).all()
    with pytest.raises(ValueError, match="text: expected more than 20 bytes to read from, got 20; "):
        draw_batch(data[:20], 3, 20, 0, 0)


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_a_resumed_run_ends_with_the_same_bits_and_files(tmp_path):
    whole, losses = run_training(CONFIG, CORPUS, 0, 5, NUM, tmp_path / "whole", every=2)
    run_training(CONFIG, CORPUS, 0, 3, NUM, tmp_path / "parts")
    parts, again = run_training(CONFIG, CORPUS, 0, 5, NUM, tmp_path / "parts")
    assert same_state(parts, whole) and again == losses
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert names == ["checkpoint.safetensors", "losses.csv", "results.json"]
    for name in names:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
    assert json.loads((tmp_path / "whole" / "results.json").read_text())["last_loss"] == losses[-1]


def test_a_checkpoint_of_another_run_or_a_damaged_one_is_refused(tmp_path):
    run_training(CONFIG, CORPUS, 0, 1, NUM, tmp_path)
    path = tmp_path / "checkpoint.safetensors"
    raw = path.read_bytes()
    with pytest.raises(ValueError, match=r"tensors: expected a checkpoint of this run, got a run with other seed; "):
        run_training(CONFIG, CORPUS, 1, 2, NUM, tmp_path)
    with pytest.raises(ValueError, match=r"got a run with other config; "):
        run_training(TrainingConfig(CONFIG.decoder), CORPUS, 0, 2, NUM, tmp_path)
    with pytest.raises(ValueError, match="steps: expected at least 1, got 0; "):
        run_training(CONFIG, CORPUS, 0, 0, NUM, tmp_path)
    assert path.read_bytes() == raw
    path.write_bytes(raw[:-1])
    with pytest.raises(FileError):
        run_training(CONFIG, CORPUS, 0, 2, NUM, tmp_path)


def test_a_checkpoint_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    state, steps = steps_of(NUM, 1)
    key, path = run_key(CONFIG, CORPUS, 0, NUM), tmp_path / "run.safetensors"
    write_checkpoint(path, state, [steps[0].loss], key)
    raw = path.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda handle: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_checkpoint(path, state, [0.0], key)
    assert path.read_bytes() == raw and [p.name for p in tmp_path.iterdir()] == ["run.safetensors"]
    again, losses = read_checkpoint(path, training.start(CONFIG, 0, NUM), key)
    assert same_state(again, state) and losses == [steps[0].loss]


# --- Ctrl-C -----------------------------------------------------------------------------------------------------------


def test_ctrl_c_finishes_the_step_keeps_it_and_says_where(tmp_path):
    def press(made):
        if made.step == 1:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match=r"interrupted: 2 of 4 steps are kept in .*checkpoint\.safetensors; the same"):
        run_training(CONFIG, CORPUS, 0, 4, NUM, tmp_path / "parts", progress=press)
    parts, _ = run_training(CONFIG, CORPUS, 0, 4, NUM, tmp_path / "parts")
    whole, _ = run_training(CONFIG, CORPUS, 0, 4, NUM, tmp_path / "whole")
    assert same_state(parts, whole)
    assert signal.getsignal(signal.SIGINT) is before


def test_the_command_trains_goes_on_and_exits_130_after_ctrl_c(tmp_path, capsys):
    words = ["-m", "refmoe", "lab", "train", "--size", "small", "--sequences", "1", "--out", str(tmp_path / "run")]
    command = [sys.executable, *words, "--steps", "100000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().startswith("step 1 of 100000: loss 5.")
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    assert process.returncode == 130
    done = int(re.search(r"interrupted: (\d+) of 100000 steps are kept in .*/run/checkpoint\.safetensors; ", said)[1])
    assert done >= 1 and said.count("\n") == 1 and (tmp_path / "run" / "checkpoint.safetensors").exists()
    assert main([*words[2:], "--steps", str(done + 1)]) == 0
    assert f"{done + 1} steps are in" in capsys.readouterr().out


def test_the_report_shows_the_curve_the_command_and_the_key(tmp_path, capsys):
    run, page = tmp_path / "lab" / "mine", tmp_path / "lab" / "report.html"
    words = ["lab", "train", "--size", "small", "--steps", "2", "--sequences", "1", "--seed", "3"]
    assert main([*words, "--out", str(run)]) == 0
    assert f"refmoe lab report --runs {run}" in capsys.readouterr().out
    results = json.loads((run / "results.json").read_text())
    assert shlex.split(results["command"]) == ["refmoe", *words] and results["key"]["seed"] == 3
    assert (run / "picture.png").read_bytes().startswith(b"\x89PNG")
    for folder in (run, tmp_path / "lab"):
        assert main(["lab", "report", "--runs", str(folder), "--out", str(page)]) == 0
        told = html.unescape(re.sub("</?span>", "", page.read_text()))
        assert "data:image/png;base64," in told and results["command"] in told and results["key"]["text"] in told
        assert f"{results['last_loss']:.4f} at the last of 2; {results['held_out']:.4f}" in told
        assert "Decoder of 2 blocks, hidden size 64: 4 experts, top 2" in told


def test_a_folder_of_other_files_is_left_alone(tmp_path, capsys):
    (tmp_path / "results.json").write_text("mine")
    assert main(["lab", "train", "--size", "small", "--steps", "1", "--out", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert "expected an empty folder or a training run's" in told and told.count("\n") == 1
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("results.json", "mine")]


def test_the_command_refuses_in_one_line(tmp_path, capsys):
    for words, text in [
        (["--text", str(tmp_path / "none")], "text: expected a file that can be read, got"),
        (["--size", "huge"], "invalid choice: 'huge'"),
        (["--rate", "nan"], "expected a finite number above 0, as 0.001, got 'nan'"),
        (["--out", __file__], "--out: expected a folder, or a name at which one can be made, got"),
    ]:
        try:
            status = main(["lab", "train", "--steps", "1", *words])
        except SystemExit as exit:
            status = exit.code
        assert status == 2 and text in capsys.readouterr().err


def test_the_page_of_the_decoder_runs(capsys):
    page = (Path(__file__).parent.parent / "spec/lab/decoder.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    exec(compile(code, "spec/lab/decoder.md", "exec"), {})
    *steps, held_out = capsys.readouterr().out.splitlines()
    assert len(steps) == 20 and float(held_out) < 5.6
