"""JAX's ragged_dot on rows sorted by expert, gate and up in one product, compiled."""

import numpy as np

from ..child import Refused
from . import Loaded
from .numpy_loop import is_plain


def prepare(inputs, options):
    """Calls: "ragged_dot"."""
    import jax
    import jax.numpy as jnp

    case = inputs.case
    if case.phase == "backward" or not is_plain(case.config.experts):
        raise Refused("written for silu-gated experts, forward and training step")
    kind = {"float32": jnp.float32, "bf16": jnp.bfloat16, "fp16": jnp.float16}[case.store]
    F = case.config.intermediate_size
    order = np.argsort(inputs.topk_indices, axis=None, kind="stable")
    sizes = jnp.asarray(np.bincount(inputs.topk_indices.ravel(), minlength=case.config.num_experts), jnp.int32)
    tokens = jnp.asarray(order // case.config.top_k)
    first = jnp.asarray(np.swapaxes(inputs.joined(), 1, 2), kind)
    down = jnp.asarray(np.swapaxes(inputs.stack("w_down"), 1, 2), kind)
    x, d_y = jnp.asarray(inputs.x, kind), jnp.asarray(inputs.d_y, kind)
    weights = jnp.asarray(inputs.topk_weights.ravel()[order], kind)

    def layer(x, weights, first, down):
        both = jax.lax.ragged_dot(x[tokens], first, sizes)
        rows = jax.lax.ragged_dot(jax.nn.silu(both[:, :F]) * both[:, F:], down, sizes)
        return jnp.zeros_like(x).at[tokens].add(rows * weights[:, None])

    def step(*arrays):
        y, back = jax.vjp(layer, *arrays)
        return y, back(d_y)

    compiled = jax.jit(layer if case.phase == "forward" else step)

    def call():
        made = jax.block_until_ready(compiled(x, weights, first, down))
        return made if case.phase == "forward" else made[0]

    return Loaded({"ragged_dot": call}, {"jax": jax.__version__}, read=lambda y: np.asarray(y.astype(jnp.float32)))
