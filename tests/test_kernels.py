"""The C kernels: bits against rational arithmetic and against NumPy, buffers under guard, hostile surroundings."""

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

import kernel_oracle as oracle
from kernel_oracle import Guarded, Rule, differing_bits, ffi, lib

from refmoe.numerics.contract import NumpyEngine

KERNELS = [name for name, can_run, _ in kernels.available() if can_run]
THREADS = (1, 2, 3)
RULES = [Rule(profile, form) for profile in ("exact", "chain") for form in ("float32", "bf16", "fp16")]
RULES.append(Rule("float64", "float64"))
PRODUCTS = ("grouped_matmul", "grouped_matmul_backward_x", "grouped_matmul_backward_w")

each_kernel = pytest.mark.parametrize("kernel", KERNELS)
each_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.profile}-{rule.format}")


# ---- operands ----------------------------------------------------------------------------------------------------------

def wide(rng, shape, dtype=np.float32):
    """Full significands over 40 binades: sums that must be rounded."""
    return (rng.standard_normal(shape) * 2.0 ** rng.integers(-20, 20, shape)).astype(dtype)


def coarse(rng, shape, dtype=np.float32):
    """Eight-bit significands near 1: short sums of their products often are midpoints."""
    return (rng.integers(-255, 256, shape) * 2.0 ** rng.integers(-9, -6, shape)).astype(dtype)


def tiny(rng, shape, dtype=np.float32):
    """Products and sums round the least numbers of every format."""
    least = {np.float32: -149, np.float64: -1074}[dtype]
    scale = 2.0 ** rng.choice([least, least + 20, least // 2, least // 2 + 3, -12], shape)
    return (rng.integers(-9, 10, shape) * scale).astype(dtype)


def special(rng, shape, dtype=np.float32):
    """Mostly ordinary; now and then a signed zero, a subnormal, the largest number, an infinity or NaN."""
    info = np.finfo(dtype)
    rare = np.array([0.0, -0.0, info.smallest_subnormal, -info.tiny, info.max, -info.max, np.inf, -np.inf, np.nan], dtype)
    return np.where(rng.random(shape) < 0.12, rng.choice(rare, shape), coarse(rng, shape, dtype)).astype(dtype)


def signed_zeros(rng, shape, dtype=np.float32):
    """Zeros of both signs and opposite ones: exact cancellation."""
    return rng.choice(np.array([0.0, -0.0, 1.0, -1.0], dtype), shape)


MAKERS = (wide, coarse, tiny, special, signed_zeros)


class Case:
    """Operands of all three products over one plan."""

    def __init__(self, make, rule, counts, M, K, M2=3, seed=0):
        rng, dtype = np.random.default_rng(seed), oracle.dtype(rule)
        self.offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        E, N = len(counts), int(self.offsets[-1])
        shapes = {"x": (N, K), "w": (E, M, K), "d": (N, M), "d2": (N, M2), "w2": (E, M2, K), "bias": (E, M)}
        shapes |= {"acc_rows": (N, M), "acc_x": (N, K), "acc_w": (E, M, K)}
        for name, shape in shapes.items():
            setattr(self, name, make(rng, shape, dtype))

    def outputs(self, engine, rule):
        """Every product, bare and with all it may be given."""
        forward, back_x, back_w = (getattr(engine, name) for name in PRODUCTS)
        yield forward(rule, self.x, self.w, self.offsets)
        yield forward(rule, self.x, self.w, self.offsets, bias=self.bias)
        yield forward(rule, self.x, self.w, self.offsets, bias=self.bias, acc=self.acc_rows)
        yield back_x(rule, [(self.d, self.w)], self.offsets)
        yield back_x(rule, [(self.d, self.w), (self.d2, self.w2)], self.offsets, acc=self.acc_x)
        yield back_w(rule, self.d, self.x, self.offsets)
        yield back_w(rule, self.d, self.x, self.offsets, acc=self.acc_w)


def assert_same(case, rule, kernel, want, threads=THREADS, force=None):
    for count in threads:
        got = case.outputs(Guarded(kernel, count), rule._replace(force_tier=force))
        assert [differing_bits(a, b) for a, b in zip(got, want, strict=True)] == [0] * 7


# ---- bits against rational arithmetic ----------------------------------------------------------------------------------

ORACLE_CASES = {}


def oracle_case(make, rule):
    """The case and the oracle's outputs, made once for all kernels."""
    if (make, rule) not in ORACLE_CASES:
        case = Case(make, rule, counts=(5, 0, 1, 3), M=10, K=7, seed=MAKERS.index(make))
        ORACLE_CASES[make, rule] = case, list(case.outputs(oracle, rule))
    return ORACLE_CASES[make, rule]


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
@each_rule
@each_kernel
def test_bits_equal_rational_arithmetic(kernel, rule, make):
    case, want = oracle_case(make, rule)
    assert_same(case, rule, kernel, want)


@pytest.mark.parametrize("force", ("compensated", "exact"))
@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("form", ("float32", "bf16", "fp16"))
def test_forced_tiers_equal_rational_arithmetic(form, make, force):
    rule = Rule("exact", form)
    case, want = oracle_case(make, rule)
    assert_same(case, rule, KERNELS[-1], want, threads=(2,), force=force)


# ---- bits against NumPy, over sizes ------------------------------------------------------------------------------------

def sizes(kernel, rule):
    """(rows of each expert, M, K): each for a reason."""
    index, profile = KERNELS.index(kernel), oracle.CODES[rule.profile]
    rows, cols = lib.refmoe_tile_rows(index, profile), lib.refmoe_tile_cols(index, profile)
    yield (1,), 1, 1  # the least
    yield (0, 0), 5, 3  # no rows at all
    yield (), 5, 3  # no experts
    yield (3, 0, 2), 0, 4  # no columns
    yield (3, 0, 2), 4, 0  # sums over nothing
    yield (rows - 1, rows, rows + 1), cols - 1, cols + 1  # round a tile, one side each
    yield (2 * rows + 1, 0, rows), cols, cols
    yield (1, 0, 2 * rows - 1), cols + 1, cols - 1
    yield (7, 13, 1), 37, 67  # primes; 67 is past one run of the transposition
    yield (33, 31), 2 * cols, 2 * cols + 3  # sums over rows next to where short sums end
    yield (2,), 3, 259  # more columns than a unit has
    yield (520, 1), 2, 3  # more rows than a unit has
    yield (1,) * 9, 5, 6  # more units than threads


@each_rule
@each_kernel
def test_bits_equal_numpy_at_every_size(kernel, rule):
    for number, (counts, M, K) in enumerate(sizes(kernel, rule)):
        for make in (wide, special):
            case = Case(make, rule, counts, M, K, seed=number)
            assert_same(case, rule, kernel, list(case.outputs(NumpyEngine(), rule)))


@each_kernel
def test_a_long_sum_fills_many_packed_runs(kernel):
    rule = Rule("exact", "float32")
    case = Case(wide, rule, counts=(3, 12), M=35, K=2053)
    assert_same(case, rule, kernel, list(case.outputs(NumpyEngine(), rule)), threads=(1, 2))


# ---- midpoints ---------------------------------------------------------------------------------------------------------

def midpoint_terms(form, rng):
    """Sums (a, b) that are a midpoint of the format, or a midpoint plus or minus something far smaller.

    m 2^q + 2^(q-1) + rest, where m has the format's precision; the last kind hides 2^-140 behind 2^-60 - 2^-60, so that
    two float64 lose it and only the integer accumulator can tell.
    """
    precision = oracle.FORMATS[form][0]
    rest = [[], [(2.0**-30, 2.0**-30)], [(-(2.0**-30), 2.0**-30)], [(2.0**-70, 2.0**-70)], [(2.0**-70, -(2.0**-70))],
            [(1.0, 2.0**-60), (2.0**-70, 2.0**-70), (-1.0, 2.0**-60)], [(1.0, 2.0**-60), (-(2.0**-70), 2.0**-70), (-1.0, 2.0**-60)]]
    for m in (2 ** (precision - 1), 2 ** (precision - 1) + 1, 2**precision - 2, 2**precision - 1):
        for q in (-8, 3 - precision, 0):
            for sign in (1.0, -1.0):
                for more in rest:
                    terms = [(sign * m, 2.0**q), (sign, 2.0 ** (q - 1)), *more]
                    yield terms, [terms[i] for i in rng.permutation(len(terms))]


def subnormal_midpoints(form):
    """Sums round the midpoints of the format's subnormals, down to half the least number."""
    precision, least, _ = oracle.FORMATS[form]
    half = 2.0 ** ((least - precision) // 2 - 30), 2.0 ** (least - precision - ((least - precision) // 2 - 30))
    tail = (2.0**-140, 2.0**-140)
    for m in (1, 3, 5, 2**precision - 1):
        for sign in (1.0, -1.0):
            for more in ([], [tail], [(-tail[0], tail[1])]):
                yield [(sign * m * half[0], half[1]), *more]


def overflow_edges(form):
    """Sums at the midpoint between the largest finite number and the first power of two beyond it."""
    precision, _, beyond = oracle.FORMATS[form]
    for sign in (1.0, -1.0):
        for rest in (0.0, 2.0**-149, -(2.0**-149)):
            quantum = 2.0 ** (beyond - precision - 1)  # half of the last place of the largest number
            yield [(sign * 2.0 ** (precision + 1), quantum), (-sign, quantum), (rest, 2.0**-100)]
            yield [(sign * 2.0**120, 2.0**120), (rest, 1.0)]


def diagonal(sums):
    """x (n, L), w (n, L) whose diagonal of x w^T are the sums (padded with zeros, which add nothing in exact)."""
    length = max(map(len, sums))
    exact = np.array([[*terms, *[(0.0, 0.0)] * (length - len(terms))] for terms in sums])
    padded = exact.astype(np.float32)
    assert (padded == exact).all()  # else the oracle would see other numbers than the kernel
    return np.ascontiguousarray(padded[..., 0]), np.ascontiguousarray(padded[..., 1])


@pytest.mark.parametrize("force", (None, "compensated", "exact"))
@pytest.mark.parametrize("form", ("float32", "bf16", "fp16"))
@each_kernel
def test_midpoints_plus_and_minus_one_quantum(kernel, form, force):
    sums = [terms for pair in midpoint_terms(form, np.random.default_rng(1)) for terms in pair]
    sums += [*subnormal_midpoints(form), *overflow_edges(form)]
    engine, rule = Guarded(kernel, 2), Rule("exact", form, force)
    x, w = diagonal(sums)
    offsets = np.arange(len(sums) + 1)
    want = np.array([[oracle.exact_sum(terms, [], form)] for terms in sums], np.float32)
    assert differing_bits(engine.grouped_matmul(rule, x, w[:, None], offsets), want) == 0
    assert differing_bits(engine.grouped_matmul_backward_x(rule, [(x, w[:, :, None])], offsets), want) == 0
    length = x.shape[1]
    plan = np.arange(0, x.size + 1, length)
    got = engine.grouped_matmul_backward_w(rule, x.reshape(-1, 1), w.reshape(-1, 1), plan)
    assert differing_bits(got.reshape(-1, 1), want) == 0
    assert force != "exact" or engine.tiers[:3] == (0, 0, 0)


@each_kernel
def test_midpoints_made_by_accumulator_and_bias(kernel):
    rule, engine = Rule("exact", "float32"), Guarded(kernel, 1)
    values = [2.0**-24, -(2.0**-24), 2.0**-24 + 2.0**-47, 2.0**-149, -(2.0**-149), 1.0, -1.0, 0.0, -0.0, 3.4e38, np.inf]
    acc, bias = (np.array(grid, np.float32).reshape(-1, 1) for grid in np.meshgrid(values, values))
    n = len(acc)
    x, w = np.ones((n, 1), np.float32), np.ones((n, 1, 1), np.float32)
    want = [oracle.exact_sum([(1.0, 1.0)], [float(a), float(b)], "float32") for a, b in zip(acc[:, 0], bias[:, 0], strict=True)]
    got = engine.grouped_matmul(rule, x, w, np.arange(n + 1), bias=bias, acc=acc)
    assert differing_bits(got[:, 0], np.array(want, np.float32)) == 0


# ---- tiers and counters ------------------------------------------------------------------------------------------------

@each_kernel
def test_every_tier_is_entered_and_counted(kernel):
    engine, rng, rule = kernels.load(kernel, 2), np.random.default_rng(0), Rule("exact", "float32")
    sums = [terms for terms, _ in midpoint_terms("float32", rng)]
    x, w = diagonal(sums)
    engine.grouped_matmul(rule, x, w[:, None], np.arange(len(sums) + 1))
    few, many = coarse(rng, (64, 32)), coarse(rng, (1, 64, 32))
    engine.grouped_matmul(rule, few, many, [0, 64])
    assert min(engine.tiers[tier] for tier in kernels.TIERS) > 0
    assert engine.tiers.total() == len(sums) + 64 * 64
    assert engine.calls == {("grouped_matmul", kernel): 2}


@each_kernel
def test_counters_name_the_function_and_the_kernel(kernel):
    engine, rule = kernels.load(kernel, 1), Rule("chain", "float32")
    case = Case(wide, rule, (2, 1), 3, 4)
    list(case.outputs(engine, rule))
    assert engine.calls == {(PRODUCTS[0], kernel): 3, (PRODUCTS[1], kernel): 2, (PRODUCTS[2], kernel): 2}
    assert engine.tiers.total() == 0


@each_rule
@each_kernel
def test_the_engine_equals_the_guarded_calls(kernel, rule):
    case = Case(special, rule, (4, 0, 9), 11, 6)
    assert_same(case, rule, kernel, list(case.outputs(kernels.load(kernel, 2), rule)))


@each_kernel
def test_a_row_alone_equals_the_row_in_a_batch(kernel):
    engine, rng = kernels.load(kernel, 2), np.random.default_rng(3)
    x, w = wide(rng, (40, 33)), wide(rng, (1, 21, 33))
    for rule in RULES[:6]:
        batch = engine.grouped_matmul(rule, x, w, [0, 40])
        alone = [engine.grouped_matmul(rule, x[n : n + 1], w, [0, 1]) for n in range(40)]
        assert differing_bits(np.concatenate(alone), batch) == 0


# ---- hostile surroundings ----------------------------------------------------------------------------------------------

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
    for count in THREADS:
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
import test_kernels as t
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


def test_a_child_forked_after_a_parallel_call_computes_and_does_not_hang():
    program = """
import os, signal
import test_kernels as t
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


# ---- refusals ----------------------------------------------------------------------------------------------------------

GOOD = {"e": 2, "n": 3, "m": 4, "k": 5}
REFUSED = [
    (lib.REFMOE_BAD_KERNEL, {"kernel": -1}), (lib.REFMOE_BAD_KERNEL, {"kernel": 99}),
    (lib.REFMOE_BAD_THREADS, {"threads": 0}), (lib.REFMOE_BAD_THREADS, {"threads": -5}),
    (lib.REFMOE_BAD_PROFILE, {"profile": lib.REFMOE_UNFUSED}), (lib.REFMOE_BAD_PROFILE, {"profile": 7}),
    (lib.REFMOE_BAD_FORMAT, {"format": lib.REFMOE_FLOAT64}), (lib.REFMOE_BAD_FORMAT, {"format": -1}),
    (lib.REFMOE_BAD_FORCE, {"force": 3}), (lib.REFMOE_BAD_FORCE, {"profile": lib.REFMOE_CHAIN, "force": 1}),
    (lib.REFMOE_BAD_SIZE, {"e": -1}), (lib.REFMOE_BAD_SIZE, {"n": -1}), (lib.REFMOE_BAD_SIZE, {"m": -1}),
    (lib.REFMOE_BAD_SIZE, {"k": -1}), (lib.REFMOE_BAD_SIZE, {"m": 2**61}), (lib.REFMOE_BAD_SIZE, {"m": 2**40, "k": 2**40}),
    (lib.REFMOE_BAD_OFFSETS, {"offsets": [0, 2, 4]}), (lib.REFMOE_BAD_OFFSETS, {"offsets": [1, 2, 3]}),
    (lib.REFMOE_BAD_OFFSETS, {"offsets": [0, 4, 3]}), (lib.REFMOE_BAD_OFFSETS, {"offsets": [0, -1, 3]}),
    (lib.REFMOE_BAD_POINTER, {"offsets": None}), (lib.REFMOE_BAD_POINTER, {"x": None}), (lib.REFMOE_BAD_POINTER, {"w": None}),
    (lib.REFMOE_NO_MEMORY, {"k": 2**50}),
]


@pytest.mark.parametrize(("status", "change"), REFUSED, ids=lambda value: str(value))
def test_bad_calls_are_refused_before_the_first_write(status, change):
    given = GOOD | {"kernel": 0, "threads": 2, "profile": lib.REFMOE_EXACT, "format": lib.REFMOE_FLOAT32, "force": 0}
    given |= {"offsets": [0, 2, 3], "x": np.ones((3, 5), np.float32), "w": np.ones((2, 4, 5), np.float32)} | change
    how = ffi.new("refmoe_how *", [given[name] for name in ("kernel", "threads", "profile", "format", "force")])
    held = [given[name] if given[name] is None else oracle.Buffer(np.asarray(given[name])) for name in ("offsets", "x", "w")]
    offsets, x, w = (ffi.NULL if buffer is None else buffer.pointer() for buffer in held)
    out = oracle.Buffer((3, 4), np.float32)
    got = lib.refmoe_grouped_matmul_f32(how, *(given[name] for name in GOOD), offsets, x, w, ffi.NULL, ffi.NULL, out.pointer(), ffi.NULL)
    assert got == status
    out.assert_untouched()


@pytest.mark.parametrize("count", (0, 3, -1))
def test_a_wrong_number_of_pairs_is_refused(count):
    out, how = oracle.Buffer((1, 1), np.float32), ffi.new("refmoe_how *", (0, 1, lib.REFMOE_EXACT, lib.REFMOE_FLOAT32, 0))
    offsets, pairs = ffi.new("int64_t[]", [0, 1]), ffi.new("refmoe_pair_f32[3]")
    got = lib.refmoe_grouped_matmul_backward_x_f32(how, 1, 1, 1, offsets, count, pairs, ffi.NULL, out.pointer(), ffi.NULL)
    assert got == lib.REFMOE_BAD_SIZE
    out.assert_untouched()


def test_the_accumulator_may_be_the_output():
    x, w = np.ones((2, 3), np.float32), np.ones((1, 4, 3), np.float32)
    out = np.arange(8, dtype=np.float32).reshape(2, 4)
    want = out + 3
    how = ffi.new("refmoe_how *", (len(KERNELS) - 1, 2, lib.REFMOE_EXACT, lib.REFMOE_FLOAT32, lib.REFMOE_FORCE_EXACT))
    at = {name: ffi.cast("float *", array.ctypes.data) for name, array in (("x", x), ("w", w), ("out", out))}
    plan = ffi.new("int64_t[]", [0, 2])
    status = lib.refmoe_grouped_matmul_f32(how, 1, 2, 4, 3, plan, at["x"], at["w"], ffi.NULL, at["out"], at["out"], ffi.NULL)
    assert (status, out.tolist()) == (lib.REFMOE_OK, want.tolist())


def test_arrays_that_are_not_dense_are_copied():
    engine, rng, rule = kernels.load(None, 1), np.random.default_rng(0), Rule("chain", "float32")
    x, w = wide(rng, (7, 5)), wide(rng, (1, 4, 5))
    want = engine.grouped_matmul(rule, x, w, [0, 7])
    strided = np.repeat(x, 2, axis=1)[:, ::2]
    unaligned = np.frombuffer(b"." + w.tobytes(), np.uint8)[1:].view(np.float32).reshape(w.shape)
    assert not strided.flags.c_contiguous and not unaligned.flags.aligned
    assert differing_bits(engine.grouped_matmul(rule, strided, unaligned, [0, 7]), want) == 0


EXACT, FLOAT64 = Rule("exact", "float32"), Rule("float64", "float64")
X, W = np.ones((3, 5), np.float32), np.ones((2, 4, 5), np.float32)
BAD_ARGUMENTS = [
    (TypeError, "x_rows: expected a NumPy array, got list", lambda e: e.grouped_matmul(EXACT, X.tolist(), W, [0, 1, 3])),
    (TypeError, "w: expected native float32, got <f8", lambda e: e.grouped_matmul(EXACT, X, W.astype(np.float64), [0, 1, 3])),
    (TypeError, "w: expected native float64, got <f4", lambda e: e.grouped_matmul(FLOAT64, X, W, [0, 1, 3])),
    (TypeError, "x_rows: expected native float32, got >f4", lambda e: e.grouped_matmul(EXACT, X.astype(">f4"), W, [0, 1, 3])),
    (ValueError, r"x_rows: expected shape \(any, 5\), got \(5, 3\)", lambda e: e.grouped_matmul(EXACT, X.T, W, [0, 1, 3])),
    (ValueError, r"w: expected shape \(any, any, any\)", lambda e: e.grouped_matmul(EXACT, X, W[0], [0, 1, 3])),
    (ValueError, r"bias: expected shape \(2, 4\)", lambda e: e.grouped_matmul(EXACT, X, W, [0, 1, 3], bias=W[0])),
    (ValueError, r"acc: expected shape \(3, 4\)", lambda e: e.grouped_matmul(EXACT, X, W, [0, 1, 3], acc=X)),
    (ValueError, r"offsets: expected shape \(3,\)", lambda e: e.grouped_matmul(EXACT, X, W, [0, 3])),
    (ValueError, "offsets: expected values rising from 0 to 3", lambda e: e.grouped_matmul(EXACT, X, W, [0, 4, 3])),
    (TypeError, "offsets: expected integers", lambda e: e.grouped_matmul(EXACT, X, W, [0.0, 1.0, 3.0])),
    (ValueError, "pairs: expected 1 or 2", lambda e: e.grouped_matmul_backward_x(EXACT, [], [0, 3])),
    (ValueError, r"pairs\[1\] w: expected shape", lambda e: e.grouped_matmul_backward_x(EXACT, [(X[:, :4], W), (X[:, :4], W[:1])], [0, 1, 3])),
    (ValueError, r"x_rows: expected shape \(3, any\)", lambda e: e.grouped_matmul_backward_w(EXACT, X, X[:2], [0, 1, 3])),
    (ValueError, "rule.format: expected one of", lambda e: e.grouped_matmul(Rule("exact", "e4m3"), X, W, [0, 1, 3])),
    (ValueError, "rule.profile: expected one of", lambda e: e.grouped_matmul(Rule("fast", "float32"), X, W, [0, 1, 3])),
    (ValueError, "rule.force_tier: expected one of", lambda e: e.grouped_matmul(Rule("exact", "float32", "grid"), X, W, [0, 1, 3])),
]


@pytest.mark.parametrize(("error", "message", "call"), BAD_ARGUMENTS, ids=[row[1] for row in BAD_ARGUMENTS])
def test_bad_arguments_name_themselves(error, message, call):
    engine = kernels.load(None, 1)
    with pytest.raises(error, match=message):
        call(engine)
    assert engine.calls.total() == 0


# ---- choosing ----------------------------------------------------------------------------------------------------------

def test_kernels_are_listed_slowest_first_with_reasons():
    rows = kernels.available()
    assert [row[0] for row in rows][:3] == ["portable", "avx2", "avx512"]
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


@pytest.mark.parametrize(("name", "kernel"), [("kernel", "neon9"), *(("kernel", row[0]) for row in kernels.available() if not row[1])])
def test_a_kernel_that_cannot_run_here_is_refused(name, kernel):
    with pytest.raises(ValueError, match=f"{name}: expected one of portable.*got '{kernel}'"):
        kernels.load(kernel)


@pytest.mark.parametrize("count", (0, -1, 1.5, "many", "0", True, 2**31))
def test_a_thread_count_that_is_none_is_refused(count):
    if count is True:  # an integer in Python; one thread is what it says
        assert kernels.load(threads=count).threads == 1
        return
    with pytest.raises(ValueError, match="threads: expected a positive count"):
        kernels.load(threads=count)


def test_a_missing_module_is_explained(monkeypatch):
    monkeypatch.setattr(kernels, "MODULE", "refmoe._nowhere")
    assert "refmoe._nowhere" in kernels.build_error()
    assert [row[1] for row in kernels.available()] == [False] * 3
    with pytest.raises(ImportError, match="REFMOE_REQUIRE_C=1"):
        kernels.load()
