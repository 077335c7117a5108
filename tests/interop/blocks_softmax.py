"""Blocks of transformers whose router is a softmax: one row each, and a second where a choice deserves its own.

Field names are transformers' own; widths are the harness's.
"""

# ruff: noqa: C408  (dict(field=value) reads as the configuration it becomes)

import importlib

import torch
from harness import LENGTH, Block, D, E, F, K, S
from layouts import Layout

from refmoe import DispatchConfig, ExpertsConfig, MoEConfig, RoutingConfig

SIZES = dict(hidden_size=D, num_experts_per_tok=K)
LOCAL = SIZES | dict(intermediate_size=F, num_local_experts=E)
WIDE = SIZES | dict(intermediate_size=F, num_experts=E)
NARROW = SIZES | dict(intermediate_size=40, moe_intermediate_size=F, num_experts=E)
GATED_SHARED = NARROW | dict(shared_expert_intermediate_size=S)
NO_DENSE = {k: v for k, v in GATED_SHARED.items() if k != "intermediate_size"}
HEADS = dict(num_attention_heads=4, num_key_value_heads=4)
DEEPSEEK_2 = SIZES | HEADS | dict(
    intermediate_size=40, moe_intermediate_size=F, n_routed_experts=E, n_shared_experts=2,
    topk_method="group_limited_greedy", n_group=4, topk_group=2, routed_scaling_factor=16.0,
)  # fmt: skip
MISTRAL = SIZES | dict(
    intermediate_size=40, moe_intermediate_size=F, n_routed_experts=E, n_shared_experts=2,
    n_group=4, topk_group=2, routed_scaling_factor=1.5,
)  # fmt: skip
GRANITE = LOCAL | dict(shared_intermediate_size=S)
GPT_OSS = LOCAL | dict(swiglu_limit=1.0, swiglu_alpha=1.702)  # low enough to bind on many elements
ERNIE = dict(
    hidden_size=D, intermediate_size=40, moe_num_experts=E, moe_k=K, moe_num_shared_experts=2, moe_norm_min=0.25,
)  # fmt: skip


def layer(routing=None, experts=None, dispatch=None, top_k=K):
    return MoEConfig(
        hidden_size=D, intermediate_size=F, num_experts=E, top_k=top_k, routing=RoutingConfig(**(routing or {})),
        experts=ExpertsConfig(**(experts or {})), dispatch=DispatchConfig(**(dispatch or {})),
    )  # fmt: skip


RENORMALISED = dict(normalize=True)
GATED = dict(shared_intermediate_size=S, shared_gate=True)
TWO_SHARED = dict(shared_intermediate_size=2 * F)
GROUPED = dict(num_groups=4, top_groups=2)
BY_BEST = GROUPED | dict(group_score_topn=1, scaling_factor=16.0)
BY_BEST_TWO = GROUPED | dict(group_mask="zero", normalize=True, norm_eps=1e-20, scaling_factor=1.5)
CLAMPED = dict(alpha=1.702, limit=1.0, linear_offset=1.0)
# Both sides of the clamp occur.
BOTTOM_SUM = dict(selection_bias=True, normalize=True, norm_eps=0.25, norm_eps_mode="clamp")

PLAIN = Layout()
ROUTER = Layout(router="router.weight")
SHARED = Layout(shared="shared_expert", shared_gate="shared_expert_gate.weight")
N_SHARED = Layout(shared="shared_experts")
ERNIE_LAYOUT = Layout(selection_bias="gate.moe_statics.e_score_correction_bias", shared="shared_experts")


def in_the_layer(block, x):
    """Granite adds its shared expert in the decoder layer: block(x) + shared(x)."""
    return block(x) + block.shared_mlp(x)


def with_granite_mlp(model, cls, config, fields):
    """Puts the decoder layer's shared expert beside the block, with random values of its own."""

    def prepare(block):
        module = importlib.import_module(f"transformers.models.{model}.modeling_{model}")
        settings = importlib.import_module(f"transformers.models.{model}.configuration_{model}")
        block.shared_mlp = getattr(module, cls)(getattr(settings, config)(**fields))
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for tensor in block.shared_mlp.parameters():
                tensor.normal_(0, 0.5, generator=generator)

    return prepare


def with_experts(model, cls):
    """Puts the decoder layer's experts beside its router, with random values of their own."""

    def prepare(block):
        module = importlib.import_module(f"transformers.models.{model}.modeling_{model}")
        block.experts = getattr(module, cls)(block.config)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for tensor in block.experts.parameters():
                tensor.normal_(0, 0.5, generator=generator)

    return prepare


def router_then_experts(block, x):
    """Both read x, where the decoder layer gives the experts a norm of it."""
    x = x.reshape(-1, D)
    _, weights, indices = block(x)
    return block.experts(x, indices, weights)


def some_skip(block):
    """A bias that sends some tokens, and not all, to the expert that does nothing."""
    block.gate.balancing_biases *= 0.2
    block.gate.balancing_biases[-1] = 0.2


def with_logits_noted(block, x):
    """The logits as a leaf of the graph: what lies before them is a net that refmoe has not."""
    logits, *_ = block.gate(x, router_states=torch.ones(1, 1, 8))
    block.seen = logits.detach().requires_grad_()
    block.gate.router_mlp.forward = lambda states: block.seen.reshape(*x.shape[:2], -1)
    return block(x)


def granite(model, name, **more):
    fields = GRANITE | more
    return Block(
        model, f"{model}.{name}MoE", f"{name}Config", fields, layer(RENORMALISED, dict(shared_intermediate_size=S)),
        ROUTER._replace(shared="shared_mlp", shared_form="fused input_linear"), call=in_the_layer,
        prepare=with_granite_mlp(model, f"{name}MLP", f"{name}Config", fields),
    )  # fmt: skip


BLOCKS = [
    # softmax, weights as they come
    Block("olmoe", "olmoe.OlmoeSparseMoeBlock", "OlmoeConfig", WIDE, layer(), PLAIN),
    Block("flex_olmo", "flex_olmo.FlexOlmoSparseMoeBlock", "FlexOlmoConfig", WIDE, layer(), PLAIN),
    Block("jamba", "jamba.JambaSparseMoeBlock", "JambaConfig", WIDE, layer(), ROUTER, seed=1),
    Block("jamba, as Grok-1", "jamba.JambaSparseMoeBlock", "JambaConfig", WIDE | dict(hidden_act="gelu_pytorch_tanh"),
          layer(None, dict(activation="gelu_tanh")), ROUTER),
    # softmax, divided by the kept sum
    Block("mixtral", "mixtral.MixtralSparseMoeBlock", "MixtralConfig", LOCAL, layer(RENORMALISED), PLAIN),
    *[Block(f"mixtral, {act}", "mixtral.MixtralSparseMoeBlock", "MixtralConfig", LOCAL | dict(hidden_act=act),
            layer(RENORMALISED, dict(activation=act)), PLAIN) for act in ("gelu", "relu", "relu2")],
    Block("minimax", "minimax.MiniMaxSparseMoeBlock", "MiniMaxConfig", LOCAL, layer(RENORMALISED), PLAIN),
    Block("qwen3_vl_moe", "qwen3_vl_moe.Qwen3VLMoeTextSparseMoeBlock", "Qwen3VLMoeTextConfig", NARROW,
          layer(RENORMALISED), PLAIN),
    Block("qwen3_moe", "qwen3_moe.Qwen3MoeSparseMoeBlock", "Qwen3MoeConfig", NARROW | dict(norm_topk_prob=True),
          layer(RENORMALISED), PLAIN),
    Block("qwen3_moe, as they come", "qwen3_moe.Qwen3MoeSparseMoeBlock", "Qwen3MoeConfig",
          NARROW | dict(norm_topk_prob=False), layer(), PLAIN),
    Block("mellum", "mellum.MellumSparseMoeBlock", "MellumConfig", NARROW | dict(norm_topk_prob=True),
          layer(RENORMALISED), PLAIN),
    Block("qwen3_omni_moe, thinker", "qwen3_omni_moe.Qwen3OmniMoeThinkerTextSparseMoeBlock", "Qwen3OmniMoeTextConfig",
          NARROW | dict(norm_topk_prob=True), layer(RENORMALISED), PLAIN),
    Block("dbrx", "dbrx.DbrxFFN", "DbrxConfig", dict(d_model=D, ffn_config=dict(
              hidden_size=D, ffn_hidden_size=F, moe_num_experts=E, moe_top_k=K, ffn_act_fn=dict(name="silu"))),
          layer(RENORMALISED), Layout(router="router.layer.weight", form="flattened")),
    # and a shared expert
    Block("hunyuan_v1_moe", "hunyuan_v1_moe.HunYuanMoEV1Moe", "HunYuanMoEV1Config",
          dict(hidden_size=D, intermediate_size=F, num_experts=E, moe_topk=K),
          layer(RENORMALISED, dict(shared_intermediate_size=F)), Layout(router="gate.wg.weight", shared="shared_mlp")),
    Block("qwen2_moe", "qwen2_moe.Qwen2MoeSparseMoeBlock", "Qwen2MoeConfig", GATED_SHARED | dict(norm_topk_prob=False),
          layer(None, GATED), SHARED),
    Block("qwen3_next", "qwen3_next.Qwen3NextSparseMoeBlock", "Qwen3NextConfig",
          GATED_SHARED | dict(norm_topk_prob=True), layer(RENORMALISED, GATED), SHARED),
    Block("qwen3_5_moe", "qwen3_5_moe.Qwen3_5MoeSparseMoeBlock", "Qwen3_5MoeTextConfig", NO_DENSE,
          layer(RENORMALISED, GATED), SHARED),
    Block("qwen4_exp", "qwen4_exp.Qwen4ExpTextSparseMoeBlock", "Qwen4ExpTextConfig",
          NO_DENSE | dict(norm_topk_prob=True), layer(RENORMALISED, GATED), SHARED),
    Block("qwen3_omni_moe, talker", "qwen3_omni_moe.Qwen3OmniMoeTalkerTextSparseMoeBlock",
          "Qwen3OmniMoeTalkerTextConfig", GATED_SHARED | dict(norm_topk_prob=True), layer(RENORMALISED, GATED), SHARED),
    # the best logits first, then their softmax: the same function
    Block("granitemoe", "granitemoe.GraniteMoeMoE", "GraniteMoeConfig", LOCAL, layer(RENORMALISED), ROUTER),
    granite("granitemoeshared", "GraniteMoeShared"),
    granite("granitemoehybrid", "GraniteMoeHybrid", mamba_n_heads=4),
    granite("granitemoe_swa", "GraniteMoeSWA"),
    Block("aria", "aria.AriaTextMoELayer", "AriaTextConfig", HEADS | dict(
              hidden_size=D, intermediate_size=F, moe_num_experts=E, moe_topk=K, moe_num_shared_experts=2),
          layer(RENORMALISED, TWO_SHARED),
          Layout(router="router.weight", form="halves, transposed", shared="shared_experts")),
    Block("aria, gelu beside", "aria.AriaTextMoELayer", "AriaTextConfig", HEADS | dict(
              hidden_size=D, intermediate_size=F, moe_num_experts=E, moe_topk=K, moe_num_shared_experts=2,
              hidden_act="gelu"),
          layer(RENORMALISED, TWO_SHARED | dict(shared_activation="gelu")),
          Layout(router="router.weight", form="halves, transposed", shared="shared_experts")),
    Block("cohere2_moe, softmax", "cohere2_moe.Cohere2MoeSparseMoeBlock", "Cohere2MoeConfig", SIZES | dict(
              intermediate_size=F, num_experts=E, num_shared_experts=2, shared_expert_combination_strategy="sum"),
          layer(RENORMALISED, TWO_SHARED), N_SHARED),
    Block("cohere2_moe, averaged", "cohere2_moe.Cohere2MoeSparseMoeBlock", "Cohere2MoeConfig", SIZES | dict(
              intermediate_size=F, num_experts=E, num_shared_experts=2, shared_expert_combination_strategy="average"),
          layer(RENORMALISED, TWO_SHARED | dict(shared_combine="average")), N_SHARED),
    Block("gpt_oss", "gpt_oss.GptOssMLP", "GptOssConfig", GPT_OSS,
          layer(dict(router_bias=True, normalize=True), CLAMPED | dict(biases=True)),
          Layout(router="router.weight", router_bias="router.bias", form="interleaved, transposed, biased")),
    Block("openai_privacy_filter", "openai_privacy_filter.OpenAIPrivacyFilterMLP", "OpenAIPrivacyFilterConfig", GPT_OSS,
          layer(dict(router_bias=True, normalize=True), CLAMPED | dict(biases=True)),
          Layout(router="router.weight", router_bias="router.bias", form="halves, transposed, biased")),
    # a selection bias on softmax scores, and a sum that is not let below a floor
    Block("ernie4_5_moe", "ernie4_5_moe.Ernie4_5_MoeSparseMoeBlock", "Ernie4_5_MoeConfig",
          ERNIE | dict(moe_intermediate_size=F), layer(BOTTOM_SUM, TWO_SHARED), ERNIE_LAYOUT),
    Block("ernie4_5_vl_moe, text", "ernie4_5_vl_moe.Ernie4_5_VLMoeMoeBlock", "Ernie4_5_VLMoeTextConfig",
          ERNIE | dict(moe_intermediate_size=[F, 8]), layer(BOTTOM_SUM, TWO_SHARED),
          Layout(router="text_moe.gate.weight", selection_bias="text_moe.gate.moe_statics.e_score_correction_bias",
                 experts="text_moe.experts", shared="shared_experts"),
          part="tokens of the second modality: a second layer, and the shared expert of this one"),
    Block("ernie4_5_vl_moe, vision", "ernie4_5_vl_moe.Ernie4_5_VLMoeSparseMoeBlock", "Ernie4_5_VLMoeTextConfig",
          ERNIE | dict(moe_intermediate_size=[8, F]), layer(BOTTOM_SUM),
          Layout(selection_bias="gate.moe_statics.e_score_correction_bias"), args=(F,)),
    # groups, the others' scores filled with 0.0: harmless while scores are positive
    Block("deepseek_v2", "deepseek_v2.DeepseekV2Moe", "DeepseekV2Config", DEEPSEEK_2,
          layer(BY_BEST, TWO_SHARED), N_SHARED),
    Block("deepseek_v2, greedy", "deepseek_v2.DeepseekV2Moe", "DeepseekV2Config",
          DEEPSEEK_2 | dict(topk_method="greedy"), layer(dict(scaling_factor=16.0), TWO_SHARED), N_SHARED),
    Block("deepseek_ocr2", "deepseek_ocr2.DeepseekOcr2TextMoe", "DeepseekOcr2TextConfig", DEEPSEEK_2,
          layer(BY_BEST, TWO_SHARED), N_SHARED),
    Block("unlimited_ocr", "unlimited_ocr.UnlimitedOcrTextMoe", "UnlimitedOcrTextConfig", DEEPSEEK_2,
          layer(BY_BEST, TWO_SHARED), N_SHARED),
    Block("mistral4", "mistral4.Mistral4MoE", "Mistral4Config", MISTRAL | dict(norm_topk_prob=True),
          layer(BY_BEST_TWO, TWO_SHARED), N_SHARED),
    Block("mistral_large4", "mistral_large4.MistralLarge4TextMoE", "MistralLarge4TextConfig", MISTRAL,
          layer(BY_BEST_TWO, TWO_SHARED), N_SHARED),
    Block("longcat_flash", "longcat_flash.LongcatFlashMoE", "LongcatFlashConfig", dict(
              hidden_size=D, expert_ffn_hidden_size=F, n_routed_experts=E, moe_topk=K, zero_expert_num=0,
              routed_scaling_factor=6.0),
          layer(dict(selection_bias=True, scaling_factor=6.0)),
          Layout(router="router.classifier.weight", selection_bias="router.e_score_correction_bias")),
    Block("longcat_flash, identities", "longcat_flash.LongcatFlashMoE", "LongcatFlashConfig", dict(
              hidden_size=D, expert_ffn_hidden_size=F, n_routed_experts=E, moe_topk=K, zero_expert_num=8,
              routed_scaling_factor=6.0),
          layer(dict(selection_bias=True, scaling_factor=6.0), dict(identity_experts=8)),
          Layout(router="router.classifier.weight", selection_bias="router.e_score_correction_bias",
                 form="halves, more gates")),
    Block("zaya", "zaya.ZayaSparseMoeBlock", "ZayaConfig", SIZES | dict(
              num_experts_per_tok=1, moe_intermediate_size=F, num_experts=E, router_hidden_size=8),
          layer(dict(selection_bias=True), dict(zero_experts=1), top_k=1),
          Layout(router=None, selection_bias="gate.balancing_biases"), args=(1,), call=with_logits_noted, logits="seen",
          prepare=some_skip,
          part="the net that makes the logits: these and their gradient are exchanged"),
    # the router reads a norm of its own, and an expert's weight has a learned scale
    *[Block(model, f"{model}.{prefix}TextRouter", f"{prefix}TextConfig", NARROW | dict(
                top_k_experts=K, enable_moe_block=True, hidden_activation="gelu_pytorch_tanh", rms_norm_eps=0.25),
            layer(dict(input_norm="rms_scaled", input_norm_eps=0.25, normalize=True, per_expert_scale=True),
                  dict(activation="gelu_tanh")),
            Layout(router="proj.weight", more=dict(router_norm="scale", expert_scale="per_expert_scale")),
            prepare=with_experts(model, experts), call=router_then_experts, scales=dict(scale=8.0), seed=1,
            part="the decoder layer's own: a dense branch, a norm of what the experts read")
      for model, prefix, experts in (("gemma4", "Gemma4", "Gemma4TextExperts"),
                                     ("diffusion_gemma", "DiffusionGemma", "DiffusionGemmaTextExperts"))],
    # two passes, a softmax each over what is near the largest
    Block("phimoe", "phimoe.PhimoeSparseMoeBlock", "PhimoeConfig", LOCAL | dict(
              num_experts_per_tok=2, router_jitter_noise=0.3),
          layer(dict(selection="sparsemixer", sparsemixer_eps=0.3, selection_base="logits"), top_k=2), ROUTER,
          part="the sampled choices of training, an estimator"),
    Block("jetmoe", "jetmoe.JetMoeMoE", "JetMoeConfig", LOCAL | dict(activation_function="silu"),
          layer(RENORMALISED, dict(output_bias=True)),
          Layout(router="router.layer.weight", experts="", form="two stacks", more=dict(output_bias="bias"))),
    # one expert a token, and a capacity for each sequence
    *[Block(name, "switch_transformers.SwitchTransformersSparseMLP", "SwitchTransformersConfig",
            dict(d_model=D, d_ff=F, num_experts=E, dense_act_fn="relu", expert_capacity=capacity, router_bias=bias),
            layer(dict(router_bias=bias), dict(gated=False, activation="relu"),
                  dict(capacity=capacity, capacity_scope="sequence"), top_k=1),
            Layout(router="router.classifier.weight", router_bias="router.classifier.bias" if bias else None,
                   form="a module an expert"))
      for name, capacity, bias in (("switch_transformers", 1, False), ("switch_transformers, no drops", LENGTH, True))],
]  # fmt: skip
