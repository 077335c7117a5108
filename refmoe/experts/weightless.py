"""Experts without matrices: constant, identity and zero ones, and back.   Spec 3.6, 5.6

Their ids follow those of the experts with weights, in this order: a token that names one is spared the work.
"""

import numpy as np

from ..grouped import grouped_matmul, grouped_matmul_backward_w
from ..scores import SOFTMAX, SOFTMAX_BACKWARD
from .records import RowGrads


def weightless_experts(x_rows, expert_offsets, params, experts, num):
    """y = a_0 x + a_1 v for a constant expert, y = x for an identity one (a copy of bits), y = 0.   Spec 3.6

    x_rows (N, D) of these experts alone, expert_offsets from 0 on -> constant_logits, constant_weights, y_rows (N, D)
    """
    c, i = _ends(expert_offsets, experts)
    logits = weights = None
    parts = [x_rows[c:i], np.zeros_like(x_rows[i:])]
    if experts.constant_experts:
        offsets = expert_offsets[: experts.constant_experts + 1]
        logits, weights, constant = constant_experts(x_rows[:c], params, offsets, num)
        parts = [constant, *parts]
    return logits, weights, np.concatenate(parts)


def weightless_experts_backward(d_y_rows, x_rows, logits, weights, params, expert_offsets, experts, num, into):
    """What the three kinds pass on: the parts of `constant_experts_backward`, a copy, nothing.   Spec 5.6

    d_y_rows (N, D), x_rows (N, D) -> RowGrads, dictionary of parameter gradients by name
    """
    c, i = _ends(expert_offsets, experts)
    # y = x;  y = 0
    parts = [d_y_rows[c:i], np.zeros_like(d_y_rows[i:])]
    if not experts.constant_experts:
        return RowGrads(d_x_rows=np.concatenate(parts)), {}
    offsets = expert_offsets[: experts.constant_experts + 1]
    saved = d_y_rows[:c], x_rows[:c], logits, weights
    rows, grads = constant_experts_backward(*saved, params, offsets, num, into)
    return rows._replace(d_x_rows=np.concatenate([rows.d_x_rows, *parts])), grads


def constant_experts(x_rows, params, expert_offsets, num):
    """a = softmax(w_constant x);  y = a_0 x + a_1 v, exact and rounded once.   Spec 3.6   (MoE++)

    x_rows (N, D), w_constant (C, 2, D), constant v (C, D) -> constant_logits (N, 2), constant_weights (N, 2), y (N, D)
    """
    logits = grouped_matmul("constant_logits", x_rows, params.w_constant, expert_offsets, None, num)
    weights = num.evaluate("constant_weights", SOFTMAX, logits, core=1)
    v = params.constant[_owners(expert_offsets)]
    return logits, weights, num.sum("y_rows", [(weights[:, :1], x_rows), (weights[:, 1:], v)])


def constant_experts_backward(d_y_rows, x_rows, logits, weights, params, expert_offsets, num, into):
    """d_a = <d_y, x>, <d_y, v>;  d_v = sum a_1 d_y;  d_x = a_0 d_y + W^T d_logits, one stage.   Spec 5.6

    d_y_rows (N, D), x_rows (N, D), constant_logits (N, 2), constant_weights (N, 2) -> RowGrads, dictionary by name
    """
    owner, grads = _owners(expert_offsets), {}
    v, w = params.constant[owner], params.w_constant[owner]
    # y = a_0 x + a_1 v
    d_weights = np.stack([num.contract_rows("d_constant_weights", d_y_rows, other) for other in (x_rows, v)], axis=1)
    acc = None if into.constant is None else into.constant[..., None]
    second = weights[:, 1:].copy()
    d_v = grouped_matmul_backward_w("d_constant", d_y_rows, second, expert_offsets, acc, num)
    # a = softmax(logits)
    d_logits = num.evaluate("d_constant_logits", SOFTMAX_BACKWARD, d_weights, logits, core=1)
    # logits = w_constant x
    grads["w_constant"] = grouped_matmul_backward_w(
        "d_w_constant", d_logits, x_rows, expert_offsets, into.w_constant, num
    )
    grads["constant"] = d_v[..., 0]
    terms = [(weights[:, :1], d_y_rows), (d_logits[:, :1], w[:, 0]), (d_logits[:, 1:], w[:, 1])]
    return RowGrads(d_weights, d_logits, d_x_rows=num.sum("d_x_rows", terms)), grads


def _ends(expert_offsets, experts):
    """Where the rows of constant, and of constant and identity experts end."""
    first, second = experts.constant_experts, experts.constant_experts + experts.identity_experts
    return int(expert_offsets[first]), int(expert_offsets[second])


def _owners(expert_offsets):
    """(N,) the expert of each row."""
    return np.repeat(np.arange(len(expert_offsets) - 1), np.diff(expert_offsets))
