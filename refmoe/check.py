"""The gradient checker: every gradient of the layer against complex step and central differences.   Spec 5.10

Complex step reads the forward's own formulas in complex128, x + ih with h = 1e-200: the imaginary part of the result,
over h, is the derivative to full precision. Branches, selection, counts and maxima are those of the real run. The
complex functions are NumPy's and SciPy's, so none of the library's derivatives takes part.
"""

import dataclasses
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from . import soft
from .experts import expert_ffn, layer_output, routed_experts, shared_expert
from .inputs import Given
from .layer import forward, moe_backward, moe_forward
from .losses import GIVES, LOSSES, READS, loss_arguments
from .numerics import Numerics
from .numerics.arithmetic import Plain
from .numerics.terms import factors_of, value_of
from .recipes import assemble_params, carried, generate, init_given, init_params, name_params

STEP = 1e-200  # the error of complex step is of order STEP^2: far below the last bit
WIDTHS = 2.0**-17, 2.0**-24  # of the central difference; the narrow one where the wide one crosses a kink
TOLERANCE = {"complex_step": 1e-13, "difference": 1e-6}


class Row(NamedTuple):
    """One gradient tensor: how many elements were checked, and max|g - reference| / max|reference| by method.

    A bar is the tolerance of its method, or what the rounding of the function's own value makes of it where that is
    more: a gradient far smaller than the loss cannot be measured more sharply.
    """

    tensor: str
    elements: int
    complex_step: float
    difference: float
    bars: tuple  # of complex step, of the difference

    @property
    def ok(self):
        return self.complex_step <= self.bars[0] and self.difference <= self.bars[1]


class GradientCheck(NamedTuple):
    """The rows of a check; prints as a table. margin: how near the nearest token is to choosing otherwise."""

    rows: tuple
    margin: float | None = None  # the least K-th minus (K+1)-th choice score; None where nothing is ranked

    @property
    def ok(self):
        return all(row.ok for row in self.rows)

    @property
    def errors(self):
        """tensor -> method -> error."""
        return {row.tensor: {m: getattr(row, m) for m in TOLERANCE} for row in self.rows}

    def __str__(self):
        width = max(len(row.tensor) for row in self.rows)
        head = f"{'gradient':{width}}  {'elements':>8}  {'complex step':>12}  {'difference':>10}"
        lines = [
            f"{r.tensor:{width}}  {r.elements:8d}  {r.complex_step:12.1e}  {r.difference:10.1e}" + " FAILS" * (not r.ok)
            for r in self.rows
        ]
        bars = ", ".join(f"{method} <= {bar:.0e}" for method, bar in TOLERANCE.items())
        verdict = f"{'ok' if self.ok else 'FAILED'}: {bars}, of the tensor's largest element"
        return "\n".join([head, *lines, self._switch(), verdict])

    def _switch(self):
        if self.margin is None:
            return "nothing is ranked: there is no selection to switch"
        return f"nearest switch of the selection: a margin of {self.margin:.3g} in the choice scores"


def check_gradients(config, seed=0, num_tokens=6, limit=4096):
    """Every gradient of one layer in profile float64, element by element.   Spec 5.10

    config MoEConfig; num_tokens T; limit: elements checked of one tensor, evenly strided where it has more
    -> GradientCheck with .ok, .errors and a printable table. Raises ImportError for exact GELU without SciPy.
    """
    case = _make_case(config, seed, num_tokens)
    rows = tuple(_check(*subject, seed, limit) for subject in _subjects(*case))
    margin = case[5].routing.margin
    return GradientCheck(rows, None if margin is None else float(margin.min()))


class Complex128(Plain):
    """The reading of a formula in complex128."""

    exp, expm1, log, log1p, sqrt, tanh = np.exp, np.expm1, np.log, np.log1p, np.sqrt, np.tanh

    def erf(self, z):
        return _scipy_special().erf(z)

    def erfc(self, z):
        return _scipy_special().erfc(z)

    def sigmoid(self, z):
        return 1 / (1 + np.exp(-z))

    def softplus(self, z):
        return np.log(1 + np.exp(z))

    def real(self, z):
        return np.real(z)

    def sum(self, z, axis=-1, keepdims=False):
        return np.sum(z, axis=axis, keepdims=keepdims)

    def max(self, z, axis=-1, keepdims=False):
        return np.max(np.real(z), axis=axis, keepdims=keepdims)


def _scipy_special():
    """SciPy's functions, asked for by exact GELU alone: everything else needs NumPy alone."""
    try:
        from scipy import special
    except ImportError:
        fix = "install scipy (pip install scipy)"
        raise ImportError(f"activation 'gelu': expected SciPy for its complex erfc, got none; {fix}") from None
    return special


class ComplexStep:
    """A policy with the methods the forward asks of `Numerics`, all in complex128."""

    profile = "complex128"
    dtype = np.complex128

    def contract(self, name, x_rows, w, offsets=None, bias=None):
        w = w if w.ndim == 3 else w[None]
        bias = bias if bias is None or bias.ndim == 2 else bias[None]
        offsets = [0, len(x_rows)] if offsets is None else offsets
        out = np.zeros((len(x_rows), w.shape[1]), complex)
        for e in range(len(w)):
            rows = slice(int(offsets[e]), int(offsets[e + 1]))
            out[rows] = x_rows[rows] @ w[e].T + (0 if bias is None else bias[e])
        return out

    def contract_backward_w(self, name, d_rows, x_rows, offsets):
        return np.stack([d_rows[a:b].T @ x_rows[a:b] for a, b in pairwise(offsets)])

    def sum(self, name, terms):
        return sum(value_of(factors_of(term)) for term in terms)

    def evaluate(self, name, formula, *stored, core=0, **constants):
        return formula(Complex128(), *stored, **constants)


# --- what is checked -------------------------------------------------------------------------------------------------


def _make_case(config, seed, num_tokens):
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


def _subjects(config, x, params, d_y, given, record, grads):
    """(name, hand-derived gradient, where it is taken, the scalar function of that tensor alone)."""
    num, chosen, logits = ComplexStep(), record, record.routing.logits

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


# --- the two methods -------------------------------------------------------------------------------------------------


def _check(name, gradient, at, function, seed, limit):
    stride = -(-gradient.size // limit)
    index = np.arange(0, gradient.size, stride)
    exact = np.array([complex_step(function, at, i) for i in index])
    g = gradient.reshape(-1)[index]
    noise = 2.0**-50 * abs(function(at))  # the rounding of the function's own value
    bar = max(TOLERANCE["complex_step"], _ratio(noise, np.abs(exact).max(initial=noise)))
    direction = generate(f"direction.{name}", at.shape, seed).astype(np.float64)
    difference, difference_bar = _difference(gradient, at, function, direction, noise)
    return Row(name, len(index), relative_error(g, exact, noise), difference, (bar, difference_bar))


def _difference(gradient, at, function, direction, noise):
    """The error of the slope along a direction, and its bar, by the first step that is within it, or the last."""
    size = np.sqrt(np.sum(gradient * gradient) * np.sum(direction * direction))  # what the slope could be
    for width in WIDTHS:
        error = _ratio(abs(np.sum(gradient * direction) - central_difference(function, at, direction, width)), size)
        bar = max(TOLERANCE["difference"], _ratio(4 * noise / width, size))
        if error <= bar:
            break
    return error, bar


def _ratio(a, b):
    return float(a / b) if b else float(a)


def complex_step(function, at, i):
    """The derivative of function(at) with respect to element i: Im function(at + ih) / h."""
    moved = at.astype(np.complex128)
    moved.reshape(-1)[i] += 1j * STEP
    with np.errstate(all="ignore"):
        return np.imag(function(moved)) / STEP


def central_difference(function, at, direction, width):
    """The slope along a direction, (f(+h) - f(-h)) / 2h, to order h^2."""
    with np.errstate(all="ignore"):
        ahead, behind = (np.real(function(at + sign * width * direction)) for sign in (1, -1))
    return (ahead - behind) / (2 * width)


def relative_error(got, want, noise):
    """max|got - want| / max|want|. A gradient that vanishes (a reference within the rounding of the function's own
    value) must be 0 to the same rounding: then the error is max|got| / noise, or 0."""
    scale = np.abs(want).max(initial=0.0)
    if scale <= noise:
        largest = np.abs(got).max(initial=0.0)
        return 0.0 if largest <= noise else float(largest / noise)
    return float(np.abs(got - want).max() / scale)
