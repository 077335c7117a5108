"""Writes the file that formulas.c replays: operands of activations and the bits that NumPy makes of them.

    python tests/cross/formulas.py FILE

The format is described at the head of formulas.c.
"""

import struct
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from refmoe.activations import gated, gated_backward  # noqa: E402
from refmoe.config import ExpertsConfig  # noqa: E402
from refmoe.formats import round_to  # noqa: E402
from refmoe.numerics import Numerics  # noqa: E402
from refmoe.routing import front  # noqa: E402
from refmoe.scores import SCORE_FNS  # noqa: E402

FORMATS = {"float32": 0, "bf16": 1, "fp16": 2}  # enum refmoe_format
# enum refmoe_activation_name
NAMES = "silu", "gelu_tanh", "relu", "relu2", "sigmoid", "gelu", "sqrt_softplus", "softcap"
COUNT = 93  # of no whole vector

EXPERTS = {
    "silu": ExpertsConfig(),
    "gpt-oss": ExpertsConfig(alpha=1.702, limit=7.0, linear_offset=1.0),
    "gelu_tanh": ExpertsConfig(activation="gelu_tanh"),
    "relu2": ExpertsConfig(activation="relu2"),
    "gelu": ExpertsConfig(activation="gelu"),
    "capped": ExpertsConfig(gate_softcap=4.0, up_softcap=25.0),
    "up capped": ExpertsConfig(up_softcap=2.0, linear_offset=-0.7),
}


class Bounded:
    """The fields of a routing configuration that bounded logits read."""

    logits_scale, logits_softcap = -1.7, 30.0


def operands(form, seed):
    """d, x, u of the format, most of them near 1, some of other magnitudes, zero or infinite."""
    rng = np.random.default_rng(seed)
    drawn = rng.standard_normal((3, COUNT)) * rng.choice([1.0, 4.0, 20.0], (3, COUNT))
    drawn[:, ::16] = np.ldexp(drawn[:, ::16], rng.integers(-30, 14, drawn[:, ::16].shape))
    for number, row in enumerate(drawn):  # each beside ordinary numbers of the other two, and beside its like
        row[[1 + number, 5, 9 + number]] = 0.0, -0.0, np.inf
    drawn[1:, 17] = -0.0, np.inf
    return round_to(drawn, form)


def cases(form):
    """(name, refmoe_activation, d, x, u, value, d_x, d_u); u and d_u empty for scores and logits, which are float32."""
    num, wide = Numerics(store=form, backend="numpy"), Numerics(backend="numpy")
    d, x, u = operands(form, 1)
    if form == "float32":
        for name in ("sigmoid", "sqrt_softplus", "relu"):
            score, backward = SCORE_FNS[name]
            made = score(x, wide), backward(d, x, wide)
            yield name, (NAMES.index(name), 1.0, np.inf, 0.0, 0.0, 0.0), d, x, u[:0], *made, u[:0]
        made = front.bounded_logits(x, Bounded, "logits", wide), front.bounded_logits_backward(d, x, Bounded, wide)
        yield "softcap", (NAMES.index("softcap"), -1.7, np.inf, 0.0, 30.0, 0.0), d, x, u[:0], *made, u[:0]
    for name, e in EXPERTS.items():
        limit, caps = np.inf if e.limit is None else e.limit, (e.gate_softcap or 0.0, e.up_softcap or 0.0)
        activation = NAMES.index(e.activation), e.alpha, limit, e.linear_offset, *caps
        yield name, activation, d, x, u, gated(x, u, e, num), *gated_backward(d, x, u, e, num)


def encode(form, name, activation, *arrays):
    """The bytes of one case."""
    head = struct.pack("<32s4q5d", name.encode(), FORMATS[form], activation[0], COUNT, len(arrays[2]), *activation[1:])
    return head + b"".join(np.ascontiguousarray(array, "<f4").tobytes() for array in arrays)


def main():
    made = [encode(form, *case) for form in FORMATS for case in cases(form)]
    Path(sys.argv[1]).write_bytes(b"".join(made))
    print(f"{sys.argv[1]}: {len(made)} activations, there and back")


if __name__ == "__main__":
    main()
