"""A mixture-of-experts block of PyTorch around `grouped_mm`, forward and by autograd, judged by refmoe.

    python torch_block.py BUNDLE ACCUMULATOR        f32, or mixed for a bundle of bf16
"""

import json
import sys
from pathlib import Path

import torch
from torch.nn.functional import grouped_mm, silu

from refmoe.testing import assert_conforms

# --- recipe ---
GOLDEN, MIX_1, MIX_2 = (z - (1 << 64) for z in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def shift(z, by):
    """z >> by of int64 words that stand for unsigned ones."""
    return (z >> by) & ((1 << 64 - by) - 1)


def mix(z):
    z = (z ^ shift(z, 30)) * MIX_1  # products of int64 wrap around
    z = (z ^ shift(z, 27)) * MIX_2
    return z ^ shift(z, 31)


def key(seed, name):
    h = torch.tensor(0xCBF29CE484222325 - (1 << 64))
    for byte in name.encode():
        h = (h ^ byte) * 0x100000001B3
    return mix(h + seed * torch.tensor(GOLDEN))


def bell(w):
    return (sum(shift(w, at) & 0xFFFF for at in (0, 16, 32, 48)) - 131070).float() / 65536


RECIPES = {
    "bell": bell,
    "bf16": lambda w: (bell(w).view(torch.int32) & -0x10000).view(torch.float32),
    "wide": lambda w: (w >> 63 << 31 | shift(w, 32) % 40 + 107 << 23 | w & 0x7FFFFF).int().view(torch.float32),
    "dyadic": lambda w: (shift(w, 32) % 9 - 4).float(),
    "unit": lambda w: shift(w, 40).float() / 2**24,
}


def generate(recipe, name, seed, exponent, shape):
    count = torch.arange(1, torch.Size(shape).numel() + 1)
    return (RECIPES[recipe](mix(key(seed, name) + count * GOLDEN)) * 2.0**exponent).view(shape)


# --- end ---


def inputs(bundle):
    """What the manifest's recipes make: x and weights by name, d_y; and how many experts a token has."""
    manifest = json.loads(Path(bundle, "manifest.json").read_text())
    dtype = {"float32": torch.float32, "bf16": torch.bfloat16}[manifest["run"]["store"]]
    made = {}
    for tensor in manifest["tensors"]:
        row = manifest["inputs"].get(tensor["name"])
        if row:
            values = generate(row["recipe"], row["name"], row["seed"], row["exponent"], tensor["shape"])
            made[tensor["name"].removeprefix("params.")] = values.to(dtype).requires_grad_()
    return made, made.pop("d_y"), manifest["config"]["top_k"]


def block(x, w_router, w_gate, w_up, w_down, top_k):
    """y (T, D) of x (T, D): a softmax over the kept logits, rows sorted by expert, three grouped products."""
    kept, ids = (x.float() @ w_router.float().T).topk(top_k)
    order = ids.flatten().argsort(stable=True)
    offsets = ids.flatten().bincount(minlength=len(w_gate)).cumsum(0).int()
    rows, weights = x[order // top_k], kept.softmax(1).flatten()[order]
    hidden = silu(grouped_mm(rows, w_gate.mT, offs=offsets)) * grouped_mm(rows, w_up.mT, offs=offsets)
    y_rows = grouped_mm(hidden, w_down.mT, offs=offsets)
    return torch.zeros_like(x).index_add(0, order // top_k, (y_rows * weights[:, None]).to(x.dtype))


def verify(bundle, accumulator):
    # --- five lines ---
    given, d_y, top_k = inputs(bundle)  # x and the weights, upstream gradient: the bundle's bits, by recipe
    y = block(**given, top_k=top_k)  # your kernel
    y.backward(d_y)
    grads = {"grads.d_x" if name == "x" else f"grads.params.{name}": t.grad for name, t in given.items()}
    assert_conforms(bundle, {"y": y, **grads}, accumulator)
    # --- end ---


if __name__ == "__main__":
    verify(*sys.argv[1:])
