"""Every tensor of a model's text backbone, from the figures in its preset.   Spec 0.3

The layer's own tensors are those of `recipes.parameter_shapes`, so the count and the layer cannot disagree.
"""

from fractions import Fraction
from math import prod
from typing import NamedTuple

from ...config import MoEConfig
from ...recipes import parameter_shapes
from .mixers import MIXERS

_OF_EXPERTS = {"w_gate", "w_up", "w_down", "b_gate", "b_up", "b_down"}  # stacks with the experts in front

_OF_ROUTER = {
    "w_router", "router_bias", "selection_bias", "router_norm", "w_noise", "w_shared_router", "expert_scale",
    "global_scale", "hash_table",
}  # fmt: skip


class Tensor(NamedTuple):
    """One shape: where it belongs, how many copies the model holds, how many of them a token reads."""

    part: str
    name: str
    shape: tuple
    count: int
    active: Fraction

    @property
    def size(self):
        return prod(self.shape)


def model_tensors(info, experts=None):
    """All tensors of the model a preset describes, as a tuple of `Tensor`.

    experts: how many routed experts with weights a token uses in a layer; by default the configuration's top_k, or
    the stated mean where experts without weights stand among the choices.
    """
    model = info["model"]
    if not is_whole(info):
        return tuple(_moe(info, model["moe_layers"], experts))
    found = _ends(model, hidden_size(info))
    for block in model["blocks"]:
        found += _block(info, block, experts)
    return tuple(found)


def is_whole(info):
    """Whether the figures of the whole text backbone are known, or only the number of its MoE layers."""
    return "blocks" in info["model"]


def hidden_size(info):
    """D, the width of the residual stream."""
    return info["full"]["hidden_size"]


def choices(info, experts=None):
    """(E, k): experts with weights in a layer, and how many of them a token uses, as integer or fraction."""
    full = info["full"]
    stated = (info["model"] or {}).get("mean_experts", full["top_k"])
    return full["num_experts"], Fraction(stated if experts is None else experts)


def moe_blocks(info):
    """The number of MoE layers."""
    if not is_whole(info):
        return info["model"]["moe_layers"]
    return sum(block["count"] * block["ffns"].count("moe") for block in info["model"]["blocks"])


def _ends(model, D):
    """Embeddings, the final norm and what else stands outside the blocks."""
    table = (model["vocab_size"], D)
    found = [_once("embeddings", "input", table)]
    if not model["tied_embeddings"]:
        found.append(_once("embeddings", "output", table))
    if model.get("head_bias"):
        found.append(_once("other", "head_bias", table[:1]))
    found += [_repeated("other", name, (D,), model.get("final_norms", 1)) for name in _norm_names(model)]
    return found + [_once("other", name, tuple(shape)) for name, shape in model.get("extra", {}).items()]


def _block(info, block, experts):
    model, D, n = info["model"], hidden_size(info), block["count"]
    found = [_repeated("other", name, (D,), n * block["norms"]) for name in _norm_names(model)]
    for mixer in block["mixers"]:
        figures = {key: value for key, value in model["mixers"][mixer].items() if key != "kind"}
        shapes = MIXERS[model["mixers"][mixer]["kind"]](D, **figures)
        found += [_repeated("attention", f"{mixer}.{name}", shape, n) for name, shape in shapes.items()]
    for ffn in block["ffns"]:
        found += _moe(info, n, experts) if ffn == "moe" else _dense(model["dense"], D, n)
    return found


def _norm_names(model):
    return ("norm", "norm_bias") if model.get("norm_bias") else ("norm",)


def _dense(dense, D, n):
    names = ("w_gate", "w_up", "w_down") if dense["gated"] else ("w_up", "w_down")
    F = dense["intermediate_size"]
    return [_repeated("dense", name, (D, F) if name == "w_down" else (F, D), n) for name in names]


def _moe(info, n, experts):
    """The MoE layer's tensors, n times: routed experts one by one, the rest as they stand."""
    E, k = choices(info, experts)
    shapes = _layer_shapes(info)
    found = [Tensor("routed", name, shapes[name][1:], n * E, n * k) for name in shapes if name in _OF_EXPERTS]
    rest = {name: shape for name, shape in shapes.items() if name not in _OF_EXPERTS}
    return found + [_repeated(_part(name), name, shape, n) for name, shape in rest.items()]


def _part(name):
    """Where a parameter belongs that is not one expert's: by what its name says."""
    if name.startswith("shared."):
        return "shared"
    if "latent" in name or name == "post_expert_norm":
        return "latent"
    return "router" if name in _OF_ROUTER else "other"


def _layer_shapes(info):
    """name -> shape of the layer's parameters, shared experts as one wide matrix each."""
    shapes = {name: shape for name, (shape, _) in parameter_shapes(MoEConfig.from_dict(info["full"])).items()}
    stacks = {name: shape for name, shape in shapes.items() if name.startswith("shared.") and len(shape) == 3}
    return shapes | {name: (n * rows, columns) for name, (n, rows, columns) in stacks.items()}


def _once(part, name, shape):
    return _repeated(part, name, shape, 1)


def _repeated(part, name, shape, count):
    return Tensor(part, name, tuple(shape), count, Fraction(count))
