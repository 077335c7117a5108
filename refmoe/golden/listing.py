"""What a bundle will hold, before it is made: names, shapes, bytes; and what making it may take.   Spec 7.4.2

The layer runs as ever, but for the products with experts' weights, which give zeros of the right shape. Router and plan
are the real ones, so the number of rows, and all that hangs on it, is that of the case.
"""

import time
from math import prod
from typing import NamedTuple

import numpy as np

from ..formats import Packed
from ..inputs import Given
from ..layer import moe_backward, moe_forward
from ..numerics import Numerics
from ..recipes import generate
from ..safetensors import DTYPES
from .digests import GRADIENT, sha256, stored_dtype
from .inputs import file_dtype, is_expert_tensor, make_inputs, stage_name
from .packed import SCALE_TYPES, codes_type
from .progress import duration
from .quantised import SOURCE as QUANTISED
from .ranks import check_ranks, rank_tensors
from .report import peak_mebibytes
from .run import flattened
from .storage import byte_size
from .unfinished import expected_amounts
from .weights import AHEAD, CACHE_BYTES, MAKE, RecipeWeights, maker_pool


class Listed(NamedTuple):
    """One tensor of a bundle to come."""

    name: str
    dtype: str
    shape: tuple
    kind: str  # of storage
    bytes: int  # in the file


class Listing(NamedTuple):
    """tensors: [Listed]; bytes of them in the file; seconds and bytes of memory that making them may take."""

    tensors: list
    bytes: int
    seconds: float
    memory: int


class Shapes(Numerics):
    """The policy `num`, products with experts' weights left out."""

    def __init__(self, num):
        for name, value in (vars(num) | {"num": num}).items():
            object.__setattr__(self, name, value)

    def takes_codes(self, *weights):
        return True

    def contract(self, name, x_rows, w, offsets=None, bias=None):
        if len(w.shape) == 2:
            return self.num.contract(name, x_rows, w, offsets, bias)
        return np.zeros((len(x_rows), w.shape[1]), self.dtype)

    def contract_backward_x(self, name, pairs, offsets=None):
        if len(pairs[0][1].shape) == 2:
            return self.num.contract_backward_x(name, pairs, offsets)
        return np.zeros((len(pairs[0][0]), pairs[0][1].shape[2]), self.dtype)

    def contract_backward_w(self, name, d_rows, x_rows, offsets=None, acc=None):
        experts = () if offsets is None else (len(offsets) - 1,)
        return np.broadcast_to(self.dtype(0), (*experts, d_rows.shape[1], x_rows.shape[1]))


def listing(config, num, tokens, rows, stored, options):
    """The Listing of a case. Raises what making it would raise of its inputs."""
    if options.ranks is not None:
        check_ranks(config, options.ranks)
    with maker_pool() as pool:
        inputs = make_inputs(config, num, tokens, rows, stored, pool)
        shapes, given = Shapes(num), Given(**inputs.given)
        record = moe_forward(inputs.x, inputs.params, config, shapes, given=given, keep="all")
        grads = None
        if inputs.d_y is not None:
            grads = moe_backward(inputs.d_y, inputs.x, inputs.params, record, config, shapes, given=given)
    found = [_listed(*row, options.narrow) for row in _inputs(inputs, num)]
    narrow = options.narrow._replace(offsets=None if record.plan is None else record.plan.expert_offsets)
    found += [_listed(*row, narrow) for row in _made(config, inputs, record, grads, shapes, options)]
    size = sum(row.bytes for row in found)
    return Listing(found, size, _seconds(config, num, tokens, rows, record), _memory(inputs, num, found))


def _inputs(inputs, num):
    """(name, dtype, shape, needed, by recipe) of what the case reads."""
    arrays = {"x": inputs.x, "d_y": inputs.d_y} | {f"given.{name}": a for name, a in inputs.given.items()}
    for name, array in arrays.items():
        if array is not None:
            yield name, _dtype(name, array, num), array.shape, inputs.rows[name]["source"] == "stored", False
    for name, array in flattened("params", inputs.params):
        row = inputs.rows[name]
        if isinstance(array, Packed):
            yield from _packed(name, array, row["source"] == QUANTISED, num)
        else:
            recipe = row["source"] in ("recipe", "table")
            yield name, file_dtype(name, num), array.shape, not recipe, recipe


def _packed(name, packed, quantised, num):
    """Codes, scales, and what a quantised case shows beside them."""
    yield name, codes_type(packed.format), (len(packed.codes), *packed.codes[0].shape), not quantised, False
    if packed.scales is not None:
        types = {format_name: dtype for dtype, format_name in SCALE_TYPES.items()}
        first = packed.scales[0]
        kind = types.get(packed.scale_format) or {4: "F32", 2: "BF16", 1: "F8_E8M0"}[first.dtype.itemsize]
        yield f"{name}.scales", kind, (len(packed.scales), *first.shape), not quantised, False
    if packed.tensor_scales is not None:
        yield f"{name}.tensor_scales", "F32", packed.tensor_scales.shape, not quantised, False
    if quantised:
        yield f"{name}.dequantised", file_dtype(name, num), packed.shape, False, False


def _made(config, inputs, record, grads, num, options):
    for name, array in (*flattened("", record), *flattened("grads", grads)):
        yield name, _dtype(name, array, num), array.shape, False, False
    if options.ranks is not None:
        for name, stage, array in rank_tensors(config, inputs.x, record, grads, num, options.ranks):
            yield name, _dtype(stage, array, num), array.shape, False, False


def _dtype(name, array, num):
    is_price = name == "given.assignment_duals"
    named = num.format_of(stage_name(name)) if array.dtype.kind == "f" and not is_price else "float64"
    return stored_dtype(array, named)


def _listed(name, dtype, shape, needed, by_recipe, narrow):
    kind, held = ("recipe", None) if by_recipe else narrow.way(name, shape, byte_size(dtype, shape), needed)
    return Listed(name, dtype, tuple(shape), kind, 0 if held is None else byte_size(dtype, held))


# --- time and memory --------------------------------------------------------------------------------------------------


def _seconds(config, num, tokens, rows, record):
    """Pieces of work times a short measurement of each, on two threads where pieces are made ahead."""
    amounts = expected_amounts(config, num, tokens, rows)
    price = _measured(config, num, record)
    products = 3 if "d_y" in rows else 1
    return (
        amounts[MAKE] * price[MAKE] / 2
        + amounts[GRADIENT] * price[GRADIENT]
        + products * _terms(config, record) * (price["terms"])
    )


def _terms(config, record):
    """Multiplications of the experts in a forward."""
    stages = [a for name, a in flattened("", record) if name.endswith(("gate_rows", "up_rows"))]
    return sum(a.size for a in stages) * config.hidden_size * (3 if config.experts.gated else 2) // len(stages or [0])


def _measured(config, num, record):
    """kind -> seconds a unit, the best of three."""
    shape = 256, min(2048, config.hidden_size)
    few = max(1, len(record.y) // 8)
    w, x = generate("w", shape, 0), generate("x", (few, shape[1]), 0)
    w, x = w.astype(num.dtype, copy=False), x.astype(num.dtype, copy=False)
    d = np.ones((few, shape[0]), num.dtype)
    made = num.contract_backward_w("d_w_up", d, x)
    return {
        MAKE: (_best(lambda: generate("w", shape, 0)) + _best(lambda: sha256(memoryview(w).cast("B")))) / w.size,
        GRADIENT: _best(lambda: (num.contract_backward_w("d_w_up", d, x), sha256(memoryview(made).cast("B"))))
        / w.nbytes,
        "terms": _best(lambda: num.contract("up_rows", x, w)) / (few * w.size),
    }


def _best(run):
    times = []
    for _ in range(3):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def _memory(inputs, num, found):
    """The process as it is, experts kept while the layer runs, what is stored, and a few gradients of one expert."""
    lazy = [a for _, a in flattened("params", inputs.params) if isinstance(a, RecipeWeights)]
    experts = [prod(a.shape[1:]) * a.dtype.itemsize for a in lazy]
    kept = sum(min(len(a), max(AHEAD + 2, CACHE_BYTES // size)) * size for a, size in zip(lazy, experts, strict=True))
    rows = 2 * sum(prod(r.shape) * DTYPES[r.dtype].itemsize for r in found if not is_expert_tensor(r.name))
    return int(peak_mebibytes() * 2**20) + kept + rows + 4 * max(experts, default=0)


def listing_report(made, title):
    """The table, and the sums below it."""
    width = max(len(row.name) for row in made.tensors)
    lines = [
        f"{row.name:{width}}  {row.dtype:8}  {_sizes(row.shape):20}  {row.kind:8}  {row.bytes:>12,}"
        for row in made.tensors
    ]
    return "\n".join([title, *lines, *_sums(made)])


def _sizes(shape):
    return " x ".join(map(str, shape)) or "scalar"


def _sums(made):
    yield f"in all {len(made.tensors)} tensors, {made.bytes:,} bytes in the file beside header and manifest"
    yield f"it may take {duration(made.seconds)} and {made.memory / 2**30:.1f} GiB of memory (an estimate)"
