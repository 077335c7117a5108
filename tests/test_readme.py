"""The README is true: its example runs, and its table of presets is the list of presets."""

import re
from pathlib import Path

from refmoe.models import presets

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
