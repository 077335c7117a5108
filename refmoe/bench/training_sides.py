"""The two sides of the comparison of training: the lab's decoder, and the same model in PyTorch.

Both train the byte-level model (4 layers, D 128, 8 experts, K 2) from the same first values on the same batches.
"""

import time
from typing import Any, NamedTuple

import numpy as np

PARTS = ("forward", "backward", "optimiser", "products")  # the last one lies within the first two; refmoe's alone


class Side(NamedTuple):
    """What a side can do; `parts`: seconds of the parts of the last step."""

    step: Any  # (tokens, targets) -> loss
    moe: Any  # (x, d_y): the way there and back through one MoE block
    held_out: Any  # (tokens, targets) -> loss, and nothing is learned
    parts: dict


def timed(parts, name, function):
    """The function, whose seconds are added to parts[name]."""

    def measured(*arguments, **more):
        begin = time.perf_counter()
        made = function(*arguments, **more)
        parts[name] = parts.get(name, 0.0) + time.perf_counter() - begin
        return made

    return measured


def make_config(sequences):
    """The byte-level model of about five million parameters, on so many sequences of 128 bytes a step."""
    from ..config import MoEConfig, RoutingConfig
    from ..lab import schedules
    from ..lab.decoder import DecoderConfig
    from ..lab.optimisers import Optimiser
    from ..lab.training import TrainingConfig

    routing = RoutingConfig(normalize=True)
    layer = MoEConfig(hidden_size=128, intermediate_size=384, num_experts=8, top_k=2, routing=routing)
    decoder = DecoderConfig(128, 4, 128, (layer,) * 4)
    return TrainingConfig(decoder, Optimiser("adamw"), schedules.constant(1e-3), sequences)


def make_refmoe(config, threads, seed=0):
    from ..lab import optimisers, training
    from ..lab.decoder import DecoderNumerics, decoder_backward, decoder_forward
    from ..layer import moe_backward, moe_forward

    num, parts, decoder = DecoderNumerics("chain", threads=threads), {}, config.decoder
    state = [training.start(config, seed, num)]
    block, params = decoder.blocks[0], state[0].params.blocks[0].feed_forward
    forward, backward = timed(parts, "forward", decoder_forward), timed(parts, "backward", decoder_backward)
    optimise = timed(parts, "optimiser", optimisers.step)
    if hasattr(num.engine, "_call"):  # of C
        num.engine._call = timed(parts, "products", num.engine._call)

    def step(tokens, targets):
        """training.train_step without what this model lacks: draws and biases."""
        parts.clear()
        done, params, optimiser = state[0]
        record = forward(tokens, targets, params, decoder, num)
        grads = backward(tokens, targets, params, record, decoder, num)
        rate = config.schedule.rate(done)
        moved = optimise(config.optimiser, params, grads, optimiser, rate, num.engine)
        state[0] = training.TrainingState(done + 1, params, moved)
        return float(record.loss)

    def moe(x, d_y):
        parts.clear()
        moe_backward(d_y, x, params, moe_forward(x, params, block, num, keep="backward"), block, num)

    def held_out(tokens, targets):
        return float(decoder_forward(tokens, targets, state[0].params, decoder, num).loss)

    return Side(step, moe, held_out, parts)


def make_torch(config, threads, implementation, seed=0):
    """The same model with autograd; attention, norms, loss and AdamW as PyTorch has them, fused where it can."""
    import torch
    from torch.nn import functional

    from ..lab.decoder import init_decoder
    from ..lab.trees import named

    torch.set_num_threads(threads)
    decoder, parts = config.decoder, {}
    own = init_decoder(decoder, seed)
    leaf = {n: torch.nn.Parameter(torch.from_numpy(a.copy())) for n, a in named(own).items() if "w_gate" not in n}
    leaf = {n: p for n, p in leaf.items() if "w_up" not in n and "w_down" not in n}
    experts = [_experts(torch, b.feed_forward, block, implementation) for b, block in zip(own.blocks, decoder.blocks)]

    forward, moe = _model(decoder, leaf, experts)
    every = [*leaf.values(), *(p for module in experts for p in module.parameters())]
    o = config.optimiser
    adamw = torch.optim.AdamW(every, lr=config.schedule.rate(0), betas=(o.beta1, o.beta2), eps=o.eps,
                              weight_decay=o.weight_decay, fused=True)  # fmt: skip

    def loss_of(tokens, targets):
        logits = forward(torch.from_numpy(tokens))
        return functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), torch.from_numpy(targets).reshape(-1))

    def step(tokens, targets):
        parts.clear()
        adamw.zero_grad(set_to_none=True)
        loss = timed(parts, "forward", loss_of)(tokens, targets)
        timed(parts, "backward", loss.backward)()
        timed(parts, "optimiser", adamw.step)()
        return loss.item()

    def there_and_back(x, d_y):
        adamw.zero_grad(set_to_none=True)
        moe(torch.from_numpy(x).requires_grad_(), 0).backward(torch.from_numpy(d_y))

    def held_out(tokens, targets):
        with torch.no_grad():
            return loss_of(tokens, targets).item()

    return Side(step, there_and_back, held_out, parts)


def _model(decoder, leaf, experts):
    """forward(tokens) -> logits, moe(x, at) -> y, as functions of the parameters."""
    from torch.nn import functional

    S, H, d = decoder.context, decoder.num_heads, decoder.head_size

    def norm(x, name):
        return functional.rms_norm(x, (x.shape[-1],), leaf[name], decoder.norm_eps)

    def moe(x, at):
        scores = functional.linear(x, leaf[f"blocks.{at}.feed_forward.w_router"]).softmax(dim=-1)
        weights, indices = scores.topk(decoder.blocks[at].top_k, dim=-1)
        return experts[at](x, indices, weights / weights.sum(dim=-1, keepdim=True))

    def forward(tokens):
        x = leaf["embedding"][tokens] + leaf["positions"]
        for at in range(len(decoder.blocks)):
            qkv = functional.linear(norm(x, f"blocks.{at}.w_attention_norm"), leaf[f"blocks.{at}.w_qkv"])
            q, k, v = qkv.reshape(-1, S, 3, H, d).permute(2, 0, 3, 1, 4)
            out = functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(x.shape)
            x = x + functional.linear(out, leaf[f"blocks.{at}.w_attention_out"])
            h = norm(x, f"blocks.{at}.w_feed_forward_norm").reshape(-1, x.shape[-1])
            x = x + moe(h, at).reshape(x.shape)
        return functional.linear(norm(x, "w_final_norm"), leaf["embedding"])

    return forward, moe


def _experts(torch, params, block, implementation):
    """transformers' experts of Qwen3-MoE with these weights."""
    from transformers.models.qwen3_moe.configuration_qwen3_moe import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

    own = Qwen3MoeConfig(hidden_size=block.hidden_size, moe_intermediate_size=block.intermediate_size,
                         num_experts=block.num_experts, num_experts_per_tok=block.top_k)  # fmt: skip
    module = Qwen3MoeExperts(own)
    module.config._experts_implementation = implementation
    module.gate_up_proj.data = torch.from_numpy(np.concatenate([params.w_gate, params.w_up], axis=1))
    module.down_proj.data = torch.from_numpy(params.w_down.copy())
    return module


def batches_of(config, seed=0):
    """Those of the lab's runs with this seed."""
    from ..lab.text import draw_batch, load_corpus, training_part

    data, step = training_part(load_corpus()), 0
    while True:
        yield draw_batch(data, config.sequences, config.decoder.context, seed, step)
        step += 1


def operations(config):
    """Of the products of one step, additions and multiplications both: the way back has two for each one there."""
    c, S = config.decoder, config.decoder.context
    D = c.hidden_size
    token = c.vocab_size * D
    for block in c.blocks:
        experts = 3 * block.top_k * D * block.intermediate_size + block.num_experts * D
        token += 4 * D * D + 2 * S * D + experts
    return 2 * 3 * token * config.sequences * S
