"""The expert that every token visits, and back.   Spec 3.4, 5.7"""

import numpy as np

from .feed_forward import expert_ffn, expert_ffn_backward
from .records import FeedForward, SharedGrads, SharedRecord


def shared_expert(x, params, experts, num):
    """shared = FFN(x), or sigmoid(x . w_shared_gate) FFN(x).   Spec 3.4

    x (T, D), params SharedParams -> SharedRecord
    """
    made = expert_ffn(x, params, _one_group(x), experts.of_shared(), num)
    stages = {name: getattr(made, name) for name in ("gate_rows", "up_rows", "hidden_rows", "y_rows")}
    if not experts.shared_gate:
        return SharedRecord(**stages, shared=made.y_rows)
    logits = num.contract("shared_gate_logits", x, params.w_shared_gate)
    value = num.evaluate("shared_gate", lambda m, z: m.sigmoid(z), logits)
    shared = num.evaluate("shared", lambda m, g, y: g * y, value, made.y_rows)
    return SharedRecord(**stages, shared_gate_logits=logits, shared_gate=value, shared=shared)


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
    made = FeedForward(record.gate_rows, record.up_rows, record.hidden_rows)
    rows, grads = expert_ffn_backward(d_y, x, made, params, _one_group(x), experts.of_shared(), num, into)
    if experts.shared_gate:
        grads["w_shared_gate"] = num.contract_backward_w("d_w_shared_gate", d_logits, x, acc=into.w_shared_gate)
    d_x = rows.d_x_rows if d_x_gate is None else num.sum("d_x_shared", [rows.d_x_rows, d_x_gate])
    return SharedGrads(
        d_y, rows.d_hidden_rows, rows.d_gate_rows, rows.d_up_rows, rows.d_x_rows, d_gate, d_logits, d_x_gate, d_x
    ), grads


def _one_group(x):
    return np.array([0, len(x)], np.int64)
