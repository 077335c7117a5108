"""E3: the loss-free selection bias, its rules side by side.   spec/lab/E3.md"""

import numpy as np

from ...config import RoutingConfig
from ...losses import (
    update_by_centred_sign,
    update_by_pid,
    update_by_quantile,
    update_in_proportion,
    update_selection_bias,
)
from ..experiment import Experiment, Finding
from ..measures import max_violation, mean
from ..plots import curves, label_panel, strip
from ..settings import exact
from ..student import judge, layer, train
from ..tasks import Clusters, study

WINDOW = 50  # last steps that are looked at


def arms(settings):
    return (*(f"sign {exact(rate)}" for rate in settings["rates"]), "centred sign", "proportional", "pid", "quantile")


def make_control(arm, settings):
    """(selection_bias, record) -> the next one, by the rule of the arm."""
    word, _, rate = arm.partition(" ")
    if word == "pid":
        return _pid((settings["gain"], settings["gain"] / 10, 0.0))
    if word == "quantile":
        return lambda bias, record: update_by_quantile(record.routing.scores, bias, settings["top_k"], study())
    rule, rate = {
        "sign": (update_selection_bias, rate),
        "centred": (update_by_centred_sign, settings["rates"][-1]),
        "proportional": (update_in_proportion, settings["gain"] * settings["experts"] / settings["tokens"]),
    }[word]
    return lambda bias, record: rule(bias, record.plan.assigned_per_expert, float(rate), study())


def _pid(gains):
    kept = [None]

    def control(bias, record):
        bias, kept[0] = update_by_pid(bias, record.plan.assigned_per_expert, gains, kept[0], study())
        return bias

    return control


def measure(arm, seed, settings):
    """Trains with one rule; imbalance of every batch, and the biases."""
    s = settings
    config = layer(s["hidden"], s["width"], s["experts"], s["top_k"], routing=RoutingConfig(selection_bias=True))
    task, violations, biases = Clusters(seed, s["hidden"], s["clusters"]), [], []
    for step in train(config, task, s["steps"], s["tokens"], s["rate"], control=make_control(arm, s)):
        violations.append(max_violation(step.record.plan.assigned_per_expert))
        biases.append(step.params.selection_bias.tolist())
    last = np.array(biases[-WINDOW:])
    swing = mean((last.max(axis=0) - last.min(axis=0)) / 2)
    numbers = judge(step.params, config, task) | {"late_violation": mean(violations[-WINDOW:]), "swing": swing}
    every = max(1, s["steps"] // 40)
    smooth = [mean(violations[at : at + every]) for at in range(0, len(violations) - every + 1, every)]
    return {"numbers": numbers, "series": {"violations": smooth, "biases": biases[::every]}}


def findings(table, settings):
    t, (slow, *_, fast) = table, [f"sign {exact(rate)}" for rate in settings["rates"]]
    ratio = settings["rates"][-1] / settings["rates"][0]
    return [
        Finding("swing", f"The sign rule's biases swing wider at rate {exact(settings['rates'][-1])} than at "
                f"{exact(settings['rates'][0])} ({ratio:g} times the rate)", t.difference(fast, slow, "swing")),
        Finding("quantile", "Late batches are more even by the quantile than by the fast sign rule",
                t.difference(fast, "quantile", "late_violation")),
        Finding("proportional", "Late batches are more even by the proportional than by the fast sign rule",
                t.difference(fast, "proportional", "late_violation")),
        Finding("error", "The error is lower by the quantile than by the fast sign rule",
                t.difference(fast, "quantile", "error")),
    ]  # fmt: skip


def draw(figure, table, settings):
    names = arms(settings)
    axes = figure.subplot_mosaic([["time", "time", "time"], ["late", "swing", "error"]])
    groups = [table.series(arm, "violations") for arm in names]
    at = np.arange(len(groups[0][0])) * max(1, settings["steps"] // 40)
    curves(axes["time"], at, groups, names)
    label_panel(axes["time"], "Greatest load over an even one, less 1 (0 is even), along the way", "step", "imbalance")
    for panel, name, title in (("late", "late_violation", f"Imbalance, last {min(WINDOW, settings['steps'])} steps"),
                               ("swing", "swing", "Half the swing of a bias in them"),
                               ("error", "error", "Error (1 = predicting the mean)")):  # fmt: skip
        strip(axes[panel], names, [table.numbers(arm, name) for arm in names])
        label_panel(axes[panel], title)
        axes[panel].tick_params(axis="x", labelsize=9)


EXPERIMENT = Experiment(
    id="E3",
    name="bias-rules",
    title="The selection bias, its rules side by side",
    question="Which rule for the selection bias balances fastest and steadiest, and at what cost?",
    settings={"steps": 300, "tokens": 256, "experts": 8, "top_k": 1, "hidden": 12, "width": 16, "clusters": 8,
              "rate": 0.005, "rates": (0.001, 0.01), "gain": 0.01},
    quick={"steps": 40, "tokens": 128},
    arms=arms,
    measure=measure,
    findings=findings,
    draw=draw,
    limits=(
        ("rates", "rates above 0", lambda s: s["rates"][0] > 0),
        ("top_k", "below experts, so that some are not chosen", lambda s: s["top_k"] < s["experts"]),
    ),
)  # fmt: skip
