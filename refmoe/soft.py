"""The soft mixture: a slot reads a mean of the tokens, a token a mean of the slots; and back.   Spec 2.10, 5.6

Nobody is chosen and nobody dropped: two softmaxes of one table of logits stand in the place of selection, plan, permute
and combine. Between them stands what every layer has, experts on rows in expert order: of expert e first the slots of
sequence 0, then those of sequence 1. After Puigcerver et al. 2023, and their code.
"""

from typing import NamedTuple

import numpy as np

from .experts import ExpertsRecord, expert_ffn, expert_ffn_backward
from .routing import refuse_nonfinite
from .scores import SOFTMAX, SOFTMAX_BACKWARD


class SoftRecord(NamedTuple):
    """What stands in the place of a plan. P slots an expert, numbered e P + p."""

    unit_x: object = None  # (T, D) tokens of length one
    unit_slots: object = None  # (E P, D) the slots' vectors of length one
    cosines: object = None  # (T, E P) of each token and each slot
    dispatch_weights: object = None  # (T, E P) a slot's weights sum to one over the tokens of a scope
    combine_weights: object = None  # (T, E P) a token's weights sum to one
    slot_rows: object = None  # (N, D) what the experts read; N = E P for each scope


class SoftGrads(NamedTuple):
    """Gradients of these, and of the logits by the softmax they go through."""

    d_combine_weights: object = None  # (T, E P)
    d_dispatch_weights: object = None  # (T, E P)
    d_logits_combine: object = None  # (T, E P)
    d_logits_dispatch: object = None  # (T, E P)
    d_cosines: object = None  # (T, E P), None with given logits
    d_unit_x: object = None  # (T, D), None with given logits
    d_unit_slots: object = None  # (E P, D), None with given logits


class Scopes(NamedTuple):
    """The tokens that share slots, one scope after the other."""

    tokens: object  # (T,) in the order of the scopes
    offsets: object  # (G+1,) where each begins among them


def soft_scopes(num_tokens, config, given):
    """One scope of all tokens, or one for each sequence.   Spec 2.10"""
    if config.routing.soft_scope == "batch":
        return Scopes(np.arange(num_tokens), np.array([0, num_tokens], np.int64))
    counts = np.unique(given.sequence_ids, return_counts=True)[1]
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    return Scopes(np.argsort(given.sequence_ids, kind="stable"), offsets.astype(np.int64))


# --- logits: Spec 2.10 -----------------------------------------------------------------------------------------------


def unit_rows(name, v, config, num):
    """v / |v| with |v| = sqrt(sum v^2 + eps), row by row.   Spec 2.10

    v (N, D) -> (N, D)
    """
    return num.evaluate(name, _unit, v, core=1, eps=config.routing.soft_norm_eps)


def unit_rows_backward(name, d_units, v, start, config, num):
    """d_v = (d - v <d, v> / q) / sqrt(q),  q = sum v^2 + eps.   Spec 5.6

    d_units (N, D), v (N, D) -> (N, D), added to `start` where there is one
    """
    # units = v / sqrt(q)
    start = np.zeros_like(v) if start is None else start
    return num.evaluate(name, _unit_backward, d_units, v, start, core=1, eps=config.routing.soft_norm_eps)


def _unit(m, v, eps):
    return v / m.sqrt(m.sum(v * v, keepdims=True) + eps)


def _unit_backward(m, d, v, start, eps):
    q = m.sum(v * v, keepdims=True) + eps
    return (d - v * (m.sum(d * v, keepdims=True) / q)) / m.sqrt(q) + start


def scaled_logits(cosines, soft_scale, num):
    """logits = soft_scale cosines.   Spec 2.10

    cosines (T, E P), soft_scale (1,) -> logits (T, E P)
    """
    return num.evaluate("logits", lambda m, z, scale: z * scale, cosines, soft_scale)


def scaled_logits_backward(d_logits, cosines, soft_scale, start, num):
    """d_cosines = soft_scale d_logits;  d_soft_scale = sum_ts d_logits cosines, added to `start`.   Spec 5.6

    d_logits (T, E P), cosines (T, E P), soft_scale (1,) -> d_cosines (T, E P), d_soft_scale (1,)
    """
    # logits = soft_scale cosines
    d_cosines = num.evaluate("d_cosines", lambda m, d, scale: d * scale, d_logits, soft_scale)
    start = np.zeros_like(soft_scale) if start is None else start
    if not len(d_logits):
        return d_cosines, start.copy()

    def formula(m, d, z, start):
        return m.sum(d * z, axis=(-2, -1)) + m.sum(start, axis=(-2, -1))

    return d_cosines, num.evaluate("d_soft_scale", formula, d_logits, cosines, start[None], core=2).reshape(1)


def soft_logits(x, params, config, num):
    """logits = scale <x / |x|, w / |w|>.   Spec 2.10

    x (T, D), params.w_router (E P, D) -> unit_x (T, D), unit_slots (E P, D), cosines (T, E P), logits (T, E P)
    """
    unit_x, unit_slots = (unit_rows(n, v, config, num) for n, v in (("unit_x", x), ("unit_slots", params.w_router)))
    cosines = num.contract("cosines", unit_x, unit_slots)
    return unit_x, unit_slots, cosines, scaled_logits(cosines, params.soft_scale, num)


def soft_logits_backward(d_logits, x, params, record, config, num, into):
    """Through the scale, the product and both lengths.   Spec 5.6

    d_logits (T, E P), x (T, D), record SoftRecord -> SoftGrads of these stages, d_x_router (T, D), gradients by name
    """
    saved = record.cosines, params.soft_scale, into.soft_scale
    d_cosines, d_scale = scaled_logits_backward(d_logits, *saved, num)
    # cosines = unit_x unit_slots^T
    d_unit_x = num.contract_backward_x("d_unit_x", [(d_cosines, record.unit_slots)])
    d_unit_slots = num.contract_backward_w("d_unit_slots", d_cosines, record.unit_x)
    d_x = unit_rows_backward("d_x_router", d_unit_x, x, None, config, num)
    d_w = unit_rows_backward("d_w_router", d_unit_slots, params.w_router, into.w_router, config, num)
    made = SoftGrads(d_cosines=d_cosines, d_unit_x=d_unit_x, d_unit_slots=d_unit_slots)
    return made, d_x, {"w_router": d_w, "soft_scale": d_scale}


# --- the two softmaxes: Spec 2.10 ------------------------------------------------------------------------------------


def combine_weights(logits, num):
    """combine_weights_ts = softmax over the slots s.   Spec 2.10

    logits (T, E P) -> (T, E P)
    """
    return num.evaluate("combine_weights", SOFTMAX, logits, core=1)


def combine_weights_backward(d_combine_weights, logits, num):
    """d_logits_ts = c_ts (d_ts - sum_i d_ti c_ti).   Spec 5.6

    d_combine_weights (T, E P), logits (T, E P) -> d_logits_combine (T, E P)
    """
    # combine_weights = softmax(logits) along a token's slots
    return num.evaluate("d_logits_combine", SOFTMAX_BACKWARD, d_combine_weights, logits, core=1)


def dispatch_weights(logits, scopes, num):
    """dispatch_weights_ts = softmax over the tokens t of a scope.   Spec 2.10

    logits (T, E P) -> (T, E P)
    """
    return _by_column("dispatch_weights", SOFTMAX, scopes, num, logits)


def dispatch_weights_backward(d_dispatch_weights, logits, scopes, num):
    """d_logits_ts = w_ts (d_ts - sum_u d_us w_us) over the tokens u of the scope.   Spec 5.6

    d_dispatch_weights (T, E P), logits (T, E P) -> d_logits_dispatch (T, E P)
    """
    # dispatch_weights = softmax(logits) along the tokens of a scope
    return _by_column("d_logits_dispatch", SOFTMAX_BACKWARD, scopes, num, d_dispatch_weights, logits)


def _by_column(name, formula, scopes, num, *tables):
    """The formula over the tokens of each scope, slot by slot."""
    out = np.zeros_like(tables[-1], order="C")
    for a, b in zip(scopes.offsets, scopes.offsets[1:], strict=False):
        if b > a:
            tokens = scopes.tokens[a:b]
            out[tokens] = num.evaluate(name, formula, *(table[tokens].T for table in tables), core=1).T
    return out


# --- tokens to slots, slots to tokens: Spec 2.10 ---------------------------------------------------------------------


def mix_tokens(x, dispatch_weights, scopes, config, num):
    """slot_rows_s = sum_t dispatch_weights_ts x_t: a contraction over the tokens of a scope.   Spec 2.10

    x (T, D), dispatch_weights (T, E P) -> slot_rows (N, D), in expert order
    """
    order = scopes.tokens
    return _by_expert(num.contract_backward_w("slot_rows", dispatch_weights[order], x[order], scopes.offsets), config)


def mix_tokens_backward(d_slot_rows, x, dispatch_weights, scopes, config, num):
    """d_dispatch_weights_ts = <x_t, d_slot_s>;  d_x_t = sum_s dispatch_weights_ts d_slot_s.   Spec 5.6

    d_slot_rows (N, D), x (T, D) -> d_dispatch_weights (T, E P), d_x_experts (T, D)
    """
    # slot_rows_s = sum_t dispatch_weights_ts x_t
    d_slots = _by_scope(d_slot_rows, scopes, config)
    d_weights = _over_scopes("d_dispatch_weights", x, d_slots, scopes, num)
    return d_weights, _over_scopes("d_x_experts", dispatch_weights, _turned(d_slots), scopes, num)


def mix_slots(y_rows, combine_weights, scopes, config, num):
    """routed_t = sum_s combine_weights_ts y_s: a contraction over the slots.   Spec 2.10

    y_rows (N, D), combine_weights (T, E P) -> routed (T, D)
    """
    return _over_scopes("routed", combine_weights, _turned(_by_scope(y_rows, scopes, config)), scopes, num)


def mix_slots_backward(d_routed, y_rows, combine_weights, scopes, config, num):
    """d_y_s = sum_t combine_weights_ts d_routed_t;  d_combine_weights_ts = <d_routed_t, y_s>.   Spec 5.6

    d_routed (T, D), y_rows (N, D), combine_weights (T, E P) -> d_y_rows (N, D), d_combine_weights (T, E P)
    """
    # routed_t = sum_s combine_weights_ts y_s
    order = scopes.tokens
    d_y = num.contract_backward_w("d_y_rows", combine_weights[order], d_routed[order], scopes.offsets)
    d_weights = _over_scopes("d_combine_weights", d_routed, _by_scope(y_rows, scopes, config), scopes, num)
    return _by_expert(d_y, config), d_weights


def _over_scopes(name, rows, tables, scopes, num):
    """Each token's row times the table of its scope; rows (T, K), tables (G, M, K) -> (T, M)."""
    made = num.contract(name, rows[scopes.tokens], tables, scopes.offsets)
    return made[np.argsort(scopes.tokens, kind="stable")]


def _turned(tables):
    return tables.swapaxes(1, 2).copy()


def _by_expert(tables, config):
    """(G, E P, D) -> (N, D): the slots of an expert together."""
    G, _, D = tables.shape
    of_expert = tables.reshape(G, config.num_experts, config.routing.slots_per_expert, D).swapaxes(0, 1)
    return of_expert.copy().reshape(-1, D)


def _by_scope(rows, scopes, config):
    """(N, D) -> (G, E P, D), the way back."""
    G, E, P = len(scopes.offsets) - 1, config.num_experts, config.routing.slots_per_expert
    of_scope = rows.reshape(E, G, P, rows.shape[1]).swapaxes(0, 1)
    return of_scope.copy().reshape(G, E * P, rows.shape[1])


# --- the stage: Spec 2.10, 5.6 ---------------------------------------------------------------------------------------


def soft_experts(x, seen, params, config, num, given):
    """Logits, both mixtures, and the experts between them.   Spec 2.10

    x (T, D), seen (T, D), what the logits are made of: x -> logits (T, E P), SoftRecord, ExpertsRecord, routed (T, D)
    """
    before, logits, scopes = (None, None, None), given.logits, soft_scopes(len(x), config, given)
    if logits is None:
        *before, logits = soft_logits(seen, params, config, num)
    refuse_nonfinite(logits, num)
    to_slots, to_tokens = dispatch_weights(logits, scopes, num), combine_weights(logits, num)
    rows = mix_tokens(x, to_slots, scopes, config, num)
    made = expert_ffn(rows, params, slot_offsets(scopes, config), config.experts, num)
    routed = mix_slots(made.y_rows, to_tokens, scopes, config, num)
    return logits, SoftRecord(*before, to_slots, to_tokens, rows), ExpertsRecord(**made._asdict()), routed


def soft_experts_backward(d_routed, x, params, logits, record, experts, config, num, given, into):
    """Back to the logits and to x; the logits' own way back is `soft_logits_backward`.   Spec 5.6

    d_routed (T, D), x (T, D), logits (T, E P), record SoftRecord, experts ExpertsRecord
    -> SoftGrads, d_x_experts (T, D), d_y_rows (N, D), RowGrads, gradients of parameters by name
    """
    scopes = soft_scopes(len(x), config, given)
    d_y, d_to_tokens = mix_slots_backward(d_routed, experts.y_rows, record.combine_weights, scopes, config, num)
    saved = record.slot_rows, experts, params, slot_offsets(scopes, config)
    rows, grads = expert_ffn_backward(d_y, *saved, config.experts, num, into)
    d_to_slots, d_x = mix_tokens_backward(rows.d_x_rows, x, record.dispatch_weights, scopes, config, num)
    parts = (
        combine_weights_backward(d_to_tokens, logits, num),
        dispatch_weights_backward(d_to_slots, logits, scopes, num),
    )
    return SoftGrads(d_to_tokens, d_to_slots, *parts), d_x, d_y, rows, grads


def slot_offsets(scopes, config):
    """(E+1,): an expert has P rows for each scope.   Spec 2.10"""
    return (
        np.arange(config.num_experts + 1, dtype=np.int64) * config.routing.slots_per_expert * (len(scopes.offsets) - 1)
    )
