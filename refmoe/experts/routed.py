"""The routed experts on sorted rows, from tokens to their weighted sum, and back.   Spec 3.3, 3.6, 5.4-5.6"""

import numpy as np

from .. import dispatch
from .feed_forward import expert_ffn, expert_ffn_backward
from .records import ExpertsRecord, FeedForward, RoutedGrads
from .weightless import weightless_experts, weightless_experts_backward


def routed_experts(x, topk_weights, plan, params, experts, num):
    """permute -> (weight) -> experts, (weight) inside -> (weight) combine.   Spec 3.3

    x (T, D), topk_weights (T, K) -> ExpertsRecord, routed (T, D)
    """
    x_rows, weighted = dispatch.permute(x, plan), None
    weights = dispatch.row_weights(topk_weights, plan)
    if experts.weight_position == "input":
        weighted = dispatch.weighted_rows("weighted_x_rows", x_rows, weights, num)
    read = x_rows if weighted is None else weighted
    made = _experts_on_rows(read, weights, plan, params, experts, num)
    on_output = experts.weight_position == "output"
    routed = dispatch.combine(made.y_rows, topk_weights if on_output else None, plan, num)
    return made._replace(x_rows=x_rows, weighted_x_rows=weighted), routed


def _experts_on_rows(read, weights, plan, params, experts, num):
    """The experts with weights on the first rows, those without on the rest."""
    own, rest, n = _segments(plan, experts)
    made = expert_ffn(read[:n], params, own, experts, num, _hidden_weights(weights, experts))
    logits = small = None
    y_rows = made.y_rows
    if experts.num_weightless:
        logits, small, others = weightless_experts(read[n:], rest, params, experts, num)
        y_rows = np.concatenate([y_rows, others])
    return ExpertsRecord(**made._replace(y_rows=y_rows)._asdict(), constant_logits=logits, constant_weights=small)


def routed_experts_backward(d_routed, x, topk_weights, plan, record, params, experts, num, into):
    """Back through combine, the experts and permute.   Spec 5.4-5.6

    d_routed (T, D), x (T, D), topk_weights (T, K) -> RoutedGrads, dictionary of parameter gradients by name
    """
    x_rows, d_weights = dispatch.permute(x, plan), None
    weights = dispatch.row_weights(topk_weights, plan)
    on_input, on_output = (experts.weight_position == place for place in ("input", "output"))
    if on_output:
        # routed[t] = sum_k topk_weights[t, k] y_rows[row of (t, k)]
        d_y_rows, d_weights = dispatch.combine_backward(d_routed, record.y_rows, topk_weights, plan, num)
    else:
        # routed[t] = sum_k y_rows[row of (t, k)]
        d_y_rows = dispatch.permute(d_routed, plan)
    read = record.weighted_x_rows if on_input else x_rows
    rows, grads = _experts_on_rows_backward(d_y_rows, read, weights, record, plan, params, experts, num, into)
    d_weighted = None
    if on_input:
        # weighted_x_rows = w * x_rows
        d_weighted = rows.d_x_rows
        d_weights = _d_weights(d_weighted, x_rows, plan, num)
        rows = rows._replace(d_x_rows=dispatch.weighted_rows("d_x_rows", d_weighted, weights, num))
    if d_weights is None:
        # weighted_hidden_rows = w * hidden_rows
        d_weights = _d_weights(rows.d_weighted_hidden_rows, record.hidden_rows, plan, num)
    d_x = dispatch.permute_backward(rows.d_x_rows, plan, num)
    return RoutedGrads(d_x, d_weights, d_y_rows, d_weighted, rows), grads


def _d_weights(d_rows, rows, plan, num):
    return dispatch.slot_values(num.contract_rows("d_topk_weights", d_rows, rows), plan)


def _experts_on_rows_backward(d_y_rows, read, weights, record, plan, params, experts, num, into):
    own, rest, n = _segments(plan, experts)
    made = FeedForward(*(getattr(record, name) for name in FeedForward._fields))
    hidden_weights = _hidden_weights(weights, experts)
    rows, grads = expert_ffn_backward(d_y_rows[:n], read[:n], made, params, own, experts, num, into, hidden_weights)
    if experts.num_weightless:
        saved = d_y_rows[n:], read[n:], record.constant_logits, record.constant_weights
        others, named = weightless_experts_backward(*saved, params, rest, experts, num, into)
        constant = {name: getattr(others, name) for name in ("d_constant_weights", "d_constant_logits")}
        rows = rows._replace(**constant, d_x_rows=np.concatenate([rows.d_x_rows, others.d_x_rows]))
        grads |= named
    return rows, grads


def _hidden_weights(weights, experts):
    return weights if experts.weight_position == "hidden" else None


def _segments(plan, experts):
    """Offsets of the experts with weights, of those without (from 0 on), and the first row of the latter."""
    E = len(plan.tokens_per_expert) - experts.num_weightless
    n = int(plan.expert_offsets[E])
    return plan.expert_offsets[: E + 1], plan.expert_offsets[E:] - n, n
