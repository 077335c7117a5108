"""Writes the file that written.c replays: norms, AdamW, attention, products of rows, and NumPy's bits of them.

    python tests/cross/written.py FILE

The format is described at the head of written.c.
"""

import struct
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import kernel_cases as made  # noqa: E402

from refmoe.lab import optimisers  # noqa: E402
from refmoe.lab.decoder import DecoderConfig, DecoderNumerics, DenseConfig  # noqa: E402
from refmoe.lab.decoder.attention import _by_stages, _by_stages_backward, _sizes, make_layout  # noqa: E402
from refmoe.lab.decoder.norm import NormRecord, rms_norm, rms_norm_backward  # noqa: E402

NUM = DecoderNumerics("chain", backend="numpy")
NORMS = [(1, 1), (9, 33), (17, 520)]
HEADS = [(1, 1, 1, 1), (2, 14, 3, 5), (1, 40, 1, 36)]  # B, S, H, d
EPS = 1e-6


def norms(make, n, m):
    """(kind, sizes, constants, operands, results) of a norm, of its backward, of products of rows."""
    rng = np.random.default_rng(n)
    x, d, w = (make(rng, shape) for shape in ((n, m), (n, m), (m,)))
    yield 0, (n, m), (EPS,), (x, w), rms_norm(x, w, EPS, NUM)
    record = NormRecord(np.abs(make(rng, (n, 1))), x, x)
    d_x, _ = rms_norm_backward(d, record, w, NUM)
    yield 1, (n, m), (), (d, x, record.rms, w), (d_x, d * x)
    yield 5, (n, m), (), (d, x), (NUM.contract_rows("d_topk_weights", d, x),)


def steps(make, n):
    """The same of one step of AdamW from moments that are not 0."""
    rng, optimiser = np.random.default_rng(n), optimisers.Optimiser("adamw", weight_decay=0.1)
    g, p, m, v = (make(rng, (n,)) for _ in range(4))
    state = optimisers.start(optimiser, (p,))
    (first,), (second,) = state.first.values(), state.second.values()
    first[:], second[:], before = m, np.abs(v), p.copy()
    seen, rate = [], 0.01

    class Engine:
        """Keeps what C would be given, and leaves the step to NumPy."""

        def adamw(self, constants, *arrays):
            seen.append(constants)
            return False

    optimisers.step(optimiser, (p,), (g,), state, rate, Engine())
    yield 2, (n,), seen[0], (g, before, m, np.abs(v)), (p, first, second)


def attention(make, shape):
    """The same of attention and of its backward, where the weights are no NaN."""
    B, S, H, d = shape
    rng, config = np.random.default_rng(S), DecoderConfig(H * d, H, S, (DenseConfig(H * d, 1),), "linear")
    layout = make_layout(np.zeros((B, S), int), config, np.float32)
    qkv, d_context = (make(rng, (B * S, n * H * d)) for n in (3, 1))
    root = _sizes(layout)[1]
    weights, context = _by_stages(qkv, layout, NUM)
    if np.isfinite(weights).all():
        yield 3, shape, (root,), (qkv, layout.bias), (weights, context)
        d_qkv = _by_stages_backward(d_context, qkv, weights, layout, NUM)
        yield 4, shape, (root,), (qkv, weights, d_context), (d_qkv,)


def cases():
    for make in made.MAKERS:
        for n, m in NORMS:
            yield from ((f"{make.__name__} {n} x {m}", *case) for case in norms(make, n, m))
        yield from ((f"{make.__name__} adamw", *case) for case in steps(make, 77))
    for make in (made.coarse, made.tiny, made.signed_zeros):
        for shape in HEADS:
            yield from (("{} {}x{}x{}x{}".format(make.__name__, *shape), *case) for case in attention(make, shape))


def encode(name, kind, sizes, constants, operands, results):
    """The bytes of one case."""
    sizes, constants = (*sizes, *[0] * (4 - len(sizes))), (*constants, *[0.0] * (8 - len(constants)))
    head = struct.pack("<32s5q8f", name.encode(), kind, *sizes, *constants)
    return head + b"".join(np.ascontiguousarray(array, "<f4").tobytes() for array in (*operands, *results))


def main():
    with np.errstate(all="ignore"):
        content = [encode(*case) for case in cases()]
    Path(sys.argv[1]).write_bytes(b"".join(content))
    print(f"{sys.argv[1]}: {len(content)} cases of written operations and attention")


if __name__ == "__main__":
    main()
