"""The comparison of training speeds: what it prints follows from what was measured; its own side runs."""

import io
import json
import sys

import pytest

from refmoe.bench import training


def test_the_table_follows_from_the_figures():
    rows = {"refmoe": (2.0, 1.0), "eager": (3.0, 4.0), "grouped_mm": (1.0, 2.0)}
    found = {
        side: {m: [[99.0, 99.0, 5.0], [wall, used, 4.0 + (side == "eager") / 8]] for m in training.MEASURES}
        for side, (wall, used) in rows.items()
    }
    lines = list(training.report(found))
    assert lines[1].split() == ["refmoe", "2.000", "1.000", "2.000", "1.000"]
    assert "step: refmoe is 0.50 times as fast as the faster of the others, 2.00 by processor time" in lines
    assert lines[-1] == "loss from 5.0000 to 4.0000; eager's is at most 1.2e-01 away"


def test_our_side_answers_each_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("step\nmoe\n"))
    training.serve("refmoe", 1, 1)
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert abs(first[2] - 5.6) < 0.2 and second[2] is None and first[0] > 0 and second[1] > 0


def test_senseless_counts_are_refused(capsys):
    with pytest.raises(SystemExit):
        training.main(["--rounds", "1"])
    assert "expected at least 2 rounds, 1 thread and 1 sequence; give more" in capsys.readouterr().err
