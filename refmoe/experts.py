"""Expert feed-forward on sorted rows, the shared expert, and back.   Spec 3, 5.4-5.7"""

from typing import NamedTuple

import numpy as np

from . import dispatch
from .activations import gated, gated_backward, plain, plain_backward
from .grouped import bias_gradient, grouped_matmul, grouped_matmul_backward_w, grouped_matmul_backward_x


class ExpertsRecord(NamedTuple):
    """Rows in expert order; also the shared expert's, with one group of T rows."""

    x_rows: object = None  # (N, D)
    weighted_x_rows: object = None  # (N, D), only where the weight acts on the input
    gate_rows: object = None  # (N, F), None without a gate
    up_rows: object = None  # (N, F)
    hidden_rows: object = None  # (N, F)
    y_rows: object = None  # (N, D)


class SharedRecord(NamedTuple):
    """The shared expert's stages; the gate's are None without one."""

    gate_rows: object = None  # (T, S)
    up_rows: object = None  # (T, S)
    hidden_rows: object = None  # (T, S)
    y_rows: object = None  # (T, D)
    shared_gate_logits: object = None  # (T, 1)
    shared_gate: object = None  # (T, 1)
    shared: object = None  # (T, D)


class RowGrads(NamedTuple):
    """Gradients of an expert's stages, by row."""

    d_hidden_rows: object = None  # (N, F)
    d_gate_rows: object = None  # (N, F), None without a gate
    d_up_rows: object = None  # (N, F)
    d_x_rows: object = None  # (N, D)


class RoutedGrads(NamedTuple):
    """Gradients of the routed experts' stages."""

    d_x_experts: object = None  # (T, D)
    d_topk_weights: object = None  # (T, K)
    d_y_rows: object = None  # (N, D)
    d_weighted_x_rows: object = None  # (N, D), only where the weight acts on the input
    rows: RowGrads = None


class SharedGrads(NamedTuple):
    """Gradients of the shared expert's stages."""

    d_y_rows: object = None  # (T, D)
    d_hidden_rows: object = None  # (T, S)
    d_gate_rows: object = None  # (T, S)
    d_up_rows: object = None  # (T, S)
    d_x_rows: object = None  # (T, D), through the expert
    d_shared_gate: object = None  # (T, 1)
    d_shared_gate_logits: object = None  # (T, 1)
    d_x_gate: object = None  # (T, D), through the gate
    d_x_shared: object = None  # (T, D), both


def expert_ffn(x_rows, params, expert_offsets, experts, num):
    """gate, up = W x + b;  hidden = act(gate, up);  y = W_down hidden + b_down, expert by expert.   Spec 3.1, 3.2

    x_rows (N, D) -> gate_rows (N, F) or None, up_rows (N, F), hidden_rows (N, F), y_rows (N, D)
    """
    up = grouped_matmul("up_rows", x_rows, params.w_up, expert_offsets, params.b_up, num)
    if experts.gated:
        gate = grouped_matmul("gate_rows", x_rows, params.w_gate, expert_offsets, params.b_gate, num)
        hidden = gated(gate, up, experts, num)
    else:
        gate, hidden = None, plain(up, experts, num)
    return gate, up, hidden, grouped_matmul("y_rows", hidden, params.w_down, expert_offsets, params.b_down, num)


def expert_ffn_backward(d_y_rows, x_rows, gate_rows, up_rows, hidden_rows, params, expert_offsets, experts, num, into):
    """The rows' gradients, and every weight's and bias's.   Spec 5.4, 5.5

    d_y_rows (N, D) and the forward's tensors -> RowGrads, dictionary of parameter gradients by name
    """
    grads = {}

    def linear(name, d_rows, rows):
        # out[n] = w[e(n)] rows[n] + b[e(n)]
        w, b = f"w_{name}", f"b_{name}"
        grads[w] = grouped_matmul_backward_w(f"d_{w}", d_rows, rows, expert_offsets, getattr(into, w), num)
        if getattr(params, b) is not None:
            grads[b] = bias_gradient(f"d_{b}", d_rows, expert_offsets, getattr(into, b), num)

    # y = W_down hidden + b_down
    d_hidden = grouped_matmul_backward_x("d_hidden_rows", [(d_y_rows, params.w_down)], expert_offsets, num)
    linear("down", d_y_rows, hidden_rows)
    # hidden = act(gate, up);  up = W_up x + b_up;  gate = W_gate x + b_gate
    if experts.gated:
        d_gate, d_up = gated_backward(d_hidden, gate_rows, up_rows, experts, num)
        pairs = [(d_gate, params.w_gate), (d_up, params.w_up)]
        linear("gate", d_gate, x_rows)
    else:
        d_gate, d_up = None, plain_backward(d_hidden, up_rows, experts, num)
        pairs = [(d_up, params.w_up)]
    linear("up", d_up, x_rows)
    d_x_rows = grouped_matmul_backward_x("d_x_rows", pairs, expert_offsets, num)
    return RowGrads(d_hidden, d_gate, d_up, d_x_rows), grads


def routed_experts(x, topk_weights, plan, params, experts, num):
    """permute -> (weight) -> experts -> (weight) combine.   Spec 3.3

    x (T, D), topk_weights (T, K) -> ExpertsRecord, routed (T, D)
    """
    x_rows, weighted = dispatch.permute(x, plan), None
    if experts.weight_position == "input":
        weighted = dispatch.weighted_rows("weighted_x_rows", x_rows, dispatch.row_weights(topk_weights, plan), num)
    read = x_rows if weighted is None else weighted
    gate, up, hidden, y_rows = expert_ffn(read, params, plan.expert_offsets, experts, num)
    routed = dispatch.combine(y_rows, topk_weights if weighted is None else None, plan, num)
    return ExpertsRecord(x_rows, weighted, gate, up, hidden, y_rows), routed


def routed_experts_backward(d_routed, x, topk_weights, plan, record, params, experts, num, into):
    """Back through combine, the experts and permute.   Spec 5.4-5.6

    d_routed (T, D), x (T, D), topk_weights (T, K) -> RoutedGrads, dictionary of parameter gradients by name
    """
    x_rows = dispatch.permute(x, plan)
    on_input = experts.weight_position == "input"
    if on_input:
        # routed[t] = sum_k y_rows[row of (t, k)]
        d_y_rows = dispatch.permute(d_routed, plan)
    else:
        # routed[t] = sum_k topk_weights[t, k] y_rows[row of (t, k)]
        d_y_rows, d_weights = dispatch.combine_backward(d_routed, record.y_rows, topk_weights, plan, num)
    saved = record.weighted_x_rows if on_input else x_rows, record.gate_rows, record.up_rows, record.hidden_rows
    rows, grads = expert_ffn_backward(d_y_rows, *saved, params, plan.expert_offsets, experts, num, into)
    d_weighted = None
    if on_input:
        # weighted_x_rows = w * x_rows
        d_weighted = rows.d_x_rows
        d_weights = dispatch.slot_values(num.contract_rows("d_topk_weights", d_weighted, x_rows), plan)
        d_x_rows = dispatch.weighted_rows("d_x_rows", d_weighted, dispatch.row_weights(topk_weights, plan), num)
        rows = rows._replace(d_x_rows=d_x_rows)
    d_x = dispatch.permute_backward(rows.d_x_rows, plan, num)
    return RoutedGrads(d_x, d_weights, d_y_rows, d_weighted, rows), grads


def shared_expert(x, params, experts, num):
    """shared = FFN(x), or sigmoid(x . w_shared_gate) FFN(x).   Spec 3.4

    x (T, D), params SharedParams -> SharedRecord
    """
    gate, up, hidden, y = expert_ffn(x, params, _one_group(x), experts, num)
    if not experts.shared_gate:
        return SharedRecord(gate, up, hidden, y, None, None, y)
    logits = num.contract("shared_gate_logits", x, params.w_shared_gate)
    value = num.evaluate("shared_gate", lambda m, z: m.sigmoid(z), logits)
    shared = num.evaluate("shared", lambda m, g, y: g * y, value, y)
    return SharedRecord(gate, up, hidden, y, logits, value, shared)


def shared_expert_backward(d_shared, x, params, record, experts, num, into):
    """Through the expert and through its gate; d_x is the exact sum of the two.   Spec 5.7

    d_shared (T, D), x (T, D) -> SharedGrads, dictionary of parameter gradients by name
    """
    if experts.shared_gate:
        # shared = shared_gate * y,   shared_gate = sigmoid(x . w_shared_gate)
        d_y = num.evaluate("d_y_rows", lambda m, g, d: g * d, record.shared_gate, d_shared)
        d_gate = num.contract_rows("d_shared_gate", d_shared, record.y_rows)[:, None]
        d_logits = num.evaluate(
            "d_shared_gate_logits", lambda m, d, z: d * m.sigmoid_derivative(z), d_gate, record.shared_gate_logits
        )
        d_x_gate = num.contract_backward_x("d_x_gate", [(d_logits, params.w_shared_gate)])
    else:
        d_y, d_gate, d_logits, d_x_gate = d_shared, None, None, None
    saved = x, record.gate_rows, record.up_rows, record.hidden_rows
    rows, grads = expert_ffn_backward(d_y, *saved, params, _one_group(x), experts, num, into)
    if experts.shared_gate:
        grads["w_shared_gate"] = num.contract_backward_w("d_w_shared_gate", d_logits, x, acc=into.w_shared_gate)
    d_x = rows.d_x_rows if d_x_gate is None else num.sum("d_x_shared", [rows.d_x_rows, d_x_gate])
    return SharedGrads(
        d_y, rows.d_hidden_rows, rows.d_gate_rows, rows.d_up_rows, rows.d_x_rows, d_gate, d_logits, d_x_gate, d_x
    ), grads


def _one_group(x):
    return np.array([0, len(x)], np.int64)
