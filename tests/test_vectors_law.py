"""The committed vectors follow from the law: chapters 0 to 6, in fractions, without the library's arithmetic."""

import json
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
from law_bridge import LAW, differences, to_law
from test_vectors import CHAPTERS, FOLDER, from_file, parsed

import refmoe
from refmoe.golden.digests import sha256
from refmoe.safetensors import DTYPES, element_bytes

GIVEN = (
    *("token_mask", "sequence_ids", "token_ids", "topk_indices", "logits", "counts_so_far"),
    *("coin", "priority", "protected", "noise", "jitter", "multipliers", "assignment_duals"),
)


def law_of(row):
    return LAW.Law(row["profile"], row["store"])


def config_of(row):
    return refmoe.MoEConfig.from_dict(row["config"]).to_dict()


def given_of(scalars):
    return {name: scalars[name] for name in GIVEN if name in scalars}


def route(row, x):
    config, law = config_of(row), law_of(row)
    params = {name: x[name] for name in ("w_router", "router_bias", "selection_bias", "hash_table") if name in x}
    tokens = x.get("x") or [None] * len(x["logits"])
    made = LAW.route(tokens, params, config, law, given_of(x))
    if "d_topk_weights" in x:
        rows = zip(x["d_topk_weights"], made["logits"], made["scores"], made["topk_indices"], strict=True)
        back = [LAW.topk_weights_backward(*values, config) for values in rows]
        made |= {"d_logits_task": [task for task, _ in back], "d_scores": [scores for _, scores in back]}
        if config["routing"]["score_fn"] == "softmax_tokens":
            saved = made["d_scores"], made["logits"], config, given_of(x)
            made["d_logits_task"] = LAW.softmax_tokens_backward(*saved)
    return made


def plan(row, x):
    weights = x.get("topk_weights", [[0] * row["config"]["top_k"] for _ in x["topk_indices"]])
    return LAW.make_plan(x["topk_indices"], weights, config_of(row), given_of(x), x.get("scores"))


def activation(row, x):
    experts, law = config_of(row)["experts"], law_of(row)
    gates = x.get("gate_rows", [[None] * len(x["up_rows"][0])])

    def stage(name, formula, *tensors):
        return [
            [LAW.stored(LAW.format_of(name, law), formula(*v, experts)) for v in zip(*rows)] for rows in zip(*tensors)
        ]

    made = {"hidden_rows": stage("hidden_rows", LAW.hidden, gates, x["up_rows"])}
    saved = x["d_hidden_rows"], gates, x["up_rows"]
    gate = {"d_gate_rows": stage("d_gate_rows", LAW.d_gate, *saved)} if "gate_rows" in x else {}
    return made | gate | {"d_up_rows": stage("d_up_rows", LAW.d_up, *saved)}


def loss(row, x):
    config = config_of(row)
    params = {"selection_bias": x["selection_bias"]} if "selection_bias" in x else {}
    record = LAW.route([None] * len(x["logits"]), params, config, law_of(row), given_of(x))
    record |= {name: x[name] for name in ("clean_logits", "noise_std", "router_gram") if name in x}
    made = LAW.all_losses(record, config, given_of(x))
    for name in LAW.LOSSES_BACKWARD:
        made |= LAW.gradients_of_loss(name, 1, record, config, given_of(x))
    return made


def selection_bias(row, x):
    rate = float.fromhex(row["options"]["rate"])
    return {"selection_bias": LAW.update_selection_bias(x["selection_bias"], x["assigned_per_expert"], rate)}


def pooled(row, x):
    config, given = config_of(row), given_of(x)
    back = LAW.pooled_balance_backward(1, x["layers"], config, given)
    made = {"balance": LAW.stored("float32", LAW.pooled_balance_loss(x["layers"], config, given))}
    return made | {f"d_logits_balance.{layer}": d for layer, d in enumerate(back)}


def controller(row, x):
    words = {n: float.fromhex(w) if str(w).startswith("0x") else w for n, w in row["options"].items()}
    return STEPS[words.pop("rule")](x, config_of(row), **words)


def pid(x, config):
    state = x["load_integral"], x["load_error"]
    made = LAW.update_by_pid(x["selection_bias"], x["assigned_per_expert"], x["gains"], *state)
    return dict(zip(("selection_bias", "load_integral", "load_error"), made, strict=True))


def quantile(x, config, cutoff, rank):
    scores = x["scores"], x["selection_bias"], config["top_k"], cutoff
    return {"required_bias": LAW.required_bias(*scores), "selection_bias": LAW.update_by_quantile(*scores, rank)}


def histogram(x, config, bins):
    b, K = x["selection_bias"], config["top_k"]
    edges = LAW.bias_edges(b, int(bins))
    counts = LAW.bias_histogram(LAW.required_bias(x["scores"], b, K, "next"), edges)
    return {"bias_edges": edges, "counts": counts, "selection_bias": LAW.update_by_histogram(counts, edges, b, K)}


def moved(rule):
    return lambda x, config, rate: {"selection_bias": rule(x["selection_bias"], x["assigned_per_expert"], rate)}


STEPS = {
    "centred_sign": moved(LAW.update_by_centred_sign),
    "proportional": moved(LAW.update_in_proportion),
    "share": lambda x, config, rate, expected: {
        "selection_bias": LAW.update_by_share(x["selection_bias"], x["assigned_per_expert"], rate, expected, config)
    },
    "pid": pid,
    "quantile": quantile,
    "quantile_histogram": histogram,
    "coefficient": lambda x, config, multiplier: {
        "coefficient": LAW.update_coefficient(
            x["coefficient"], x["active"], x["num_tokens"], config["top_k"], multiplier
        )
    },
}


def layer(row, x):
    config, law = config_of(row), law_of(row)
    params = {name.removeprefix("params."): value for name, value in x.items() if name.startswith("params.")}
    record = LAW.layer_forward(x["x"], params, config, law, given_of(x))
    made = LAW.layer_backward(x["d_y"], x["x"], params, record, config, law, given_of(x), None, x.get("d_logits"))
    mixed = {} if record["soft"] is None else flat(record["soft"], "soft.")
    return flat(made) | mixed | record["routing"] | {"y": record["y"]} | (record["losses"] or {})


def routed(row, x):
    config, law, weights = config_of(row), law_of(row), x["topk_weights"]
    params = {name: value for name, value in x.items() if name.startswith(("w_", "b_"))}
    plan = LAW.make_plan(x["topk_indices"], weights, config)
    made, out = LAW.run_routed(x["x"], weights, plan, params, config, law)
    record = {"plan": plan, "routing": {"topk_weights": weights}, "experts": made, "soft": None}
    back, grads = LAW.routed_backward(x["d_y"], x["x"], record, params, config, law)
    rows = back.pop("rows")
    x_rows = LAW.permute(x["x"], plan, config)
    grads = {f"d_{name}": value for name, value in grads.items()}
    return plan | made | {"x_rows": x_rows, "routed": out} | back | rows | grads


def flat(record, prefix=""):
    out = {}
    for name, value in record.items():
        out |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return out


def contract(row, x):
    pairs = list(zip(x["x_rows"][0], x["w"][0], strict=True)) if x["x_rows"][0] else []
    return {"out": [[LAW.contract("y_rows", pairs, law_of(row), x["bias"][0] if "bias" in x else None)]]}


def total(row, x):
    return {"out": [LAW.sum_of("routed", [(term,) for term in terms], law_of(row)) for terms in zip(*x["terms"])]}


def rounding(row, x):
    return {"out": [LAW.convert(value, row["store"]) for value in x["value"]]}


def encode(row, x):
    fmt, overflow = row["options"]["format"], row["options"]["overflow"]
    out = [LAW.round_small(v, fmt, overflow) if v != "-0" else x_zero(fmt) for v in x["value"]]
    return {"out": out, "codes": [code_of(v, fmt) for v in out]}


def x_zero(fmt):
    """What -0 becomes: integers have one zero, E8M0 none."""
    return "nan" if fmt == "E8M0" else Fraction(0) if fmt in LAW.INTEGER_BITS else "-0"


def code_of(value, fmt):
    """The code that decodes to a value; of NaN the one that is written."""
    written = {"E5M2": 0x7E, "E4M3": 0x7F, "E8M0": 0xFF}
    return written[fmt] if value == "nan" else codes_of(fmt)[value]


@cache
def codes_of(fmt):
    bits = LAW.INTEGER_BITS.get(fmt) or (8 if fmt == "E8M0" else LAW.SMALL_FORMATS[fmt][0])
    if fmt == "E8M0":
        return {LAW.decode_scale(code): code for code in range(1 << bits)}
    read = LAW.decode_integer if fmt in LAW.INTEGER_BITS else LAW.decode_small
    return {read(code, fmt): code for code in range(1 << bits)}


def quantise(row, x):
    options, law = row["options"], law_of(row)
    block = [int(size) for size in options["block"].split()] if "block" in options else None
    fmt, own, _, _, has_tensor_scale = LAW.SCHEMES[options["scheme"]]
    made = [LAW.quantise(matrix, options["scheme"], options["rule"], block) for matrix in x["values"]]
    weights = [[[LAW.packed_weight(values, scales, block or own, lambda v: v, m, k, t) for k in range(len(values[0]))]
                for m in range(len(values))] for values, scales, t in made]  # fmt: skip
    codes = [[[code_of(v, fmt) for v in line] for line in values] for values, _, _ in made]
    rows = [[LAW.contract("up_rows", list(zip(a, w, strict=True)), law) for w in weights[0]] for a in x["x_rows"]]
    return {
        "up_rows": rows,
        "codes": [[in_bytes(line, fmt) for line in lines] for lines in codes],
        "scales": [scales for _, scales, _ in made],
        "tensor_scales": [t for _, _, t in made] if has_tensor_scale else None,
        "dequantised": [[[LAW.convert(v, "float32") for v in line] for line in lines] for lines in weights],
    }


def in_bytes(codes, fmt):
    """Codes of four bits two in a byte, the even one low; others as they are."""
    if fmt not in ("E2M1", "int4"):
        return codes
    codes = codes + [0] * (len(codes) % 2)
    return [low + 16 * high for low, high in zip(codes[::2], codes[1::2], strict=True)]


BY_LAW = {
    "encode": encode,
    "quantise": quantise,
    "route": route,
    "plan": plan,
    "activation": activation,
    "loss": loss,
    "selection_bias": selection_bias,
    "pooled": pooled,
    "controller": controller,
    "layer": layer,
    "routed": routed,
    "contract": contract,
    "sum": total,
    "round": rounding,
}


def rows_of(chapter):
    cases = json.loads((FOLDER / chapter / f"{chapter}.json").read_bytes())["cases"]
    return [row for row in cases if row["result"] == "valid" and row["call"] in BY_LAW]


ROWS = [pytest.param(row, id=f"{chapter}-{row['id']}") for chapter in CHAPTERS for row in rows_of(chapter)]


@pytest.mark.parametrize("row", ROWS)
def test_a_vector_follows_from_the_law(row):
    scalars = {name: to_law(array) for name, array in from_file(row).inputs.items()}
    made = BY_LAW[row["call"]](row, scalars)
    for name, tensor in row["expected"].items():
        if name == "logits" and "logits" in scalars:
            continue
        if 0 in tensor["shape"] and made.get(name) is None:
            continue  # the law goes token by token: of no tokens it has nothing to say
        assert made.get(name) is not None, name
        if "sha256" in tensor:
            assert digest_by_law(made[name], tensor) == tensor["sha256"], f"{row['comment']}: {name}"
        else:
            found = differences(made[name], parsed(tensor), name)
            assert not found, f"{row['comment']}: {found}"


def digest_by_law(value, tensor):
    from law_bridge import from_law

    return sha256(element_bytes(from_law(value, np.dtype(DTYPES[tensor["dtype"]]), tensor["shape"])))


def test_the_law_sees_most_vectors():
    every = [
        row for chapter in CHAPTERS for row in json.loads((FOLDER / chapter / f"{chapter}.json").read_bytes())["cases"]
    ]
    assert len(ROWS) >= 0.8 * len(every)
