"""torch's dense matmul, expert by expert; and, outside the count, one product of the same size without experts.

"loop" computes the layer: a product for each expert that was chosen, gate and up in one. "one product" multiplies all
rows by one expert's weights: no such layer exists, but it is what torch's matmul reaches when nothing is in its way.
"""

from ..cases import SIMPLE
from ..child import Refused
from . import Loaded
from .numpy_loop import by_expert

UNCOUNTED = ("one product",)


def prepare(inputs, options):
    """Calls: "loop", and "one product" for a forward."""
    import torch

    case = inputs.case
    if case.config.experts.activation not in SIMPLE or case.phase == "backward" or not case.config.experts.gated:
        raise Refused("not written for this phase or activation")
    layer = Layer(torch, inputs)
    calls = {"loop": layer.forward if case.phase == "forward" else layer.step}
    if case.phase == "forward":
        calls["one product"] = layer.one_product
    return Loaded(calls, facts(torch), read=read)


def facts(torch):
    """Versions, and the instruction set that oneDNN and torch's own kernels chose."""
    mkl = "MKL" if torch.backends.mkl.is_available() else "no MKL"
    return {"torch": torch.__version__, "blas core": torch.backends.cpu.get_cpu_capability(), "blas": mkl,
            "threads": torch.get_num_threads()}  # fmt: skip


def read(y):
    return y.detach().float().numpy()


def tensors(torch, inputs):
    """x, topk_weights, topk_indices, d_y in the store's type; the weights of the slots stay float32."""
    kind = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[inputs.case.store]
    x, d_y = (torch.from_numpy(a).to(kind) for a in (inputs.x, inputs.d_y))
    return kind, x, torch.from_numpy(inputs.topk_weights).to(kind), torch.from_numpy(inputs.topk_indices), d_y


def stacked(torch, inputs, kind, name):
    """(E, ...) in the type, expert by expert, so that no second copy is held; name "first" joins gate and up."""
    E, F = inputs.case.config.num_experts, inputs.case.config.intermediate_size
    parts = ["w_gate", "w_up"] if name == "first" else [name]
    rows, cols = inputs.shapes()[parts[0]]
    made = torch.empty((E, rows * len(parts), cols), dtype=kind)
    for e in range(E):
        for i, part in enumerate(parts):
            made[e, i * rows : (i + 1) * rows] = torch.from_numpy(inputs.expert(part, e))
    assert made.shape[1] in (2 * F, rows)
    return made


class Layer:
    def __init__(self, torch, inputs):
        self.torch, self.case = torch, inputs.case
        self.kind, self.x, self.weights, _, self.d_y = tensors(torch, inputs)
        self.first, self.down = (stacked(torch, inputs, self.kind, n) for n in ("first", "w_down"))
        self.biases = [None, None]
        if self.case.config.experts.biases:
            self.biases = [torch.from_numpy(a).to(self.kind) for a in (inputs.joined("b"), inputs.stack("b_down"))]
        found = by_expert(inputs.topk_indices, len(self.down))
        self.by_expert = [(e, torch.from_numpy(t), torch.from_numpy(s)) for e, t, s in found]
        if self.case.phase == "training":
            for leaf in self._leaves():
                leaf.requires_grad_()
        self.apart = None if self.case.phase == "training" else self._take_apart()  # of a forward: once

    def _take_apart(self):
        """The experts' matrices, all at once: indexing each would make a gradient of all experts for each."""
        return self.first.unbind(), self.down.unbind()

    def _leaves(self):
        return [t for t in (self.x, self.weights, self.first, self.down, *self.biases) if t is not None]

    def _compute(self):
        linear = self.torch.nn.functional.linear
        first, down = self.apart or self._take_apart()
        first_bias, down_bias = self.biases
        y = self.torch.zeros_like(self.x)
        for e, tokens, slots in self.by_expert:
            both = linear(self.x[tokens], first[e], None if first_bias is None else first_bias[e])
            out = linear(self._hidden(both), down[e], None if down_bias is None else down_bias[e])
            y = y.index_add(0, tokens, out * self.weights[tokens, slots][:, None])
        return y

    def _hidden(self, both):
        c = self.case.config.experts
        gate, up = both.chunk(2, dim=-1)
        if c.limit is not None:
            gate, up = gate.clamp(max=c.limit), up.clamp(-c.limit, c.limit)
        up = up + c.linear_offset if c.linear_offset else up
        if c.activation != "silu":
            gate = gate.relu()
            return (gate if c.activation == "relu" else gate * gate) * up
        act = self.torch.nn.functional.silu(gate) if c.alpha == 1 else gate * self.torch.sigmoid(gate * c.alpha)
        return act * up

    def forward(self):
        with self.torch.inference_mode():
            return self._compute()

    def step(self):
        for leaf in self._leaves():
            leaf.grad = None
        y = self._compute()
        y.backward(self.d_y)
        return y

    def one_product(self):
        with self.torch.inference_mode():
            rows = self.x.repeat_interleave(self.case.config.top_k, dim=0)
            linear = self.torch.nn.functional.linear
            linear(self._hidden(linear(rows, self.first[0])), self.down[0])
            return None
