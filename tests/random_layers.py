"""Layers nobody thought of: a configuration, parameters and inputs drawn from a number, and what must hold of each.

    python tests/random_layers.py [--first N] [--seconds S]

For each number: NumPy, C and the reading of everything in intervals give the same bits in `exact`, NumPy and C in
`chain` and `float64`; for every fourth, complex step confirms the gradients. Prints a line for each failure; exit 1.
"""

import argparse
import random
import sys
import time

import numpy as np

from refmoe import Given, MoEConfig, Numerics, check_gradients, moe_backward, moe_forward
from refmoe.config import CAPACITY_NAMES
from refmoe.config.checks import SOFT_READS
from refmoe.recipes import assemble_params, carried, generate, init_given, init_params, name_params


def draw_config(rng):
    """A configuration as a dictionary; some are contradictory, and must be refused."""
    E = rng.choice([1, 2, 3, 4, 6, 8])
    few, K = _weightless(rng, E), rng.randint(1, E)
    coin = {"second_expert": rng.choice(["all", "random"])} if K == 2 else {}
    drawn = {
        "hidden_size": rng.randint(1, 7),
        "intermediate_size": rng.randint(1, 6),
        "num_experts": E - sum(few.values()),
        "top_k": K,
        "routing": _routing(rng, E) | coin | _selection(rng, E, K),
        "dispatch": _dispatch(rng),
        "experts": _experts(rng) | few,
        "losses": _losses(rng, E),
    }
    drawn = _soft(rng, drawn) if rng.random() < 0.1 else drawn
    return _agreeing(drawn) if rng.random() < 0.9 else drawn


def _agreeing(drawn):
    """Without the contradictions that would leave too few layers."""
    routing = drawn["routing"]
    if routing.get("norm_over_shared"):
        joint = {"score_fn": "sigmoid", "normalize": True, "norm_p": 1, "logits_scale": 1.0, "logits_softcap": None}
        routing |= joint if routing.get("selection", "topk") == "topk" else {"norm_over_shared": False}
    if routing.get("norm_p", 1) > 1:
        routing["norm_eps"] = 0.0
    if drawn["top_k"] >= drawn["num_experts"]:
        drawn["losses"].pop("load", None)
    if not routing.get("normalize"):
        drawn["dispatch"].pop("normalize_after_drop", None)
    return drawn


def _routing(rng, E):
    groups = rng.choice([g for g in (1, 1, 2, 3, 4) if E % g == 0])
    normalize, noise = rng.random() < 0.6, rng.choice(["none", "none", "learned", "fixed"])
    return {
        "score_fn": rng.choice(["softmax", "sigmoid", "sqrt_softplus", "relu"]),
        "router_bias": rng.random() < 0.3,
        "selection_base": rng.choice(["scores", "logits"]),
        "selection_bias": rng.random() < 0.5,
        "num_groups": groups,
        "top_groups": rng.randint(1, groups),
        "group_score_topn": rng.randint(1, max(1, E // groups)),
        "group_mask": rng.choice(["-inf", "zero"]),
        "normalize": normalize,
        "norm_eps": rng.choice([0.0, 0.0, 1e-20, 1e-3, 0.7]) if normalize else 0.0,
        "norm_over_shared": rng.random() < 0.15,
        "norm_p": rng.choice([1, 1, 1, 2, 3]) if normalize else 1,
        "norm_eps_mode": rng.choice(["add", "clamp"]),
        "scaling_factor": rng.choice([1.0, 2.5, -1.3]),
        "jitter": rng.choice(["none", "none", "router", "block"]),
        "input_norm": rng.choice(["none", "none", "rms_scaled"]),
        "logits_scale": rng.choice([1.0, 1.0, -0.7]),
        "logits_softcap": rng.choice([None, None, 0.5]),
        "noise": noise,
        "noise_std": 0.3 if noise == "fixed" else 0.0,
        "per_expert_scale": rng.random() < 0.2,
        "global_scale": rng.random() < 0.2,
    }


def _selection(rng, E, K):
    """Two layers in three choose by rank; the fields each other rule asks for, over those drawn before."""
    plain = {"num_groups": 1, "top_groups": 1, "group_score_topn": 1}
    shares = rng.choice([g for g in (1, 2, 3, 4) if E % g == 0 and K % g == 0])
    rules = [
        {"selection": "per_group", **plain, "num_groups": shares},
        {"selection": "threshold", **plain, "threshold": rng.choice([0.0, 0.25, 0.5])},
        {"selection": "expert_choice", **plain, "score_fn": rng.choice(["softmax", "softmax_tokens", "sigmoid"])},
        {"score_fn": "softmax_tokens"},
        {"selection": "assignment", **plain, "selection_base": "logits", "selection_bias": False},
        {"selection_base": "sinkhorn", "sinkhorn_iterations": rng.choice([1, 2, 5])},
        {"normalize": False, "norm_eps": 0.0, "divide_by_count": True},
        {"selection": "top_p", **plain, "top_p": rng.choice([0.1, 0.5, 0.9, 1.0, 2.5])},
        {"selection": "hash", **plain, "hash_vocab_size": rng.randint(1, 5), "selection_bias": False},
    ]
    if K == 2:
        mixer = {"score_fn": "softmax", "selection_base": "logits", "selection_bias": False, "normalize": False}
        mixer |= {"selection": "sparsemixer", "norm_eps": 0.0, "sparsemixer_eps": rng.choice([0.01, 0.3])}
        rules.append(plain | mixer)
        rules.append({**plain, "second_expert": "sampled"})
    return rng.choice(rules) if rng.random() < 1 / 3 else {}


def _soft(rng, config):
    """The same experts in a soft mixture: what speaks of choosing left out."""
    routing = {
        "selection": "soft",
        "slots_per_expert": rng.randint(1, 3),
        "soft_scope": rng.choice(["batch", "sequence"]),
    }
    experts = {k: v for k, v in config["experts"].items() if k in SOFT_READS or k.startswith("shared_")}
    return {**config, "top_k": 1, "routing": routing, "dispatch": {}, "losses": {}, "experts": experts}


def _dispatch(rng):
    limits = [{}, {}, {"capacity": rng.randint(0, 5)}, {"capacity_factor": rng.choice([0.0, 0.5, 1.0, 1.25, 3.0])}]
    rules = {"capacity_rule": rng.choice(CAPACITY_NAMES), "min_capacity": rng.randint(0, 2)}
    limits.append({"capacity_factor": rng.choice([0.0, 0.5, 1.0, 1.25, 3.0]), **rules})
    limit = rng.choice(limits)
    if limit:
        limit |= {
            "drop_policy": rng.choice(["position", "probability", "random"]),
            "keep_at_most": rng.choice([None, None, 1, 2]),
            "capacity_devices": rng.choice([None, None, 1, 2]),
        }
    return {
        "slot_order": rng.choice(["slot_major", "token_major", "batch_prioritized"]),
        "capacity_scope": rng.choice(["batch", "sequence"]),
        "normalize_after_drop": rng.random() < 0.2,
    } | limit


def _weightless(rng, E):
    """Experts without matrices among the E ids."""
    names = ("constant_experts", "identity_experts", "zero_experts")
    return {name: 1 for name in names if rng.random() < 0.5} if E > 3 and rng.random() < 0.3 else {}


def _experts(rng):
    gated, activation = rng.random() < 0.7, rng.choice(["silu", "gelu", "gelu_tanh", "relu", "relu2"])
    shared = rng.choice([0, 0, 3, 5])
    widths = _widths(rng, shared)
    return (
        widths
        | _limits(rng, gated, activation)
        | _shared(rng, gated, shared)
        | {
            "gated": gated,
            "activation": activation,
            "alpha": rng.choice([1.0, 1.702]) if activation == "silu" else 1.0,
            "linear_offset": rng.choice([0.0, 1.0]) if gated else 0.0,
            "biases": rng.random() < 0.4,
            "weight_position": rng.choice(["output", "output", "input", "hidden"]),
            "shared_intermediate_size": shared,
            "shared_gate": shared > 0 and widths.get("shared_count") == 1 and rng.random() < 0.7,
        }
    )


def _widths(rng, shared):
    """A narrower space, norms, what else is added."""
    norm = lambda: rng.choice(["none", "rms", "rms_centered"])  # noqa: E731
    fields = {"output_bias": rng.random() < 0.3, "norm_eps": rng.choice([0.1, 0.5])}
    if shared:
        fields["shared_count"] = rng.choice([1, 1, 2, 3])
        fields["shared_combine"] = rng.choice(["sum", "sum", "average", "sqrt2"])
    if rng.random() < 0.3:
        fields |= {"latent_size": rng.randint(1, 4), "latent_pre_norm": norm(), "latent_post_norm": norm()}
    elif rng.random() < 0.2:
        fields["residual"] = "complement"
    if rng.random() < 0.3:
        fields |= {"post_expert_norm": rng.choice([norm(), "rms_input_scaled"]), "output_norm": norm()}
        if fields["post_expert_norm"] != "none":
            fields["post_expert_norm_eps"] = rng.choice([None, None, 0.3])
    return fields


def _limits(rng, gated, activation):
    if not gated:
        return {}
    if activation == "silu" and rng.random() < 0.2:
        return {"gate_softcap": rng.choice([None, 0.5, 4.0]), "up_softcap": rng.choice([0.75, 25.0])}
    return {"limit": rng.choice([None, 0.2, 7.0]), "limit_position": rng.choice(["pre", "post"])}


def _shared(rng, gated, shared):
    if shared == 0 or rng.random() < 0.6:
        return {}
    if gated and rng.random() < 0.5:
        return {"shared_limit": rng.choice([0.1, 3.0])}
    return {"shared_clamped": False, "shared_activation": rng.choice(["silu", "relu", "gelu_tanh"])}


def _losses(rng, E):
    balance = {
        "coefficient": rng.choice([0.01, 0.5]),
        "counts": rng.choice(["all", "first"]),
        "divide_by_k": rng.random() < 0.5,
        "probs": rng.choice(["softmax", "normalized_sigmoid", "sigmoid", "relu"]),
        "scope": rng.choice(["batch", "sequence", "global"]),
        "selection": rng.choice(["actual", "plain"]),
    }
    importance = {"coefficient": 0.3, "gates": rng.choice(["softmax", "topk"]), "ddof": rng.choice([0, 1]) * (E > 1)}
    if rng.random() < 0.3:
        importance |= {"form": "deviation", "ddof": 0}
    some = {"balance": balance, "z": {"coefficient": 0.1}, "importance": importance}
    devices = rng.choice([n for n in range(1, E + 1) if E % n == 0])
    some["device"] = {"coefficient": 0.2, "num_devices": devices, "probs": balance["probs"].replace("relu", "softmax")}
    some["mutual_information"] = {"coefficient": 0.3, "terms": rng.choice(["both", "marginal", "conditional"])}
    some["load"] = {"coefficient": 0.3, "threshold": rng.choice(["others", "kth"]), "ddof": importance["ddof"]}
    some["orthogonality"] = {"coefficient": 0.2, "form": rng.choice(["l1", "frobenius"])}
    some["communication"] = some["device"] | {"device_limit": rng.randint(1, devices), "scope": "sequence"}
    return {name: loss for name, loss in some.items() if rng.random() < 0.5}


def draw_case(number):
    """(config, x, params, d_y, given, store) of a number; None if the configuration contradicts itself."""
    rng = random.Random(number)
    try:
        config = MoEConfig.from_dict(draw_config(rng))
    except ValueError:
        return None
    T, recipe = rng.choice([0, 1, 2, 5, 9]), rng.choice(["bell", "bf16", "wide", "dyadic"])
    store = rng.choice(["float32", "bf16", "fp16"]) if recipe in ("bf16", "dyadic") else "float32"
    params = init_params(config, number, "bf16" if recipe == "wide" else recipe)
    x, d_y = (generate(name, (T, config.hidden_size), number, recipe) for name in ("x", "d_y"))
    return config, x, params, d_y, _given(rng, config, T), store


def _given(rng, config, T):
    loss, earlier = config.losses.balance, None
    if loss is not None and loss.scope == "global":
        earlier = np.full(config.num_choices, config.top_k if loss.counts == "all" else 1)
    mask = np.array([rng.random() < 0.8 for _ in range(T)], bool)
    safe = np.array([rng.random() < 0.3 for _ in range(T)], bool) if config.dispatch.limited else None
    ids = np.arange(T) // 3
    return Given(token_mask=mask, sequence_ids=ids, counts_so_far=earlier, protected=safe, **init_given(config, T))


def policies(store):
    """Groups of policies that must agree in every bit."""
    exact = [Numerics("exact", store, backend=backend) for backend in ("numpy", "c")]
    exact.append(Numerics("exact", store, backend="c", force_tier="exact"))
    chain = [Numerics("chain", store, backend=backend) for backend in ("numpy", "c")]
    return exact, chain, [Numerics("float64", backend=backend) for backend in ("numpy", "c")]


def failures(number):
    """What does not hold of the layer of this number, as sentences; a refusal is no failure."""
    case = draw_case(number)
    if case is None:
        return []
    config, *tensors, store = case
    try:
        found = [f"{group[0].profile}: {name}" for group in policies(store) for name in _moved(config, *tensors, group)]
        if number % 4 == 0 and not (check := check_gradients(config, seed=number)).ok:
            found.append(str(check))
    except ValueError as refused:  # the normaliser of a rule may be zero
        return [] if "expected a positive sum" in str(refused) else [str(refused)]
    return found


def _moved(config, x, params, d_y, given, group):
    """The tensors that differ between the policies of a group."""
    runs = []
    for num in group:
        p = assemble_params({name: carried(array, num.dtype) for name, array in name_params(params).items()})
        X, D, G = x.astype(num.dtype), d_y.astype(num.dtype), _carried(given, num)
        record = moe_forward(X, p, config, num, G)
        grads = moe_backward(D, X, p, record, config, num, G)
        runs.append(dict(_leaves("record", record)) | dict(_leaves("grads", grads)))
    return [name for other in runs[1:] for name in other if other[name] != runs[0][name]]


def _carried(given, num):
    """The same arrays, numbers in the type of the policy."""
    return Given(*(a if a is None or a.dtype.kind != "f" else a.astype(num.dtype) for a in given))


def _leaves(name, value):
    if isinstance(value, tuple):
        for field in value._fields:
            yield from _leaves(f"{name}.{field}", getattr(value, field))
    elif value is not None:
        yield name, np.asarray(value).tobytes()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=300.0)
    asked = parser.parse_args()
    end, number, bad = time.monotonic() + asked.seconds, asked.first, 0
    while time.monotonic() < end:
        for sentence in failures(number):
            bad += 1
            print(f"{number}: {sentence}", flush=True)
        number += 1
    print(f"layers {asked.first} to {number - 1}: {bad} failures")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
