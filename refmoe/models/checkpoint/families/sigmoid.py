"""Families whose router is a sigmoid."""

from .form import (
    COUNT,
    EPS20,
    FEED,
    FLAG,
    GATE,
    GROUPS,
    GROUPS_OR_ONE,
    MLP,
    NARROW,
    ROOTS,
    SCALED,
    SHARED_EXPERTS,
    SIGMOID,
    SIZES,
    SPARSE,
    W123,
    WIDE,
    Family,
    Place,
    both,
    each,
    fused,
)

DEEPSEEK_V3 = Family(
    {**SIZES, **NARROW, "num_experts": "n_routed_experts|num_local_experts", **FLAG, **GROUPS, **SCALED}, EPS20,
    {**GATE, "selection_bias": ("mlp.gate.e_score_correction_bias",)},
    both(MLP), SHARED_EXPERTS, ("n_shared_experts", "moe_intermediate_size"),
    (("scoring_func", ("sigmoid",)), ("topk_method", ("noaux_tc",))),
)  # fmt: skip
ONE_GROUP = DEEPSEEK_V3._replace(fields={**DEEPSEEK_V3.fields, **GROUPS_OR_ONE})
# The same recipe under the names of Kimi's and Ant's own code.
RENAMED = {
    "hidden_size": "hidden_size", "hidden_act": "hidden_act", **NARROW, **SCALED,
    "top_k": "num_experts_per_token|num_experts_per_tok", "num_experts": "num_experts|num_local_experts",
    "routing.normalize": "moe_renormalize|norm_topk_prob",
    "routing.num_groups": "num_expert_group|n_group", "routing.top_groups": "topk_group",
}  # fmt: skip
KIMI_LINEAR = DEEPSEEK_V3._replace(
    fields=RENAMED, expects=(("moe_router_activation_func", ("sigmoid",)),),
    tensors={"w_router": ("block_sparse_moe.gate.weight", "mlp.gate.weight"),
             "selection_bias": ("block_sparse_moe.gate.e_score_correction_bias", "mlp.gate.e_score_correction_bias")},
    experts=(each(SPARSE, **W123), *both(MLP)),
    shared=(each(SPARSE, experts="shared_experts."), *SHARED_EXPERTS),
    shared_width=("num_shared_experts", "moe_intermediate_size"),
)  # fmt: skip
MINIMAX_M2 = Family(
    {**SIZES, **COUNT, **WIDE}, {**SIGMOID, "routing.normalize": True},
    {"w_router": ("block_sparse_moe.gate.weight", "mlp.gate.weight"),
     "selection_bias": ("block_sparse_moe.e_score_correction_bias", "mlp.e_score_correction_bias")},
    (each(SPARSE, **W123), *both(MLP)),
    expects=(("scoring_func", ("sigmoid",)), ("use_routing_bias", (True,)), ("shared_intermediate_size", (0,))),
)  # fmt: skip

FAMILIES = {
    "llama4_text": Family(
        {**SIZES, **COUNT, **WIDE},
        {"routing.score_fn": "sigmoid", "routing.selection_base": "logits", "experts.weight_position": "input"},
        {"w_router": ("feed_forward.router.weight",)},
        (fused("feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj", "in_out"),),
        (each(FEED, experts="shared_expert."),), ("intermediate_size",),
    ),
    "deepseek_v3": DEEPSEEK_V3,
    "deepseek_v32": DEEPSEEK_V3,
    "kimi_k2": DEEPSEEK_V3,  # its config.json names DeepSeek-V3's classes; transformers has none of its own
    "glm4_moe": ONE_GROUP,
    "glm4_moe_lite": ONE_GROUP,
    "glm4v_moe_text": ONE_GROUP,
    "glm_moe_dsa": ONE_GROUP,
    "solar_open": ONE_GROUP,
    "dots1": ONE_GROUP._replace(expects=()),  # its checkpoints fill scoring_func in more than one way; no code reads it
    "axk2": ONE_GROUP._replace(rules={**EPS20, "routing.group_mask": "zero"}),
    "axk1": ONE_GROUP._replace(
        fields={**ONE_GROUP.fields, "experts.norm_eps": "rms_norm_eps"}, rules={**EPS20, "experts.output_norm": "rms"},
        tensors={**ONE_GROUP.tensors,
                 "w_output_norm": ("post_mlp_layernorm.weight", "mlp.post_mlp_layernorm.weight")},
    ),
    "exaone_moe": ONE_GROUP._replace(
        fields={**ONE_GROUP.fields, **COUNT},
        tensors={**GATE, "selection_bias": ("mlp.e_score_correction_bias", "mlp.gate.e_score_correction_bias")},
        shared_width=("num_shared_experts", "moe_intermediate_size"),
    ),
    "kimi_linear": KIMI_LINEAR,
    "bailing_hybrid": KIMI_LINEAR._replace(
        tensors={**GATE, "selection_bias": ("mlp.gate.expert_bias", "mlp.gate.e_score_correction_bias")},
        experts=both(MLP), shared=SHARED_EXPERTS,
    ),
    "mimo_v2_flash": ONE_GROUP._replace(
        fields={**ONE_GROUP.fields, "routing.scaling_factor": ("routed_scaling_factor", 1.0)},
        shared=(), shared_width=(),
    ),
    "beam": ONE_GROUP._replace(
        fields={**ONE_GROUP.fields, "num_experts": "num_experts"}, shared=(), shared_width=(),
    ),
    "glm5_next_text": ONE_GROUP._replace(fields={**ONE_GROUP.fields, "experts.limit": "swiglu_limit"}),
    "hy_v4": ONE_GROUP._replace(
        fields={**ONE_GROUP.fields, "experts.limit": "swiglu_limit"}, rules={**EPS20, "experts.shared_clamped": False},
        # Version 5 writes the gate under the name that attention has for its own.
        shared=(*SHARED_EXPERTS, each(MLP, gate="linear_gate", experts="shared_experts.")),
    ),
    "deepseek_v4": Family(
        {**SIZES, "intermediate_size": "moe_intermediate_size", **SCALED,
         "num_experts": "n_routed_experts|num_local_experts", "experts.limit": "swiglu_limit"},
        {**EPS20, "routing.score_fn": "sqrt_softplus", "routing.normalize": True},
        {"w_router": ("ffn.gate.weight", "mlp.gate.weight"),
         "selection_bias": ("ffn.gate.bias", "mlp.gate.e_score_correction_bias"),
         "hash_table": ("ffn.gate.tid2eid", "mlp.gate.tid2eid")},
        (each("ffn.", **W123), both(MLP)[1]), (each("ffn.", **W123, experts="shared_experts."), *SHARED_EXPERTS),
        ("n_shared_experts", "moe_intermediate_size"),
        (("scoring_func", ("sqrtsoftplus",)), ("norm_topk_prob", (True,)), ("topk_method", ("noaux_tc",))),
        roots=(*ROOTS, "layers.{layer}."), hash_layers=("mlp_layer_types", "num_hash_layers"),
    ),
    "inkling2_text": Family(
        {**SIZES, "intermediate_size": "moe_intermediate_size",
         "num_experts": "n_routed_experts|num_local_experts",
         "routing.scaling_factor": "route_scale|routed_scaling_factor",
         "experts.gate_softcap": "mlp_gate_softcap", "experts.up_softcap": "mlp_up_softcap"},
        {**EPS20, "routing.normalize": True},
        {**GATE, "selection_bias": ("mlp.gate.bias", "mlp.gate.e_score_correction_bias")},
        (fused("mlp.experts.w13_weight", "mlp.experts.w2_weight", order=("even", "odd"), scales="_scale"),
         fused("mlp.experts.gate_up_proj", "mlp.experts.down_proj", scales="_scale_inv")),
        expects=(("scoring_func", ("sigmoid",)),), roots=("model.llm.layers.{layer}.", *ROOTS),
    ),
    "step3p5": Family(  # also the text model inside step3p7
        {"hidden_size": "hidden_size", "hidden_act": ("hidden_act", "silu"), **NARROW,
         "top_k": "moe_top_k|num_experts_per_tok", "num_experts": "moe_num_experts|n_routed_experts",
         "routing.scaling_factor": "moe_router_scaling_factor", "experts.limit": ("swiglu_limits[]", None),
         "experts.shared_limit": ("swiglu_limits_shared[]", None)},
        {**SIGMOID, "routing.normalize": True, "experts.limit_position": "post"},
        {"w_router": ("moe.gate.weight", "mlp.gate.weight"),
         "selection_bias": ("moe.router_bias", "mlp.gate.e_score_correction_bias")},
        ({f"w_{name}": Place(f"moe.{name}_proj.weight", stack="stacked", scales="_scale_inv")
          for name in ("gate", "up", "down")}, both(MLP)[1]),
        (each("", experts="share_expert."), *SHARED_EXPERTS), ("share_expert_dims|share_expert_dim",),
        (("moe_router_activation", ("sigmoid",)), ("norm_expert_weight", (True,)), ("use_moe_router_bias", (True,)),
         ("mlp_bias", (False,))),
    ),
    "minimax_m2": MINIMAX_M2,
    "minimax_m3_vl_text": Family(
        {"hidden_size": "hidden_size", "top_k": "num_experts_per_tok", **COUNT, **WIDE, **SCALED,
         "experts.limit": "swiglu_limit", "experts.alpha": "swiglu_alpha"},
        {**SIGMOID, "routing.normalize": True, "experts.activation": "silu", "experts.linear_offset": 1.0},
        {"w_router": ("block_sparse_moe.gate.weight", "mlp.gate.weight"),
         "selection_bias": ("block_sparse_moe.e_score_correction_bias", "mlp.gate.e_score_correction_bias")},
        (each(SPARSE, **W123), each(MLP, **W123), fused("mlp.experts.gate_up_proj", "mlp.experts.down_proj")),
        (each(SPARSE, experts="shared_experts."), *SHARED_EXPERTS,
         fused("mlp.shared_experts.gate_up_proj.weight", "mlp.shared_experts.down_proj.weight", stack="each")),
        ("shared_intermediate_size",),
    ),
    "flint": Family(
        {**SIZES, **COUNT, **NARROW, **FLAG}, {"routing.score_fn": "sigmoid"}, GATE, both(MLP),
        (each(MLP, experts="shared_expert."),), ("shared_expert_intermediate_size",),
    ),
    "kolibri1": Family(
        {**SIZES, **COUNT, **NARROW, **FLAG}, {**SIGMOID, "routing.selection_base": "logits"},
        {**GATE, "selection_bias": ("moe.router.expert_bias", "mlp.gate.e_score_correction_bias")},
        both(MLP), SHARED_EXPERTS, ("shared_expert_intermediate_size",),
    ),
    "laguna": Family(
        {**SIZES, **COUNT, **NARROW, "routing.scaling_factor": ("moe_routed_scaling_factor", 1.0),
         "routing.logits_softcap": ("moe_router_logit_softcapping", None)},
        {**SIGMOID, "routing.normalize": True},
        {**GATE, "selection_bias": ("mlp.experts.e_score_correction_bias", "mlp.gate.e_score_correction_bias")},
        both(MLP), (each(MLP, experts="shared_expert."), *SHARED_EXPERTS), ("shared_expert_intermediate_size",),
        (("moe_apply_router_weight_on_input", (False,)),),
    ),
    "lfm2_moe": Family(
        {**{k: v for k, v in SIZES.items() if k != "hidden_act"}, **COUNT, **NARROW, **FLAG, **SCALED,
         "routing.selection_bias": "use_expert_bias"},
        {"routing.score_fn": "sigmoid", "routing.norm_eps": 1e-6, "experts.activation": "silu"},
        {"w_router": ("feed_forward.gate.weight",), "selection_bias": ("feed_forward.expert_bias",)},
        (each(FEED, **W123), both(FEED)[1]),
    ),
    "afmoe": Family(
        {**SIZES, **COUNT, **NARROW, "routing.scaling_factor": "route_scale"}, {**EPS20, "routing.normalize": True},
        {"w_router": ("mlp.router.gate.weight",), "selection_bias": ("mlp.expert_bias",)},
        both(MLP), SHARED_EXPERTS, ("num_shared_experts", "moe_intermediate_size"),
    ),
    "hy_v3": Family(
        {**SIZES, **COUNT, **NARROW, "routing.scaling_factor": "router_scaling_factor"},
        {**EPS20, "routing.normalize": True},
        {"w_router": ("mlp.router.gate.weight", "mlp.gate.weight"),
         "selection_bias": ("mlp.expert_bias", "mlp.e_score_correction_bias")},
        both(MLP), (each(MLP, experts="shared_mlp."), *SHARED_EXPERTS), ("num_shared_experts", "moe_intermediate_size"),
    ),
    "nemotron_h": Family(
        {**SIZES, **NARROW, "num_experts": "n_routed_experts", "hidden_act": "mlp_hidden_act", **FLAG, **GROUPS,
         **SCALED, "experts.latent_size": ("moe_latent_size", 0)},
        {**EPS20, "experts.gated": False},
        {"w_router": ("mixer.gate.weight",), "selection_bias": ("mixer.gate.e_score_correction_bias",),
         "w_latent_in": ("mixer.fc1_latent_proj.weight",), "w_latent_out": ("mixer.fc2_latent_proj.weight",)},
        (each("mixer.", gate=None),
         {"w_up": Place("mixer.experts.up_proj", stack="stacked"),
          "w_down": Place("mixer.experts.down_proj", stack="stacked")}),
        (each("mixer.", gate=None, experts="shared_experts."),), ("moe_shared_expert_intermediate_size",),
        (("mlp_bias", (False,)),), ("backbone.layers.{layer}.", "model.layers.{layer}."),
    ),
}  # fmt: skip
