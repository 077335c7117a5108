"""Written operations in C give NumPy's bits: norms, AdamW; and what C refuses."""

import numpy as np
import pytest

from refmoe import kernels

if kernels.build_error() is not None:
    pytest.skip(f"no compiled module: {kernels.build_error()}", allow_module_level=True)

from cases import same_bits

from refmoe.formats import canonical_nan
from refmoe.lab import optimisers
from refmoe.lab.decoder import DecoderNumerics
from refmoe.lab.decoder.norm import NormRecord, rms_norm, rms_norm_backward

NUMPY = DecoderNumerics("chain", backend="numpy")
SHAPES = [(1, 1), (7, 3), (9, 16), (40, 33), (17, 513), (3, 1100), (300, 5), (0, 4)]

each_count = pytest.mark.parametrize("threads", [1, 2])


def compiled(threads):
    return DecoderNumerics("chain", backend="c", threads=threads)


def hostile(*shape, seed=0):
    """Numbers of all magnitudes, zeros of both signs, subnormals; rows with infinities and NaN."""
    rng = np.random.default_rng(seed)
    out = rng.standard_normal(shape) * np.exp2(rng.choice([0, 0, 0, 12, -70, -140, 60], shape))
    out = np.where(rng.random(shape) < 0.1, rng.choice([0.0, -0.0], shape), out).astype(np.float32)
    if out.ndim == 2 and len(out) > 4:
        out[3, 0], out[4, -1] = np.inf, np.nan
    return out


def assert_same(got, want):
    """Every NaN is one value."""
    for one, other in zip(got, want, strict=True):
        assert same_bits(canonical_nan(one), canonical_nan(other))


@each_count
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_norms_are_what_numpy_makes_of_the_lines(shape, threads):
    num, x, d, w = compiled(threads), hostile(*shape), hostile(*shape, seed=1), hostile(shape[1], seed=2)
    want = rms_norm(x, w, 1e-6, NUMPY)
    assert_same(rms_norm(x, w, 1e-6, num), want)
    record = NormRecord(np.abs(hostile(len(x), 1, seed=3)), x, x)
    if len(x):
        assert_same(rms_norm_backward(d, record, w, num), rms_norm_backward(d, record, w, NUMPY))
    calls = {name for name, _ in num.engine.calls}
    assert "rms_norm" in calls and ("rms_norm_backward" in calls) == bool(len(x))


@each_count
@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_adamw_is_what_numpy_makes_of_its_lines(decay, threads):
    optimiser, size, made = optimisers.Optimiser("adamw", weight_decay=decay), (1 << 14) + 5, []
    for engine in (None, compiled(threads).engine):
        p = np.random.default_rng(5).standard_normal(size).astype(np.float32)
        state = optimisers.start(optimiser, (p,))
        for step in range(3):
            g = hostile(size, seed=step)
            g[step] = (np.inf, np.nan, -np.inf)[step]
            state = optimisers.step(optimiser, (p,), (g,), state, 0.01, engine)
        made.append((p, *state.first.values(), *state.second.values()))
    assert_same(*made)
    assert engine.calls["adamw", engine.kernel] == 3


def test_adamw_of_float64_is_left_to_numpy():
    p, g, engine = np.ones(3), np.ones(3), compiled(1).engine
    optimiser = optimisers.Optimiser("adamw")
    optimisers.step(optimiser, (p,), (g,), optimisers.start(optimiser, (p,)), 0.1, engine)
    assert (p < 0.91).all() and not engine.calls["adamw", engine.kernel]


@pytest.mark.parametrize(
    ("name", "arguments", "status"),
    [
        ("rms_norm", lambda f: (-1, 4, 1e-6, f, f, f, f, f), "REFMOE_BAD_SIZE"),
        ("rms_norm", lambda f: (1 << 40, 1 << 40, 1e-6, f, f, f, f, f), "REFMOE_BAD_SIZE"),
        ("rms_norm", lambda f: (1, 0, 1e-6, f, f, f, f, f), "REFMOE_BAD_SIZE"),
        ("rms_norm", lambda f: (1, 4, 1e-6, f, f, f, f, None), "REFMOE_BAD_POINTER"),
        ("rms_norm_backward", lambda f: (1, 4, f, f, None, f, f, f), "REFMOE_BAD_POINTER"),
        ("adamw", lambda f: (None, 1, f, f, f, f), "REFMOE_BAD_POINTER"),
    ],
)
def test_c_refuses_and_writes_nothing(name, arguments, status):
    engine = compiled(1).engine
    ffi, lib = engine._ffi, engine._lib
    room = np.ones(4, np.float32)
    given = [ffi.NULL if a is None else a for a in arguments(ffi.cast("float *", room.ctypes.data))]
    for kernel, threads, want in [(0, 1, status), (0, 0, "REFMOE_BAD_THREADS"), (99, 1, "REFMOE_BAD_KERNEL")]:
        how = ffi.new("refmoe_how *", {"kernel": kernel, "threads": threads})
        assert getattr(lib, f"refmoe_{name}")(how, *given) == getattr(lib, want)
    assert (room == 1).all()
