"""A trace set of FlashInfer-Bench: definitions, workloads, and the tensors that they read.   Spec 7.14

    definitions/OP_TYPE/NAME.json    what is computed: axes, inputs, outputs, a reference in PyTorch
    workloads/OP_TYPE/NAME.jsonl     one line a workload: sizes, and where each input lies
    blob/workloads/OP_TYPE/NAME/NAME_UUID.safetensors    the inputs; beside them the golden
        output, under the bundle's name

Two kinds: "moe", tokens and their given experts to the routed sum, and "grouped_gemm", rows sorted by expert times
the matrices of the experts. Source: flashinfer-ai/flashinfer-bench, docs/flashinfer_trace and flashinfer_bench/data.
"""

import json
import uuid
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...safetensors import DTYPES, write_tensors
from ..packed import Experts
from . import references

TYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "I32": "int32"}
# What the reference of a layer does not compute: field -> the value under which there is none of it.
PLAIN = {"activation": "silu", "gated": True, "alpha": 1.0, "limit": None, "linear_offset": 0.0, "biases": False,
         "gate_softcap": None, "up_softcap": None, "weight_position": "output", "zero_experts": 0,
         "identity_experts": 0, "constant_experts": 0, "latent_size": 0, "post_expert_norm": "none"}  # fmt: skip


class Stage(NamedTuple):
    """One computation of a case. inputs, output: (name there, its axes, (dtype, elements))."""

    op_type: str
    name: str
    source: str  # the bundle's name of the output
    what: str
    axes: dict  # name -> size, or None for one that each workload has its own of
    inputs: list
    output: tuple
    reference: str
    constraint: str


def write(directory, manifest, config, tensors):
    """Writes the trace set; lines for people. Raises ValueError for a case that its forms cannot say."""
    _require_plain(config, tensors)
    stages = [_layer(config, tensors), *_products(config, tensors)]
    for stage in stages:
        _write_stage(Path(directory), manifest, stage)
    return [f"{stage.op_type:<13} {stage.name}: {stage.source}" for stage in stages]


def _require_plain(config, tensors):
    experts, dispatch = config.experts, config.dispatch
    types = [_take(tensors, name)[0] for name in ("x", "params.w_gate" if experts.gated else "x")]
    odd = [f"experts.{f} {getattr(experts, f)!r}" for f, value in PLAIN.items() if getattr(experts, f) != value]
    odd += ["a soft mixture"] if config.routing.selection == "soft" else []
    odd += ["a capacity"] if dispatch.capacity or dispatch.capacity_factor else []
    odd += [f"values of type {kind}" for kind in types if kind not in TYPES]
    if odd:
        raise ValueError(f"flashinfer-bench: expected plain silu experts in 32 or 16 bits, got {odd[0]}; use --to raw")


def _take(tensors, name):
    """(dtype, elements) of a tensor of the case."""
    if name not in tensors:
        raise ValueError(f"flashinfer-bench: expected {name} in the bundle, it is not there; make one that holds it")
    return tensors[name]


def _int32(tensors, name):
    return "I32", np.asarray(_take(tensors, name)[1]).astype(DTYPES["I32"])


def _layer(config, tensors):
    """Tokens, the experts they were given and the weights of these -> the sum over their slots."""
    D, F, E = config.hidden_size, config.intermediate_size, config.num_experts
    (dtype, x), ids = _take(tensors, "x"), _int32(tensors, "routing.topk_indices")
    up, gate = _take(tensors, "params.w_up")[1], _take(tensors, "params.w_gate")[1]
    joined = Experts((E, 2 * F, D), DTYPES[dtype], lambda e: np.concatenate([up[e], gate[e]]))
    return Stage(
        "moe", f"moe_{TYPES[dtype]}_topk{ids[1].shape[1]}_e{E}_h{D}_i{F}", "routed",
        "The routed part of a mixture-of-experts layer: the weighted sum of down(silu(gate) * up) over a token's given "
        "experts. gemm1_weights holds the rows of up, then those of gate. A slot with id -1 is unused.",
        {"seq_len": None, "num_experts": E, "hidden_size": D, "intermediate_size": F, "gemm1_out_size": 2 * F,
         "top_k": ids[1].shape[1]},
        [("hidden_states", ("seq_len", "hidden_size"), (dtype, x)),
         ("topk_ids", ("seq_len", "top_k"), ids),
         ("topk_weights", ("seq_len", "top_k"), _take(tensors, "routing.topk_weights")),
         ("gemm1_weights", ("num_experts", "gemm1_out_size", "hidden_size"), (dtype, joined)),
         ("gemm2_weights", ("num_experts", "hidden_size", "intermediate_size"), _take(tensors, "params.w_down"))],
        ("output", ("seq_len", "hidden_size"), _take(tensors, "routed")),
        references.LAYER, "gemm1_out_size == 2 * intermediate_size",
    )  # fmt: skip


PRODUCTS = (  # rows, matrices, what they make
    ("experts.x_rows", "params.w_gate", "experts.gate_rows"),
    ("experts.x_rows", "params.w_up", "experts.up_rows"),
    ("experts.hidden_rows", "params.w_down", "experts.y_rows"),
)


def _products(config, tensors):
    """Rows sorted by expert, times the matrix of each: gate, up and down."""
    for rows, weights, out in PRODUCTS:
        (dtype, a), (_, b) = _take(tensors, rows), _take(tensors, weights)
        E, N, K = b.shape
        yield Stage(
            "grouped_gemm", f"grouped_gemm_{TYPES[dtype]}_e{E}_n{N}_k{K}", out,
            "c[r] = b[e] @ a[r] for the rows r = offsets[e] .. offsets[e + 1] - 1 of each group e, some of them empty.",
            {"num_rows": None, "num_experts": E, "num_offsets": E + 1, "N": N, "K": K},
            [("a", ("num_rows", "K"), (dtype, a)), ("b", ("num_experts", "N", "K"), (dtype, b)),
             ("offsets", ("num_offsets",), _int32(tensors, "plan.expert_offsets"))],
            ("c", ("num_rows", "N"), _take(tensors, out)),
            references.PRODUCT, "num_offsets == num_experts + 1",
        )  # fmt: skip


def _definition(stage):
    described = {name: {"type": "var"} if size is None else {"type": "const", "value": size}
                 for name, size in stage.axes.items()}  # fmt: skip
    return {
        "name": stage.name, "op_type": stage.op_type, "description": stage.what, "tags": ["status:draft", "refmoe"],
        "axes": described, "constraints": [stage.constraint],
        "inputs": {name: _spec(axes, made) for name, axes, made in stage.inputs},
        "outputs": {stage.output[0]: _spec(*stage.output[1:])}, "reference": stage.reference,
    }  # fmt: skip


def _spec(axes, made):
    return {"shape": list(axes), "dtype": TYPES[made[0]]}


def _workload(stage, path, number):
    sizes = dict(zip(stage.inputs[0][1], stage.inputs[0][2][1].shape))
    inputs = {name: {"type": "safetensors", "path": path, "tensor_key": name} for name, _, _ in stage.inputs}
    free = {axis: sizes[axis] for axis, size in stage.axes.items() if size is None}
    workload = {"uuid": number, "axes": free, "inputs": inputs}
    return {"definition": stage.name, "workload": workload, "solution": None, "evaluation": None}


def _write_stage(root, manifest, stage):
    """Its definition, its tensors, and a line more in the list of workloads."""
    number = str(uuid.uuid5(uuid.NAMESPACE_URL, f"refmoe:{manifest['digest']}:{stage.source}"))
    blob = root / "blob/workloads" / stage.op_type / stage.name / f"{stage.name}_{number}.safetensors"
    definition = root / "definitions" / stage.op_type / f"{stage.name}.json"
    workloads = root / "workloads" / stage.op_type / f"{stage.name}.jsonl"
    for path in (blob, definition, workloads):
        path.parent.mkdir(parents=True, exist_ok=True)
    held = {name: made for name, _, made in stage.inputs} | {stage.source: stage.output[2]}
    write_tensors(blob, held)
    definition.write_text(json.dumps(_definition(stage), indent=2) + "\n", encoding="ascii")
    with open(workloads, "a", encoding="ascii") as file:
        file.write(json.dumps(_workload(stage, blob.relative_to(root).as_posix(), number)) + "\n")
