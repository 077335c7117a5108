"""E7: few wide experts or many narrow ones.   spec/lab/E7.md"""

import numpy as np

from ...config import BalanceLoss, LossesConfig, RoutingConfig
from ...layer import moe_forward
from ..experiment import Experiment, Finding
from ..plots import label_panel, strip
from ..student import judge, layer, trained
from ..tasks import TASKS, TEST, study


def arms(settings):
    return tuple(f"{settings['experts'] * n} experts, top {n}" for n in settings["splits"])


def measure(arm, seed, settings):
    """Trains one split: n times the experts, n times narrower, n times as many a token."""
    s, n = settings, int(arm.split()[-1])
    config = layer(s["hidden"], s["width"] // n, s["experts"] * n, n, routing=RoutingConfig(normalize=n > 1),
                   losses=LossesConfig(balance=BalanceLoss(coefficient=s["coefficient"])))  # fmt: skip
    task = TASKS[s["task"]](seed, s["hidden"])
    params = trained(config, task, s["steps"], s["tokens"], s["rate"]).params
    chosen = np.sort(moe_forward(task.batch(TEST, 1024).x, params, config, study()).routing.topk_indices, axis=1)
    numbers = judge(params, config, task)
    return {"numbers": numbers | {"combinations": len(np.unique(chosen, axis=0))}, "series": {}}


def findings(table, settings):
    coarse, *_, finest = arms(settings)
    return [
        Finding("error", f"The error is lower with {finest} than with {coarse}, at equal active and total size",
                table.difference(coarse, finest, "error")),
        Finding("combinations", f"More different sets of experts are in use with {finest} than with {coarse}",
                table.difference(finest, coarse, "combinations"), "sets"),
        Finding("information", f"A token's first expert tells more about its factors with {finest} than with {coarse}",
                table.difference(finest, coarse, "shared_information")),
    ]  # fmt: skip


def draw(figure, table, settings):
    names = arms(settings)
    titles = {"error": "Error (1 = predicting the mean)", "combinations": "Sets of experts in use",
              "shared_information": "What the first expert tells (1 = all)"}  # fmt: skip
    for axes, (name, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
        strip(axes, names, [table.numbers(arm, name) for arm in names])
        label_panel(axes, title)


EXPERIMENT = Experiment(
    id="E7",
    name="fine",
    title="Few wide experts or many narrow ones",
    question="Do more, narrower experts help at equal active and equal total size?",
    settings={"steps": 400, "tokens": 256, "experts": 4, "hidden": 12, "width": 32, "splits": (1, 2, 4),
              "rate": 0.005, "coefficient": 0.01, "task": "factors"},
    quick={"steps": 30, "tokens": 128},
    arms=arms,
    measure=measure,
    findings=findings,
    draw=draw,
    limits=(("splits", "divisors of width", lambda s: not any(s["width"] % n for n in s["splits"])),),
    choices={"task": tuple(TASKS)},
)  # fmt: skip
