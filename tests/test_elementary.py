"""The float64 elementary functions: within their proven bounds, and the same bits on every machine."""

import math
import os
import subprocess
import sys
from pathlib import Path

import mpmath
import numpy as np
import pytest
from elementary_truth import TRUTH

import refmoe
from refmoe.numerics import elementary
from refmoe.numerics import elementary_tables as tables

EXHAUSTIVE = Path(__file__).parent / "exhaustive" / "elementary.py"
FUNCTIONS = tuple(elementary.RELATIVE_BOUND)
UNIT = 2.0**-53
REACH = {"erf": 6.5, "erfc": 27.5, "tanh": 25.0}  # beyond it the functions are constant, or below every float64


def neighbours(centres, rng, most=30):
    """The centres, and 16 floats within 2^-most of each, down to neighbours."""
    centres = np.asarray(centres, np.float64)
    steps = np.float64(2.0) ** -rng.integers(most, 54, (16, centres.size)) * rng.choice([-1.0, 1.0], (16, centres.size))
    return np.concatenate([centres, (centres * (1 + steps)).ravel()])


def table_breaks(name):
    """Where the algorithm changes interval: odd multiples of ln2/128, bins of log, pieces of erfcx."""
    if name in ("log", "log1p"):
        start = (tables.LOG_START >> 45) + np.arange(129) << 45
        bins = start.view(np.float64)
        return np.concatenate([bins, bins * 2, bins / 2**40]) - (name == "log1p")
    if name in ("erf", "erfc"):
        return np.concatenate([np.outer(2.0 ** np.arange(5), 1 + np.arange(33) / 32).ravel() - 1.0, [0.75, -0.75]])
    k = np.concatenate([np.arange(-300, 301), np.arange(-94000, 92000, 1013)])
    return (k + 0.5) * (math.log(2) / 64) / (2 if name == "tanh" else 1)


def arguments(name, rng):
    """At least 20,000 finite arguments in the domain, most where the function is not constant."""
    reach = REACH.get(name, 745.0)
    tiny = np.array([5e-324, 1e-310, 2.0**-1022, 2.0**-1021, 2.0**-600, 2.0**-537])
    spread = 2.0 ** rng.uniform(-1074, 0, 1500)
    dense = np.concatenate([rng.normal(size=6000), rng.uniform(-reach, reach, 6000), rng.uniform(-1, 1, 4000) / 32])
    small = rng.uniform(-1, 1, 4000) * 2.0 ** rng.integers(-60, 3, 4000)
    x = np.concatenate([dense, small, neighbours(table_breaks(name), rng), tiny, -tiny, spread, -spread])
    if name in ("log", "log1p"):
        near_root = rng.normal(size=4000) * 2.0 ** rng.integers(-52, -3, 4000) + (1.0 if name == "log" else 0.0)
        any_bits = rng.integers(1, 0x7FEFFFFFFFFFFFFF, 7000).view(np.float64)
        x = np.concatenate([x, near_root, any_bits, [1.7976931348623157e308]])
        return np.abs(x) if name == "log" else x[x > -1.0]
    return x[np.abs(x) <= reach * 1.2]


def reference(name, x):
    """The true values as float64 pairs (head, tail)."""
    heads, tails = np.empty(x.size), np.empty(x.size)
    with mpmath.workprec(140):
        for i, value in enumerate(x.tolist()):
            truth = TRUTH[name](mpmath.mpf(value))
            heads[i] = float(truth)
            tails[i] = float(truth - mpmath.mpf(heads[i])) if math.isfinite(heads[i]) else 0.0
    return heads, tails


@pytest.mark.parametrize("name", FUNCTIONS)
def test_float64_stays_within_its_proven_bound(name):
    x = arguments(name, np.random.default_rng(20))
    assert x.size >= 20_000
    y = getattr(elementary, name)(x)
    heads, tails = reference(name, x)
    finite = np.isfinite(heads)
    assert np.array_equal(y[~finite], heads[~finite])
    y, heads, tails = y[finite], heads[finite], tails[finite]
    error, normal = np.abs((y - heads) - tails), np.abs(heads) >= 2.0**-1021
    worst = np.max(error[normal] / np.abs(heads[normal]))
    assert 0.4 * UNIT < worst <= elementary.RELATIVE_BOUND[name] <= 2.0**-50
    assert np.all(error[~normal] <= elementary.ABSOLUTE_BOUND)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_limits_zeros_and_nan(name):
    limits = {
        "exp": (0.0, np.inf), "expm1": (-1.0, np.inf), "log": (np.nan, np.inf), "log1p": (np.nan, np.inf),
        "sigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0), "softplus": (0.0, np.inf), "erf": (-1.0, 1.0), "erfc": (2.0, 0.0),
    }  # fmt: skip
    at_zero = {"exp": 1.0, "log": -np.inf, "sigmoid": 0.5, "softplus": math.log(2), "erfc": 1.0}.get(name, 0.0)
    function = getattr(elementary, name)
    got = function(np.array([-np.inf, np.inf, np.nan, -np.nan, 0.0, -0.0, -1e308, 1.7e308]))
    low, high = limits[name]
    assert np.array_equal(got[:2], [low, high], equal_nan=True)
    assert (got[2:4].view(np.int64) == 0x7FF8000000000000).all()
    assert (got[4:6] == at_zero).all()
    if at_zero == 0.0:
        assert np.array_equal(np.signbit(got[4:6]), [False, True])
    assert np.array_equal(got[6], low, equal_nan=True)
    huge = {"log": math.log(1.7e308), "log1p": math.log(1.7e308), "softplus": 1.7e308}.get(name, high)
    assert got[7] == huge


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_any_shape_and_stride_and_block_gives_the_same_bits_without_warnings(name):
    x = np.random.default_rng(3).integers(0, 2**64, 9000, dtype=np.uint64).view(np.float64)
    x[::2] = np.random.default_rng(4).normal(size=4500) * 4
    function = getattr(elementary, name)
    whole = function(x)
    one_by_one = np.array([function(value) for value in x[:300]])
    assert one_by_one.tobytes() == whole[:300].tobytes()
    assert function(x.reshape(3, 1000, 3)).tobytes() == whole.tobytes()
    assert function(x[::-3]).tobytes() == whole[::-3].tobytes()
    assert function(x[:0]).shape == (0,)
    assert function(x[0]).shape == ()


def test_domain_edges():
    largest = elementary.exp(np.array([709.782712893384, 709.7827128933841])).tolist()
    assert largest == [pytest.approx(1.797693134862273e308, rel=2**-52), np.inf]
    assert elementary.exp(np.array([-745.1332191019411, -745.1332191019412])).tolist() == [5e-324, 0.0]
    assert elementary.expm1(np.array(709.782712893384)) == largest[0]
    assert elementary.log1p(np.array([-1.0, -1.0000000000000002]))[0] == -np.inf
    assert np.isnan(elementary.log1p(np.array(-1.0000000000000002)))
    assert elementary.log(np.array([5e-324, 2.0, 1.0])).tolist() == [-744.4400719213812, math.log(2), 0.0]


def taylor_of_erfcx(c, count):
    """The first Taylor coefficients of e^(x^2) erfc(x) at c, by the forward recurrence with digits to lose."""
    with mpmath.workdps(120):
        c = mpmath.mpf(float(c))
        a = [mpmath.exp(c * c) * mpmath.erfc(c)]
        a.append(2 * c * a[0] - 2 / mpmath.sqrt(mpmath.pi))
        for n in range(1, count - 1):
            a.append((2 * c * a[n] + 2 * a[n - 1]) / (n + 1))
        return a


def test_tables_carry_the_digits_the_proofs_assume():
    with mpmath.workdps(60):
        for j in range(64):
            head, tail = mpmath.mpf(tables.EXP_HEAD[j]), mpmath.mpf(tables.EXP_TAIL[j])
            assert abs(head + tail - mpmath.mpf(2) ** (mpmath.mpf(j) / 64)) < 2.0**-88
        for c, high, low in zip(tables.LOG_FACTOR, tables.LOG_HIGH, tables.LOG_LOW, strict=True):
            assert (c * 2**20) % 1 == 0 and (high * 2**42) % 1 == 0
            assert abs(mpmath.mpf(high) + mpmath.mpf(low) + mpmath.log(mpmath.mpf(c))) < 2.0**-88
    assert elementary._EXPM1 == tuple(1 / math.factorial(n) for n in range(2, 7))
    assert elementary._LOG1P == tuple((-1) ** (n + 1) / n for n in range(2, 9))
    assert (tables.LN2_64_HIGH * 2**41) % 1 == 0 and tables.LN2_64_HIGH * 2**41 < 2**35
    for piece, row in enumerate(tables.ERFC_TAYLOR.T):
        half = 2.0 ** ((piece + tables.ERFC_FIRST) // 32 - 6)
        truth = taylor_of_erfcx(row[0], 10)
        off = sum(abs(mpmath.mpf(a) - t) * half**n for n, (a, t) in enumerate(zip(row[1:], truth, strict=True)))
        rest = abs(taylor_of_erfcx(row[0] - half, 11)[10]) * half**10  # Lagrange: every derivative shrinks with x
        least = taylor_of_erfcx(row[0] + half, 2)[0]
        assert off < 1.1 * UNIT * truth[0] and rest < 0.02 * UNIT * least and abs(truth[1]) * half < 0.02 * truth[0]


def error_of_tanh(off, t):
    """The relative error of t / (2 + t), t = expm1 off by `off` and by its last rounding."""
    return (off / -t + min(UNIT, 2.0**-54 / -t)) * 2 / (2 + t) + (1 / (2 + t) + 1) * UNIT


def test_proof_of_expm1_and_tanh_over_every_interval():
    """The sums of the docstrings, taken over all k: body's error, the cancellation against -1, the last roundings."""

    def half_ulp(v):
        return 2.0 ** (math.floor(math.log2(v)) - 53)

    most = math.log(2) / 128 + 2.0**-24
    p = math.expm1(most)
    series = (2**-61 + 2**-77) * 1.006 + 1.56 * UNIT * most**2 + most**7 / 5040 * 1.01 + half_ulp(p)
    worst_expm1 = worst_tanh = worst_body = 0.0
    for k in [k for k in range(-3700, 6500) if k]:
        s, head, tail = 2.0 ** (k >> 6), tables.EXP_HEAD[k & 63], abs(tables.EXP_TAIL[k & 63])
        body = head * series + half_ulp(head * p) + half_ulp(head * p + 2 * UNIT) + tail * p * 1.01
        first = 0.0 if abs(k) <= 64 else 2.0**-54 if k < 0 else UNIT * s * head
        ends = [s * head * math.exp(r) - 1 for r in (-most, most)]
        relative = (s * body + first) / min(map(abs, ends)) + UNIT
        worst_body, worst_expm1 = max(worst_body, body / head), max(worst_expm1, relative)
        if k < 0:
            worst_tanh = max(worst_tanh, *(error_of_tanh(s * body + first, t) for t in ends))
    assert worst_body < 0.022 * UNIT
    assert worst_expm1 < 4.15 * UNIT
    assert worst_tanh < 5.7 * UNIT


def python(*arguments, **environment):
    """A new interpreter that imports the refmoe of this one."""
    environment = {**os.environ, "PYTHONPATH": str(Path(refmoe.__file__).parents[1]), **environment}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)


def test_exhaustive_walk_on_a_slice():
    done = python(EXHAUSTIVE, "--slice", "1387/4096")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("1048576 arguments") == len(FUNCTIONS)


DIGEST = """
import hashlib, os, numpy as np
from refmoe.numerics import elementary
features = np._core._multiarray_umath.__cpu_features__
assert not any(features[name] for name in os.environ["NPY_DISABLE_CPU_FEATURES"].split())
x = np.random.default_rng(1).integers(0, 2**64, 5000, dtype=np.uint64).view(np.float64)
x[::2] = np.random.default_rng(2).normal(size=2500) * 5
print(hashlib.sha256(b"".join(getattr(elementary, f)(x).tobytes() for f in elementary.RELATIVE_BOUND)).hexdigest())
"""


def test_same_bits_whatever_instructions_numpy_may_use():
    """One process for each prefix of the CPU features that NumPy can use here, from none to all."""
    umath = np._core._multiarray_umath
    found = [name for name in umath.__cpu_dispatch__ if umath.__cpu_features__[name]]
    digests = set()
    for kept in range(len(found) + 1):
        done = python("-c", DIGEST, NPY_DISABLE_CPU_FEATURES=" ".join(found[kept:]))
        assert done.returncode == 0, done.stderr
        digests.add(done.stdout)
    assert len(digests) == 1 and len(digests.pop().strip()) == 64
