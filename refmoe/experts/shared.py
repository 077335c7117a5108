"""The experts that every token visits, and back.   Spec 3.4, 5.7

Several of them have rows as the routed ones do: all tokens at the first, then all at the second.
"""

import numpy as np

from ..dispatch import weighted_rows
from ..scores import SIGMOID
from .feed_forward import expert_ffn, expert_ffn_backward
from .records import FeedForward, SharedGrads, SharedRecord


def shared_expert(x, params, experts, num, shared_weights=None):
    """shared = sum_j FFN_j(x), or with weights sum_j w_j FFN_j(x), or sigmoid(x . w_shared_gate) FFN(x).   Spec 3.4

    x (T, D), params SharedParams, shared_weights (T, n) of the router's (Inkling), or None -> SharedRecord
    """
    n = experts.shared_count
    made = expert_ffn(_at_each(x, n), params, _groups(x, n), experts.of_shared(), num)
    stages = {name: getattr(made, name) for name in ("gate_rows", "up_rows", "hidden_rows", "y_rows")}
    if experts.shared_gate:
        logits = num.contract("shared_gate_logits", x, params.w_shared_gate)
        value = num.evaluate("shared_gate", SIGMOID, logits)
        shared = num.evaluate("shared", lambda m, g, y: g * y, value, made.y_rows)
        return SharedRecord(**stages, shared_gate_logits=logits, shared_gate=value, shared=shared)
    parts = np.split(made.y_rows, n)
    if shared_weights is not None:
        parts = [(shared_weights[:, j, None], part) for j, part in enumerate(parts)]
    alone = n == 1 and shared_weights is None
    return SharedRecord(**stages, shared=made.y_rows if alone else num.sum("shared", parts))


def shared_expert_backward(d_shared, x, params, record, experts, num, into, shared_weights=None):
    """Through the experts, and their gate or weights; d_x is the exact sum of all.   Spec 5.7

    d_shared (T, D), x (T, D), shared_weights (T, n) or None -> SharedGrads, dictionary of parameter gradients by name
    """
    n, d_gate, grads = experts.shared_count, SharedGrads(), {}
    # shared = sum_j y_j
    d_y = _at_each(d_shared, n)
    if experts.shared_gate:
        d_y, d_gate, grads = _gate_backward(d_shared, x, params, record, num, into)
    if shared_weights is not None:
        # shared = sum_j w_j y_j
        made = [num.contract_rows("d_shared_weights", d_shared, part) for part in np.split(record.y_rows, n)]
        d_gate = SharedGrads(d_shared_weights=np.stack(made, axis=1))
        d_y = weighted_rows("d_y_rows", d_y, shared_weights.T.reshape(-1), num)
    made = FeedForward(record.gate_rows, record.up_rows, record.hidden_rows)
    choices = experts.of_shared()
    rows, named = expert_ffn_backward(d_y, _at_each(x, n), made, params, _groups(x, n), choices, num, into)
    parts = [part for part in (*np.split(rows.d_x_rows, n), d_gate.d_x_gate) if part is not None]
    d_x = rows.d_x_rows if len(parts) == 1 else num.sum("d_x_shared", parts)
    through = {name: getattr(rows, name) for name in ("d_hidden_rows", "d_gate_rows", "d_up_rows", "d_x_rows")}
    return d_gate._replace(d_y_rows=d_y, **through, d_x_shared=d_x), named | grads


def _gate_backward(d_shared, x, params, record, num, into):
    """d_y_rows, SharedGrads of the gate's stages, the gradient of its weight by name."""
    # shared = shared_gate * y,   shared_gate = sigmoid(x . w_shared_gate)
    d_y = num.evaluate("d_y_rows", lambda m, g, d: g * d, record.shared_gate, d_shared)
    d_gate = num.contract_rows("d_shared_gate", d_shared, record.y_rows)[:, None]
    d_logits = num.evaluate(
        "d_shared_gate_logits", lambda m, d, z: d * m.sigmoid_derivative(z), d_gate, record.shared_gate_logits
    )
    d_x_gate = num.contract_backward_x("d_x_gate", [(d_logits, params.w_shared_gate)])
    d_w = num.contract_backward_w("d_w_shared_gate", d_logits, x, acc=into.w_shared_gate)
    stages = SharedGrads(d_shared_gate=d_gate, d_shared_gate_logits=d_logits, d_x_gate=d_x_gate)
    return d_y, stages, {"w_shared_gate": d_w}


def _at_each(rows, n):
    """Every row at each of n experts."""
    return rows if n == 1 else np.concatenate([rows] * n)


def _groups(x, n):
    return np.arange(n + 1, dtype=np.int64) * len(x)
