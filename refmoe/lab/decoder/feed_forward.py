"""A block's feed-forward part, the library's layer or one expert for all, and back."""

import numpy as np

from ...config import MoEConfig
from ...experts import expert_ffn, expert_ffn_backward
from ...layer import forward, moe_backward, moe_forward
from ...recipes import SharedParams


def feed_forward(x, params, block, num, given, chosen=None):
    """y = MoE(x), or W_down act(W_gate x, W_up x).

    x (T, D) -> MoERecord or FeedForward, y (T, D). chosen: a record whose selection, plan and counts are taken over
    """
    if isinstance(block, MoEConfig):
        whole = moe_forward if chosen is None else forward
        record = whole(x, params, block, num, given, *([] if chosen is None else [chosen]))
        return record, record.y
    record = expert_ffn(x, params, _all(x), block.experts, num)
    return record, record.y_rows


def feed_forward_backward(d_y, x, record, params, block, num, given):
    """d_y (T, D), x (T, D) -> d_x (T, D), gradients of the type of params."""
    if isinstance(block, MoEConfig):
        # y = MoE(x);  the losses of the layer, upstream 1 each
        grads = moe_backward(d_y, x, params, record, block, num, given)
        return grads.d_x, grads.params
    # y = W_down act(W_gate x, W_up x)
    rows, grads = expert_ffn_backward(d_y, x, record, params, _all(x), block.experts, num, SharedParams())
    return rows.d_x_rows, SharedParams(**{name.rpartition(".")[2]: d for name, d in grads.items()})


def _all(x):
    return np.array([0, len(x)], np.int64)
