"""`refmoe lab run --set`: every key of every experiment is refused beyond its bounds, and runs at its least."""

import json

import pytest

from refmoe.__main__ import main, parser
from refmoe.lab import command, results, settings
from refmoe.lab.experiment import Table
from refmoe.lab.experiments import EXPERIMENTS, capacity

KEYS = [(e.id, key) for e in EXPERIMENTS.values() for key in e.settings if key != "text"]
BAD = ("", "-1", "nan", "inf", "1e30", "1" + "0" * 30, "word", "1,word", "2,1", "\u0663")
SMALL = {"steps": 2, "tokens": 16, "experts": 4, "hidden": 4, "width": 4, "clusters": 2, "changes": 4, "sequences": 2,
         "ranks": 2, "context": 4}  # fmt: skip


@pytest.fixture(scope="module")
def command_line():
    return parser()


@pytest.mark.parametrize(("name", "key"), KEYS, ids=[f"{name}-{key}" for name, key in KEYS])
def test_what_a_key_cannot_be_is_refused_in_one_line_before_any_work(name, key, tmp_path, command_line, monkeypatch):
    monkeypatch.setattr(command, "run_experiment", lambda *about: pytest.fail("it ran"))
    zero = ("0",) * (not isinstance(EXPERIMENTS[name].settings[key], float))  # a rate may be nothing
    for bad in BAD + zero:
        args = command_line.parse_args(["lab", "run", name, "--set", f"{key}={bad}", "--out", str(tmp_path / "out")])
        with pytest.raises(ValueError, match=f"^--set {key}: expected [^\n]*$"):
            args.run(args)
    assert not list(tmp_path.iterdir())


def least(experiment, key):
    """The words of a small run in which a key is as small as it may be."""
    default = experiment.settings[key]
    if isinstance(default, tuple):
        low = settings.WHOLE.get(key, settings.OTHER)[0] if isinstance(default[0], int) else 0
        value = next(v for v in (f"{low},{low + 1}", "0.5,2") if accepted(experiment, f"{key}={v}"))
    elif isinstance(default, int):
        value = next(v for v in range(1, 40) if accepted(experiment, f"{key}={v}"))
    else:
        value = next(v for v in (0, 0.001) if accepted(experiment, f"{key}={v}"))
    return [*small_words(experiment), f"{key}={value}"]


def small_words(experiment):
    same = [k for k in SMALL if type(experiment.settings.get(k)) is int]
    return [f"{k}={SMALL[k]}" for k in same] + ["clusters=1,2"] * (experiment.id == "E8")


def accepted(experiment, word):
    try:
        return settings.merged_settings(experiment, [*small_words(experiment), word])
    except ValueError:
        return None


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_least_that_is_accepted_runs_and_concludes(name, monkeypatch):
    monkeypatch.setattr(capacity, "TRIALS", 2)
    experiment = EXPERIMENTS[name]
    for key in [key for key, default in experiment.settings.items() if not isinstance(default, str)]:
        made = settings.merged_settings(experiment, least(experiment, key))
        arms = experiment.arms(made)
        table = Table({(arm, 0): experiment.measure(arm, 0, made) for arm in arms}, arms, [0])
        told = results.to_json(results.summary(experiment, made, "key", table))  # no infinity, no NaN
        assert json.loads(told)["findings"], key


@pytest.mark.parametrize(("words", "said"), [
    (["E1", "--set", "steps=0"], "--set steps: expected a whole number from 1 to 100000, as 500, got '0'; write such"),
    (["E1", "--set", "top_k=9"], "--set top_k: expected at most experts, got 9 in E1"),
    (["E1", "--set", "experts=1024", "--set", "width=65536"], "arrays of at most 67108864 numbers"),
    (["E2", "--set", "coefficients=1,0.1"], "each above the one before"),
    (["E3", "--set", "rates=0,1"], "--set rates: expected rates above 0"),
    (["E5", "--set", "tokens=8"], "at least 16"),
    (["E7", "--set", "splits=1,3"], "--set splits: expected divisors of width, got 1,3 in E7"),
    (["E9", "--set", "top_k=8"], "below experts"),
    (["E11", "--set", "experts=128"], "at most 2^26"),
    (["E13", "--set", "context=100000"], "--set context: expected a whole number from 1 to 4096"),
    (["E13", "--set", "hidden=7"], "an even number"),
])  # fmt: skip
def test_settings_that_do_not_go_together_are_refused_with_what_would(words, said, tmp_path, capsys):
    assert main(["lab", "run", *words, "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [["run", "E13", "--set", "context=200", "--set"], ["train", "--text"]])
def test_a_text_too_short_for_the_context_is_refused_before_any_work(words, tmp_path, capsys):
    (tmp_path / "text").write_bytes(b"a mixture of experts " * 55)
    text = f"text={tmp_path / 'text'}" if words[0] == "run" else str(tmp_path / "text")
    assert main(["lab", *words, text, "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert "bytes held out, a tenth of it" in told and told.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", [["run", "E10"], ["train", "--size", "small", "--steps", "1"]])
@pytest.mark.parametrize("out", ["file", "file/below", ""])
def test_a_place_where_no_folder_can_be_is_refused(command, out, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert main(["lab", *command, "--out", str(tmp_path / out) if out else ""]) == 2
    told = capsys.readouterr().err
    assert "--out: expected" in told and told.count("\n") == 1 and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_arms_are_named_by_the_numbers_they_have():
    assert [settings.exact(n) for n in (0.0, 0.001, 1.25, 0.12345678, 1e-7)] == ["0", "0.001", "1.25", "0.12345678",
                                                                                "1e-07"]  # fmt: skip
