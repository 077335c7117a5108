"""transformers' experts, under each of its implementations: eager, batched_mm, grouped_mm."""

import os

from ..child import Refused
from . import Loaded
from .numpy_loop import is_plain
from .torch_dense import facts, read, tensors

SETTINGS = ("eager", "batched_mm", "grouped_mm")
SHARE = 3  # batched_mm copies the weights of every slot: refused beyond a third of the memory


def prepare(inputs, options):
    """Calls: the three implementations of the experts of Qwen3-MoE, or of GPT-OSS where the experts are clamped."""
    import torch
    import transformers

    case = inputs.case
    if case.phase == "backward":
        raise Refused("its way back is timed with the way there")
    kind, x, weights, indices, d_y = tensors(torch, inputs)
    module = make_experts(torch, inputs, kind)
    if case.phase == "training":
        x.requires_grad_(), weights.requires_grad_()

    def run(setting):
        if setting == "batched_mm":
            refuse_copies(case)
        module.config._experts_implementation = setting
        if case.phase == "forward":
            with torch.inference_mode():
                return module(x, indices, weights)
        for leaf in (x, weights, *module.parameters()):
            leaf.grad = None
        y = module(x, indices, weights)
        y.backward(d_y)
        return y

    calls = {setting: lambda setting=setting: run(setting) for setting in SETTINGS}
    known = facts(torch) | {"transformers": transformers.__version__, "experts": type(module).__name__}
    return Loaded(calls, known, read=read)


def make_experts(torch, inputs, kind):
    """The module with the case's weights in its own layout."""
    if is_plain(inputs.case.config.experts):
        return plain_experts(torch, inputs, kind)
    return gpt_oss_experts(torch, inputs, kind)


def plain_experts(torch, inputs, kind):
    from transformers.models.qwen3_moe.configuration_qwen3_moe import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

    c = inputs.case.config
    config = Qwen3MoeConfig(hidden_size=c.hidden_size, moe_intermediate_size=c.intermediate_size,
                            num_experts=c.num_experts, num_experts_per_tok=c.top_k)  # fmt: skip
    module, F = empty(torch, Qwen3MoeExperts, config, kind), c.intermediate_size
    for e in range(c.num_experts):
        module.gate_up_proj.data[e, :F] = torch.from_numpy(inputs.expert("w_gate", e))
        module.gate_up_proj.data[e, F:] = torch.from_numpy(inputs.expert("w_up", e))
        module.down_proj.data[e] = torch.from_numpy(inputs.expert("w_down", e))
    return module


def gpt_oss_experts(torch, inputs, kind):
    """Gate and up interleaved, contracted axis first."""
    from transformers.models.gpt_oss.configuration_gpt_oss import GptOssConfig
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

    c, own = inputs.case.config, inputs.case.config.experts
    if not (own.gated and own.activation == "silu" and own.biases and own.limit and own.linear_offset == 1):
        raise Refused("neither Qwen3's experts nor GPT-OSS's")
    config = GptOssConfig(hidden_size=c.hidden_size, intermediate_size=c.intermediate_size,
                          num_local_experts=c.num_experts, num_experts_per_tok=c.top_k)  # fmt: skip
    config.swiglu_alpha, config.swiglu_limit = own.alpha, own.limit
    module = empty(torch, GptOssExperts, config, kind)
    for e in range(c.num_experts):
        for start, name in ((0, "gate"), (1, "up")):
            module.gate_up_proj.data[e, :, start::2] = torch.from_numpy(inputs.expert(f"w_{name}", e)).T
            module.gate_up_proj_bias.data[e, start::2] = torch.from_numpy(inputs.expert(f"b_{name}", e))
        module.down_proj.data[e] = torch.from_numpy(inputs.expert("w_down", e)).T
        module.down_proj_bias.data[e] = torch.from_numpy(inputs.expert("b_down", e))
    return module


def empty(torch, kind_of_module, config, kind):
    """The module, its parameters in the type from the start."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(kind)
    try:
        return kind_of_module(config)
    finally:
        torch.set_default_dtype(default)


def refuse_copies(case):
    """Raises Refused where the copies of the slots' weights do not fit."""
    c, item = case.config, 4 if case.store == "float32" else 2
    copies = case.tokens * c.top_k * 2 * c.intermediate_size * c.hidden_size * item
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if copies * (3 if case.phase == "training" else 1) > memory // SHARE:
        raise Refused(f"it would copy {copies / 2**30:.0f} GiB of weights")
