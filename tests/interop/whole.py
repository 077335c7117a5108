"""Whole tiny models of transformers, one row a family: how to build one, and where its mixture-of-experts block is."""

# ruff: noqa: C408  (dict(field=value) reads as the configuration it becomes)

from typing import NamedTuple

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

SIZES = dict(
    vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
    intermediate_size=12, num_experts_per_tok=3, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
LOCAL = SIZES | dict(num_local_experts=8)
WIDE = SIZES | dict(num_experts=8)
NARROW = SIZES | dict(num_experts=8, moe_intermediate_size=12, intermediate_size=20)
GATED = NARROW | dict(shared_expert_intermediate_size=20)
ROUTED = SIZES | dict(n_routed_experts=8, moe_intermediate_size=12, intermediate_size=20)
LATENT_ATTENTION = dict(
    kv_lora_rank=8, q_lora_rank=8, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8, num_key_value_heads=4,
)  # fmt: skip
GROUPS = dict(n_group=4, topk_group=2, routed_scaling_factor=2.5, norm_topk_prob=True)
V3 = ROUTED | GROUPS | dict(first_k_dense_replace=1, n_shared_experts=2)
FULL = dict(layer_types=["full_attention"] * 2)
SMALL_EYES = dict(depth=1, hidden_size=16, num_heads=2, intermediate_size=8, out_hidden_size=16)
DEEP = dict(deepstack_visual_indexes=[0])
LLAMA_4 = LOCAL | dict(num_experts_per_tok=1, intermediate_size_mlp=20)


class Model(NamedTuple):
    """A model_type with tiny sizes. The block is the one module whose name ends with `block`."""

    model_type: str
    fields: dict
    cls: str | None = None  # of the model; None: what AutoModelForCausalLM makes
    block: str = "layers.1.mlp"
    layer: int = 1
    beside: str = ""  # a module beside the block whose output belongs to the layer
    prepare: object = None  # (block) -> None, after the random values
    alone: bool = False  # the block is called on random tokens, since so small a model does not run as a whole
    call: object = None  # (block, x) -> y, where the layer is no module of its own


def build(row, seed=3):
    """The model with random weights and buffers, O(1) and of both signs."""
    torch.manual_seed(seed)
    config = CONFIG_MAPPING[row.model_type](**row.fields)
    if row.cls is None:
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    else:
        model = getattr(transformers, row.cls)(config)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn_like(tensor) * 0.5)
        if row.prepare is not None:
            row.prepare(module_of(model, row.block))
    return model.eval()


def module_of(model, ending):
    """The one module whose name ends so."""
    found = [module for name, module in model.named_modules() if f".{name}".endswith(f".{ending}")]
    assert len(found) == 1, f"{len(found)} modules named {ending}"
    return found[0]


def with_positive_bias(block):
    """Where other groups are filled with 0.0, and torch breaks ties in an order of its own."""
    block.gate.e_score_correction_bias.abs_()


def with_table(block):
    """Three different experts for each token id, where the block chooses by a table."""
    if hasattr(block.gate, "tid2eid"):
        block.gate.tid2eid.copy_(torch.stack([torch.randperm(8)[:3] for _ in range(32)]))


def router_then_experts(decoder_layer, x):
    """The experts beside a dense branch; both read x, where the decoder layer gives the experts a norm of it."""
    x = x.reshape(-1, x.shape[-1])
    _, weights, indices = decoder_layer.router(x)
    return decoder_layer.experts(x, indices, weights)


SAM_EYES = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, mlp_dim=8, output_channels=8)
SPARSE = dict(mlp_layer_types=["dense", "sparse"])
INDEXED = dict(index_n_heads=2, index_head_dim=8)

MODELS = [
    Model("mixtral", LOCAL),
    Model("minimax", LOCAL | FULL),
    Model("olmoe", {name: value for name, value in WIDE.items() if name != "head_dim"}),
    Model("flex_olmo", WIDE),
    Model("qwen2_moe", GATED),
    Model("qwen3_moe", NARROW | dict(norm_topk_prob=True)),
    Model("qwen3_omni_moe_thinker", dict(
              text_config=NARROW | dict(norm_topk_prob=True), vision_config=SMALL_EYES | DEEP, audio_config=dict(
                  d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=8, output_dim=16,
                  downsample_hidden_size=8)),
          "Qwen3OmniMoeThinkerForConditionalGeneration", "language_model.layers.1.mlp", alone=True),
    Model("qwen3_next", GATED | FULL | dict(norm_topk_prob=True)),
    Model("qwen3_5_moe_text", GATED | FULL),
    Model("qwen3_5_moe", dict(text_config=GATED | FULL, vision_config=SMALL_EYES),
          "Qwen3_5MoeForConditionalGeneration"),
    Model("qwen3_vl_moe", dict(text_config=NARROW, vision_config=SMALL_EYES | DEEP),
          "Qwen3VLMoeForConditionalGeneration"),
    Model("qwen4_exp_text", GATED | dict(
              norm_topk_prob=True, hc_count=2, hc_lowrank=4, layer_types=["linear_attention"] * 2,
              linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=8, linear_value_head_dim=8),
          alone=True),
    Model("mellum", NARROW | dict(norm_topk_prob=True)),
    Model("hunyuan_v1_moe", WIDE | dict(moe_topk=3)),
    Model("aria_text", SIZES | dict(moe_num_experts=8, moe_topk=3, moe_num_shared_experts=2)),
    Model("openai_privacy_filter", LOCAL | dict(swiglu_limit=1.0), "OpenAIPrivacyFilterForTokenClassification"),
    Model("jamba", SIZES | dict(num_experts=8, expert_layer_period=1, expert_layer_offset=0, attn_layer_period=1,
                                attn_layer_offset=0, use_mamba_kernels=False), block="layers.1.feed_forward"),
    Model("dbrx", dict(d_model=16, n_layers=2, n_heads=4, vocab_size=32,
                       attn_config=dict(kv_n_heads=2, clip_qkv=8.0, rope_theta=1e4),
                       ffn_config=dict(hidden_size=16, ffn_hidden_size=12, moe_num_experts=8, moe_top_k=3,
                                       ffn_act_fn=dict(name="silu"))), block="blocks.1.ffn"),
    Model("granitemoe", LOCAL, block="layers.1.block_sparse_moe"),
    Model("granitemoeshared", LOCAL | dict(shared_intermediate_size=20), block="layers.1.block_sparse_moe",
          beside="layers.1.shared_mlp"),
    Model("granitemoehybrid", LOCAL | dict(shared_intermediate_size=20, mamba_n_heads=4,
                                           layer_types=["attention"] * 2),
          block="layers.1.block_sparse_moe", beside="layers.1.shared_mlp"),
    Model("granitemoe_swa", LOCAL | dict(shared_intermediate_size=20), block="layers.1.block_sparse_moe",
          beside="layers.1.shared_mlp"),
    Model("gpt_oss", LOCAL | dict(layer_types=["sliding_attention"] * 2, swiglu_limit=1.0)),
    Model("llama4_text", LLAMA_4, block="layers.1.feed_forward"),
    Model("llama4", dict(text_config=LLAMA_4, vision_config=dict(
              hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vision_output_dim=16,
              projector_input_dim=16, projector_output_dim=16)),
          "Llama4ForConditionalGeneration", block="language_model.model.layers.1.feed_forward"),
    Model("ernie4_5_moe", SIZES | dict(moe_intermediate_size=12, moe_num_experts=8, moe_k=3, moe_num_shared_experts=2)),
    Model("deepseek_v2", V3 | LATENT_ATTENTION | dict(topk_method="group_limited_greedy", norm_topk_prob=False)),
    Model("deepseek_ocr2", dict(
              text_config=V3 | SPARSE | dict(topk_method="group_limited_greedy", norm_topk_prob=False),
              vision_config=dict(sam_config=SAM_EYES, encoder_config=dict(
                  hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
                  intermediate_size=8))),
          "DeepseekOcr2ForConditionalGeneration", "language_model.layers.1.mlp", alone=True),
    Model("unlimited_ocr", dict(
              text_config=V3 | SPARSE | dict(topk_method="greedy", norm_topk_prob=False),
              vision_config=dict(sam_config=SAM_EYES, encoder_config=dict(
                  hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8))),
          "UnlimitedOcrForConditionalGeneration", "language_model.layers.1.mlp", alone=True),
    *[Model(name, V3 | LATENT_ATTENTION) for name in ("deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa")],
    *[Model(name, V3) for name in ("glm4_moe", "solar_open", "dots1", "mimo_v2_flash")],
    *[Model(name, V3 | LATENT_ATTENTION | FULL | dict(num_experts=8, num_experts_per_token=3, num_shared_experts=2,
                                                     num_expert_group=4, moe_renormalize=True))
      for name in ("kimi_linear", "bailing_hybrid")],
    Model("glm4v_moe", dict(text_config=V3, vision_config=SMALL_EYES), "Glm4vMoeForConditionalGeneration",
          "language_model.layers.1.mlp", alone=True),
    Model("dots3_note_text", V3 | LATENT_ATTENTION | INDEXED | SPARSE | dict(
              shared_experts_intermediate_size=8, head_dim=16, swa_num_attention_heads=4, swa_num_key_value_heads=4,
              swa_q_lora_rank=8, swa_kv_lora_rank=8, swa_head_dim=16, swa_qk_nope_head_dim=8, swa_v_head_dim=8),
          alone=True),
    Model("glm5_next", dict(
              text_config=V3 | LATENT_ATTENTION | INDEXED | SPARSE | dict(
                  swiglu_limit=1.0, qk_rope_head_dim=0, hc_mult=2, linear_num_heads=2, linear_head_dim=8),
              vision_config=SMALL_EYES | dict(projection_intermediate_size=8)),
          "Glm5NextForConditionalGeneration", "language_model.layers.1.mlp", alone=True),
    Model("exaone_moe", NARROW | GROUPS | dict(num_shared_experts=2, mlp_layer_types=["dense", "sparse"])),
    Model("beam", V3 | dict(num_experts=8, mlp_layer_types=["dense", "sparse"])),
    Model("axk2", V3 | LATENT_ATTENTION, prepare=with_positive_bias),
    Model("mistral4", V3 | LATENT_ATTENTION, "Mistral4ForCausalLM", alone=True),
    Model("mistral_large4", dict(
              text_config=V3 | LATENT_ATTENTION | INDEXED, vision_config=dict(
                  hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, head_dim=8)),
          "MistralLarge4ForConditionalGeneration", "language_model.layers.1.mlp", alone=True),
    Model("muse_spark", dict(
              text_config=LOCAL | dict(
                  head_dim=4, moe_hidden_size=8, moe_intermediate_size=12, output_multiplier=0.5,
                  routed_scaling_factor=1.5, rms_norm_eps=0.25, post_norm_eps=0.5),
              vision_config=dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8),
              audio_config=dict(out_hidden_size=16, hidden_sizes=[8] * 4, depths=[1] * 4),
              out_hidden_size=16, projector_hidden_size=16),
          "MuseSparkForConditionalGeneration", "language_model.layers.1.mlp", alone=True),
    Model("gemma4_text", SIZES | dict(
              num_experts=8, top_k_experts=3, moe_intermediate_size=12, enable_moe_block=True, rms_norm_eps=0.25,
              hidden_size_per_layer_input=0, vocab_size_per_layer_input=32, layer_types=["full_attention"] * 2),
          "Gemma4ForCausalLM", "layers.1", alone=True, call=router_then_experts),
    Model("laguna", NARROW | dict(shared_expert_intermediate_size=20, moe_routed_scaling_factor=2.5,
                                  moe_router_logit_softcapping=1.5, mlp_layer_types=["dense", "sparse"])),
    Model("longcat_flash", LATENT_ATTENTION | dict(
              hidden_size=16, vocab_size=32, num_layers=2, num_attention_heads=4, expert_ffn_hidden_size=12,
              ffn_hidden_size=20, n_routed_experts=8, moe_topk=3, zero_expert_num=4), alone=True),
    Model("phimoe", LOCAL | dict(num_experts_per_tok=2, router_jitter_noise=0.3)),
    Model("minimax_m2", LOCAL),
    Model("hy_v4", V3 | LATENT_ATTENTION | dict(swiglu_limit=1.0), alone=True),
    *[Model("deepseek_v4", ROUTED | dict(
                num_key_value_heads=1, routed_scaling_factor=1.5, swiglu_limit=1.0, n_shared_experts=1, q_lora_rank=8,
                qk_rope_head_dim=4, o_groups=2, o_lora_rank=8, layer_types=["sliding_attention"] * 2,
                mlp_layer_types=["hash_moe", "moe"]), block=f"layers.{layer}.mlp", layer=layer, prepare=with_table,
            alone=True)
      for layer in (0, 1)],
    Model("inkling_text", ROUTED | dict(mlp_layer_types=["dense", "sparse"], n_shared_experts=2, route_scale=1.5),
          alone=True),
    Model("inkling2_text", ROUTED | dict(mlp_layer_types=["dense", "sparse"], mlp_gate_softcap=1.0,
                                         mlp_up_softcap=1.5), alone=True),
    Model("step3p7", dict(text_config=ROUTED | dict(
              share_expert_dim=20, moe_router_scaling_factor=3.0, swiglu_limits=[0, 0.5],
              swiglu_limits_shared=[0, 1.0], mlp_layer_types=["dense", "sparse"]), vision_config=dict(
                  hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=28)),
          "Step3p7ForConditionalGeneration", "language_model.layers.1.mlp", alone=True),
    Model("minimax_m3_vl_text", LOCAL | dict(shared_intermediate_size=20, swiglu_limit=1.0,
                                             mlp_layer_types=["dense", "sparse"])),
    Model("flint", GATED | dict(norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[])),
    Model("kolibri1", GATED | dict(norm_topk_prob=True)),
    Model("lfm2_moe", NARROW | FULL | dict(num_dense_layers=1, norm_topk_prob=True), block="layers.1.feed_forward"),
    Model("afmoe", NARROW | dict(num_shared_experts=2, num_dense_layers=1)),
    Model("hy_v3", NARROW | dict(num_shared_experts=2)),
    Model("axk1", V3 | LATENT_ATTENTION | dict(rms_norm_eps=0.5)),
    Model("jetmoe", {name: value for name, value in LOCAL.items() if name != "head_dim"} | dict(kv_channels=4)),
    *[Model("cohere2_moe", WIDE | dict(num_shared_experts=2, expert_selection_fn=score, norm_topk_prob=flag,
                                       shared_expert_combination_strategy=combine))
      for score, flag, combine in (("softmax", False, "average"), ("sigmoid", True, "sum"))],
    Model("nemotron_h", ROUTED | GROUPS | dict(
              moe_shared_expert_intermediate_size=20, moe_latent_size=8, layers_block_type=["attention", "moe"]),
          block="layers.1.mixer"),
    Model("nemotron_h", ROUTED | GROUPS | dict(
              moe_shared_expert_intermediate_size=20, layers_block_type=["attention", "moe"]), block="layers.1.mixer"),
    *[Model("switch_transformers", dict(
                d_model=16, d_ff=12, num_experts=8, num_layers=2, num_decoder_layers=2, num_sparse_encoder_layers=1,
                num_sparse_decoder_layers=1, expert_capacity=2, vocab_size=32, d_kv=8, num_heads=2, dense_act_fn="relu",
                pad_token_id=0, decoder_start_token_id=0),
            "SwitchTransformersForConditionalGeneration", block, layer)
      for block, layer in (("encoder.block.1.layer.1.mlp", 1), ("decoder.block.1.layer.2.mlp", 3))],
]  # fmt: skip
