"""What each family of checkpoints declares: names, layouts and rules, as data. Nothing is guessed from a shape.

Read in the modelling and conversion code of transformers 5.23.0 (models/<model_type>/, conversion_mapping.py), where a
row's comment names no other source. To add a family, add a row.
"""

from typing import NamedTuple

# Text models, and the ones inside multimodal models, before and after transformers 5.
ROOTS = "model.layers.{layer}.", "language_model.model.layers.{layer}.", "model.language_model.layers.{layer}."


class Place(NamedTuple):
    """Where the tensors of one parameter lie, relative to the layer's root; {e} stands for an expert's number."""

    name: str
    layout: str = "out_in"  # in_out: stored transposed
    stack: str = "each"  # a tensor an expert; "stacked": (E, ..); "flat": experts one below the other; "blocks": MXFP4
    part: str = "whole"  # of the output axis: "first" or "second" half, "even" or "odd" rows
    scales: str = ""  # ends the name of the scales beside 8-bit codes, after the name of these; "": no such codes


class Family(NamedTuple):
    """One model_type. Fields of config.json are written a|b (either name) or (a|b, value if absent or null)."""

    fields: dict  # field of MoEConfig -> its name in config.json
    rules: dict  # field of MoEConfig -> the value the family's code has built in
    router: dict  # w_router, router_bias, selection_bias -> names tried in turn
    experts: tuple  # variants, each parameter -> Place; the one that is there in full is read
    shared: tuple = ()  # the same for the shared expert, with w_shared_gate
    shared_width: tuple = ()  # fields of config.json whose product it is; 0 when the first is absent or 0
    expects: tuple = ()  # (field of config.json, the values this reading is right for, if the field is there) ...
    roots: tuple = ROOTS
    decoder_root: str = ""  # encoder-decoder models: their decoder's layers count on after the encoder's
    one_before: tuple = ()  # router tensors stored with an axis of length 1 before the others
    groups_if: tuple = ()  # (field of config.json, value): the groups count only then
    since_5: tuple = ()  # variants instead of `experts` if config.json's transformers_version is 5 or later


# --- variants of expert storage ---------------------------------------------------------------------------------------


def each(block, gate="gate_proj", up="up_proj", down="down_proj", experts="experts.{e}."):
    """A tensor an expert, (out, in); gate None for plain experts."""
    names = {"w_gate": gate, "w_up": up, "w_down": down}
    paths = {leaf: f"{block}{experts}{name}.weight" for leaf, name in names.items() if name}
    return {leaf: Place(path, scales="_scale_inv") for leaf, path in paths.items()}


def fused(gate_up, down, layout="out_in", stack="stacked", order=("first", "second"), scales=""):
    """All experts in two tensors, gate and up joined: as halves, gate first, or interleaved (even rows are gate)."""
    gate, up = (Place(gate_up, layout, stack, part, scales) for part in order)
    return {"w_gate": gate, "w_up": up, "w_down": Place(down, layout, stack, scales=scales)}


def both(block, **names):
    """The names on disk before transformers 5, and the fused ones it works with."""
    return each(block, **names), fused(f"{block}experts.gate_up_proj", f"{block}experts.down_proj", scales="_scale_inv")


def _biases(gate_up, down, order):
    parts = zip(("b_gate", "b_up"), order, strict=True)
    return {leaf: Place(gate_up, part=part) for leaf, part in parts} | {"b_down": Place(down)}


MLP, SPARSE, FEED = "mlp.", "block_sparse_moe.", "feed_forward."
W123 = {"gate": "w1", "up": "w3", "down": "w2"}
EVEN_ODD = ("even", "odd")
GPT_OSS_BIASES = _biases("mlp.experts.gate_up_proj_bias", "mlp.experts.down_proj_bias", EVEN_ODD)
SHARED_EXPERTS = (each("mlp.", experts="shared_experts."),)
QWEN_SHARED = ({**each("mlp.", experts="shared_expert."), "w_shared_gate": Place("mlp.shared_expert_gate.weight")},)

# --- fields and rules that several families share ---------------------------------------------------------------------

_SIZES = {"hidden_size": "hidden_size", "top_k": "num_experts_per_tok", "hidden_act": "hidden_act"}
_COUNT = {"num_experts": "num_local_experts|num_experts"}
_WIDE, _NARROW = {"intermediate_size": "intermediate_size"}, {"intermediate_size": "moe_intermediate_size"}
_FLAG = {"routing.normalize": "norm_topk_prob"}
_GROUPS = {"routing.num_groups": "n_group", "routing.top_groups": "topk_group"}
_GROUPS_OR_ONE = {path: (name, 1) for path, name in _GROUPS.items()}
_SCALED = {"routing.scaling_factor": "routed_scaling_factor"}
_SOFTMAX = {"routing.score_fn": "softmax"}
_NORM0 = {**_SOFTMAX, "routing.normalize": True}
_LOGITS0 = {**_NORM0, "routing.selection_base": "logits"}  # the K best logits, then a softmax over these
_SIGMOID = {"routing.score_fn": "sigmoid", "routing.selection_bias": True}
_EPS20 = {**_SIGMOID, "routing.norm_eps": 1e-20}
_GATE = {"w_router": ("mlp.gate.weight",)}

DEEPSEEK_V3 = Family(
    {**_SIZES, **_NARROW, "num_experts": "n_routed_experts|num_local_experts", **_FLAG, **_GROUPS, **_SCALED}, _EPS20,
    {**_GATE, "selection_bias": ("mlp.gate.e_score_correction_bias",)},
    both(MLP), SHARED_EXPERTS, ("n_shared_experts", "moe_intermediate_size"),
    (("scoring_func", ("sigmoid",)), ("topk_method", ("noaux_tc",))),
)  # fmt: skip
ONE_GROUP = DEEPSEEK_V3._replace(fields={**DEEPSEEK_V3.fields, **_GROUPS_OR_ONE})
QWEN = Family({**_SIZES, **_COUNT, **_NARROW, **_FLAG}, _SOFTMAX, _GATE, both(MLP))
QWEN_GATED = QWEN._replace(shared=QWEN_SHARED, shared_width=("shared_expert_intermediate_size",))
MIXTRAL = Family(
    {**_SIZES, **_COUNT, **_WIDE}, _NORM0, {"w_router": ("block_sparse_moe.gate.weight", "mlp.gate.weight")},
    (each(SPARSE, **W123), *both(MLP)),
)  # fmt: skip
GRANITE = Family(
    {**_SIZES, **_COUNT, **_WIDE}, _LOGITS0,
    {"w_router": ("block_sparse_moe.router.layer.weight", "block_sparse_moe.router.weight")},
    (fused(f"{SPARSE}input_linear.weight", f"{SPARSE}output_linear.weight"),
     fused(f"{SPARSE}experts.gate_up_proj", f"{SPARSE}experts.down_proj")),
)  # fmt: skip

FAMILIES = {
    "mixtral": MIXTRAL,
    "minimax": MIXTRAL,
    "olmoe": QWEN._replace(fields={**_SIZES, **_COUNT, **_WIDE, **_FLAG}),
    "flex_olmo": QWEN._replace(fields={**_SIZES, **_COUNT, **_WIDE, **_FLAG}),
    "qwen2_moe": QWEN_GATED._replace(rules={**_SOFTMAX, "experts.shared_gate": True}),
    "qwen3_moe": QWEN,
    "qwen3_next": QWEN_GATED._replace(rules={**_SOFTMAX, "experts.shared_gate": True}),
    "qwen3_5_moe_text": QWEN_GATED._replace(
        fields={**_SIZES, **_COUNT, **_NARROW}, rules={**_NORM0, "experts.shared_gate": True}
    ),
    "qwen3_vl_moe_text": QWEN._replace(
        fields={**_SIZES, **_COUNT, **_NARROW}, rules=_NORM0,
        experts=(fused("mlp.experts.gate_up_proj", "mlp.experts.down_proj", "in_out"),),
        # Version 5 turns the tensors when it reads them and, comparing shapes, does not turn them back to write them.
        since_5=(fused("mlp.experts.gate_up_proj", "mlp.experts.down_proj"),),
    ),
    "jamba": Family(
        {**_SIZES, **_COUNT, **_WIDE}, _SOFTMAX, {"w_router": ("feed_forward.router.weight",)}, both(FEED)
    ),
    "dbrx": Family(
        {"hidden_size": "d_model", "intermediate_size": "ffn_config.ffn_hidden_size",
         "num_experts": "ffn_config.moe_num_experts", "top_k": "ffn_config.moe_top_k",
         "hidden_act": ("ffn_config.ffn_act_fn.name", "silu")},
        _NORM0, {"w_router": ("ffn.router.layer.weight",)},
        ({"w_gate": Place("ffn.experts.mlp.w1", stack="flat"), "w_up": Place("ffn.experts.mlp.v1", stack="flat"),
          "w_down": Place("ffn.experts.mlp.w2", "in_out", "flat")},),
        expects=(("ffn_config.moe_normalize_expert_weights", (1,)),),
        roots=("transformer.blocks.{layer}.",),
    ),
    "granitemoe": GRANITE,
    "granitemoeshared": GRANITE._replace(
        shared=(fused("shared_mlp.input_linear.weight", "shared_mlp.output_linear.weight", stack="each"),),
        shared_width=("shared_intermediate_size",),
    ),
    "gpt_oss": Family(
        {**_SIZES, **_COUNT, **_WIDE, "experts.limit": ("swiglu_limit", 7.0), "experts.alpha": ("swiglu_alpha", 1.702)},
        {**_LOGITS0, "routing.router_bias": True, "experts.linear_offset": 1.0, "experts.biases": True},
        {"w_router": ("mlp.router.weight",), "router_bias": ("mlp.router.bias",)},
        ({**fused("mlp.experts.gate_up_proj_blocks", "mlp.experts.down_proj_blocks", "out_in", "blocks", EVEN_ODD),
          **GPT_OSS_BIASES},
         {**fused("mlp.experts.gate_up_proj", "mlp.experts.down_proj", "in_out", order=EVEN_ODD), **GPT_OSS_BIASES}),
    ),
    "llama4_text": Family(
        {**_SIZES, **_COUNT, **_WIDE},
        {"routing.score_fn": "sigmoid", "routing.selection_base": "logits", "experts.weight_position": "input"},
        {"w_router": ("feed_forward.router.weight",)},
        (fused("feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj", "in_out"),),
        (each(FEED, experts="shared_expert."),), ("intermediate_size",),
    ),
    "ernie4_5_moe": Family(
        {**_SIZES, **_NARROW, "num_experts": "moe_num_experts|num_experts", "top_k": "moe_k|num_experts_per_tok",
         "routing.norm_eps": ("moe_norm_min", 1e-12)},
        {**_NORM0, "routing.selection_bias": True, "routing.norm_eps_mode": "clamp"},
        {**_GATE, "selection_bias": ("mlp.moe_statics.e_score_correction_bias",
                                     "mlp.gate.moe_statics.e_score_correction_bias")},
        both(MLP), SHARED_EXPERTS, ("moe_num_shared_experts", "moe_intermediate_size"), (("use_bias", (False,)),),
        one_before=("selection_bias",),
    ),
    "deepseek_v2": DEEPSEEK_V3._replace(  # transformers ignores norm_topk_prob here, other code does not
        fields={**_SIZES, **_NARROW, "num_experts": "n_routed_experts|num_experts", **_GROUPS_OR_ONE, **_SCALED},
        rules={**_SOFTMAX, "routing.group_score_topn": 1, "routing.group_mask": "zero"}, router=_GATE,
        expects=(("norm_topk_prob", (False,)), ("topk_method", ("greedy", "group_limited_greedy")),
                 ("scoring_func", ("softmax",)), ("mlp_bias", (False,))),
        groups_if=("topk_method", "group_limited_greedy"),
    ),
    "deepseek_v3": DEEPSEEK_V3,
    "deepseek_v32": DEEPSEEK_V3,
    "kimi_k2": DEEPSEEK_V3,  # its config.json names DeepSeek-V3's classes; transformers has none of its own
    "glm4_moe": ONE_GROUP,
    "glm4_moe_lite": ONE_GROUP,
    "glm_moe_dsa": ONE_GROUP,
    "solar_open": ONE_GROUP,
    "dots1": ONE_GROUP._replace(expects=()),  # its checkpoints fill scoring_func in more than one way; no code reads it
    "mimo_v2_flash": ONE_GROUP._replace(
        fields={**ONE_GROUP.fields, "routing.scaling_factor": ("routed_scaling_factor", 1.0)},
        shared=(), shared_width=(),
    ),
    "minimax_m2": Family(
        {**_SIZES, **_COUNT, **_WIDE}, {**_SIGMOID, "routing.normalize": True},
        {"w_router": ("block_sparse_moe.gate.weight", "mlp.gate.weight"),
         "selection_bias": ("block_sparse_moe.e_score_correction_bias", "mlp.e_score_correction_bias")},
        (each(SPARSE, **W123), *both(MLP)),
        expects=(("scoring_func", ("sigmoid",)), ("use_routing_bias", (True,)), ("shared_intermediate_size", (0,))),
    ),
    "lfm2_moe": Family(
        {**{k: v for k, v in _SIZES.items() if k != "hidden_act"}, **_COUNT, **_NARROW, **_FLAG, **_SCALED,
         "routing.selection_bias": "use_expert_bias"},
        {"routing.score_fn": "sigmoid", "routing.norm_eps": 1e-6, "experts.activation": "silu"},
        {"w_router": ("feed_forward.gate.weight",), "selection_bias": ("feed_forward.expert_bias",)},
        (each(FEED, **W123), both(FEED)[1]),
    ),
    "afmoe": Family(
        {**_SIZES, **_COUNT, **_NARROW, "routing.scaling_factor": "route_scale"}, {**_EPS20, "routing.normalize": True},
        {"w_router": ("mlp.router.gate.weight",), "selection_bias": ("mlp.expert_bias",)},
        both(MLP), SHARED_EXPERTS, ("num_shared_experts", "moe_intermediate_size"),
    ),
    "hy_v3": Family(
        {**_SIZES, **_COUNT, **_NARROW, "routing.scaling_factor": "router_scaling_factor"},
        {**_EPS20, "routing.normalize": True},
        {"w_router": ("mlp.router.gate.weight", "mlp.gate.weight"),
         "selection_bias": ("mlp.expert_bias", "mlp.e_score_correction_bias")},
        both(MLP), (each(MLP, experts="shared_mlp."), *SHARED_EXPERTS), ("num_shared_experts", "moe_intermediate_size"),
    ),
    "nemotron_h": Family(
        {**_SIZES, **_NARROW, "num_experts": "n_routed_experts", "hidden_act": "mlp_hidden_act", **_FLAG, **_GROUPS,
         **_SCALED},
        {**_EPS20, "experts.gated": False},
        {"w_router": ("mixer.gate.weight",), "selection_bias": ("mixer.gate.e_score_correction_bias",)},
        (each("mixer.", gate=None),
         {"w_up": Place("mixer.experts.up_proj", stack="stacked"),
          "w_down": Place("mixer.experts.down_proj", stack="stacked")}),
        (each("mixer.", gate=None, experts="shared_experts."),), ("moe_shared_expert_intermediate_size",),
        (("moe_latent_size", (None,)), ("mlp_bias", (False,))), ("backbone.layers.{layer}.", "model.layers.{layer}."),
    ),
    "switch_transformers": Family(
        {"hidden_size": "d_model", "intermediate_size": "d_ff", "num_experts": "num_experts",
         "dispatch.capacity": "expert_capacity", "hidden_act": ("dense_act_fn", "relu"),
         "routing.router_bias": ("router_bias", False)},
        {**_SOFTMAX, "top_k": 1, "experts.gated": False, "dispatch.capacity_scope": "sequence"},
        {"w_router": ("mlp.router.classifier.weight",), "router_bias": ("mlp.router.classifier.bias",)},
        (each(MLP, gate=None, up="wi", down="wo", experts="experts.expert_{e}."),),
        roots=("encoder.block.{layer}.layer.1.",), decoder_root="decoder.block.{layer}.layer.2.",
    ),
}  # fmt: skip

# Published families whose layer today's configuration cannot state, and what it lacks.
NOT_YET = {
    "phimoe": "selection by two masked arg-max passes (SparseMixer)",
    "longcat_flash": "identity experts without weights",
    "gemma4_text": "a norm before the router and a scale for each expert",
    "jetmoe": "an output bias after the combine",
    "deepseek_v4": "layers that choose experts by a table of token ids",
    "inkling_mm_model": "shared experts weighted by the router",
    "inkling2_text": "soft caps in the activation",
    "muse_spark_text": "latent experts with norms",
    "axk1": "a norm of the layer's output",
    "step3p7": "a clamp after the activation",
    "zaya": "a router network with a state of its own",
}
