"""Chapter 7.4.1 and 7.6.1: layers that do not fit, runs that are interrupted, bundles that are narrowed."""

import errno
import json
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from golden_case import ROOT, add_one_bit, check, contents, forge, refused, reseal, tiny, write

import refmoe
from refmoe.golden import progress, storage, unfinished
from refmoe.golden.command import run as run_command
from refmoe.golden.narrow import narrowed
from refmoe.golden.verify import open_bundle
from refmoe.golden.weights import Makers
from refmoe.golden.work import FILE, Work

SHARED = {"hidden_size": 8, "intermediate_size": 6, "num_experts": 6, "top_k": 2, "experts": {
    "shared_intermediate_size": 4}}  # fmt: skip


@pytest.fixture
def lazy(monkeypatch):
    """Every matrix of the tiny case an expert at a time, every gradient in a sink, and every run a long one."""
    monkeypatch.setattr(storage, "SIZE_LIMIT", 0)
    monkeypatch.setattr("refmoe.golden.inputs.LAZY_BYTES", 0)
    monkeypatch.setattr("refmoe.golden.weights.CACHE_BYTES", 0)
    monkeypatch.setattr(unfinished, "WORK_BYTES", 1)


def case():
    return refmoe.MoEConfig.from_dict(SHARED)


class Stop(KeyboardInterrupt):
    """Ctrl-C at a chosen moment."""


def stopping(monkeypatch, after):
    """Lets `after` pieces be kept, then interrupts."""
    put, count = Work.put, [0]

    def counted(self, *record):
        if count[0] == after:
            raise Stop
        count[0] += 1
        put(self, *record)

    monkeypatch.setattr(Work, "put", counted)
    return count


# --- 7.4.1 unfinished work --------------------------------------------------------------------------------------------


def test_a_run_interrupted_at_any_piece_goes_on_and_ends_with_the_same_bytes(lazy, tmp_path, monkeypatch):
    write(tmp_path / "whole", case())
    total = stopping(monkeypatch, 10**9)
    write(tmp_path / "counted", case())
    pieces = total[0]
    assert pieces > 60
    for after in (1, 20, pieces // 2, pieces - 1):
        out = tmp_path / f"at{after}"
        with monkeypatch.context() as patch:
            stopping(patch, after)
            with pytest.raises(KeyboardInterrupt) as caught:
                write(out, case())
        assert caught.value.__notes__[0].startswith(f"{after} finished pieces are kept in {out}.work")
        assert [p.name for p in tmp_path.glob(f"at{after}*")] == [f"at{after}.work"]
        again = stopping(monkeypatch, 10**9)
        write(out, case())
        assert again[0] == pieces - after, "what was kept was made again"
        assert contents(out) == contents(tmp_path / "whole")
        assert not (tmp_path / f"at{after}.work").exists()


def test_the_law_does_not_know_that_a_layer_was_made_by_expert(lazy, tmp_path, monkeypatch):
    write(tmp_path / "lazy", case())
    assert check(tmp_path / "lazy").differences == []
    monkeypatch.setattr("refmoe.golden.inputs.LAZY_BYTES", 1 << 20)
    write(tmp_path / "eager", case())
    assert contents(tmp_path / "lazy") == contents(tmp_path / "eager")


def interrupted(out, monkeypatch, after=30, **more):
    with monkeypatch.context() as patch:
        stopping(patch, after)
        with pytest.raises(KeyboardInterrupt):
            write(out, case(), **more)


OTHER_CASES = {
    "seed": {"seed": 1},
    "tokens": {"tokens": 6},
    "store": {"store": "bf16"},
    "profile": {"profile": "chain"},
    "way back": {"backward": False},
    "container": {"container": "raw"},
    "stages": {"stages": ["y"]},
    "experts": {"experts": [1]},
}


@pytest.mark.parametrize("name", OTHER_CASES)
def test_work_of_another_case_is_refused_and_kept(lazy, tmp_path, monkeypatch, name):
    interrupted(tmp_path / "b", monkeypatch)
    before = (tmp_path / "b.work" / FILE).read_bytes()
    with pytest.raises(
        ValueError, match=r"^--out: expected \S+b\.work to hold unfinished work of this case, it is of "
    ):
        write(tmp_path / "b", case(), **OTHER_CASES[name])
    assert (tmp_path / "b.work" / FILE).read_bytes() == before
    assert not (tmp_path / "b").exists() and not (tmp_path / "b.partial").exists()


def test_work_in_another_format_is_refused_although_the_recipe_is_the_same(lazy, tmp_path, monkeypatch):
    interrupted(tmp_path / "b", monkeypatch, store="bf16")
    with pytest.raises(ValueError, match="it is of another"):
        write(tmp_path / "b", case(), store="fp16")


def test_work_of_other_inputs_is_refused(lazy, tmp_path, monkeypatch):
    x = np.ones((5, 8), np.float32)
    interrupted(tmp_path / "b", monkeypatch, arrays={"x": x})
    with pytest.raises(ValueError, match="it is of another"):
        write(tmp_path / "b", case(), arrays={"x": x * 2})
    write(tmp_path / "b", case(), arrays={"x": x})


def test_a_journal_cut_or_altered_anywhere_costs_time_but_no_bits(lazy, tmp_path, monkeypatch):
    write(tmp_path / "whole", case())
    interrupted(tmp_path / "b", monkeypatch)
    journal = (tmp_path / "b.work" / FILE).read_bytes()
    begin = journal.index(b"\n") + 1 + 32 + 64  # behind the key
    for place in range(begin, len(journal), len(journal) // 6):
        for data in (journal[:place], journal[:place] + bytes([journal[place] ^ 4]) + journal[place + 1 :]):
            (tmp_path / "b.work").mkdir(exist_ok=True)
            (tmp_path / "b.work" / FILE).write_bytes(data)
            write(tmp_path / "b", case(), force=True)
            assert contents(tmp_path / "b") == contents(tmp_path / "whole")
    (tmp_path / "b.work").mkdir()
    (tmp_path / "b.work" / FILE).write_bytes(journal[: begin - 1])
    with pytest.raises(ValueError, match="it is of another"):
        write(tmp_path / "b", case(), force=True)


def test_two_runs_do_not_share_their_work(tmp_path):
    work = Work(tmp_path / "w", "k")
    with pytest.raises(ValueError, match="expected no other run at work on it"):
        Work(tmp_path / "w", "k")
    work.put("a", 0, b"x")
    work.close()
    assert len(Work(tmp_path / "w", "k")) == 1


def test_short_runs_and_finished_ones_leave_no_work(tmp_path):
    write(tmp_path / "b", case())
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


INTERRUPTED = """
import os, sys
from refmoe.golden import inputs, storage, unfinished, weights, work
storage.SIZE_LIMIT = inputs.LAZY_BYTES = weights.CACHE_BYTES = 0
unfinished.WORK_BYTES = 1
put, left = work.Work.put, [int(sys.argv.pop(1))]
number = int(sys.argv.pop(1))
def counted(*record):
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), number)
    put(*record)
work.Work.put = counted
from refmoe.__main__ import main
sys.exit(main())
"""


def test_a_real_interrupt_says_what_is_kept_and_the_same_command_goes_on(lazy, tmp_path):
    """SIGINT, then SIGTERM, then to the end, in processes of their own."""
    (tmp_path / "c.json").write_text(json.dumps(SHARED))
    command = ["golden", "--config", "c.json", "--out", "b", "--backend", "numpy", "--tokens", "5"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

    def run(pieces, number):
        program = [sys.executable, "-c", INTERRUPTED, str(pieces), str(int(number)), *command]
        return subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True,
                              preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # fmt: skip

    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        done = run(20, number)
        assert done.returncode == code, done.stderr
        assert len(done.stderr.splitlines()) == 1 and "finished pieces are kept in b.work" in done.stderr
        assert sorted(p.name for p in tmp_path.iterdir()) == ["b.work", "c.json"]
    done = run(0, 0)
    assert (done.returncode, done.stderr) == (0, "")
    write(tmp_path / "straight", case())
    straight, resumed = (json.loads((tmp_path / d / "manifest.json").read_text()) for d in ("straight", "b"))
    assert straight["tensors"] == resumed["tensors"]


def test_a_small_shared_expert_beside_large_experts(tmp_path, monkeypatch):
    """Sinks for the routed gradients alone: the shared ones are arrays (this was refused)."""
    monkeypatch.setattr(storage, "SIZE_LIMIT", 500)
    write(tmp_path / "b", case())
    kinds = {row["name"]: row["storage"]["kind"] for row in held(tmp_path / "b")[0]["tensors"]}
    assert kinds["grads.params.w_up"] == "sample" and kinds["grads.params.shared.w_up"] == "stored"


FULL = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit, tests, least = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
sys.path.insert(0, tests)
import refmoe
from golden_case import write
from refmoe.golden import inputs, unfinished
inputs.LAZY_BYTES, unfinished.WORK_BYTES = 0, least
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    write("b", refmoe.MoEConfig.from_dict(CASE), seed=5, force=True)
except OSError as error:
    sys.exit(error.errno)
""".replace("CASE", repr(SHARED))


@pytest.mark.parametrize(("limit", "long"), [(9000, False), (1000, True)], ids=["the tensors", "the journal"])
def test_a_full_disk_keeps_the_old_bundle_and_the_work(tmp_path, limit, long):
    """The kernel refuses to let a file grow beyond the limit."""
    write(tmp_path / "b", case())
    before = contents(tmp_path / "b")
    program = [sys.executable, "-c", FULL, str(limit), str(ROOT / "tests"), str(1 if long else 1 << 40)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode in (errno.EFBIG, errno.ENOSPC), done.stderr
    assert contents(tmp_path / "b") == before
    assert sorted(p.name for p in tmp_path.iterdir()) == (["b", "b.work"] if long else ["b"])


# --- 7.6.1 narrowed bundles -------------------------------------------------------------------------------------------


def held(directory):
    with open_bundle(directory, refmoe.SPEC_VERSION) as (manifest, reader):
        return manifest, {name: reader.codes(name) for name in reader.entries}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("narrow") / "whole"
    write(directory, case())
    return held(directory)


@pytest.mark.parametrize("sampled", [False, True])
def test_experts_are_the_parts_of_the_whole_bundle(whole, tmp_path, monkeypatch, sampled):
    if sampled:
        monkeypatch.setattr(storage, "SIZE_LIMIT", 0)
        monkeypatch.setattr("refmoe.golden.inputs.LAZY_BYTES", 0)
    write(tmp_path / "b", case(), experts=[4, 1])
    manifest, got = held(tmp_path / "b")
    want, offsets = whole[1], whole[1]["plan.expert_offsets"]
    rows = np.r_[offsets[1] : offsets[2], offsets[4] : offsets[5]]
    for name in ("experts.x_rows", "experts.gate_rows", "experts.y_rows", "grads.d_y_rows", "grads.rows.d_x_rows",
                 "plan.row_slot"):  # fmt: skip
        assert np.array_equal(got[f"{name}.experts"], want[name][rows]) and name not in got
    for name in ("grads.params.w_gate", "grads.params.w_down"):
        assert np.array_equal(got[f"{name}.experts"], want[name][[1, 4]]) and name not in got
    assert manifest["limits"]["experts"] == [1, 4]
    digests = [{row["name"]: row["sha256"] for row in m["tensors"]} for m in (manifest, whole[0])]
    assert digests[0] == digests[1], "the digests are those of the whole tensors"
    if not sampled:
        others = {name for name in want if f"{name}.experts" not in got}
        assert {name for name in got if not name.endswith(".experts")} == others
        assert "grads.params.shared.w_gate" in others and "shared.gate_rows" in others
    assert check(tmp_path / "b").differences == []


def test_stages_are_names_or_what_stands_before_a_dot(whole, tmp_path):
    write(tmp_path / "b", case(), stages=["y", "routing", "grads.params.w_gate"], experts=[2])
    manifest, got = held(tmp_path / "b")
    want = {n for n in whole[1] if n == "y" or n.startswith("routing.")} | {"grads.params.w_gate.experts"}
    assert set(got) == want and manifest["limits"]["stages"] == ["grads.params.w_gate", "routing", "y"]
    kinds = {row["name"]: row["storage"]["kind"] for row in manifest["tensors"]}
    assert kinds["grads.d_x"] == "digest" and kinds["params.w_gate"] == "recipe"
    assert check(tmp_path / "b").differences == []


def test_inputs_of_ones_own_are_written_whatever_was_asked_for(tmp_path):
    write(tmp_path / "b", case(), arrays={"x": np.ones((3, 8), np.float32)}, stages=["y"])
    assert set(held(tmp_path / "b")[1]) == {"x", "y"}
    assert check(tmp_path / "b").differences == []


def test_a_forged_part_and_a_forged_digest_are_named(tmp_path):
    write(tmp_path / "b", case(), experts=[1], stages=["grads", "y"])
    forge(tmp_path / "b", "grads.params.w_up.experts", add_one_bit)
    assert [name for name, _ in check(tmp_path / "b").differences] == ["grads.params.w_up"]
    write(tmp_path / "c", case(), stages=["y"])

    def spoil(data):
        next(row for row in data["tensors"] if row["name"] == "experts.y_rows")["sha256"] = "0" * 64

    reseal(tmp_path / "c", spoil)
    assert [name for name, _ in check(tmp_path / "c").differences] == ["experts.y_rows"]
    for limits in ({"experts": [99]}, {"experts": ["1"]}, {"stages": [1]}, {"experts": {}}):
        reseal(tmp_path / "c", lambda data, limits=limits: data["limits"].update(limits))
        refused(tmp_path / "c")


def test_experts_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match=r"^--experts: expected ids from 0 to 3, got 4; correct it$"):
        narrowed(tiny(), [4])


# --- progress ---------------------------------------------------------------------------------------------------------


def test_progress_counts_what_is_done_and_guesses_the_rest():
    seen, now = [], [0.0]
    watch = progress.Progress({"a": (10, 1.0), "b": (100, 0.1)}, lambda *row: seen.append(row), lambda: now[0])
    watch.step("forward")
    watch.did("a", 5)
    watch.skip()
    for _ in range(5):
        now[0] += 1.0
        watch.did("a", 1)
    assert seen[0] == ("forward", 0.0, None)
    assert seen[-1] == ("forward", 0.5, 10.0)
    watch.did("unknown", 5)
    watch.did("b", 10**6)
    assert watch.share() == 1.0 and watch.left(99.0) == 0.0
    assert progress.line("forward", 0.5, 100.0) == "forward (50%, about 2 min left)"


@pytest.mark.parametrize("cache", [0, 1 << 30])
def test_the_expected_amounts_are_what_a_run_does(lazy, tmp_path, monkeypatch, cache):
    """All experts hit: then the expectation is exact, whether experts stay in the cache or are made twice."""
    monkeypatch.setattr("refmoe.golden.weights.CACHE_BYTES", cache)
    monkeypatch.setattr(unfinished, "CACHE_BYTES", cache)
    done = {}

    def did(self, kind, amount):
        done[kind] = done.get(kind, 0) + amount

    monkeypatch.setattr(Makers, "did", did)
    config = refmoe.MoEConfig.from_dict(SHARED | {"num_experts": 12, "top_k": 12})
    written = write(tmp_path / "b", config, tokens=4)
    num, rows = SimpleNamespace(dtype=np.float32), written.manifest["inputs"]
    want = unfinished.expected_amounts(config, num, 4, rows)
    assert done[progress_kind("bytes")] == want[progress_kind("bytes")]
    assert done[progress_kind("elements")] == want[progress_kind("elements")]


def progress_kind(word):
    return next(kind for kind in unfinished.PRICES if kind.startswith(word))


def test_nothing_is_shown_off_a_terminal_and_rich_is_not_needed(monkeypatch):
    said = []
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(isatty=lambda: False))
    progress.display(said.append)("forward", 0.25, 3.0)
    assert said == ["forward (25%, about 3 s left)"]  # `say` itself is silent off a terminal
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setitem(sys.modules, "rich.console", None)
    progress.display(said.append)("", 0.0, None)
    assert said[-1] == ""
    assert callable(run_command)
