"""The routed experts on sorted rows, from tokens to their weighted sum, and back.   Spec 3.3, 5.4-5.6"""

from .. import dispatch
from .feed_forward import expert_ffn, expert_ffn_backward
from .records import ExpertsRecord, RoutedGrads


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
