"""The C kernels in hostile surroundings, what they refuse, and how one is chosen."""

import ctypes
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from refmoe import kernels

if kernels.build_error() is not None:
    pytest.skip(f"no compiled module: {kernels.build_error()}", allow_module_level=True)

from kernel_calls import Buffer, differing_bits, ffi, lib
from kernel_cases import RULES, Case, tiny, wide
from kernel_oracle import Rule

KERNELS = [name for name, can_run, _ in kernels.available() if can_run]

each_kernel = pytest.mark.parametrize("kernel", KERNELS)
each_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.profile}-{rule.format}")


# ---- hostile surroundings ----

MXCSR_AT = 28  # bytes before it in glibc's fenv_t on x86-64
HOSTILE = {"flush": 0x9FC0, "toward zero": 0x7F80, "up and flush": 0xDFC0}


class Environment:
    """Runs the calling thread under another MXCSR, and restores it."""

    def __init__(self, mxcsr):
        self.libm, self.mxcsr = ctypes.CDLL("libm.so.6"), mxcsr
        self.old = ctypes.create_string_buffer(32)

    def __enter__(self):
        self.libm.fegetenv(self.old)
        changed = ctypes.create_string_buffer(self.old.raw, 32)
        changed[MXCSR_AT : MXCSR_AT + 4] = self.mxcsr.to_bytes(4, "little")
        self.libm.fesetenv(changed)
        return self

    def now(self):
        found = ctypes.create_string_buffer(32)
        self.libm.fegetenv(found)
        return int.from_bytes(found.raw[MXCSR_AT : MXCSR_AT + 4], "little") & 0xFFC0  # without the sticky flags

    def __exit__(self, *error):
        self.libm.fesetenv(self.old)


@pytest.mark.parametrize("mode", HOSTILE)
@each_rule
@each_kernel
def test_the_callers_floating_point_mode_changes_nothing(kernel, rule, mode):
    case = Case(tiny, rule, (9, 4), 17, 8)
    want = list(case.outputs(kernels.load(kernel, 1), rule))
    for count in (1, 2, 3):
        engine = kernels.load(kernel, count)
        with Environment(HOSTILE[mode]) as environment:
            got = list(case.outputs(engine, rule))
            after = environment.now()
        assert after == HOSTILE[mode]
        assert [differing_bits(a, b) for a, b in zip(got, want, strict=True)] == [0] * 7


def run_python(program):
    folder = Path(__file__).parent
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = [{str(folder)!r}, {str(folder.parent)!r}]\n{program}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)


def test_threads_born_under_a_hostile_mode_compute_alike():
    program = """
import test_kernels_refuse as t
rule = t.Rule("exact", "float32")
case = t.Case(t.tiny, rule, (9, 4), 17, 8)
engine = t.kernels.load(None, 3)
with t.Environment(t.HOSTILE["flush"]):
    got = list(case.outputs(engine, rule))  # the first parallel call: the pool is made here
want = list(case.outputs(t.kernels.load(None, 1), rule))
print([t.differing_bits(a, b) for a, b in zip(got, want)])
"""
    done = run_python(program)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[0, 0, 0, 0, 0, 0, 0]\n", "")


def test_fewer_threads_than_asked_for_do_the_work_of_all():
    program = """
import os
os.environ["OMP_THREAD_LIMIT"] = "2"
import test_kernels_refuse as t
rule = t.Rule("chain", "float32")
case = t.Case(t.wide, rule, (9, 300, 0, 40), 600, 24)
got = [list(case.outputs(t.kernels.load(None, threads), rule)) for threads in (5, 1)]
print([t.differing_bits(a, b) for a, b in zip(*got)])
"""
    done = run_python(program)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[0, 0, 0, 0, 0, 0, 0]\n", "")


def test_a_child_forked_after_a_parallel_call_computes_and_does_not_hang():
    program = """
import os, signal
import test_kernels_refuse as t
rule = t.Rule("chain", "float32")
case = t.Case(t.wide, rule, (9, 4), 17, 8)
engine = t.kernels.load(None, 2)
want = list(case.outputs(engine, rule))
child = os.fork()
if child == 0:
    signal.alarm(20)
    got = list(case.outputs(engine, rule))
    os._exit(sum(t.differing_bits(a, b) for a, b in zip(got, want)))
print(os.waitpid(child, 0)[1])
"""
    done = run_python(program)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


@each_kernel
def test_calls_from_several_threads_at_once(kernel):
    engine, rule = kernels.load(kernel, 2), Rule("exact", "float32")
    case = Case(wide, rule, (30, 40), 20, 25)
    want, wrong = list(case.outputs(kernels.load(kernel, 1), rule)), []

    def work():
        for _ in range(3):
            wrong.extend(differing_bits(a, b) for a, b in zip(case.outputs(engine, rule), want, strict=True))

    pool = [threading.Thread(target=work) for _ in range(4)]
    for thread in pool:
        thread.start()
    for thread in pool:
        thread.join()
    assert wrong == [0] * (4 * 3 * 7)
    assert engine.calls.total() == 4 * 3 * 7


# ---- refusals ----

HOW = ("kernel", "threads", "profile", "format", "force", "left_format", "right_format")
GOOD = {"e": 2, "n": 3, "m": 4, "k": 5}
REFUSED = [
    (lib.REFMOE_BAD_KERNEL, {"kernel": -1}), (lib.REFMOE_BAD_KERNEL, {"kernel": 99}),
    (lib.REFMOE_BAD_THREADS, {"threads": 0}), (lib.REFMOE_BAD_THREADS, {"threads": -5}),
    (lib.REFMOE_BAD_PROFILE, {"profile": lib.REFMOE_UNFUSED}), (lib.REFMOE_BAD_PROFILE, {"profile": 7}),
    (lib.REFMOE_BAD_FORMAT, {"format": lib.REFMOE_FLOAT64}), (lib.REFMOE_BAD_FORMAT, {"format": -1}),
    (lib.REFMOE_BAD_FORMAT, {"left_format": lib.REFMOE_FLOAT64}), (lib.REFMOE_BAD_FORMAT, {"left_format": -1}),
    (lib.REFMOE_BAD_FORMAT, {"right_format": lib.REFMOE_FLOAT64}), (lib.REFMOE_BAD_FORMAT, {"right_format": 12}),
    (lib.REFMOE_BAD_FORCE, {"force": 3}), (lib.REFMOE_BAD_FORCE, {"profile": lib.REFMOE_CHAIN, "force": 1}),
    (lib.REFMOE_BAD_SIZE, {"e": -1}), (lib.REFMOE_BAD_SIZE, {"n": -1}), (lib.REFMOE_BAD_SIZE, {"m": -1}),
    (lib.REFMOE_BAD_SIZE, {"k": -1}), (lib.REFMOE_BAD_SIZE, {"m": 2**61}),
    (lib.REFMOE_BAD_SIZE, {"m": 2**40, "k": 2**40}),
    (lib.REFMOE_BAD_OFFSETS, {"offsets": [0, 2, 4]}), (lib.REFMOE_BAD_OFFSETS, {"offsets": [1, 2, 3]}),
    (lib.REFMOE_BAD_OFFSETS, {"offsets": [0, 4, 3]}), (lib.REFMOE_BAD_OFFSETS, {"offsets": [0, -1, 3]}),
    (lib.REFMOE_BAD_POINTER, {"offsets": None}), (lib.REFMOE_BAD_POINTER, {"x": None}),
    (lib.REFMOE_BAD_POINTER, {"w": None}), (lib.REFMOE_NO_MEMORY, {"k": 2**50}),
]


@pytest.mark.parametrize(("status", "change"), REFUSED, ids=lambda value: str(value))
def test_bad_calls_are_refused_before_the_first_write(status, change):
    given = GOOD | {"kernel": 0, "threads": 2, "profile": lib.REFMOE_EXACT, "format": lib.REFMOE_FLOAT32, "force": 0}
    given |= {"offsets": [0, 2, 3], "x": np.ones((3, 5), np.float32), "w": np.ones((2, 4, 5), np.float32)} | change
    given = {"left_format": lib.REFMOE_FLOAT32, "right_format": lib.REFMOE_FLOAT32} | given
    how = ffi.new("refmoe_how *", {name: given[name] for name in HOW})
    held = [given[name] if given[name] is None else Buffer(np.asarray(given[name])) for name in ("offsets", "x", "w")]
    offsets, x, w = (ffi.NULL if buffer is None else buffer.pointer() for buffer in held)
    out = Buffer((3, 4), np.float32)
    sizes = [given[name] for name in GOOD]
    rest = ffi.NULL, ffi.NULL, out.pointer(), ffi.NULL
    got = lib.refmoe_grouped_matmul_f32(how, *sizes, offsets, x, w, *rest)
    assert got == status
    out.assert_untouched()


@pytest.mark.parametrize("count", (0, 3, -1))
def test_a_wrong_number_of_pairs_is_refused(count):
    out, how = Buffer((1, 1), np.float32), ffi.new("refmoe_how *", (0, 1, lib.REFMOE_EXACT, lib.REFMOE_FLOAT32, 0))
    offsets, pairs = ffi.new("int64_t[]", [0, 1]), ffi.new("refmoe_pair_f32[3]")
    rest = ffi.NULL, out.pointer(), ffi.NULL
    got = lib.refmoe_grouped_matmul_backward_x_f32(how, 1, 1, 1, offsets, count, pairs, *rest)
    assert got == lib.REFMOE_BAD_SIZE
    out.assert_untouched()


def test_the_accumulator_may_be_the_output():
    x, w = np.ones((2, 3), np.float32), np.ones((1, 4, 3), np.float32)
    out = np.arange(8, dtype=np.float32).reshape(2, 4)
    want = out + 3
    how = ffi.new("refmoe_how *", (len(KERNELS) - 1, 2, lib.REFMOE_EXACT, lib.REFMOE_FLOAT32, lib.REFMOE_FORCE_EXACT))
    at = {name: ffi.cast("float *", array.ctypes.data) for name, array in (("x", x), ("w", w), ("out", out))}
    plan = ffi.new("int64_t[]", [0, 2])
    rest = ffi.NULL, at["out"], at["out"], ffi.NULL
    status = lib.refmoe_grouped_matmul_f32(how, 1, 2, 4, 3, plan, at["x"], at["w"], *rest)
    assert (status, out.tolist()) == (lib.REFMOE_OK, want.tolist())


def test_arrays_that_are_not_dense_are_copied():
    engine, rng, rule = kernels.load(None, 1), np.random.default_rng(0), Rule("chain", "float32")
    x, w = wide(rng, (7, 5)), wide(rng, (1, 4, 5))
    want = engine.grouped_matmul(rule, x, w, [0, 7])
    strided = np.repeat(x, 2, axis=1)[:, ::2]
    unaligned = np.frombuffer(b"." + w.tobytes(), np.uint8)[1:].view(np.float32).reshape(w.shape)
    assert not strided.flags.c_contiguous and not unaligned.flags.aligned
    assert differing_bits(engine.grouped_matmul(rule, strided, unaligned, [0, 7]), want) == 0


X, W = np.ones((3, 5), np.float32), np.ones((2, 4, 5), np.float32)
PAIR = X[:, :4], W
BAD_ARGUMENTS = [  # error, message, method, arguments after the rule, keywords
    (TypeError, "x_rows: expected a NumPy array, got list", "", (X.tolist(), W, [0, 1, 3]), {}),
    (TypeError, "w: expected native float32, got <f8", "", (X, W.astype(np.float64), [0, 1, 3]), {}),
    (TypeError, "x_rows: expected native float32, got >f4", "", (X.astype(">f4"), W, [0, 1, 3]), {}),
    (ValueError, r"x_rows: expected shape \(any, 5\), got \(5, 3\)", "", (X.T, W, [0, 1, 3]), {}),
    (ValueError, r"w: expected shape \(any, any, any\)", "", (X, W[0], [0, 1, 3]), {}),
    (ValueError, r"bias: expected shape \(2, 4\)", "", (X, W, [0, 1, 3]), {"bias": W[0]}),
    (ValueError, r"acc: expected shape \(3, 4\)", "", (X, W, [0, 1, 3]), {"acc": X}),
    (ValueError, r"offsets: expected shape \(3,\)", "", (X, W, [0, 3]), {}),
    (ValueError, "offsets: expected values rising from 0 to 3", "", (X, W, [0, 4, 3]), {}),
    (TypeError, "offsets: expected integers", "", (X, W, [0.0, 1.0, 3.0]), {}),
    (ValueError, "pairs: expected 1 or 2", "_backward_x", ([], [0, 3]), {}),
    (ValueError, r"pairs\[1\] w: expected shape", "_backward_x", ([PAIR, (X[:, :4], W[:1])], [0, 1, 3]), {}),
    (ValueError, r"pairs\[0\] d: expected shape", "_backward_x", ([(X, W)], [0, 1, 3]), {}),
    (ValueError, r"x_rows: expected shape \(3, any\)", "_backward_w", (X, X[:2], [0, 1, 3]), {}),
    (ValueError, r"acc: expected shape \(2, 5, 5\)", "_backward_w", (X, X, [0, 1, 3]), {"acc": W}),
]


@pytest.mark.parametrize(("error", "message", "name", "given", "more"), BAD_ARGUMENTS)
def test_bad_arguments_name_themselves(error, message, name, given, more):
    engine = kernels.load(None, 1)
    with pytest.raises(error, match=message):
        getattr(engine, f"grouped_matmul{name}")(Rule("exact", "float32"), *given, **more)
    assert engine.calls.total() == 0


BAD_RULES = {"format": Rule("exact", "e4m3"), "profile": Rule("fast", "float32"),
             "force_tier": Rule("exact", "float32", "grid")}


@pytest.mark.parametrize("field", BAD_RULES)
def test_bad_rules_name_the_field(field):
    with pytest.raises(ValueError, match=f"rule.{field}: expected one of"):
        kernels.load(None, 1).grouped_matmul(BAD_RULES[field], X, W, [0, 1, 3])


def test_float64_asks_for_float64():
    with pytest.raises(TypeError, match="w: expected native float64, got <f4"):
        kernels.load(None, 1).grouped_matmul(Rule("float64", "float64"), X, W, [0, 1, 3])


# ---- choosing ----

def test_kernels_are_listed_slowest_first_with_reasons():
    rows = kernels.available()
    assert [row[0] for row in rows] == ["portable", "neon", "avx2", "avx512"]
    assert rows[0][1:] == (True, None)
    for _, can_run, reason in rows:
        assert can_run is (reason is None)


def test_load_takes_arguments_then_environment_then_the_best(monkeypatch):
    monkeypatch.delenv("REFMOE_KERNEL", raising=False)
    monkeypatch.setenv("REFMOE_NUM_THREADS", "3")
    assert (kernels.load().kernel, kernels.load().threads) == (KERNELS[-1], 3)
    monkeypatch.setenv("REFMOE_KERNEL", "portable")
    assert (kernels.load().kernel, kernels.load(KERNELS[-1], 2).kernel) == ("portable", KERNELS[-1])
    assert kernels.load(threads=np.int64(2)).threads == 2


@pytest.mark.parametrize("kernel", ["neon9", *(name for name, can_run, _ in kernels.available() if not can_run)])
def test_a_kernel_that_cannot_run_here_is_refused(kernel):
    with pytest.raises(ValueError, match=f"kernel: expected one of portable.*got '{kernel}'"):
        kernels.load(kernel)


@pytest.mark.parametrize("count", (0, -1, 1.5, "many", "0", True, 2**31))
def test_a_thread_count_that_is_none_is_refused(count):
    if count is True:  # an integer in Python; one thread is what it says
        assert kernels.load(threads=count).threads == 1
        return
    with pytest.raises(ValueError, match="threads: expected a positive count"):
        kernels.load(threads=count)


def test_a_missing_module_is_explained(monkeypatch):
    monkeypatch.setattr(kernels.compiled, "MODULE", "refmoe._nowhere")
    assert "refmoe._nowhere" in kernels.build_error()
    assert [row[1] for row in kernels.available()] == [False] * len(kernels.KNOWN)
    with pytest.raises(ImportError, match="REFMOE_REQUIRE_C=1"):
        kernels.load()
