"""One comparison: a transformers block in float32 with its autograd, against refmoe in float64 with its own backward.

Weights are O(1), biases non-zero and of both signs, so that a transposed matrix, a lost bias or a forgotten scale
cannot hide below a tolerance. An error is max|a - b| / max|b| of a tensor; a stack of experts is held expert by expert.
"""

import importlib
import zlib
from typing import NamedTuple

import numpy as np
import torch
from layouts import Layout, find, read

import refmoe
from refmoe.golden.inputs import EXPERT_LEAVES
from refmoe.layer import NON_DIFFERENTIABLE
from refmoe.recipes import INTEGER_PARAMS, assemble_params, name_params

# Sizes, all different so that no two axes can be taken for each other, multiples of four as some kernels need.
D, F, S, E, K = 16, 12, 28, 20, 3
SEQUENCES, LENGTH = 2, 22
TOKEN_IDS = torch.arange(SEQUENCES * LENGTH).reshape(SEQUENCES, LENGTH) * 7  # what a table is asked, modulo its rows
# Tiny tensors: more threads would only wait for each other.
torch.set_num_threads(1)
NUM = refmoe.Numerics(profile="float64", threads=1)
FORWARD_BAR, GRADIENT_BAR = 2e-6, 1e-5
MARGIN_BAR = 1e-5  # a choice closer than this could fall either way in float32: take another seed


class Block(NamedTuple):
    """A row of the registry: how to build a transformers block, where its weights are, which refmoe layer it is."""

    name: str
    cls: str  # "model directory.class of the block"
    hf_config: str
    fields: dict  # of the transformers configuration
    layer: refmoe.MoEConfig
    layout: Layout
    seed: int = 0
    replay: bool = False  # take the indices from transformers: masked groups filled with 0.0 tie
    biases: str = "both"  # or "positive"
    scales: dict = {}  # path -> factor on the random values of a tensor
    call: object = None  # (block, x) -> y, where calling it is not enough
    prepare: object = None  # (block) -> None, after the random values
    args: tuple = ()  # of the block's constructor, after the configuration
    logits: str = ""  # path of the router's logits, noted in the call, where its net is none of refmoe's
    part: str = ""  # what of the block this row leaves out


class OtherExperts(AssertionError):
    """The two sides chose different experts, or a choice too close to call."""


class Result(NamedTuple):
    name: str
    forward: float
    gradient: float
    worst: str  # the tensor with the worst gradient error
    part: str


def run(row):
    """Builds, runs both ways and compares: block and refmoe, forward and back -> Result."""
    block, x, d_y = build(row)
    y, indices = transformers_forward(row, block, x)
    (y * d_y).sum().backward()
    named, theirs = read(row.layout, block, values), {"x": gradient(x).reshape(-1, D)}
    theirs |= read(row.layout, block, gradient)
    given = refmoe.Given(
        topk_indices=indices if row.replay else None, sequence_ids=_sequences(row), token_ids=_token_ids(row)
    )
    if row.logits:  # the block has its own way of saying that an expert is none, so that its indices are not compared
        logits, indices = find(block, row.logits), None
        given, theirs["logits"] = given._replace(logits=values(logits)), gradient(logits)
        named["w_router"] = np.zeros((row.layer.num_choices, D))
    record, ours = refmoes(row, named, values(x).reshape(-1, D), values(d_y).reshape(-1, D), given)
    if indices is not None:
        check_selection(row, record.routing, indices)
    flowing = [name for name in theirs if name not in (*NON_DIFFERENTIABLE, *INTEGER_PARAMS)]
    errors = {name: error(name, ours.get(name), theirs[name]) for name in flowing}
    worst = max(errors, key=errors.get)
    forward = error("y", record.y, values(y).reshape(-1, D))
    return Result(row.name, forward, errors[worst], worst, row.part)


def refmoes(row, named, x, d_y, given):
    """(record, gradients by name) of refmoe's layer."""
    params = assemble_params(named)
    record = refmoe.moe_forward(x, params, row.layer, NUM, given)
    grads = refmoe.moe_backward(d_y, x, params, record, row.layer, NUM, given)
    return record, {"x": grads.d_x, "logits": grads.d_logits} | name_params(grads.params)


# --- transformers -----------------------------------------------------------------------------------------------------


def build(row):
    """The block with random weights, its input and an upstream gradient (SEQUENCES, LENGTH, D)."""
    model, cls = row.cls.split(".")
    module = importlib.import_module(f"transformers.models.{model}.modeling_{model}")
    configuration = importlib.import_module(f"transformers.models.{model}.configuration_{model}")
    config = getattr(configuration, row.hf_config)(**row.fields)
    config._experts_implementation = "eager"
    block = getattr(module, cls)(config, *row.args).eval()
    rng = np.random.default_rng([row.seed, zlib.crc32(row.name.encode())])
    fill(row, block, rng)
    if row.prepare is not None:
        row.prepare(block)
    x, d_y = (torch.tensor(rng.standard_normal((SEQUENCES, LENGTH, D)), dtype=torch.float32) for _ in range(2))
    return block, x.requires_grad_(), d_y


def fill(row, block, rng):
    """Every parameter and floating-point buffer: normal, deviation 1/2."""
    with torch.no_grad():
        for name, tensor in [*block.named_parameters(), *block.named_buffers()]:
            if tensor.is_floating_point():
                drawn = rng.standard_normal(tensor.shape) * 0.5 * row.scales.get(name, 1.0)
                positive = row.biases == "positive" and name == row.layout.selection_bias
                tensor.copy_(torch.tensor(np.abs(drawn) if positive else drawn))


def transformers_forward(row, block, x):
    """y, and the indices its experts were called with, or None where they are not called so."""
    seen, handle = [], None

    def note(module, args, kwargs):
        given = [*args, *kwargs.values()]
        if len(given) > 1 and given[1].ndim == 2 and not given[1].is_floating_point():
            seen.append(given[1].numpy().astype(np.int64))

    if row.layout.experts:
        handle = find(block, row.layout.experts).register_forward_pre_hook(note, with_kwargs=True)
    y = block(x) if row.call is None else row.call(block, x)
    if handle is not None:
        handle.remove()
    return (y[0] if isinstance(y, tuple) else y).reshape(x.shape), (seen[0] if seen else None)


def values(tensor):
    """A tensor's values, exactly, in float64."""
    return tensor.detach().numpy().astype(np.float64)


def gradient(tensor):
    """A tensor's gradient in float64; zeros where nothing flowed into it."""
    return np.zeros(tensor.shape) if tensor.grad is None else values(tensor.grad)


def _sequences(row):
    return np.repeat(np.arange(SEQUENCES), LENGTH) if row.layer.dispatch.capacity_scope == "sequence" else None


def _token_ids(row):
    rows = row.layer.routing.hash_vocab_size
    return TOKEN_IDS.reshape(-1).numpy() % rows if rows else None


# --- comparing --------------------------------------------------------------------------------------------------------


def check_selection(row, routing, indices):
    """Both chose the same experts, and no choice was closer than float32 can tell. Raises OtherExperts."""
    if routing.margin is not None and routing.margin.min() <= MARGIN_BAR:
        raise OtherExperts(f"{row.name}: a margin of {routing.margin.min():.1e}; take another seed")
    same = (np.sort(routing.topk_indices) == np.sort(indices)).all(axis=-1)
    if not same.all():
        raise OtherExperts(f"{row.name}: other experts for tokens {np.flatnonzero(~same)}")


def error(name, ours, theirs):
    """max|a - b| / max|b|, for routed experts the worst expert's; 0 / 0 is 0."""
    assert ours is not None and ours.shape == theirs.shape, f"{name}: {np.shape(ours)} against {theirs.shape}"
    stacked = name in EXPERT_LEAVES
    pairs = zip(ours, theirs, strict=True) if stacked else [(ours, theirs)]
    return max(_ratio(np.abs(a - b).max(), np.abs(b).max()) for a, b in pairs)


def _ratio(difference, size):
    return float(difference / size) if size else (0.0 if difference == 0 else float("inf"))
