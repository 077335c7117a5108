"""Cases of chapter 3: activations at their edges, clamps, the expert's linear maps, and back."""

import numpy as np

from .form import Case, Recipe, above, f32, ints, sizes
from .gradients import layer_case

ABOUT = "What an expert computes on its rows, and the way back."

NOTES = {
    "ClampEdge": ("clamp derivative exclusive at the limit", "no gradient at exactly the limit"),
    "ClampOneSided": ("gate clamped below as well", "very negative gates leak"),
    "LinearOffset": ("offset added before the clamp, or left out", "up + 1 becomes up"),
    "Alpha": ("alpha applied outside the sigmoid, or its decimal text rounded to float32 first", "another activation"),
    "ReluAtZero": ("relu'(0) = 1", "gradient through dead units"),
    "Relu2": ("relu squared after rounding", "the last bit"),
    "GeluKind": ("tanh GELU in place of the exact one", "errors of 1e-3"),
    "OneRounding": ("activation rounded before it is multiplied by up", "the last bits"),
    "DoubleRounding": ("narrow store reached through float32", "one value in some thousands, at midpoints"),
    "Tails": ("exp overflows in the far tails", "NaN where the limit is 0 or the gate"),
    "EmptyExpert": ("gradient of an expert without rows left unwritten", "garbage in an optimiser"),
    "Biases": ("bias added after the rounding", "the last bits of gate and up"),
    "LimitPosition": (
        "clamp before the activation where after is meant, or its comparison rounded",
        "Step-3.7's layers",
    ),
    "SoftCap": (
        "silu's sigmoid capped with its linear factor, or 1 - tanh^2 where it cancels",
        "SiTU's value and slope",
    ),
    "SharedLimit": ("the shared expert clamped or activated like the routed ones", "HY-V4, Step-3.7, Aria"),
    "WeightInside": (
        "the weight applied to the hidden rows scales the down bias too",
        "another layer, where there are biases",
    ),
    "Weightless": (
        "experts without matrices left out of the router, or out of the scaling factor",
        "LongCat, MoE++, ZAYA",
    ),
    "Identity": ("an identity expert's row multiplied or rounded", "a copy that is none"),
    "Latent": (
        "router or shared expert fed with the narrower space, or the sum taken after the way back",
        "Nemotron 3 Super",
    ),
    "NormEpsilon": ("one epsilon for all norms where two are stated", "Muse Spark's two epsilons"),
    "NormScale": ("RMSNorm with 1 + weight read as weight, or the reverse", "Muse Spark's norms"),
    "NormPlace": (
        "a norm before the weights where it belongs behind the sum, or a weight of its own for each expert",
        "other values",
    ),
    "OutputBias": ("the output bias multiplied by the weights, or added for each expert", "JetMoE"),
    "Residual": ("a token that loses its slots gets nothing, or x whole beside its experts", "BASE layers"),
    "Combined": ("routed and shared summed where they are averaged or divided by the root of two", "Cohere 2, Grok-2"),
    "OutputNorm": ("the norm of routed alone", "A.X K1"),
    "SharedCount": ("shared experts averaged, or the first one alone", "Inkling's two"),
    "Orientation": ("weights read transposed", "wrong everywhere, or only when F = D"),
}


def cases():
    """Every case of the chapter."""
    yield from _activations()
    yield from _clamps()
    yield from _narrow()
    yield from _linear()
    yield from _bounded()
    yield from _other_kinds()
    yield from _around()


def _gated(gate, up, d_hidden):
    return {"gate_rows": f32([gate]), "up_rows": f32([up]), "d_hidden_rows": f32([d_hidden])}


def _activations():
    gate = [0.0, 1.0, -1.0, 0.7, -1.2784645, 20.0, -20.0, -0.0]
    up = [1.0, -2.0, 0.3, 1e-3, 5.0, 0.1, -3.0, 4.0]
    d_hidden = [1.0, 0.5, -2.0, 3.0, 1.0, -1.0, 7.0, 0.25]
    for name in ("silu", "gelu", "gelu_tanh", "relu", "relu2"):
        flags = {
            "gelu": ("GeluKind",),
            "gelu_tanh": ("GeluKind",),
            "relu": ("ReluAtZero",),
            "relu2": ("ReluAtZero", "Relu2"),
        }
        config = sizes(1, 1, experts={"activation": name})
        yield Case(
            f"gated {name}", (*flags.get(name, ()), "OneRounding"), "activation", _gated(gate, up, d_hidden), config
        )
        plain = {"up_rows": f32([gate]), "d_hidden_rows": f32([d_hidden])}
        config = sizes(1, 1, experts={"activation": name, "gated": False})
        yield Case(f"plain {name}", flags.get(name, ("OneRounding",)), "activation", plain, config)
    deepest = {"silu": (-103.0, -745.0, -1e30), "gelu": (-14.25, -745.0, -1e30), "gelu_tanh": (-10.5, -103.0, -1e30)}
    for name, gates in deepest.items():
        far = _gated([*gates, -5.5, 13.0, 88.0, 1e30, 3e38], [1.0] * 8, [1.0] * 8)
        yield Case(f"{name} in its tails", ("Tails",), "activation", far, sizes(1, 1, experts={"activation": name}))


def _clamps():
    experts = {"limit": 7.0, "alpha": 1.702, "linear_offset": 1.0}
    edge = [7.0, above(7.0), above(7.0, -1), 8.0, -7.0, -9.0, 0.5, -50.0]
    up = [7.0, 1.0, 1.0, above(7.0), -7.0, above(-7.0, -1), -1.0, 2.0]
    inputs = _gated(edge, up, [1.0, 1.0, -1.0, 0.5, 2.0, 1.0, 1.0, 1.0])
    flags = ("ClampEdge", "ClampOneSided", "LinearOffset", "Alpha")
    yield Case(
        "limit 7, alpha 1.702, offset 1, at the limits and one step beyond",
        flags,
        "activation",
        inputs,
        sizes(1, 1, experts=experts),
    )
    zero = sizes(1, 1, experts={"limit": 0.0})
    yield Case(
        "limit 0", ("ClampEdge",), "activation", _gated([0.0, 1.0, -1.0], [0.0, 1.0, -1.0], [1.0, 1.0, 1.0]), zero
    )


def _narrow():
    gate = [1.0, 1.5, -0.75, 3.0, 0.0078125, 100.0, -6.5, 2.0]
    up = [1.0, -2.0, 0.375, 0.001953125, 5.0, 3.0, -3.0, 257.0]
    for store in ("bf16", "fp16"):
        up = [float(np.float16(v)) if store == "fp16" else float(v) for v in up]
        up = [*up[:-1], 256.0]
        yield Case(f"silu stored in {store}", ("DoubleRounding", "OneRounding"), "activation",
                   _gated(gate, up, [1.0] * 8), sizes(1, 1), store=store)  # fmt: skip


def _linear():
    weights = {
        "w_gate": Recipe("w_gate", (3, 3, 2)),
        "w_up": Recipe("w_up", (3, 3, 2)),
        "w_down": Recipe("w_down", (3, 2, 3)),
    }
    rows = {"x_rows": Recipe("x", (4, 2)), "d_y_rows": Recipe("d_y", (4, 2)), "expert_offsets": ints([0, 1, 1, 4])}
    yield Case(
        "three experts, the middle one empty",
        ("EmptyExpert", "Orientation"),
        "expert_ffn",
        rows | weights,
        sizes(3, 1, 2, 3),
    )
    square = {
        "w_gate": Recipe("w_gate", (1, 2, 2)),
        "w_up": Recipe("w_up", (1, 2, 2)),
        "w_down": Recipe("w_down", (1, 2, 2)),
    }
    one = rows | square | {"expert_offsets": ints([0, 4])}
    yield Case(
        "F = D, where a transpose does not show in the shapes", ("Orientation",), "expert_ffn", one, sizes(1, 1, 2, 2)
    )
    biases = {"b_gate": Recipe("b_gate", (3, 3)), "b_up": Recipe("b_up", (3, 3)), "b_down": Recipe("b_down", (3, 2))}
    config = sizes(3, 1, 2, 3, experts={"biases": True, "limit": 0.5, "alpha": 1.702, "linear_offset": 1.0})
    yield Case(
        "biases inside the one rounding", ("Biases", "EmptyExpert"), "expert_ffn", rows | weights | biases, config
    )
    plain = {name: recipe for name, recipe in (rows | weights).items() if name != "w_gate"}
    config = sizes(3, 1, 2, 3, experts={"gated": False, "activation": "relu"})
    yield Case("plain relu experts", ("ReluAtZero", "EmptyExpert"), "expert_ffn", plain, config)
    wide = {name: r._replace(recipe="wide") if isinstance(r, Recipe) else r for name, r in (rows | weights).items()}
    yield Case("values over forty binades", ("OneRounding",), "expert_ffn", wide, sizes(3, 1, 2, 3))
    yield Case("the same under chain", ("OneRounding",), "expert_ffn", wide, sizes(3, 1, 2, 3), profile="chain")


def _bounded():
    gate = [4.0, above(4.0), -2.0, 0.0, 5.0, 100.0, above(2.0), 2.0]
    up = [4.0, 1.0, above(4.0), -4.0, -5.0, 0.5, 3.0, -1.0]
    inputs = _gated(gate, up, [1.0, -1.0, 2.0, 0.5, 1.0, 1.0, 1.0, -3.0])
    for name in ("silu", "relu2"):
        config = sizes(1, 1, experts={"activation": name, "limit": 4.0, "limit_position": "post"})
        yield Case(f"{name} clamped after it, limit 4", ("LimitPosition", "ClampEdge"), "activation", inputs, config)
    inputs = _gated(
        [1.0, -1.0, 0.0, 30.0, -30.0, 1e-30, 4.0, 3e38], [25.0, -25.0, 1.0, 1e30, 3.0, 1e-30, -0.0, 7.0], [1.0] * 8
    )
    capped = {"gate_softcap": 4.0, "up_softcap": 25.0}
    yield Case("soft caps 4 and 25", ("SoftCap", "Tails"), "activation", inputs, sizes(1, 1, experts=capped))
    more = capped | {"alpha": 1.702, "linear_offset": 1.0}
    yield Case("soft caps with alpha and offset", ("SoftCap", "Alpha", "LinearOffset"), "activation", inputs,
               sizes(1, 1, experts=more))  # fmt: skip
    narrow = {name: f32([[1.0, -2.0, 0.5, 8.0]]) for name in inputs}
    yield Case("soft caps stored in bf16", ("SoftCap", "DoubleRounding"), "activation", narrow,
               sizes(1, 1, experts=capped), store="bf16")  # fmt: skip
    shared = {"limit": 0.0625, "shared_intermediate_size": 2}
    for own in (
        {"shared_clamped": False},
        {"shared_limit": 0.25, "limit_position": "post"},
        {"shared_activation": "gelu"},
    ):
        yield layer_case(
            f"a shared expert with {', '.join(own)}", ("SharedLimit",), sizes(2, 1, 3, 2, experts=shared | own)
        )


def _other_kinds():
    hidden = sizes(2, 2, 3, 2, experts={"weight_position": "hidden", "biases": True})
    yield layer_case("the weight acts on the hidden rows, not on the bias", ("WeightInside",), hidden)
    longcat = {"selection_bias": True, "scaling_factor": 6.0}
    config = sizes(3, 2, 3, 2, routing=longcat, experts={"identity_experts": 2})
    yield layer_case("identity experts under a scaling factor", ("Weightless", "Identity"), config)
    every = {"constant_experts": 2, "identity_experts": 1, "zero_experts": 1}
    config = sizes(2, 3, 3, 2, routing={"normalize": True}, experts=every)
    yield layer_case("constant, identity and zero experts", ("Weightless", "Identity"), config)
    replay = ints([[5, 4, 3], [2, 3, -1], [4, -1, -1], [5, 0, 2]])
    yield layer_case("tokens without an expert that has matrices", ("Weightless",), config, topk_indices=replay)
    yield layer_case("experts without matrices stored in bf16", ("Weightless",), config, "bf16", store="bf16")


def _around():
    plain = {"gated": False, "activation": "relu2", "latent_size": 2, "shared_intermediate_size": 2}
    config = sizes(3, 2, 4, 3, routing={"score_fn": "sigmoid", "normalize": True}, experts=plain)
    yield layer_case("experts in a narrower space, the shared one not", ("Latent",), config)
    centred = dict.fromkeys(("latent_pre_norm", "post_expert_norm"), "rms_centered")
    config = sizes(3, 2, 4, 3, experts={"latent_size": 3, **centred})
    yield layer_case("centred norms before and behind each expert", ("Latent", "NormScale", "NormPlace"), config)
    config = sizes(3, 2, 4, 3, experts={"latent_size": 3, "latent_post_norm": "rms", "output_bias": True})
    yield layer_case("a norm of the weighted sum, and an output bias", ("NormPlace", "OutputBias"), config)
    config = sizes(2, 2, 3, 2, routing={"score_fn": "sigmoid"}, experts={"output_bias": True})
    yield layer_case("an output bias in the combine", ("OutputBias",), config)
    config = sizes(
        2, 1, 3, 2, routing={"score_fn": "sigmoid"}, dispatch={"capacity": 1}, experts={"residual": "complement"}
    )
    yield layer_case("what the weights leave of a token, dropped or not", ("Residual",), config)
    for kind in ("average", "sqrt2"):
        config = sizes(2, 1, 3, 2, experts={"shared_intermediate_size": 2, "shared_combine": kind})
        yield layer_case(f"routed and shared combined: {kind}", ("Combined",), config)
    config = sizes(2, 1, 3, 2, experts={"shared_intermediate_size": 2, "output_norm": "rms"})
    for store in ("float32", "bf16"):
        yield layer_case(
            f"a norm of routed and shared, stored in {store}", ("OutputNorm",), config, "bf16", store=store
        )
    config = sizes(2, 1, 3, 2, experts={"shared_intermediate_size": 2, "shared_count": 2})
    yield layer_case("two separate shared experts", ("SharedCount",), config)
    config = sizes(2, 1, 3, 2, experts={"latent_size": 2, "post_expert_norm": "rms_input_scaled"})
    yield layer_case("each expert's output scaled, then normed", ("NormScale",), config)
    muse = {"latent_size": 2, "latent_pre_norm": "rms_centered", "post_expert_norm": "rms_input_scaled"}
    config = sizes(2, 1, 3, 2, experts={**muse, "norm_eps": 1e-5, "post_expert_norm_eps": 0.5})
    yield layer_case("a norm behind the experts with an epsilon of its own", ("NormScale", "NormEpsilon"), config)
