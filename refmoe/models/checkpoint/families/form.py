"""What a family of checkpoints declares, as data: where its tensors lie, and which rules its code has built in.

Nothing is guessed from a shape. Every declaration was read in the modelling and conversion code of transformers 5.23.0
(models/<model_type>/, conversion_mapping.py), where a row's comment names no other source.
"""

from typing import NamedTuple

# Text models, and the ones inside multimodal models, before and after transformers 5.
ROOTS = "model.layers.{layer}.", "language_model.model.layers.{layer}.", "model.language_model.layers.{layer}."


class Place(NamedTuple):
    """Where the tensors of one parameter lie, relative to the layer's root; {e} stands for an expert's number."""

    name: str
    layout: str = "out_in"  # in_out: stored transposed
    stack: str = "each"  # a tensor an expert; "stacked": (E, ..); "flat": experts one below the other; "blocks": MXFP4
    part: str = "whole"  # of the output axis: "first" or "second" half, "even" or "odd" rows
    scales: str = ""  # ends the name of the scales beside 8-bit codes, after the name of these; "": no such codes


class Family(NamedTuple):
    """One model_type. Fields of config.json are written a|b (either name) or (a|b, value if absent or null); a[] is a
    list with a value for each layer.
    """

    fields: dict  # field of MoEConfig -> its name in config.json
    rules: dict  # field of MoEConfig -> the value the family's code has built in
    tensors: dict  # w_router and other parameters that are no expert weights -> names tried in turn
    experts: tuple  # variants, each parameter -> Place; the one that is there in full is read
    shared: tuple = ()  # the same for the shared expert, with w_shared_gate
    shared_width: tuple = ()  # fields of config.json whose product it is; 0 when the first is absent or 0
    expects: tuple = ()  # (field of config.json, the values this reading is right for, if the field is there) ...
    roots: tuple = ROOTS
    decoder_root: str = ""  # encoder-decoder models: their decoder's layers count on after the encoder's
    one_before: tuple = ()  # of `tensors`, those stored with an axis of length 1 before the others
    groups_if: tuple = ()  # (field of config.json, value): the groups count only then
    shared_rows: bool = False  # the router's matrix goes on with the rows that score the shared experts
    when: tuple = ()  # (field of config.json, value, rules that hold then, whatever other fields say)
    hash_layers: tuple = ()  # fields with the kind of each layer, and with the number of first layers that are such
    since_5: tuple = ()  # variants instead of `experts` if config.json's transformers_version is 5 or later


# --- variants of expert storage ---------------------------------------------------------------------------------------


def each(block, gate="gate_proj", up="up_proj", down="down_proj", experts="experts.{e}."):
    """A tensor an expert, (out, in); gate None for plain experts."""
    names = {"w_gate": gate, "w_up": up, "w_down": down}
    paths = {leaf: f"{block}{experts}{name}.weight" for leaf, name in names.items() if name}
    return {leaf: Place(path, scales="_scale_inv") for leaf, path in paths.items()}


def fused(gate_up, down, layout="out_in", stack="stacked", order=("first", "second"), scales=""):
    """All experts in two tensors, gate and up joined: as halves, gate first, or interleaved (even rows are gate)."""
    gate, up = (Place(gate_up, layout, stack, part, scales) for part in order)
    return {"w_gate": gate, "w_up": up, "w_down": Place(down, layout, stack, scales=scales)}


def both(block, **names):
    """The names on disk before transformers 5, and the fused ones it works with."""
    return each(block, **names), fused(f"{block}experts.gate_up_proj", f"{block}experts.down_proj", scales="_scale_inv")


def biases(gate_up, down, order):
    parts = zip(("b_gate", "b_up"), order, strict=True)
    return {leaf: Place(gate_up, part=part) for leaf, part in parts} | {"b_down": Place(down)}


MLP, SPARSE, FEED = "mlp.", "block_sparse_moe.", "feed_forward."
W123 = {"gate": "w1", "up": "w3", "down": "w2"}
EVEN_ODD = ("even", "odd")
SHARED_EXPERTS = (each("mlp.", experts="shared_experts."),)

# --- fields and rules that several families share ---------------------------------------------------------------------

SIZES = {"hidden_size": "hidden_size", "top_k": "num_experts_per_tok", "hidden_act": "hidden_act"}
COUNT = {"num_experts": "num_local_experts|num_experts"}
WIDE, NARROW = {"intermediate_size": "intermediate_size"}, {"intermediate_size": "moe_intermediate_size"}
FLAG = {"routing.normalize": "norm_topk_prob"}
GROUPS = {"routing.num_groups": "n_group", "routing.top_groups": "topk_group"}
GROUPS_OR_ONE = {path: (name, 1) for path, name in GROUPS.items()}
SCALED = {"routing.scaling_factor": "routed_scaling_factor"}
SOFTMAX = {"routing.score_fn": "softmax"}
NORM0 = {**SOFTMAX, "routing.normalize": True}
LOGITS0 = {**NORM0, "routing.selection_base": "logits"}  # the K best logits, then a softmax over these
SIGMOID = {"routing.score_fn": "sigmoid", "routing.selection_bias": True}
EPS20 = {**SIGMOID, "routing.norm_eps": 1e-20}
GATE = {"w_router": ("mlp.gate.weight",)}
