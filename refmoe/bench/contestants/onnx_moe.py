"""onnxruntime's MoE operator of com.microsoft, on the CPU: it routes by the logits, gate and up interleaved."""

import os

import numpy as np

from ..child import Refused
from . import Loaded

OPSET, IR = 20, 9
FAR = 1e30  # a limit that nothing reaches


def prepare(inputs, options):
    """Calls: "MoE"."""
    import onnxruntime

    case, own = inputs.case, inputs.case.config.experts
    if case.phase != "forward" or case.store not in ("float32", "fp16"):
        raise Refused("the operator has a forward alone, in float32 and fp16")
    if not own.gated or own.activation != "silu":
        raise Refused("written for silu-gated experts")
    session_options = onnxruntime.SessionOptions()
    session_options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    session_options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model(case), session_options, providers=["CPUExecutionProvider"])
    kind = np.float16 if case.store == "fp16" else np.float32
    feed = {n: onnxruntime.OrtValue.ortvalue_from_numpy(a) for n, a in arrays(inputs, kind).items()}

    def call():
        return session.run_with_ort_values(["y"], feed)[0]

    facts = {"onnxruntime": onnxruntime.__version__, "threads": session_options.intra_op_num_threads}
    return Loaded({"MoE": call}, facts, read=lambda y: y.numpy())


def arrays(inputs, kind):
    """The operator's inputs by name."""
    made = {"x": inputs.x, "logits": inputs.logits, "first": interleaved(inputs, "w"), "down": inputs.stack("w_down")}
    if inputs.case.config.experts.biases:
        made |= {"b_first": interleaved(inputs, "b"), "b_down": inputs.stack("b_down")}
    return {name: np.ascontiguousarray(array, kind) for name, array in made.items()}


def interleaved(inputs, kind):
    """(E, 2 F, ...): a row of gate, a row of up."""
    gate = inputs.shapes()[f"{kind}_gate"]
    made = np.empty((inputs.case.config.num_experts, 2 * gate[0], *gate[1:]), np.float32)
    for e in range(len(made)):
        made[e, 0::2], made[e, 1::2] = inputs.expert(f"{kind}_gate", e), inputs.expert(f"{kind}_up", e)
    return made


def model(case):
    """One node, every array an input, as bytes."""
    from onnx import TensorProto, helper

    c, own = case.config, case.config.experts
    names = ["x", "logits", "first", "b_first", "down", "b_down"]
    present = [n for n in names if own.biases or not n.startswith("b_")]
    node = helper.make_node(
        "MoE", [n if n in present else "" for n in names], ["y"], domain="com.microsoft", k=c.top_k,
        activation_type="swiglu", swiglu_fusion=1, normalize_routing_weights=int(c.routing.normalize),
        activation_alpha=float(own.alpha),
        activation_beta=float(own.linear_offset), swiglu_limit=float(own.limit or FAR),
    )  # fmt: skip
    kind = TensorProto.FLOAT16 if case.store == "fp16" else TensorProto.FLOAT
    ranks = {"first": 3, "down": 3}
    values = [helper.make_tensor_value_info(n, kind, [None] * ranks.get(n, 2)) for n in present]
    graph = helper.make_graph([node], "experts", values, [helper.make_tensor_value_info("y", kind, [None, None])])
    domains = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=domains, ir_version=IR).SerializeToString()
