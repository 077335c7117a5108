"""Families whose router is a softmax."""

from .form import (
    COUNT,
    EVEN_ODD,
    FEED,
    FLAG,
    GATE,
    GROUPS,
    GROUPS_OR_ONE,
    LOGITS0,
    MLP,
    NARROW,
    NORM0,
    ROOTS,
    SCALED,
    SHARED_EXPERTS,
    SIZES,
    SOFTMAX,
    SPARSE,
    W123,
    WIDE,
    Family,
    Place,
    biases,
    both,
    each,
    fused,
)

QWEN_SHARED = ({**each(MLP, experts="shared_expert."), "w_shared_gate": Place("mlp.shared_expert_gate.weight")},)
QWEN = Family({**SIZES, **COUNT, **NARROW, **FLAG}, SOFTMAX, GATE, both(MLP))
QWEN_GATED = QWEN._replace(
    rules={**SOFTMAX, "experts.shared_gate": True}, shared=QWEN_SHARED,
    shared_width=("shared_expert_intermediate_size",),
)  # fmt: skip
OLMOE = QWEN._replace(fields={**SIZES, **COUNT, **WIDE, **FLAG})
MIXTRAL = Family(
    {**SIZES, **COUNT, **WIDE}, NORM0, {"w_router": ("block_sparse_moe.gate.weight", "mlp.gate.weight")},
    (each(SPARSE, **W123), *both(MLP)),
)  # fmt: skip
GRANITE = Family(
    {**SIZES, **COUNT, **WIDE}, LOGITS0,
    {"w_router": ("block_sparse_moe.router.layer.weight", "block_sparse_moe.router.weight")},
    (fused(f"{SPARSE}input_linear.weight", f"{SPARSE}output_linear.weight"),
     fused(f"{SPARSE}experts.gate_up_proj", f"{SPARSE}experts.down_proj")),
)  # fmt: skip
GRANITE_SHARED = GRANITE._replace(
    shared=(fused("shared_mlp.input_linear.weight", "shared_mlp.output_linear.weight", stack="each"),),
    shared_width=("shared_intermediate_size",),
)
GPT_OSS = Family(
    {**SIZES, **COUNT, **WIDE, "experts.limit": ("swiglu_limit", 7.0), "experts.alpha": ("swiglu_alpha", 1.702)},
    {**LOGITS0, "routing.router_bias": True, "experts.linear_offset": 1.0, "experts.biases": True},
    {"w_router": ("mlp.router.weight",), "router_bias": ("mlp.router.bias",)}, (),
)  # fmt: skip
GPT_OSS_BIASES = biases("mlp.experts.gate_up_proj_bias", "mlp.experts.down_proj_bias", EVEN_ODD)
FILTER_BIASES = biases("mlp.experts.gate_up_proj_bias", "mlp.experts.down_proj_bias", ("first", "second"))
DEEPSEEK_V2 = Family(  # transformers ignores norm_topk_prob here, other code does not
    {**SIZES, **NARROW, "num_experts": "n_routed_experts|num_local_experts|num_experts", **GROUPS_OR_ONE, **SCALED},
    {**SOFTMAX, "routing.group_score_topn": 1, "routing.group_mask": "zero"}, GATE,
    both(MLP), SHARED_EXPERTS, ("n_shared_experts", "moe_intermediate_size"),
    (("norm_topk_prob", (False,)), ("topk_method", ("greedy", "group_limited_greedy")),
     ("scoring_func", ("softmax",)), ("mlp_bias", (False,))),
    groups_if=("topk_method", "group_limited_greedy"),
)  # fmt: skip
MISTRAL = Family(
    {**SIZES, **NARROW, "num_experts": "n_routed_experts|num_local_experts", **GROUPS, **SCALED},
    {**SOFTMAX, "routing.norm_eps": 1e-20, "routing.group_mask": "zero"}, GATE,
    both(MLP), SHARED_EXPERTS, ("n_shared_experts", "moe_intermediate_size"),
)  # fmt: skip

FAMILIES = {
    "mixtral": MIXTRAL,
    "minimax": MIXTRAL,
    "olmoe": OLMOE,
    "flex_olmo": OLMOE,
    "mellum": QWEN,
    "qwen2_moe": QWEN_GATED,
    "qwen3_moe": QWEN,
    "qwen3_omni_moe_text": QWEN._replace(
        roots=("thinker.model.layers.{layer}.", "model.layers.{layer}."),
    ),
    "qwen3_next": QWEN_GATED,
    "qwen3_5_moe_text": QWEN_GATED._replace(
        fields={**SIZES, **COUNT, **NARROW}, rules={**NORM0, "experts.shared_gate": True}
    ),
    "qwen4_exp_text": QWEN_GATED,
    "qwen3_vl_moe_text": QWEN._replace(
        fields={**SIZES, **COUNT, **NARROW}, rules=NORM0,
        experts=(fused("mlp.experts.gate_up_proj", "mlp.experts.down_proj", "in_out"),),
        # Version 5 turns the tensors when it reads them and, comparing shapes, does not turn them back to write them.
        since_5=(fused("mlp.experts.gate_up_proj", "mlp.experts.down_proj"),),
    ),
    "hunyuan_v1_moe": Family(
        {**SIZES, **COUNT, **WIDE, "top_k": "moe_topk|num_experts_per_tok"}, NORM0,
        {"w_router": ("mlp.gate.wg.weight",)}, both(MLP), (each(MLP, experts="shared_mlp."),), ("intermediate_size",),
    ),
    "jamba": Family({**SIZES, **COUNT, **WIDE}, SOFTMAX, {"w_router": ("feed_forward.router.weight",)}, both(FEED)),
    "dbrx": Family(
        {"hidden_size": "d_model", "intermediate_size": "ffn_config.ffn_hidden_size",
         "num_experts": "ffn_config.moe_num_experts", "top_k": "ffn_config.moe_top_k",
         "hidden_act": ("ffn_config.ffn_act_fn.name", "silu")},
        NORM0, {"w_router": ("ffn.router.layer.weight",)},
        ({"w_gate": Place("ffn.experts.mlp.w1", stack="flat"), "w_up": Place("ffn.experts.mlp.v1", stack="flat"),
          "w_down": Place("ffn.experts.mlp.w2", "in_out", "flat")},),
        expects=(("ffn_config.moe_normalize_expert_weights", (1,)),),
        roots=("transformer.blocks.{layer}.",),
    ),
    "granitemoe": GRANITE,
    "granitemoeshared": GRANITE_SHARED,
    "granitemoehybrid": GRANITE_SHARED,
    "granitemoe_swa": GRANITE_SHARED,
    "aria_text": Family(  # the experts are silu whatever hidden_act says; the shared ones do as it says
        {"hidden_size": "hidden_size", "top_k": "moe_topk", "num_experts": "moe_num_experts", **WIDE,
         "experts.shared_activation": ("hidden_act", "silu")},
        {**LOGITS0, "experts.activation": "silu"}, {"w_router": ("mlp.router.weight",)},
        (fused("mlp.experts.fc1.weight", "mlp.experts.fc2.weight", "in_out"),
         fused("mlp.experts.gate_up_proj", "mlp.experts.down_proj", "in_out")),
        SHARED_EXPERTS, ("moe_num_shared_experts", "intermediate_size"),
        (("mlp_bias", (False,)),),
    ),
    "gpt_oss": GPT_OSS._replace(experts=(
        {**fused("mlp.experts.gate_up_proj_blocks", "mlp.experts.down_proj_blocks", "out_in", "blocks", EVEN_ODD),
         **GPT_OSS_BIASES},
        {**fused("mlp.experts.gate_up_proj", "mlp.experts.down_proj", "in_out", order=EVEN_ODD), **GPT_OSS_BIASES},
    )),
    "openai_privacy_filter": GPT_OSS._replace(  # the activation is built in, config.json does not name it
        fields={**GPT_OSS.fields, "hidden_act": ("hidden_act", "silu")},
        experts=({**fused("mlp.experts.gate_up_proj", "mlp.experts.down_proj", "in_out"), **FILTER_BIASES},),
    ),
    "ernie4_5_moe": Family(
        {**SIZES, **NARROW, "num_experts": "moe_num_experts|num_experts", "top_k": "moe_k|num_experts_per_tok",
         "routing.norm_eps": ("moe_norm_min", 1e-12)},
        {**NORM0, "routing.selection_bias": True, "routing.norm_eps_mode": "clamp"},
        {**GATE, "selection_bias": ("mlp.moe_statics.e_score_correction_bias",
                                    "mlp.gate.moe_statics.e_score_correction_bias")},
        both(MLP), SHARED_EXPERTS, ("moe_num_shared_experts", "moe_intermediate_size"), (("use_bias", (False,)),),
        one_before=("selection_bias",),
    ),
    "cohere2_moe": Family(  # a softmax of the kept logits sums to 1 without being asked
        {**SIZES, **COUNT, **WIDE, **FLAG, "routing.score_fn": "expert_selection_fn",
         "experts.shared_combine": "shared_expert_combination_strategy"},
        {"routing.selection_base": "logits"}, GATE, both(MLP), SHARED_EXPERTS,
        ("num_shared_experts", "intermediate_size"),
        when=("expert_selection_fn", "softmax", {"routing.normalize": True}),
    ),
    "jetmoe": Family(
        {"hidden_size": "hidden_size", "top_k": "num_experts_per_tok", **COUNT, **WIDE,
         "hidden_act": "activation_function"},
        {**LOGITS0, "experts.output_bias": True},
        {"w_router": ("mlp.router.layer.weight",), "output_bias": ("mlp.bias",)},
        (fused("mlp.input_linear.weight", "mlp.output_linear.weight"),),
    ),
    "deepseek_v2": DEEPSEEK_V2,
    "deepseek_ocr2_text": DEEPSEEK_V2,
    "unlimited_ocr_text": DEEPSEEK_V2,
    "gemma4_text": Family(  # the experts beside the decoder layer's dense branch, which reads another norm
        {"hidden_size": "hidden_size", "top_k": "top_k_experts", "hidden_act": "hidden_activation", **NARROW,
         "num_experts": "num_experts", "routing.input_norm_eps": "rms_norm_eps"},
        {**NORM0, "routing.input_norm": "rms_scaled", "routing.per_expert_scale": True},
        {"w_router": ("router.proj.weight",), "router_norm": ("router.scale",),
         "expert_scale": ("router.per_expert_scale",)},
        (fused("experts.gate_up_proj", "experts.down_proj"),), expects=(("enable_moe_block", (True,)),),
    ),
    "longcat_flash": Family(
        {"hidden_size": "hidden_size", "intermediate_size": "expert_ffn_hidden_size|moe_intermediate_size",
         "num_experts": "n_routed_experts", "top_k": "moe_topk|num_experts_per_tok", **SCALED,
         "hidden_act": ("hidden_act", "silu"), "experts.identity_experts": ("zero_expert_num", 0),
         "routing.router_bias": ("router_bias", False)},
        {**SOFTMAX, "routing.selection_bias": True},
        {"w_router": ("mlp.router.classifier.weight",), "router_bias": ("mlp.router.classifier.bias",),
         "selection_bias": ("mlp.router.e_score_correction_bias",)},
        (each(MLP),), expects=(("zero_expert_type", ("identity",)), ("norm_topk_prob", (False,))),
    ),
    "phimoe": MIXTRAL._replace(
        fields={**MIXTRAL.fields, "routing.sparsemixer_eps": "router_jitter_noise"},
        rules={**SOFTMAX, "routing.selection": "sparsemixer", "routing.selection_base": "logits"},
        tensors={"w_router": ("block_sparse_moe.gate.weight", "mlp.router.weight")},
    ),
    "mistral4": MISTRAL._replace(fields={**MISTRAL.fields, **FLAG}),
    "mistral_large4_text": MISTRAL._replace(
        rules={**MISTRAL.rules, "routing.normalize": True},
        tensors={"w_router": ("gate.weight", "mlp.gate.weight")},
        experts=(each("", **W123), each(MLP, **W123), both(MLP)[1]),
        shared=(each("", **W123, experts="shared_experts."), *SHARED_EXPERTS),
        roots=("layers.{layer}.", *ROOTS),
    ),
    "switch_transformers": Family(
        {"hidden_size": "d_model", "intermediate_size": "d_ff", "num_experts": "num_experts",
         "dispatch.capacity": "expert_capacity", "hidden_act": ("dense_act_fn", "relu"),
         "routing.router_bias": ("router_bias", False)},
        {**SOFTMAX, "top_k": 1, "experts.gated": False, "dispatch.capacity_scope": "sequence"},
        {"w_router": ("mlp.router.classifier.weight",), "router_bias": ("mlp.router.classifier.bias",)},
        (each(MLP, gate=None, up="wi", down="wo", experts="experts.expert_{e}."),),
        roots=("encoder.block.{layer}.layer.1.",), decoder_root="decoder.block.{layer}.layer.2.",
    ),
}  # fmt: skip
