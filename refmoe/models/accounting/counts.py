"""Parameters, storage, arithmetic and traffic of a model, from its tensors.   Spec 0.3

Sizes are exact integers; only expectations over random routing are floating-point numbers.
"""

from fractions import Fraction
from math import ceil

from .tensors import choices, model_tensors, moe_blocks

PARTS = ("router", "routed", "shared", "latent", "dense", "attention", "embeddings", "other")
BLOCK_8, BLOCK_4 = 128, 32  # elements that share a scale: 128 x 128 (DeepSeek-V3 FP8), 32 along a row (OCP MXFP4)
_EIGHT_BIT_PARTS = {"routed", "shared", "latent", "dense", "attention"}


def counted(info, experts=None):
    """{"total", "active", "active_without_input_embedding"}: parameters, exact.

    active = everything except the routed experts a token does not choose. A tied table is one table: without the input
    embedding it is not counted at all.
    """
    tensors = model_tensors(info, experts)
    table = sum(t.size for t in tensors if t.part == "embeddings" and t.name == "input")
    active = _whole(sum(t.active * t.size for t in tensors))
    return {
        "total": sum(t.count * t.size for t in tensors),
        "active": active,
        "active_without_input_embedding": active - table,
    }


def by_part(info):
    """part -> {"total", "active"}, for the parts that the model has, in the order of `PARTS`."""
    tensors = model_tensors(info)
    rows = {}
    for part in PARTS:
        own = [t for t in tensors if t.part == part]
        if own:
            total = sum(t.count * t.size for t in own)
            rows[part] = {"total": total, "active": _whole(sum(t.active * t.size for t in own))}
    return rows


def _whole(number):
    """An integer where it is one; a mean over experts without weights may be a fraction."""
    number = Fraction(number)
    return int(number) if number.denominator == 1 else float(number)


# --- storage ---------------------------------------------------------------------------------------------------------


def _fp32(tensor):
    return 4 * tensor.size


def _bf16(tensor):
    return 2 * tensor.size


def _fp8(tensor):
    """One byte an element and a float32 scale a 128 x 128 block; all but projections and experts stay in bf16."""
    if tensor.part not in _EIGHT_BIT_PARTS or len(tensor.shape) != 2:
        return _bf16(tensor)
    rows, columns = tensor.shape
    return tensor.size + 4 * ceil(Fraction(rows, BLOCK_8)) * ceil(Fraction(columns, BLOCK_8))


def _mxfp4(tensor):
    """Half a byte an element and one scale byte for 32 of a row, in the routed experts; the rest in bf16."""
    if tensor.part != "routed" or len(tensor.shape) != 2:
        return _bf16(tensor)
    rows, columns = tensor.shape
    return rows * ceil(Fraction(columns, BLOCK_4)) * (BLOCK_4 // 2 + 1)


STORAGE = {"fp32": _fp32, "bf16": _bf16, "fp8": _fp8, "mxfp4": _mxfp4}


def stored_bytes(info):
    """format -> bytes of all parameters, scales included."""
    tensors = model_tensors(info)
    return {name: sum(t.count * of(t) for t in tensors) for name, of in STORAGE.items()}


# --- one token -------------------------------------------------------------------------------------------------------


def expected_experts(num_experts, top_k, batch):
    """E (1 - (1 - k/E)^N): distinct experts that N tokens meet in a layer if each chooses k of E at random.

    Real routers are skewed and meet fewer.
    """
    return num_experts * (1.0 - float(1 - Fraction(top_k) / num_experts) ** batch)


def cost(info, batch=1):
    """What one of `batch` tokens costs when they are decoded together.

    flops: 2 for each element of each matrix that a token meets, output head included, input look-up and the attention
    over the context excluded. weight_bytes: format -> bytes of weights read, shared among the batch: everything once,
    but of the routed experts only those that are expected to be met, and of the input table a row a token.
    """
    tensors = model_tensors(info)
    E, k = choices(info)
    met = expected_experts(E, k, batch)
    return {
        "batch": batch,
        "flops": _whole(sum(2 * t.active * t.size for t in tensors if _multiplied(t, info))),
        "experts_met": met,
        "experts": E,
        "moe_layers": moe_blocks(info),
        "weight_bytes": {name: _read(tensors, of, met / E, batch, info) for name, of in STORAGE.items()},
    }


def _multiplied(tensor, info):
    look_up = tensor.part == "embeddings" and tensor.name == "input" and not info["model"].get("tied_embeddings")
    return len(tensor.shape) > 1 and not look_up


def _read(tensors, of, fraction, batch, info):
    """Bytes of weights a token, in one storage format."""
    routed = sum(t.count * of(t) for t in tensors if t.part == "routed")
    rest = sum(t.count * of(t) for t in tensors if t.part not in ("routed", "embeddings"))
    tables = [t for t in tensors if t.part == "embeddings"]
    if not tables:  # of the MoE layers alone
        return (routed * fraction + rest) / batch
    head = of(tables[-1])  # the output table, or the tied one
    row = of(tables[0]) / tables[0].shape[0]
    return (routed * fraction + rest + head) / batch + row
