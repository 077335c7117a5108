"""The router's front: from tokens to logits, and back.   Spec 1.1, 5.1"""

import numpy as np


def router_logits(x, w_router, router_bias, num):
    """logits = x w_router^T + router_bias: one contraction, float32 in every store.   Spec 1.1

    x (T, D), w_router (E, D), router_bias (E,) or None -> logits (T, E)
    """
    return num.contract("logits", x, w_router, bias=router_bias)


def router_logits_backward(d_logits, x, w_router, router_bias, num, into_w=None, into_bias=None):
    """d_x = d_logits w_router;  d_w_router = d_logits^T x;  d_router_bias = sum_t d_logits.   Spec 5.1

    d_logits (T, E), x (T, D), w_router (E, D) -> d_x_router (T, D), d_w_router (E, D), d_router_bias (E,) or None
    The parameters' gradients are added to `into_w` and `into_bias` where given.
    """
    # logits = x w_router^T + router_bias
    d_x = num.contract_backward_x("d_x_router", [(d_logits, w_router)])
    d_w_router = num.contract_backward_w("d_w_router", d_logits, x, acc=into_w)
    if router_bias is None:
        return d_x, d_w_router, None
    start = np.zeros_like(router_bias) if into_bias is None else into_bias
    return d_x, d_w_router, num.sum("d_router_bias", [start, *d_logits])
