"""decoder_forward, decoder_backward: the table of contents of the decoder, in code."""

from typing import NamedTuple

import numpy as np

from ...config import MoEConfig
from ...inputs import Given
from ...losses import LOSSES
from ...refusals import require
from .attention import AttentionRecord, Layout, attention, attention_backward, make_layout
from .ends import HeadRecord, cross_entropy, cross_entropy_backward, embed, embed_backward
from .feed_forward import feed_forward, feed_forward_backward
from .norm import NormRecord, rms_norm, rms_norm_backward
from .params import BlockParams, DecoderParams
from .policy import DecoderNumerics


class BlockRecord(NamedTuple):
    """Every stored tensor of one block."""

    x: object  # (T, D)
    attention_norm: NormRecord
    attention: AttentionRecord
    middle: object  # (T, D)
    feed_forward_norm: NormRecord
    feed_forward: object  # MoERecord or FeedForward
    y: object  # (T, D)


class DecoderRecord(NamedTuple):
    """Every stored tensor of the forward; `loss` is the cross entropy in nats a token, `total` has the layers' too."""

    layout: Layout
    blocks: tuple
    final_norm: NormRecord
    head: HeadRecord
    loss: object
    total: object


def forward(tokens, targets, params, config, num, given, chosen=None):
    """decoder_forward without its door. chosen: a record whose selections are taken over."""
    layout = make_layout(tokens, config, num.dtype)
    x, blocks = embed(tokens, params.embedding, params.positions), []
    for at, block in enumerate(config.blocks):
        before = None if chosen is None else chosen.blocks[at].feed_forward
        blocks.append(block_forward(x, params.blocks[at], block, config, layout, num, given[at], before))
        x = blocks[-1].y
    final = rms_norm(x, params.w_final_norm, config.norm_eps, num)
    head = cross_entropy(final.out, params.embedding, targets, num)
    total = head.loss
    for block, made in zip(config.blocks, blocks, strict=True):
        for value in layer_losses(block, made.feed_forward).values():
            total = total + value
    return DecoderRecord(layout, tuple(blocks), final, head, head.loss, total)


def block_forward(x, params, block, config, layout, num, given, chosen=None):
    """m = x + attention(norm(x));  y = m + feed_forward(norm(m)).

    x (T, D) -> BlockRecord
    """
    first = rms_norm(x, params.w_attention_norm, config.norm_eps, num)
    attended = attention(first.out, params, layout, num)
    middle = x + attended.out
    second = rms_norm(middle, params.w_feed_forward_norm, config.norm_eps, num)
    record, y = feed_forward(second.out, params.feed_forward, block, num, given, chosen)
    return BlockRecord(x, first, attended, middle, second, record, middle + y)


def block_backward(d_y, params, record, block, layout, num, given):
    """d_y (T, D) -> d_x (T, D), BlockParams of gradients."""
    # y = m + feed_forward(norm(m))
    second = record.feed_forward_norm
    inner = record.feed_forward, params.feed_forward, block, num, given
    d_second, d_feed_forward = feed_forward_backward(d_y, second.out, *inner)
    d_middle, d_second_norm = rms_norm_backward(d_second, second, params.w_feed_forward_norm, num)
    d_middle = d_y + d_middle
    # m = x + attention(norm(x))
    first = record.attention_norm
    d_first, grads = attention_backward(d_middle, first.out, record.attention, params, layout, num)
    d_x, d_first_norm = rms_norm_backward(d_first, first, params.w_attention_norm, num)
    norms = {"w_attention_norm": d_first_norm, "w_feed_forward_norm": d_second_norm}
    return d_middle + d_x, BlockParams(**norms, **grads, feed_forward=d_feed_forward)


def decoder_forward(tokens, targets, params, config, num, given=None):
    """The mean cross entropy of each next byte, and every stored tensor on the way.

    tokens (B, S), targets (B, S): ids from 0 to V - 1, S at most the context; given: one `Given` a block, or None for
    what follows from the tokens -> DecoderRecord. Raises TypeError or ValueError naming the argument.
    """
    _check(tokens, targets, config, num)
    return forward(tokens, targets, params, config, num, given or make_given(tokens, config))


def decoder_backward(tokens, targets, params, record, config, num, given=None):
    """Gradients of record.total -> DecoderParams."""
    _check(tokens, targets, config, num)
    given = given or make_given(tokens, config)
    # total = cross_entropy(norm(x)) + the losses of the layers
    d_final, d_embedding = cross_entropy_backward(record.final_norm.out, params.embedding, targets, record.head, num)
    d_x, d_final_norm = rms_norm_backward(d_final, record.final_norm, params.w_final_norm, num)
    d_blocks = []
    for at in reversed(range(len(config.blocks))):
        saved = params.blocks[at], record.blocks[at], config.blocks[at], record.layout, num, given[at]
        d_x, d_block = block_backward(d_x, *saved)
        d_blocks.insert(0, d_block)
    # x = embedding[token] + positions[place]
    d_embedding, d_positions = embed_backward(d_x, tokens, d_embedding, params.positions, num)
    return DecoderParams(d_embedding, d_positions, tuple(d_blocks), d_final_norm)


def layer_losses(block, record):
    """name -> scalar of the losses that a block's layer has; none of a dense block."""
    if not isinstance(block, MoEConfig):
        return {}
    made = {name: getattr(record.losses, name) for name in LOSSES}
    return {name: value for name, value in made.items() if value is not None}


def make_given(tokens, config):
    """For each block what its rules read beside x: which sequence, which byte."""
    sequences = np.repeat(np.arange(len(tokens)), tokens.shape[1])

    def given(block):
        if not isinstance(block, MoEConfig):
            return None
        ids = tokens.reshape(-1) if block.routing.hash_vocab_size else None
        return Given(sequence_ids=sequences, token_ids=ids)

    return tuple(map(given, config.blocks))


def _check(tokens, targets, config, num):
    got = type(num).__name__
    require(isinstance(num, DecoderNumerics), TypeError, "num", "a DecoderNumerics", got, "make one with its profile")
    num.check_environment()
    for name, ids in (("tokens", tokens), ("targets", targets)):
        whole = isinstance(ids, np.ndarray) and ids.dtype.kind in "iu" and ids.ndim == 2
        require(whole, TypeError, name, "an integer array (B, S)", type(ids).__name__, "one row a sequence")
        fits = ids.shape == tokens.shape and ids.size > 0 and ids.shape[1] <= config.context
        wanted = f"the shape of tokens, at most {config.context} a row"
        require(fits, ValueError, name, wanted, ids.shape, "cut the sequences")
        inside = int(ids.min()) >= 0 and int(ids.max()) < config.vocab_size
        wanted = f"ids from 0 to {config.vocab_size - 1}"
        require(inside, ValueError, name, wanted, f"{ids.min()} to {ids.max()}", "check the vocabulary")
