"""Cases of chapter 1 that need a whole layer: what a router does before its logits and after its weights."""

from .form import sizes
from .gradients import layer_case

NOTES = {
    "LearnedScale": (
        "a learned scale applied before renormalising, or to the choice",
        "the scale cancels, or moves the selection",
    ),
}


def cases():
    """Every case, there and back."""
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


def _case(comment, flag, routing, store="float32", given=None, **sections):
    config = sizes(4, 2, 3, 2, routing=routing, **sections)
    return layer_case(comment, (flag,), config, "bell" if store == "float32" else "bf16", store=store, **given or {})
