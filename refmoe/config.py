"""Every choice a real mixture-of-experts layer makes, as one frozen configuration.   Spec 0.3

`MoEConfig(hidden_size=, intermediate_size=, num_experts=, top_k=)` is complete: each other field has a neutral default.
The four sections bear the names of the chapters that define them: routing, dispatch, experts, losses.
"""

import dataclasses
import difflib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from .refusals import require

_POSITIVE = {"minimum": 1}
_COUNT = {"minimum": 0}
_FLOAT = {"kind": float}
_WEIGHT = {"kind": float, "minimum": 0.0}


def _one_of(*values):
    return {"one_of": values}


class _Section:
    """Checks each field against its metadata; the checks that join fields stand in `MoEConfig`."""

    def __post_init__(self):
        for spec in dataclasses.fields(self):
            value = _checked(spec, getattr(self, spec.name), f"{type(self).__name__}.{spec.name}")
            object.__setattr__(self, spec.name, value)


def _checked(spec, value, where):
    rule = spec.metadata
    if value is None and spec.default is None:
        return value
    if "section" in rule:
        return _checked_section(rule["section"], value, where)
    if "one_of" in rule:
        _require(value in rule["one_of"], ValueError, where, "one of " + ", ".join(map(repr, rule["one_of"])), value)
        return value
    if isinstance(spec.default, bool):
        _require(isinstance(value, bool), TypeError, where, "True or False", value)
        return value
    value = _number(value, rule.get("kind", int), where)
    low = rule.get("minimum")
    _require(low is None or value >= low, ValueError, where, f"at least {low}", value)
    return value


def _checked_section(section, value, where):
    _require(isinstance(value, section), TypeError, where, f"a {section.__name__}", value)
    return value


def _number(value, kind, where):
    if kind is float:
        if isinstance(value, str):  # a constant that a model rounded first is written as a hexadecimal float
            _require(
                value.lstrip("+-").startswith("0x"), TypeError, where, "a number or a hexadecimal float string", value
            )
            value = float.fromhex(value)
        ok = isinstance(value, (int, float)) and not isinstance(value, bool)
        _require(ok, TypeError, where, "a number", value)
        _require(math.isfinite(value), ValueError, where, "a finite number", value)
        return float(value)
    ok = hasattr(value, "__index__") and not isinstance(value, bool)
    _require(ok, TypeError, where, "an integer", value)
    return int(value)


def _require(condition, error, where, expected, got, fix="correct the field"):
    require(condition, error, where, expected, repr(got), fix)


@dataclass(frozen=True, kw_only=True)
class RoutingConfig(_Section):
    """From logits to weights.   Spec 1"""

    score_fn: str = field(default="softmax", metadata=_one_of("softmax", "sigmoid", "sqrt_softplus"))
    router_bias: bool = False  # a bias that is part of the logits
    selection_base: str = field(default="scores", metadata=_one_of("scores", "logits"))  # what is ranked
    selection_bias: bool = False  # added to what is ranked, never to the weights
    num_groups: int = field(default=1, metadata=_POSITIVE)
    top_groups: int = field(default=1, metadata=_POSITIVE)
    group_score_topn: int = field(default=2, metadata=_POSITIVE)  # a group's score is the sum of its best n
    group_mask: str = field(
        default="-inf", metadata=_one_of("-inf", "zero")
    )  # what experts of other groups are ranked as
    normalize: bool = False  # divide the kept weights by their sum
    norm_eps: float = field(default=0.0, metadata=_WEIGHT)
    norm_eps_mode: str = field(default="add", metadata=_one_of("add", "clamp"))  # sum + eps, or max(sum, eps)
    scaling_factor: float = field(default=1.0, metadata=_FLOAT)


@dataclass(frozen=True, kw_only=True)
class DispatchConfig(_Section):
    """Who goes where, and who is dropped.   Spec 2"""

    capacity: int | None = field(default=None, metadata=_COUNT)  # rows an expert takes; None: all of them
    capacity_factor: float | None = field(default=None, metadata=_WEIGHT)  # capacity = ceil(factor * T * K / E)
    capacity_scope: str = field(default="batch", metadata=_one_of("batch", "sequence"))
    drop_policy: str = field(default="position", metadata=_one_of("position", "probability"))
    slot_order: str = field(default="slot_major", metadata=_one_of("slot_major", "token_major"))
    normalize_after_drop: bool = False  # renormalise over the slots that were kept


@dataclass(frozen=True, kw_only=True)
class ExpertsConfig(_Section):
    """What an expert computes, and the shared expert beside the routed ones.   Spec 3"""

    gated: bool = True
    activation: str = field(default="silu", metadata=_one_of("silu", "gelu", "gelu_tanh", "relu", "relu2"))
    alpha: float = field(default=1.0, metadata=_FLOAT)  # silu(g) = g * sigmoid(alpha * g)
    limit: float | None = field(
        default=None, metadata=_WEIGHT
    )  # gate clamped above, up on both sides, before the activation
    linear_offset: float = field(default=0.0, metadata=_FLOAT)  # added to the clamped up
    biases: bool = False
    weight_position: str = field(default="output", metadata=_one_of("output", "input"))
    shared_intermediate_size: int = field(default=0, metadata=_COUNT)  # 0: no shared expert
    shared_gate: bool = False  # sigmoid(x . w_shared_gate) times the shared expert


@dataclass(frozen=True, kw_only=True)
class BalanceLoss(_Section):
    """coefficient * E * sum_e f_e P_e.   Spec 4.1"""

    coefficient: float = field(default=0.0, metadata=_FLOAT)
    counts: str = field(default="all", metadata=_one_of("all", "first"))  # all K choices, or only the first
    divide_by_k: bool = True  # with all choices: is f a fraction that sums to 1, or to K
    probs: str = field(default="softmax", metadata=_one_of("softmax", "normalized_sigmoid", "sigmoid"))
    scope: str = field(default="batch", metadata=_one_of("batch", "sequence", "global"))
    selection: str = field(default="actual", metadata=_one_of("actual", "plain"))  # plain: top K of the unbiased scores


@dataclass(frozen=True, kw_only=True)
class ZLoss(_Section):
    """coefficient / T * sum_t logsumexp(logits_t)^2.   Spec 4.2"""

    coefficient: float = field(default=0.0, metadata=_FLOAT)


@dataclass(frozen=True, kw_only=True)
class ImportanceLoss(_Section):
    """coefficient * Var(I) / (mean(I)^2 + eps) of the importances I_e = sum_t g_te.   Spec 4.3"""

    coefficient: float = field(default=0.0, metadata=_FLOAT)
    gates: str = field(default="softmax", metadata=_one_of("softmax", "topk"))  # all experts, or softmax over the kept
    ddof: int = field(default=0, metadata=_one_of(0, 1))
    eps: float = field(default=0.0, metadata=_WEIGHT)


@dataclass(frozen=True, kw_only=True)
class LossesConfig(_Section):
    """The losses the router adds to the task's.   Spec 4"""

    balance: BalanceLoss | None = field(default=None, metadata={"section": BalanceLoss})
    z: ZLoss | None = field(default=None, metadata={"section": ZLoss})
    importance: ImportanceLoss | None = field(default=None, metadata={"section": ImportanceLoss})
    bias_update_rate: float = field(default=0.0, metadata=_WEIGHT)  # step of the selection-bias controller


@dataclass(frozen=True, kw_only=True)
class MoEConfig(_Section):
    """One mixture-of-experts layer.   Spec 0.3

    hidden_size D, intermediate_size F, num_experts E, top_k K.
    Raises TypeError or ValueError naming the field, what was expected, what came and a fix.
    """

    hidden_size: int = field(metadata=_POSITIVE)
    intermediate_size: int = field(metadata=_POSITIVE)
    num_experts: int = field(metadata=_POSITIVE)
    top_k: int = field(metadata=_POSITIVE)
    routing: RoutingConfig = field(default_factory=RoutingConfig, metadata={"section": RoutingConfig})
    dispatch: DispatchConfig = field(default_factory=DispatchConfig, metadata={"section": DispatchConfig})
    experts: ExpertsConfig = field(default_factory=ExpertsConfig, metadata={"section": ExpertsConfig})
    losses: LossesConfig = field(default_factory=LossesConfig, metadata={"section": LossesConfig})

    def __post_init__(self):
        super().__post_init__()
        _check_selection(self)
        _check_weights(self)
        _check_dispatch(self)
        _check_experts(self)

    @classmethod
    def from_dict(cls, data):
        """A configuration from nested sections, or from the flat field names of a Hugging Face config."""
        return _build(cls, _with_house_names(data), "config")

    @classmethod
    def from_json(cls, path):
        """The configuration in a JSON file. Unknown and repeated keys are errors."""
        return cls.from_dict(load_json(path))

    def to_dict(self):
        """Nested plain dictionaries, every field present; `from_dict` takes them back."""
        return dataclasses.asdict(self)


def _check_selection(config):
    E, K, r = config.num_experts, config.top_k, config.routing
    _require(K <= E, ValueError, "top_k", f"at most num_experts = {E}", K, f"lower top_k to {E} or add experts")
    if r.num_groups == 1:
        _require(
            r.top_groups == 1,
            ValueError,
            "routing.top_groups",
            "1 when num_groups is 1",
            r.top_groups,
            "set top_groups=1",
        )
        return
    _require(
        E % r.num_groups == 0,
        ValueError,
        "routing.num_groups",
        f"a divisor of num_experts = {E}",
        r.num_groups,
        "choose a number of groups that divides the experts evenly",
    )
    size = E // r.num_groups
    _require(
        r.top_groups <= r.num_groups,
        ValueError,
        "routing.top_groups",
        f"at most num_groups = {r.num_groups}",
        r.top_groups,
        "keep fewer groups",
    )
    _require(
        r.group_score_topn <= size,
        ValueError,
        "routing.group_score_topn",
        f"at most the {size} experts of a group",
        r.group_score_topn,
        f"set group_score_topn to {size} or less",
    )
    _require(
        K <= r.top_groups * size,
        ValueError,
        "top_k",
        f"at most {r.top_groups * size}, the experts of the kept groups",
        K,
        "keep more groups or lower top_k",
    )


def _check_weights(config):
    r = config.routing
    _require(
        r.normalize or r.norm_eps == 0.0,
        ValueError,
        "routing.norm_eps",
        "0 without normalize",
        r.norm_eps,
        "set normalize=True or drop norm_eps",
    )
    after = config.dispatch.normalize_after_drop
    _require(
        r.normalize or not after,
        ValueError,
        "dispatch.normalize_after_drop",
        "False without routing.normalize",
        after,
        "set routing.normalize=True",
    )


def _check_dispatch(config):
    d = config.dispatch
    both = d.capacity is not None and d.capacity_factor is not None
    _require(
        not both,
        ValueError,
        "dispatch.capacity",
        "either capacity or capacity_factor",
        (d.capacity, d.capacity_factor),
        "drop one of the two",
    )


def _check_experts(config):
    x = config.experts
    plain = x.alpha == 1.0 or x.activation == "silu"
    _require(
        plain,
        ValueError,
        "experts.alpha",
        "1.0 unless the activation is silu",
        x.alpha,
        "set activation='silu' or alpha=1.0",
    )
    neutral = x.gated or (x.limit is None and x.linear_offset == 0.0)
    _require(
        neutral,
        ValueError,
        "experts.limit",
        "no limit and no linear_offset without gated",
        (x.limit, x.linear_offset),
        "set gated=True",
    )
    shared = x.shared_intermediate_size > 0
    _require(
        shared or not x.shared_gate,
        ValueError,
        "experts.shared_gate",
        "False without a shared expert",
        x.shared_gate,
        "set shared_intermediate_size",
    )


# --- reading ----------------------------------------------------------------------------------------------------------

# Field names of Hugging Face configs, and where they live here. Values are translated by _HF_VALUES.
HF_NAMES = {
    "num_local_experts": "num_experts",
    "n_routed_experts": "num_experts",
    "num_experts_per_tok": "top_k",
    "num_experts_per_token": "top_k",
    "moe_intermediate_size": "intermediate_size",
    "scoring_func": "routing.score_fn",
    "n_group": "routing.num_groups",
    "topk_group": "routing.top_groups",
    "norm_topk_prob": "routing.normalize",
    "norm_topk_eps": "routing.norm_eps",
    "routed_scaling_factor": "routing.scaling_factor",
    "e_score_correction_bias": "routing.selection_bias",
    "group_score_topn": "routing.group_score_topn",
    "expert_capacity": "dispatch.capacity",
    "hidden_act": "experts.activation",
    "swiglu_alpha": "experts.alpha",
    "swiglu_limit": "experts.limit",
    "glu_linear_offset": "experts.linear_offset",
    "expert_bias": "experts.biases",
    "gated": "experts.gated",
    "shared_expert_intermediate_size": "experts.shared_intermediate_size",
    "shared_expert_gate": "experts.shared_gate",
    "router_z_loss_coef": "losses.z.coefficient",
}
_HF_VALUES = {
    "scoring_func": {"sqrtsoftplus": "sqrt_softplus"},
    "hidden_act": {"gelu_pytorch_tanh": "gelu_tanh", "swish": "silu"},
}


def _with_house_names(data):
    _require(isinstance(data, dict), TypeError, "config", "an object of fields", type(data).__name__)
    out = {key: (dict(value) if isinstance(value, dict) else value) for key, value in data.items()}
    for alias in [key for key in out if key in HF_NAMES]:
        value = out.pop(alias)
        value = _HF_VALUES.get(alias, {}).get(value, value) if isinstance(value, str) else value
        _place(out, HF_NAMES[alias].split("."), value, alias)
    return out


def _place(out, path, value, alias):
    for name in path[:-1]:
        out = out.setdefault(name, {})
    _require(path[-1] not in out, ValueError, alias, f"not together with {path[-1]}", value, f"give {path[-1]} once")
    out[path[-1]] = value


def _build(section, data, where):
    _require(isinstance(data, dict), TypeError, where, f"an object of {section.__name__} fields", data)
    known = {f.name: f for f in dataclasses.fields(section)}
    for key in data:
        _require(key in known, ValueError, where, "known fields", key, _suggestion(key, known))
    missing = [n for n, f in known.items() if _is_required(f) and n not in data]
    _require(not missing, ValueError, where, "the fields " + ", ".join(missing), "an object without them", "add them")
    values = {}
    for key, value in data.items():
        inner = known[key].metadata.get("section")
        nested = inner is not None and isinstance(value, dict)
        values[key] = _build(inner, value, f"{where}.{key}") if nested else value
    return section(**values)


def _is_required(spec):
    return spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING


def _suggestion(key, known):
    close = difflib.get_close_matches(str(key), [*known, *HF_NAMES], n=1)
    return f"did you mean {close[0]!r}?" if close else "known fields are " + ", ".join(known)


def load_json(path):
    """The object in a JSON file; repeated keys, NaN and infinities are refused by name. ValueError names the file."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except FileNotFoundError:
        raise ValueError(f"{path}: expected a JSON file, found none; check the path") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected readable JSON, got {error}; correct the file") from None


def _unique(pairs):
    keys = [key for key, _ in pairs]
    repeated = {key for key in keys if keys.count(key) > 1}
    if repeated:
        raise ValueError(f"the key {sorted(repeated)[0]!r} twice")
    return dict(pairs)


def _no_constant(name):
    raise ValueError(f"the number {name}, which JSON does not have")
