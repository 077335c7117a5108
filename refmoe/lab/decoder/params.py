"""The decoder's parameters, and their first values by integer recipe."""

from typing import NamedTuple

import numpy as np

from ...config import MoEConfig
from ...recipes import (
    MoEParams,
    SharedParams,
    assemble_params,
    carried,
    fan_in_exponent,
    generate,
    init_params,
    name_params,
    tensor_key,
)

EMBEDDING_EXPONENT = -5  # standard deviation 0.018


class BlockParams(NamedTuple):
    """One block; feed_forward is MoEParams, or SharedParams of one expert where the block is dense."""

    w_attention_norm: object = None  # (D,)
    w_qkv: object = None  # (3 D, D): queries, keys, values, each head by head
    w_attention_out: object = None  # (D, D)
    w_feed_forward_norm: object = None  # (D,)
    feed_forward: object = None


class DecoderParams(NamedTuple):
    """Also the type of the gradients."""

    embedding: object = None  # (V, D), of the bytes; the head reads it too
    positions: object = None  # (S, D), None where they are linear
    blocks: tuple = ()
    w_final_norm: object = None  # (D,)


def init_decoder(config, seed=0, dtype=np.float32):
    """Every parameter by integer recipe, the same bits on every machine; norms begin at 1."""
    D = config.hidden_size

    def ones():
        return np.ones(D, dtype)

    def draw(name, shape, exponent):
        return generate(name, shape, seed, exponent=exponent).astype(dtype)

    def block(at, inner):
        qkv = draw(f"blocks.{at}.w_qkv", (3 * D, D), fan_in_exponent(D))
        out = draw(f"blocks.{at}.w_attention_out", (D, D), fan_in_exponent(D))
        return BlockParams(ones(), qkv, out, ones(), _feed_forward(f"blocks.{at}.feed_forward", inner, seed, dtype))

    embedding = draw("embedding", (config.vocab_size, D), EMBEDDING_EXPONENT)
    learned = config.positions == "learned"
    positions = draw("positions", (config.context, D), EMBEDDING_EXPONENT) if learned else None
    return DecoderParams(embedding, positions, tuple(map(block, range(len(config.blocks)), config.blocks)), ones())


def _feed_forward(name, block, seed, dtype):
    """The layer's own recipe, under a seed made of the run's and the block's name."""
    key = tensor_key(seed, name)
    if isinstance(block, MoEConfig):
        made = name_params(init_params(block, key))
        return assemble_params({name: carried(array, dtype) for name, array in made.items()})
    D, F = block.hidden_size, block.intermediate_size
    shapes = {"w_gate": (1, F, D), "w_up": (1, F, D), "w_down": (1, D, F)}
    made = {n: generate(n, shape, key, exponent=fan_in_exponent(shape[2])) for n, shape in shapes.items()}
    return SharedParams(**{n: a.astype(dtype) for n, a in made.items() if n != "w_gate" or block.gated})


def empty_like(feed_forward):
    """Nowhere to add gradients to: all fields None."""
    return MoEParams(shared=SharedParams()) if isinstance(feed_forward, MoEParams) else SharedParams()
