"""The README is true: its example runs, its counts are what there is, its list of fields is generated."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from refmoe.config import MoEConfig, fields
from refmoe.models import generated, presets
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
    assert {"eleven": 11}[count] == len(refmoe.encodings.ENCODINGS)


# --- the fields ------------------------------------------------------------------------------------------------------


def test_the_lists_of_fields_are_up_to_date():
    """README.md, spec/fields.md and the schema of presets: `refmoe fields --write` brings them up to date."""
    assert [str(path) for path, _ in generated.stale()] == []


def test_every_field_says_what_it_means():
    rows = list(fields.field_rows(MoEConfig))
    assert [row.path for row in rows if not row.about] == []
    assert {"hidden_size", "routing.score_fn", "losses.balance", "losses.balance.scope"} <= {row.path for row in rows}
    listed = generated.compact_list() + TEXT
    assert all(f"`{row.path.rpartition('.')[2]}`" in listed for row in rows)


@dataclass
class Sample:
    """A section.   Spec 0"""

    one: int = 1  # first
    # above
    two: str = "# not a comment"
    three: str = field(
        default="x",  # inside
        metadata={"one_of": ("x", "y")},
    )  # and after
    four: bool = False


def test_comments_are_read_where_they_stand():
    assert fields.field_comments(Sample) == {"one": "first", "two": "above", "three": "inside and after"}
    rows = {row.path: row for row in fields.field_rows(Sample)}
    assert (rows["three"].values, rows["three"].default, rows["four"].values) == ('"x", "y"', '"x"', "False, True")


def test_generated_files_are_written_only_when_stale(tmp_path, monkeypatch):
    (tmp_path / "presets").mkdir()
    monkeypatch.setattr(generated, "spec_folder", lambda: tmp_path / "spec")
    monkeypatch.setattr(generated, "presets_folder", lambda: tmp_path / "presets")
    (tmp_path / "spec").mkdir()
    (tmp_path / "README.md").write_text(f"a\n{generated.BEGIN}\nwhat was there\n{generated.END}\nb\n")
    (tmp_path / "presets/schema.json").write_text('{"$defs": {}}')
    written = generated.write()
    assert [path.name for path in written] == ["README.md", "fields.md", "schema.json"] and generated.write() == []
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("a\n") and text.endswith("b\n") and "what was there" not in text and "`score_fn`" in text


# --- what can be reached ---------------------------------------------------------------------------------------------


def test_every_command_stands_in_the_table():
    from refmoe.__main__ import parser

    (table,) = re.findall(r"^\| `refmoe \.\.\.` \|.*?\n\n", TEXT, re.M | re.S)
    named = {words.split()[0] for words in re.findall(r"`([^`]+)`", table)} - {"refmoe"}
    (commands,) = (action.choices for action in parser()._actions if action.choices)
    assert named == set(commands)


def test_every_wing_is_an_attribute():
    """`refmoe.testing`, as this page writes it, after `import refmoe` alone."""
    import refmoe

    wings = re.findall(r"^  (\w+)/ +wing: ", TEXT, re.M)
    assert len(wings) > 5
    assert [wing for wing in wings if getattr(refmoe, wing).__name__ != f"refmoe.{wing}"] == []
    assert set(wings) <= set(dir(refmoe))
