"""One case, computed: every tensor of the forward and of the way back, in causal order, with its digest.   Spec 7.4

`golden` and `check` both go through `compute`, so a bundle is compared with what the same code makes again.
"""

from math import prod
from typing import NamedTuple

import numpy as np

from .. import selection
from ..formats import Packed
from ..inputs import Given
from ..layer import moe_backward, moe_forward
from ..recipes import MoEParams, SharedParams, parameter_shapes
from ..safetensors import DTYPES
from . import storage
from .digests import DigestSink, stored_dtype, tensor_digest, to_codes
from .inputs import file_dtype, is_expert_tensor, stage_name
from .narrow import Options
from .packed import Experts, stored_parts
from .quantised import SOURCE as QUANTISED
from .ranks import rank_tensors
from .sparing import Sparing
from .storage import byte_size
from .weights import RecipeWeights

# Section of the specification that defines a tensor: by the longest part of its name that stands here.
STAGES = {
    "x": "0.3", "d_y": "0.3", "given": "0.4", "params": "7.2",
    "routing.jittered_x": "1.1", "routing.router_x": "1.1", "routing.raw_logits": "1.1", "routing.clean_logits": "1.1",
    "routing.noise_logits": "1.1", "routing.noise_std": "1.1", "routing.logits": "1.1",
    "routing.scores": "1.2", "routing.choice_scores": "1.3", "routing.group_scores": "1.3",
    "routing.topk_indices": "1.4", "routing.margin": "1.7", "routing.raw_topk_weights": "1.5",
    "routing.shared_logits": "1.5", "routing.shared_scores": "1.5",
    "routing.unscaled_shared_weights": "1.5", "routing.shared_weights": "1.5",
    "routing.unscaled_topk_weights": "1.5", "routing.topk_weights": "1.5", "routing.lse": "1.7", "plan": "2.1",
    "experts.x_rows": "2.3", "experts.weighted_x_rows": "3.3", "experts.gate_rows": "3.1", "experts.up_rows": "3.1",
    "experts.hidden_rows": "3.2", "experts.weighted_hidden_rows": "3.3", "experts.y_rows": "3.1",
    "routed": "2.4", "shared": "3.4",
    "experts.latent_x": "3.7", "experts.latent_rms": "3.7", "experts.normed_latent_x": "3.7",
    "experts.scaled_y_rows": "3.7", "grads.d_scaled_y_rows": "5.5",
    "experts.y_rms": "3.7", "experts.normed_y_rows": "3.7", "experts.latent_routed": "2.4",
    "experts.latent_routed_rms": "3.7", "experts.normed_latent_routed": "3.7", "unnormed_y": "3.8", "output_rms": "3.8",
    "grads.latent": "5.5", "grads.d_normed_y_rows": "5.6", "grads.d_unnormed_y": "5.9", "grads.d_routed": "5.9",
    "grads.d_x_residual": "5.9",
    "experts.constant_logits": "3.6", "experts.constant_weights": "3.6",
    "losses.balance": "4.1", "losses.z": "4.2", "losses.importance": "4.3", "losses.device": "4.6",
    "losses.communication": "4.6", "losses.mutual_information": "4.8", "losses.load": "4.9",
    "routing.router_gram": "4.10", "losses.orthogonality": "4.10",
    "losses.balance_counts": "4.1", "y": "3.5",
    "ranks": "2.11", "soft": "2.10", "grads.soft": "5.6", "grads.params.soft_scale": "5.6",
    "grads": "5.9", "grads.d_x_router": "5.1", "grads.d_scores": "5.3", "grads.d_logits_task": "5.3",
    "grads.d_logits_balance": "5.8", "grads.d_logits_z": "5.8", "grads.d_logits_importance": "5.8",
    "grads.d_logits_device": "5.8", "grads.d_logits_communication": "5.8",
    "grads.d_logits_mutual_information": "5.8",
    "grads.d_logits_load": "5.8", "grads.d_clean_logits_load": "5.8", "grads.d_noise_std_load": "5.8",
    "grads.d_router_gram_orthogonality": "5.8",
    "grads.d_topk_weights": "5.6", "grads.d_y_rows": "5.6", "grads.d_x_experts": "5.6",
    "grads.d_weighted_x_rows": "5.4",
    "grads.rows.d_constant_weights": "5.6", "grads.rows.d_constant_logits": "5.6",
    "grads.params.w_constant": "5.6", "grads.params.constant": "5.6",
    "grads.rows": "5.4", "grads.rows.d_gate_rows": "5.5",
    "grads.rows.d_up_rows": "5.5", "grads.shared": "5.7", "grads.d_x_shared": "5.7", "grads.params": "5.4",
    "grads.router": "5.1", "grads.router.d_unscaled_topk_weights": "5.3",
    "grads.params.router_norm": "5.1", "grads.params.w_noise": "5.1",
    "grads.params.expert_scale": "5.3", "grads.params.global_scale": "5.3",
    "grads.params.w_router": "5.1", "grads.params.router_bias": "5.1", "grads.params.shared": "5.7",
}  # fmt: skip


class Made(NamedTuple):
    """One tensor of a case as it goes into a bundle."""

    name: str
    role: str  # input, parameter, record, gradient
    dtype: str  # safetensors name
    shape: tuple
    sha256: str
    kind: str  # of storage: stored, sample, experts, recipe, digest
    codes: object  # the elements, those of some experts, the sample, or None


def compute(config, inputs, num, pool, say=None, options=None):
    """Yields a `Made` for each tensor of the case, in causal order; d_y None leaves out the way back.

    pool: Makers. say: called with the name of each step. options: `Options`, of which the container does not matter.
    """
    options, say, num = options or Options(), say or str, Sparing(num, pool)
    narrow = options.narrow
    for name, array in (("x", inputs.x), ("d_y", inputs.d_y), *((f"given.{n}", a) for n, a in inputs.given.items())):
        if array is not None:
            yield _made(name, "input", array, num, narrow, inputs.rows[name]["source"] == "stored")
    given = Given(**inputs.given)
    say("forward")
    record = moe_forward(inputs.x, inputs.params, config, num, given=given, keep="all")
    _refuse_several(given, record, num)
    narrow = narrow._replace(offsets=None if record.plan is None else record.plan.expert_offsets)
    say("weights")
    for name, array in flattened("params", inputs.params):
        yield from _parameter(name, array, inputs.rows[name], num, narrow)
    for name, array in flattened("", record):
        yield _made(name, "record", array, num, narrow)
    grads = None
    if inputs.d_y is not None:
        say("backward")
        into = gradient_sinks(config, num, pool, narrow)
        grads = moe_backward(inputs.d_y, inputs.x, inputs.params, record, config, num, given=given, into=into)
    for name, array in flattened("grads", grads):
        yield _made(name, "gradient", array, num, narrow)
    if options.ranks is not None:
        yield from _ranks(config, inputs, record, grads, num, options)


def _ranks(config, inputs, record, grads, num, options):
    jittered = config.routing.jitter == "block" and record.routing.jittered_x is not None
    x = record.routing.jittered_x if jittered else inputs.x
    for name, stage, array in rank_tensors(config, x, record, grads, num, options.ranks):
        yield _made(name, "view", array, num, options.narrow, stage=stage)


def gradient_sinks(config, num, pool, narrow):
    """A digest sink for each gradient of expert weights above the size limit, None for all others; or None."""
    sinks = {}
    for name, (shape, _) in parameter_shapes(config).items():
        full = f"grads.params.{name}"
        if is_expert_tensor(full) and prod(shape) * np.dtype(num.dtype).itemsize > storage.SIZE_LIMIT:
            sinks[name] = DigestSink(shape, file_dtype(full, num), full, pool, narrow.ids(full))
    if not sinks:
        return None
    shared = SharedParams(*(sinks.get(f"shared.{f}") for f in SharedParams._fields))
    routed = {f: sinks.get(f) for f in MoEParams._fields if f != "shared"}
    return MoEParams(**routed, shared=shared if config.experts.shared_intermediate_size else None)


def flattened(prefix, value):
    """(dotted name, array) of every field that is not None, in the order of the fields."""
    if value is None:
        return
    if isinstance(value, tuple):
        for field in value._fields:
            yield from flattened(f"{prefix}.{field}" if prefix else field, getattr(value, field))
    else:
        yield prefix, value if hasattr(value, "shape") else np.asarray(value)


def _is_price(name):
    return name == "given.assignment_duals"  # binary64 in every profile


def _refuse_several(given, record, num):
    """A golden file holds an assignment only if no other is as good: solvers may return any of several."""
    if given.assignment_duals is None:
        return
    routing = record.routing
    if not selection.is_unique_assignment(routing.logits, routing.topk_indices, given.assignment_duals):
        raise ValueError("given.topk_indices: expected the only best assignment, got one of several; change the logits")


def _made(name, role, array, num, narrow, needed=False, stage=None):
    """Stored as it is, in part, or above the size limit as digest and sample; `needed`: stored whatever its size."""
    if isinstance(array, DigestSink):
        return _of_sink(name, role, array, narrow)
    array = np.asarray(array)
    is_stage = array.dtype.kind == "f" and not _is_price(name)
    format_name = num.format_of(stage or stage_name(name)) if is_stage else "float64"
    dtype = stored_dtype(array, format_name)
    codes = to_codes(array, dtype)
    digest = tensor_digest(codes, is_expert_tensor(name))
    return Made(name, role, dtype, codes.shape, digest, *narrow.held(name, codes, needed))


def _of_sink(name, role, sink, narrow):
    digest, kept = sink.result()
    held = ("experts", np.stack(list(sink.whole.values()))) if sink.whole else ("sample", kept)
    return Made(name, role, sink.dtype, sink.shape, digest, *(held if narrow.wants(name) else ("digest", None)))


def _parameter(name, array, row, num, narrow):
    """A parameter by recipe is its digest; a user's own is stored whatever its size, or `check` could not recompute."""
    if isinstance(array, Packed):
        made = _quantised(name, array, num, narrow) if row["source"] == QUANTISED else _packed(name, array)
        yield from made
        return
    dtype = file_dtype(name, num)
    if isinstance(array, RecipeWeights):
        yield Made(name, "parameter", dtype, array.shape, array.digest(), "recipe", None)
        return
    codes = to_codes(array, dtype)
    digest = tensor_digest(codes, is_expert_tensor(name))
    by_recipe = row["source"] in ("recipe", "table")
    yield Made(
        name, "parameter", dtype, codes.shape, digest, "recipe" if by_recipe else "stored", None if by_recipe else codes
    )


def _packed(name, packed):
    """The codes and the scales, whatever their size: the layer read nothing else."""
    for part, (dtype, codes) in stored_parts(name, packed).items():
        digest = tensor_digest(codes, is_expert_tensor(part))
        yield Made(part, "parameter", dtype, codes.shape, digest, "stored", codes)


def _quantised(name, packed, num, narrow):
    """Codes, scales and, for people, the products rounded once to the format of the case; above the limit sampled."""
    dtype = file_dtype(name, num)
    format_name = num.format_of(stage_name(name))
    rounded = Experts(packed.shape, DTYPES[dtype], lambda e: to_codes(packed.rounded(e, format_name), dtype))
    for part, (kind, codes) in (stored_parts(name, packed) | {f"{name}.dequantised": (dtype, rounded)}).items():
        by_expert = is_expert_tensor(part)
        if by_expert and byte_size(kind, codes.shape) > storage.SIZE_LIMIT:
            yield _sampled_by_expert(part, kind, codes, narrow)
            continue
        whole = np.stack(list(codes)) if by_expert else codes
        held = narrow.held(part, whole)
        yield Made(part, "parameter", kind, whole.shape, tensor_digest(whole, by_expert), *held)


def _sampled_by_expert(name, dtype, codes, narrow):
    sink = DigestSink(codes.shape, dtype, whole=narrow.ids(name))
    for e, part in enumerate(codes):
        sink.take_codes(e, part)
    return _of_sink(name, "parameter", sink, narrow)


def stage_of(name):
    """The section of the specification that defines a tensor."""
    while name not in STAGES:
        name = name.rpartition(".")[0]
    return STAGES[name]
