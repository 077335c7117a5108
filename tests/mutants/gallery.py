"""The gallery: (flag, what is wrong, lines of plain.py and what stands there instead). Each is a bug that was seen."""

MUTANTS = [
    # --- router ---
    (
        "TopOneRenorm",
        "k = 1 is not renormalised",
        ('    if r.get("normalize"):\n        softmax', '    if r.get("normalize") and len(ids) > 1:\n        softmax'),
    ),
    (
        "GroupMask",
        "experts of closed groups ranked as 0",
        ("in open_groups else -math.inf for", "in open_groups else 0.0 for"),
    ),
    ("GroupTopN", "group score is the maximum", ('best(group, r["group_score_topn"])', "best(group, 1)")),
    (
        "GroupBias",
        "group scores without the bias",
        ("[[rank[g * size + i] for i in range(size)]", "[[scores[g * size + i] for i in range(size)]"),
    ),
    (
        "BiasInWeights",
        "the bias leaks into the weights",
        ("weights_of(*row, r) for row in zip(z, s, ids)", "weights_of(*row, r) for row in zip(z, s + bias, ids)"),
    ),
    (
        "SoftmaxOrder",
        "softmax of all, whatever is asked for",
        (
            '    if r.get("normalize"):\n        softmax',
            '    if r.get("normalize") and r.get("score_fn"):\n        softmax',
        ),
    ),
    (
        "SoftmaxOrder",
        "softmax of the kept, whatever is asked for",
        (
            '    if r.get("normalize"):\n        softmax',
            '    if r.get("normalize") or r.get("score_fn", "softmax") == "softmax":\n        softmax',
        ),
    ),
    ("TieHighestId", "ties go to the highest id", ("(-values[i], i))[:count]", "(-values[i], -i))[:count]")),
    (
        "ScaleAfterNorm",
        "scaled before it is renormalised",
        (
            '(v * r.get("scaling_factor", 1.0) for v in w)',
            '(v * (1.0 if r.get("normalize") else r.get("scaling_factor", 1.0)) for v in w)',
        ),
    ),
    (
        "NormEps",
        "epsilon left out",
        ('[v / (total(w) + r.get("norm_eps", 0.0)) for v in w]', "[v / total(w) for v in w]"),
    ),
    ("NormEps", "epsilon as a floor", ('(total(w) + r.get("norm_eps", 0.0))', 'max(total(w), r.get("norm_eps", 0.0))')),
    (
        "SaturatedScores",
        "an epsilon nobody asked for",
        ('(total(w) + r.get("norm_eps", 0.0))', "(total(w) + 1e-9)"),
    ),
    ("SoftmaxJacobian", "only the chosen logits get a gradient", ("        for e in p:\n", "        for e in g:\n")),
    (
        "NormGradient",
        "the normaliser is a constant",
        ('mean = total(g[e] * s[e] / norm for e in g) if r.get("normalize") else 0.0', "mean = 0.0"),
    ),
    ("SigmoidSlope", "gradient of the score for that of the logit", ("s[e] * sigmoid(-z[e]) if", "1.0 if")),
    ("ReluScore", "slope of a relu score at 0", ("float(z[e] > 0)", "float(z[e] >= 0)")),
    ("LargeLogits", "softmax without a shift", ("        top = max(z)\n", "        top = 0.0\n")),
    (
        "LargeLogits",
        "log-sum-exp without a shift",
        (
            "[max(row) + math.log(total(math.exp(v - max(row)) for v in row))",
            "[math.log(total(math.exp(v) for v in row))",
        ),
    ),
    ("Replay", "replayed indices sorted", ('ids = x["topk_indices"] if', 'ids = np.sort(x["topk_indices"]) if')),
    ("Replay", "experts chosen anew", ('x["topk_indices"] if "topk_indices" in x else np.array', "np.array")),
    (
        "UnusedWeight",
        "index -1 is the last expert's weight",
        ("[w[e] if e >= 0 else 0.0 for e", "[w[e] if e >= 0 else s[e] for e"),
    ),
    (
        "RouterFloat32",
        "logits rounded to bf16",
        ('for w in x["w_router"]] for row in x["x"]])', 'for w in x["w_router"]] for row in x["x"]], "bf16")'),
    ),
    (
        "EdgeSizes",
        "a threshold at the next value",
        (
            "    return best(rank, K)\n",
            "    cut = sorted(rank, reverse=True)[K]\n    return [e for e in best(rank, K) if rank[e] > cut]\n",
        ),
    ),
    (
        "RefusedLogits",
        "logits that are not finite let through",
        ("    if not np.isfinite(z).all():\n", "    if False:\n"),
    ),
    ("RefusedIndices", "an expert named twice let through", (" or len(used) != len(set(used)):", ":")),
    ("RefusedIndices", "ids beyond the last let through", (" or max(row, default=0) >= num_experts or", " or")),
    ("RefusedIndices", "ids below -1 let through", ("if min(row, default=0) < -1 or", "if")),
    # --- losses ---
    ("LossFamily", "balance loss not divided by k", ("if i == e) / (T * K) for", "if i == e) / T for")),
    (
        "PaddingMask",
        "padding is counted",
        ('mask = x.get("token_mask", np.ones(len(z), bool))', "mask = np.ones(len(z), bool)"),
    ),
    ("PaddingMask", "averaged over padding too", ("max(1, int(mask.sum()))", "max(1, len(z))")),
    ("LossGradient", "balance gradient without its mean", ("mean = dot(f, p[t])", "mean = 0.0")),
    ("ZLoss", "log-sum-exp not squared", ("total(lse[t] ** 2 for t in seen)", "total(lse[t] for t in seen)")),
    ("ZLoss", "gradient without the 2", ("[2 * c * lse[t] * v", "[c * lse[t] * v")),
    ("NoTokens", "a mean over no tokens", ("max(1, int(mask.sum()))", "int(mask.sum())")),
    ("NoTokens", "a batch without tokens", ("    T, D, E, F = *tokens", "    ids[0]\n    T, D, E, F = *tokens")),
    ("NoTokens", "a router without tokens", ("    s = kept([scores_of(", "    z[0]\n    s = kept([scores_of(")),
    (
        "AuxGradient",
        "the loss's gradient dropped",
        ('        d_logits = d_logits + made.get("d_logits_balance", 0.0) + made.get("d_logits_z", 0.0)\n', ""),
    ),
    (
        "AuxGradient",
        "the loss's gradient applied twice",
        ('made.get("d_logits_balance", 0.0) +', '2 * made.get("d_logits_balance", 0.0) +'),
    ),
    (
        "CountBeforeDrop",
        "the loss counts what was kept",
        (
            '        made |= loss(config, {"logits": choice["logits"]}, ids=choice["topk_indices"])\n',
            '        limit = config.get("dispatch", {}).get("capacity")\n'
            '        served = plan(choice["topk_indices"], config["num_experts"], limit)\n'
            "        kept_slots = {slot for slots in served for slot in slots}\n"
            "        ids = [[e if (t, k) in kept_slots else -1 for k, e in enumerate(row)]\n"
            '               for t, row in enumerate(choice["topk_indices"])]\n'
            '        made |= loss(config, {"logits": choice["logits"]}, ids=ids)\n',
        ),
    ),
    # --- dispatch ---
    ("RowOrder", "rows in slot order", ("[sorted(slots) for slots in served]", "served")),
    (
        "EmptyExpert",
        "experts without rows skipped",
        (
            "[sorted(slots) for slots in served]",
            "[sorted(slots) for slots in served if slots] + [[] for slots in served if not slots]",
        ),
    ),
    (
        "StaleGradient",
        "gradient of an empty expert left as it was",
        ("d_w = {n: np.zeros(np.shape(w[n])) for n in w}", "d_w = {n: np.ones(np.shape(w[n])) for n in w}"),
        (
            "        rows = range(starts[e], ends[e])\n",
            "        if not slots:\n            continue\n        rows = range(starts[e], ends[e])\n",
        ),
    ),
    (
        "Offsets",
        "offsets one row short",
        ("        rows = range(starts[e], ends[e])\n", "        rows = range(starts[e], ends[e] - 1)\n"),
    ),
    (
        "Offsets",
        "the next expert's weights",
        ("expert(read[at], w, e, c, store)", "expert(read[at], w, (e + 1) % E, c, store)"),
        ('dot(w["w_down"][e][d], hidden[at])', 'dot(w["w_down"][(e + 1) % E][d], hidden[at])'),
    ),
    (
        "PaddedRows",
        "gradients summed over the padding",
        (
            "        rows = range(starts[e], ends[e])\n",
            "        rows = range(starts[e], -(-ends[e] // BLOCK) * BLOCK)\n",
        ),
    ),
    (
        "BlockTail",
        "rows beyond the last full block lost",
        (
            "for i, (t, k) in enumerate(slots):",
            "for i, (t, k) in enumerate(slots[: len(slots) // BLOCK * BLOCK or BLOCK]):",
        ),
    ),
    (
        "PowerOfTwo",
        "ids masked by E - 1",
        (
            "    check(ids, E)\n    c, gated",
            "    check(ids, E)\n    ids = np.where(ids < 0, ids, ids & (E - 1))\n    c, gated",
        ),
    ),
    ("UnusedSlot", "index -1 is the last expert", ("if ids[t, k] >= 0 and (capacity", "if (capacity")),
    (
        "ZeroWeight",
        "weights of 0 not dispatched",
        ("    served = plan(ids, E,", "    served = plan(np.where(weights == 0, -1, ids), E,"),
    ),
    (
        "Capacity",
        "one row more than the capacity",
        ("len(served[ids[t, k]]) < capacity", "len(served[ids[t, k]]) < capacity + (capacity > 0)"),
    ),
    ("CapacityZero", "capacity 0 is no limit", ("(capacity is None or", "(not capacity or")),
    (
        "SlotMajor",
        "token by token",
        (
            "    for k in range(ids.shape[1]):\n        for t in range(len(ids)):\n",
            "    for t in range(len(ids)):\n        for k in range(ids.shape[1]):\n",
        ),
    ),
    (
        "DroppedGradient",
        "a slot without a row keeps a gradient",
        ("np.zeros((T, D)), np.zeros(ids.shape)", "np.zeros((T, D)), np.ones(ids.shape)"),
    ),
    (
        "CombineAdd",
        "a token's rows overwrite each other",
        ("y_rows[n, d] for k, n in mine)", "y_rows[n, d] for k, n in mine[-1:])"),
    ),
    ("CombineAdd", "d_x by assignment", ("d_x_rows[n, d] for _, n in mine)", "d_x_rows[n, d] for _, n in mine[-1:])")),
    ("WeightTwice", "the weight applied twice", ("total(weights[t, k] * y_rows", "total(weights[t, k] ** 2 * y_rows")),
    (
        "WeightTwice",
        "the weight left out on the way back",
        ("kept(weights[t, k] * d_y[t], store)", "kept(d_y[t], store)"),
    ),
    (
        "WeightGradient",
        "gradient from the weighted row",
        ("d_weights[t, k] = dot(d_y[t], y_rows[n])", "d_weights[t, k] = weights[t, k] * dot(d_y[t], y_rows[n])"),
    ),
    (
        "WeightPlace",
        "the weight on the expert's input",
        ("read[at] = tokens[t]\n", "read[at] = weights[t, k] * tokens[t]\n"),
        ("total(weights[t, k] * y_rows", "total(y_rows"),
    ),
    (
        "DropRenorm",
        "renormalised after the drop",
        (
            "    experts = routed(config, inner, store)\n",
            '    limit = config.get("dispatch", {}).get("capacity")\n'
            '    served = plan(choice["topk_indices"], config["num_experts"], limit)\n'
            '    for t, row in enumerate(inner["topk_weights"]):\n'
            "        own = total(row[k] for slots in served for s, k in slots if s == t)\n"
            "        row *= total(row) / own if own else 1.0\n"
            "    experts = routed(config, inner, store)\n",
        ),
    ),
    # --- experts ---
    (
        "GateUp",
        "gate and up exchanged",
        (
            "    w = {**bias, **{n: a for n, a in x.items() if n[:2] in",
            '    x = x | ({"w_gate": x["w_up"], "w_up": x["w_gate"]} if gated else {})\n'
            "    w = {**bias, **{n: a for n, a in x.items() if n[:2] in",
        ),
    ),
    (
        "GateUpLayout",
        "gate and up interleaved",
        (
            "    w = {**bias, **{n: a for n, a in x.items() if n[:2] in",
            '    both = np.concatenate([x["w_gate"], x["w_up"]], axis=1) if gated else None\n'
            '    x = x | ({"w_gate": both[:, ::2], "w_up": both[:, 1::2]} if gated else {})\n'
            "    w = {**bias, **{n: a for n, a in x.items() if n[:2] in",
        ),
    ),
    (
        "Orientation",
        "the down matrix transposed",
        ('dot(w["w_down"][e][d], hidden[at])', 'dot(w["w_down"][e][:, d], hidden[at])'),
    ),
    (
        "Orientation",
        "the down matrix not transposed on the way back",
        ('dot(w["w_down"][e][:, f], d_rows[at])', 'dot(w["w_down"][e][f], d_rows[at])'),
    ),
    ("BothPaths", "d_x without the gate's path", ('([(w["w_gate"][e], d_gate[at])] if gated else [])', "[]")),
    (
        "GatedBackward",
        "gradient of the gate without up",
        ('d * (min(max(u, -L), L) + c.get("linear_offset", 0.0)) * act_back', "d * act_back"),
    ),
    (
        "GatedBackward",
        "gradient of up without the activation",
        ("[d * act(min(g, L), kind, alpha) if -L <= u", "[d * g if -L <= u"),
    ),
    ("SiluSlope", "silu' is its sigmoid", ("s * (1 + alpha * g * (1 - s))", "s")),
    ("ReluAtZero", "relu'(0) = 1", ("return float(g > 0) if kind", "return float(g >= 0) if kind")),
    ("ClampEdge", "no gradient at the gate's limit", ("if g <= L else 0.0", "if g < L else 0.0")),
    ("ClampEdge", "no gradient at up's limits", ("if -L <= u <= L else 0.0", "if -L < u < L else 0.0")),
    (
        "ClampSides",
        "gate clamped below as well",
        ("act(min(g, L), kind, alpha) * u for", "act(max(-L, min(g, L)), kind, alpha) * u for"),
    ),
    ("ClampSides", "up clamped on one side", ("factor = [min(max(u, -L), L) +", "factor = [min(u, L) +")),
    (
        "LinearOffset",
        "offset left out",
        ('factor = [min(max(u, -L), L) + c.get("linear_offset", 0.0)', "factor = [min(max(u, -L), L)"),
    ),
    ("Alpha", "alpha left out", ("else g * sigmoid(alpha * g)", "else g * sigmoid(g)")),
    (
        "OneRounding",
        "activation rounded to bf16 first",
        ("kept([act(min(g, L), kind, alpha) * u for", 'kept([kept(act(min(g, L), kind, alpha), "bf16") * u for'),
    ),
    (
        "DownBias",
        "the down bias weighted twice",
        ('hidden[at]) + w["b_down"][e][d] for', 'hidden[at]) + weights[t, k] * w["b_down"][e][d] for'),
    ),
    ("DownBias", "the down bias left out", ('hidden[at]) + w["b_down"][e][d] for', "hidden[at]) for")),
    (
        "BiasGradient",
        "gradient of a bias from one row",
        ("total(d_rows[n, d] for n in rows)", "total(d_rows[n, d] for n in rows[-1:])"),
    ),
    (
        "BiasGradient",
        "gradient of up's bias left out",
        ('d_w["b_up"][e, f] = total(d_up[n, f] for n in rows)', 'd_w["b_up"][e, f] = 0.0'),
    ),
    (
        "LongSum",
        "the last products dropped",
        (
            "    return total(p * q for p, q in zip(a, b, strict=True))",
            "    n = len(a) // 4 * 4 or 4\n    return total(p * q for p, q in zip(a[:n], b[:n], strict=True))",
        ),
    ),
    (
        "NarrowSum",
        "partial sums in float16",
        (
            "    return total(p * q for p, q in zip(a, b, strict=True))",
            "    acc = np.float16(0)\n    for p, q in zip(a, b, strict=True):\n"
            "        acc = np.float16(acc + np.float16(p * q))\n    return float(acc)",
        ),
    ),
    # --- layer ---
    (
        "SharedGate",
        "the shared gate without its sigmoid",
        ("gate = kept([sigmoid(v) for v in gate_logits], store)", "gate = gate_logits"),
    ),
    (
        "SharedGate",
        "the shared gate without a gradient",
        ("        d_x = kept(d_x + np.outer(", "        d_x = kept(d_x + 0 * np.outer("),
    ),
    (
        "SharedExpert",
        "the shared expert left out of y",
        ("        y, d_x = y + out, d_x + d_x_shared\n", "        d_x = d_x + d_x_shared\n"),
    ),
    (
        "SharedExpert",
        "the shared expert left out of d_x",
        ("        y, d_x = y + out, d_x + d_x_shared\n", "        y = y + out\n"),
    ),
    ("SourcesOfX", "d_x without the router", ("        d_x = d_x + d_x_router\n", "")),
]

# Correct in another way: these must pass.
VARIANTS = {
    "float32 sums": ("ACC = float\n", "ACC = np.float32\n"),
    "float32 sums, last term first": (
        "ACC = float\nORDER = list\n",
        "ACC = np.float32\nORDER = lambda terms: terms[::-1]\n",
    ),
    "float32 sums, shuffled": (
        "ACC = float\nORDER = list\n",
        "ACC = np.float32\n"
        "ORDER = lambda terms: [terms[i] for i in np.random.default_rng(len(terms)).permutation(len(terms))]\n",
    ),
    "float32 sums, pairwise": (
        "    acc = ACC(0)\n    for term in ORDER(list(terms)):\n"
        "        acc = ACC(acc + ACC(term))\n    return float(acc)\n",
        "    terms = [np.float32(t) for t in terms]\n    if len(terms) < 2:\n        return float(sum(terms))\n"
        "    half = len(terms) // 2\n    return float(np.float32(total(terms[:half]) + total(terms[half:])))\n",
    ),
    "float64 sums, last term first": ("ORDER = list\n", "ORDER = lambda terms: terms[::-1]\n"),
    "rows of an expert in blocks of seven": ("BLOCK = 4 ", "BLOCK = 7 "),
}
BF16 = ("ACC = float\n", "ACC = bfloat16\n")
