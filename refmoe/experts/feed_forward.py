"""An expert: two or three linear maps with an activation between them, and back.   Spec 3.1-3.3, 5.4-5.6"""

from ..activations import compiled_activation, gated, gated_backward, plain, plain_backward
from ..dispatch import weighted_rows
from ..grouped import bias_gradient, grouped_matmul, grouped_matmul_backward_w, grouped_matmul_backward_x, is_at_once
from .records import FeedForward, RowGrads


def expert_ffn_and_sum(x_rows, params, expert_offsets, experts, num, weights, slots):
    """`expert_ffn`, and the weighted sum of its y_rows where the engine has both in one call.   Spec 3.1, 3.2, 2.4

    slots: topk_weights and slot_row (T, K), or None -> FeedForward, (T, D) or None: then `combine` makes it
    """
    gate, up, *rest, total = _at_one_go(x_rows, params, expert_offsets, experts, num, weights, slots)
    if rest[-1] is not None:
        return FeedForward(gate, up, *rest), total
    if up is None:
        up = grouped_matmul("up_rows", x_rows, params.w_up, expert_offsets, params.b_up, num)
    if experts.gated and gate is None:
        gate = grouped_matmul("gate_rows", x_rows, params.w_gate, expert_offsets, params.b_gate, num)
    hidden = gated(gate, up, experts, num) if experts.gated else plain(up, experts, num)
    weighted = None if weights is None else weighted_rows("weighted_hidden_rows", hidden, weights, num)
    read = hidden if weighted is None else weighted
    y = grouped_matmul("y_rows", read, params.w_down, expert_offsets, params.b_down, num)
    return FeedForward(gate, up, hidden, weighted, y), None


def expert_ffn(x_rows, params, expert_offsets, experts, num, weights=None):
    """gate, up = W x + b;  hidden = act(gate, up);  y = W_down hidden + b_down, expert by expert.   Spec 3.1, 3.2

    x_rows (N, D), weights (N,) of the hidden rows, or None -> FeedForward
    """
    return expert_ffn_and_sum(x_rows, params, expert_offsets, experts, num, weights, None)[0]


def _at_one_go(x_rows, params, expert_offsets, experts, num, weights, slots):
    """All stages of experts with few rows and their sum; two if the activation is to be read again; else six None."""
    activation, made, ask = compiled_activation(experts), None, getattr(num, "feed_forward", None)
    gate, up, down = (params.w_gate, params.b_gate), (params.w_up, params.b_up), (params.w_down, params.b_down)
    read = [w for w, _ in (gate, up, down) if w is not None]
    if ask is not None and activation is not None and is_at_once(num, *read):
        made = ask(activation, x_rows, gate, up, down, expert_offsets, weights, slots)
    return (None,) * 6 if made is None else made


def expert_ffn_backward(d_y_rows, x_rows, made, params, expert_offsets, experts, num, into, weights=None):
    """The rows' gradients, and every weight's and bias's.   Spec 5.4, 5.5

    d_y_rows (N, D), x_rows (N, D), made FeedForward -> RowGrads, dictionary of parameter gradients by name
    """
    grads, d_weighted = {}, None

    def linear(name, d_rows, rows):
        # out[n] = w[e(n)] rows[n] + b[e(n)]
        w, b = f"w_{name}", f"b_{name}"
        grads[w] = grouped_matmul_backward_w(f"d_{w}", d_rows, rows, expert_offsets, getattr(into, w), num)
        if getattr(params, b) is not None:
            grads[b] = bias_gradient(f"d_{b}", d_rows, expert_offsets, getattr(into, b), num)

    # y = W_down hidden + b_down, of the weighted hidden rows where there are weights
    name = "d_hidden_rows" if weights is None else "d_weighted_hidden_rows"
    d_hidden = grouped_matmul_backward_x(name, [(d_y_rows, params.w_down)], expert_offsets, num)
    linear("down", d_y_rows, made.hidden_rows if weights is None else made.weighted_hidden_rows)
    if weights is not None:
        # weighted_hidden = w * hidden
        d_weighted, d_hidden = d_hidden, weighted_rows("d_hidden_rows", d_hidden, weights, num)
    # hidden = act(gate, up);  up = W_up x + b_up;  gate = W_gate x + b_gate
    if experts.gated:
        d_gate, d_up = gated_backward(d_hidden, made.gate_rows, made.up_rows, experts, num)
        pairs = [(d_gate, params.w_gate), (d_up, params.w_up)]
        linear("gate", d_gate, x_rows)
    else:
        d_gate, d_up = None, plain_backward(d_hidden, made.up_rows, experts, num)
        pairs = [(d_up, params.w_up)]
    linear("up", d_up, x_rows)
    d_x_rows = grouped_matmul_backward_x("d_x_rows", pairs, expert_offsets, num)
    return RowGrads(None, None, d_weighted, d_hidden, d_gate, d_up, d_x_rows), grads
