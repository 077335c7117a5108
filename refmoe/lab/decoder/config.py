"""The choices of a decoder: sizes, positions, and the feed-forward part of each block."""

import dataclasses
from dataclasses import dataclass

from ...activations import ACTIVATIONS
from ...config import ExpertsConfig, MoEConfig
from ...refusals import require

POSITIONS = ("learned", "linear")


@dataclass(frozen=True)
class DenseConfig:
    """A feed-forward part without a router: one expert for every token."""

    hidden_size: int
    intermediate_size: int
    gated: bool = True
    activation: str = "silu"

    def __post_init__(self):
        known = self.activation in ACTIVATIONS
        wanted = f"one of {', '.join(ACTIVATIONS)}"
        require(known, ValueError, "activation", wanted, repr(self.activation), "choose one of these")
        for name in ("hidden_size", "intermediate_size"):
            _check_count(name, getattr(self, name))

    @property
    def experts(self):
        """The same as the library's configuration of experts."""
        return ExpertsConfig(gated=self.gated, activation=self.activation)


@dataclass(frozen=True)
class DecoderConfig:
    """D hidden_size, H num_heads, S context (tokens of a sequence), V vocab_size; one feed-forward part a block.

    blocks: MoEConfig or DenseConfig, in any order. positions "learned" (a vector a place) or "linear" (a bias falling
    with distance, by a power of two a head). Raises ValueError or TypeError for sizes that do not fit each other.
    """

    hidden_size: int
    num_heads: int
    context: int
    blocks: tuple
    positions: str = "learned"
    vocab_size: int = 256
    norm_eps: float = 1e-6

    def __post_init__(self):
        for name in ("hidden_size", "num_heads", "context", "vocab_size"):
            _check_count(name, getattr(self, name))
        D, H = self.hidden_size, self.num_heads
        require(D % H == 0, ValueError, "num_heads", f"a divisor of hidden_size {D}", H, "choose another")
        wanted = f"one of {', '.join(POSITIONS)}"
        known = self.positions in POSITIONS
        require(known, ValueError, "positions", wanted, repr(self.positions), "choose one of these")
        require(self.norm_eps > 0, ValueError, "norm_eps", "a positive number", self.norm_eps, "use 1e-6")
        require(len(self.blocks) > 0, ValueError, "blocks", "at least one block", "none", "give a MoEConfig each")
        for at, block in enumerate(self.blocks):
            _check_block(f"blocks.{at}", block, D)

    @property
    def head_size(self):
        return self.hidden_size // self.num_heads

    def to_dict(self):
        """Everything, as JSON has it; a block says which kind it is."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "blocks"}
        kinds = {MoEConfig: "moe", DenseConfig: "dense"}
        return own | {"blocks": [{"kind": kinds[type(b)]} | dataclasses.asdict(b) for b in self.blocks]}


def _check_count(name, value):
    whole = isinstance(value, int) and not isinstance(value, bool) and value > 0
    require(whole, ValueError, name, "a whole number from 1 on", repr(value), "give a size")


def _check_block(name, block, hidden_size):
    got = type(block).__name__
    require(isinstance(block, MoEConfig | DenseConfig), TypeError, name, "a MoEConfig or DenseConfig", got, "make one")
    size = block.hidden_size
    require(size == hidden_size, ValueError, f"{name}.hidden_size", hidden_size, size, "the blocks add to one stream")
