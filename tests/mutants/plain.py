"""A mixture-of-experts layer, forward and backward, as anybody might write it: loops, and nothing of refmoe.

The gallery's mutants are this text with a few lines replaced. `ACC` keeps partial sums, `ORDER` is the order of terms.
"""

import math

import numpy as np
from ml_dtypes import bfloat16

ACC = float
ORDER = list
BLOCK = 4  # rows of an expert are padded to a multiple of this; what stands in the padding is nobody's


def total(terms):
    acc = ACC(0)
    for term in ORDER(list(terms)):
        acc = ACC(acc + ACC(term))
    return float(acc)


def dot(a, b):
    return total(p * q for p, q in zip(a, b, strict=True))


def kept(array, store="float32"):
    return np.asarray(np.asarray(array, float).astype(bfloat16 if store == "bf16" else np.float32), float)


def sigmoid(v):
    return 1 / (1 + math.exp(-v)) if v > -700 else math.exp(v)


# --- router ----------------------------------------------------------------------------------------------------------


def scores_of(z, kind):
    if kind == "softmax":
        top = max(z)
        powers = [math.exp(v - top) for v in z]
        return [p / total(powers) for p in powers]
    return [sigmoid(v) if kind == "sigmoid" else max(v, 0.0) for v in z]


def best(values, count):
    return sorted(range(len(values)), key=lambda i: (-values[i], i))[:count]


def choose(scores, bias, r, K):
    rank = [s + b for s, b in zip(scores, bias, strict=True)]
    G = r.get("num_groups", 1)
    size = len(rank) // G
    if G > 1:
        groups = [[rank[g * size + i] for i in range(size)] for g in range(G)]
        worth = [total(group[i] for i in best(group, r["group_score_topn"])) for group in groups]
        open_groups = best(worth, r["top_groups"])
        rank = [v if e // size in open_groups else -math.inf for e, v in enumerate(rank)]
    return best(rank, K)


def weights_of(z, s, ids, r):
    used = [e for e in ids if e >= 0]
    w = [s[e] for e in used]
    if r.get("normalize"):
        softmax = r.get("score_fn", "softmax") == "softmax"
        w = scores_of([z[e] for e in used], "softmax") if softmax and used else w
        w = w if softmax else [v / (total(w) + r.get("norm_eps", 0.0)) for v in w]
    w = dict(zip(used, (v * r.get("scaling_factor", 1.0) for v in w), strict=True))
    return [w[e] if e >= 0 else 0.0 for e in ids]


def logits_back(G, z, s, ids, r):
    """The gradient of the logits of one token from that of its weights."""
    kind, c, d_z = r.get("score_fn", "softmax"), r.get("scaling_factor", 1.0), [0.0] * len(z)
    g = {e: c * G_k for e, G_k in zip(ids, G, strict=True) if e >= 0}
    if kind == "softmax":
        p = scores_of([z[e] for e in g], "softmax") if r.get("normalize") and g else s
        p = dict(zip(g, p, strict=True)) if r.get("normalize") else dict(enumerate(s))
        mean = total(g[e] * p[e] for e in g)
        for e in p:
            d_z[e] = p[e] * (g.get(e, 0.0) - mean)
        return d_z
    norm = total(s[e] for e in g) + r.get("norm_eps", 0.0) if r.get("normalize") else 1.0
    mean = total(g[e] * s[e] / norm for e in g) if r.get("normalize") else 0.0
    for e in g:
        slope = s[e] * sigmoid(-z[e]) if kind == "sigmoid" else float(z[e] > 0)
        d_z[e] = (g[e] - mean) / norm * slope
    return d_z


def route(config, x, store="float32"):
    r, K = config.get("routing", {}), config["top_k"]
    z = x["logits"] if "logits" in x else kept([[dot(row, w) for w in x["w_router"]] for row in x["x"]])
    if not np.isfinite(z).all():
        raise ValueError("logits are not finite")
    s = kept([scores_of(row, r.get("score_fn", "softmax")) for row in z]).reshape(np.shape(z))
    bias = x.get("selection_bias", np.zeros(config["num_experts"]))
    ids = x["topk_indices"] if "topk_indices" in x else np.array([choose(row, bias, r, K) for row in s], int)
    check(ids.reshape(-1, K), config["num_experts"])
    w = kept([weights_of(*row, r) for row in zip(z, s, ids)]).reshape(ids.shape)
    made = {"logits": z, "scores": s, "topk_indices": ids.reshape(-1, K), "topk_weights": w.reshape(-1, K)}
    if "d_topk_weights" in x:
        made["d_logits_task"] = kept([logits_back(*row, r) for row in zip(x["d_topk_weights"], z, s, ids)])
    return made


def check(ids, num_experts):
    for row in ids.tolist():
        used = [e for e in row if e >= 0]
        if min(row, default=0) < -1 or max(row, default=0) >= num_experts or len(used) != len(set(used)):
            raise ValueError("topk_indices name no expert, or one twice")


# --- losses ----------------------------------------------------------------------------------------------------------


def loss(config, x, store="float32", ids=None):
    z, E, K = x["logits"], config["num_experts"], config["top_k"]
    mask = x.get("token_mask", np.ones(len(z), bool))
    ids = route(config, x)["topk_indices"] if ids is None else ids
    seen, T = [t for t in range(len(z)) if mask[t]], max(1, int(mask.sum()))
    p = [scores_of(row, "softmax") for row in z]
    made, sections = {}, config.get("losses", {})
    if "balance" in sections:
        f = [sum(1 for t in seen for i in ids[t] if i == e) / (T * K) for e in range(E)]
        c = sections["balance"]["coefficient"] * E / T
        made["balance"] = c * total(f[e] * p[t][e] for t in seen for e in range(E))
        made["d_logits_balance"] = np.zeros((len(z), E))
        for t in seen:
            mean = dot(f, p[t])
            made["d_logits_balance"][t] = [c * p[t][e] * (f[e] - mean) for e in range(E)]
    if "z" in sections:
        lse = [max(row) + math.log(total(math.exp(v - max(row)) for v in row)) for row in z]
        c = sections["z"]["coefficient"] / T
        made["z"] = c * total(lse[t] ** 2 for t in seen)
        made["d_logits_z"] = [[2 * c * lse[t] * v if mask[t] else 0.0 for v in p[t]] for t in range(len(z))]
    return {name: kept(value) for name, value in made.items()}


# --- experts ---------------------------------------------------------------------------------------------------------


def plan(ids, E, capacity):
    """The slots (t, k) of each expert that are served, by token."""
    served = [[] for _ in range(E)]
    for k in range(ids.shape[1]):
        for t in range(len(ids)):
            if ids[t, k] >= 0 and (capacity is None or len(served[ids[t, k]]) < capacity):
                served[ids[t, k]].append((t, k))
    return [sorted(slots) for slots in served]


def act(g, kind, alpha):
    return max(g, 0.0) if kind == "relu" else g * sigmoid(alpha * g)


def act_back(g, kind, alpha):
    s = sigmoid(alpha * g)
    return float(g > 0) if kind == "relu" else s * (1 + alpha * g * (1 - s))


def expert(x_row, w, e, c, store):
    """gate, up and hidden of one row."""
    up = kept([dot(w["w_up"][e][f], x_row) + w["b_up"][e][f] for f in range(len(w["w_up"][e]))], store)
    gate = up
    if c.get("gated", True):
        gate = kept([dot(w["w_gate"][e][f], x_row) + w["b_gate"][e][f] for f in range(len(up))], store)
    L, kind, alpha = c.get("limit", math.inf), c.get("activation", "silu"), c.get("alpha", 1.0)
    factor = [min(max(u, -L), L) + c.get("linear_offset", 0.0) if c.get("gated", True) else 1.0 for u in up]
    return gate, up, kept([act(min(g, L), kind, alpha) * u for g, u in zip(gate, factor, strict=True)], store)


def expert_back(d_hidden, gate, up, c, store):
    L, kind, alpha = c.get("limit", math.inf), c.get("activation", "silu"), c.get("alpha", 1.0)
    if not c.get("gated", True):
        return None, kept([d * act_back(u, kind, alpha) for d, u in zip(d_hidden, up, strict=True)], store)
    rows = list(zip(d_hidden, gate, up, strict=True))
    d_up = [d * act(min(g, L), kind, alpha) if -L <= u <= L else 0.0 for d, g, u in rows]
    d_gate = [d * (min(max(u, -L), L) + c.get("linear_offset", 0.0)) * act_back(g, kind, alpha) if g <= L else 0.0
              for d, g, u in rows]  # fmt: skip
    return kept(d_gate, store), kept(d_up, store)


def routed(config, x, store="float32"):
    """Tokens to their experts and back, the choice and the weights given."""
    ids, weights, tokens, d_y = x["topk_indices"], x["topk_weights"], x["x"], x["d_y"]
    T, D, E, F = *tokens.shape, config["num_experts"], x["w_up"].shape[1]
    check(ids, E)
    c, gated = config.get("experts", {}), config.get("experts", {}).get("gated", True)
    bias = {n: np.zeros((E, D if n == "b_down" else F)) for n in ("b_gate", "b_up", "b_down")}
    w = {**bias, **{n: a for n, a in x.items() if n[:2] in ("w_", "b_")}}
    served = plan(ids, E, config.get("dispatch", {}).get("capacity"))
    starts, ends, offsets = [], [], [0]
    for slots in served:
        starts.append(-(-(ends[-1] if ends else 0) // BLOCK) * BLOCK)
        ends.append(starts[-1] + len(slots))
        offsets.append(offsets[-1] + len(slots))
    size = -(-ends[-1] // BLOCK) * BLOCK
    read, hidden, d_rows = (np.full((size, n), np.nan) for n in (D, F, D))  # the padding is never written
    gate, up, d_gate, d_up = (np.full((size, F), np.nan) for _ in range(4))
    y_rows, d_x_rows, d_hidden = (np.full((size, n), np.nan) for n in (D, D, F))
    row_of = {}
    d_w = {n: np.zeros(np.shape(w[n])) for n in w}
    for e, slots in enumerate(served):
        for i, (t, k) in enumerate(slots):
            at = row_of[t, k] = starts[e] + i
            read[at] = tokens[t]
            gate[at], up[at], hidden[at] = expert(read[at], w, e, c, store)
            y_rows[at] = kept([dot(w["w_down"][e][d], hidden[at]) + w["b_down"][e][d] for d in range(D)], store)
            d_rows[at] = kept(weights[t, k] * d_y[t], store)
            d_hidden[at] = kept([dot(w["w_down"][e][:, f], d_rows[at]) for f in range(F)], store)
            d_gate[at], d_up[at] = expert_back(d_hidden[at], gate[at], up[at], c, store)
            terms = ([(w["w_gate"][e], d_gate[at])] if gated else []) + [(w["w_up"][e], d_up[at])]
            d_x_rows[at] = kept([total(m[f, d] * v[f] for m, v in terms for f in range(F)) for d in range(D)], store)
        rows = range(starts[e], ends[e])
        for d in range(D):
            d_w["b_down"][e, d] = total(d_rows[n, d] for n in rows)
            for f in range(F):
                d_w["w_down"][e, d, f] = total(d_rows[n, d] * hidden[n, f] for n in rows)
                d_w["w_up"][e, f, d] = total(d_up[n, f] * read[n, d] for n in rows)
                if gated:
                    d_w["w_gate"][e, f, d] = total(d_gate[n, f] * read[n, d] for n in rows)
        for f in range(F):
            d_w["b_up"][e, f] = total(d_up[n, f] for n in rows)
            d_w["b_gate"][e, f] = total(d_gate[n, f] for n in rows) if gated else 0.0
    out, d_x, d_weights = np.zeros((T, D)), np.zeros((T, D)), np.zeros(ids.shape)
    for t in range(T):
        mine = [(k, row_of[t, k]) for k in range(ids.shape[1]) if (t, k) in row_of]
        for d in range(D):
            out[t, d] = total(weights[t, k] * y_rows[n, d] for k, n in mine)
            d_x[t, d] = total(d_x_rows[n, d] for _, n in mine)
        for k, n in mine:
            d_weights[t, k] = dot(d_y[t], y_rows[n])
    rows = [n for e in range(E) for n in range(starts[e], ends[e])]
    names = {"x_rows": read, "gate_rows": gate, "up_rows": up, "hidden_rows": hidden, "y_rows": y_rows,
             "d_y_rows": d_rows, "d_hidden_rows": d_hidden, "d_gate_rows": d_gate, "d_up_rows": d_up,
             "d_x_rows": d_x_rows}  # fmt: skip
    made = {n: a[rows] for n, a in names.items() if gated or n not in ("gate_rows", "d_gate_rows")}
    made |= {f"d_{n}": kept(a, store) for n, a in d_w.items() if n in x}
    made |= {"routed": kept(out, store), "d_x_experts": kept(d_x, store), "d_topk_weights": kept(d_weights)}
    return made | {"expert_offsets": np.array(offsets), "tokens_per_expert": np.array([len(s) for s in served])}


def shared(config, x, store):
    """A dense expert that every token reads, behind a sigmoid gate if it has one."""
    own = {n.removeprefix("shared."): a for n, a in x.items() if n.startswith("shared.")}
    T = len(x["x"])
    one = {"num_experts": 1, "experts": config.get("experts", {})}
    gate = np.ones(T)
    if "w_shared_gate" in own:
        gate_logits = kept([dot(own["w_shared_gate"][0], row) for row in x["x"]], store)
        gate = kept([sigmoid(v) for v in gate_logits], store)
    own |= {"topk_indices": np.zeros((T, 1), int), "topk_weights": gate[:, None], "x": x["x"], "d_y": x["d_y"]}
    made = routed(one, own, store)
    d_x = made["d_x_experts"]
    grads = {f"params.shared.{n}": made[f"d_{n}"] for n in ("w_gate", "w_up", "w_down") if n in own}
    if "w_shared_gate" in own:
        d_logits = kept([g * (1 - g) * d for g, d in zip(gate, made["d_topk_weights"][:, 0], strict=True)], store)
        d_x = kept(d_x + np.outer(d_logits, own["w_shared_gate"][0]), store)
        grads["params.shared.w_shared_gate"] = kept([[dot(d_logits, column) for column in x["x"].T]], store)
    return made["routed"], d_x, grads


def layer(config, x, store="float32"):
    x = {name.removeprefix("params."): a for name, a in x.items()}
    choice = route(config, x)
    inner = x | {n: choice[n] for n in ("topk_indices", "topk_weights")}
    experts = routed(config, inner, store)
    back = route(config, x | {"d_topk_weights": experts["d_topk_weights"]})
    d_logits = back["d_logits_task"]
    made = {n: choice[n] for n in ("topk_indices", "topk_weights")} | {"d_logits_task": d_logits}
    if "losses" in config:
        made |= loss(config, {"logits": choice["logits"]}, ids=choice["topk_indices"])
        d_logits = d_logits + made.get("d_logits_balance", 0.0) + made.get("d_logits_z", 0.0)
    d_logits = kept(d_logits)
    y, d_x = experts["routed"], experts["d_x_experts"]
    if "shared.w_up" in x:
        out, d_x_shared, grads = shared(config, x, store)
        y, d_x = y + out, d_x + d_x_shared
        made |= grads | {"d_x_shared": d_x_shared}
    if "logits" not in x:
        d_x_router = kept([[dot(row, column) for column in x["w_router"].T] for row in d_logits], store)
        w_router = kept([[dot(a, b) for b in x["x"].T] for a in d_logits.T], store)
        made |= {"d_x_router": d_x_router, "params.w_router": w_router}
        d_x = d_x + d_x_router
    made |= {"y": kept(y, store), "d_x": kept(d_x, store), "d_logits": d_logits}
    made |= {f"params.{n}": experts[f"d_{n}"] for n in ("w_gate", "w_up", "w_down") if f"d_{n}" in experts}
    return made | {n: experts[n] for n in ("d_x_experts", "d_topk_weights")}


CALLS = {"route": route, "loss": loss, "routed": routed, "layer": layer}


def run(case):
    """name -> array of what a case's call makes."""
    inputs = {name: np.asarray(a, float if a.dtype.kind == "f" else a.dtype) for name, a in case.inputs.items()}
    return CALLS[case.call](case.config, inputs, case.store)
