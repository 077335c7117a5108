"""The lab's decoder against the same model in PyTorch with transformers' experts: one step each, turn by turn.

    python -m refmoe.bench.training [--threads 2] [--rounds 8] [--sequences 16]

Both train the byte-level model (4 layers, D 128, 8 experts, K 2) from the same first values on the same batches, each
in a process of its own that waits while the other works. The table has seconds and processor seconds of a step, and of
the way there and back through one MoE block, and how far the losses are from each other. PyTorch's experts run under
two implementations; the faster one is compared. Needs torch and transformers.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from statistics import median

import numpy as np

from ..recipes import generate
from .children import clean_environment

SIDES = ("refmoe", "eager", "grouped_mm")  # this library, then transformers' experts by their implementation
MEASURES = STEP, MOE = "step", "moe"


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


# --- the two sides: each gives step(tokens, targets) -> loss, and moe(x, d_y) -----------------------------------------


def make_refmoe(config, threads):
    from ..lab import training
    from ..lab.decoder import DecoderNumerics
    from ..layer import moe_backward, moe_forward

    num = DecoderNumerics("chain", threads=threads)
    state = [training.start(config, 0, num)]
    block, params = config.decoder.blocks[0], state[0].params.blocks[0].feed_forward

    def step(tokens, targets):
        state[0], made = training.train_step(state[0], tokens, targets, config, 0, num)
        return made.loss

    def moe(x, d_y):
        moe_backward(d_y, x, params, moe_forward(x, params, block, num, keep="backward"), block, num)

    return step, moe


def make_torch(config, threads, implementation):
    """The same model with autograd; attention, norms, loss and AdamW as PyTorch has them, fused where it can."""
    import torch
    from torch.nn import functional

    from ..lab.decoder import init_decoder
    from ..lab.trees import named

    torch.set_num_threads(threads)
    decoder = config.decoder
    own = init_decoder(decoder)
    leaf = {n: torch.nn.Parameter(torch.from_numpy(a.copy())) for n, a in named(own).items() if "w_gate" not in n}
    leaf = {n: p for n, p in leaf.items() if "w_up" not in n and "w_down" not in n}
    experts = [_experts(torch, b.feed_forward, block, implementation) for b, block in zip(own.blocks, decoder.blocks)]

    forward, moe = _model(decoder, leaf, experts)
    every = [*leaf.values(), *(p for module in experts for p in module.parameters())]
    o = config.optimiser
    adamw = torch.optim.AdamW(every, lr=config.schedule.rate(0), betas=(o.beta1, o.beta2), eps=o.eps,
                              weight_decay=o.weight_decay, fused=True)  # fmt: skip

    def step(tokens, targets):
        adamw.zero_grad(set_to_none=True)
        logits = forward(torch.from_numpy(tokens))
        loss = functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), torch.from_numpy(targets).reshape(-1))
        loss.backward()
        adamw.step()
        return loss.item()

    def there_and_back(x, d_y):
        adamw.zero_grad(set_to_none=True)
        moe(torch.from_numpy(x).requires_grad_(), 0).backward(torch.from_numpy(d_y))

    return step, there_and_back


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


# --- a side's process, and its parent ---------------------------------------------------------------------------------


def serve(side, threads, sequences):
    """For each line on standard input (a measure's name) one on standard output: seconds, processor seconds, loss."""
    config = make_config(sequences)
    make = make_refmoe if side == "refmoe" else lambda *a: make_torch(*a, side)
    step, moe = make(config, threads)
    x, d_y = (generate(name, (config.sequences * config.decoder.context, 128), 0) for name in ("x", "d_y"))
    batches = batches_of(config)
    for line in sys.stdin:
        work, read = (moe, (x, d_y)) if line.strip() == MOE else (step, next(batches))
        wall, used = time.perf_counter(), time.process_time()
        made = work(*read)
        print(json.dumps([time.perf_counter() - wall, time.process_time() - used, made]), flush=True)


def batches_of(config):
    from ..lab.text import draw_batch, load_corpus, training_part

    data, step = training_part(load_corpus()), 0
    while True:
        yield draw_batch(data, config.sequences, config.decoder.context, 0, step)
        step += 1


def compare(threads, rounds, sequences):
    """side -> measure -> list of (seconds, processor seconds, loss), the sides taking turns."""
    sizes = ["--threads", str(threads), "--sequences", str(sequences)]
    command = [sys.executable, "-m", "refmoe.bench.training", *sizes, "--side"]
    how = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    environment = clean_environment(os.environ, threads, {"OMP_WAIT_POLICY": "passive"})
    children = {side: subprocess.Popen([*command, side], env=environment, **how) for side in SIDES}
    found = {side: {measure: [] for measure in MEASURES} for side in SIDES}
    try:
        for measure in MEASURES:
            for _ in range(rounds):
                for side, child in children.items():
                    child.stdin.write(measure + "\n")
                    child.stdin.flush()
                    found[side][measure].append(json.loads(child.stdout.readline()))
    finally:
        for child in children.values():
            child.stdin.close()
            child.wait()
    return found


def report(found):
    """The lines of the table: medians without the first round."""
    middle = {s: {m: [median(r[i] for r in found[s][m][1:]) for i in (0, 1)] for m in MEASURES} for s in SIDES}
    yield f"{'side':<12}" + "".join(f"{m + ' s':>10}{m + ' cpu s':>12}" for m in MEASURES)
    for side in SIDES:
        yield f"{side:<12}" + "".join(f"{a:10.3f}{b:12.3f}" for a, b in middle[side].values())
    for measure in MEASURES:
        best = [min(middle[side][measure][i] for side in SIDES[1:]) for i in (0, 1)]
        wall, used = (theirs / ours for theirs, ours in zip(best, middle["refmoe"][measure], strict=True))
        yield f"{measure}: refmoe is {wall:.2f} times as fast as the faster of the others, {used:.2f} by processor time"
    losses = {side: [row[2] for row in found[side][STEP]] for side in SIDES}
    furthest = max(abs(a - b) for a, b in zip(losses["refmoe"], losses["eager"], strict=True))
    yield f"loss from {losses['refmoe'][0]:.4f} to {losses['refmoe'][-1]:.4f}; eager's is at most {furthest:.1e} away"


def main(words=None):
    parser = argparse.ArgumentParser(prog="python -m refmoe.bench.training", description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=2, help="of each side (default: 2)")
    parser.add_argument("--rounds", type=int, default=8, help="steps each, the first not counted (default: 8)")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--sequences", type=int, default=16, help="of 128 bytes, a step (default: 16)")
    args = parser.parse_args(words)
    if args.rounds < 2 or args.threads < 1 or args.sequences < 1:
        parser.error("expected at least 2 rounds, 1 thread and 1 sequence; give more")
    if args.side:
        serve(args.side, args.threads, args.sequences)
        return
    print("\n".join(report(compare(args.threads, args.rounds, args.sequences))))


if __name__ == "__main__":
    main()
