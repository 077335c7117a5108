"""refmoe itself, by profile and thread count; it proves its bits before anything is timed."""

import time

import numpy as np

from ... import kernels
from ...inputs import Given
from ...layer import moe_backward, moe_forward
from ...numerics import Numerics
from ...recipes import MoEParams
from .. import machine, parity
from . import Loaded

PRODUCTS = ("grouped_matmul", "grouped_matmul_backward_x", "grouped_matmul_backward_w")


def prepare(inputs, options):
    """Calls: "PROFILE x THREADS" for each of options["profiles"] and options["threads"]. Raises NotEqual."""
    layer = Layer(inputs)
    policies = {f"{profile} x{threads}": policy(profile, inputs.case.store, threads, options["kernel"])
                for profile in options["profiles"] for threads in options["threads"]}  # fmt: skip
    proofs = [parity.prove(layer, num, setting) for setting, num in policies.items()]
    clocks = {setting: Clock(num) for setting, num in policies.items()}
    last = []

    def call(setting):
        last[:] = [clocks[setting]]
        clocks[setting].reset()
        return layer.run(policies[setting])

    def more():
        return {"inside": dict(last[0].spent)}

    calls = {setting: lambda setting=setting: call(setting) for setting in policies}
    engine = next(iter(policies.values())).engine
    facts = {"kernel": engine.kernel, "compiler": dict(kernels.build_report()).get("compiler"), "proofs": proofs,
             "workspace_bytes": getattr(engine, "workspace_bytes", None), "numpy": np.__version__}  # fmt: skip
    checks = inputs.case.phase == "forward" and not inputs.case.config.experts.activation.startswith("gelu")
    return Loaded(calls, facts, checks, more)


def policy(profile, store, threads, kernel=None):
    """The compiled engine or an error: NumPy's is not what is timed.

    All processors are asked for as users do, by saying nothing: one thread then does what a second would delay.
    """
    threads = None if threads == machine.allowed() else threads
    return Numerics(profile=profile, store=store, backend="c", threads=threads, kernel=kernel)


class Clock:
    """Stands in for a policy's engine and notes the seconds of each of its functions."""

    def __init__(self, num):
        self._engine, self.spent = num.engine, {}
        object.__setattr__(num, "engine", self)  # a frozen policy, which nobody else has

    def reset(self):
        self.spent.clear()

    def __getattr__(self, name):
        found = getattr(self._engine, name)
        if not callable(found):
            return found

        def timed(*arguments, **named):
            start = time.perf_counter()
            try:
                return found(*arguments, **named)
            finally:
                self.spent[name] = self.spent.get(name, 0.0) + time.perf_counter() - start

        return timed


class Layer:
    """A case's arrays, and what its phase calls."""

    def __init__(self, inputs):
        self.inputs, self.case = inputs, inputs.case
        arrays = {name: inputs.stored(name) for name in inputs.shapes()}
        router = np.zeros((self.case.config.num_experts, self.case.config.hidden_size), np.float32)
        self.params = MoEParams(w_router=router, **arrays)
        self.given = Given(logits=inputs.logits, topk_indices=inputs.topk_indices.astype(np.int64))
        self.x, self.d_y, self._records = inputs.x, inputs.d_y, {}
        self.parts = {}  # what NumPy made of some tokens, by profile

    def run(self, num):
        """Once, as the phase says: y, or what the way back returns."""
        if self.case.phase == "forward":
            return self.forward(num, "y").y
        if self.case.phase == "backward":
            if num.profile not in self._records:  # made by the untimed first call
                self._records = {num.profile: self.forward(num, "backward")}
            return self.backward(num, self._records[num.profile]).d_x
        record = self.forward(num, "backward")
        self.backward(num, record)
        return record.y

    def forward(self, num, keep):
        return moe_forward(self.x, self.params, self.case.config, num, self.given, keep)

    def backward(self, num, record, into=None):
        return moe_backward(self.d_y, self.x, self.params, record, self.case.config, num, self.given, into=into)
