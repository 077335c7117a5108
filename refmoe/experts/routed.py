"""The routed experts on sorted rows, from tokens to their weighted sum, and back.   Spec 3.3, 3.6-3.8, 5.4-5.6"""

import numpy as np

from .. import dispatch
from .feed_forward import expert_ffn, expert_ffn_and_sum, expert_ffn_backward
from .latent import latent_in, latent_in_backward, latent_out, latent_out_backward
from .post_norm import post_norm, post_norm_backward
from .records import ExpertsRecord, FeedForward, RoutedGrads
from .residual import complement, complement_backward
from .weightless import weightless_experts, weightless_experts_backward


def routed_experts(x, topk_weights, plan, params, experts, num):
    """permute -> (weight) -> experts, (weight) inside -> (norm) -> (weight) combine.   Spec 3.3, 3.7, 3.8

    x (T, D), topk_weights (T, K) -> ExpertsRecord, routed (T, D)
    """
    entered, read_x = latent_in(x, params, experts, num)
    x_rows, weighted = dispatch.permute(read_x, plan, num), None
    # one that acts on the output is the combine's
    weights = None if experts.weight_position == "output" else dispatch.row_weights(topk_weights, plan)
    if experts.weight_position == "input":
        weighted = dispatch.weighted_rows("weighted_x_rows", x_rows, weights, num)
    read = x_rows if weighted is None else weighted
    slots = (topk_weights, plan.slot_row) if _is_weighted_sum(params, experts) else None
    made, routed = _experts_on_rows(read, weights, plan, params, experts, num, slots)
    made |= post_norm(made["y_rows"], params, experts, num)
    record = ExpertsRecord(x_rows=x_rows, weighted_x_rows=weighted, **entered, **made)
    return (record, routed) if routed is not None else _combined(record, x, topk_weights, plan, params, experts, num)


def _is_weighted_sum(params, experts):
    """Whether routed is the weighted sum of what the experts with weights make, and nothing else."""
    between = experts.latent_size or experts.num_weightless or experts.post_expert_norm != "none"
    beside = params.output_bias is not None or experts.residual != "none"
    return experts.weight_position == "output" and not between and not beside


def _combined(record, x, topk_weights, plan, params, experts, num):
    """The weighted sum of what the experts made, mapped back from the narrower space if they worked in one."""
    rows = record.y_rows if record.normed_y_rows is None else record.normed_y_rows
    weights = topk_weights if experts.weight_position == "output" else None
    if experts.latent_size:
        latent = dispatch.combine(rows, weights, plan, num, "latent_routed")
        rms, normed, routed = latent_out(latent, params, experts, num)
        stages = {"latent_routed": latent, "latent_routed_rms": rms, "normed_latent_routed": normed}
        return record._replace(**stages), routed
    more = [] if params.output_bias is None else [params.output_bias]
    if experts.residual == "complement":
        more += complement(x, topk_weights, plan)
    return record, dispatch.combine(rows, weights, plan, num, more=more)


def _experts_on_rows(read, weights, plan, params, experts, num, slots):
    """The experts with weights on the first rows, the others on the rest: stages by name; their sum if it is made."""
    weights = _hidden_weights(weights, experts)
    if not experts.num_weightless:
        made, routed = expert_ffn_and_sum(read, params, plan.expert_offsets, experts, num, weights, slots)
        return made._asdict(), routed
    own, rest, n = _segments(plan, experts)
    made = expert_ffn(read[:n], params, own, experts, num, weights)
    logits, small, others = weightless_experts(read[n:], rest, params, experts, num)
    y_rows = np.concatenate([made.y_rows, others])
    return made._asdict() | {"constant_logits": logits, "constant_weights": small, "y_rows": y_rows}, None


def routed_experts_backward(d_routed, x, topk_weights, plan, record, params, experts, num, into):
    """Back through combine, the experts and permute.   Spec 5.4-5.6, 5.9

    d_routed (T, D), x (T, D), topk_weights (T, K) -> RoutedGrads, dictionary of parameter gradients by name
    """
    grads, d_combined, latent = _output_bias_backward(d_routed, params, num, into), d_routed, None
    if experts.latent_size:
        d_combined, latent, named = latent_out_backward(d_routed, record, params, experts, num, into)
        grads |= named
    residual = x if experts.residual == "complement" else None
    d_out, d_weights = _combine_backward(d_combined, residual, topk_weights, plan, record, experts, num)
    # normed_y_rows = norm(y_rows)
    d_scaled, d_y_rows, named = post_norm_backward(d_out, record, params, experts, num, into)
    grads |= named
    x_rows = dispatch.permute(_read_x(x, record), plan, num)
    rows, d_weighted, named = _rows_backward(d_y_rows, x_rows, topk_weights, record, plan, params, experts, num, into)
    d_weights = _inner_weights(d_weights, d_weighted, x_rows, rows, record, plan, num)
    grads |= named
    name = "d_x_experts" if latent is None else "d_latent_x" if record.latent_rms is None else "d_normed_latent_x"
    d_read = dispatch.permute_backward(rows.d_x_rows, plan, num, name)
    d_x, entered, named = latent_in_backward(d_read, x, record, params, experts, num, into)
    latent = latent and latent._replace(d_normed_latent_x=entered.d_normed_latent_x, d_latent_x=entered.d_latent_x)
    d_residual = None if residual is None else complement_backward(d_routed, topk_weights, plan, num)
    normed = None if record.y_rms is None else d_out
    return RoutedGrads(d_x, d_residual, d_weights, latent, normed, d_scaled, d_y_rows, d_weighted, rows), grads | named


def _output_bias_backward(d_routed, params, num, into):
    # routed = ... + output_bias
    if params.output_bias is None:
        return {}
    return {"output_bias": num.sum_rows("d_output_bias", d_routed, start=into.output_bias)}


def _combine_backward(d_combined, residual, topk_weights, plan, record, experts, num):
    """The gradient of what the experts made, and of the weights where they act there."""
    if experts.weight_position != "output":
        # combined[t] = sum_k y_rows[row of (t, k)]
        return dispatch.permute(d_combined, plan, num), None
    # combined[t] = sum_k topk_weights[t, k] y_rows[row of (t, k)]
    name, rows = ("d_y_rows", record.y_rows) if record.y_rms is None else ("d_normed_y_rows", record.normed_y_rows)
    return dispatch.combine_backward(d_combined, rows, topk_weights, plan, num, name, residual)


def _rows_backward(d_y_rows, x_rows, topk_weights, record, plan, params, experts, num, into):
    """RowGrads, d_weighted_x_rows or None, dictionary of parameter gradients by name."""
    weights = dispatch.row_weights(topk_weights, plan)
    on_input = experts.weight_position == "input"
    read = record.weighted_x_rows if on_input else x_rows
    rows, grads = _experts_on_rows_backward(d_y_rows, read, weights, record, plan, params, experts, num, into)
    if not on_input:
        return rows, None, grads
    # weighted_x_rows = w * x_rows
    d_x_rows = dispatch.weighted_rows("d_x_rows", rows.d_x_rows, weights, num)
    return rows._replace(d_x_rows=d_x_rows), rows.d_x_rows, grads


def _inner_weights(d_weights, d_weighted, x_rows, rows, record, plan, num):
    """d_topk_weights, where the weights act before the combine."""
    if d_weighted is not None:
        # weighted_x_rows = w * x_rows
        return _d_weights(d_weighted, x_rows, plan, num)
    if rows.d_weighted_hidden_rows is not None:
        # weighted_hidden_rows = w * hidden_rows
        return _d_weights(rows.d_weighted_hidden_rows, record.hidden_rows, plan, num)
    return d_weights


def _read_x(x, record):
    """What the experts read, by token."""
    latent = record.latent_x if record.normed_latent_x is None else record.normed_latent_x
    return x if latent is None else latent


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
