"""What is timed: the experts of published layers, with the routing given; inputs that any contestant can make again."""

import dataclasses
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from ..config import ExpertsConfig, MoEConfig, RoutingConfig
from ..formats import Packed, encode
from ..models.presets import load_preset
from ..recipes import fan_in_exponent, generate, words
from ..refusals import require

PHASES = ("forward", "backward", "training")  # training: forward and backward
ROUTINGS = ("even", "one_expert", "five_experts")  # 90 % of the rows in one expert; five experts hit
BLOCK = (1 << 20) + 7  # numbers that the weights repeat: making gigabytes of them would take longer than timing them
ONE_EXPERT = 0.9


@dataclass(frozen=True)
class Case:
    """One thing to time: experts of a configuration, a number of tokens, a phase and a storage format."""

    name: str
    config: MoEConfig
    tokens: int
    phase: str = "forward"
    store: str = "float32"
    routing: str = "even"

    def to_dict(self):
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)} | {"config": self.config.to_dict()}

    @classmethod
    def from_dict(cls, data):
        return cls(**data | {"config": MoEConfig.from_dict(data["config"])})

    @property
    def key(self):
        return f"{self.name} {self.tokens} {self.phase} {self.store} {self.routing}"

    @property
    def matrices(self):
        """Of one expert."""
        return 3 if self.config.experts.gated else 2

    @property
    def flops(self):
        """Of the products with weights, a multiply-add counting two; the way back has twice those of the way there."""
        c, passes = self.config, {"forward": 1, "backward": 2, "training": 3}[self.phase]
        return 2 * self.tokens * c.top_k * self.matrices * c.hidden_size * c.intermediate_size * passes

    @property
    def weight_bytes(self):
        """Of the experts that a token chose, at the width of the store."""
        c, item = self.config, 2 if self.store in ("bf16", "fp16") else 4
        return len(np.unique(self.topk_indices)) * self.matrices * c.hidden_size * c.intermediate_size * item

    @cached_property
    def topk_indices(self):
        """(T, K), each token's experts, best first."""
        T, E, K = self.tokens, self.config.num_experts, self.config.top_k
        order = np.argsort(words(0, "bench.routing", 0, T * E).reshape(T, E), axis=-1, kind="stable")
        if self.routing == "five_experts":
            chosen = np.argsort(words(0, "bench.five", 0, E), kind="stable")[:5]
            return chosen[np.argsort(order[:, :5], axis=-1, kind="stable")][:, :K]
        if self.routing == "one_expert":
            return np.where(np.arange(T)[:, None] < ONE_EXPERT * T, 0, order[:, :1])
        return np.ascontiguousarray(order[:, :K])


def make_case(name, config, tokens, phase="forward", store="float32", routing="even", top_k=None):
    """A case with the experts of `config` alone: nothing shared or dropped; softmax, of the chosen if several."""
    require(phase in PHASES, ValueError, "phase", f"one of {', '.join(PHASES)}", repr(phase), "choose one of these")
    own = {f.name: getattr(config.experts, f.name) for f in dataclasses.fields(ExpertsConfig)}
    kept = {n: own[n] for n in ("gated", "activation", "alpha", "limit", "linear_offset", "biases")}
    K = {"one_expert": 1, "five_experts": min(config.top_k, 5)}.get(routing, top_k or config.top_k)
    sizes = {"hidden_size": config.hidden_size, "intermediate_size": config.intermediate_size, "top_k": K}
    alone = MoEConfig(**sizes, num_experts=config.num_experts, routing=RoutingConfig(normalize=K > 1),
                      experts=ExpertsConfig(**kept))  # fmt: skip
    return Case(name, alone, tokens, phase, store, routing)


def plain_config(D, F, E, K):
    """A layer with silu-gated experts and nothing else."""
    return MoEConfig(hidden_size=D, intermediate_size=F, num_experts=E, top_k=K)


def preset_cases(preset, tokens=None, stores=("float32",), scale="full"):
    """The phases of one preset: prefill, decode, backward, training step."""
    config = load_preset(preset, scale=scale)
    most = max(tokens) if tokens else 512
    made = [make_case(preset, config, T, "forward", s) for s in stores for T in tokens or (512, 2048, 1, 8)]
    return made + [make_case(preset, config, most, phase, s) for s in stores for phase in ("backward", "training")]


# --- inputs -----------------------------------------------------------------------------------------------------------


class Inputs:
    """What every contestant computes with, each array made when it is asked for."""

    def __init__(self, case):
        self.case = case

    def _array(self, name, shape, exponent=0):
        return generate(f"bench.{name}", shape, 0, "bf16", exponent)

    @cached_property
    def x(self):
        return self._array("x", (self.case.tokens, self.case.config.hidden_size))

    @cached_property
    def d_y(self):
        return self._array("d_y", (self.case.tokens, self.case.config.hidden_size))

    @property
    def topk_indices(self):
        return self.case.topk_indices

    @cached_property
    def logits(self):
        """(T, E) whose highest K are the chosen experts, in their order: a contestant that chooses chooses these."""
        c = self.case.config
        made = np.full((self.case.tokens, c.num_experts), -4, np.float32)
        ladder = np.broadcast_to(np.float32(2) - np.arange(c.top_k, dtype=np.float32) / 8, self.topk_indices.shape)
        np.put_along_axis(made, self.topk_indices, ladder, axis=-1)
        return made

    @cached_property
    def topk_weights(self):
        """(T, K): the softmax of the chosen logits, or of all for a single expert, whose weight would be 1."""
        kept = np.exp(np.take_along_axis(self.logits, self.topk_indices, axis=-1).astype(np.float64))
        all_or_kept = kept if self.case.config.routing.normalize else np.exp(self.logits.astype(np.float64))
        return (kept / all_or_kept.sum(axis=-1, keepdims=True)).astype(np.float32)

    def shapes(self):
        """name -> shape of one expert's arrays."""
        c = self.case.config
        D, F = c.hidden_size, c.intermediate_size
        shapes = {"w_gate": (F, D), "w_up": (F, D), "w_down": (D, F)}
        if c.experts.biases:
            shapes |= {"b_gate": (F,), "b_up": (F,), "b_down": (D,)}
        return shapes if c.experts.gated else {n: s for n, s in shapes.items() if not n.endswith("_gate")}

    def expert(self, name, e):
        """Expert e's array of that name, to be read only."""
        shape = self.shapes()[name]
        size = int(np.prod(shape))
        exponent = fan_in_exponent(shape[-1]) if name.startswith("w_") else -3
        start = (e * size + hash_of(name)) % BLOCK
        return _repeated(size, exponent)[start : start + size].reshape(shape)

    def stack(self, name):
        """(E, ...) of all experts."""
        made = np.empty((self.case.config.num_experts, *self.shapes()[name]), np.float32)
        for e in range(len(made)):
            made[e] = self.expert(name, e)
        return made

    def stored(self, name):
        """(E, ...) of all experts as the store has them: weights of a store of 16 bits are codes."""
        if self.case.store == "float32" or not name.startswith("w_"):
            return self.stack(name)
        made = np.empty((self.case.config.num_experts, *self.shapes()[name]), np.uint16)
        for e in range(len(made)):
            made[e] = encode(self.expert(name, e), self.case.store)
        return Packed(made, self.case.store)

    def joined(self, kind="w"):
        """(E, 2 F, ...): gate above up."""
        F, shape = self.case.config.intermediate_size, self.shapes()[f"{kind}_up"]
        made = np.empty((self.case.config.num_experts, 2 * F, *shape[1:]), np.float32)
        for e in range(len(made)):
            made[e, :F], made[e, F:] = self.expert(f"{kind}_gate", e), self.expert(f"{kind}_up", e)
        return made


@lru_cache
def _repeated(size, exponent):
    """The block again and again, so that any run of `size` numbers that begins in it can be cut out."""
    return np.resize(generate("bench.block", (BLOCK,), 0, "bf16", exponent), BLOCK + size)


def hash_of(name):
    """A number of the name that is the same in every process."""
    return sum(ord(c) * 131**i for i, c in enumerate(name))


# --- what a contestant's answer is held against -----------------------------------------------------------------------


def expected(inputs, tokens):
    """y of some tokens by the formula, in float64: (len(tokens), D)."""
    return np.stack([_one_token(inputs, int(t)) for t in tokens])


def _one_token(inputs, t):
    c, x = inputs.case.config.experts, inputs.x[t].astype(np.float64)
    y = np.zeros(len(x))
    for e, weight in zip(inputs.topk_indices[t], inputs.topk_weights[t], strict=True):
        made = {name: inputs.expert(name, int(e)).astype(np.float64) for name in inputs.shapes()}
        up = made["w_up"] @ x + made.get("b_up", 0.0)
        gate = made["w_gate"] @ x + made.get("b_gate", 0.0) if c.gated else None
        y += weight * (made["w_down"] @ hidden(up, gate, c) + made.get("b_down", 0.0))
    return y


def hidden(up, gate, c):
    """What stands between the two linear maps, in plain NumPy; ValueError for an activation only refmoe has."""
    require(c.activation in SIMPLE, ValueError, "activation", f"one of {', '.join(SIMPLE)}", c.activation,
            "time refmoe alone")  # fmt: skip
    act = SIMPLE[c.activation]
    if gate is None:
        return act(up, c.alpha)
    if c.limit is not None:
        gate, up = np.minimum(gate, c.limit), np.clip(up, -c.limit, c.limit)
    return act(gate, c.alpha) * (up + c.linear_offset if c.linear_offset else up)


def _silu(g, alpha):
    return g / (1 + np.exp(-alpha * g))


SIMPLE = {"silu": _silu, "relu": lambda g, alpha: np.maximum(g, 0), "relu2": lambda g, alpha: np.maximum(g, 0) ** 2}
