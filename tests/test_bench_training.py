"""The comparison of training speeds: what it prints follows from what was measured; its own side runs."""

import io
import json
import sys

import numpy as np
import pytest

from refmoe.bench import training, training_curve
from refmoe.bench.training_sides import batches_of, make_config, make_refmoe, operations
from refmoe.lab import training as lab
from refmoe.lab.decoder import DecoderNumerics
from refmoe.lab.text import load_corpus


def rows(wall, used, loss, parts):
    return {m: [[99.0, 99.0, 5.0, parts], [wall, used, loss, parts]] for m in training.MEASURES}


PARTS = {"forward": 0.25, "backward": 0.5, "optimiser": 0.125}
FOUND = {
    "refmoe default": rows(2.5, 1.5, 4.0, PARTS | {"products": 0.5}),
    "refmoe passive": rows(2.0, 1.0, 4.0, PARTS | {"products": 1.0}),
    "eager default": rows(3.0, 4.0, 4.125, PARTS),
    "eager passive": rows(3.5, 4.0, 4.125, PARTS),
    "grouped_mm default": rows(1.0, 2.0, 4.0, PARTS),
    "grouped_mm passive": rows(1.5, 2.0, 4.0, PARTS),
}


def test_the_table_follows_from_the_figures_and_the_faster_way_to_wait_counts():
    lines = list(training.report(FOUND))
    assert lines[2].split() == ["refmoe", "passive", "2.000", "1.000", "2.000", "1.000"]
    line = "step: refmoe is 0.50 times as fast as the faster of the others (grouped_mm default against refmoe passive)"
    assert f"{line}, 2.00 by processor time" in lines
    assert [line.split() for line in lines[10:13]] == [
        ["refmoe", "passive", "0.2500", "0.5000", "0.1250", "1.0000"],
        ["eager", "default", "0.2500", "0.5000", "0.1250"],
        ["grouped_mm", "default", "0.2500", "0.5000", "0.1250"],
    ]
    assert lines[-1] == "loss from 5.0000 to 4.0000; eager's is at most 1.2e-01 away"


def test_the_machine_bounds_a_step():
    config = make_config(1)
    token = 256 * 128 + 4 * (4 * 128 * 128 + 2 * 128 * 128 + 3 * 2 * 128 * 384 + 8 * 128)
    assert operations(config) == 6 * 128 * token
    lines = list(training.roofline(FOUND, config, operations(config) / 0.5))
    assert lines[1:] == ["  25% of refmoe passive's step", "  50% of its products; all else is 1.0000 s",
                         "  50% of grouped_mm default's step"]  # fmt: skip
    assert lines[0].endswith(" GFLOP: 500.0 ms of multiply-adds on registers alone (2 GFLOP/s), which is")


def test_our_side_answers_each_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("step\nmoe\n"))
    training.serve("refmoe", 1, 1)
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert abs(first[2] - 5.6) < 0.2 and second[2] is None and first[0] > 0 and second[1] > 0
    parts = first[3]
    assert {"forward", "backward", "optimiser"} <= set(parts) and all(0 < p < first[0] for p in parts.values())
    assert sum(parts[name] for name in ("forward", "backward", "optimiser")) <= first[0]


def test_our_side_trains_as_the_lab_does():
    """The same first values, batches and bits as a run of the seed."""
    config, num = make_config(1), DecoderNumerics("chain", threads=1)
    side, batches = make_refmoe(config, 1, seed=3), batches_of(config, 3)
    state = lab.start(config, 3, num)
    corpus = load_corpus()
    losses = [(side.step(*next(batches)), made.loss) for state, made in lab.train(state, 2, config, corpus, 3, num)]
    assert all(ours == want for ours, want in losses) and losses[0] != losses[1]
    assert side.held_out(*training_curve.held_out_batch(config)) == lab.evaluate(state.params, config, corpus, num)


def test_a_curve_has_its_two_ends_and_goes_down():
    curve = training_curve.train("refmoe", 1, 1, 3, 0)
    assert list(curve) == [0, 1, 2, 3]
    assert curve[3] < curve[0] - 0.1


CURVES = {"refmoe": [{0: 5.0, 8: 3.0}, {0: 6.0, 8: 3.5}], "grouped_mm": [{0: 5.0, 8: 3.25}, {0: 6.0, 8: 3.5}]}


def test_the_verdict_follows_its_rule():
    found = training_curve.judge(CURVES)
    assert [row["difference"] for row in found] == [0.0, -0.125]
    assert np.allclose([row["spread"] for row in found], [0.5**0.5, 0.125**0.5])
    assert training_curve.same(found) and list(training_curve.report(found))[-1].startswith("verdict: the same curve")
    far = {"refmoe": CURVES["refmoe"], "grouped_mm": [{0: 5.0, 8: 3.75}, {0: 6.0, 8: 3.75}]}
    found = training_curve.judge(far)
    assert not training_curve.same(found)
    assert list(training_curve.report(found))[-1].endswith("exceeds the spread over the seeds at step 8")


def test_curves_are_written_with_their_verdict(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training_curve, "_curve_of", lambda side, args, seed: CURVES[side][seed])
    training.main(["--curve", "8", "--seeds", "2", "--out", str(tmp_path / "c.json")])
    made = json.loads((tmp_path / "c.json").read_text())
    assert made["same"] is True and made["steps"] == 8 and made["curves"]["refmoe"][1]["8"] == 3.5
    assert "seed 1, grouped_mm: 3.5000 after 8 steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--rounds", "1"], "expected at least 2 rounds, 1 thread and 1 sequence; give more"),
        (["--curve", "5", "--seeds", "1"], "expected a curve of at least 1 step and 2 seeds; give more"),
        (["--out", "x.json"], "--out: expected --curve STEPS with it"),
    ],
)
def test_senseless_counts_are_refused(words, text, capsys):
    with pytest.raises(SystemExit):
        training.main(words)
    assert text in capsys.readouterr().err
