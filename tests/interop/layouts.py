"""Where a transformers block keeps its parameters, and how it lays them out, against refmoe's names.

refmoe keeps one layout: w_gate, w_up (E, F, D) and w_down (E, D, F), contracted axis last. A `Layout` says for one
block where each tensor is found and in which form; nothing is guessed from a shape. Every form only cuts, transposes
and stacks, so the same function reads the parameters and, given the gradients, the gradients.
"""

from typing import NamedTuple

import numpy as np


class Layout(NamedTuple):
    """Dotted paths inside the block; None for what it does not have."""

    router: str | None = "gate.weight"  # (E, D); None where the logits are given
    shared_rows: int = 0  # the last rows of the router's matrix, which score the shared experts
    router_bias: str | None = None  # (E,)
    selection_bias: str | None = None  # (E,), or (1, E)
    hash_table: str | None = None  # (V, K) expert ids
    experts: str = "experts"
    form: str = "halves"  # a row of EXPERTS
    shared: str | None = None
    shared_form: str = "linears"  # a row of SHARED
    shared_gate: str | None = None  # (1, D)
    more: dict = {}  # other parameters as they are: name -> path


def read(layout, block, pick):
    """name -> array of every parameter, as pick(tensor) gives it: its values, or its gradient.

    The names are those of refmoe: "w_gate", "shared.w_gate" ...
    """
    named = {name: pick(find(block, path)) for name, path in layout.more.items()}
    if layout.router is not None:
        named["w_router"] = pick(find(block, layout.router))
    if layout.shared_rows:
        named["w_router"], named["w_shared_router"] = np.split(named["w_router"], [-layout.shared_rows])
    for name, path in (("router_bias", layout.router_bias), ("selection_bias", layout.selection_bias)):
        if path is not None:
            named[name] = _flat(pick(find(block, path)))
    if layout.hash_table is not None:
        named["hash_table"] = find(block, layout.hash_table).numpy()
    named |= EXPERTS[layout.form](find(block, layout.experts), pick)
    if layout.shared is not None:
        tensors = SHARED[layout.shared_form](find(block, layout.shared), pick)
        named |= {f"shared.{name}": array.reshape(-1, *array.shape[-2:]) for name, array in tensors.items()}
    if layout.shared_gate is not None:
        named["shared.w_shared_gate"] = pick(find(block, layout.shared_gate))
    return named


def find(block, path):
    """The tensor or module at a dotted path; the block itself at an empty one."""
    for name in filter(None, path.split(".")):
        block = block[name] if hasattr(block, "keys") else getattr(block, name)
    return block


def _flat(array):
    return None if array is None else array.reshape(-1)


def _last_two(array):
    return np.ascontiguousarray(np.swapaxes(array, -1, -2))


# --- routed experts ---------------------------------------------------------------------------------------------------


def _halves(experts, pick):
    """gate_up_proj (E, 2F, D): the gate's rows, then up's; down_proj (E, D, F)."""
    w_gate, w_up = np.split(pick(experts.gate_up_proj), 2, axis=1)
    return {"w_gate": w_gate, "w_up": w_up, "w_down": pick(experts.down_proj)}


def _halves_transposed(experts, pick):
    """gate_up_proj (E, D, 2F): the gate's columns, then up's; down_proj (E, F, D)."""
    w_gate, w_up = np.split(_last_two(pick(experts.gate_up_proj)), 2, axis=1)
    return {"w_gate": w_gate, "w_up": w_up, "w_down": _last_two(pick(experts.down_proj))}


def _halves_transposed_biased(experts, pick):
    """As above, with gate_up_proj_bias (E, 2F) in halves and down_proj_bias (E, D)."""
    b_gate, b_up = np.split(pick(experts.gate_up_proj_bias), 2, axis=1)
    return _halves_transposed(experts, pick) | {"b_gate": b_gate, "b_up": b_up, "b_down": pick(experts.down_proj_bias)}


def _interleaved_transposed_biased(experts, pick):
    """gate_up_proj (E, D, 2F): g0, u0, g1, u1 ...; its bias alike; down_proj (E, F, D)."""
    both, bias = _last_two(pick(experts.gate_up_proj)), pick(experts.gate_up_proj_bias)
    return {
        "w_gate": both[:, ::2], "w_up": both[:, 1::2], "w_down": _last_two(pick(experts.down_proj)),
        "b_gate": bias[:, ::2], "b_up": bias[:, 1::2], "b_down": pick(experts.down_proj_bias),
    }  # fmt: skip


def _flattened(experts, pick):
    """w1 (gate), v1 (up) and w2 (down), each (E F, D); w2 is used as (F, D), so it is transposed here."""
    E, mlp = experts.num_experts, experts.mlp
    w_gate, w_up, w_down = (pick(w).reshape(E, -1, w.shape[-1]) for w in (mlp.w1, mlp.v1, mlp.w2))
    return {"w_gate": w_gate, "w_up": w_up, "w_down": _last_two(w_down)}


def _plain(experts, pick):
    """No gate: up_proj (E, F, D), down_proj (E, D, F)."""
    return {"w_up": pick(experts.up_proj), "w_down": pick(experts.down_proj)}


def _modules(experts, pick):
    """No gate, and a module an expert: expert_<e>.wi (F, D), expert_<e>.wo (D, F)."""
    every = [experts[f"expert_{e}"] for e in range(len(experts))]
    return {
        "w_up": np.stack([pick(module.wi.weight) for module in every]),
        "w_down": np.stack([pick(module.wo.weight) for module in every]),
    }


def _two_stacks(block, pick):
    """input_linear.weight (E, 2F, D) in halves, output_linear.weight (E, D, F), on the block itself."""
    w_gate, w_up = np.split(pick(block.input_linear.weight), 2, axis=1)
    return {"w_gate": w_gate, "w_up": w_up, "w_down": pick(block.output_linear.weight)}


def _halves_more_gates(experts, pick):
    """Halves, and rows of gate_up_proj for experts that have no weights; nothing reads them."""
    w_gate, w_up = np.split(pick(experts.gate_up_proj)[: len(experts.down_proj)], 2, axis=1)
    return {"w_gate": w_gate, "w_up": w_up, "w_down": pick(experts.down_proj)}


EXPERTS = {
    "halves, more gates": _halves_more_gates,
    "halves": _halves,
    "halves, transposed": _halves_transposed,
    "halves, transposed, biased": _halves_transposed_biased,
    "interleaved, transposed, biased": _interleaved_transposed_biased,
    "flattened": _flattened,
    "no gate": _plain,
    "a module an expert": _modules,
    "two stacks": _two_stacks,
}


# --- the shared expert ------------------------------------------------------------------------------------------------


def _linears(mlp, pick):
    """gate_proj, up_proj (S, D) and down_proj (D, S)."""
    parts = (("w_gate", mlp.gate_proj), ("w_up", mlp.up_proj), ("w_down", mlp.down_proj))
    return {name: pick(linear.weight) for name, linear in parts}


def _linears_plain(mlp, pick):
    """No gate: up_proj (S, D), down_proj (D, S)."""
    return {"w_up": pick(mlp.up_proj.weight), "w_down": pick(mlp.down_proj.weight)}


def _stacks(mlp, pick):
    """A row an expert: gate_proj, up_proj (n, S, D) and down_proj (n, D, S)."""
    return {"w_gate": pick(mlp.gate_proj), "w_up": pick(mlp.up_proj), "w_down": pick(mlp.down_proj)}


def _fused_linears(first, second):
    def form(mlp, pick):
        w_gate, w_up = np.split(pick(getattr(mlp, first).weight), 2, axis=0)
        return {"w_gate": w_gate, "w_up": w_up, "w_down": pick(getattr(mlp, second).weight)}

    return form


SHARED = {
    "stacks": _stacks,
    "linears": _linears,
    "linears, no gate": _linears_plain,
    "fused linear": _fused_linears("gate_up_proj", "down_proj"),  # (2S, D) in halves
    "fused input_linear": _fused_linears("input_linear", "output_linear"),  # (2S, D) in halves
}
