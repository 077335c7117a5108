"""Cases of chapter 1 that need a whole layer: what a router does before its logits and after its weights."""

from .form import Recipe, sizes
from .gradients import layer_case

NOTES = {
    "JointSum": (
        "shared experts left out of the normaliser, or unweighted",
        "shared experts too loud, routed ones too",
    ),
    "PNorm": ("a sum where a p-norm is meant, or a gradient of the sum", "weights too small, and a biased gradient"),
    "ZeroShare": (
        "zero experts counted in the normaliser",
        "a token that skips half its experts loses half its weight",
    ),
    "RouterInput": (
        "the router reads x where it should read its own input, or the experts read the router's",
        "other experts, and a gradient that misses a path",
    ),
    "InputNorm": ("the norm's rounding between its factors, or D^-1/2 left out", "flat or sharp probabilities"),
    "LogitsScale": ("a scale after the soft cap, or a cap left out", "logits beyond what the model ever saw"),
    "Noise": ("noise drawn where it is given, or without its learned deviation", "a router that cannot be replayed"),
    "Evaluation": ("noise or jitter expected where none is given", "a router that cannot be evaluated"),
    "LearnedScale": (
        "a learned scale applied before renormalising, or to the choice",
        "the scale cancels, or moves the selection",
    ),
}


def scales():
    """Learned scales of the weights."""
    for scales in (
        {"per_expert_scale": True},
        {"global_scale": True},
        {"per_expert_scale": True, "global_scale": True},
    ):
        routing = {"normalize": True, "scaling_factor": 1.5, **scales}
        yield _case(f"weights times {' and '.join(scales)}", "LearnedScale", routing)
    routing = {"score_fn": "sigmoid", "normalize": True, "per_expert_scale": True, "global_scale": True}
    dropped = {"capacity": 2, "normalize_after_drop": True}
    yield _case("scales after the drop, stored in bf16", "LearnedScale", routing, store="bf16", dispatch=dropped)


def front():
    """What the router does to its input, to its logits, and to the sum of its scores."""
    yield from _input()
    yield from _logits()
    yield from _sums()


def joint():
    """One sum over routed and shared experts."""
    inkling = {"score_fn": "sigmoid", "normalize": True, "norm_over_shared": True, "selection_bias": True}
    shared = {"shared_intermediate_size": 2, "shared_count": 2}
    scaled = {**inkling, "scaling_factor": 2.5, "global_scale": True}
    yield _case("two shared experts in the sum", "JointSum", inkling, experts=shared)
    yield _case("scaled by a constant and by one learned factor", "JointSum", scaled, experts=shared)
    dropped = {"capacity": 2, "normalize_after_drop": True}
    yield _case(
        "one shared expert, after the drop",
        "JointSum",
        inkling,
        dispatch=dropped,
        experts={**shared, "shared_count": 1},
    )


def _sums():
    for p in (2, 3):
        for score in ("softmax", "sigmoid"):
            routing = {"score_fn": score, "normalize": True, "norm_p": p, "scaling_factor": 1.5}
            yield _case(f"{score} over its {p}-norm", "PNorm", routing)
    zero = {"zero_experts": 2, "identity_experts": 1}
    for score in ("softmax", "sigmoid"):
        routing = {"score_fn": score, "normalize": True}
        yield _case(f"zero experts leave their share, {score}", "ZeroShare", routing, top_k=3, experts=zero)


def _input():
    norm = {"input_norm": "rms_scaled", "normalize": True}
    yield _case("the router reads a norm of x", "InputNorm", norm)
    yield _case("the same, stored in bf16, with a large epsilon", "InputNorm", {**norm, "input_norm_eps": 0.5}, "bf16")
    for scope in ("router", "block"):
        jittered = {"jitter": scope, "normalize": True}
        shared = {"shared_intermediate_size": 2}
        yield _case(f"jitter, {scope}", "RouterInput", jittered, given=_drawn("jitter"), experts=shared)
        yield _case(f"jitter, {scope}, evaluated", "Evaluation", jittered, experts=shared)
    yield _case("jitter before the norm", "RouterInput", {"jitter": "router", **norm}, given=_drawn("jitter"))


def _logits():
    for bounds in ({"logits_scale": 0.25}, {"logits_softcap": 0.5}, {"logits_scale": 1.7, "logits_softcap": 0.5}):
        yield _case(f"{', '.join(bounds)}", "LogitsScale", {"score_fn": "sigmoid", "router_bias": True, **bounds})
    noisy = {"noise": "learned", "normalize": True}
    yield _case("learned noise", "Noise", noisy, given=_drawn("noise"))
    yield _case("learned noise, evaluated", "Evaluation", noisy)
    fixed = {"noise": "fixed", "noise_std": 0.25, "logits_softcap": 2.0}
    yield _case("fixed noise on capped logits", "Noise", fixed, given=_drawn("noise"))


def _drawn(name):
    shape, recipe = {"jitter": ((4, 3), "bf16"), "noise": ((4, 4), "bell")}[name]
    return {name: Recipe(name, shape, recipe)}


def _case(comment, flag, routing, store="float32", given=None, top_k=2, **sections):
    config = sizes(4, top_k, 3, 2, routing=routing, **sections)
    return layer_case(comment, (flag,), config, "bell" if store == "float32" else "bf16", store=store, **given or {})
