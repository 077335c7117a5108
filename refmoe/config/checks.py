"""What each field may hold, and which fields contradict each other.   Spec 0.3, 0.4"""

import dataclasses
import math
import warnings

from ..refusals import require
from .loss_rules import loss_rules

SELECTIONS = ("topk", "per_group", "hash", "threshold", "top_p", "sparsemixer", "assignment", "expert_choice", "soft")
# A token has any number of experts; K is the largest count.
VARIABLE_SELECTIONS = ("threshold", "top_p", "expert_choice")

POSITIVE = {"minimum": 1}
COUNT = {"minimum": 0}
FLOAT = {"kind": float}
WEIGHT = {"kind": float, "minimum": 0.0}


def one_of(*values):
    """The metadata of a field that takes one of these values."""
    return {"one_of": values}


class Section:
    """A part of the configuration: checks each field against its metadata when it is made."""

    def __post_init__(self):
        for spec in dataclasses.fields(self):
            value = _checked(spec, getattr(self, spec.name), f"{type(self).__name__}.{spec.name}")
            object.__setattr__(self, spec.name, value)


def _checked(spec, value, where):
    rule = spec.metadata
    if value is None and spec.default is None:
        return value
    if "section" in rule:
        wanted = rule["section"]
        return _typed(isinstance(value, wanted), where, f"a {wanted.__name__}", value)
    if "one_of" in rule:
        wanted = "one of " + ", ".join(map(repr, rule["one_of"]))
        ok = any(value == allowed and type(value) is type(allowed) for allowed in rule["one_of"])
        require(ok, ValueError, where, wanted, repr(value), "choose one of these")
        return value
    if isinstance(spec.default, bool):
        return _typed(isinstance(value, bool), where, "True or False", value)
    value = _float(value, where) if rule.get("kind") is float else _integer(value, where)
    low = rule.get("minimum", -math.inf)
    require(value >= low, ValueError, where, f"at least {low}", repr(value), "raise it")
    return value


def _typed(condition, where, expected, value):
    require(condition, TypeError, where, expected, repr(value), "correct the type")
    return value


def _float(value, where):
    if isinstance(value, str):  # a constant that a model rounded first is written as a hexadecimal float
        is_hex = value.lstrip("+-").startswith("0x")
        value = _read(float.fromhex, _typed(is_hex, where, "a number or a hexadecimal float string", value), where)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    value = _read(float, _typed(is_number, where, "a number", value), where)
    require(math.isfinite(value), ValueError, where, "a finite number", repr(value), "leave it out for no value")
    return value


def _read(into, value, where):
    try:
        return into(value)
    except (ValueError, OverflowError):  # what is no hexadecimal float, or larger than any
        found = None
    got = str(value) if len(str(value)) < 40 else f"{str(value)[:40]}..."
    require(found is not None, ValueError, where, "a number that binary64 holds", got, "correct it")


def _integer(value, where):
    value = int(_typed(hasattr(value, "__index__") and not isinstance(value, bool), where, "an integer", value))
    require(value < 1 << 63, ValueError, where, "an integer below 2^63", f"{value!r:.40}", "lower it")
    return value


# --- fields that contradict each other: (holds, argument, expected, got, fix) ----------------------------------------


def check_together(config):
    """Raises ValueError for the first pair of fields that contradict each other, naming both."""
    for rules in (_soft, _front, _selection, _weights, _second_expert, _dispatch, _experts, loss_rules):
        for holds, argument, expected, got, fix in rules(config):
            require(holds, ValueError, argument, expected, repr(got), fix)


def _front(config):
    r = config.routing
    yield r.input_norm_eps > 0, "routing.input_norm_eps", "a positive number", r.input_norm_eps, "0 / 0 has no value"
    ok = r.input_norm != "none" or r.input_norm_eps == 1e-6
    fix = "set input_norm='rms_scaled' or leave it out"
    yield ok, "routing.input_norm_eps", "its default without input_norm", r.input_norm_eps, fix
    fix = "equal logits choose nothing"
    yield r.logits_scale != 0, "routing.logits_scale", "a number other than 0", r.logits_scale, fix
    yield r.logits_softcap != 0, "routing.logits_softcap", "a positive number or None", r.logits_softcap, "raise it"
    ok = (r.noise == "fixed") == (r.noise_std > 0)
    fix = "set both noise='fixed' and noise_std, or neither"
    yield ok, "routing.noise_std", "a positive number with noise='fixed', 0 without", r.noise_std, fix
    ok = r.noise == "learned" or r.noise_floor == 0.01
    fix = "set noise='learned' or leave it out"
    yield ok, "routing.noise_floor", "its default without noise='learned'", r.noise_floor, fix


# What a soft mixture reads: its own fields, and of `experts` what happens inside an expert or the shared one.
SOFT_FIELDS = {"slots_per_expert": 1, "soft_scope": "batch", "soft_norm_eps": 1e-6}
SOFT_EXPERTS = (
    "gated",
    "activation",
    "alpha",
    "limit",
    "limit_position",
    "gate_softcap",
    "up_softcap",
    "linear_offset",
)
SOFT_READS = {"selection", *SOFT_FIELDS, *SOFT_EXPERTS, "biases", "output_norm", "norm_eps"}


def _soft(config):
    """Nobody is chosen, weighed, dropped or counted: every field that speaks of it must be left alone."""
    if config.routing.selection != "soft":
        for name, neutral in SOFT_FIELDS.items():
            value, fix = getattr(config.routing, name), "set routing.selection='soft' or leave it out"
            yield value == neutral, f"routing.{name}", f"{neutral!r} without selection 'soft'", value, fix
        return
    fix = "every slot is read: leave it at 1"
    yield config.top_k == 1, "top_k", "1 with routing.selection 'soft'", config.top_k, fix
    eps = config.routing.soft_norm_eps
    yield eps > 0, "routing.soft_norm_eps", "a positive number", eps, "a token of zeros has no direction"
    fix = "leave it out: a soft mixture does not read it"
    for part in ("routing", "dispatch", "experts", "losses"):
        section = getattr(config, part)
        for spec in dataclasses.fields(section):
            value, read = getattr(section, spec.name), spec.name in SOFT_READS or spec.name.startswith("shared_")
            ok = read or value == spec.default
            yield ok, f"{part}.{spec.name}", f"{spec.default!r} with routing.selection 'soft'", value, fix


def warn_of_constant_weight(config):
    """Warns where every weight is 1 whatever the router says, so that the task sends it no gradient.   Spec 1.5"""
    r = config.routing
    one = config.top_k == 1 and r.selection not in (*VARIABLE_SELECTIONS, "soft", "sparsemixer")
    if one and r.normalize and r.norm_eps == 0.0 and not r.norm_over_shared:
        warnings.warn(
            "top_k=1 with routing.normalize and no routing.norm_eps: expected a weight that depends on the logits, got "
            "one divided by itself, so the router gets no gradient from the task; set normalize=False",
            UserWarning,
            stacklevel=4,  # whoever makes the MoEConfig
        )


def _selection(config):
    E, K, r = config.num_choices, config.top_k, config.routing
    ids = "num_experts" if E == config.num_experts else "num_experts and experts without weights"
    G, kept, best = r.num_groups, r.top_groups, r.group_score_topn
    yield K <= E, "top_k", f"at most {ids} = {E}", K, f"lower top_k to {E} or add experts"
    yield from _rules(config)
    if r.selection == "per_group":
        yield E % G == 0, "routing.num_groups", f"a divisor of {ids} = {E}", G, "divide the experts evenly"
        fix = "every group gives the same share"
        yield K % G == 0, "top_k", f"a multiple of num_groups = {G} with selection 'per_group'", K, fix
        fix = "every group gives its share of top_k: leave it at 1"
        yield kept == 1, "routing.top_groups", "1 with selection 'per_group'", kept, fix
        return
    yield kept <= G, "routing.top_groups", f"at most num_groups = {G}", kept, f"set top_groups to {G} or less"
    if G == 1:
        return
    yield E % G == 0, "routing.num_groups", f"a divisor of {ids} = {E}", G, "divide the experts evenly"
    size = E // G
    yield (
        best <= size,
        "routing.group_score_topn",
        f"at most the {size} experts of a group",
        best,
        f"set {size} or less",
    )
    yield K <= kept * size, "top_k", f"at most {kept * size}, the experts of kept groups", K, "keep more groups"


def _rules(config):
    """Fields that only some rules of selection read."""
    r = config.routing
    yield from _variable(config)
    yield from _sparsemixer(config)
    yield from _assignment(config)
    yield from _expert_choice(config)
    for name, (rule, neutral) in _READ_BY.items():
        value = getattr(r, name)
        ok, fix = r.selection == rule or value == neutral, f"set selection={rule!r}"
        yield ok, f"routing.{name}", f"{neutral} with selection {r.selection!r}", value, fix
    yield r.top_p > 0, "routing.top_p", "a positive sum", r.top_p, "every set reaches 0: raise it"
    grouped = r.selection in ("topk", "per_group")
    fix = "groups belong to selection 'topk' and 'per_group'"
    yield grouped or r.num_groups == 1, "routing.num_groups", f"1 with selection {r.selection!r}", r.num_groups, fix
    base, n = r.selection_base == "sinkhorn", r.sinkhorn_iterations
    fix = "set selection_base='sinkhorn'"
    yield base or n == 16, "routing.sinkhorn_iterations", f"16 with selection_base {r.selection_base!r}", n, fix
    ok = not base or r.selection != "hash"
    yield ok, "routing.selection_base", "'scores' with selection 'hash'", r.selection_base, "a table ranks nothing"
    hashed, V = r.selection == "hash", r.hash_vocab_size
    fix = "the table has a row for each token id: set hash_vocab_size"
    yield V > 0 or not hashed, "routing.hash_vocab_size", "the size of the vocabulary with selection 'hash'", V, fix
    yield hashed or V == 0, "routing.hash_vocab_size", f"0 with selection {r.selection!r}", V, "set selection='hash'"
    fix = "a table ranks nothing that a bias could move"
    ok = not (hashed and r.selection_bias)
    yield ok, "routing.selection_bias", "False with selection 'hash'", r.selection_bias, fix


# field of routing: the rule of selection that reads it, and what it holds for all others
_READ_BY = {"threshold": ("threshold", 0.0), "top_p": ("top_p", 1.0), "sparsemixer_eps": ("sparsemixer", 0.01)}


def _sparsemixer(config):
    """Two rounds over the logits, with weights of their own."""
    r = config.routing
    if r.selection != "sparsemixer":
        return
    fix = "SparseMixer has two rounds, each with a softmax of its own logits"
    yield config.top_k == 2, "top_k", "2 with selection 'sparsemixer'", config.top_k, fix
    wanted = {"score_fn": "softmax", "selection_base": "logits", "selection_bias": False, "normalize": False}
    for name, value in (wanted | {"second_expert": "all"}).items():
        got = getattr(r, name)
        yield got == value, f"routing.{name}", f"{value!r} with selection 'sparsemixer'", got, fix


def _assignment(config):
    """A balanced assignment of the logits, or the largest logit."""
    r, fix = config.routing, "BASE assigns one expert a token, by logits"
    if r.selection != "assignment":
        return
    yield config.top_k == 1, "top_k", "1 with selection 'assignment'", config.top_k, fix
    for name, value in {"selection_base": "logits", "selection_bias": False}.items():
        got = getattr(r, name)
        yield got == value, f"routing.{name}", f"{value!r} with selection 'assignment'", got, fix


def _expert_choice(config):
    """Experts that choose need to know how many tokens they take; then nobody is left to drop."""
    r, d = config.routing, config.dispatch
    by_scope = r.score_fn == "softmax_tokens"
    if r.selection != "expert_choice":
        ok, fix = d.limited or not by_scope or d.capacity_scope == "batch", "a scope is that of a capacity"
        yield ok, "dispatch.capacity_scope", "'batch' without a capacity", d.capacity_scope, fix
        return
    fix = "every expert takes as many tokens as its capacity"
    yield d.limited, "dispatch.capacity", "a capacity or capacity_factor with selection 'expert_choice'", None, fix
    fix = "experts that choose drop nothing: leave it out"
    for name in ("capacity_devices", "keep_at_most"):
        yield getattr(d, name) is None, f"dispatch.{name}", "None with selection 'expert_choice'", getattr(d, name), fix
    ok, fix = config.num_choices == config.num_experts, "what has no weights has no capacity"
    got = config.num_choices - config.num_experts
    yield ok, "experts", "no experts without weights with selection 'expert_choice'", got, fix
    loss, fix = config.losses.balance, "a token's experts are listed by id: none is its first choice"
    ok = loss is None or loss.counts == "all"
    yield ok, "losses.balance.counts", "'all' with selection 'expert_choice'", loss and loss.counts, fix


def _variable(config):
    """What needs to know how many experts a token has."""
    rule = config.routing.selection
    if rule not in VARIABLE_SELECTIONS:
        return
    r, drop, loss = config.routing, config.dispatch.drop_policy, config.losses.balance
    fix = f"selection {rule!r} gives a token any number of experts"
    yield r.second_expert == "all", "routing.second_expert", "'all'", r.second_expert, fix
    yield drop != "random", "dispatch.drop_policy", "'position' or 'probability'", drop, fix
    ok = loss is None or loss.scope != "global" or loss.counts == "first"
    yield ok, "losses.balance.scope", "'batch' or 'sequence' for all choices", loss and loss.scope, fix


def _weights(config):
    r, fix = config.routing, "a weight is shared out among the experts of a token, or normalised over them"
    ok = not (r.divide_by_count and r.normalize)
    yield ok, "routing.divide_by_count", "False with routing.normalize", r.divide_by_count, fix
    r, after = config.routing, config.dispatch.normalize_after_drop
    fix = "set routing.normalize=True or leave it out"
    yield r.normalize or r.norm_eps == 0.0, "routing.norm_eps", "0 without normalize", r.norm_eps, fix
    yield r.normalize or r.norm_p == 1, "routing.norm_p", "1 without normalize", r.norm_p, fix
    yield from _joint(config)
    ok, fix = r.norm_p == 1 or r.norm_eps == 0.0, "a norm of scores is not 0 where a score is not"
    yield ok, "routing.norm_eps", "0 with norm_p above 1", r.norm_eps, fix
    fix = "set routing.normalize=True or leave it out"
    yield r.normalize or not after, "dispatch.normalize_after_drop", "False without routing.normalize", after, fix


def _joint(config):
    """What one sum over routed and shared experts needs: one rule for both, and shared experts."""
    r, x = config.routing, config.experts
    if not r.norm_over_shared:
        return
    for name, got, wanted in (
        ("routing.score_fn", r.score_fn, "sigmoid"),
        ("routing.normalize", r.normalize, True),
        ("routing.norm_p", r.norm_p, 1),
        ("routing.logits_scale", r.logits_scale, 1.0),
        ("routing.logits_softcap", r.logits_softcap, None),
        ("experts.shared_gate", x.shared_gate, False),
    ):
        yield got == wanted, name, f"{wanted!r} with routing.norm_over_shared", got, "leave norm_over_shared out"
    ok, fix = x.shared_intermediate_size > 0, "set experts.shared_intermediate_size"
    yield ok, "routing.norm_over_shared", "False without shared experts", True, fix


def _dispatch(config):
    d = config.dispatch
    both = d.capacity, d.capacity_factor
    yield None in both, "dispatch.capacity", "either capacity or capacity_factor", both, "drop one of the two"
    fix = "set dispatch.capacity_factor or leave it out"
    for name, neutral in (("capacity_rule", "ceil"), ("min_capacity", 0), ("capacity_multiple", 1)):
        ok = d.capacity_factor is not None or getattr(d, name) == neutral
        yield ok, f"dispatch.{name}", f"{neutral!r} without capacity_factor", getattr(d, name), fix
    fix = "set dispatch.capacity or dispatch.capacity_factor"
    yield d.limited or d.drop_policy != "random", "dispatch.drop_policy", "a capacity for 'random'", d.drop_policy, fix
    for name in ("keep_at_most", "capacity_devices"):
        value = getattr(d, name)
        yield d.limited or value is None, f"dispatch.{name}", "None without a capacity", value, fix
    E, devices = config.num_experts, d.capacity_devices or 1
    ok, fix = E % devices == 0, "divide the experts evenly"
    yield ok, "dispatch.capacity_devices", f"a divisor of num_experts = {E}", devices, fix


def _second_expert(config):
    r, K = config.routing, config.top_k
    coin = r.second_expert == "random"
    ok = K == 2 or r.second_expert == "all"
    yield ok, "routing.second_expert", f"'all' with top_k = {K}", r.second_expert, "set top_k to 2"
    if r.second_expert == "sampled":
        fix = "a sampled second expert is the best of the others by noisy logits"
        yield r.selection == "topk", "routing.selection", "'topk' with a sampled second expert", r.selection, fix
        yield r.num_groups == 1, "routing.num_groups", "1 with a sampled second expert", r.num_groups, fix
        fix = "given.noise is what it is sampled with"
        yield r.noise == "none", "routing.noise", "'none' with a sampled second expert", r.noise, fix
    ok, fix = coin or r.second_expert_factor == 2.0, "set routing.second_expert='random' or leave it out"
    yield ok, "routing.second_expert_factor", "2.0 without a coin", r.second_expert_factor, fix


def _experts(config):
    x = config.experts
    yield from _gates(x)
    yield from _norms(x)
    ok, fix = x.num_weightless == 0 or x.weight_position != "hidden", "weigh the output"
    yield ok, "experts.weight_position", "'output' or 'input' with experts without weights", x.weight_position, fix
    yield x.alpha > 0, "experts.alpha", "a positive number", x.alpha, "turn the gate's sign in its weights instead"
    ok = x.alpha == 1.0 or x.activation == "silu"
    yield ok, "experts.alpha", "1.0 unless the activation is silu", x.alpha, "set activation='silu' or alpha=1.0"
    clamped = x.limit, x.linear_offset
    ok = x.gated or clamped == (None, 0.0)
    yield ok, "experts.limit", "no limit and no linear_offset without gated", clamped, "set gated=True"
    yield from _shared(x)
    ok = x.shared_intermediate_size > 0 or not x.shared_gate
    fix = "set shared_intermediate_size"
    yield ok, "experts.shared_gate", "False without a shared expert", x.shared_gate, fix


def _gates(x):
    caps = x.gate_softcap, x.up_softcap
    fix = "set gated=True"
    yield x.gated or caps == (None, None), "experts.gate_softcap", "no soft caps without gated", caps, fix
    for name, cap in zip(("gate_softcap", "up_softcap"), caps, strict=True):
        yield cap is None or cap > 0, f"experts.{name}", "a positive number", cap, "leave it out for no cap"
    ok, fix = caps[0] is None or x.activation == "silu", "set activation='silu'"
    yield ok, "experts.gate_softcap", "None unless the activation is silu", caps[0], fix
    ok = caps == (None, None) or x.limit is None
    yield ok, "experts.limit", "None with a soft cap, which bounds the same", x.limit, "choose one of the two"


def _norms(x):
    for name in ("latent_pre_norm", "latent_post_norm"):
        kind = getattr(x, name)
        ok, fix = x.latent_size > 0 or kind == "none", "set latent_size"
        yield ok, f"experts.{name}", "'none' without latent_size", kind, fix
    kinds = x.latent_pre_norm, x.post_expert_norm, x.latent_post_norm, x.output_norm
    ok = x.norm_eps > 0 or set(kinds) == {"none"}
    yield ok, "experts.norm_eps", "a positive number where there is a norm", x.norm_eps, "a row of zeros would be 0/0"
    own, fix = x.post_expert_norm_eps, "set post_expert_norm or leave it out"
    ok = own is None or x.post_expert_norm != "none"
    yield ok, "experts.post_expert_norm_eps", "None without post_expert_norm", own, fix
    fix = "a row of zeros would be 0/0"
    yield own is None or own > 0, "experts.post_expert_norm_eps", "a positive number or None", own, fix
    ok, fix = x.post_expert_norm == "none" or x.num_weightless == 0, "norm neither or none"
    yield ok, "experts.post_expert_norm", "'none' with experts without weights", x.post_expert_norm, fix
    ok = x.residual == "none" or (x.latent_size == 0 and x.weight_position == "output")
    got, fix = (x.latent_size, x.weight_position), "what the weights leave of x has its width"
    yield ok, "experts.residual", "'none' with latent_size, or with the weight elsewhere than on the output", got, fix
    ok, fix = x.shared_intermediate_size > 0 or x.shared_combine == "sum", "set shared_intermediate_size"
    yield ok, "experts.shared_combine", "'sum' without a shared expert", x.shared_combine, fix


def _shared(x):
    own, fix = (x.shared_activation, x.shared_limit), "set shared_intermediate_size"
    ok = x.shared_intermediate_size > 0 or (own == (None, None) and x.shared_clamped)
    yield ok, "experts.shared_activation", "no choice for a shared expert without one", own, fix
    ok = x.shared_count == 1 or (x.shared_intermediate_size > 0 and not x.shared_gate)
    wanted, fix = "1 without a shared expert, or with shared_gate", "a gate weighs one shared expert: merge them"
    yield ok, "experts.shared_count", wanted, x.shared_count, fix
    ok, fix = x.shared_limit is None or (x.gated and x.shared_clamped), "drop one of the two"
    yield ok, "experts.shared_limit", "None without gated, or with shared_clamped=False", x.shared_limit, fix
    ok, fix = x.shared_activation in (None, "silu") or x.gate_softcap is None, "leave shared_activation out"
    yield ok, "experts.shared_activation", "silu with gate_softcap", x.shared_activation, fix
    ok = x.shared_limit is None or (x.gate_softcap, x.up_softcap) == (None, None)
    yield ok, "experts.shared_limit", "None with a soft cap", x.shared_limit, "choose one of the two"
