"""`refmoe compare` as a referee of transformers: both ways of its experts pass, and a scaled expert is named.

In float32 the whole block runs; in bf16 its experts, on the law's selection and weights, as its router rounds the
logits to bf16 and the law's does not.
"""

import json
from typing import NamedTuple

import numpy as np
import pytest
import torch
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeConfig, Qwen3MoeSparseMoeBlock

import refmoe
from refmoe.__main__ import main
from refmoe.golden import write_bundle
from refmoe.golden.digests import to_codes
from refmoe.golden.inputs import make_inputs, prepare
from refmoe.golden.weights import maker_pool
from refmoe.safetensors import write_tensors

SIZES = {"small": (16, 16, 4, 2, 80), "middle": (96, 64, 6, 2, 128)}  # D, F, E, K, tokens
STORES = {"float32": (torch.float32, "F32", "f32"), "bf16": (torch.bfloat16, "BF16", "mixed")}
LEAST = 32  # tokens of the expert that is spoilt


class Case(NamedTuple):
    config: object
    inputs: object
    record: object
    store: str
    directory: object


@pytest.fixture(scope="module", params=[(s, f) for s in SIZES for f in STORES], ids=lambda p: f"{p[0]}-{p[1]}")
def case(request, tmp_path_factory):
    (D, F, E, K, T), store = SIZES[request.param[0]], request.param[1]
    routing = refmoe.RoutingConfig(normalize=True)
    config = refmoe.MoEConfig(hidden_size=D, intermediate_size=F, num_experts=E, top_k=K, routing=routing)
    num = refmoe.Numerics(store=store)
    tokens, rows, stored = prepare(config, num, T, False, 0, {})
    directory = tmp_path_factory.mktemp("verdicts") / "case"
    write_bundle(directory, config, num, refmoe.SPEC_VERSION, "Qwen3's block", tokens, rows)
    with maker_pool() as pool:
        inputs = make_inputs(config, num, tokens, rows, stored, pool)
    return Case(config, inputs, refmoe.moe_forward(inputs.x, inputs.params, config, num), store, directory)


def block_of(case, implementation):
    """transformers' block with the case's weights."""
    c, dtype = case.config, STORES[case.store][0]
    settings = Qwen3MoeConfig(
        hidden_size=c.hidden_size, moe_intermediate_size=c.intermediate_size, num_experts=c.num_experts,
        num_experts_per_tok=c.top_k, norm_topk_prob=True,
    )  # fmt: skip
    settings._experts_implementation = implementation
    block, params = Qwen3MoeSparseMoeBlock(settings).to(dtype).eval(), case.inputs.params
    with torch.no_grad():
        block.gate.weight.copy_(torch.tensor(params.w_router))
        block.experts.gate_up_proj.copy_(torch.tensor(np.concatenate([params.w_gate, params.w_up], axis=1)))
        block.experts.down_proj.copy_(torch.tensor(params.w_down))
    return block


def y_of(case, block):
    dtype, routing = STORES[case.store][0], case.record.routing
    x = torch.tensor(case.inputs.x, dtype=dtype)
    with torch.no_grad():
        if case.store == "float32":
            y = block(x[None])
            return (y[0] if isinstance(y, tuple) else y).reshape(x.shape).float().numpy()
        weights = torch.tensor(routing.topk_weights).to(dtype)
        return block.experts(x, torch.tensor(routing.topk_indices), weights).float().numpy()


def report_on(case, y, path, capsys):
    """(status, the report as JSON) of `refmoe compare` on y alone."""
    dtype, accumulator = STORES[case.store][1:]
    write_tensors(path, {"y": (dtype, to_codes(np.ascontiguousarray(y), dtype))})
    status = main(["compare", str(case.directory), str(path), "--accumulator", accumulator, "--json"])
    return status, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
def test_the_experts_pass_and_a_scaled_one_is_named(case, implementation, tmp_path, capsys):
    block = block_of(case, implementation)
    status, report = report_on(case, y_of(case, block), tmp_path / "y.safetensors", capsys)
    assert (status, report["passed"]) == (0, True), report["stages"][0]["verdict"]
    counts = case.record.plan.tokens_per_expert
    spoilt = int(np.where(counts >= LEAST, counts, counts.max() + 1).argmin())
    with torch.no_grad():
        scaled = block.experts.down_proj[spoilt].float() * 1.01
        block.experts.down_proj[spoilt] = scaled.to(block.experts.down_proj.dtype)
    status, report = report_on(case, y_of(case, block), tmp_path / "y.safetensors", capsys)
    stage = report["stages"][0]
    assert (status, stage["verdict"] in ("suspicious", "wrong")) == (1, True)
    assert stage["worst_expert"] == spoilt
