"""Cases of chapter 5: whole layers there and back, one for each combination of rules that real models use."""

import numpy as np

from ...config import MoEConfig
from ...models import FAMILIES, load_preset
from ...recipes import generate_ids, generate_table, given_shapes, parameter_shapes
from .form import Case, Recipe, f32, ints, sizes

ABOUT = "Whole layers: outputs, losses, and every gradient split by source."

NOTES = {
    "ReadTwice": ("one of the two places where a loss reads the router's weight left out", "half the gradient"),
    "Preset": ("one rule of a published model missing", "the model's layer is not reproduced"),
    "SourcesOfX": ("one path into d_x left out: experts, shared expert, router", "training that almost works"),
    "SourcesOfLogits": ("losses' gradient dropped, or scaled with the task's", "no balancing"),
    "WeightOnInput": (
        "weight applied to the output, or its gradient taken there",
        "other values under a non-linear expert",
    ),
    "DropRenorm": ("weights renormalised before the drop where after is meant", "kept experts too small"),
    "GivenLogits": ("router trained although its logits were given", "a gradient made up"),
    "UpstreamLogits": ("an upstream gradient of the logits ignored", "a loss of the user's without effect"),
    "ExactClass": ("any permutation, routing, padding or layout error", "a difference that no rounding excuses"),
    "SoftMixture": (
        "the two softmaxes exchanged, run over the wrong axis, or over every sequence at once",
        "tokens of different sequences meet",
    ),
    "SoftLength": (
        "the length of a token or slot without its epsilon, or its gradient left out",
        "a router that drifts",
    ),
    "NarrowStore": ("rounding points in other places than at stored tensors", "drift against a bf16 kernel"),
    "Chain": ("a float32 chain that is split or reordered", "the last bits"),
}

TOKENS = 4


def cases():
    """Every case of the chapter."""
    for name in FAMILIES:
        config = load_preset(name, scale="minimal")
        yield Case(
            f"{name}, minimal scale",
            ("Preset", "SourcesOfX", "SourcesOfLogits"),
            "layer",
            _inputs(config, tokens=3),
            chosen(config),
        )
    yield from _combinations()
    yield from _dropped()
    yield from _soft()
    yield from _orthogonal()


def _inputs(config, recipe="bell", tokens=TOKENS, **given):
    """Tokens, upstream gradient and parameters by recipe, and two sequences where the rules ask for them."""
    shapes = {f"params.{name}": (name, *row) for name, row in parameter_shapes(config).items()}
    shapes |= {"x": ("x", (tokens, config.hidden_size), 0), "d_y": ("d_y", (tokens, config.hidden_size), 0)}
    exponent = 0 if recipe == "dyadic" else None
    made = {
        key: Recipe(name, shape, recipe, 0, e if exponent is None else exponent)
        for key, (name, shape, e) in shapes.items()
    }
    if config.dispatch.capacity_scope == "sequence" or config.needs_sequences:
        made["sequence_ids"] = np.arange(tokens, dtype=np.int64) // 2
    drawn = {name: Recipe(name, shape, rule) for name, (shape, rule) in given_shapes(config, tokens).items()}
    V = config.routing.hash_vocab_size
    if V:
        made["params.hash_table"] = generate_table("hash_table", (V, config.top_k), 0, config.num_choices)
        made["token_ids"] = generate_ids("token_ids", (tokens,), 0, V)
    return made | drawn | given


def chosen(config):
    """The dictionary of a configuration without the fields that have their defaults."""
    D, F, E, K = config.hidden_size, config.intermediate_size, config.num_experts, config.top_k
    neutral = MoEConfig(hidden_size=D, intermediate_size=F, num_experts=E, top_k=K).to_dict()
    return sizes(E, K, D, F) | _differing(config.to_dict(), neutral)


def _differing(value, neutral):
    out = {}
    for key, inner in value.items():
        if isinstance(inner, dict) and isinstance(neutral.get(key), dict):
            inner = _differing(inner, neutral[key])
            if inner:
                out[key] = inner
        elif inner != neutral[key]:
            out[key] = inner
    return out


def layer_case(comment, flags, config, recipe="bell", profile="exact", store="float32", **given):
    """A whole layer there and back, its arrays by recipe but for those given."""
    return Case(comment, flags, "layer", _inputs(MoEConfig.from_dict(config), recipe, **given), config, profile, store)


def _combinations():
    base = {"routing": {"normalize": True}}
    yield layer_case("the weight acts on the expert's input", ("WeightOnInput", "SourcesOfX"),
                 sizes(3, 2, 3, 2, **base, experts={"weight_position": "input"}))  # fmt: skip
    for after in (False, True):
        dispatch = {"capacity": 2, "normalize_after_drop": after}
        yield layer_case(
            f"capacity 2, renormalised after the drop: {after}",
            ("DropRenorm",),
            sizes(3, 2, 3, 2, **base, dispatch=dispatch),
        )
    config = sizes(3, 2, 3, 2, **base)
    logits = f32([[0.5, 1.0, -1.0], [2.0, 0.0, 0.25], [0.0, 0.0, 0.0], [-1.0, -2.0, -3.0]])
    yield layer_case("given logits", ("GivenLogits",), config, logits=logits)
    yield layer_case(
        "an upstream gradient of the logits", ("UpstreamLogits", "SourcesOfLogits"), config, d_logits=logits
    )
    replay = ints([[1, 0], [-1, 2], [2, 0], [-1, -1]])
    yield layer_case("replayed indices with unused slots", ("SourcesOfX",), config, topk_indices=replay)
    exact = sizes(4, 2, 4, 3, **base, experts={"activation": "relu"})
    pairs = f32([[0, -9, 0, -9], [-9, 0, 0, -9], [0, 0, -9, -9], [-9, -9, 0, 0]])  # two equal logits: weights of 1/2
    yield layer_case("small integers throughout", ("ExactClass",), exact, "dyadic", logits=pairs)
    every = {"balance": {"coefficient": 0.01}, "z": {"coefficient": 0.001}}
    shared = {"shared_intermediate_size": 2, "shared_gate": True}
    for store in ("bf16", "fp16"):
        narrow = sizes(3, 2, 3, 2, **base, experts=shared, losses=every)
        yield layer_case(f"stored in {store}", ("NarrowStore",), narrow, "bf16", store=store)
    for store in ("float32", "bf16"):
        yield layer_case(
            f"chain, stored in {store}", ("Chain",), sizes(3, 2, 3, 2, **base, losses=every), "bf16", "chain", store
        )


def _dropped():
    for after in (False, True):
        routing, dispatch = {"normalize": True, "second_expert": "random"}, {"normalize_after_drop": after}
        coin = f32([0.25, 0.999, 0.0, 0.5])
        config = sizes(3, 2, 3, 2, routing=routing, dispatch=dispatch)
        yield layer_case(f"a coin, renormalised after it: {after}", ("DropRenorm",), config, coin=coin)


def _orthogonal():
    for form, profile in (("l1", "exact"), ("frobenius", "exact"), ("frobenius", "chain")):
        losses = {"orthogonality": {"coefficient": 0.1, "form": form}}
        config = sizes(3, 2, 3, 2, routing={"normalize": True}, losses=losses)
        store = "bf16" if form == "frobenius" else "float32"
        comment = f"the router's weight read twice by a loss: {form}, {profile}"
        yield layer_case(comment, ("ReadTwice",), config, "bf16", profile, store)


def _soft():
    routing = {"selection": "soft", "slots_per_expert": 2}
    yield layer_case(
        "a soft mixture, two slots an expert", ("SoftMixture", "SoftLength"), sizes(2, 1, 3, 2, routing=routing)
    )
    routing = {"selection": "soft", "soft_scope": "sequence", "soft_norm_eps": 0.25}
    experts = {"gated": False, "activation": "relu", "shared_intermediate_size": 2}
    for profile, store in (("exact", "bf16"), ("chain", "float32")):
        config = sizes(3, 1, 3, 2, routing=routing, experts=experts)
        comment = f"a soft mixture of each sequence, {profile}, stored in {store}"
        yield layer_case(comment, ("SoftMixture", "SoftLength"), config, "bf16", profile, store)
    routing = {"selection": "soft"}
    logits = f32([[0.5, 1.0, -1.0], [2.0, 0.0, 0.25], [0.0, 0.0, 0.0], [-1.0, -2.0, -3.0]])
    config = sizes(3, 1, 3, 2, routing=routing)
    yield layer_case("a soft mixture, given logits", ("SoftMixture", "GivenLogits"), config, logits=logits)
