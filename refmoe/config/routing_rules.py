"""Which fields of the routing contradict each other, or the rest: (holds, argument, expected, got, fix).   Spec 1"""

SELECTIONS = ("topk", "per_group", "hash", "threshold", "top_p", "sparsemixer", "assignment", "expert_choice", "soft")
# A token has any number of experts; K is the largest count.
VARIABLE_SELECTIONS = ("threshold", "top_p", "expert_choice")


def routing_rules(config):
    """The rules of the section `routing`."""
    for rules in (_front, _selection, _weights, _second_expert):
        yield from rules(config)


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
