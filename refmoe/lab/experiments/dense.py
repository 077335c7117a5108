"""E8: a mixture against dense layers of equal active and of equal total size.   spec/lab/E8.md"""

import numpy as np

from ...config import BalanceLoss, LossesConfig
from ..experiment import Experiment, Finding
from ..plots import COLOURS, label_panel
from ..student import judge, layer, trained
from ..tasks import Clusters

KINDS = {"moe": "mixture", "active": "dense, equal active", "total": "dense, equal total"}


def arms(settings):
    return tuple(f"{kind} {count}" for count in settings["clusters"] for kind in KINDS)


def measure(arm, seed, settings):
    """Trains one layer on a task of so many clusters."""
    s, (kind, count) = settings, arm.split()
    losses = LossesConfig(balance=BalanceLoss(coefficient=s["coefficient"]))
    sizes = {"moe": (s["width"], s["experts"], losses), "active": (s["width"], 1, LossesConfig()),
             "total": (s["width"] * s["experts"], 1, LossesConfig())}  # fmt: skip
    width, experts, losses = sizes[kind]
    config, task = layer(s["hidden"], width, experts, 1, losses=losses), Clusters(seed, s["hidden"], int(count))
    step = trained(config, task, s["steps"], s["tokens"], s["rate"])
    numbers = judge(step.params, config, task)
    return {"numbers": {name: numbers[name] for name in ("error", "dead", "max_violation")}, "series": {}}


def findings(table, settings):
    few, many = settings["clusters"][0], settings["clusters"][-1]

    def gap(kind, count):
        return table.difference(f"{kind} {count}", f"moe {count}", "error")

    return [
        Finding("active", f"With {many} clusters the mixture's error is below a dense layer's of equal active size",
                gap("active", many)),
        Finding("total", f"With {many} clusters the mixture's error is below a dense layer's of equal total size",
                gap("total", many)),
        Finding("growth", f"Its lead over equal active size is larger with {many} clusters than with {few}",
                [a - b for a, b in zip(gap("active", many), gap("active", few), strict=True)]),
        Finding("homogeneous", f"With {few} cluster{'s' * (few > 1)} the mixture's error is below the dense layer's of "
                "equal active size", gap("active", few)),
    ]  # fmt: skip


def draw(figure, table, settings):
    """Left: error against the number of clusters; right: what the mixture gains over either dense layer."""
    left, right = figure.subplots(1, 2)
    counts = list(settings["clusters"])
    at = np.arange(len(counts))
    errors = {kind: np.array([table.numbers(f"{kind} {c}", "error") for c in counts]) for kind in KINDS}
    for colour, (kind, word) in zip(COLOURS, KINDS.items()):
        left.plot(at, errors[kind], "o", color=colour, markersize=5, alpha=0.5)
        left.plot(at, errors[kind].mean(axis=1), color=colour, linewidth=3, label=word)
    left.legend(frameon=False)
    label_panel(left, "Error (1 = predicting the mean), a dot a seed", "clusters, each with a map of its own", "error")
    for colour, kind in zip(COLOURS[1:], ("active", "total")):
        gaps = errors[kind] - errors["moe"]
        right.plot(at, gaps, "o", color=colour, markersize=5, alpha=0.5)
        right.plot(at, gaps.mean(axis=1), color=colour, linewidth=3, label=f"over {KINDS[kind]}")
    right.axhline(0, color="#9aa0a6", linewidth=1)
    right.legend(frameon=False)
    label_panel(right, "The mixture's lead (below 0: it loses)", "clusters", "dense error - mixture's error")
    for axes in (left, right):
        axes.set_xticks(at, counts)


EXPERIMENT = Experiment(
    id="E8",
    name="dense",
    title="A mixture against dense layers",
    question="When does a mixture beat a dense layer of equal active, or equal total, size?",
    settings={"steps": 300, "tokens": 256, "experts": 8, "hidden": 12, "width": 16, "clusters": (1, 2, 4, 8, 16),
              "rate": 0.005, "coefficient": 0.1},
    quick={"steps": 40, "tokens": 128, "clusters": (1, 8)},
    arms=arms,
    measure=measure,
    findings=findings,
    draw=draw,
)  # fmt: skip
