"""A mixture-of-experts block of JAX around `ragged_dot`, forward and by `vjp`, judged by refmoe.

    python jax_block.py BUNDLE ACCUMULATOR        f32
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.lax import bitcast_convert_type, ragged_dot

from refmoe.testing import assert_conforms

jax.config.update("jax_enable_x64", True)  # for the recipe's words; everything else says its type
jax.config.update("jax_default_matmul_precision", "highest")

# --- recipe ---
GOLDEN, WORD = 0x9E3779B97F4A7C15, 1 << 64


def mix(z):
    z = (z ^ z >> 30) * jnp.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ z >> 27) * jnp.uint64(0x94D049BB133111EB)
    return z ^ z >> 31


def key(seed, name):
    h = 0xCBF29CE484222325
    for byte in name.encode():
        h = (h ^ byte) * 0x100000001B3 % WORD
    return mix(jnp.uint64((h + seed * GOLDEN) % WORD))


def to_float(bits):
    return bitcast_convert_type(bits.astype(jnp.uint32), jnp.float32)


def bell(w):
    return (sum((w >> at & 0xFFFF).astype(jnp.int32) for at in (0, 16, 32, 48)) - 131070).astype(jnp.float32) / 65536


RECIPES = {
    "bell": bell,
    "bf16": lambda w: to_float(bitcast_convert_type(bell(w), jnp.uint32) & 0xFFFF0000),
    "wide": lambda w: to_float(w >> 63 << 31 | (w >> 32) % 40 + 107 << 23 | w & 0x7FFFFF),
    "dyadic": lambda w: ((w >> 32) % 9).astype(jnp.float32) - 4,
    "unit": lambda w: (w >> 40).astype(jnp.float32) / 2**24,
}


def generate(recipe, name, seed, exponent, shape):
    count = jnp.arange(1, jnp.prod(jnp.array(shape)) + 1, dtype=jnp.uint64)
    return (RECIPES[recipe](mix(key(seed, name) + count * jnp.uint64(GOLDEN))) * 2.0**exponent).reshape(shape)


# --- end ---


def inputs(bundle):
    """What the manifest's recipes make: x and weights by name, d_y; and how many experts a token has."""
    manifest = json.loads(Path(bundle, "manifest.json").read_text())
    made = {}
    for tensor in manifest["tensors"]:
        row = manifest["inputs"].get(tensor["name"])
        if row:
            values = generate(row["recipe"], row["name"], row["seed"], row["exponent"], tensor["shape"])
            made[tensor["name"].removeprefix("params.")] = values
    return made, made.pop("d_y"), manifest["config"]["top_k"]


def block(given, top_k):
    """y (T, D): a softmax over the kept logits, rows sorted by expert, three ragged products."""
    x, w_gate, w_up, w_down = (given[name] for name in ("x", "w_gate", "w_up", "w_down"))
    kept, ids = jax.lax.top_k(x @ given["w_router"].T, top_k)
    order = ids.flatten().argsort(stable=True)
    counts = jnp.bincount(ids.flatten(), length=len(w_gate)).astype(jnp.int32)
    rows, weights = x[order // top_k], jax.nn.softmax(kept).flatten()[order]
    hidden = jax.nn.silu(ragged_dot(rows, w_gate.mT, counts)) * ragged_dot(rows, w_up.mT, counts)
    return jnp.zeros_like(x).at[order // top_k].add(ragged_dot(hidden, w_down.mT, counts) * weights[:, None])


def verify(bundle, accumulator):
    given, d_y, top_k = inputs(bundle)
    y, back = jax.vjp(lambda given: block(given, top_k), given)
    (grads,) = back(d_y)
    named = {"grads.d_x" if name == "x" else f"grads.params.{name}": gradient for name, gradient in grads.items()}
    assert_conforms(bundle, {"y": y, **named}, accumulator)


if __name__ == "__main__":
    verify(*sys.argv[1:])
