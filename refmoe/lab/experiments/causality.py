"""E12: does a token's output depend on later tokens?   spec/lab/E12.md"""

import numpy as np

from ...config import DispatchConfig, RoutingConfig
from ...inputs import Given
from ...layer import moe_forward
from ...selection import is_causal
from ..experiment import Experiment, Finding, check
from ..plots import COLOURS, label_panel
from ..student import layer, start_params
from ..tasks import Clusters, study

LIMIT = {"capacity_factor": 1.0, "capacity_scope": "sequence"}
# arm -> (routing, dispatch, K or None for the setting)
RULES = {
    "top K": ({}, {}, None),
    "top K, threshold": ({"selection": "threshold", "threshold": 0.12}, {}, None),
    "top p": ({"selection": "top_p", "top_p": 0.5}, {}, None),
    "capacity, K 1, by position": ({}, LIMIT, 1),
    "capacity, token-major": ({}, LIMIT | {"slot_order": "token_major"}, None),
    "capacity, slot-major": ({}, LIMIT, None),
    "capacity, batch-prioritised": ({}, LIMIT | {"slot_order": "batch_prioritized"}, None),
    "capacity, by probability": ({}, LIMIT | {"drop_policy": "probability"}, None),
    "capacity of the batch": ({}, {"capacity_factor": 1.0}, 1),
    "softmax over tokens": ({"score_fn": "softmax_tokens"}, {}, None),
    "Sinkhorn": ({"selection_base": "sinkhorn"}, {}, None),
    "expert choice": ({"selection": "expert_choice"}, {"capacity_factor": 1.0}, None),
    "soft mixture": ({"selection": "soft", "slots_per_expert": 2}, {}, 1),
}


def rule_config(arm, settings):
    """The layer of an arm."""
    routing, dispatch, top_k = RULES[arm]
    s = settings
    sections = {"routing": RoutingConfig(**routing), "dispatch": DispatchConfig(**dispatch)}
    return layer(s["hidden"], s["width"], s["experts"], top_k or s["top_k"], **sections)


def measure(arm, seed, settings):
    """Changes the last tokens of the first of two sequences, one at a time; looks at what must not feel it."""
    s, config = settings, rule_config(arm, settings)
    params, batch = start_params(config, seed), Clusters(seed, s["hidden"]).batch(0, s["tokens"])
    if params.soft_scale is not None:
        params = params._replace(soft_scale=np.ones(1))
    params = params._replace(w_router=4 * params.w_router)
    half = s["tokens"] // 2
    given = Given(sequence_ids=(np.arange(s["tokens"]) >= half).astype(np.int64))
    before = moe_forward(batch.x, params, config, study(), given, keep="y").y
    others = Clusters(seed, s["hidden"]).batch(1, s["tokens"]).x
    moved = np.zeros(s["tokens"])
    for at in range(max(0, half - s["changes"]), half):
        x = batch.x.copy()
        x[at] = others[at]
        after = moe_forward(x, params, config, study(), given, keep="y").y
        change = np.abs(after - before).max(axis=1)
        change[at:half] = 0.0  # itself, and what comes after it in its sequence
        moved = np.maximum(moved, change)
    numbers = {"largest": float(moved.max()), "reached": int((moved > 0).sum()) / len(moved),
               "said_causal": int(is_causal(config))}  # fmt: skip
    return {"numbers": numbers, "series": {"moved": moved.tolist()}}


def findings(table, settings):
    """The law's word (chapter 1.9) against what is seen."""
    t = table
    causal = [arm for arm in RULES if t.numbers(arm, "said_causal")[0]]
    others = [arm for arm in RULES if arm not in causal]
    count = range(len(t.seeds))
    worst = [max(t.numbers(arm, "largest")[i] for arm in causal) for i in count]
    seen = [sum(t.numbers(arm, "largest")[i] > 0 for arm in others) for i in count]
    return [
        check("causal", f"No bit changes of earlier outputs, or another sequence's, under the {len(causal)} rules that "
              "chapter 1.9 calls causal", worst, 0),
        Finding("not_causal", f"Such an output changes under each of the {len(others)} rules that it does not",
                [1 if n == len(others) else -1 for n in seen], detail=f"seen under at least {min(seen)} of them"),
    ]  # fmt: skip


def draw(figure, table, settings):
    axes = figure.subplots()
    names = sorted(RULES, key=lambda arm: (max(table.numbers(arm, "reached")), arm))
    looks = {1: (COLOURS[0], "o", "the law calls it causal"), 0: (COLOURS[1], "X", "the law says it looks ahead")}
    for at, arm in enumerate(names):
        colour, marker, word = looks[table.numbers(arm, "said_causal")[0]]
        values = table.numbers(arm, "reached")
        axes.plot(values, np.full(len(values), at), marker, color=colour, markersize=10, alpha=0.8, clip_on=False,
                  label=word)  # fmt: skip
    said = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))  # each word once
    axes.legend(said.values(), said.keys(), frameon=False, loc="lower right")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlim(-0.02, 1.02)
    axes.grid(axis="x", color="#dddddd")
    label_panel(axes, "Who feels a change of a later token, or of another sequence; a mark is a seed",
                "share of tokens whose output changed, though it should know nothing of the change")  # fmt: skip


EXPERIMENT = Experiment(
    id="E12",
    name="causality",
    title="Does a token's output depend on later tokens?",
    question="Under which rules does changing a later token, or another sequence, change an output?",
    settings={"tokens": 64, "changes": 32, "experts": 8, "top_k": 2, "hidden": 12, "width": 16},
    quick={"changes": 8},
    arms=lambda settings: tuple(RULES),
    measure=measure,
    findings=findings,
    draw=draw,
    limits=(("changes", "at most half of tokens, a sequence's length", lambda s: 2 * s["changes"] <= s["tokens"]),),
)
