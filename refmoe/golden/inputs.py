"""What a case reads: tokens, upstream gradient, parameters, given arrays, and a row for each: where it comes from.

Spec 7.2. A row is {"source": "recipe", "name", "recipe", "seed", "exponent"}, {"source": "ids" or "table", "name",
"seed", "count"}, {"source": "blocks", "length"}, {"source": "stored"} for a user's own array, {"source": "packed",
"format", "block"} for weights of a checkpoint, or a recipe's with {"source": "quantised", "scheme", "rule"}.
"""

from math import prod
from typing import NamedTuple

import numpy as np

from ..formats import FORMATS, Packed
from ..recipes import (
    INTEGER_PARAMS,
    assemble_params,
    generate,
    generate_ids,
    generate_table,
    given_shapes,
    parameter_shapes,
)
from .packed import SOURCE, packed_row
from .quantised import SOURCE as QUANTISED
from .quantised import quantised
from .weights import RecipeWeights

EXPERT_LEAVES = ("w_gate", "w_up", "w_down", "b_gate", "b_up", "b_down")  # their first axis is the expert axis
GIVEN = (
    *("token_mask", "sequence_ids", "token_ids", "topk_indices", "logits", "counts_so_far"),
    *("coin", "priority", "protected", "noise", "jitter", "multipliers", "assignment_duals"),
)
LAZY_BYTES = 8 << 20  # expert weights above this are made one expert at a time


class Inputs(NamedTuple):
    """The inputs of one case. `rows`: name -> manifest row; names are x, d_y, params.NAME and given.NAME."""

    x: object  # (T, D)
    d_y: object  # (T, D) or None
    params: object  # MoEParams
    given: dict  # name -> array
    rows: dict


def is_expert_tensor(name):
    """Does the tensor's digest go expert by expert?"""
    return ".params." in f".{name}" and name.removesuffix(".dequantised").rpartition(".")[2] in EXPERT_LEAVES


def recipe_rows(config, num, tokens, backward, seed):
    """The rows of a case that is made by recipe alone. Narrow stores take the 8-bit recipe, which each can hold."""
    recipe = "bf16" if num.store in ("bf16", "fp16") else "bell"
    exponents = {"x": 0, "d_y": 0} if backward else {"x": 0}
    shapes = parameter_shapes(config)
    exponents |= {f"params.{name}": e for name, (_, e) in shapes.items() if name not in INTEGER_PARAMS}
    rows = {n: {"source": "recipe", "name": n.removeprefix("params."), "recipe": recipe, "seed": seed, "exponent": e}
            for n, e in exponents.items()}  # fmt: skip
    drawn = {name: rule for name, (_, rule) in given_shapes(config, tokens).items()}
    rows |= {f"given.{n}": {"source": "recipe", "name": n, "recipe": rule, "seed": seed, "exponent": 0}
             for n, rule in drawn.items()}  # fmt: skip
    for name in shapes.keys() & set(INTEGER_PARAMS):
        rows[f"params.{name}"] = {"source": "table", "name": name, "seed": seed, "count": config.num_choices}
    if config.routing.hash_vocab_size:
        count = config.routing.hash_vocab_size
        rows["given.token_ids"] = {"source": "ids", "name": "token_ids", "seed": seed, "count": count}
    if needs_sequences(config):
        rows["given.sequence_ids"] = {"source": "blocks", "length": max(1, -(-tokens // 2))}
    return rows


def needs_sequences(config):
    """Does a rule count within sequences? Then the batch is two of them unless the user says otherwise."""
    return config.dispatch.capacity_scope == "sequence" or config.needs_sequences


def input_shapes(config, tokens):
    """name -> shape of x, d_y, every parameter and every drawn array of a case."""
    shapes = {f"params.{name}": shape for name, (shape, _) in parameter_shapes(config).items()}
    shapes |= {f"given.{name}": shape for name, (shape, _) in given_shapes(config, tokens).items()}
    return shapes | dict.fromkeys(("x", "d_y"), (tokens, config.hidden_size))


def make_inputs(config, num, tokens, rows, stored, pool):
    """The arrays the rows describe. `stored` gives those of source "stored": a mapping from name to carrier.

    Raises ValueError or TypeError naming the array that does not fit the configuration.
    """
    shapes = input_shapes(config, tokens)
    known = shapes.keys() | {f"given.{name}" for name in GIVEN}
    unknown = sorted(rows.keys() - known)
    if unknown:
        raise ValueError(f"inputs: expected {', '.join(sorted(known))}, got {unknown[0]!r}; leave it out")
    made = {name: _make(name, row, shapes.get(name), tokens, num, stored, pool) for name, row in rows.items()}
    params = assemble_params({n.removeprefix("params."): a for n, a in made.items() if n.startswith("params.")})
    given = {n.removeprefix("given."): a for n, a in sorted(made.items()) if n.startswith("given.")}
    return Inputs(made["x"], made.get("d_y"), params, given, rows)


def _make(name, row, shape, tokens, num, stored, pool):
    if row["source"] == SOURCE:
        return _require_packed(name, stored[name], shape)
    if row["source"] == QUANTISED:
        return quantised(row, _by_recipe(name, row, _matrices(name, shape), num, pool))
    if row["source"] == "stored":
        of_integers = name.startswith("given.") or _is_table(name)
        return stored[name] if of_integers else num.check_stored(name, stored[name], shape)
    if row["source"] == "blocks":
        return np.arange(tokens, dtype=np.int64) // row["length"]
    if row["source"] == "ids":
        return generate_ids(row["name"], (tokens,), row["seed"], row["count"])
    if row["source"] == "table":
        return generate_table(row["name"], shape, row["seed"], row["count"])
    return _by_recipe(name, row, shape, num, pool)


def _by_recipe(name, row, shape, num, pool):
    if is_expert_tensor(name) and prod(shape) * 4 > LAZY_BYTES:
        return RecipeWeights(row, shape, num.dtype, file_dtype(name, num), pool)
    return generate(row["name"], shape, row["seed"], row["recipe"], row["exponent"]).astype(num.dtype, copy=False)


def _matrices(name, shape):
    if not is_expert_tensor(name) or len(shape) != 3:
        raise ValueError(f"{name}: expected matrices of experts to quantise, got shape {shape}; correct the file")
    return shape


def _require_packed(name, packed, shape):
    if not is_expert_tensor(name) or packed.shape != shape:
        raise ValueError(f"{name}: expected weights of experts of shape {shape}, got {packed.shape}; correct the file")
    return packed


def _is_table(name):
    return name.removeprefix("params.") in INTEGER_PARAMS


def file_dtype(name, num):
    """The safetensors type of the tensor `name` under a policy."""
    if _is_table(name):
        return "I64"
    return FORMATS[num.format_of(stage_name(name))].safetensors


def stage_name(name):
    """The stage a tensor's name stands for: "grads.params.shared.w_gate" is d_w_gate, "losses.z" itself."""
    leaf = name.rpartition(".")[2]
    if name.startswith("grads.params."):
        return f"d_{leaf}"
    return name if name.startswith("losses.") else leaf


def prepare(config, num, tokens, backward, seed, arrays):
    """(tokens, rows, stored): the rows of a case in which the user's `arrays` take the place of recipes.

    Raises ValueError for a name that the configuration has no use for, or a number of tokens that x contradicts.
    """
    x = arrays.get("x")
    if x is not None and x.ndim != 2:
        raise ValueError(f"x: expected shape (T, {config.hidden_size}), got {x.shape}; give one row a token")
    if x is not None and tokens not in (None, len(x)):
        raise ValueError(f"--tokens: expected {len(x)}, the rows of x in --inputs, got {tokens}; leave --tokens out")
    tokens = len(x) if x is not None else 64 if tokens is None else tokens
    rows = recipe_rows(config, num, tokens, backward, seed)
    known = {name.removeprefix("params."): name for name in rows} | {name: f"given.{name}" for name in GIVEN}
    stored = {}
    for name, array in arrays.items():
        if name not in known:
            raise ValueError(
                f"--inputs: expected arrays named {', '.join(sorted(known))}, got {name!r}; rename or remove it"
            )
        stored[known[name]] = array
    sources = {name: packed_row(a) if isinstance(a, Packed) else {"source": "stored"} for name, a in stored.items()}
    return tokens, rows | sources, stored
