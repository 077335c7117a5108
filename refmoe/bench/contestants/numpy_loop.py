"""NumPy, expert by expert, gate and up in one product: what most people write first, and OpenBLAS's speed."""

import ctypes
import re
from pathlib import Path

import numpy as np

from ..cases import SIMPLE, hidden
from ..child import Refused
from . import Loaded


def prepare(inputs, options):
    """Calls: "loop"."""
    case = inputs.case
    if case.store != "float32":
        raise Refused(f"NumPy has no {case.store}")
    if case.config.experts.activation not in SIMPLE or case.phase == "backward":
        raise Refused("not written for this phase or activation")
    if case.phase == "training" and not is_plain(case.config.experts):
        raise Refused("its way back is written for silu-gated experts alone")
    weights = Weights(inputs)
    call = weights.forward if case.phase == "forward" else weights.step
    facts = {"numpy": np.__version__, "blas core": blas_core()}
    return Loaded({"loop": call}, facts)


def is_plain(experts):
    """Silu-gated, without biases, clamps or offset."""
    rest = experts.alpha, experts.limit, experts.linear_offset, experts.biases
    return experts.gated and experts.activation == "silu" and rest == (1.0, None, 0.0, False)


class Weights:
    """The experts in the layout that suits the loop."""

    def __init__(self, inputs):
        self.inputs, self.experts = inputs, inputs.case.config.experts
        gated = self.experts.gated
        self.first = inputs.joined() if gated else inputs.stack("w_up")
        self.down = inputs.stack("w_down")
        self.first_bias = self.down_bias = None
        if self.experts.biases:
            self.first_bias, self.down_bias = (
                inputs.joined("b") if gated else inputs.stack("b_up"),
                inputs.stack("b_down"),
            )
        self.by_expert = list(by_expert(inputs.topk_indices, len(self.down)))
        inputs.x, inputs.d_y, inputs.topk_weights  # noqa: B018  made now, and not by the clock

    def forward(self):
        """y (T, D)."""
        x, weights = self.inputs.x, self.inputs.topk_weights
        y = np.zeros_like(x)
        for e, tokens, slots in self.by_expert:
            _, rows = self._hidden(e, x[tokens])
            out = rows @ self.down[e].T
            if self.down_bias is not None:
                out += self.down_bias[e]
            out *= weights[tokens, slots][:, None]
            y[tokens] += out
        return y

    def _hidden(self, e, x):
        both = x @ self.first[e].T
        if self.first_bias is not None:
            both += self.first_bias[e]
        if not self.experts.gated:
            return both, hidden(both, None, self.experts)
        F = both.shape[1] // 2
        return both, hidden(both[:, F:], both[:, :F], self.experts)

    def step(self):
        """y, with the gradients of x, the weights of the slots and every matrix computed."""
        x, d_y, weights = self.inputs.x, self.inputs.d_y, self.inputs.topk_weights
        y, d_x, d_weights = np.zeros_like(x), np.zeros_like(x), np.zeros_like(weights)
        self.d_first, self.d_down = np.zeros_like(self.first), np.zeros_like(self.down)
        for e, tokens, slots in self.by_expert:
            both, rows = self._hidden(e, x[tokens])
            out, w = rows @ self.down[e].T, weights[tokens, slots][:, None]
            y[tokens] += out * w
            d_out = d_y[tokens]
            d_weights[tokens, slots] = (d_out * out).sum(axis=-1)
            d_out = d_out * w
            np.matmul(d_out.T, rows, out=self.d_down[e])
            d_both = self._hidden_backward(d_out @ self.down[e], both)
            np.matmul(d_both.T, x[tokens], out=self.d_first[e])
            d_x[tokens] += d_both @ self.first[e]
        self.d_x, self.d_weights = d_x, d_weights
        return y

    def _hidden_backward(self, d_hidden, both):
        F = both.shape[1] // 2
        gate, up = both[:, :F], both[:, F:]
        s = 1 / (1 + np.exp(-gate))
        return np.concatenate([d_hidden * up * s * (1 + gate * (1 - s)), d_hidden * gate * s], axis=1)


def by_expert(topk_indices, num_experts):
    """(e, tokens, slots) of every expert that was chosen."""
    order = np.argsort(topk_indices, axis=None, kind="stable")
    ends = np.searchsorted(topk_indices.ravel()[order], np.arange(num_experts + 1))
    for e in range(num_experts):
        rows = order[ends[e] : ends[e + 1]]
        if len(rows):
            yield e, rows // topk_indices.shape[1], rows % topk_indices.shape[1]


def blas_core():
    """The core type that the loaded OpenBLAS works for, as it says itself; "unknown" for another BLAS."""
    maps = Path("/proc/self/maps")
    found = re.findall(r"(/\S*openblas\S*\.so\S*)", maps.read_text()) if maps.exists() else []
    for path in dict.fromkeys(found):
        library = ctypes.CDLL(path)
        for name in ("scipy_openblas_get_corename64_", "scipy_openblas_get_corename", "openblas_get_corename64_",
                     "openblas_get_corename"):  # fmt: skip
            if hasattr(library, name):
                function = getattr(library, name)
                function.restype = ctypes.c_char_p
                return function().decode()
    return "unknown"
