"""Which fields of the experts contradict each other: (holds, argument, expected, got, fix).   Spec 3"""


def expert_rules(config):
    """The rules of the section `experts`."""
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
