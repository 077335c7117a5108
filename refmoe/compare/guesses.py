"""What may have gone wrong: each hypothesis is computed, and named if the data agree with it.   Spec 7.12

A hypothesis is the law with another configuration, other parameters, or a stage replaced before the one that failed.
The failed stage is judged again under it, on the same submitted tensors; if it passes, that is the guess.
"""

import warnings
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ..formats import FORMATS, round_to
from .groups import Grouping, grouping
from .judged import Mine
from .stages import is_late, passage, submission
from .verdicts import PASSED, SUSPICIOUS, judge, judge_by_expert

WEIGHTS, HIDDEN = "routing.topk_weights", ("experts.gate_rows", "experts.up_rows")
MOST = 1 << 30  # parameters of one matrix of all experts beyond which no hypothesis is computed


class Changed(NamedTuple):
    """The law under a hypothesis."""

    config: object
    params: object
    replaced: object = ()  # name -> array that later stages read


class Experts:
    """(E, F, D) weights made from others, an expert at a time."""

    ndim = 3

    def __init__(self, like, of):
        self.shape, self.dtype, self._of = tuple(like.shape), like.dtype, of

    def __len__(self):
        return self.shape[0]

    def __call__(self, e):
        return np.ascontiguousarray(self._of(e))

    weights = __getitem__ = __call__


def _at(w, e):
    return w[e] if isinstance(w, np.ndarray) else w(e)


def _with_weights(params, **made):
    """Expert weights remade: an array where it was one, so that large ones stay expert by expert."""
    out = {}
    for name, of in made.items():
        old = getattr(params, name)
        lazy = Experts(old, of)
        out[name] = np.stack([lazy(e) for e in range(len(lazy))]) if isinstance(old, np.ndarray) else lazy
    return params._replace(**out)


def _swapped(config, params, law):
    if params.w_gate is not None:
        biases = {"b_gate": params.b_up, "b_up": params.b_gate}
        return Changed(config, params._replace(w_gate=params.w_up, w_up=params.w_gate, **biases))
    return None


def _joined(params, e, interleave):
    gate, up = _at(params.w_gate, e), _at(params.w_up, e)
    return np.stack([gate, up], axis=1).reshape(-1, gate.shape[1]) if interleave else np.concatenate([gate, up])


def _interleaved_read_as_halves(config, params, law):
    if params.w_gate is None or params.b_gate is not None:
        return None
    size = params.w_gate.shape[1]
    halves = {"w_gate": lambda e: _joined(params, e, True)[:size], "w_up": lambda e: _joined(params, e, True)[size:]}
    return Changed(config, _with_weights(params, **halves))


def _halves_read_as_interleaved(config, params, law):
    if params.w_gate is None or params.b_gate is not None:
        return None
    turns = {"w_gate": lambda e: _joined(params, e, False)[::2], "w_up": lambda e: _joined(params, e, False)[1::2]}
    return Changed(config, _with_weights(params, **turns))


def _transposed(name):
    def change(config, params, law):
        w = getattr(params, name)
        if w is None or w.shape[1] != w.shape[2]:
            return None
        return Changed(config, _with_weights(params, **{name: lambda e: _at(w, e).T}))

    return change


def _reshaped_down(config, params, law):
    """The bytes of (D, F) read as (F, D), then transposed: what a wrong stride makes of w_down."""
    w = params.w_down
    if w is None or w.shape[1] == w.shape[2]:
        return None
    return Changed(config, _with_weights(params, w_down=lambda e: _at(w, e).reshape(w.shape[2], w.shape[1]).T))


def _neighbour(step):
    def change(config, params, law):
        made = {}
        for name in ("w_gate", "w_up", "w_down"):
            w = getattr(params, name)
            if w is not None:
                made[name] = lambda e, w=w: _at(w, (e + step) % len(w))
        return Changed(config, _with_weights(params, **made))

    return change


def _routing(**fields):
    def change(config, params, law):
        if all(getattr(config.routing, name) == value for name, value in fields.items()):
            return None
        return Changed(replace(config, routing=replace(config.routing, **fields)), params)

    return change


def _unnormalised(config, params, law):
    """Without the renormalisation, and all that belongs to it."""
    neutral = {"normalize": False, "norm_eps": 0.0, "norm_eps_mode": "add", "norm_p": 1}
    if not config.routing.normalize:
        return None
    dispatch = replace(config.dispatch, normalize_after_drop=False)
    return Changed(replace(config, routing=replace(config.routing, **neutral), dispatch=dispatch), params)


def _renormalised(config, params, law):
    return None if config.routing.normalize else _routing(normalize=True)(config, params, law)


def _biased_weights(config, params, law):
    """The weights made from the scores that were ranked, bias included."""
    if params.selection_bias is None or "routing.choice_scores" not in law.tensors:
        return None
    return Changed(config, params, {"routing.scores": np.asarray(law.tensors["routing.choice_scores"])})


def _weights_as(change_of):
    def change(config, params, law):
        return Changed(config, params, {WEIGHTS: change_of(np.asarray(law.tensors[WEIGHTS], np.float64))})

    return change


def _rounded_before(name):
    def change(config, params, law):
        rows = {n: law.tensors[n] for n in HIDDEN if n in law.tensors}
        return Changed(config, params, {n: round_to(np.asarray(a, np.float64), name) for n, a in rows.items()})

    return change


def _no_shared(config, params, law):
    if "shared.shared" not in law.tensors:
        return None
    return Changed(config, params, {"shared.shared": np.zeros(law.tensors["shared.shared"].shape)})


GATE, UP, DOWN = "experts.gate_rows", "experts.up_rows", "experts.y_rows"
# what may be wrong -> (the first stage that it changes, how)
HYPOTHESES = {
    "gate and up are swapped": (GATE, _swapped),
    "gate and up are interleaved (rows g0, u0, g1, u1 ...) and were read as two halves":
        (GATE, _interleaved_read_as_halves),
    "gate and up are two halves and were read as interleaved": (GATE, _halves_read_as_interleaved),
    "w_gate is transposed": (GATE, _transposed("w_gate")),
    "w_up is transposed": (UP, _transposed("w_up")),
    "w_down is transposed": (DOWN, _transposed("w_down")),
    "w_down was read with its axes exchanged": (DOWN, _reshaped_down),
    "each expert has the weights of the next one: off by one": (UP, _neighbour(1)),
    "each expert has the weights of the one before: off by one": (UP, _neighbour(-1)),
    "the weights are not renormalised": (WEIGHTS, _unnormalised),
    "the weights are renormalised, and should not be": (WEIGHTS, _renormalised),
    "the scaling factor is left out": (WEIGHTS, _routing(scaling_factor=1.0)),
    "the selection bias leaked into the weights": (WEIGHTS, _biased_weights),
    "the weights are applied twice": ("routed", _weights_as(np.square)),
    "the weights are not applied": ("routed", _weights_as(np.ones_like)),
    "gate and up are rounded to bf16 before the activation": ("experts.hidden_rows", _rounded_before("bf16")),
    "gate and up are rounded to fp16 before the activation": ("experts.hidden_rows", _rounded_before("fp16")),
    "the shared expert is missing": ("y", _no_shared),
}  # fmt: skip
ENOUGH = 2  # guesses


def guesses(comparison, mine, config, inputs, num):
    """Sentences that say what may be wrong with the first stage that did not pass; none if nothing fits."""
    first = comparison.first
    if first is None or first.name not in mine or mine[first.name].values.dtype.kind != "f":
        return []
    plain = _seen(first, mine[first.name], comparison)
    if plain or config.num_experts * config.hidden_size * config.intermediate_size > MOST:
        return plain
    found, before = [], _before(first.name, mine, comparison)
    order = list(comparison.law.tensors)
    for text, (stage, change) in HYPOTHESES.items():
        early = stage in order and order.index(stage) <= order.index(first.name)
        if early and stage not in before and len(found) < ENOUGH:
            found += [text] if _agrees(change, first, mine, before, comparison, config, inputs, num) else []
    return found


def _seen(first, got, comparison):
    """What the values themselves show: not finite, or held at the largest value of a format."""
    got, own = _at_worst(first, got, comparison.own)
    value = own.part("value")
    if first.unfinished:
        kind = "NaN" if np.isnan(got.values).any() else "infinite"
        return [f"{first.unfinished} elements are {kind} where the law's are finite: a padded row, or an overflow"]
    for row in FORMATS.values():
        held = (np.abs(got.values) == row.largest) & (np.abs(value) > row.largest)
        if held.any():
            return [f"{int(held.sum())} elements are saturated at {row.largest:g}, the largest value of {row.name}"]
    return []


def _at_worst(first, got, run):
    """(Mine, Tracked) of a tensor; of one that is made an expert at a time, those of the worst place."""
    own = run.tensors[first.name]
    if not is_late(own):
        return got, own
    e = first.place[0]
    return got._replace(values=got.values[e]), own.part(e)


def _before(name, mine, comparison):
    """The submitted tensors that stand before the failed one."""
    order = list(comparison.law.tensors)
    return {n: m for n, m in mine.items() if n in order[: order.index(name)]}


def _agrees(change, first, mine, before, comparison, config, inputs, num):
    """Is the failed stage right under the hypothesis, where it is not under the law?"""
    try:
        with warnings.catch_warnings(action="ignore"):  # what is said of a configuration is not said of a hypothesis
            changed = change(config, inputs.params, comparison.own)
    except ValueError:
        return False  # no such configuration
    if changed is None or (changed.replaced and first.name in changed.replaced):
        return _is_replaced(changed, first, mine, comparison, num)
    inputs = inputs._replace(params=changed.params)
    if not first.name.startswith("grads."):
        inputs = inputs._replace(d_y=None)
    chosen = np.asarray(comparison.own.record.routing.topk_indices)
    args = changed.config, inputs, num, comparison.accumulator, chosen
    try:
        run = passage(*args)
        replaced = {n: Mine(np.asarray(a, np.float64), "F32") for n, a in dict(changed.replaced).items()}
        if before or replaced:
            run = passage(*args, submission(run, before | replaced, first=replaced))
    except (ValueError, TypeError):
        return False  # a configuration that the layer refuses
    return first.name in run.tensors and _passes(first, mine[first.name], run, config, comparison, num)


def _is_replaced(changed, first, mine, comparison, num):
    """The failed stage is the one replaced: is it that array?"""
    if changed is None:
        return False
    got, own = mine[first.name].values, comparison.own.tensors[first.name]
    there = changed.replaced[first.name]
    unit = 2.0**-8 if mine[first.name].dtype == "BF16" else 2.0 ** -FORMATS[num.store].precision
    room = np.maximum(own.part("allowed") * 2, 0.0) + 2 * unit * np.abs(there)
    different = np.abs(there - np.asarray(own)).max(initial=0.0) > 0
    return bool(got.shape == there.shape and different and (np.abs(got - there) <= room).all())


def _passes(first, got, run, config, comparison, num):
    own, name = run.tensors[first.name], first.name
    if tuple(own.shape) != tuple(got.values.shape):
        return False
    drift = comparison.accumulator.drift(max(config.hidden_size, config.intermediate_size))
    wanted = (PASSED,) if comparison.first.verdict == SUSPICIOUS else (PASSED, SUSPICIOUS)
    part, worst = _at_worst(first, got, run)
    view = Grouping(summed=True) if is_late(own) else grouping(name, own, run, config)
    passes = judge(name, part, worst, worst, view, num, drift).verdict in wanted
    return passes and (not is_late(own) or judge_by_expert(name, got, own, own, num, drift).verdict in wanted)
