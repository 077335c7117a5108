"""E9: the size of logits, 16 bits, and the z-loss.   spec/lab/E9.md"""

import numpy as np

from ...config import LossesConfig, ZLoss
from ...formats import round_to
from ...layer import moe_forward
from ..experiment import Experiment, Finding
from ..measures import mean
from ..plots import curves, label_panel, strip
from ..student import judge, layer, train
from ..tasks import TEST, Clusters, study

ARMS = ("no z-loss", "z-loss")


def measure(arm, seed, settings):
    """Trains with or without z-loss; then rounds the logits, as they are and scaled, to bf16."""
    s = settings
    losses = LossesConfig(z=ZLoss(coefficient=s["coefficient"])) if arm == "z-loss" else LossesConfig()
    config, task = layer(s["hidden"], s["width"], s["experts"], s["top_k"], losses=losses), Clusters(seed, s["hidden"])
    largest = []
    for step in train(config, task, s["steps"], s["tokens"], s["rate"]):
        if step.step % max(1, s["steps"] // 40) == 0:
            largest.append(float(np.abs(step.record.routing.logits).max()))
    record = moe_forward(task.batch(TEST, 1024).x, step.params, config, study())
    error, flips, margins = rounded(record.routing.logits, s["top_k"])
    scaled = [rounded(record.routing.logits * float(scale), s["top_k"])[:2] for scale in s["scales"]]
    numbers = judge(step.params, config, task)
    numbers |= {"largest_logit": float(np.abs(record.routing.logits).max()), "softmax_error": error, "flips": flips,
                "flipped_margin": margins}  # fmt: skip
    series = {"largest": largest, "scaled_error": [e for e, _ in scaled], "scaled_flips": [f for _, f in scaled]}
    return {"numbers": numbers, "series": series}


def rounded(logits, top_k):
    """Largest change of a softmax, share of changed selections, and their mean margin over the mean of all; 1, the
    mean itself, where none changed: it speaks neither for nor against anything."""
    exact, narrow = _softmax(logits), _softmax(round_to(logits, "bf16").astype(np.float64))
    before, after = (np.sort(np.argsort(-z, axis=1, kind="stable")[:, :top_k], axis=1) for z in (
        logits, round_to(logits, "bf16").astype(np.float64)))  # fmt: skip
    changed = (before != after).any(axis=1)
    ordered = -np.sort(-logits, axis=1)
    margins = ordered[:, top_k - 1] - ordered[:, top_k]
    middle = mean(margins)
    return float(np.abs(exact - narrow).max()), mean(changed), mean(margins[changed]) / middle if changed.any() else 1.0


def _softmax(z):
    return study().evaluate("scores", lambda m, v: m.softmax(v), z, core=1)


def findings(table, settings):
    t, (none, z) = table, ARMS
    first, last = ([series[at] for series in t.series(none, "scaled_error")] for at in (0, -1))
    scales = settings["scales"]
    flips = t.series(none, "scaled_flips")
    return [
        Finding("size", "The largest logit is smaller with the z-loss", t.difference(none, z, "largest_logit")),
        Finding("softmax", "Rounding the logits to bf16 moves the softmax less with the z-loss",
                t.difference(none, z, "softmax_error")),
        Finding("scale", f"It moves more when the logits are {scales[-1]:g} times as large as when {scales[0]:g} times",
                [b - a for a, b in zip(first, last, strict=True)]),
        Finding("flips", f"It changes more selections when the logits are {scales[-1]:g} times as large",
                [series[-1] - series[0] for series in flips], "of the tokens"),
        Finding("margin", "Tokens whose selection it changes have margins below the average",
                [1 - value for value in t.numbers(none, "flipped_margin")], "of the average margin"),
        Finding("error", "The error is lower with the z-loss", t.difference(none, z, "error")),
    ]  # fmt: skip


def draw(figure, table, settings):
    axes = figure.subplot_mosaic([["largest", "scaled"], ["error", "flips"]])
    groups = [table.series(arm, "largest") for arm in ARMS]
    at = np.arange(len(groups[0][0])) * max(1, settings["steps"] // 40)
    curves(axes["largest"], at, groups, ARMS)
    label_panel(axes["largest"], "Largest |logit| of a batch, along the way", "step", "")
    scales = settings["scales"]
    curves(axes["scaled"], np.arange(len(scales)), [table.series(arm, "scaled_error") for arm in ARMS], ARMS)
    axes["scaled"].set_xticks(range(len(scales)), [f"{scale:g}" for scale in scales])
    label_panel(axes["scaled"], "Largest change of a softmax by bf16 logits", "logits, times", "")
    titles = {"error": "Error (1 = predicting the mean)", "flips": "Share of selections changed by bf16 logits"}
    for panel, title in titles.items():
        strip(axes[panel], ARMS, [table.numbers(arm, panel) for arm in ARMS])
        label_panel(axes[panel], title)


EXPERIMENT = Experiment(
    id="E9",
    name="precision",
    title="The size of logits, 16 bits, and the z-loss",
    question="What do 16-bit logits change, and does a z-loss help?",
    settings={"steps": 400, "tokens": 256, "experts": 8, "top_k": 1, "hidden": 12, "width": 16, "rate": 0.005,
              "coefficient": 0.01, "scales": (1.0, 2.0, 4.0, 8.0, 16.0)},
    quick={"steps": 40, "tokens": 128},
    arms=lambda settings: ARMS,
    measure=measure,
    findings=findings,
    draw=draw,
    limits=(("top_k", "below experts, so that some are not chosen", lambda s: s["top_k"] < s["experts"]),),
)  # fmt: skip
