"""Every choice a real mixture-of-experts layer makes, as one frozen configuration.   Spec 0.3

`MoEConfig(hidden_size=, intermediate_size=, num_experts=, top_k=)` is complete: each other field has a neutral default.
The four sections bear the names of the chapters that define them: routing, dispatch, experts, losses.
"""

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property

from .checks import check_together, warn_of_constant_weight
from .field_rules import COUNT, FLOAT, POSITIVE, WEIGHT, Section, one_of
from .losses import (  # noqa: F401 (one door for every section)
    BalanceLoss,
    CommunicationLoss,
    DeviceLoss,
    ImportanceLoss,
    LoadLoss,
    LossesConfig,
    MutualInformationLoss,
    OrthogonalityLoss,
    ZLoss,
)
from .reading import build, load_json, with_house_names
from .routing_rules import SELECTIONS, VARIABLE_SELECTIONS  # noqa: F401 (rules that give a token any number of experts)


@dataclass(frozen=True, kw_only=True)
class RoutingConfig(Section):
    """From logits to weights.   Spec 1"""

    score_fn: str = field(
        default="softmax", metadata=one_of("softmax", "softmax_tokens", "sigmoid", "sqrt_softplus", "relu")
    )  # of the logits
    router_bias: bool = False  # a bias that is part of the logits
    jitter: str = field(default="none", metadata=one_of("none", "router", "block"))  # who reads x * given.jitter
    input_norm: str = field(default="none", metadata=one_of("none", "rms_scaled"))  # of what the router reads
    input_norm_eps: float = field(default=1e-6, metadata=WEIGHT)  # of its mean square
    logits_scale: float = field(default=1.0, metadata=FLOAT)  # a: logits = a * raw logits
    logits_softcap: float | None = field(default=None, metadata=WEIGHT)  # c: logits = c * tanh(a * raw logits / c)
    noise: str = field(default="none", metadata=one_of("none", "learned", "fixed"))  # logits + given.noise * deviation
    noise_floor: float = field(default=0.01, metadata=WEIGHT)  # learned deviation: softplus(x . w_noise) + floor
    noise_std: float = field(default=0.0, metadata=WEIGHT)  # fixed deviation
    selection_base: str = field(default="scores", metadata=one_of("scores", "logits", "sinkhorn"))  # what is ranked
    sinkhorn_iterations: int = field(default=16, metadata=POSITIVE)  # of selection_base "sinkhorn"
    selection_bias: bool = False  # added to what is ranked, never to the weights
    selection: str = field(default="topk", metadata=one_of(*SELECTIONS))  # the rule that chooses
    slots_per_expert: int = field(default=1, metadata=POSITIVE)  # of selection "soft", which chooses nobody
    soft_scope: str = field(default="batch", metadata=one_of("batch", "sequence"))  # tokens that share slots
    soft_norm_eps: float = field(default=1e-6, metadata=WEIGHT)  # of the lengths of tokens and slots
    hash_vocab_size: int = field(default=0, metadata=COUNT)  # rows of the table of selection "hash"
    threshold: float = field(default=0.0, metadata=FLOAT)  # what selection "threshold" asks a choice score to exceed
    top_p: float = field(default=1.0, metadata=WEIGHT)  # the sum of scores that selection "top_p" asks for
    sparsemixer_eps: float = field(
        default=0.01, metadata=WEIGHT
    )  # selection "sparsemixer" leaves out logits more than 2 eps below the largest, relatively
    num_groups: int = field(default=1, metadata=POSITIVE)  # equal groups of neighbouring experts
    top_groups: int = field(default=1, metadata=POSITIVE)  # groups whose experts may be chosen
    group_score_topn: int = field(default=2, metadata=POSITIVE)  # a group's score is the sum of its best n
    group_mask: str = field(
        default="-inf", metadata=one_of("-inf", "zero")
    )  # what experts of other groups are ranked as
    divide_by_count: bool = False  # divide the weights of a token by the number of its experts
    normalize: bool = False  # divide the kept weights by their sum
    norm_eps: float = field(default=0.0, metadata=WEIGHT)  # of that sum
    norm_eps_mode: str = field(default="add", metadata=one_of("add", "clamp"))  # sum + eps, or max(sum, eps)
    norm_p: int = field(default=1, metadata=POSITIVE)  # divide by (sum of the p-th powers)^(1/p)
    norm_over_shared: bool = False  # one sum over routed and shared experts, which the router then weighs too
    scaling_factor: float = field(default=1.0, metadata=FLOAT)  # times every kept weight
    per_expert_scale: bool = False  # then times a learned factor of the expert
    global_scale: bool = False  # and times one learned factor
    second_expert: str = field(default="all", metadata=one_of("all", "random", "sampled"))  # random: kept by a coin
    second_expert_factor: float = field(default=2.0, metadata=WEIGHT)  # kept if factor * weight > coin


# Who computes a capacity how: the rows of refmoe.dispatch.CAPACITY_RULES.
CAPACITY_NAMES = (
    *("ceil", "deepspeed", "fastmoe_gshard", "fastmoe_switch", "flaxformer", "gshard"),
    *("maxtext", "megablocks", "mesh_tf", "tutel", "vmoe", "vmoe_round"),
)


@dataclass(frozen=True, kw_only=True)
class DispatchConfig(Section):
    """Who goes where, and who is dropped.   Spec 2"""

    capacity: int | None = field(default=None, metadata=COUNT)  # rows an expert takes; None: all of them
    capacity_factor: float | None = field(default=None, metadata=WEIGHT)  # the capacity by a formula
    capacity_rule: str = field(default="ceil", metadata=one_of(*CAPACITY_NAMES))  # ceil: ceil(factor * T * K / E)
    min_capacity: int = field(default=0, metadata=COUNT)  # at least that, whatever the formula says
    capacity_multiple: int = field(default=1, metadata=POSITIVE)  # then up to a multiple of that
    capacity_scope: str = field(default="batch", metadata=one_of("batch", "sequence"))  # tokens that share a capacity
    capacity_devices: int | None = field(default=None, metadata=POSITIVE)  # a capacity for each of so many devices
    drop_policy: str = field(default="position", metadata=one_of("position", "probability", "random"))  # who is kept
    slot_order: str = field(
        default="slot_major", metadata=one_of("slot_major", "token_major", "batch_prioritized")
    )  # who comes first
    keep_at_most: int | None = field(default=None, metadata=POSITIVE)  # rows of a token; later choices stand in
    normalize_after_drop: bool = False  # renormalise over the slots that were kept

    @cached_property
    def limited(self):
        """Is there a capacity?"""
        return self.capacity is not None or self.capacity_factor is not None


NORM = one_of("none", "rms", "rms_centered")  # RMSNorm with a weight, or with 1 + weight


@dataclass(frozen=True, kw_only=True)
class ExpertsConfig(Section):
    """What an expert computes, and the shared expert beside the routed ones.   Spec 3"""

    gated: bool = True  # activation(gate) * up, or activation(up) alone
    # of the gate, or of the only projection
    activation: str = field(default="silu", metadata=one_of("silu", "gelu", "gelu_tanh", "relu", "relu2"))
    alpha: float = field(default=1.0, metadata=FLOAT)  # silu(g) = g * sigmoid(alpha * g)
    limit: float | None = field(default=None, metadata=WEIGHT)  # gate clamped above, up on both sides
    # is the gate clamped before its activation, or the activation after it
    limit_position: str = field(default="pre", metadata=one_of("pre", "post"))
    gate_softcap: float | None = field(default=None, metadata=WEIGHT)  # c: silu(g) becomes c tanh(g / c) sigmoid(g)
    up_softcap: float | None = field(default=None, metadata=WEIGHT)  # c: up becomes c tanh(up / c), before the offset
    linear_offset: float = field(default=0.0, metadata=FLOAT)  # added to the clamped up
    biases: bool = False  # of all three linear maps of the routed experts
    # what the weight multiplies: what an expert makes, what its last map reads, or what it reads
    weight_position: str = field(default="output", metadata=one_of("output", "hidden", "input"))
    constant_experts: int = field(default=0, metadata=COUNT)  # ids from E on: a_0 x + a_1 v, a = softmax(w_constant x)
    identity_experts: int = field(default=0, metadata=COUNT)  # the ids after those: x itself
    zero_experts: int = field(default=0, metadata=COUNT)  # the last ids: nothing
    latent_size: int = field(default=0, metadata=COUNT)  # l, the width the experts work in; 0: the tokens' own
    latent_pre_norm: str = field(default="none", metadata=NORM)  # of what the experts read
    # of each expert's output, one weight for all; input_scaled: times 1 + weight before the norm, not after it
    post_expert_norm: str = field(default="none", metadata=one_of("none", "rms", "rms_centered", "rms_input_scaled"))
    post_expert_norm_eps: float | None = field(default=None, metadata=WEIGHT)  # of that norm; None: norm_eps
    latent_post_norm: str = field(default="none", metadata=NORM)  # of the weighted sum, before it is mapped back
    output_bias: bool = False  # of the routed sum, once
    residual: str = field(default="none", metadata=one_of("none", "complement"))  # complement: + (1 - sum of weights) x
    output_norm: str = field(default="none", metadata=NORM)  # of y
    norm_eps: float = field(default=1e-6, metadata=WEIGHT)  # of all norms: rms = sqrt(mean(x^2) + eps)
    shared_intermediate_size: int = field(default=0, metadata=COUNT)  # of each shared expert; 0: there is none
    shared_count: int = field(default=1, metadata=POSITIVE)  # n, separate shared experts; their sum is one of width n S
    # y = (routed + shared) / c, c = 1, 2 or the root of 2
    shared_combine: str = field(default="sum", metadata=one_of("sum", "average", "sqrt2"))
    shared_gate: bool = False  # sigmoid(x . w_shared_gate) times the shared expert
    # of the shared expert; None: as the routed experts
    shared_activation: str | None = field(default=None, metadata=one_of("silu", "gelu", "gelu_tanh", "relu", "relu2"))
    shared_limit: float | None = field(default=None, metadata=WEIGHT)  # of the shared expert; None: as the routed ones
    shared_clamped: bool = True  # False: no limit on the shared expert

    @cached_property
    def num_weightless(self):
        """Experts without matrices."""
        return self.constant_experts + self.identity_experts + self.zero_experts

    def of_shared(self):
        """The section as the shared expert reads it: its own activation and limit in their places."""
        limit = self.limit if self.shared_limit is None else self.shared_limit
        activation = self.shared_activation or self.activation
        own = {"limit": limit if self.shared_clamped else None, "activation": activation}
        return dataclasses.replace(self, **own, weight_position="output")


@dataclass(frozen=True, kw_only=True)
class MoEConfig(Section):
    """One mixture-of-experts layer.   Spec 0.3

    hidden_size D, intermediate_size F, num_experts E, top_k K.
    Raises TypeError or ValueError naming the field, what was expected, what came and a fix.
    """

    hidden_size: int = field(metadata=POSITIVE)  # D, the width of a token
    intermediate_size: int = field(metadata=POSITIVE)  # F, the width of an expert
    num_experts: int = field(metadata=POSITIVE)  # E, routed experts with weights
    top_k: int = field(metadata=POSITIVE)  # K, experts a token
    routing: RoutingConfig = field(default_factory=RoutingConfig, metadata={"section": RoutingConfig})
    dispatch: DispatchConfig = field(default_factory=DispatchConfig, metadata={"section": DispatchConfig})
    experts: ExpertsConfig = field(default_factory=ExpertsConfig, metadata={"section": ExpertsConfig})
    losses: LossesConfig = field(default_factory=LossesConfig, metadata={"section": LossesConfig})

    def __post_init__(self):
        super().__post_init__()
        check_together(self)
        warn_of_constant_weight(self)

    # A configuration never changes, and every call of a layer asks: what follows from it is told once.

    @cached_property
    def needs_given(self):
        """Names of `refmoe.Given` without which there is no layer; `token_ids` unless the selection is replayed."""
        asked = {
            "coin": self.routing.second_expert == "random",
            "priority": self.dispatch.drop_policy == "random",
            "token_ids": self.routing.hash_vocab_size > 0,
            "sequence_ids": self.needs_sequences,
        }
        return tuple(name for name, needed in asked.items() if needed)

    @cached_property
    def needs_sequences(self):
        """Does a rule count, or mix, within sequences?"""
        drops = self.dispatch.limited and self.dispatch.capacity_scope == "sequence"
        mixes = self.routing.selection == "soft" and self.routing.soft_scope == "sequence"
        return drops or mixes or self.losses.by_sequence

    @cached_property
    def drops(self):
        """May a slot that is used not be dispatched?"""
        return self.dispatch.limited or self.routing.second_expert == "random"

    @cached_property
    def num_logits(self):
        """Logits of a token: one for each id it may choose, or for each slot of a soft mixture."""
        soft = self.routing.selection == "soft"
        return self.num_experts * self.routing.slots_per_expert if soft else self.num_choices

    @cached_property
    def num_choices(self):
        """Ids a token may choose: the experts with weights come first."""
        return self.num_experts + self.experts.num_weightless

    @cached_property
    def expert_width(self):
        """Width of an expert's input and output."""
        return self.experts.latent_size or self.hidden_size

    @classmethod
    def from_dict(cls, data):
        """A configuration from nested sections, or from the flat field names of a Hugging Face config."""
        return build(cls, with_house_names(data), "config")

    @classmethod
    def from_json(cls, path):
        """The configuration in a JSON file. Unknown and repeated keys are errors."""
        return cls.from_dict(load_json(path))

    def to_dict(self):
        """Nested plain dictionaries, every field present; `from_dict` takes them back."""
        return dataclasses.asdict(self)
