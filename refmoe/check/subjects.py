"""What is checked: each gradient of a layer, and the scalar function that it is the gradient of."""

import dataclasses

import numpy as np

from .. import soft
from ..experts import expert_ffn, layer_output, routed_experts, shared_expert
from ..inputs import Given
from ..layer import forward, moe_backward, moe_forward
from ..losses import GIVES, LOSSES, READS, loss_arguments
from ..numerics import Numerics
from ..recipes import assemble_params, carried, generate, init_given, init_params, name_params


def make_case(config, seed, num_tokens):
    num = Numerics("float64", backend="numpy")
    params = assemble_params(
        {name: carried(array, np.float64) for name, array in name_params(init_params(config, seed)).items()}
    )
    x, d_y = (generate(name, (num_tokens, config.hidden_size), seed).astype(np.float64) for name in ("x", "d_y"))
    given = make_given(config, num_tokens)
    record = moe_forward(x, params, config, num, given)
    return config, x, params, d_y, given, record, moe_backward(d_y, x, params, record, config, num, given)


def make_given(config, num_tokens):
    """What the configuration needs beside x: sequences of three tokens, one padding token, earlier counts."""
    loss = config.losses.balance
    earlier = np.full(config.num_choices, config.top_k) if loss is not None and loss.scope == "global" else None
    mask = np.arange(num_tokens) != num_tokens - 1
    drawn = {name: carried(array, np.float64) for name, array in init_given(config, num_tokens).items()}
    return Given(token_mask=mask, sequence_ids=np.arange(num_tokens) // 3, counts_so_far=earlier, **drawn)


def all_subjects(config, x, params, d_y, given, record, grads, num):
    """(name, hand-derived gradient, where it is taken, the scalar function of that tensor alone, as num reads it)."""
    chosen, logits = record, record.routing.logits

    block = config.routing.jitter == "block"  # then the parts of d_x are parts of d_jittered_x, taken there
    read, given_read = (record.routing.jittered_x, given._replace(jitter=None)) if block else (x, given)

    def whole(x=x, params=params, given=given):
        out = forward(x, params, config, num, given, chosen)
        return _task(d_y, out) + _losses(out.losses)

    def of_logits(z):
        return forward(x, params, config, num, given._replace(logits=z), chosen)

    def of_router(v):
        return forward(read, params, config, num, given_read, chosen, seen=v)

    yield "d_x", grads.d_x, x, lambda v: whole(x=v)
    of_routed = _of_plan if record.soft is None else _of_mixtures
    d_routed = next(d for d in (grads.d_routed, grads.d_unnormed_y, d_y) if d is not None)
    yield from of_routed(config, read, params, d_routed, given, record, grads, num)
    yield from _of_output(config, read, params, d_y, d_routed, record, grads, num)
    yield "d_logits_task", grads.d_logits_task, logits, lambda v: _task(d_y, of_logits(v))
    of_loss = _loss_of_stage(config, given, record, num)
    yield from _of_losses(of_loss, config, record, grads)

    def both(z):
        losses = (of_loss(name, "logits", z) for name in LOSSES if getattr(config.losses, name) is not None)
        return _task(d_y, of_logits(z)) + sum(losses)

    def through_router(v):
        out = of_router(v)
        return _task(d_y, out) + _losses(out.losses)

    yield "d_logits", grads.d_logits, logits, both
    yield "d_x_router", grads.d_x_router, read, through_router
    named, gradients = name_params(params), name_params(grads.params)
    for name, gradient in gradients.items():
        yield f"d_{name}", gradient, named[name], lambda v, name=name: whole(params=assemble_params(named | {name: v}))


def _loss_of_stage(config, given, record, num):
    """(name, stage, value) -> one loss as a function of one of the stages it reads."""
    arguments = loss_arguments(record.routing, config, given, record.losses.balance_counts)

    def of_loss(name, stage, v):
        read = [v if its == stage else argument for its, argument in zip(READS[name], arguments[name], strict=True)]
        return LOSSES[name][0](*read, config, num)

    return of_loss


def _of_losses(of_loss, config, record, grads):
    """What each loss gives, to every stage it reads."""
    for name in (name for name in LOSSES if getattr(config.losses, name) is not None):
        for source in (source for source in GIVES[name] if getattr(grads, source) is not None):
            stage = source.removeprefix("d_").removesuffix(f"_{name}")
            at = getattr(record.routing, stage)
            yield source, getattr(grads, source), at, lambda v, name=name, stage=stage: of_loss(name, stage, v)


def _of_plan(config, x, params, d_y, given, record, grads, num):
    """What stands between x and routed where experts are chosen; d_y is that of routed."""
    weights, plan, experts = record.routing.topk_weights, record.plan, config.experts
    alone = dataclasses.replace(experts, residual="none")

    def routed(x=x, weights=weights, experts=experts):
        return np.sum(d_y * routed_experts(x, weights, plan, params, experts, num)[1])

    yield "d_x_experts", grads.d_x_experts, x, lambda v: routed(x=v, experts=alone)
    yield "d_topk_weights", grads.d_topk_weights, weights, lambda v: routed(weights=v)
    if grads.d_x_residual is not None:
        yield "d_x_residual", grads.d_x_residual, x, lambda v: routed(x=v) - routed(x=v, experts=alone)


def _of_mixtures(config, x, params, d_y, given, record, grads, num):
    """The same of a soft mixture, with the logits' part through either softmax."""
    made, back, scopes = record.soft, grads.soft, soft.soft_scopes(len(x), config, given)
    offsets, logits = soft.slot_offsets(scopes, config), record.routing.logits

    def routed(x=x, to_slots=made.dispatch_weights, to_tokens=made.combine_weights):
        rows = soft.mix_tokens(x, to_slots, scopes, config, num)
        y_rows = expert_ffn(rows, params, offsets, config.experts, num).y_rows
        return np.sum(d_y * soft.mix_slots(y_rows, to_tokens, scopes, config, num))

    def of_cosines(cosines):
        logits = soft.scaled_logits(cosines, params.soft_scale, num)
        return np.sum(d_y * forward(x, params, config, num, given._replace(logits=logits)).routed)

    def of_units(unit_x=made.unit_x, unit_slots=made.unit_slots):
        return of_cosines(num.contract("cosines", unit_x, unit_slots))

    yield "d_x_experts", grads.d_x_experts, x, lambda v: routed(x=v)
    yield "d_dispatch_weights", back.d_dispatch_weights, made.dispatch_weights, lambda v: routed(to_slots=v)
    yield "d_combine_weights", back.d_combine_weights, made.combine_weights, lambda v: routed(to_tokens=v)
    yield (
        "d_logits_dispatch",
        back.d_logits_dispatch,
        logits,
        lambda v: routed(to_slots=soft.dispatch_weights(v, scopes, num)),
    )
    yield "d_logits_combine", back.d_logits_combine, logits, lambda v: routed(to_tokens=soft.combine_weights(v, num))
    yield "d_cosines", back.d_cosines, made.cosines, of_cosines
    yield "d_unit_x", back.d_unit_x, made.unit_x, lambda v: of_units(unit_x=v)
    yield "d_unit_slots", back.d_unit_slots, made.unit_slots, lambda v: of_units(unit_slots=v)


def _of_output(config, x, params, d_y, d_routed, record, grads, num):
    """The shared part, and what is made of both."""
    experts, part = config.experts, record.shared and record.shared.shared

    def shared(x):
        return np.sum(d_routed * shared_expert(x, params.shared, experts, num, record.routing.shared_weights).shared)

    def output(y, part=part):
        return np.sum(d_y * layer_output(y, part, params, experts, num)[-1])

    if grads.d_x_shared is not None:
        yield "d_x_shared", grads.d_x_shared, x, shared
    if grads.d_unnormed_y is not None:
        yield "d_unnormed_y", grads.d_unnormed_y, record.unnormed_y, lambda v: output(v, part=None)
    if grads.d_routed is not None:
        yield "d_routed", grads.d_routed, record.routed, output


def _task(d_y, out):
    return np.sum(d_y * out.y)


def _losses(losses):
    return sum(value for name in LOSSES if (value := getattr(losses, name)) is not None)
