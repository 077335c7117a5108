"""The lab's frame: tasks, measures, runs that repeat, resume and refuse, results that are computed."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from refmoe.__main__ import main
from refmoe.lab import measures, page, results, runs, settings, tasks
from refmoe.lab.experiment import Experiment, Finding, Table, check
from refmoe.lab.experiments import EXPERIMENTS, find_experiments
from refmoe.models.presets import spec_folder

ROOT = Path(__file__).parent.parent
E1, E4, E10 = (EXPERIMENTS[name] for name in ("E1", "E4", "E10"))
TINY = {"steps": 3, "tokens": 32}


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# --- tasks and measures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", tasks.TASKS)
def test_a_batch_is_a_function_of_seed_and_step(kind):
    first, again, later, other = (
        tasks.TASKS[kind](seed).batch(step, 24) for seed, step in ((1, 0), (1, 0), (1, 1), (2, 0))
    )
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first.x, later.x) and not np.array_equal(first.target, other.target)


def test_the_target_of_a_cluster_is_its_own_map():
    task = tasks.Clusters(3, clusters=4)
    batch = task.batch(0, 40)
    _, maps, _ = tasks._maps(3, 4, 12)
    wanted = np.tanh(np.einsum("td,tmd->tm", batch.x, maps[batch.label]))
    assert np.abs(batch.target - wanted).max() < 1e-13


def test_domain_sequences_have_one_cluster_each():
    batch = tasks.Clusters(0, sequence_length=8).batch(2, 64)
    for s in range(8):
        assert len(set(batch.label[batch.sequence_ids == s])) == 1


def test_zipf_clusters_come_as_one_over_their_rank():
    counts = np.bincount(tasks.Clusters(0, clusters=4, skew="zipf").batch(0, 20000).label)
    assert np.abs(counts / counts.sum() * sum(1 / c for c in (1, 2, 3, 4)) - [1, 1 / 2, 1 / 3, 1 / 4]).max() < 0.02


def test_a_student_with_the_teachers_parameters_makes_no_error():
    task = tasks.Teacher(5)
    config, params = tasks._teacher(5, 8, 12)
    from refmoe.lab.student import judge

    numbers = judge(params, config, task, 64)
    assert numbers["error"] == 0 and numbers["matched_accuracy"] == 1 and numbers["shared_information"] == 1


def test_measures_on_numbers_known_by_hand():
    assert measures.dead_experts(np.array([9, 11, 180, 200])) == 1  # a tenth of an even share is 10
    assert measures.dead_experts(np.array([8, 0, 1, 71])) == 2 and measures.max_violation(np.array([3, 1])) == 0.5
    assert abs(measures.entropy(np.array([1, 1, 2])) - 1.5 * math.log(2)) < 1e-15
    a = np.array([0, 0, 1, 1, 2, 2])
    assert measures.shared_information(a, (a + 1) % 3) == 1 and measures.shared_information(a, a * 0) == 0
    assert measures.matched_accuracy(np.array([1, 1, 0, 2]), np.array([0, 0, 1, 1]), 3) == 0.75
    assert measures.normalised_error(np.zeros((2, 1)), np.array([[-1.0], [1.0]])) == 1
    assert measures.cosine(np.array([3.0, 4.0]), np.array([4.0, 3.0])) == 0.96


@pytest.mark.parametrize(("values", "p"), [
    ([1] * 5, 0.0625), ([1, 1, 1, 1, -1], 0.375), ([0, 0], 1), ([-1] * 8, 2**-7),
])  # fmt: skip
def test_the_sign_test_is_exact_and_two_sided(values, p):
    assert measures.sign_test(values)["p"] == p


# --- what is said -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("values", "start"), [
    ([1, 2], "yes, in every one of 2"), ([-1, -2], "no, against it in all 2"), ([0, 0], "no difference"),
    ([1, -1], "not settled: for it 1, against it 1"), ([1, 0], "not settled: for it 1, against it 0, neither 1"),
])  # fmt: skip
def test_null_and_opposite_results_are_said(values, start):
    judged = Finding("name", "A is more than B", values).judged()
    assert judged["verdict"].startswith(start) and start in judged["sentence"]


def test_a_gap_beyond_its_limit_is_against_the_claim():
    assert check("identity", "It holds", [1e-13, 2e-12], 1e-12).values == [1, -1]


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=list(EXPERIMENTS))
def test_every_experiment_has_a_page_that_names_its_settings_and_no_result(experiment):
    text = (spec_folder() / "lab" / f"{experiment.id}.md").read_text(encoding="utf-8")
    assert text.startswith(f"# {experiment.id}: ") and len(text.splitlines()) <= 60
    parts = "Question", "What would refute it", "The picture", "Elsewhere"
    assert [part for part in parts if f"**{part}.**" not in text] == []
    assert not [name for name in experiment.settings if f"`{name}`" not in text]


def told_by(experiment, numbers):
    """The findings of made-up numbers: arm -> name -> number, one seed."""
    units = {(arm, 0): {"numbers": values} for arm, values in numbers.items()}
    return {f.name: f.values[0] for f in experiment.findings(Table(units, numbers, [0]), experiment.settings)}


def test_the_signs_of_the_headline_findings():
    bad = {"dead": 3, "error": 0.5, "shared_information": 0.25, "covariance": 0.125, "identity_gap": 0.0}
    good = {"dead": 0, "error": 0.25, "shared_information": 0.75, "covariance": 0.625, "identity_gap": 1e-11}
    told = told_by(E1, {"none": bad, "loss": good, "bias": good})
    assert told["dead_experts"] == told["dead_experts_bias"] == 3
    assert told["error_loss"] == told["error_bias"] == 0.25 and told["information"] == 0.5
    told = told_by(E4, {"batch": good, "sequence": bad})
    assert told == {"information": 0.5, "error": 0.25, "covariance": 0.5, "identity": -1}
    dense = EXPERIMENTS["E8"]
    errors = {"moe 1": 2.0, "active 1": 2.5, "total 1": 3.0, "moe 16": 1.0, "active 16": 4.0, "total 16": 0.5}
    told = told_by(dense, {arm: {"error": error} for arm, error in errors.items()})
    assert told == {"active": 3, "total": -0.5, "growth": 2.5, "homogeneous": 0.5}


# --- the experiments themselves, small ----------------------------------------------------------------------------


def test_zeros_of_the_gradient_stand_where_the_law_has_them():
    measured = {arm: E10.measure(arm, 7, E10.settings | {"tokens": 40})["numbers"] for arm in E10.arms({})}
    assert measured["softmax"] == measured["balance loss"] == {"chosen": 1, "not_chosen": 1}
    assert measured["softmax, renormalised"] == measured["sigmoid"] == {"chosen": 1, "not_chosen": 0}
    assert measured["softmax, K 1, renormalised"] == {"chosen": 0, "not_chosen": 0}


def test_a_stray_gradient_would_be_found():
    units = {(arm, 0): E10.measure(arm, 0, E10.settings | {"tokens": 16}) for arm in E10.arms({})}
    told = {f.name: f.values for f in E10.findings(Table(units, E10.arms({}), [0]), {})}
    assert told["table"] == [1]
    units["sigmoid", 0]["numbers"]["not_chosen"] = 1 / 96
    assert {f.name: f.values for f in E10.findings(Table(units, E10.arms({}), [0]), {})}["table"] == [-1]


def test_the_covariance_identity_holds_and_a_wrong_term_would_show(monkeypatch):
    module = sys.modules[E4.measure.__module__]
    small = E4.settings | TINY | {"sequences": 4}
    assert E4.measure("batch", 1, small)["numbers"]["identity_gap"] < 1e-14
    plain = module._covariance
    monkeypatch.setattr(module, "_covariance", lambda a, b: plain(a, b) * len(a) / (len(a) - 1))
    assert E4.measure("batch", 1, small)["numbers"]["identity_gap"] > 1e-6


def test_a_short_training_lowers_the_error():
    series = E1.measure("bias", 0, E1.settings | {"steps": 80, "tokens": 64})["series"]
    assert series["errors"][-1] < 0.8 * series["errors"][0]


# --- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def undrawn(monkeypatch):
    """Pictures take longest; most tests are about the rest."""
    monkeypatch.setattr(results, "write_picture", lambda *about: None)


def small_run(out, capsys, *more):
    status = main(["lab", "run", "E1", "--out", str(out), "--set", "steps=3", "--set", "tokens=32", *more])
    return status, capsys.readouterr()


def test_a_run_leaves_its_files_and_repeats_bit_for_bit(tmp_path, capsys, monkeypatch):
    for name, jobs in (("a", "1"), ("b", "2")):
        status, told = small_run(tmp_path / name, capsys, "--seeds", "2", "--jobs", jobs)
        assert status == 0 and "sign test p" in told.out
        monkeypatch.setattr(results, "write_picture", lambda *about: None)  # one picture is enough
    a, b = contents(tmp_path / "a"), contents(tmp_path / "b")
    picture = a.pop(Path("E1-collapse/picture.png"))
    assert a == b and len(a) == 6 + 4
    found = json.loads((tmp_path / "a/E1-collapse/results.json").read_text())
    rows = (tmp_path / "a/E1-collapse/seeds.csv").read_text().splitlines()
    assert len(rows) == 1 + 6 and rows[1].startswith("none,0,")
    numbers = found["arms"]
    wanted = [a - b for a, b in zip(numbers["none"]["dead"]["values"], numbers["loss"]["dead"]["values"], strict=True)]
    assert found["findings"][0]["values"] == wanted
    assert picture.startswith(b"\x89PNG")


def test_ctrl_c_keeps_what_is_finished_and_the_same_command_goes_on(tmp_path, capsys, monkeypatch, undrawn):
    small_run(tmp_path / "whole", capsys, "--seeds", "2", "--jobs", "1")
    plain, calls = runs._measure, []

    def interrupted(work):
        calls.append(work)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return plain(work)

    monkeypatch.setattr(runs, "_measure", interrupted)
    status, told = small_run(tmp_path / "cut", capsys, "--seeds", "2", "--jobs", "1")
    assert status == 130 and "2 of 6 runs of E1 are kept in" in told.err and "goes on from there" in told.err
    assert len(list((tmp_path / "cut/E1-collapse/seeds").iterdir())) == 2
    assert not (tmp_path / "cut/E1-collapse/results.json").exists()
    calls.clear()
    monkeypatch.setattr(runs, "_measure", lambda work: calls.append(work) or plain(work))
    assert small_run(tmp_path / "cut", capsys, "--seeds", "2", "--jobs", "1")[0] == 0
    assert len(calls) == 4 and contents(tmp_path / "cut") == contents(tmp_path / "whole")


def hears_ctrl_c():
    """A job in the background of a shell inherits an ignored SIGINT; the run under test must not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_ends_the_workers_too(tmp_path):
    """The real signal, to a real process with two workers."""
    command = [sys.executable, "-m", "refmoe", "lab", "run", "E1", "--out", str(tmp_path), "--jobs", "2", "--set",
               "steps=20", "--set", "tokens=32", "--seeds", "400"]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True,
                               preexec_fn=hears_ctrl_c)  # fmt: skip
    seeds = tmp_path / "E1-collapse/seeds"
    while not (seeds.exists() and list(seeds.glob("*.json"))):
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130 and "are kept in" in told and "Traceback" not in told
    kept = list(seeds.glob("*"))
    assert kept and all(json.loads(p.read_text())["numbers"] for p in kept)


def test_a_folder_of_other_settings_is_refused_and_left_alone(tmp_path, capsys, undrawn):
    small_run(tmp_path, capsys, "--seeds", "1", "--jobs", "1")
    before = contents(tmp_path)
    status, told = small_run(tmp_path, capsys, "--seeds", "1", "--jobs", "1", "--set", "experts=4")
    assert status == 2 and "expected a run of these settings" in told.err and contents(tmp_path) == before
    (tmp_path / "E4-balance-scope").mkdir()
    (tmp_path / "E4-balance-scope/mine.txt").write_text("mine")
    assert main(["lab", "run", "E4", "--out", str(tmp_path)]) == 2
    assert "expected an empty folder or a run's" in capsys.readouterr().err


def test_every_key_differs_where_a_bit_may():
    keys = {results.run_key(E1, E1.settings), results.run_key(E4, E4.settings),
            results.run_key(E1, E1.settings | {"steps": 9}), results.run_key(E1, E1.settings, "digest")}  # fmt: skip
    assert len(keys) == 4


@pytest.mark.parametrize(("words", "said"), [
    (["E99"], "E1 (collapse)"),
    (["E1", "--set", "stepz=3"], "steps=500"),
    (["E1", "--set", "steps"], "steps=500"),
    (["E1", "--set", "rate=nan"], "a number from 0 to 1000"),
    (["E1", "--set", "task=chess"], "one of clusters, factors, teacher"),
    (["all", "--set", "nothing=1"], "coefficient"),
    (["E4", "--set", "sequences=7"], "--set sequences: expected a divisor of tokens"),
    (["E14", "--set", "ranks=7"], "--set ranks: expected a divisor of tokens, got 7 in E14"),
    (["E11", "--set", "experts=1"], "at least 2, to have a choice"),
    (["E12", "--set", "changes=33"], "at most half of tokens"),
    (["E2", "--set", "coefficients=0"], "2 to 16 numbers, each above the one before, as 0.0,0.001"),
    (["E7", "--set", "splits=1,"], "a whole number from 1 to 64"),
])  # fmt: skip
def test_what_is_not_there_is_refused_with_what_is(words, said, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["lab", "run", *words, "--out", str(out)]) == 2
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1 and not out.exists()


@pytest.mark.parametrize("text", ["missing.txt", "short.txt"])
def test_a_text_that_cannot_be_learned_is_refused_before_anything_runs(text, tmp_path, capsys):
    (tmp_path / "short.txt").write_text("short")
    words = ["lab", "run", "E13", "--set", f"text={tmp_path / text}", "--out", str(tmp_path / "out")]
    assert main(words) == 2
    told = capsys.readouterr().err
    assert "leave it out for the text of spec/" in told and told.count("\n") == 1 and not (tmp_path / "out").exists()


def test_the_key_of_a_text_is_its_bytes_and_not_its_name():
    e = EXPERIMENTS["E13"]
    pairs = ("a", "one"), ("b", "one"), ("a", "other")
    a, b, c = (results.run_key(e, e.settings | {"text": name}, digest) for name, digest in pairs)
    assert a == b != c


def test_out_must_be_a_folder(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert main(["lab", "run", "E10", "--out", str(tmp_path / "file")]) == 2
    assert "expected a folder" in capsys.readouterr().err


def test_settings_are_read_by_the_type_of_their_default():
    found = settings.merged_settings(E1, ["rate=0.25", "steps=7", "task=teacher"], quick=True)
    assert (found["rate"], found["steps"], found["task"]) == (0.25, 7, "teacher")
    assert found["tokens"] == E1.quick["tokens"] and settings.as_words(E1, E1.settings | {"steps": 7}) == ["steps=7"]
    assert find_experiments("all") == list(EXPERIMENTS.values()) and find_experiments("collapse") == [E1]


def test_the_list_names_every_experiment_and_setting(capsys):
    assert main(["lab", "list"]) == 0
    told = capsys.readouterr().out
    assert all(e.id in told and e.question in told and all(f"{s}=" in told for s in e.settings) for e in
               EXPERIMENTS.values())  # fmt: skip


# --- the page -------------------------------------------------------------------------------------------------------


class Balanced(HTMLParser):
    """Every element that is opened is closed, in order."""

    def __init__(self):
        super().__init__()
        self.open, self.wrong = [], []

    def handle_starttag(self, tag, attributes):
        self.open += [tag] * (tag not in ("meta", "img", "br"))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def test_the_page_holds_the_pictures_and_says_what_was_found(tmp_path, capsys):
    small_run(tmp_path, capsys, "--seeds", "1", "--jobs", "1")
    assert main(["lab", "report", "--runs", str(tmp_path)]) == 0
    page = re.sub("</?span>", "", (tmp_path / "report.html").read_text())
    found = json.loads((tmp_path / "E1-collapse/results.json").read_text())
    assert all(finding["sentence"].replace("'", "&#x27;") in page for finding in found["findings"])
    assert "data:image/png;base64," in page and "refmoe lab run E1 --set steps=3 --set tokens=32 --seeds 1" in page
    parser = Balanced()
    parser.feed(page)
    assert parser.open == [] and parser.wrong == []
    assert 'name="viewport"' in page and "http" not in page.replace("xmlns", "") and "src=" in page


def test_a_report_of_nothing_is_refused(tmp_path, capsys):
    assert main(["lab", "report", "--runs", str(tmp_path)]) == 2
    assert "expected a folder with finished runs" in capsys.readouterr().err and not list(tmp_path.iterdir())
    (tmp_path / "E1-collapse").mkdir()
    (tmp_path / "E1-collapse/results.json").write_text("{")
    assert main(["lab", "report", "--runs", str(tmp_path)]) == 2
    assert "expected a JSON object" in capsys.readouterr().err


def test_results_that_are_not_the_labs_are_refused(tmp_path, capsys):
    (tmp_path / "results.json").write_text("{}")
    assert main(["lab", "report", "--runs", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert "expected results of the lab" in told and told.count("\n") == 1 and not (tmp_path / "report.html").exists()


def test_the_pages_markdown_becomes_html():
    html = page.to_html("# A & b\n\ntext `x < y` **bold**\n\n* one\n* two\n\n```\na < b\n```")
    assert "<h3>A &amp; b</h3>" in html and "<code>x &lt; y</code> <strong>bold</strong>" in html
    assert html.count("<li>") == 2 and "<pre>a &lt; b" in html


def test_without_matplotlib_the_numbers_are_there_and_the_picture_is_said_to_be_missing(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, told = small_run(tmp_path, capsys, "--seeds", "1", "--jobs", "1")
    assert status == 0 and "refmoe[plot]" in told.out
    assert not (tmp_path / "E1-collapse/picture.png").exists() and (tmp_path / "E1-collapse/results.json").exists()


def test_the_table_of_experiments_is_in_order_and_whole():
    numbers = [int(name[1:]) for name in EXPERIMENTS]
    assert numbers == sorted(numbers) and len({e.name for e in EXPERIMENTS.values()}) == len(numbers)
    assert all(set(e.quick) <= set(e.settings) and isinstance(e, Experiment) for e in EXPERIMENTS.values())
