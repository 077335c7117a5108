"""Causal attention with heads as groups of the grouped product, and back."""

from math import sqrt
from typing import NamedTuple

import numpy as np

from ...numerics import Named
from .policy import row_sums


def _causal_softmax(m, z, used):
    """softmax over the places used; the others read as the first, which always is: none exceeds those used."""
    mask = m.real(used) == 1
    return m.masked_softmax(m.where(mask, z, m.take(z, (..., slice(1)))), mask)


SOFTMAX = Named("softmax", _causal_softmax, 1.0)


class Layout(NamedTuple):
    """What all blocks of one batch share: B sequences of S tokens, H heads, R = B H S rows of S places each."""

    shape: tuple  # (B, S, H, d)
    offsets: object  # (B H + 1,), of the rows of a head
    used: object  # (S, S) bool: a token sees itself and what stands before it
    bias: object  # (H, S, S), None where positions are learned


class AttentionRecord(NamedTuple):
    qkv: object  # (T, 3 D)
    weights: object  # (R, S)
    context: object  # (T, D)
    out: object  # (T, D)


def make_layout(tokens, config, dtype):
    """tokens (B, S) -> Layout"""
    (B, S), H = tokens.shape, config.num_heads
    bias = linear_bias(H, S).astype(dtype) if config.positions == "linear" else None
    offsets = np.arange(B * H + 1, dtype=np.int64) * S
    return Layout((B, S, H, config.head_size), offsets, np.tril(np.ones((S, S), bool)), bias)


def linear_bias(num_heads, size):
    """bias[h, i, j] = -2^-ceil(8 (h + 1) / H) (i - j): with 8 / H whole, the slopes of the paper.   Press et al. 2022

    -> (H, S, S) float64, exact
    """
    exponents = -((8 * np.arange(1, num_heads + 1) + num_heads - 1) // num_heads)
    distance = np.arange(size)[:, None] - np.arange(size)
    return -np.ldexp(distance[None].astype(np.float64), exponents[:, None, None])


def attention(x, params, layout, num):
    """q, k, v = W x;  p = softmax(q k^T / sqrt(d) + bias) over the places up to one's own;  out = W_out (p v).

    x (T, D) -> AttentionRecord
    """
    qkv = num.contract("qkv", x, params.w_qkv)
    made = num.compiled("attention", qkv, *_sizes(layout), layout.bias)
    weights, context = made or _by_stages(qkv, layout, num)
    return AttentionRecord(qkv, weights, context, num.contract("attention_out", context, params.w_attention_out))


def attention_backward(d_out, x, record, params, layout, num):
    """d_out (T, D), x (T, D) -> d_x (T, D), dictionary of the parameters' gradients by name."""
    qkv, weights, context, _ = record
    # out = W_out context
    d_context = num.contract_backward_x("d_context", [(d_out, params.w_attention_out)])
    d_w_out = num.contract_backward_w("d_w_attention_out", d_out, context)
    # context = softmax(q k^T / sqrt(d) + bias) v
    d_qkv = num.compiled("attention_backward", d_context, qkv, weights, *_sizes(layout))
    d_qkv = _by_stages_backward(d_context, qkv, weights, layout, num) if d_qkv is None else d_qkv
    # q, k, v = W x
    grads = {"w_qkv": num.contract_backward_w("d_w_qkv", d_qkv, x), "w_attention_out": d_w_out}
    return num.contract_backward_x("d_attention_x", [(d_qkv, params.w_qkv)]), grads


# --- the stages, which an engine may know as one ----------------------------------------------------------------------


def _by_stages(qkv, layout, num):
    """logits = q k^T / sqrt(d) + bias;  weights = softmax(logits) over the places used;  context = weights v.

    qkv (T, 3 D) -> weights (R, S), context (T, D)
    """
    q, k, v = _parts(qkv, layout)
    logits = _biased(num.contract("attention_logits", _rows(q), k, layout.offsets), layout)
    weights = num.evaluate("attention_weights", SOFTMAX, logits, _used(layout), core=1)
    return weights, _tokens([num.contract_backward_x("context", [(weights, v)], layout.offsets)], layout)


def _by_stages_backward(d_context, qkv, weights, layout, num):
    """d_context (T, D), qkv (T, 3 D), weights (R, S) -> d_qkv (T, 3 D)"""
    q, k, v = _parts(qkv, layout)
    used, offsets, root = _used(layout), layout.offsets, _sizes(layout)[1]
    (d_context,) = map(_rows, _heads(d_context, layout))
    # context = weights v
    d_weights = num.contract("d_attention_weights", d_context, v, offsets)
    d_v = num.contract_backward_w("d_v", weights, d_context, offsets)
    # weights = softmax(logits), +0 where not used
    d_weights = np.where(used, d_weights, num.dtype(0))
    along = row_sums("weights_along", d_weights * weights, num)
    d_logits = np.where(used, (d_weights - along) * weights, num.dtype(0))
    # logits = q k^T / sqrt(d) + bias
    d_q = num.contract_backward_x("d_q", [(d_logits, k)], offsets)
    d_k = num.contract_backward_w("d_k", d_logits, _rows(q), offsets)
    return _tokens([d_q * root, d_k, d_v], layout)


def _sizes(layout):
    """(B, S, H, d), and 1 / sqrt(d)."""
    return layout.shape, 1 / sqrt(layout.shape[-1])


def _used(layout):
    """The places used of every row: (R, S)."""
    return np.tile(layout.used, (len(layout.offsets) - 1, 1))


def _rows(heads):
    """(B H, S, d) -> (R, d)"""
    return heads.reshape(-1, heads.shape[-1])


def _biased(logits, layout):
    B, S, H, _ = layout.shape
    return logits if layout.bias is None else (logits.reshape(B, H, S, S) + layout.bias).reshape(-1, S)


def _parts(qkv, layout):
    """q / sqrt(d), k, v: each (B H, S, d)."""
    q, k, v = _heads(qkv, layout)
    return q * _sizes(layout)[1], k, v


def _heads(rows, layout):
    """(T, n D) -> (n, B H, S, d): token by token to head by head."""
    B, S, H, d = layout.shape
    parts = rows.reshape(B, S, -1, H, d).transpose(2, 0, 3, 1, 4)
    return np.ascontiguousarray(parts).reshape(-1, B * H, S, d)


def _tokens(parts, layout):
    """n parts (R, d) -> (T, n D): head by head to token by token."""
    B, S, H, d = layout.shape
    parts = np.stack([part.reshape(B, H, S, d) for part in parts])
    return np.ascontiguousarray(parts.transpose(1, 3, 0, 2, 4)).reshape(B * S, -1)
