"""Which fields contradict each other, over all sections.   Spec 0.3, 0.4"""

import dataclasses
import warnings

from ..refusals import require
from .expert_rules import expert_rules
from .loss_rules import loss_rules
from .routing_rules import VARIABLE_SELECTIONS, routing_rules


def check_together(config):
    """Raises ValueError for the first pair of fields that contradict each other, naming both."""
    for rules in (_soft, routing_rules, _dispatch, expert_rules, loss_rules):
        for holds, argument, expected, got, fix in rules(config):
            require(holds, ValueError, argument, expected, repr(got), fix)


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
