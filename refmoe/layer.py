"""moe_forward and moe_backward: the table of contents, in code.   Spec 3.5, 5.9

    router -> plan -> permute -> experts -> combine -> + shared -> y,  and the losses beside it

The record of the forward is what the backward reads and what a golden file holds, under the same names.
"""

from typing import NamedTuple

import numpy as np

from . import dispatch, losses
from .experts import (
    ExpertsRecord,
    LatentGrads,
    RowGrads,
    SharedGrads,
    SharedRecord,
    layer_output,
    layer_output_backward,
    routed_experts,
    routed_experts_backward,
    shared_expert,
    shared_expert_backward,
)
from .inputs import Given, check_inputs, check_upstream
from .losses import Losses
from .recipes import MoEParams, SharedParams, assemble_params
from .routing import (
    RouterGrads,
    RoutingRecord,
    is_jittered,
    jitter_backward,
    make_logits_backward,
    reads_scores,
    route,
    weigh,
    weigh_backward,
)
from .soft import SoftGrads, SoftRecord, soft_experts, soft_experts_backward, soft_logits_backward

# Nothing flows into these: they are constants of the way back.
NON_DIFFERENTIABLE = (
    "topk_indices",
    "plan",
    "balance_counts",
    "selection_bias",
    "row_potentials",
    "column_potentials",
    "choice_scores",
    "second_choice_scores",
    "group_scores",
    "lse",
    "margin",
)

REPORTED = (  # of the routing: read by nothing later on
    *("row_potentials", "column_potentials", "choice_scores", "second_choice_scores", "group_scores"),
    *("lse", "margin"),
)

# Stages that a loss may send a gradient to, as d_<stage>_<loss>.
LOSSES_READ = ("logits", "clean_logits", "noise_std", "router_gram")


class MoERecord(NamedTuple):
    """Every stored tensor of the forward."""

    routing: RoutingRecord = None
    plan: dispatch.Plan = None
    experts: ExpertsRecord = None
    routed: object = None  # (T, D)
    shared: SharedRecord = None
    losses: Losses = None
    unnormed_y: object = None  # (T, D), where y is normed
    output_rms: object = None  # (T, 1)
    y: object = None  # (T, D)
    soft: SoftRecord = None  # in place of a plan


class MoEGrads(NamedTuple):
    """Every stored tensor of the way back; None where a source does not exist."""

    d_x: object = None  # (T, D), the sum of the next four
    d_x_experts: object = None
    d_x_residual: object = None
    d_x_shared: object = None
    d_x_router: object = None
    d_logits: object = None  # (T, E), the sum of all d_logits_... and of the d_logits given
    d_logits_task: object = None
    d_logits_balance: object = None
    d_logits_z: object = None
    d_logits_importance: object = None
    d_logits_device: object = None
    d_logits_communication: object = None
    d_logits_mutual_information: object = None
    d_logits_load: object = None
    d_clean_logits_load: object = None  # (T, E)
    d_noise_std_load: object = None  # (T, E)
    d_router_gram_orthogonality: object = None  # (E, E)
    d_scores: object = None  # (T, E), where the weights' rule goes back through them
    d_topk_weights: object = None  # (T, K)
    router: RouterGrads = None
    d_unnormed_y: object = None  # (T, D), where y is normed
    d_routed: object = None  # (T, D), where it is not d_y or d_unnormed_y; the shared part receives the same
    latent: LatentGrads = None
    d_normed_y_rows: object = None  # (N, D), where each expert's output is normed
    d_scaled_y_rows: object = None  # (N, D), where a scale stands before that norm
    d_y_rows: object = None  # (N, D)
    d_weighted_x_rows: object = None  # (N, D), where the weight acts on the input
    rows: RowGrads = None
    shared: SharedGrads = None
    params: MoEParams = None
    soft: SoftGrads = None


# --- forward: Spec 3.5 -----------------------------------------------------------------------------------------------


def forward(x, params, config, num, given, chosen=None, seen=None, keep="all"):
    """moe_forward without its door.   Spec 3.5

    chosen: a record whose selection, plan and counts are taken over. seen: what the router reads in place of x.
    keep: with "backward" lse is not made, which nothing reads; with "y" neither are scores that nothing before y does.
    """
    if chosen is not None:
        given = given._replace(topk_indices=chosen.routing.topk_indices)
    mixed = _soft if config.routing.selection == "soft" else _routed
    record = mixed(x, params, config, num, given, chosen, x if seen is None else seen, keep)
    x = _read_by_all(x, record.routing, config, given)
    has_shared = config.experts.shared_intermediate_size > 0
    weights = record.routing.shared_weights
    shared = shared_expert(x, params.shared, config.experts, num, weights) if has_shared else None
    output = record.routed, shared.shared if has_shared else None, params, config.experts, num
    unnormed, rms, y = layer_output(*output)
    return record._replace(shared=shared, unnormed_y=unnormed, output_rms=rms, y=y)


def _routed(x, params, config, num, given, chosen, seen, keep):
    """A plan says who goes where."""
    needs_scores = keep != "y" or reads_scores(config)
    routing = route(seen, params, config, num, given, keep == "all", needs_scores)
    x = _read_by_all(x, routing, config, given)
    routing, plan = _weights_and_plan(routing, params, config, num, given, chosen)
    experts, routed = routed_experts(x, routing.topk_weights, plan, params, config.experts, num)
    made = _losses(routing, config, num, given, chosen)
    return MoERecord(routing=routing, plan=plan, experts=experts, routed=routed, losses=made)


def _soft(x, params, config, num, given, chosen, seen, keep):
    """Everybody goes everywhere, in part."""
    logits, soft, experts, routed = soft_experts(x, seen, params, config, num, given)
    routing = RoutingRecord(logits=logits)
    return MoERecord(routing=routing, soft=soft, experts=experts, routed=routed, losses=Losses())


def _read_by_all(x, routing, config, given):
    """What experts and shared expert read: x, or where the jitter is the layer's, the jittered x."""
    return routing.jittered_x if config.routing.jitter == "block" and is_jittered(config.routing, given) else x


def _weights_and_plan(routing, params, config, num, given, chosen):
    """Weights, then plan; with normalize_after_drop: plan on the raw weights, then weights of the kept slots."""
    if not config.dispatch.normalize_after_drop:
        routing = weigh(routing, None, params, config, num, given)
        return routing, chosen.plan if chosen else _plan(routing, routing.topk_weights, config, num, given)
    used = routing.topk_indices >= 0
    raw = np.where(used, np.take_along_axis(routing.scores, np.maximum(routing.topk_indices, 0), axis=-1), num.dtype(0))
    plan = chosen.plan if chosen else _plan(routing, raw, config, num, given)
    return weigh(routing._replace(raw_topk_weights=raw), plan.slot_row >= 0, params, config, num), plan


def _plan(routing, weights, config, num, given):
    return dispatch.make_plan(routing.topk_indices, weights, config, given, routing.scores, num)


def _losses(routing, config, num, given, chosen):
    counts = chosen.losses.balance_counts if chosen else None
    return losses.all_losses(routing, config, num, given, counts)


def _keep(record, keep):
    if keep == "all":
        return record
    if keep == "y":
        return MoERecord(y=record.y)
    routing = record.routing._replace(**dict.fromkeys(REPORTED))
    return record._replace(routing=routing, experts=record.experts._replace(x_rows=None), routed=None)


# --- the layer: Spec 3.5 and 5.9 -------------------------------------------------------------------------------------


def moe_forward(x, params, config, num, given=None, keep="all"):
    """y = sum over a token's experts of weight * FFN_e(x), + the shared expert.   Spec 3.5

    x (T, D), params MoEParams -> MoERecord. keep "all", "backward" (what moe_backward reads) or "y".
    Raises TypeError or ValueError naming the argument, what was expected, what came, and a fix.
    """
    given = Given() if given is None else given
    check_inputs(x, params, config, num, given, keep)
    return _keep(forward(x, params, config, num, given, keep=keep), keep)


def moe_backward(d_y, x, params, record, config, num, given=None, d_losses=None, d_logits=None, into=None):
    """Gradients of <d_y, y> + sum of d_losses * losses + <d_logits, logits>, of everything that carries one.   Spec 5.9

    d_y (T, D), x (T, D), record from moe_forward with keep "all" or "backward" -> MoEGrads
    d_losses: Losses of upstream scalars, 1 each by default. d_logits (T, E): one more source of the logits' gradient.
    into: MoEParams of arrays that the gradients are added to (one rounding), or of sinks with take(e, d_w):
    a sink that keeps its memory from step to step spares fresh pages, which may cost more than the products.
    """
    given = Given() if given is None else given
    check_inputs(x, params, config, num, given, "all")
    check_upstream(d_y, x, record, params, config, num, d_losses, d_logits, into)
    into = MoEParams(shared=SharedParams()) if into is None else into
    read = _read_by_all(x, record.routing, config, given)
    # y = routed + shared
    output, d_routed, grads = _output_backward(d_y, params, record, config, num, into)
    shared, d_shared_weights = None, None
    if record.shared is not None:
        saved = read, params.shared, record.shared
        weights = record.routing.shared_weights
        shared, named = shared_expert_backward(d_routed, *saved, config.experts, num, into.shared, weights)
        grads, d_shared_weights = _under("shared.", named) | grads, shared.d_shared_weights
    back = _soft_backward if record.soft is not None else _routed_backward
    made, named = back(d_routed, d_shared_weights, read, params, record, config, num, given, d_losses, into)
    grads |= named
    # weights = f(logits);  losses = g(logits)
    sources = [(name, d) for name, d in made._asdict().items() if d is not None]
    of = {stage: [d for name, d in sources if name.startswith(f"d_{stage}_")] for stage in LOSSES_READ}
    d_logits = num.sum("d_logits", of["logits"] if d_logits is None else [*of["logits"], d_logits])
    d_x_router = None
    if given.logits is None or config.routing.norm_over_shared:
        back = _soft_router_backward if record.soft is not None else _router_backward
        d_x_router, made, named = back(d_logits, read, params, record, made, config, num, given, into, of)
        grads |= named
    d_x_shared = shared and shared.d_x_shared
    every = made.d_x_experts, made.d_x_residual, d_x_shared, d_x_router
    d_x, router = _d_x([d for d in every if d is not None], made.router, config, num, given)
    return made._replace(
        d_x=d_x, d_x_shared=d_x_shared, d_x_router=d_x_router, d_logits=d_logits, router=router, **output,
        shared=shared, params=assemble_params(grads),
    )  # fmt: skip


def _under(prefix, named):
    return {prefix + name: array for name, array in named.items()}


def _output_backward(d_y, params, record, config, num, into):
    """Through y: the stages there, the gradient of both parts, gradients of parameters by name."""
    saved = record.unnormed_y, record.output_rms
    d_unnormed, d_routed, grads = layer_output_backward(d_y, *saved, params, config.experts, num, into)
    own = config.experts.shared_combine != "sum"
    return {"d_unnormed_y": d_unnormed, "d_routed": d_routed if own else None}, d_routed, grads


def _routed_backward(d_routed, d_shared_weights, x, params, record, config, num, given, d_losses, into):
    """From routed to the logits, by source, and to x through the experts: MoEGrads, parameters' gradients by name."""
    routing, plan = record.routing, record.plan
    saved = x, routing.topk_weights, plan, record.experts
    experts, grads = routed_experts_backward(d_routed, *saved, params, config.experts, num, into)
    kept = plan.slot_row >= 0 if config.dispatch.normalize_after_drop else routing.topk_indices >= 0
    saved = routing, kept, params, config, num, into, given
    task, d_scores, router, named = weigh_backward(experts.d_topk_weights, d_shared_weights, *saved)
    counts = record.losses.balance_counts
    sources = losses.loss_gradients(d_losses, routing, config, num, given, counts)
    made = MoEGrads(**experts._asdict(), d_logits_task=task, **sources, d_scores=d_scores, router=router)
    return made, grads | named


def _soft_backward(d_routed, d_shared_weights, x, params, record, config, num, given, d_losses, into):
    """The same through both mixtures; the logits have a part from each."""
    saved = record.routing.logits, record.soft, record.experts
    soft, d_x, d_y_rows, rows, grads = soft_experts_backward(d_routed, x, params, *saved, config, num, given, into)
    task = num.sum("d_logits_task", [soft.d_logits_combine, soft.d_logits_dispatch])
    return MoEGrads(d_x_experts=d_x, d_y_rows=d_y_rows, rows=rows, soft=soft, d_logits_task=task), grads


def _router_backward(d_logits, x, params, record, made, config, num, given, into, of):
    saved = made.router.d_shared_logits, x, record.routing, params
    d_x, stages, named = make_logits_backward(d_logits, *saved, config, num, given, into, of)
    return d_x, made._replace(router=made.router._replace(**stages)), named


def _soft_router_backward(d_logits, x, params, record, made, config, num, given, into, of):
    soft, d_x, named = soft_logits_backward(d_logits, x, params, record.soft, config, num, into)
    stages = {name: d for name, d in soft._asdict().items() if d is not None}
    return d_x, made._replace(soft=made.soft._replace(**stages)), named


def _d_x(parts, router, config, num, given):
    """The sum of the parts; where the jitter is the layer's, they are parts of d_jittered_x."""
    if config.routing.jitter != "block" or not is_jittered(config.routing, given):
        return num.sum("d_x", parts), router
    d_jittered = num.sum("d_jittered_x", parts)
    return jitter_backward(d_jittered, given.jitter, "d_x", num), router._replace(d_jittered_x=d_jittered)
