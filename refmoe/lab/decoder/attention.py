"""Causal attention with heads as groups of the grouped product, and back."""

from math import sqrt
from typing import NamedTuple

import numpy as np

from ...numerics import Named
from .policy import empty, row_sums, scaled_copy


def _causal_softmax(m, z, used):
    """softmax over the places used; the others read as the first, which always is: none exceeds those used."""
    mask = m.real(used) == 1
    return m.masked_softmax(m.where(mask, z, m.take(z, (..., slice(1)))), mask)


SOFTMAX = Named("softmax", _causal_softmax, 1.0)


class Layout(NamedTuple):
    """What all blocks of one batch share: B sequences of S tokens, H heads, R = B H S rows of S places each."""

    shape: tuple  # (B, S, H, d)
    offsets: object  # (B H + 1,), of the rows of a head
    used: object  # (R, S) bool: a token sees itself and what stands before it
    bias: object  # (H, S, S), None where positions are learned


class AttentionRecord(NamedTuple):
    q: object  # (R, d), scaled by 1 / sqrt(d)
    k: object  # (B H, S, d)
    v: object  # (B H, S, d)
    logits: object  # (R, S), of places that are not used too
    weights: object  # (R, S)
    context: object  # (T, D)
    out: object  # (T, D)


def make_layout(tokens, config, dtype):
    """tokens (B, S) -> Layout"""
    (B, S), H = tokens.shape, config.num_heads
    used = np.tile(np.tril(np.ones((S, S), bool)), (B * H, 1))
    bias = linear_bias(H, S).astype(dtype) if config.positions == "linear" else None
    return Layout((B, S, H, config.head_size), np.arange(B * H + 1, dtype=np.int64) * S, used, bias)


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
    root = 1 / sqrt(layout.shape[-1])
    q, k, v = _heads(num.contract("qkv", x, params.w_qkv), (root, 1.0, 1.0), layout, num)
    q = q.reshape(-1, q.shape[-1])
    logits = _biased(num.contract("attention_logits", q, k, layout.offsets), layout)
    weights = num.evaluate("attention_weights", SOFTMAX, logits, layout.used, core=1)
    context = num.contract_backward_x("context", [(weights, v)], layout.offsets)
    context = _tokens([context], (1.0,), layout, num)
    out = num.contract("attention_out", context, params.w_attention_out)
    return AttentionRecord(q, k, v, logits, weights, context, out)


def attention_backward(d_out, x, record, params, layout, num):
    """d_out (T, D), x (T, D) -> d_x (T, D), dictionary of the parameters' gradients by name."""
    q, k, v, _, weights, context, _ = record
    offsets, root = layout.offsets, 1 / sqrt(layout.shape[-1])
    # out = W_out context
    d_context = num.contract_backward_x("d_context", [(d_out, params.w_attention_out)])
    d_w_out = num.contract_backward_w("d_w_attention_out", d_out, context)
    d_context = _heads(d_context, (1.0,), layout, num)[0].reshape(q.shape)
    # context = weights v
    d_weights = num.contract("d_attention_weights", d_context, v, offsets)
    d_v = num.contract_backward_w("d_v", weights, d_context, offsets)
    # weights = softmax(logits)
    d_logits = _shares_backward(d_weights, weights, num)
    # logits = q k^T + bias
    d_q = num.contract_backward_x("d_q", [(d_logits, k)], offsets)
    d_k = num.contract_backward_w("d_k", d_logits, q, offsets)
    # q sqrt(d), k, v = W x
    d_qkv = _tokens([d_q, d_k, d_v], (root, 1.0, 1.0), layout, num)
    grads = {"w_qkv": num.contract_backward_w("d_w_qkv", d_qkv, x), "w_attention_out": d_w_out}
    return num.contract_backward_x("d_attention_x", [(d_qkv, params.w_qkv)]), grads


def _shares_backward(d_weights, weights, num):
    """(d_p - sum_j d_p_j p_j) p, row by row."""
    made = num.compiled("shares_backward", d_weights, weights)
    if made is not None:
        return made
    return (d_weights - row_sums("weights_along", d_weights * weights, num)) * weights


def _biased(logits, layout):
    B, S, H, _ = layout.shape
    return logits if layout.bias is None else (logits.reshape(B, H, S, S) + layout.bias).reshape(-1, S)


def _heads(rows, factors, layout, num):
    """(T, n D) -> (n, B H, S, d): token by token to head by head, each of n parts times its factor."""
    B, S, H, d = layout.shape
    parts = rows.reshape(B, S, len(factors), H, d).transpose(2, 0, 3, 1, 4)
    out = empty(parts.shape, rows.dtype)
    for part, factor, place in zip(parts, factors, out, strict=True):
        scaled_copy(part, factor, place, num)
    return out.reshape(-1, B * H, S, d)


def _tokens(parts, factors, layout, num):
    """n parts (R, d) -> (T, n D): head by head to token by token, each times its factor."""
    B, S, H, d = layout.shape
    out = empty((B, S, len(parts), H, d), parts[0].dtype)
    for at, (part, factor) in enumerate(zip(parts, factors, strict=True)):
        scaled_copy(part.reshape(B, H, S, d), factor, out[:, :, at].transpose(0, 2, 1, 3), num)
    return out.reshape(B * S, -1)
