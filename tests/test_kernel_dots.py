"""Products of pairs of rows in C are what a contraction of as many groups of one row is, in every bit."""

import numpy as np
import pytest

from refmoe import kernels

if kernels.build_error() is not None:
    pytest.skip(f"no compiled module: {kernels.build_error()}", allow_module_level=True)

import kernel_cases as made
from cases import same_bits

from refmoe.formats import canonical_nan
from refmoe.numerics import Numerics

NUMPY = Numerics("chain", backend="numpy")
KERNELS = [name for name, can_run, _ in kernels.available() if can_run]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("make", made.MAKERS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_row_products_equal_numpy(make, kernel):
    rng = np.random.default_rng(3)
    for n, m in [(1, 1), (13, 7), (5, 0), (0, 4), (30, 129), (100, 6)]:
        a, b = make(rng, (n, m)), make(rng, (n, m))
        want = NUMPY.contract_rows("d_topk_weights", a, b)
        for threads in (1, 2):
            num = Numerics("chain", backend="c", kernel=kernel, threads=threads)
            got = num.contract_rows("d_topk_weights", a, b)
            assert same_bits(canonical_nan(got), canonical_nan(want))
            assert num.engine.calls["row_products", kernel] == 1


def test_other_profiles_are_contractions():
    a = np.ones((3, 2), np.float32)
    for num in (Numerics("exact"), Numerics("chain", store="bf16")):
        name = "d_topk_weights" if num.profile == "exact" else "y"
        assert num.engine.row_products(num._rule(name), a, a) is None
    assert NUMPY.contract_rows("d_topk_weights", a, a).tolist() == [2.0] * 3


def test_c_refuses_and_writes_nothing():
    engine = Numerics("chain", backend="c").engine
    ffi, lib = engine._ffi, engine._lib
    room = np.ones(4, np.float32)
    floats = ffi.cast("float *", room.ctypes.data)
    bad = [(0, 1, -1, floats, "REFMOE_BAD_SIZE"), (0, 1, 2, ffi.NULL, "REFMOE_BAD_POINTER"),
           (0, 0, 2, floats, "REFMOE_BAD_THREADS"), (99, 1, 2, floats, "REFMOE_BAD_KERNEL")]  # fmt: skip
    for kernel, threads, n, a, want in bad:
        how = ffi.new("refmoe_how *", {"kernel": kernel, "threads": threads})
        assert lib.refmoe_row_products(how, n, 2, a, floats, floats) == getattr(lib, want)
    assert (room == 1).all()
