"""moe_forward and moe_backward: the table of contents, in code.   Spec 3.5, 5.9

    router -> plan -> permute -> experts -> combine -> + shared -> y,  and the losses beside it

The record of the forward is what the backward reads and what a golden file holds, under the same names.
"""

from typing import NamedTuple

import numpy as np

from . import dispatch, losses
from .experts import ExpertsRecord, RowGrads, SharedGrads, SharedRecord, expert_ffn, expert_ffn_backward
from .experts import shared_expert, shared_expert_backward
from .losses import Losses
from .recipes import MoEParams, SharedParams, assemble_params, name_params, parameter_shapes
from .routing import RoutingRecord, route, router_logits_backward, topk_weights, topk_weights_backward

# Nothing flows into these: they are constants of the way back.
NON_DIFFERENTIABLE = ("topk_indices", "plan", "balance_counts", "selection_bias", "choice_scores", "group_scores", "lse", "margin")


class Given(NamedTuple):
    """Arrays that are neither parameters nor choices; None where not given."""

    token_mask: object = None  # (T,) bool: False marks padding, which losses do not count
    sequence_ids: object = None  # (T,) int: for losses and capacities by sequence
    token_ids: object = None  # (T,) int: reserved for routing by table
    topk_indices: object = None  # (T, K) int: replayed selection
    logits: object = None  # (T, E): in place of the router's
    noise: object = None  # reserved for noisy routing
    counts_so_far: object = None  # (E,) int: of earlier micro-batches, for the global balance loss


class MoERecord(NamedTuple):
    """Every stored tensor of the forward."""

    routing: RoutingRecord
    plan: dispatch.Plan
    experts: ExpertsRecord
    routed: object  # (T, D)
    shared: SharedRecord
    losses: Losses
    y: object  # (T, D)


class MoEGrads(NamedTuple):
    """Every stored tensor of the way back; None where a source does not exist."""

    d_x: object  # (T, D), the sum of the next three
    d_x_experts: object
    d_x_shared: object
    d_x_router: object
    d_logits: object  # (T, E), the sum of the next four and of the d_logits given
    d_logits_task: object
    d_logits_balance: object
    d_logits_z: object
    d_logits_importance: object
    d_scores: object  # (T, E), where the weights' rule goes back through them
    d_topk_weights: object  # (T, K)
    d_y_rows: object  # (N, D)
    d_weighted_x_rows: object  # (N, D), where the weight acts on the input
    rows: RowGrads
    shared: SharedGrads
    params: MoEParams


# --- forward: Spec 3.5 -----------------------------------------------------------------------------------------------


def moe_forward(x, params, config, num, given=None, keep="all"):
    """y = sum over a token's experts of weight * FFN_e(x), + the shared expert.   Spec 3.5

    x (T, D), params MoEParams -> MoERecord. keep "all", "backward" (what moe_backward reads) or "y".
    Raises TypeError or ValueError naming the argument, what was expected, what came, and a fix.
    """
    given = Given() if given is None else given
    check_inputs(x, params, config, num, given, keep)
    return _keep(forward(x, params, config, num, given), keep)


def forward(x, params, config, num, given, chosen=None):
    """moe_forward without its door. `chosen`: a record whose selection, plan and counts are taken over."""
    if chosen is not None:
        given = given._replace(topk_indices=chosen.routing.topk_indices)
    routing = route(x, params, config, num, given)
    routing, plan = _weights_and_plan(routing, config, num, given, chosen)
    experts, routed = _routed(x, routing.topk_weights, plan, params, config.experts, num)
    has_shared = config.experts.shared_intermediate_size > 0
    shared = shared_expert(x, params.shared, config.experts, num) if has_shared else None
    y = num.sum("y", [routed, shared.shared]) if has_shared else routed
    return MoERecord(routing, plan, experts, routed, shared, _losses(routing, config, num, given, chosen), y)


def _weights_and_plan(routing, config, num, given, chosen):
    """Weights, then plan; with normalize_after_drop: plan on the raw weights, then weights of the kept slots."""
    used = routing.topk_indices >= 0
    saved = routing.logits, routing.scores, routing.topk_indices
    if not config.dispatch.normalize_after_drop:
        weights = topk_weights(*saved, used, config, num)
        plan = chosen.plan if chosen else dispatch.make_plan(routing.topk_indices, weights, config, given)
        return routing._replace(topk_weights=weights), plan
    raw = np.where(used, np.take_along_axis(routing.scores, np.maximum(routing.topk_indices, 0), axis=-1), num.dtype(0))
    plan = chosen.plan if chosen else dispatch.make_plan(routing.topk_indices, raw, config, given)
    weights = topk_weights(*saved, plan.slot_row >= 0, config, num)
    return routing._replace(raw_topk_weights=raw, topk_weights=weights), plan


def _routed(x, weights, plan, params, experts, num):
    x_rows, weighted = dispatch.permute(x, plan), None
    if experts.weight_position == "input":
        weighted = dispatch.weighted_rows("weighted_x_rows", x_rows, dispatch.row_weights(weights, plan), num)
    read = x_rows if weighted is None else weighted
    gate, up, hidden, y_rows = expert_ffn(read, params, plan.expert_offsets, experts, num)
    routed = dispatch.combine(y_rows, weights if weighted is None else None, plan, num)
    return ExpertsRecord(x_rows, weighted, gate, up, hidden, y_rows), routed


def _losses(routing, config, num, given, chosen):
    wanted = config.losses
    if wanted.balance is None and wanted.z is None and wanted.importance is None:
        return Losses()
    scopes = losses.loss_scopes(len(routing.logits), config, given)
    counts = balance = z = importance = None
    if wanted.balance is not None:
        counts = chosen.losses.balance_counts if chosen else losses.balance_counts(routing.scores, routing.topk_indices, scopes, config, given)
        balance = losses.balance_loss(routing.logits, counts, scopes, config, num)
    if wanted.z is not None:
        z = losses.z_loss(routing.logits, scopes, config, num)
    if wanted.importance is not None:
        importance = losses.importance_loss(routing.logits, routing.topk_indices, scopes, config, num)
    return Losses(balance, z, importance, counts)


def _keep(record, keep):
    if keep == "all":
        return record
    if keep == "y":
        return MoERecord(*[None] * (len(MoERecord._fields) - 1), y=record.y)
    routing = record.routing._replace(choice_scores=None, group_scores=None, lse=None, margin=None)
    return record._replace(routing=routing, experts=record.experts._replace(x_rows=None), routed=None)


# --- backward: Spec 5.9 ----------------------------------------------------------------------------------------------


def moe_backward(d_y, x, params, record, config, num, given=None, d_losses=None, d_logits=None, into=None):
    """Gradients of <d_y, y> + sum of d_losses * losses + <d_logits, logits>, of everything that carries one.   Spec 5.9

    d_y (T, D), x (T, D), record from moe_forward with keep "all" or "backward" -> MoEGrads
    d_losses: Losses of upstream scalars, 1 each by default. d_logits (T, E): one more source of the logits' gradient.
    into: MoEParams of arrays that the gradients are added to (one rounding), or of sinks with take(e, d_w).
    """
    given = Given() if given is None else given
    check_inputs(x, params, config, num, given, "all")
    _check_upstream(d_y, x, record, config, num, d_logits)
    into = _no_params(params) if into is None else into
    # y = routed + shared
    d_w, experts, grads = _routed_backward(d_y, x, params, record, config, num, into)
    shared, d_x_shared = None, None
    if record.shared is not None:
        shared, named = shared_expert_backward(d_y, x, params.shared, record.shared, config.experts, num, into.shared)
        grads |= {f"shared.{name}": grad for name, grad in named.items()}
        d_x_shared = shared.d_x_shared
    # weights = f(logits);  losses = g(logits)
    sources, d_scores = _logit_sources(d_w, record, config, num, given, d_losses)
    every = [s for s in (*sources.values(), d_logits) if s is not None]
    d_logits = num.sum("d_logits", every)
    d_x_router = None
    if given.logits is None:
        d_x_router = _router_backward(d_logits, x, params, num, into, grads)
    parts = [d for d in (experts["d_x"], d_x_shared, d_x_router) if d is not None]
    return MoEGrads(
        num.sum("d_x", parts), experts["d_x"], d_x_shared, d_x_router,
        d_logits, sources["task"], sources["balance"], sources["z"], sources["importance"], d_scores, d_w,
        experts["d_y_rows"], experts["d_weighted_x_rows"], experts["rows"], shared, assemble_params(grads),
    )  # fmt: skip


def _routed_backward(d_y, x, params, record, config, num, into):
    """Through combine, the experts and permute -> d_topk_weights, the stages by name, parameter gradients by name."""
    plan, saved, weights = record.plan, record.experts, record.routing.topk_weights
    x_rows = dispatch.permute(x, plan)
    on_input = config.experts.weight_position == "input"
    if on_input:
        # routed[t] = sum_k y_rows[row of (t, k)]
        d_y_rows, d_w = dispatch.permute(d_y, plan), None
    else:
        # routed[t] = sum_k topk_weights[t, k] y_rows[row of (t, k)]
        d_y_rows, d_w = dispatch.combine_backward(d_y, saved.y_rows, weights, plan, num)
    read = saved.weighted_x_rows if on_input else x_rows
    tensors = read, saved.gate_rows, saved.up_rows, saved.hidden_rows
    rows, grads = expert_ffn_backward(d_y_rows, *tensors, params, plan.expert_offsets, config.experts, num, into)
    d_x_rows, d_weighted = rows.d_x_rows, None
    if on_input:
        # weighted_x_rows = w * x_rows
        d_weighted = d_x_rows
        d_w = dispatch.slot_values(num.contract_rows("d_topk_weights", d_weighted, x_rows), plan)
        d_x_rows = dispatch.weighted_rows("d_x_rows", d_weighted, dispatch.row_weights(weights, plan), num)
        rows = rows._replace(d_x_rows=d_x_rows)
    d_x = dispatch.permute_backward(d_x_rows, plan, num)
    return d_w, {"d_x": d_x, "d_y_rows": d_y_rows, "d_weighted_x_rows": d_weighted, "rows": rows}, grads


def _logit_sources(d_w, record, config, num, given, d_losses):
    """The gradient of the logits from each source, and d_scores where the weights' rule goes back through them."""
    routing, wanted = record.routing, config.losses
    logits = routing.logits
    kept = record.plan.slot_row >= 0 if config.dispatch.normalize_after_drop else routing.topk_indices >= 0
    task, d_scores = topk_weights_backward(d_w, logits, routing.scores, routing.topk_indices, kept, config, num)
    sources = {"task": task, "balance": None, "z": None, "importance": None}
    if wanted.balance is None and wanted.z is None and wanted.importance is None:
        return sources, d_scores
    scopes = losses.loss_scopes(len(logits), config, given)
    if wanted.balance is not None:
        counts = record.losses.balance_counts
        sources["balance"] = losses.balance_loss_backward(_upstream(d_losses, "balance"), logits, counts, scopes, config, num)
    if wanted.z is not None:
        sources["z"] = losses.z_loss_backward(_upstream(d_losses, "z"), logits, scopes, config, num)
    if wanted.importance is not None:
        d = _upstream(d_losses, "importance")
        sources["importance"] = losses.importance_loss_backward(d, logits, routing.topk_indices, scopes, config, num)
    return sources, d_scores


def _upstream(d_losses, name):
    value = None if d_losses is None else getattr(d_losses, name)
    return 1.0 if value is None else value


def _router_backward(d_logits, x, params, num, into, grads):
    d_x, d_w_router, d_router_bias = router_logits_backward(
        d_logits, x, params.w_router, params.router_bias, num, into.w_router, into.router_bias
    )
    grads |= {"w_router": d_w_router} | ({} if d_router_bias is None else {"router_bias": d_router_bias})
    return d_x


def _no_params(params):
    shared = None if params.shared is None else SharedParams(*[None] * len(SharedParams._fields))
    return MoEParams(*[None] * (len(MoEParams._fields) - 1), shared=shared)


# --- the outer door --------------------------------------------------------------------------------------------------


def check_inputs(x, params, config, num, given, keep):
    """Raises TypeError or ValueError: the argument, what was expected, what came, one fix. Nothing is computed before."""
    num.check_environment()
    if keep not in ("all", "backward", "y"):
        raise ValueError(f"keep: expected 'all', 'backward' or 'y', got {keep!r}; choose one of these")
    if not isinstance(x, np.ndarray) or x.ndim != 2:
        got = f"shape {x.shape}" if isinstance(x, np.ndarray) else type(x).__name__
        raise (ValueError if isinstance(x, np.ndarray) else TypeError)(
            f"x: expected a NumPy array of shape (T, {config.hidden_size}), got {got}; reshape tokens to one axis"
        )
    num.check_stored("x", x, (len(x), config.hidden_size))
    _check_params(params, config, num)
    _check_given(given, len(x), config, num)


def _check_params(params, config, num):
    if not isinstance(params, MoEParams):
        raise TypeError(f"params: expected MoEParams, got {type(params).__name__}; use init_params or assemble_params")
    named, shapes = name_params(params), parameter_shapes(config)
    for name in named.keys() | shapes.keys():
        if (name in named) != (name in shapes):
            expected, got = ("None", "an array") if name in named else (f"an array of shape {shapes[name][0]}", "None")
            raise ValueError(f"params.{name}: expected {expected} for this configuration, got {got}; make it agree with the configuration")
        shape = shapes[name][0]
        if callable(named[name]):  # a source of expert weights: checked expert by expert, as it is read
            if tuple(named[name].shape) != shape:
                raise ValueError(f"params.{name}: expected shape {shape}, got {tuple(named[name].shape)}; check the source")
        else:
            num.check_stored(f"params.{name}", named[name], shape)


_GIVEN_SHAPES = {
    "token_mask": ("T",),
    "sequence_ids": ("T",),
    "token_ids": ("T",),
    "topk_indices": ("T", "K"),
    "counts_so_far": ("E",),
}


def _check_given(given, num_tokens, config, num):
    if not isinstance(given, Given):
        raise TypeError(f"given: expected Given, got {type(given).__name__}; build it with refmoe.Given(...)")
    sizes = {"T": num_tokens, "K": config.top_k, "E": config.num_experts}
    for name, axes in _GIVEN_SHAPES.items():
        array, shape = getattr(given, name), tuple(sizes[a] for a in axes)
        if array is not None:
            _check_integers(name, array, shape)
    if given.logits is not None:
        num.check_stored("given.logits", given.logits, (num_tokens, config.num_experts))
    _check_needed(given, config)


def _check_integers(name, array, shape):
    kinds = "b" if name == "token_mask" else "iu"
    if not isinstance(array, np.ndarray) or array.dtype.kind not in kinds:
        expected = "booleans" if kinds == "b" else "integers"
        got = getattr(array, "dtype", type(array).__name__)
        raise TypeError(f"given.{name}: expected a NumPy array of {expected}, got {got}; convert it with .astype")
    if array.shape != shape:
        raise ValueError(f"given.{name}: expected shape {shape}, got {array.shape}; give one entry for each")


def _check_needed(given, config):
    by_sequence = config.dispatch.capacity_scope == "sequence" and (config.dispatch.capacity, config.dispatch.capacity_factor) != (None, None)
    by_sequence |= config.losses.balance is not None and config.losses.balance.scope == "sequence"
    if by_sequence and given.sequence_ids is None:
        raise ValueError("given.sequence_ids: expected the sequence of each token, as the configuration counts by sequence, got None; pass them")
    for name in ("token_ids", "noise"):
        if getattr(given, name) is not None:
            raise ValueError(f"given.{name}: expected None, as no rule of this version reads it, got an array; leave it out")
    counts, loss = given.counts_so_far, config.losses.balance
    if counts is None:
        return
    if loss is None or loss.scope != "global":
        raise ValueError("given.counts_so_far: expected None without a global balance loss, got an array; set losses.balance.scope='global'")
    choices = config.top_k if loss.counts == "all" else 1
    if (counts < 0).any() or int(counts.sum()) % choices:
        raise ValueError(f"given.counts_so_far: expected non-negative counts that sum to a multiple of {choices}, got {counts.tolist()}; pass the running sum")


def _check_upstream(d_y, x, record, config, num, d_logits):
    num.check_stored("d_y", d_y, x.shape)
    if not isinstance(record, MoERecord) or record.routing is None:
        raise ValueError("record: expected a MoERecord kept with 'all' or 'backward', got one without its stages; run moe_forward with keep='backward'")
    if record.routing.logits.shape != (len(x), config.num_experts):
        raise ValueError(f"record: expected the record of this x, got one of {len(record.routing.logits)} tokens; run moe_forward again")
    if d_logits is not None:
        num.check_stored("d_logits", d_logits, (len(x), config.num_experts))
