"""How an error is planted in the running library, and what must then notice it.

A detector is the name of a configuration in SMALL, checked with `check_gradients`, or one of LEAVES for the lines that
no layer with its arrays in memory comes through.
"""

import gc
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import CodeType, FunctionType

import numpy as np
from cases import config_of, losses_of, make, same_bits

import refmoe
from refmoe import Given, Numerics
from refmoe.check import STEP, Complex128, ComplexStep, check_gradients, complex_step
from refmoe.dispatch import make_plan
from refmoe.experts import shared_expert, shared_expert_backward
from refmoe.grouped import grouped_matmul_backward_w, grouped_matmul_backward_x
from refmoe.recipes import SharedParams, generate
from refmoe.scores import SCORE_FNS

_TINY = {"hidden_size": 3, "intermediate_size": 2, "num_experts": 4, "top_k": 2}

SMALL = {
    "silu": config_of(
        **_TINY,
        routing={"normalize": True, "scaling_factor": 1.5, "router_bias": True},
        experts={"alpha": 1.7, "biases": True},
    ),
    "clamped": config_of(**_TINY, routing={"normalize": True}, experts={"limit": 0.1, "linear_offset": 1.0}),
    "limit_after": config_of(
        **_TINY,
        routing={"normalize": True},
        experts={"limit": 0.03, "limit_position": "post", "shared_intermediate_size": 2, "shared_clamped": False},
    ),
    "soft_caps": config_of(**_TINY, experts={"gate_softcap": 0.5, "up_softcap": 0.4, "alpha": 1.7}),
    "gelu": config_of(**_TINY, routing={"score_fn": "sigmoid", "scaling_factor": 1.5}, experts={"activation": "gelu"}),
    "soft": config_of(
        **_TINY | {"top_k": 1, "num_experts": 2},
        routing={"selection": "soft", "slots_per_expert": 2, "soft_scope": "sequence", "soft_norm_eps": 0.1},
    ),
    "gelu_tanh": config_of(**_TINY, experts={"activation": "gelu_tanh"}),
    "relu": config_of(**_TINY, experts={"activation": "relu", "gated": False}),
    "relu2": config_of(**_TINY, experts={"activation": "relu2", "gated": False}),
    "sqrt_softplus": config_of(
        **_TINY, routing={"score_fn": "sqrt_softplus", "normalize": True, "norm_eps": 0.3, "scaling_factor": 1.5}
    ),
    "relu_scores": config_of(**_TINY, routing={"score_fn": "relu"}),
    "normed": config_of(**_TINY, routing={"input_norm": "rms_scaled", "input_norm_eps": 0.5, "normalize": True}),
    "capped": config_of(**_TINY, routing={"logits_scale": 0.7, "logits_softcap": 0.3, "normalize": True}),
    "logits_scale": config_of(**_TINY, routing={"logits_scale": 0.7, "normalize": True}),
    "jittered": config_of(
        **_TINY, routing={"jitter": "router", "input_norm": "rms_scaled", "noise": "learned", "normalize": True}
    ),
    "jittered_block": config_of(**_TINY, routing={"jitter": "block", "normalize": True}),
    "two_norm": config_of(**_TINY, routing={"normalize": True, "norm_p": 2}),
    "three_norm": config_of(
        **_TINY, routing={"score_fn": "sigmoid", "normalize": True, "norm_p": 3, "scaling_factor": 1.5}
    ),
    "zero_experts": config_of(
        **_TINY | {"top_k": 4}, routing={"score_fn": "sigmoid", "normalize": True}, experts={"zero_experts": 3}
    ),
    "joint": config_of(
        **_TINY,
        routing={"score_fn": "sigmoid", "normalize": True, "norm_over_shared": True, "global_scale": True},
        experts={"shared_intermediate_size": 2, "shared_count": 2},
    ),
    "scaled": config_of(**_TINY, routing={"normalize": True, "per_expert_scale": True, "global_scale": True}),
    "below_eps": config_of(
        **_TINY, routing={"score_fn": "sigmoid", "normalize": True, "norm_eps": 9.0, "norm_eps_mode": "clamp"}
    ),
    "after_drop": config_of(
        **_TINY,
        routing={"score_fn": "sigmoid", "normalize": True},
        dispatch={"capacity": 1, "normalize_after_drop": True},
    ),
    "on_input": config_of(**_TINY, experts={"weight_position": "input"}),
    "scaled_norm": config_of(**_TINY, experts={"post_expert_norm": "rms_input_scaled", "post_expert_norm_eps": 0.1}),
    "several_shared": config_of(**_TINY, experts={"shared_intermediate_size": 2, "shared_count": 2}),
    "latent": config_of(
        **_TINY,
        experts={
            "latent_size": 2,
            "latent_pre_norm": "rms_centered",
            "post_expert_norm": "rms",
            "latent_post_norm": "rms",
            "output_bias": True,
        },
    ),
    "complement": config_of(**_TINY, routing={"score_fn": "sigmoid"}, experts={"residual": "complement"}),
    "averaged": config_of(
        **_TINY, experts={"shared_intermediate_size": 2, "shared_combine": "average", "output_norm": "rms"}
    ),
    "on_hidden": config_of(**_TINY, experts={"weight_position": "hidden"}),
    "weightless": config_of(
        **_TINY | {"num_experts": 2, "top_k": 4},
        experts={"constant_experts": 1, "identity_experts": 1, "zero_experts": 1},
    ),
    "shared": config_of(**_TINY, experts={"shared_intermediate_size": 2, "shared_gate": True}),
    "softmax_tokens": config_of(
        **_TINY, routing={"score_fn": "softmax_tokens", "divide_by_count": True, "scaling_factor": 1.5}
    ),
    "divided": config_of(**_TINY, routing={"score_fn": "sigmoid", "divide_by_count": True, "scaling_factor": 1.5}),
    "sparsemixer": config_of(
        **_TINY,
        routing={
            "selection": "sparsemixer",
            "selection_base": "logits",
            "sparsemixer_eps": 2.0,
            "scaling_factor": 1.5,
        },
    ),
    "losses": config_of(**_TINY, routing={"normalize": True}, losses=losses_of({}, 0.3, {"eps": 0.1})),
    "devices": config_of(
        **_TINY,
        losses=losses_of(
            {"probs": "relu"},
            None,
            {"form": "deviation"},
            device={"num_devices": 2},
            communication={"num_devices": 2, "device_limit": 2},
        ),
    ),
    "load": config_of(**_TINY, routing={"noise": "learned"}, losses=losses_of(load={"eps": 0.5, "ddof": 1})),
    "orthogonal": config_of(**_TINY, losses=losses_of(orthogonality={})),
    "orthogonal_squares": config_of(**_TINY, losses=losses_of(orthogonality={"form": "frobenius"})),
    "information": config_of(**_TINY, losses=losses_of(mutual_information={})),
    "normalized_sigmoid": config_of(**_TINY, losses=losses_of({"probs": "normalized_sigmoid"})),
    "sigmoid_loss": config_of(**_TINY, losses=losses_of({"probs": "sigmoid", "scope": "sequence"})),
}


# --- detectors ---------------------------------------------------------------------------------------------------


def detects(name):
    """True if the gradient check of a small configuration, or a leaf's own check, fails."""
    if name in SMALL:
        return not check_gradients(SMALL[name], num_tokens=4).ok
    return not LEAVES[name]()


def scores_agree():
    """Each score's backward against complex step through its forward."""
    num = Numerics("float64", backend="numpy")
    z, d = (generate(name, (2, 4), 3).astype(np.float64) for name in ("z", "d"))
    return all(
        np.allclose(backward(d, z, num), score_slopes(forward, d, z), rtol=1e-13, atol=1e-15)
        for forward, backward in SCORE_FNS.values()
    )


def score_slopes(forward, d, z):
    out = np.empty(z.shape)
    for at in np.ndindex(z.shape):
        moved = z.astype(complex)
        moved[at] += 1j * STEP
        out[at] = np.sum(d * np.imag(forward(moved, _Complex())) / STEP)
    return out


class _Complex:
    def evaluate(self, name, formula, *stored, core=0):
        return formula(Complex128(), *stored)


def far_scores_agree():
    """sqrt(softplus(z)) is exp(z / 2) far below zero, and its slope half of it."""
    num, z = Numerics("float64", backend="numpy"), np.array([-800.0])
    forward, backward = SCORE_FNS["sqrt_softplus"]
    return np.allclose(backward(np.ones(1), z, num), forward(z, num) / 2, rtol=1e-14, atol=0)


def lazy_agrees():
    """Weights given by function and gradients taken by sinks, against arrays."""
    num = Numerics(backend="numpy")
    indices = np.array([[0, 2], [2, 3], [0, 1]])
    offsets = make_plan(indices, None, SMALL["silu"], Given()).expert_offsets
    d, x, w = (generate(name, shape, 5) for name, shape in (("d", (6, 2)), ("x", (6, 3)), ("w", (4, 2, 3))))
    sink = Sink()
    grouped_matmul_backward_w("d_w_up", d, x, offsets, sink, num)
    want = grouped_matmul_backward_w("d_w_up", d, x, offsets, None, num)
    got_x = grouped_matmul_backward_x("d_x_rows", [(d, Lazy(w)), (d, w)], offsets, num)
    want_x = grouped_matmul_backward_x("d_x_rows", [(d, w), (d, w)], offsets, num)
    return same_bits(np.stack(sink.taken), want) and same_bits(got_x, want_x)


def upstream_agrees():
    """Every gradient is linear in d_y, d_losses and d_logits: three times all of them gives three times everything."""
    config, num = SMALL["losses"], Numerics("float64", backend="numpy")
    x, params, d_y = make(config, num, 4)
    record = refmoe.moe_forward(x, params, config, num)
    more = generate("more", (4, 4), 1).astype(np.float64)
    losses = refmoe.Losses(0.5, 0.25, 2.0)

    def w_router(scale):
        scaled = refmoe.Losses(*(scale * value for value in losses[:3]))
        grads = refmoe.moe_backward(scale * d_y, x, params, record, config, num, d_losses=scaled, d_logits=scale * more)
        return grads.params.w_router, grads.d_logits

    (w, z), (w3, z3) = w_router(1.0), w_router(3.0)
    parts = refmoe.moe_backward(d_y, x, params, record, config, num, d_losses=losses)
    return (
        np.allclose(w3, 3 * w, rtol=1e-13)
        and np.allclose(z3, 3 * z)
        and np.allclose(z, parts.d_logits + more, rtol=1e-13)
    )


class Lazy:
    """Expert weights that exist only while they are read."""

    def __init__(self, w):
        self.w, self.shape, self.reads = w, w.shape, []

    def __call__(self, e):
        self.reads.append(e)
        return self.w[e]


class Sink:
    """Keeps what it is given, and the order of the experts."""

    def __init__(self):
        self.taken, self.experts = [], []

    def take(self, e, d_w):
        self.experts.append(e)
        self.taken.append(d_w)


def weighted_shared_agree():
    """The shared experts with weights of the router's, against complex step."""
    num, experts = Numerics("float64", backend="numpy"), SMALL["several_shared"].experts
    x, params, d = make(SMALL["several_shared"], num, 4)
    w = generate("w", (4, 2), 2).astype(np.float64)
    record = shared_expert(x, params.shared, experts, num, w)
    made, _ = shared_expert_backward(d, x, params.shared, record, experts, num, SharedParams(), w)

    def of(x=x, w=w):
        return np.sum(d * shared_expert(x, params.shared, experts, ComplexStep(), w).shared)

    slopes = [(made.d_shared_weights, w, lambda v: of(w=v)), (made.d_x_shared, x, lambda v: of(x=v))]
    return all(
        np.allclose(d_v.reshape(-1), [complex_step(f, v, i) for i in range(v.size)], rtol=1e-13, atol=1e-15)
        for d_v, v, f in slopes
    )


LEAVES = {
    "weighted_shared": weighted_shared_agree,
    "scores": scores_agree,
    "far": far_scores_agree,
    "lazy": lazy_agrees,
    "upstream": upstream_agrees,
}


# --- planting ----------------------------------------------------------------------------------------------------


@contextmanager
def planted(module, old, new):
    """Within the block every function of the module runs as if `old` read `new` in its source, whoever imported it."""
    path = import_module(f"refmoe.{module}").__file__
    source = Path(path).read_text(encoding="utf-8")
    assert source.count(old) == 1, f"{module}: {old!r} stands there {source.count(old)} times, expected once"
    before, after = (list(_codes(compile(text, path, "exec"))) for text in (source, source.replace(old, new)))
    assert [code.co_qualname for code in before] == [code.co_qualname for code in after]
    changed = {_place(a): b for a, b in zip(before, after) if a != b}
    functions = [f for f in gc.get_objects() if isinstance(f, FunctionType) and f.__code__.co_filename == path]
    swapped = [(f, f.__code__) for f in functions if _place(f.__code__) in changed]
    assert swapped, f"{module}: nothing that runs holds {old!r}"
    for function, code in swapped:
        function.__code__ = changed[_place(code)]
    try:
        yield
    finally:
        for function, code in swapped:
            function.__code__ = code


def _codes(code):
    """Every code object inside a module's, outer ones first."""
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield inner
            yield from _codes(inner)


def _place(code):
    return code.co_qualname, tuple(code.co_positions())
