"""E6: a shared expert beside the routed ones.   spec/lab/E6.md"""

import numpy as np

from ...config import BalanceLoss, ExpertsConfig, LossesConfig
from ...layer import moe_forward
from ..experiment import Experiment, Finding
from ..measures import mean, normalised_error
from ..plots import label_panel, strip
from ..student import judge, layer, trained
from ..tasks import TEST, Clusters, study

ARMS = ("two routed", "one routed, one shared")


def measure(arm, seed, settings):
    """Trains one arm on clusters with a part common to all; then takes every routed expert out in turn."""
    s, both = settings, arm == ARMS[0]
    plain = {"gated": False, "activation": "relu", "biases": True}
    experts = ExpertsConfig(**plain, shared_intermediate_size=0 if both else s["width"])
    losses = LossesConfig(balance=BalanceLoss(coefficient=s["coefficient"]))
    config = layer(s["hidden"], s["width"], s["experts"], 2 if both else 1, experts=experts, losses=losses)
    task = Clusters(seed, s["hidden"], s["clusters"], common=s["common"])
    params = trained(config, task, s["steps"], s["tokens"], s["rate"]).params
    numbers = judge(params, config, task)
    without = [error_without(e, params, config, task) for e in range(s["experts"])]
    return {"numbers": numbers | {"ablation": mean(without) - numbers["error"]}, "series": {"without": without}}


def error_without(e, params, config, task):
    """The error when expert e answers nothing."""
    w_down, b_down = np.array(params.w_down), np.array(params.b_down)
    w_down[e], b_down[e] = 0.0, 0.0
    batch = task.batch(TEST, 1024)
    record = moe_forward(batch.x, params._replace(w_down=w_down, b_down=b_down), config, study(), keep="y")
    return normalised_error(record.y, batch.target)


def findings(table, settings):
    t, (routed, shared) = table, ARMS
    return [
        Finding("information", "The routed experts tell more about the cluster when one expert is shared",
                t.difference(shared, routed, "shared_information")),
        Finding("error", "The error is lower with a shared expert, at equal active compute",
                t.difference(routed, shared, "error")),
        Finding("ablation", "Taking a routed expert out costs more when one expert is shared",
                t.difference(shared, routed, "ablation")),
    ]  # fmt: skip


def draw(figure, table, settings):
    titles = {"shared_information": "What experts tell about clusters (1 = all)",
              "error": "Error (1 = predicting the mean)",
              "ablation": "Error added when a routed expert is out"}  # fmt: skip
    for axes, (name, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
        strip(axes, ARMS, [table.numbers(arm, name) for arm in ARMS])
        label_panel(axes, title)


EXPERIMENT = Experiment(
    id="E6",
    name="shared",
    title="A shared expert beside the routed ones",
    question="What changes when one of two active experts is shared by all tokens?",
    settings={"steps": 400, "tokens": 256, "experts": 8, "hidden": 12, "width": 16, "clusters": 8, "common": 1.0,
              "rate": 0.005, "coefficient": 0.1},
    quick={"steps": 40, "tokens": 128},
    arms=lambda settings: ARMS,
    measure=measure,
    findings=findings,
    draw=draw,
    limits=(("experts", "at least 2, for two a token", lambda s: s["experts"] > 1),),
)  # fmt: skip
