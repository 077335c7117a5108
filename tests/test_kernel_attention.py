"""Causal attention in C gives the bits of its stages in NumPy: every kernel, odd sizes, and what is left out counts."""

import numpy as np
import pytest

from refmoe import kernels

if kernels.build_error() is not None:
    pytest.skip(f"no compiled module: {kernels.build_error()}", allow_module_level=True)

from cases import same_bits

from refmoe.formats import canonical_nan
from refmoe.lab.decoder import DecoderNumerics
from refmoe.lab.decoder.attention import _by_stages, _by_stages_backward, _sizes, make_layout
from refmoe.lab.decoder.config import DecoderConfig, DenseConfig

NUMPY = DecoderNumerics("chain", backend="numpy")
KERNELS = [name for name, can_run, _ in kernels.available() if can_run]
SHAPES = [(1, 1, 1, 1), (2, 5, 3, 4), (1, 12, 1, 3), (3, 13, 2, 8), (1, 33, 2, 33), (2, 50, 1, 16)]  # B, S, H, d
HOSTILE = [(2, 25, 2, 3), (1, 40, 1, 20)]

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
each_kernel = pytest.mark.parametrize("kernel", KERNELS)


def layout_of(shape, positions="learned"):
    B, S, H, d = shape
    config = DecoderConfig(H * d, H, S, (DenseConfig(H * d, 4),), positions)
    return make_layout(np.zeros((B, S), np.int64), config, np.float32)


def draw(shape, seed=0, scale=1.0):
    """qkv and d_context."""
    (B, S, H, d), rng = shape, np.random.default_rng(seed)
    return [(scale * rng.standard_normal((B * S, n * H * d))).astype(np.float32) for n in (3, 1)]


def by_stages(qkv, d_context, layout):
    weights, context = _by_stages(qkv, layout, NUMPY)
    return weights, context, _by_stages_backward(d_context, qkv, weights, layout, NUMPY)


def compiled(qkv, d_context, layout, kernel, threads=1):
    num = DecoderNumerics("chain", backend="c", kernel=kernel, threads=threads)
    weights, context = num.engine.attention(qkv, *_sizes(layout), layout.bias)
    d_qkv = num.engine.attention_backward(d_context, qkv, weights, *_sizes(layout))
    assert num.engine.calls["attention", kernel] == num.engine.calls["attention_backward", kernel] == 1
    return weights, context, d_qkv


def assert_same(got, want):
    for name, one, other in zip(("weights", "context", "d_qkv"), got, want, strict=True):
        assert same_bits(canonical_nan(one), canonical_nan(other)), name


@pytest.mark.parametrize("positions", ["learned", "linear"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_call_is_its_stages(shape, positions):
    layout, (qkv, d_context) = layout_of(shape, positions), draw(shape)
    want = by_stages(qkv, d_context, layout)
    for kernel in KERNELS:
        for threads in (1, 2):
            assert_same(compiled(qkv, d_context, layout, kernel, threads), want)


def with_infinities(qkv, d_context):
    """Of v, late in the first sequence: earlier tokens have 0 times them. Of d_context, early: so have later keys."""
    qkv[20, -1], qkv[17, -2], d_context[1, 0] = np.inf, np.nan, -np.inf


def with_a_key_of_infinity(qkv, d_context):
    """Beside a query of 0 for those that see it: their logits would be NaN, which is not for C to decide."""
    D = d_context.shape[1]
    qkv[:, :D] = 0
    qkv[22, D] = np.inf


def with_sums_that_vanish(qkv, d_context):
    """Products that round to -0: what follows them are zeros, and a +0 among these makes the sum +0."""
    D = d_context.shape[1]
    qkv[:, 2 * D :] *= np.float32(2.0**-100)
    qkv[:, 2 * D :] *= np.float32(2.0**-49)
    qkv[:, D : 2 * D] *= np.float32(2.0**-140)
    qkv[:, 2 * D + 1] = -np.abs(qkv[:, 2 * D + 1])  # a column without a +0
    qkv[::2, 2 * D] = -0.0
    d_context *= np.float32(2.0**-20)


@pytest.mark.parametrize("spoil", [with_infinities, with_sums_that_vanish])
@pytest.mark.parametrize("shape", HOSTILE, ids=str)
def test_what_is_left_out_would_have_changed_nothing(shape, spoil):
    layout, (qkv, d_context) = layout_of(shape), draw(shape, 1)
    spoil(qkv, d_context)
    want = by_stages(qkv, d_context, layout)
    if spoil is with_sums_that_vanish:
        zeros = np.concatenate([part[part == 0] for part in want[1:]])
        assert np.signbit(zeros).any() and not np.signbit(zeros).all()
    for kernel in KERNELS:
        assert_same(compiled(qkv, d_context, layout, kernel), want)


def test_rows_that_stay_open_are_left_to_numpy():
    shape = HOSTILE[0]
    layout, (qkv, d_context) = layout_of(shape), draw(shape)
    with_a_key_of_infinity(qkv, d_context)
    engine = DecoderNumerics("chain", backend="c").engine
    assert engine.attention(qkv, *_sizes(layout), None) is None


@each_kernel
def test_more_places_than_c_takes_are_left_to_numpy(kernel):
    engine, shape = DecoderNumerics("chain", backend="c", kernel=kernel).engine, (1, 1025, 1, 1)
    qkv, d_context = draw(shape)
    assert engine.attention(qkv, shape, 1.0, None) is None
    assert engine.attention_backward(d_context, qkv, np.zeros((1025, 1025), np.float32), shape, 1.0) is None
    assert engine.attention(qkv.astype(np.float64), shape, 1.0, None) is None


@pytest.mark.parametrize(
    ("name", "heads", "missing", "status"),
    [
        ("attention", (1, 2, 1, 4), 0, "REFMOE_BAD_POINTER"),
        ("attention", (1, 2, 1, 4), 5, "REFMOE_BAD_POINTER"),
        ("attention", (-1, 2, 1, 4), None, "REFMOE_BAD_SIZE"),
        ("attention", (1, 2, 0, 4), None, "REFMOE_BAD_SIZE"),
        ("attention", (1 << 40, 2, 1, 1 << 40), None, "REFMOE_BAD_SIZE"),
        ("attention", (1, 1025, 1, 4), None, "REFMOE_BAD_PROFILE"),
        ("attention_backward", (1, 2, 1, 4), 1, "REFMOE_BAD_POINTER"),
        ("attention_backward", (1, 2, 1, 0), None, "REFMOE_BAD_SIZE"),
    ],
)
def test_c_refuses_and_writes_nothing(name, heads, missing, status):
    engine = DecoderNumerics("chain", backend="c").engine
    ffi, lib = engine._ffi, engine._lib
    room = np.ones(64, np.float32)
    floats = ffi.cast("float *", room.ctypes.data)
    if name == "attention":
        left_open = ffi.new("refmoe_open *", (7, 0, ffi.NULL))
        given = [floats, ffi.NULL, floats, floats, floats, left_open]
    else:
        given = [floats] * 5
    if missing is not None:
        given[missing] = ffi.NULL
    for kernel, threads, want in [(0, 1, status), (0, 0, "REFMOE_BAD_THREADS"), (99, 1, "REFMOE_BAD_KERNEL")]:
        how = ffi.new("refmoe_how *", {"kernel": kernel, "threads": threads})
        made = getattr(lib, f"refmoe_{name}")(how, ffi.new("refmoe_heads *", heads), 1.0, *given)
        assert made == getattr(lib, want)
    assert (room == 1).all()
