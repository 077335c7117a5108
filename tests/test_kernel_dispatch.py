"""From slots to rows in C: NumPy's arrays, element by element, and what C refuses.   csrc/refmoe_dispatch.h"""

import numpy as np
import pytest

from refmoe import DispatchConfig, ExpertsConfig, Given, MoEConfig, Numerics, RoutingConfig
from refmoe.dispatch import kept_slots, make_plan, permute
from refmoe.kernels.compiled import load_module
from refmoe.routing import refuse_nonfinite, topk_weights
from refmoe.routing.weights import _at_slots

NUMPY = Numerics(backend="numpy")


def make_config(**sections):
    return MoEConfig(hidden_size=4, intermediate_size=4, **sections)


def make():
    """An engine that has counted nothing yet."""
    return Numerics(backend="c")


def slots(T, E, K, unused, seed=0):
    """(T, K) experts, each once for a token; some slots are unused."""
    draw = np.random.default_rng(seed)
    indices = np.array([draw.permutation(E)[:K] for _ in range(T)], np.int64).reshape(T, K)
    return np.where(draw.random((T, K)) < unused, -1, indices)


SIZES = [(1, 128, 8, 0.0), (8, 128, 8, 0.3), (1, 3, 2, 1.0), (33, 5, 3, 0.2), (0, 4, 2, 0.0), (600, 7, 1, 0.1)]


@pytest.mark.parametrize("T, E, K, unused", SIZES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("capacity", [None, 2])
def test_a_plan_equals_numpy(T, E, K, unused, masked, capacity):
    config = make_config(num_experts=E, top_k=K, dispatch=DispatchConfig(capacity=capacity))
    indices, weights = slots(T, E, K, unused), np.ones((T, K), np.float32)
    given, num = Given(token_mask=np.arange(T) % 3 != 1 if masked else None), make()
    got, want = (make_plan(indices, weights, config, given, num=which) for which in (num, None))
    for name, a, b in zip(got._fields, got, want, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype), name
        assert (a == b).all(), name
    assert num.engine.calls["make_plan", num.engine.kernel] == 1
    x = np.random.default_rng(1).standard_normal((T, 19)).astype(np.float32)
    assert permute(x, got, num).tobytes() == permute(x, want).tobytes()


@pytest.mark.parametrize("T, E, K, unused", SIZES)
@pytest.mark.parametrize("zeros", [0, 2])
@pytest.mark.parametrize("some", [False, True])
def test_what_stands_at_slots_equals_numpy(T, E, K, unused, zeros, some):
    config = make_config(num_experts=E, top_k=min(K, E), experts=ExpertsConfig(zero_experts=zeros))
    indices = slots(T, E + zeros, K, unused)
    table = np.random.default_rng(2).standard_normal((T, E + zeros)).astype(np.float32)
    kept = (np.arange(T * K).reshape(T, K) % 4 != 0) & (indices >= 0) if some else None
    num = make()
    got, want = (_at_slots(table, indices, kept, config, which) for which in (num, NUMPY))
    assert num.engine.calls["at_slots", num.engine.kernel] == 1
    for a, b in zip(got, want, strict=True):
        assert (a.dtype, a.tobytes()) == (b.dtype, b.tobytes())


def test_no_kept_slots_means_all_that_are_used():
    config = make_config(num_experts=7, top_k=3, routing=RoutingConfig(normalize=True))
    indices = slots(9, 7, 3, 0.4)
    z = np.random.default_rng(3).standard_normal((9, 7)).astype(np.float32)
    for num in (make(), NUMPY):
        every, named = (topk_weights(z, z, indices, kept, config, num) for kept in (None, indices >= 0))
        assert every.tobytes() == named.tobytes() and (every[indices < 0] == 0).all()


@pytest.mark.parametrize("dispatch", [{"capacity": 1}, {"capacity_factor": 0.5}])
def test_a_configuration_says_whether_it_drops(dispatch):
    indices, weights = np.zeros((4, 1), np.int64), np.ones((4, 1), np.float32)
    for asked, drops in ((dispatch, True), ({}, False)):
        config = make_config(num_experts=4, top_k=1, dispatch=DispatchConfig(**asked))
        assert config.drops == drops
        assert (kept_slots(indices, weights, config, Given()) == (indices >= 0)).all() != drops


@pytest.mark.parametrize("place", [0, 255, 256, 300, 511])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_one_number_that_is_not_finite_is_found(place, value):
    z, num = np.full((2, 256), np.finfo(np.float32).max, np.float32), make()
    refuse_nonfinite(z, num)
    z.reshape(-1)[place] = value
    with pytest.raises(ValueError, match=f"for token {place // 256}, expert {place % 256};"):
        refuse_nonfinite(z, num)


def test_c_refuses_before_it_writes():
    ffi, lib = load_module()
    ids, short = ffi.new("int64_t[]", [0, 5]), ffi.new("int64_t[]", [7] * 8)
    out, used = ffi.new("float[]", [9.0] * 8), ffi.new("uint8_t[]", [3] * 2)
    how = ffi.new("refmoe_how *", {"threads": 1})
    plan = [short] * 5
    assert lib.refmoe_make_plan(1, 2, 5, ids, ffi.NULL, ffi.NULL, *plan) == lib.REFMOE_BAD_OFFSETS
    assert lib.refmoe_make_plan(-1, 2, 5, ids, ffi.NULL, ffi.NULL, *plan) == lib.REFMOE_BAD_SIZE
    assert lib.refmoe_make_plan(1, 2, 6, ffi.NULL, ffi.NULL, ffi.NULL, *plan) == lib.REFMOE_BAD_POINTER
    assert lib.refmoe_at_slots(1, 2, 5, 5, out, ids, ffi.NULL, used, out) == lib.REFMOE_BAD_OFFSETS
    assert lib.refmoe_at_slots(1, 2, 0, 0, out, ids, ffi.NULL, used, out) == lib.REFMOE_BAD_SIZE
    assert lib.refmoe_at_slots(1, 2, 6, 6, ffi.NULL, ids, ffi.NULL, used, out) == lib.REFMOE_BAD_POINTER
    assert lib.refmoe_permute(how, 2, 4, 5, 1, out, ids, out) == lib.REFMOE_BAD_OFFSETS
    assert lib.refmoe_permute(how, 2, -4, 6, 1, out, ids, out) == lib.REFMOE_BAD_SIZE
    assert lib.refmoe_permute(how, 2, 4, 6, 1, ffi.NULL, ids, out) == lib.REFMOE_BAD_POINTER
    how.threads = 0
    assert lib.refmoe_permute(how, 1, 4, 6, 1, out, ids, out) == lib.REFMOE_BAD_THREADS
    assert list(short) == [7] * 8 and list(out) == [9.0] * 8 and list(used) == [3] * 2
