"""Blocks of transformers whose router is a sigmoid or the root of a softplus: one row each, and a second where a choice
deserves its own.
"""

# ruff: noqa: C408  (dict(field=value) reads as the configuration it becomes)

import torch
from blocks_softmax import GROUPED, N_SHARED, NARROW, SIZES, TWO_SHARED, layer
from harness import TOKEN_IDS, Block, D, E, F, K, S
from layouts import Layout

GATE_BIAS = Layout(selection_bias="gate.e_score_correction_bias")
BLOCK_BIAS = Layout(selection_bias="e_score_correction_bias")
BIASED_SHARED = GATE_BIAS._replace(shared="shared_experts")

# The recipe of DeepSeek-V3: sigmoid, selection bias, groups ranked by their best two, 1e-20 added to the sum, scaled.
FIELDS = SIZES | dict(
    intermediate_size=40, moe_intermediate_size=F, n_routed_experts=E, n_shared_experts=2,
    n_group=4, topk_group=2, norm_topk_prob=True, routed_scaling_factor=2.5,
)  # fmt: skip


def without(*names):
    return {name: value for name, value in FIELDS.items() if name not in names}


ALIASED = without("n_routed_experts") | dict(num_local_experts=E)
EXAONE = NARROW | dict(num_shared_experts=2, n_group=4, topk_group=2, norm_topk_prob=True, routed_scaling_factor=2.5)
SCALED = dict(score_fn="sigmoid", selection_bias=True, normalize=True, norm_eps=1e-20, scaling_factor=2.5)
RECIPE = SCALED | GROUPED
FILLED = RECIPE | dict(group_mask="zero")
UNSCALED = dict(score_fn="sigmoid", selection_bias=True, normalize=True)


def like_deepseek(
    model, cls, hf_config, fields=FIELDS, name=None, routing=RECIPE, experts=TWO_SHARED, layout=BIASED_SHARED, **more
):
    return Block(name or model, f"{model}.{cls}", hf_config, fields, layer(routing, experts), layout, **more)


def with_table(block):
    """DeepSeek-V4's table by token id: three different experts for each of the ids that are used."""
    generator = torch.Generator().manual_seed(2)
    table = [torch.randperm(E, generator=generator)[:K] for _ in range(len(block.gate.tid2eid))]
    block.gate.tid2eid.copy_(torch.stack(table))


def by_token_id(block, x):
    return block(x, TOKEN_IDS % len(block.gate.tid2eid))


def mostly_negative(block):
    """Some experts of the kept groups then rank below the 0.0 of the others."""
    block.gate.e_score_correction_bias -= 1.0


V4 = SIZES | dict(
    moe_intermediate_size=F, n_routed_experts=E, routed_scaling_factor=1.5, swiglu_limit=1.0, vocab_size=32,
    num_hidden_layers=2, num_hash_layers=1, mlp_layer_types=["hash_moe", "moe"], layer_types=["sliding_attention"] * 2,
)  # fmt: skip
V4_ROUTING = dict(score_fn="sqrt_softplus", normalize=True, norm_eps=1e-20, scaling_factor=1.5)
LIMITED = dict(limit=1.0, shared_intermediate_size=F)
KOLIBRI = SIZES | dict(moe_intermediate_size=F, num_experts=E, shared_expert_intermediate_size=S)
LFM2 = NARROW | dict(norm_topk_prob=True, routed_scaling_factor=1.5)
LFM2_ROUTING = SCALED | dict(norm_eps=1e-6, scaling_factor=1.5)
NEMOTRON = dict(gated=False, activation="relu2", shared_intermediate_size=S)

BLOCKS = [
    like_deepseek("deepseek_v3", "DeepseekV3MoE", "DeepseekV3Config"),
    like_deepseek("deepseek_v3", "DeepseekV3MoE", "DeepseekV3Config", FIELDS | dict(norm_topk_prob=False),
                  "deepseek_v3, as they come", RECIPE | dict(normalize=False, norm_eps=0.0)),
    like_deepseek("deepseek_v32", "DeepseekV32MoE", "DeepseekV32Config"),
    like_deepseek("glm4_moe", "Glm4MoeMoE", "Glm4MoeConfig"),
    like_deepseek("glm4_moe_lite", "Glm4MoeLiteMoE", "Glm4MoeLiteConfig"),
    like_deepseek("glm4v_moe", "Glm4vMoeTextMoE", "Glm4vMoeTextConfig"),
    like_deepseek("glm_moe_dsa", "GlmMoeDsaMoE", "GlmMoeDsaConfig"),
    like_deepseek("dots1", "Dots1MoE", "Dots1Config"),
    like_deepseek("dots3_note", "Dots3NoteTextMoE", "Dots3NoteTextConfig",
                  FIELDS | dict(shared_experts_intermediate_size=F), "dots3_note, text"),
    like_deepseek("solar_open", "SolarOpenMoE", "SolarOpenConfig", without("intermediate_size")),
    like_deepseek("kimi_linear", "KimiLinearMoE", "KimiLinearConfig", ALIASED),
    like_deepseek("bailing_hybrid", "BailingHybridMoE", "BailingHybridConfig", ALIASED),
    like_deepseek("exaone_moe", "ExaoneMoeSparseMoEBlock", "ExaoneMoeConfig", EXAONE),
    Block("mimo_v2_flash", "mimo_v2_flash.MiMoV2FlashMoE", "MiMoV2FlashConfig", without("n_shared_experts"),
          layer(RECIPE), GATE_BIAS),
    Block("beam", "beam.BeamMoE", "BeamConfig",
          without("n_shared_experts", "n_routed_experts") | dict(num_experts=E), layer(RECIPE), GATE_BIAS),
    like_deepseek("axk1", "AXK1MoE", "AXK1Config", FIELDS | dict(rms_norm_eps=0.5),
                  experts=TWO_SHARED | dict(output_norm="rms", norm_eps=0.5),
                  layout=BIASED_SHARED._replace(more=dict(w_output_norm="post_mlp_layernorm.weight"))),
    # the same with 0.0 for the experts of other groups: where scores can be negative these tie, and torch breaks the
    # ties in an order of its own
    like_deepseek("axk2", "AXK2MoE", "AXK2Config", name="axk2, replayed", routing=FILLED, replay=True,
                  prepare=mostly_negative),
    like_deepseek("axk2", "AXK2MoE", "AXK2Config", name="axk2, biases >= 0", routing=FILLED, biases="positive"),
    # clamps before the activation, low enough to bind
    like_deepseek("glm5_next", "Glm5NextTextMoE", "Glm5NextTextConfig", FIELDS | dict(swiglu_limit=1.0),
                  experts=TWO_SHARED | dict(limit=1.0)),
    like_deepseek("hy_v4", "HYV4MoE", "HYV4Config", FIELDS | dict(swiglu_limit=1.0),
                  experts=TWO_SHARED | dict(limit=1.0, shared_clamped=False)),
    Block("minimax_m3_vl", "minimax_m3_vl.MiniMaxM3VLSparseMoeBlock", "MiniMaxM3VLTextConfig", SIZES | dict(
              intermediate_size=F, num_local_experts=E, shared_intermediate_size=S, routed_scaling_factor=2.0,
              swiglu_alpha=1.702, swiglu_limit=1.0),
          layer(UNSCALED | dict(scaling_factor=2.0),
                dict(alpha=1.702, limit=1.0, linear_offset=1.0, shared_intermediate_size=S)),
          BIASED_SHARED._replace(shared_form="fused linear")),
    Block("deepseek_v4", "deepseek_v4.DeepseekV4SparseMoeBlock", "DeepseekV4Config", V4,
          layer(V4_ROUTING | dict(selection_bias=True), LIMITED), BIASED_SHARED, args=(1,)),
    Block("deepseek_v4, hash, replayed", "deepseek_v4.DeepseekV4SparseMoeBlock", "DeepseekV4Config", V4,
          layer(V4_ROUTING, LIMITED), N_SHARED, args=(0,), prepare=with_table, call=by_token_id, replay=True),
    Block("deepseek_v4, hash", "deepseek_v4.DeepseekV4SparseMoeBlock", "DeepseekV4Config", V4,
          layer(V4_ROUTING | dict(selection="hash", hash_vocab_size=32), LIMITED),
          N_SHARED._replace(hash_table="gate.tid2eid"), args=(0,), prepare=with_table, call=by_token_id),
    # sigmoid without groups
    Block("minimax_m2", "minimax_m2.MiniMaxM2SparseMoeBlock", "MiniMaxM2Config",
          SIZES | dict(intermediate_size=F, num_local_experts=E), layer(UNSCALED), BLOCK_BIAS),
    Block("step3p7", "step3p7.Step3p7SparseMoeBlock", "Step3p7TextConfig", SIZES | dict(
              moe_intermediate_size=F, n_routed_experts=E, share_expert_dim=S, moe_router_scaling_factor=3.0),
          layer(UNSCALED | dict(scaling_factor=3.0), dict(shared_intermediate_size=S)), BIASED_SHARED, args=(0,)),
    Block("step3p7, limits", "step3p7.Step3p7SparseMoeBlock", "Step3p7TextConfig", SIZES | dict(
              moe_intermediate_size=F, n_routed_experts=E, share_expert_dim=S, moe_router_scaling_factor=3.0,
              num_hidden_layers=1, swiglu_limits=[0.5], swiglu_limits_shared=[1.0]),
          layer(UNSCALED | dict(scaling_factor=3.0), dict(
              limit=0.5, limit_position="post", shared_limit=1.0, shared_intermediate_size=S)),
          BIASED_SHARED, args=(0,)),
    Block("laguna", "laguna.LagunaSparseMoeBlock", "LagunaConfig", NARROW | dict(
              shared_expert_intermediate_size=S, moe_routed_scaling_factor=2.5),
          layer(UNSCALED | dict(scaling_factor=2.5), dict(shared_intermediate_size=S)), BIASED_SHARED),
    Block("laguna, soft cap", "laguna.LagunaSparseMoeBlock", "LagunaConfig", NARROW | dict(
              shared_expert_intermediate_size=S, moe_routed_scaling_factor=2.5,
              moe_router_logit_softcapping=1.5),
          layer(UNSCALED | dict(scaling_factor=2.5, logits_softcap=1.5), dict(shared_intermediate_size=S)),
          BIASED_SHARED),
    Block("hy_v3", "hy_v3.HYV3MoE", "HYV3Config", NARROW | dict(num_shared_experts=2, router_scaling_factor=2.5),
          layer(SCALED, TWO_SHARED), BLOCK_BIAS._replace(shared="shared_experts")),
    Block("dots3_note, vision", "dots3_note.Dots3NoteVisionMoE", "Dots3NoteVisionConfig", dict(
              hidden_size=D, num_attention_heads=4, adapter_in_dim=D, moe_intermediate_size=F, num_hidden_layers=1,
              router_scaling_factor=2.5, mlp_layer_types=["sparse"],
              per_layer_config={0: dict(num_local_experts=E, num_experts_per_tok=K)}),
          layer(SCALED), BLOCK_BIAS, args=(0,)),
    Block("inkling2", "inkling2.Inkling2SparseMoeBlock", "Inkling2TextConfig", SIZES | dict(
              moe_intermediate_size=F, n_routed_experts=E, routed_scaling_factor=2.5, scoring_func="sigmoid",
              mlp_gate_softcap=1.0, mlp_up_softcap=1.5),
          layer(SCALED, dict(gate_softcap=1.0, up_softcap=1.5)), GATE_BIAS),
    Block("afmoe", "afmoe.AfmoeSparseMoeBlock", "AfmoeConfig", NARROW | dict(num_shared_experts=2, route_scale=2.5),
          layer(SCALED, TWO_SHARED),
          Layout(router="router.gate.weight", selection_bias="expert_bias", shared="shared_experts")),
    Block("lfm2_moe", "lfm2_moe.Lfm2MoeSparseMoeBlock", "Lfm2MoeConfig", LFM2, layer(LFM2_ROUTING),
          Layout(selection_bias="expert_bias")),
    Block("lfm2_moe, small sums", "lfm2_moe.Lfm2MoeSparseMoeBlock", "Lfm2MoeConfig", LFM2, layer(LFM2_ROUTING),
          Layout(selection_bias="expert_bias"),
          # the biases choose, so that low scores are kept and the 1e-6 shows
          scales={"gate.weight": 8.0, "expert_bias": 40.0}, seed=2),
    Block("flint", "flint.FlintSparseMoeBlock", "FlintConfig",
          NARROW | dict(shared_expert_intermediate_size=S, norm_topk_prob=True),
          layer(dict(score_fn="sigmoid", normalize=True), dict(shared_intermediate_size=S)),
          Layout(shared="shared_expert")),
    Block("kolibri1", "kolibri1.Kolibri1SparseMoeBlock", "Kolibri1Config", KOLIBRI | dict(norm_topk_prob=True),
          layer(UNSCALED | dict(selection_base="logits"), dict(shared_intermediate_size=S)), BIASED_SHARED),
    Block("cohere2_moe, sigmoid", "cohere2_moe.Cohere2MoeSparseMoeBlock", "Cohere2MoeConfig", SIZES | dict(
              intermediate_size=F, num_experts=E, expert_selection_fn="sigmoid", norm_topk_prob=True),
          layer(dict(score_fn="sigmoid", normalize=True)), Layout()),
    # one sum for the scores of routed and shared experts
    Block("inkling", "inkling.InklingMoE", "InklingTextConfig", SIZES | dict(
              moe_intermediate_size=F, n_routed_experts=E, n_shared_experts=2, route_scale=1.5),
          layer(UNSCALED | dict(scaling_factor=1.5, global_scale=True, norm_over_shared=True),
                dict(shared_intermediate_size=F, shared_count=2)),
          GATE_BIAS._replace(shared_rows=2, shared="shared_experts", shared_form="stacks",
                             more=dict(global_scale="gate.global_scale"))),
    # a narrower space with norms
    Block("muse_spark", "muse_spark.MuseSparkMoE", "MuseSparkTextConfig", SIZES | dict(
              num_attention_heads=4, num_key_value_heads=4, moe_hidden_size=8, moe_intermediate_size=F,
              intermediate_size=40, num_local_experts=E,
              output_multiplier=0.5, routed_scaling_factor=1.5, rms_norm_eps=0.25, post_norm_eps=0.5),
          layer(SCALED | dict(norm_eps=1e-15, scaling_factor=1.5, logits_scale=0.5), dict(
              latent_size=8, latent_pre_norm="rms_centered", post_expert_norm="rms_input_scaled", norm_eps=0.25,
              post_expert_norm_eps=0.5)),
          GATE_BIAS._replace(more=dict(
              w_latent_in="pre_expert_proj.weight", w_latent_pre_norm="pre_expert_norm.weight",
              w_post_expert_norm="experts.post_expert_norm.weight", w_latent_out="post_expert_proj.weight"))),
    # squared ReLU without a gate
    Block("nemotron_h", "nemotron_h.NemotronHMoE", "NemotronHConfig", SIZES | dict(
              moe_intermediate_size=F, n_routed_experts=E, moe_shared_expert_intermediate_size=S,
              n_group=4, topk_group=2, norm_topk_prob=True, routed_scaling_factor=2.5),
          layer(RECIPE, NEMOTRON), BIASED_SHARED._replace(form="no gate", shared_form="linears, no gate")),
    Block("nemotron_h, latent", "nemotron_h.NemotronHMoE", "NemotronHConfig", SIZES | dict(
              moe_intermediate_size=F, n_routed_experts=E, moe_shared_expert_intermediate_size=S, moe_latent_size=8,
              n_group=4, topk_group=2, norm_topk_prob=True, routed_scaling_factor=2.5),
          layer(RECIPE, NEMOTRON | dict(latent_size=8)),
          BIASED_SHARED._replace(form="no gate", shared_form="linears, no gate", more=dict(
              w_latent_in="fc1_latent_proj.weight", w_latent_out="fc2_latent_proj.weight"))),
    # the weight on the expert's input
    Block("llama4", "llama4.Llama4TextMoe", "Llama4TextConfig", dict(
              hidden_size=D, intermediate_size=F, num_local_experts=E, num_experts_per_tok=1),
          layer(dict(score_fn="sigmoid"), dict(weight_position="input", shared_intermediate_size=F), top_k=1),
          Layout(router="router.weight", form="halves, transposed", shared="shared_expert")),
    Block("llama4, three experts", "llama4.Llama4TextMoe", "Llama4TextConfig", dict(
              hidden_size=D, intermediate_size=F, num_local_experts=E, num_experts_per_tok=K),
          layer(dict(score_fn="sigmoid"), dict(weight_position="input", shared_intermediate_size=F)),
          Layout(router="router.weight", form="halves, transposed", shared="shared_expert")),
]  # fmt: skip
