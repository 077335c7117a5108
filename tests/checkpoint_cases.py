"""Small checkpoints for test_checkpoint.py: each family's names and layouts, written out of the house's parameters.

What `refmoe/models/checkpoint/families.py` declares is stated here once more, the other way round.
"""

import json

import numpy as np

import refmoe
from refmoe.formats import encode, pack_nibbles, round_to
from refmoe.recipes import name_params

D, F, E, K, S = 6, 5, 4, 2, 3  # no two alike: a transposed or swapped tensor cannot fit
FORMAT = {"BF16": "bf16", "F16": "fp16", "F32": "float32", "F8_E4M3": "E4M3", "F8_E8M0": "E8M0"}


# --- files ------------------------------------------------------------------------------------------------------------


def save(path, tensors):
    """A safetensors file. tensors: name -> (type in the header, array of codes)."""
    header, at = {}, 0
    for name, (dtype, array) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(header).encode()
    body = b"".join(np.ascontiguousarray(array).tobytes() for _, array in tensors.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


def stored(array, dtype="BF16"):
    """(type in the header, codes) of values that the type can hold."""
    return dtype, encode(np.ascontiguousarray(array, np.float32), FORMAT[dtype])


def write(directory, settings, tensors, shards=1):
    """config.json and one file, or several with an index; arrays without a type are stored as bf16."""
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(settings))
    tensors = {name: value if isinstance(value, tuple) else stored(value) for name, value in tensors.items()}
    if shards == 1:
        save(directory / "model.safetensors", tensors)
        return directory
    files = [f"model-{part + 1:05}-of-{shards:05}.safetensors" for part in range(shards)]
    where = {name: files[at % shards] for at, name in enumerate(tensors)}
    for file in files:
        save(directory / file, {name: tensor for name, tensor in tensors.items() if where[name] == file})
    index = {"metadata": {"total_size": 0}, "weight_map": where}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def expected(layer, seed=0):
    """(configuration, parameters by name with 8-bit significands) of a layer: fields beside the four sizes."""
    sizes = {"hidden_size": D, "intermediate_size": F, "num_experts": E, "top_k": K}
    config = refmoe.MoEConfig.from_dict({**sizes, **layer})
    return config, name_params(refmoe.init_params(config, seed=seed, recipe="bf16"))


# --- layouts ----------------------------------------------------------------------------------------------------------


def each(root, p, gate="gate_proj", up="up_proj", down="down_proj", middle="experts.{e}."):
    """A tensor an expert, (out, in)."""
    leaves = {"w_gate": gate, "w_up": up, "w_down": down}
    return {f"{root}{middle.format(e=e)}{name}.weight": p[leaf][e]
            for leaf, name in leaves.items() if name for e in range(len(p["w_up"]))}  # fmt: skip


def w123(root, p):
    return each(root, p, gate="w1", up="w3", down="w2")


def shared(root, p, **names):
    own = {name.removeprefix("shared."): array for name, array in p.items() if name.startswith("shared.")}
    return each(root, own, **names)


def halves(p, prefix=""):
    return np.concatenate([p[f"{prefix}w_gate"], p[f"{prefix}w_up"]], axis=1)


def interleaved(gate, up):
    return np.stack([gate, up], axis=2).reshape(len(gate), -1, *gate.shape[2:])


def turned(array):
    return array.transpose(0, 2, 1)


def fused(root, p):
    """(E, 2F, D) with the gate half first, and (E, D, F)."""
    return {f"{root}experts.gate_up_proj": halves(p), f"{root}experts.down_proj": p["w_down"]}


def fused_in_out(root, p):
    return {name: turned(array) for name, array in fused(root, p).items()}


def granite_old(root, p):
    return {f"{root}input_linear.weight": halves(p), f"{root}output_linear.weight": p["w_down"]}


def plain(root, p):
    return {f"{root}experts.up_proj": p["w_up"], f"{root}experts.down_proj": p["w_down"]}


def plain_each(root, p):
    return each(root, p, gate=None)


# --- blocks: house parameters -> tensors ------------------------------------------------------------------------------

ROOT = "model.layers.1."
MLP, SPARSE, FEED = f"{ROOT}mlp.", f"{ROOT}block_sparse_moe.", f"{ROOT}feed_forward."
LLAMA4, MIXER = f"language_{FEED}".replace("model.", "model.model.", 1), f"{ROOT}mixer."


def block(experts, root=MLP, router="gate.weight", bias=None, beside=None):
    """A router, its selection bias if it has one, the experts, and the shared expert under the path `beside`."""

    def tensors(p):
        out = {f"{root}{router}": p["w_router"], **experts(root, p)}
        if bias:
            out[f"{root}{bias}"] = p["selection_bias"]
        return out | (shared(root, p, middle=beside) if beside else {})

    return tensors


def deepseek(experts):
    return block(experts, bias="gate.e_score_correction_bias", beside="shared_experts.")


def qwen_shared(experts):
    inner = block(experts, beside="shared_expert.")
    return lambda p: inner(p) | {f"{MLP}shared_expert_gate.weight": p["shared.w_shared_gate"]}


def ernie(bias):
    inner = block(each, beside="shared_experts.")
    return lambda p: inner(p) | {f"{MLP}{bias}": stored(p["selection_bias"][None], "F32")}


def gpt_oss(p):
    return {f"{MLP}router.weight": p["w_router"], f"{MLP}router.bias": p["router_bias"],
            f"{MLP}experts.gate_up_proj": turned(interleaved(p["w_gate"], p["w_up"])),
            f"{MLP}experts.down_proj": turned(p["w_down"]),
            f"{MLP}experts.gate_up_proj_bias": interleaved(p["b_gate"], p["b_up"]),
            f"{MLP}experts.down_proj_bias": p["b_down"]}  # fmt: skip


def dbrx(p):
    root, experts, size, hidden = "transformer.blocks.1.ffn.", *p["w_up"].shape
    rows = {"w1": p["w_gate"], "v1": p["w_up"], "w2": turned(p["w_down"])}
    below = {f"{root}experts.mlp.{name}": array.reshape(experts * size, hidden) for name, array in rows.items()}
    return {f"{root}router.layer.weight": p["w_router"], **below}


def granite_shared(p):
    beside = {"input": halves(p, "shared.")[0], "output": p["shared.w_down"][0]}
    inner = block(granite_old, SPARSE, "router.layer.weight")
    return inner(p) | {f"{ROOT}shared_mlp.{name}_linear.weight": array for name, array in beside.items()}


def switch(root):
    def experts(root, p):
        return each(root, p, gate=None, up="wi", down="wo", middle="experts.expert_{e}.")

    return block(experts, root, "router.classifier.weight")


def nemotron(experts, root):
    def tensors(p):
        return block(experts, root, bias="gate.e_score_correction_bias")(p) | shared(
            root, p, gate=None, middle="shared_experts."
        )

    return tensors


def aria(p):
    inner = block(lambda root, p: {}, router="router.weight", beside="shared_experts.")
    return inner(p) | {f"{MLP}experts.fc1.weight": turned(halves(p)), f"{MLP}experts.fc2.weight": turned(p["w_down"])}


def privacy_filter(p):
    biases = np.concatenate([p["b_gate"], p["b_up"]], axis=1)
    return {**gpt_oss(p), f"{MLP}experts.gate_up_proj": turned(halves(p)), f"{MLP}experts.gate_up_proj_bias": biases}


def minimax_m3(p):
    """The names of transformers, with a shared expert that joins gate and up."""
    inner = block(fused, bias="gate.e_score_correction_bias")
    return inner(p) | {f"{MLP}shared_experts.gate_up_proj.weight": halves(p, "shared.")[0],
                       f"{MLP}shared_experts.down_proj.weight": p["shared.w_down"][0]}  # fmt: skip


def deepseek_v4(p):
    """DeepSeek's own names; a layer that chooses by token id has a table in the place of its bias."""
    root, own = f"{ROOT}ffn.", {name.removeprefix("shared."): a for name, a in p.items() if name.startswith("shared.")}
    inner = block(w123, root)(p) | each(root, own, "w1", "w3", "w2", "shared_experts.")
    if "hash_table" in p:
        return inner | {f"{root}gate.tid2eid": ("I64", p["hash_table"])}
    return inner | {f"{root}gate.bias": p["selection_bias"]}


def mistral_large4(p):
    """Mistral's own names: nothing stands between the layer and its experts."""
    root, own = "layers.1.", {name.removeprefix("shared."): a for name, a in p.items() if name.startswith("shared.")}
    return block(w123, root)(p) | each(root, own, "w1", "w3", "w2", "shared_experts.")


def gemma4(p):
    router = {"proj.weight": "w_router", "scale": "router_norm", "per_expert_scale": "expert_scale"}
    return fused(ROOT, p) | {f"{ROOT}router.{name}": p[leaf] for name, leaf in router.items()}


def jetmoe(p):
    return block(granite_old, MLP, "router.layer.weight")(p) | {f"{MLP}bias": p["output_bias"]}


def axk1(p):
    return deepseek(each)(p) | {f"{ROOT}post_mlp_layernorm.weight": p["w_output_norm"]}


def nemotron_latent(p):
    inner = nemotron(plain_each, MIXER)
    return inner(p) | {f"{MIXER}fc{n}_latent_proj.weight": p[f"w_latent_{end}"] for n, end in ((1, "in"), (2, "out"))}


def muse(p):
    """The names of transformers: two maps and two norms around the experts."""
    around = {"pre_expert_proj": "w_latent_in", "pre_expert_norm": "w_latent_pre_norm",
              "experts.post_expert_norm": "w_post_expert_norm", "post_expert_proj": "w_latent_out"}  # fmt: skip
    inner = block(fused, bias="gate.e_score_correction_bias")
    return inner(p) | {f"{MLP}{name}.weight": p[leaf] for name, leaf in around.items()}


def inkling2(root, p):
    return {f"{root}experts.w13_weight": interleaved(p["w_gate"], p["w_up"]), f"{root}experts.w2_weight": p["w_down"]}


def inkling(p):
    """The rows that score the shared experts behind the router's; gate and up interleaved, also of the shared ones."""
    root = f"{ROOT}mlp."
    joined = np.concatenate([p["w_router"], p["w_shared_router"]])
    out = {**inkling2(root, p), f"{root}gate.weight": joined, f"{root}gate.bias": p["selection_bias"]}
    return out | {f"{root}gate.global_scale": p["global_scale"],
                  f"{root}shared_experts.shared_w13_weight": interleaved(p["shared.w_gate"], p["shared.w_up"]),
                  f"{root}shared_experts.shared_w2_weight": p["shared.w_down"]}  # fmt: skip


def step(root, p):
    return {f"{root}{name}_proj.weight": p[f"w_{name}"] for name in ("gate", "up", "down")}


def step_shared(tensors):
    return lambda p: tensors(p) | shared(ROOT, p, middle="share_expert.")


def renamed(tensors, old, new):
    return lambda p: {name.replace(old, new, 1): array for name, array in tensors(p).items()}


# --- config.json, and the fields of MoEConfig it means ----------------------------------------------------------------


def but(fields, *names):
    return {name: value for name, value in fields.items() if name not in names}


def inside(settings, inner, outer):
    """The configuration of a model with other parts around the text model."""
    return {"model_type": outer, "text_config": {**settings, "model_type": inner}}


COMMON = {"hidden_size": D, "num_experts_per_tok": K, "hidden_act": "silu"}
MIXTRAL = {**COMMON, "intermediate_size": F, "num_local_experts": E}
OLMOE = {**COMMON, "intermediate_size": F, "num_experts": E, "norm_topk_prob": False}
QWEN = {**COMMON, "moe_intermediate_size": F, "num_experts": E, "norm_topk_prob": True, "intermediate_size": 99}
QWEN_SHARED = {**QWEN, "shared_expert_intermediate_size": S}
V3 = {**COMMON, "moe_intermediate_size": F, "n_routed_experts": E, "n_group": 2, "topk_group": 1,
      "norm_topk_prob": True, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
      "n_shared_experts": 1, "intermediate_size": 99}  # fmt: skip
V2 = {**V3, "scoring_func": "softmax", "topk_method": "group_limited_greedy", "norm_topk_prob": False}
ERNIE = {"hidden_size": D, "moe_intermediate_size": F, "moe_num_experts": E, "moe_k": K, "hidden_act": "silu",
         "moe_num_shared_experts": 2, "moe_norm_min": 1e-12, "use_bias": False}  # fmt: skip
HY = {**but(QWEN, "norm_topk_prob"), "router_scaling_factor": 2.5, "num_shared_experts": 1}
AFMOE = {**but(QWEN, "norm_topk_prob"), "route_scale": 2.5, "num_shared_experts": 1}
LFM2 = {**but(QWEN, "hidden_act"), "use_expert_bias": True, "routed_scaling_factor": 1.0}
NEMOTRON = {**but(V3, "hidden_act", "scoring_func", "topk_method"), "mlp_hidden_act": "relu2",
            "moe_shared_expert_intermediate_size": S, "moe_latent_size": None}  # fmt: skip
SWITCH = {"d_model": D, "d_ff": F, "num_experts": E, "expert_capacity": 8, "dense_act_fn": "relu", "num_layers": 2}
DBRX = {"d_model": D, "ffn_config": {"ffn_hidden_size": F, "moe_num_experts": E, "moe_top_k": K}}

RENAMED = {"hidden_size": D, "num_experts_per_token": K, "hidden_act": "silu", "moe_intermediate_size": F,
           "num_experts": E, "num_expert_group": 2, "topk_group": 1, "moe_renormalize": True, "num_shared_experts": 1,
           "routed_scaling_factor": 2.5, "moe_router_activation_func": "sigmoid"}  # fmt: skip
EXAONE = {**QWEN, "n_group": 2, "topk_group": 1, "routed_scaling_factor": 2.5, "num_shared_experts": 1}
V4 = {**but(V3, "n_group", "topk_group", "scoring_func"), "scoring_func": "sqrtsoftplus", "swiglu_limit": 10.0,
      "num_hash_layers": 1, "vocab_size": 9}  # fmt: skip
INKLING2 = {**COMMON, "moe_intermediate_size": F, "n_routed_experts": E, "route_scale": 8.0, "mlp_gate_softcap": 4.0,
            "mlp_up_softcap": 25.0, "scoring_func": "sigmoid"}  # fmt: skip
INKLING = {**COMMON, "moe_intermediate_size": F, "n_routed_experts": E, "n_shared_experts": 2, "route_scale": 8.0}
STEP = {"hidden_size": D, "moe_intermediate_size": F, "moe_num_experts": E, "moe_top_k": K, "share_expert_dim": S,
        "moe_router_scaling_factor": 3.0, "swiglu_limits": [0.0, 7.0], "swiglu_limits_shared": [0.0, 16.0]}  # fmt: skip
MUSE = {**COMMON, "moe_intermediate_size": F, "num_local_experts": E, "moe_hidden_size": 4, "output_multiplier": 0.25,
        "routed_scaling_factor": 1.5, "rms_norm_eps": 1e-5, "post_norm_eps": 1e-8, "intermediate_size": 99}  # fmt: skip
LAGUNA = {**but(QWEN_SHARED, "norm_topk_prob"), "moe_routed_scaling_factor": 2.5, "moe_router_logit_softcapping": 30.0}
LONGCAT = {"hidden_size": D, "expert_ffn_hidden_size": F, "n_routed_experts": E, "moe_topk": K, "zero_expert_num": 2,
           "zero_expert_type": "identity", "routed_scaling_factor": 6.0, "router_bias": False}  # fmt: skip
GEMMA4 = {"hidden_size": D, "moe_intermediate_size": F, "num_experts": E, "top_k_experts": K, "rms_norm_eps": 1e-6,
          "hidden_activation": "gelu_pytorch_tanh", "enable_moe_block": True, "intermediate_size": 99}  # fmt: skip
JETMOE = {**but(MIXTRAL, "hidden_act"), "activation_function": "silu"}
COHERE = {**COMMON, "num_experts": E, "intermediate_size": F, "num_shared_experts": 2, "norm_topk_prob": False,
          "expert_selection_fn": "softmax", "shared_expert_combination_strategy": "average"}  # fmt: skip
ARIA = {"hidden_size": D, "moe_topk": K, "moe_num_experts": E, "intermediate_size": F, "moe_num_shared_experts": 2}
FILTER = {**but(MIXTRAL, "hidden_act"), "swiglu_limit": 7.0, "swiglu_alpha": 1.702}
M3 = {**MIXTRAL, "hidden_act": "swigluoai", "shared_intermediate_size": S, "routed_scaling_factor": 2.0,
      "swiglu_limit": 7.0, "swiglu_alpha": 1.702}  # fmt: skip

SOFTMAX0 = {"routing": {"normalize": True}}
LOGITS0 = {"routing": {"normalize": True, "selection_base": "logits"}}
SIGMOID = {"score_fn": "sigmoid", "selection_bias": True, "normalize": True}
GATED = {"shared_intermediate_size": S, "shared_gate": True}
ONE_SHARED = {"shared_intermediate_size": F}
V3_ROUTING = {**SIGMOID, "norm_eps": 1e-20, "num_groups": 2, "top_groups": 1, "scaling_factor": 2.5}
V3_LAYER = {"routing": V3_ROUTING, "experts": ONE_SHARED}
V2_ROUTING = {"num_groups": 2, "top_groups": 1, "group_score_topn": 1, "group_mask": "zero", "scaling_factor": 2.5}
ERNIE_ROUTING = {"selection_bias": True, "normalize": True, "norm_eps": 1e-12, "norm_eps_mode": "clamp"}
ERNIE_LAYER = {"routing": ERNIE_ROUTING, "experts": {"shared_intermediate_size": 2 * F}}
HY_LAYER = {"routing": {**SIGMOID, "norm_eps": 1e-20, "scaling_factor": 2.5}, "experts": ONE_SHARED}
GPT_OSS_LAYER = {"routing": {**LOGITS0["routing"], "router_bias": True},
                 "experts": {"alpha": 1.702, "limit": 7.0, "linear_offset": 1.0, "biases": True}}  # fmt: skip
LLAMA4_LAYER = {"top_k": 1, "routing": {"score_fn": "sigmoid", "selection_base": "logits"},
                "experts": {"weight_position": "input", **ONE_SHARED}}  # fmt: skip
NEMOTRON_LAYER = {"routing": V3_ROUTING,
                  "experts": {"gated": False, "activation": "relu2", "shared_intermediate_size": S}}  # fmt: skip
M3_LAYER = {"routing": {**SIGMOID, "scaling_factor": 2.0},
            "experts": {"alpha": 1.702, "limit": 7.0, "linear_offset": 1.0, "shared_intermediate_size": S}}  # fmt: skip
MISTRAL_ROUTING = {"normalize": True, "norm_eps": 1e-20, "num_groups": 2, "top_groups": 1, "group_mask": "zero",
                   "scaling_factor": 2.5}  # fmt: skip
V4_ROUTING = {"score_fn": "sqrt_softplus", "normalize": True, "norm_eps": 1e-20, "scaling_factor": 2.5}
V4_EXPERTS = {"limit": 10.0, **ONE_SHARED}
INKLING_LAYER = {"routing": {**SIGMOID, "scaling_factor": 8.0, "global_scale": True, "norm_over_shared": True},
                 "experts": {"shared_intermediate_size": F, "shared_count": 2}}  # fmt: skip
STEP_LAYER = {"routing": {**SIGMOID, "scaling_factor": 3.0},
              "experts": {"limit": 7.0, "limit_position": "post", "shared_limit": 16.0, "shared_intermediate_size": S}}
INKLING2_LAYER = {"routing": {**SIGMOID, "norm_eps": 1e-20, "scaling_factor": 8.0},
                  "experts": {"gate_softcap": 4.0, "up_softcap": 25.0}}  # fmt: skip
MUSE_LAYER = {"routing": {**SIGMOID, "norm_eps": 1e-15, "scaling_factor": 1.5, "logits_scale": 0.25},
              "experts": {"latent_size": 4, "latent_pre_norm": "rms_centered", "norm_eps": 1e-5,
                          "post_expert_norm": "rms_input_scaled", "post_expert_norm_eps": 1e-8}}  # fmt: skip
LAGUNA_LAYER = {"routing": {**SIGMOID, "scaling_factor": 2.5, "logits_softcap": 30.0},
                "experts": {"shared_intermediate_size": S}}  # fmt: skip
LONGCAT_LAYER = {"routing": {"selection_bias": True, "scaling_factor": 6.0}, "experts": {"identity_experts": 2}}
GEMMA4_LAYER = {"routing": {"input_norm": "rms_scaled", "normalize": True, "per_expert_scale": True},
                "experts": {"activation": "gelu_tanh"}}  # fmt: skip
PHI_LAYER = {"routing": {"selection": "sparsemixer", "selection_base": "logits", "sparsemixer_eps": 0.02}}
AXK1_LAYER = {"routing": V3_ROUTING, "experts": {**ONE_SHARED, "output_norm": "rms", "norm_eps": 1e-5}}
JETMOE_LAYER = {**LOGITS0, "experts": {"output_bias": True}}
COHERE_LAYER = {**LOGITS0, "experts": {"shared_intermediate_size": 2 * F, "shared_combine": "average"}}
LATENT_LAYER = {"routing": V3_ROUTING, "experts": {
    "gated": False, "activation": "relu2", "shared_intermediate_size": S, "latent_size": 4}}  # fmt: skip
SWITCH_LAYER = {"top_k": 1, "dispatch": {"capacity": 8, "capacity_scope": "sequence"},
                "experts": {"gated": False, "activation": "relu"}}  # fmt: skip


def typed(model_type, settings):
    return {"model_type": model_type, **settings}


# name -> (config.json, fields of MoEConfig beside the four sizes, house parameters -> tensors)
CASES = {
    "mixtral old": (typed("mixtral", MIXTRAL), SOFTMAX0, block(w123, SPARSE)),
    "mixtral fused": (typed("mixtral", MIXTRAL), SOFTMAX0, block(fused)),
    "minimax": (typed("minimax", MIXTRAL), SOFTMAX0, block(w123, SPARSE)),
    "olmoe old": (typed("olmoe", OLMOE), {}, block(each)),
    "olmoe fused": (typed("olmoe", OLMOE), {}, block(fused)),
    "flex_olmo": (typed("flex_olmo", OLMOE), {}, block(each)),
    "jamba old": (typed("jamba", MIXTRAL), {}, block(each, FEED, "router.weight")),
    "jamba fused": (typed("jamba", MIXTRAL), {}, block(fused, FEED, "router.weight")),
    "qwen3_moe": (typed("qwen3_moe", QWEN), SOFTMAX0, block(each)),
    "qwen3_moe, both names": (typed("qwen3_moe", {**QWEN, "num_local_experts": E}), SOFTMAX0, block(fused)),
    "qwen2_moe": (typed("qwen2_moe", {**QWEN_SHARED, "norm_topk_prob": False}), {"experts": GATED}, qwen_shared(each)),
    "qwen3_next": (typed("qwen3_next", QWEN_SHARED), {**SOFTMAX0, "experts": GATED}, qwen_shared(fused)),
    "qwen3_5_moe": (inside(QWEN_SHARED, "qwen3_5_moe_text", "qwen3_5_moe"), {**SOFTMAX0, "experts": GATED},
                    renamed(qwen_shared(fused), "model.", "model.language_model.")),
    "qwen3_vl_moe old": ({**inside(QWEN, "qwen3_vl_moe_text", "qwen3_vl_moe"), "transformers_version": "4.57.0.dev0"},
                         SOFTMAX0, renamed(block(fused_in_out), "model.", "model.language_model.")),
    "qwen3_vl_moe new": ({**inside(QWEN, "qwen3_vl_moe_text", "qwen3_vl_moe"), "transformers_version": "5.23.0"},
                         SOFTMAX0, renamed(block(fused), "model.", "model.language_model.")),
    "dbrx": (typed("dbrx", DBRX), SOFTMAX0, dbrx),
    "granitemoe old": (typed("granitemoe", MIXTRAL), LOGITS0, block(granite_old, SPARSE, "router.layer.weight")),
    "granitemoe fused": (typed("granitemoe", MIXTRAL), LOGITS0, block(fused, SPARSE, "router.weight")),
    "granitemoeshared": (typed("granitemoeshared", {**MIXTRAL, "shared_intermediate_size": S}),
                         {**LOGITS0, "experts": {"shared_intermediate_size": S}}, granite_shared),
    "gpt_oss bf16": (typed("gpt_oss", {**MIXTRAL, "swiglu_limit": 7.0}), GPT_OSS_LAYER, gpt_oss),
    "llama4": (inside({**MIXTRAL, "num_experts_per_tok": 1}, "llama4_text", "llama4"), LLAMA4_LAYER,
               block(fused_in_out, LLAMA4, "router.weight", beside="shared_expert.")),
    "ernie4_5_moe old": (typed("ernie4_5_moe", ERNIE), ERNIE_LAYER, ernie("moe_statics.e_score_correction_bias")),
    "ernie4_5_moe new": (typed("ernie4_5_moe", ERNIE), ERNIE_LAYER, ernie("gate.moe_statics.e_score_correction_bias")),
    "deepseek_v2": (typed("deepseek_v2", V2), {"routing": V2_ROUTING, "experts": ONE_SHARED},
                    block(each, beside="shared_experts.")),
    "deepseek_v2 greedy": (typed("deepseek_v2", {**V2, "topk_method": "greedy"}),
                           {"routing": {"scaling_factor": 2.5}, "experts": ONE_SHARED},
                           block(each, beside="shared_experts.")),
    **{f"{name} old": (typed(name, V3), V3_LAYER, deepseek(each)) for name in
       ("deepseek_v3", "deepseek_v32", "kimi_k2", "glm4_moe", "glm4_moe_lite", "glm_moe_dsa", "dots1", "solar_open")},
    "deepseek_v3 fused": (typed("deepseek_v3", V3), V3_LAYER, deepseek(fused)),
    "dots1 without groups": (typed("dots1", but(V3, "n_group", "topk_group")),
                             {**HY_LAYER}, deepseek(each)),
    "kimi_k2 inside": (inside(V3, "kimi_k2", "kimi_k25"), V3_LAYER,
                       renamed(deepseek(each), "model.", "language_model.model.")),
    "mimo_v2_flash": (typed("mimo_v2_flash", {**V3, "routed_scaling_factor": None, "n_shared_experts": None}),
                      {"routing": {**V3_ROUTING, "scaling_factor": 1.0}},
                      block(each, bias="gate.e_score_correction_bias")),
    "minimax_m2": (typed("minimax_m2", {**MIXTRAL, "scoring_func": "sigmoid", "shared_intermediate_size": 0}),
                   {"routing": SIGMOID}, block(w123, SPARSE, bias="e_score_correction_bias")),
    "minimax_m3_vl old": (inside(M3, "minimax_m3_vl_text", "minimax_m3_vl"), M3_LAYER,
                          renamed(block(w123, SPARSE, bias="e_score_correction_bias", beside="shared_experts."),
                                  "model.", "language_model.model.")),
    "minimax_m3_vl new": (inside(M3, "minimax_m3_vl_text", "minimax_m3_vl"), M3_LAYER,
                          renamed(minimax_m3, "model.", "model.language_model.")),
    "kimi_linear old": (typed("kimi_linear", RENAMED), V3_LAYER,
                        block(w123, SPARSE, bias="gate.e_score_correction_bias", beside="shared_experts.")),
    "kimi_linear new": (typed("kimi_linear", RENAMED), V3_LAYER, deepseek(fused)),
    "bailing_hybrid": (typed("bailing_hybrid", RENAMED), V3_LAYER,
                       block(each, bias="gate.expert_bias", beside="shared_experts.")),
    "exaone_moe": (typed("exaone_moe", EXAONE), V3_LAYER,
                   block(each, bias="e_score_correction_bias", beside="shared_experts.")),
    "glm4v_moe": (inside(V3, "glm4v_moe_text", "glm4v_moe"), V3_LAYER,
                  renamed(deepseek(each), "model.", "model.language_model.")),
    "axk2": (typed("axk2", V3), {**V3_LAYER, "routing": {**V3_ROUTING, "group_mask": "zero"}}, deepseek(each)),
    "beam": (typed("beam", {**but(V3, "n_shared_experts"), "num_experts": E}), {"routing": V3_ROUTING},
             block(fused, bias="gate.e_score_correction_bias")),
    "mistral4": (typed("mistral4", but(V3, "scoring_func", "topk_method")),
                 {"routing": MISTRAL_ROUTING, "experts": ONE_SHARED}, block(fused, beside="shared_experts.")),
    "flint": (typed("flint", QWEN_SHARED), {"routing": {"score_fn": "sigmoid", "normalize": True},
                                            "experts": {"shared_intermediate_size": S}},
              block(each, beside="shared_expert.")),
    "kolibri1": (typed("kolibri1", QWEN_SHARED), {"routing": {**SIGMOID, "selection_base": "logits"},
                                                  "experts": {"shared_intermediate_size": S}},
                 renamed(block(each, bias="@", beside="shared_experts."), "mlp.@", "moe.router.expert_bias")),
    "mellum": (typed("mellum", QWEN), SOFTMAX0, block(each)),
    "qwen3_omni_moe": ({"model_type": "qwen3_omni_moe",
                        "thinker_config": inside(QWEN, "qwen3_omni_moe_text", "qwen3_omni_moe_thinker")}, SOFTMAX0,
                       renamed(block(each), "model.", "thinker.model.")),
    "hunyuan_v1_moe": (typed("hunyuan_v1_moe", {**but(MIXTRAL, "num_experts_per_tok"), "moe_topk": K}),
                       {**SOFTMAX0, "experts": ONE_SHARED}, block(each, router="gate.wg.weight", beside="shared_mlp.")),
    "aria": (inside(ARIA, "aria_text", "aria"), {**LOGITS0, "experts": {"shared_intermediate_size": 2 * F}},
             renamed(aria, "model.", "language_model.model.")),
    "openai_privacy_filter": (typed("openai_privacy_filter", FILTER), GPT_OSS_LAYER, privacy_filter),
    "granitemoehybrid": (typed("granitemoehybrid", {**MIXTRAL, "shared_intermediate_size": S}),
                         {**LOGITS0, "experts": {"shared_intermediate_size": S}}, granite_shared),
    "granitemoe_swa": (typed("granitemoe_swa", {**MIXTRAL, "shared_intermediate_size": S}),
                       {**LOGITS0, "experts": {"shared_intermediate_size": S}}, granite_shared),
    "glm5_next": (inside({**V3, "swiglu_limit": 10.0}, "glm5_next_text", "glm5_next"),
                  {**V3_LAYER, "experts": {**ONE_SHARED, "limit": 10.0}},
                  renamed(deepseek(each), "model.", "model.language_model.")),
    "hy_v4": (typed("hy_v4", {**V3, "swiglu_limit": 10.0}),
              {**V3_LAYER, "experts": {**ONE_SHARED, "limit": 10.0, "shared_clamped": False}}, deepseek(fused)),
    "deepseek_v4": (typed("deepseek_v4", V4),
                    {"routing": {**V4_ROUTING, "selection_bias": True}, "experts": V4_EXPERTS}, deepseek_v4),
    "deepseek_v4 plain root": (typed("deepseek_v4", {**V4, "mlp_layer_types": ["hash_moe", "moe"]}),
                               {"routing": {**V4_ROUTING, "selection_bias": True}, "experts": V4_EXPERTS},
                               renamed(deepseek_v4, "model.", "")),
    "deepseek_v4 hash": (typed("deepseek_v4", {**V4, "num_hash_layers": 3}),
                         {"routing": {**V4_ROUTING, "selection": "hash", "hash_vocab_size": 9}, "experts": V4_EXPERTS},
                         deepseek_v4),
    "inkling2": (typed("inkling2_text", INKLING2), INKLING2_LAYER,
                 renamed(block(inkling2, bias="gate.bias"), "model.", "model.llm.")),
    "inkling": (inside(INKLING, "inkling_text", "inkling_mm_model"), INKLING_LAYER,
                renamed(inkling, "model.", "model.llm.")),
    "step3p7": (inside(STEP, "step3p5", "step3p7"), STEP_LAYER,
                step_shared(block(step, f"{ROOT}moe.", bias="router_bias"))),
    "step3p5 unclamped": (typed("step3p5", {**STEP, "swiglu_limits": [7.0, 0.0], "swiglu_limits_shared": None}),
                          {**STEP_LAYER, "experts": {"shared_intermediate_size": S}},
                          step_shared(block(step, f"{ROOT}moe.", bias="router_bias"))),
    "mistral_large4": (inside(V3, "mistral_large4_text", "mistral_large4"),
                       {"routing": MISTRAL_ROUTING, "experts": ONE_SHARED},
                       mistral_large4),
    "aria, gelu beside": (inside({**ARIA, "hidden_act": "gelu_pytorch_tanh"}, "aria_text", "aria"),
                          {**LOGITS0, "experts": {"shared_intermediate_size": 2 * F, "shared_activation": "gelu_tanh"}},
                          renamed(aria, "model.", "language_model.model.")),
    "muse_spark": (inside(MUSE, "muse_spark_text", "muse_spark"), MUSE_LAYER,
                   renamed(muse, "model.", "model.language_model.")),
    "qwen4_exp": (typed("qwen4_exp_text", QWEN_SHARED), {**SOFTMAX0, "experts": GATED}, qwen_shared(each)),
    "dots3_note": (typed("dots3_note_text", {**V3, "shared_experts_intermediate_size": S}),
                   {**V3_LAYER, "experts": {"shared_intermediate_size": S}}, deepseek(each)),
    "dots3_note as published": (typed("dots3_note_text", {**V3, "moe_shared_expert_intermediate_size": S}),
                                {**V3_LAYER, "experts": {"shared_intermediate_size": S}}, deepseek(each)),
    "deepseek_ocr2": (inside(but(V2, "norm_topk_prob"), "deepseek_ocr2_text", "deepseek_ocr2"),
                      {"routing": V2_ROUTING, "experts": ONE_SHARED}, block(each, beside="shared_experts.")),
    "unlimited_ocr": (inside({**V2, "topk_method": "greedy"}, "unlimited_ocr_text", "unlimited_ocr"),
                      {"routing": {"scaling_factor": 2.5}, "experts": ONE_SHARED},
                      renamed(block(fused, beside="shared_experts."), "model.", "model.language_model.")),
    "laguna old": (typed("laguna", LAGUNA), LAGUNA_LAYER,
                   block(each, bias="experts.e_score_correction_bias", beside="shared_expert.")),
    "laguna uncapped": (typed("laguna", {**LAGUNA, "moe_router_logit_softcapping": 0.0}),
                        {**LAGUNA_LAYER, "routing": {**SIGMOID, "scaling_factor": 2.5}}, deepseek(fused)),
    "longcat_flash": (typed("longcat_flash", LONGCAT), LONGCAT_LAYER,
                      block(each, router="router.classifier.weight", bias="router.e_score_correction_bias")),
    "phimoe": (typed("phimoe", {**MIXTRAL, "router_jitter_noise": 0.02}), PHI_LAYER, block(w123, SPARSE)),
    "gemma4": (inside(GEMMA4, "gemma4_text", "gemma4"), GEMMA4_LAYER,
               renamed(gemma4, "model.", "model.language_model.")),
    "axk1": (typed("axk1", {**V3, "rms_norm_eps": 1e-5}), AXK1_LAYER, axk1),
    "jetmoe": (typed("jetmoe", JETMOE), JETMOE_LAYER, jetmoe),
    "cohere2_moe": (typed("cohere2_moe", COHERE), COHERE_LAYER, block(each, beside="shared_experts.")),
    "cohere2_moe sigmoid": (
        typed("cohere2_moe", {**COHERE, "expert_selection_fn": "sigmoid", "num_shared_experts": 0}),
        {"routing": {"score_fn": "sigmoid", "selection_base": "logits"}}, block(fused)),
    "nemotron_h latent": (typed("nemotron_h", {**NEMOTRON, "moe_latent_size": 4}), LATENT_LAYER, nemotron_latent),
    "lfm2_moe": (typed("lfm2_moe", LFM2), {"routing": {**SIGMOID, "norm_eps": 1e-6}},
                 block(w123, FEED, bias="expert_bias")),
    "lfm2_moe plain": (typed("lfm2_moe", {**LFM2, "norm_topk_prob": False, "use_expert_bias": False}),
                       {"routing": {"score_fn": "sigmoid"}}, block(w123, FEED)),
    "afmoe": (typed("afmoe", AFMOE), HY_LAYER,
              block(each, router="router.gate.weight", bias="expert_bias", beside="shared_experts.")),
    "hy_v3 old": (typed("hy_v3", HY), HY_LAYER,
                  block(each, router="router.gate.weight", bias="expert_bias", beside="shared_mlp.")),
    "hy_v3 new": (typed("hy_v3", HY), HY_LAYER,
                  block(fused, bias="e_score_correction_bias", beside="shared_experts.")),
    "nemotron_h old": (typed("nemotron_h", NEMOTRON), NEMOTRON_LAYER,
                       renamed(nemotron(plain_each, MIXER), "model.", "backbone.")),
    "nemotron_h fused": (typed("nemotron_h", NEMOTRON), NEMOTRON_LAYER, nemotron(plain, MIXER)),
    "switch": (typed("switch_transformers", SWITCH), SWITCH_LAYER, switch("encoder.block.1.layer.1.mlp.")),
}  # fmt: skip


# --- codes and scales -------------------------------------------------------------------------------------------------


def fp8_checkpoint(tmp_path, experts=each, dtype="F32", wide=4, change=lambda settings, tensors: None):
    """A deepseek_v3 layer in E4M3 with scales for blocks of 2 x 4 codes; F = 4 so that gate and up end on a block."""
    settings = {**typed("deepseek_v3", V3), "moe_intermediate_size": wide}
    settings["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [2, 4]}
    layer = {**V3_LAYER, "intermediate_size": wide, "experts": {"shared_intermediate_size": wide}}
    config, params = expected(layer)
    tensors, rng = deepseek(experts)(params), np.random.default_rng(3)
    for name in [name for name in tensors if "experts" in name]:
        codes = rng.integers(0, 0x7F, tensors[name].shape).astype(np.uint8)
        blocks = *codes.shape[:-2], -(-codes.shape[-2] // 2), -(-codes.shape[-1] // 4)
        powers = 2.0 ** rng.integers(-8, -2, blocks)
        tensors[name] = "F8_E4M3", codes
        tensors[f"{name}_scale_inv"] = stored(
            powers if dtype == "F8_E8M0" else round_to(rng.random(blocks), "bf16"), dtype
        )
    change(settings, tensors)
    return write(tmp_path / "model", settings, tensors), config, tensors


def mxfp4_checkpoint(tmp_path, hidden=64, wide=32, change=lambda settings, tensors: None):
    """A gpt_oss layer whose expert weights are 4-bit codes in blocks of 32, gate and up interleaved."""
    config, params = expected({**GPT_OSS_LAYER, "hidden_size": hidden, "intermediate_size": wide})
    settings = {**typed("gpt_oss", MIXTRAL), "hidden_size": hidden, "intermediate_size": wide}
    settings["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.mlp.router"]}
    tensors = {name: array for name, array in gpt_oss(params).items() if not name.endswith("_proj")}
    rng = np.random.default_rng(4)
    for name, rows, columns in (("gate_up_proj", 2 * wide, hidden), ("down_proj", hidden, wide)):
        codes = rng.integers(0, 16, (E, rows, columns), np.uint8)
        tensors[f"{MLP}experts.{name}_blocks"] = (
            "U8",
            pack_nibbles(codes).reshape(E, rows, -1, 16 if columns % 32 == 0 else 8),
        )
        tensors[f"{MLP}experts.{name}_scales"] = "U8", rng.integers(118, 128, (E, rows, columns // 32), np.uint8)
    change(settings, tensors)
    return write(tmp_path / "model", settings, tensors), config, params, tensors
