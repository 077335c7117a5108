"""The README is true: its example runs, and its table of presets is the list of presets."""

import re
from pathlib import Path

from refmoe.models import presets
from refmoe.models.accounting.command import countable

README = Path(__file__).resolve().parents[1] / "README.md"
TEXT = README.read_text(encoding="utf-8")


def test_the_thirty_seconds_run_and_the_gradients_are_right(capsys):
    (code,) = re.findall(r"^```python\n(.*?)^```", TEXT, re.M | re.S)
    names = {}
    exec(compile(code, str(README), "exec"), names)
    assert names["record"].y.shape == names["x"].shape
    assert names["grads"].d_x.shape == names["x"].shape
    assert "ok: complex_step" in capsys.readouterr().out


def test_the_number_of_presets_is_the_number_there_is():
    (count,) = re.findall(r"^\| presets \| (\d+) published layers", TEXT, re.M)
    assert int(count) == len(presets.names())


def test_the_number_of_models_counted_is_the_number_there_is():
    (count,) = re.findall(r"flops of (\d+) published models \(`refmoe params`\)", TEXT)
    assert int(count) == len(countable([]))


def test_the_kinds_of_encodings_are_those_there_are():
    import refmoe

    (count,) = re.findall(r"^\| encodings \| (\w+) dispatch encodings", TEXT, re.M)
    assert {"ten": 10}[count] == len(refmoe.encodings.ENCODINGS)
