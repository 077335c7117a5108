"""The outer door: what comes beside the parameters, and what is refused.   Spec 0.4

Every refusal names the argument, what was expected, what came, and one fix; nothing is computed before.
"""

from typing import NamedTuple

import numpy as np

from . import selection
from .config import VARIABLE_SELECTIONS, MoEConfig
from .losses import LOSSES, Losses
from .numerics import Numerics, is_plain
from .recipes import (
    CONSTANT_PARAMS,
    INTEGER_PARAMS,
    MoEParams,
    SharedParams,
    given_shapes,
    name_params,
    parameter_shapes,
)
from .refusals import is_finite_number, require, require_instance


class Given(NamedTuple):
    """Arrays that are neither parameters nor choices; None where not given."""

    token_mask: object = None  # (T,) bool: False marks padding, which losses do not count
    sequence_ids: object = None  # (T,) int: for losses and capacities by sequence
    token_ids: object = None  # (T,) int: the word of each token, for selection by table
    topk_indices: object = None  # (T, K) int: replayed selection
    logits: object = None  # (T, E): in place of the router's
    noise: object = None  # (T, E): in standard deviations of the noise on the logits; None: evaluation
    counts_so_far: object = None  # (E,) int: of earlier micro-batches, for the global balance loss
    coin: object = None  # (T,) in [0, 1): for routing.second_expert "random"
    priority: object = None  # (T, K): for dispatch.drop_policy "random"; the largest stay
    protected: object = None  # (T,) bool: tokens that no capacity drops
    jitter: object = None  # (T, D): factors of x; None: evaluation
    assignment_duals: object = None  # (E,) float64: prices that prove replayed indices a best balanced assignment
    multipliers: object = None  # (T, 2): what a sampled choice of selection "sparsemixer" multiplies its weights by


def check_inputs(x, params, config, num, given, keep):
    """Raises TypeError or ValueError: the argument, what was expected, what came, one fix.   Spec 0.4"""
    require_instance("config", config, MoEConfig, "use load_preset or MoEConfig")
    require_instance("num", num, Numerics, "make one with refmoe.Numerics(...)")
    num.check_environment()
    if not isinstance(keep, str) or keep not in ("all", "backward", "y"):
        require(False, ValueError, "keep", "'all', 'backward' or 'y'", repr(keep), "choose one of these")
    if not is_plain(x) or x.ndim != 2:
        wanted, fix = f"a NumPy array of shape (T, {config.hidden_size})", "give one row a token"
        require(is_plain(x), TypeError, "x", wanted, type(x).__name__, fix)
        require(False, ValueError, "x", wanted, f"shape {x.shape}", fix)
    num.check_stored("x", x, (len(x), config.hidden_size))
    require_instance("given", given, Given, "build it with refmoe.Given(...)", "Given")
    _check_params(params, config, num, () if given.logits is None else _OF_LOGITS)
    _check_given(given, len(x), config, num)


# What a router computes is finite: what makes it must be.
_FINITE_PARAMS = ("selection_bias", "router_norm", "expert_scale", "global_scale", "soft_scale")


# What makes logits: with given ones nobody reads these values, and a router's may be a million.
_OF_LOGITS = ("w_router", "router_bias", "w_noise")


def _check_params(params, config, num, unread):
    fix, shared = "use init_params or assemble_params", getattr(params, "shared", None)
    require_instance("params", params, MoEParams, fix, "MoEParams")
    require_instance("params.shared", shared, SharedParams | None, fix, "SharedParams or None")
    named, shapes = name_params(params), parameter_shapes(config)
    for name, (shape, _) in shapes.items():
        array, fix = named.pop(name, None), "the configuration needs it"
        if array is None:
            require(False, ValueError, f"params.{name}", f"an array of shape {shape}", "None", fix)
        if name in INTEGER_PARAMS:
            _check_table(array, shape, config)
        elif callable(array):  # a source of expert weights: its experts are checked as they are read
            got = getattr(array, "shape", f"a {type(array).__name__} without a shape")
            require(got == shape, ValueError, f"params.{name}", f"shape {shape}", got, "check the source")
        else:
            num.check_stored(f"params.{name}", array, shape, name not in unread)
    for name in named:
        fix = "the configuration does not have it: leave it out"
        require(False, ValueError, f"params.{name}", "None", "an array", fix)
    for name in _FINITE_PARAMS:
        array = getattr(params, name)
        if array is None:
            continue
        ok = bool(np.isfinite(array).all())
        require(ok, ValueError, f"params.{name}", "finite values", "infinities or NaN", "replace them")


def _check_table(table, shape, config):
    _check_integers("params.hash_table", table, shape, "iu")
    E = config.num_choices
    outside = table[(table < 0) | (table >= E)]
    fix = "a table holds ids of experts"
    require(not outside.size, ValueError, "params.hash_table", f"ids from 0 to {E - 1}", outside[:1], fix)
    selection.require_distinct("params.hash_table", table, "each row to name an expert once", "replace the repeat")


# --- what is given ---------------------------------------------------------------------------------------------------

_GIVEN_SHAPES = {
    "token_mask": ("T",),
    "sequence_ids": ("T",),
    "token_ids": ("T",),
    "topk_indices": ("T", "K"),
    "counts_so_far": ("E",),
    "protected": ("T",),
}

_BOOLEAN = ("token_mask", "protected")


def _check_given(given, num_tokens, config, num):
    """What is there, and what ought to be: of the rest there is nothing to look at."""
    there = [name for name, array in zip(Given._fields, given, strict=True) if array is not None]
    for name in dict.fromkeys((*there, *config.needs_given)):
        _GIVEN_CHECKS[name](name, given, num_tokens, config, num)


def _check_counted(name, given, num_tokens, config, num):
    """Integers, or booleans, of the sizes of this batch."""
    sizes = {"T": num_tokens, "K": _slots(given.topk_indices, config), "E": config.num_choices}
    shape = tuple(sizes[axis] for axis in _GIVEN_SHAPES[name])
    _check_integers(f"given.{name}", getattr(given, name), shape, "b" if name in _BOOLEAN else "iu")


def _check_replay(name, given, num_tokens, config, num):
    _check_counted(name, given, num_tokens, config, num)
    ok, fix = config.routing.selection != "soft", "a soft mixture chooses nobody"
    require(ok, ValueError, "given.topk_indices", "None with routing.selection 'soft'", "an array", fix)
    selection.check_given(given.topk_indices, config.num_choices)


def _check_logits(name, given, num_tokens, config, num):
    num.check_stored("given.logits", given.logits, (num_tokens, config.num_logits))


def _slots(topk_indices, config):
    """K; for a rule that gives a token any number of experts, what a replayed selection has."""
    fixed = config.routing.selection not in VARIABLE_SELECTIONS
    return config.top_k if fixed or np.ndim(topk_indices) != 2 else topk_indices.shape[1]


def _check_drawn(name, given, num_tokens, config, num):
    """Numbers that were drawn before: those a rule reads, and no others."""
    shapes, array, argument = given_shapes(config, num_tokens), getattr(given, name), f"given.{name}"
    fix = "no rule of this configuration reads it: leave it out"
    require(name in shapes, ValueError, argument, "None", "an array", fix)
    shape, fix = shapes[name][0], "draw it before: the layer has no randomness of its own"
    require(array is not None, ValueError, argument, f"an array of shape {shape}", "None", fix)
    num.check_stored(argument, array, shape)
    ok = bool(((array >= 0) & (array < 1)).all()) if name == "coin" else bool(np.isfinite(array).all())
    wanted = "numbers from 0 up to, not including, 1" if name == "coin" else "finite numbers"
    require(ok, ValueError, argument, wanted, "others", "draw it again")


def _check_protected(name, given, num_tokens, config, num):
    _check_counted(name, given, num_tokens, config, num)
    fix = "nothing is dropped without a capacity"
    require(config.dispatch.limited, ValueError, "given.protected", "None without a capacity", "an array", fix)


def _check_token_ids(name, given, num_tokens, config, num):
    ids, V = given.token_ids, config.routing.hash_vocab_size
    fix = "only selection 'hash' reads it: leave it out"
    require(V, ValueError, "given.token_ids", "None", "an array", fix)
    fix = "pass the id of each token in the vocabulary, or replay given.topk_indices"
    ok = ids is not None or given.topk_indices is not None
    require(ok, ValueError, "given.token_ids", f"ids from 0 to {V - 1}", "None", fix)
    if ids is not None:
        _check_counted(name, given, num_tokens, config, num)
        outside, wanted = ids[(ids < 0) | (ids >= V)], f"ids from 0 to {V - 1}"
        require(len(outside) == 0, ValueError, "given.token_ids", wanted, outside[:1], "correct the ids")


def _check_multipliers(name, given, num_tokens, config, num):
    ok = config.routing.selection == "sparsemixer" and given.topk_indices is not None
    wanted, fix = "None without a sampled choice of selection 'sparsemixer'", "pass given.topk_indices with them"
    require(ok, ValueError, "given.multipliers", wanted, "an array", fix)
    num.check_stored("given.multipliers", given.multipliers, (num_tokens, 2))
    ok = bool(np.isfinite(given.multipliers).all())
    require(ok, ValueError, "given.multipliers", "finite numbers", "others", "they are 1 or 1/3")


def _check_duals(name, given, num_tokens, config, num):
    prices, argument = given.assignment_duals, "given.assignment_duals"
    ok = config.routing.selection == "assignment" and given.topk_indices is not None
    wanted, fix = "None without given.topk_indices of selection 'assignment'", "pass both, or leave it out"
    require(ok, ValueError, argument, wanted, "an array", fix)
    ok, fix = isinstance(prices, np.ndarray) and prices.dtype == np.float64, "use refmoe.selection.solve_assignment"
    got = getattr(prices, "dtype", type(prices).__name__)
    require(ok, TypeError, argument, "a NumPy array of float64", got, fix)
    ok = prices.shape == (config.num_choices,) and bool(np.isfinite(prices).all())
    require(ok, ValueError, argument, f"{config.num_choices} finite numbers", f"shape {prices.shape}", fix)


def _check_sequences(name, given, num_tokens, config, num):
    fix = "pass them, or count by batch"
    require(given.sequence_ids is not None, ValueError, "given.sequence_ids", "the sequence of each token", "None", fix)
    _check_counted(name, given, num_tokens, config, num)


def _check_counts_so_far(name, given, num_tokens, config, num):
    _check_counted(name, given, num_tokens, config, num)
    counts, loss = given.counts_so_far, config.losses.balance
    ok = loss is not None and loss.scope == "global"
    fix = "set losses.balance.scope='global'"
    require(ok, ValueError, "given.counts_so_far", "None without a global balance loss", "an array", fix)
    choices = config.top_k if loss.counts == "all" else 1
    wanted = f"non-negative counts that sum to a multiple of {choices}"
    ok = (counts >= 0).all() and int(counts.sum()) % choices == 0
    require(ok, ValueError, "given.counts_so_far", wanted, counts.tolist(), "pass the running sum of balance_counts")


# field of `Given` -> its check: (name, given, num_tokens, config, num); asked where it is there, or must be
_GIVEN_CHECKS = {
    "token_mask": _check_counted,
    "sequence_ids": _check_sequences,
    "token_ids": _check_token_ids,
    "topk_indices": _check_replay,
    "logits": _check_logits,
    "noise": _check_drawn,
    "counts_so_far": _check_counts_so_far,
    "coin": _check_drawn,
    "priority": _check_drawn,
    "protected": _check_protected,
    "jitter": _check_drawn,
    "assignment_duals": _check_duals,
    "multipliers": _check_multipliers,
}


def _check_integers(argument, array, shape, kinds):
    if not is_plain(array) or array.dtype.kind not in kinds:
        wanted = "a NumPy array of " + ("booleans" if kinds == "b" else "integers")
        got = array.dtype if is_plain(array) else type(array).__name__
        require(False, TypeError, argument, wanted, got, "convert it with .astype")
    if array.shape != shape:
        require(False, ValueError, argument, f"shape {shape}", array.shape, "give one entry for each")


def check_upstream(d_y, x, record, params, config, num, d_losses, d_logits, into):
    """Raises TypeError or ValueError for an upstream gradient or a record of another x.   Spec 0.4"""
    num.check_stored("d_y", d_y, x.shape)
    _check_record(record, len(x), config, num)
    if d_logits is not None:
        num.check_stored("d_logits", d_logits, (len(x), config.num_logits))
    if d_losses is not None:
        _check_d_losses(d_losses, config)
    if into is not None:
        _check_into(into, params, config, num)


def _check_record(record, num_tokens, config, num):
    """A record of these tokens, by this configuration and profile, as far as types, presence and sizes tell."""
    ok, fix = getattr(record, "routing", None) is not None, "run moe_forward with keep='backward'"
    require(ok, ValueError, "record", "a MoERecord kept with 'all' or 'backward'", "one without its stages", fix)
    tokens, wanted = len(record.routing.logits), f"the record of these {num_tokens} tokens"
    require(tokens == num_tokens, ValueError, "record", wanted, f"one of {tokens}", fix)
    for name, ok, expected, got in _record_facts(record, num_tokens, config, num):
        require(ok, ValueError, f"record.{name}", f"{expected}, as this configuration and profile make it", got, fix)


def _record_facts(record, num_tokens, config, num):
    """(name, holds, expected, got) of what the way back reads first."""
    soft, experts = config.routing.selection == "soft", config.experts
    has = {"soft": soft, "plan": not soft, "shared": experts.shared_intermediate_size > 0}
    for name, wanted in has.items():
        got = getattr(record, name) is not None
        yield name, got == wanted, "a stage" if wanted else "None", "a stage" if got else "None"
    for name in LOSSES:
        wanted, got = getattr(config.losses, name) is not None, getattr(record.losses, name) is not None
        yield f"losses.{name}", got == wanted, "a loss" if wanted else "None", "a loss" if got else "None"
    wanted, logits = (num_tokens, config.num_logits), record.routing.logits
    ok = (logits.shape, logits.dtype) == (wanted, num.dtype)
    yield "routing.logits", ok, f"{np.dtype(num.dtype)} {wanted}", f"{logits.dtype} {logits.shape}"
    got, F = record.experts.gate_rows is not None, config.intermediate_size
    yield "experts.gate_rows", got == experts.gated, "rows" if experts.gated else "None", "rows" if got else "None"
    got = record.experts.hidden_rows.shape[-1]
    yield "experts.hidden_rows", got == F, f"rows of {F}", f"rows of {got}"
    if not soft:
        E, slots = config.num_choices, (num_tokens, _slots(record.routing.topk_indices, config))
        found = len(record.plan.tokens_per_expert), record.plan.slot_row.shape
        yield "plan", found == (E, slots), f"{E} experts and slots {slots}", f"{found[0]} and {found[1]}"


def _check_d_losses(d_losses, config):
    require_instance("d_losses", d_losses, Losses, "build it with refmoe.Losses(...)", "Losses")
    for name in LOSSES:
        value, has = getattr(d_losses, name), getattr(config.losses, name) is not None
        ok = value is None or (has and is_finite_number(value))
        wanted = "a finite scalar or None" if has else "None, as there is no such loss"
        require(ok, ValueError, f"d_losses.{name}", wanted, repr(value), "give one number for each loss")


def _check_into(into, params, config, num):
    require_instance("into", into, MoEParams, "give arrays, sinks or None by field", "MoEParams")
    if params.shared is not None:
        fix = "the layer has a shared expert: give a SharedParams, of None if need be"
        require_instance("into.shared", into.shared, SharedParams, fix, "SharedParams")
    shapes = parameter_shapes(config)
    for name, place in name_params(into).items():
        fix = "only parameters of the configuration have gradients"
        require(name in shapes and name not in CONSTANT_PARAMS, ValueError, f"into.{name}", "None", "a place", fix)
        if not hasattr(place, "take") or isinstance(place, np.ndarray):
            num.check_stored(f"into.{name}", place, shapes[name][0])
