"""Packed weights of 8 bits and less in a layer: C reads codes and scales, and refuses what NumPy refuses."""

import numpy as np
import pytest
from codes_cases import middle_scales, packed
from kernel_cases import wide

import refmoe
from refmoe import kernels
from refmoe.formats import SCHEMES, Packed, quantise
from refmoe.numerics.contract import Rule
from refmoe.recipes import generate, init_params

if kernels.build_error() is not None:
    pytest.skip(f"no compiled module: {kernels.build_error()}", allow_module_level=True)

CONFIG = refmoe.MoEConfig(hidden_size=32, intermediate_size=16, num_experts=3, top_k=2)
NAMES = ("w_gate", "w_up", "w_down")


def quantised(scheme):
    params = init_params(CONFIG)
    rule = SCHEMES[scheme].rules[-1]
    return params._replace(**{name: quantise(getattr(params, name), scheme, rule) for name in NAMES})


def run(params, profile, backend):
    """(bits of what a layer makes, calls of the engine), forward and backward."""
    num, x = refmoe.Numerics(profile=profile, backend=backend), generate("x", (9, 32), 0)
    record = refmoe.moe_forward(x, params, CONFIG, num)
    grads = refmoe.moe_backward(np.ones_like(x), x, params, record, CONFIG, num)
    return [a.tobytes() for a in (record.y, grads.d_x, grads.params.w_gate)], dict(num.engine.calls)


@pytest.mark.parametrize("profile", ["exact", "chain"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_layer_gives_numpys_bits_in_one_call_a_product(scheme, profile):
    made, calls = run(quantised(scheme), profile, "c")
    assert made == run(quantised(scheme), profile, "numpy")[0]
    assert calls == run(init_params(CONFIG), profile, "c")[1]  # as many as plain arrays take: none is left to NumPy


def parts(w):
    """The same weights as a sequence of experts."""
    return Packed(list(w.codes), w.format, list(w.scales), w.block, w.scale_format, w.tensor_scales, w.columns)


@pytest.mark.parametrize("scheme", ["mxfp4", "fp8-block", "nvfp4"])
def test_experts_that_lie_apart_are_read_one_at_a_time(scheme):
    whole = quantised(scheme)
    apart = whole._replace(**{name: parts(getattr(whole, name)) for name in NAMES})
    made, calls = run(apart, "exact", "c")
    assert made == run(whole, "exact", "numpy")[0]
    assert sum(calls.values()) > sum(run(whole, "exact", "c")[1].values())


def test_one_expert_keeps_its_own_scales():
    w = packed(np.random.default_rng(0), (3, 5, 40), "nvfp4")
    for e in range(3):
        one = w.one(e)
        assert one.shape == (1, 5, 40) and one.exact(0).tobytes() == w.exact(e).tobytes()


def test_scales_may_be_the_codes_of_float32():
    w = packed(np.random.default_rng(0), (2, 5, 40), "int8")
    same = Packed(w.codes, "int8", w.scales.view(np.uint32), w.block)
    x, engine = wide(np.random.default_rng(1), (3, 40)), kernels.load()
    made = [engine.grouped_matmul(Rule("exact", "float32"), x, given, [0, 1, 3]).tobytes() for given in (w, same)]
    assert made[0] == made[1]


def unreadable():
    """name -> (weights that C leaves to NumPy, what NumPy says of them; None: nothing)."""
    w = packed(np.random.default_rng(0), (2, 5, 40), "fp8-block")
    beyond = Packed(np.full((2, 5, 40), 0x7E, np.uint8), "E4M3", np.full((2, 5, 2), 254, np.uint8), (1, 32))
    codes = np.full((2, 5, 40), 64, np.uint8)
    six = Packed(codes, "E3M2", np.full((2, 5, 2), 127, np.uint8), (1, 32))
    return {
        "a gap between rows": (Packed(np.repeat(w.codes, 2, axis=2)[:, :, ::2], "E4M3", w.scales, w.block), None),
        "scales with a gap": (Packed(w.codes, "E4M3", np.repeat(w.scales, 2, axis=2)[:, :, ::2], w.block), None),
        "products beyond float32": (beyond, "expected products that float32 can represent"),
        "a seventh bit": (six, "expected codes below 64 for E3M2"),
        "scales of other blocks": (Packed(w.codes, "E4M3", w.scales, (1, 128)), "expected .5, 1., got .1, 1."),
    }


@pytest.mark.parametrize("what", unreadable())
def test_what_C_does_not_read_is_as_in_numpy(what):
    w, said = unreadable()[what]
    x = wide(np.random.default_rng(1), (3, 40))
    engine = refmoe.Numerics(backend="c").engine
    assert not engine.reads_codes(w)
    with pytest.raises(ValueError, match="w: expected codes and scales that C can read, dense in memory"):
        engine.grouped_matmul(Rule("exact", "float32"), x, w, [0, 1, 3])
    made = []
    for backend in ("numpy", "c"):
        num = refmoe.Numerics(backend=backend)
        if said is None:
            made.append(refmoe.grouped.grouped_matmul("up_rows", x, w, np.array([0, 1, 3]), None, num).tobytes())
        else:
            with pytest.raises(ValueError, match=said):
                refmoe.grouped.grouped_matmul("up_rows", x, w, np.array([0, 1, 3]), None, num)
    assert len(set(made)) <= 1


def test_other_shapes_are_refused():
    w, engine = packed(np.random.default_rng(0), (2, 5, 40), "mxfp4", middle_scales), kernels.load()
    with pytest.raises(ValueError, match=r"x_rows: expected shape \(any, 40\), got \(3, 39\)"):
        engine.grouped_matmul(Rule("exact", "float32"), np.ones((3, 39), np.float32), w, [0, 1, 3])
    d = np.ones((3, 5), np.float32)
    with pytest.raises(ValueError, match=r"pairs\[1\] w: expected shape \(2, any, 40\), got \(2, 5, 38\)"):
        other = packed(np.random.default_rng(0), (2, 5, 38), "mxfp4")
        engine.grouped_matmul_backward_x(Rule("exact", "float32"), [(d, w), (d, other)], [0, 1, 3])
    with pytest.raises(ValueError, match="got other E2M1 in profile float64; decode them first"):
        engine.grouped_matmul(Rule("float64", "float64"), np.ones((3, 40)), w, [0, 1, 3])
