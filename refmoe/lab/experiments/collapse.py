"""E1: without balancing some experts die.   spec/lab/E1.md"""

from ...config import BalanceLoss, LossesConfig, RoutingConfig
from ...losses import update_selection_bias
from ..experiment import Experiment, Finding
from ..plots import heat, label_panel, strip
from ..student import judge, layer, train
from ..tasks import TASKS, study

ARMS = ("none", "loss", "bias")
WORDS = {"none": "no balancing", "loss": "balance loss", "bias": "selection bias"}


def measure(arm, seed, settings):
    """Trains one arm; numbers on a test batch, the load of each expert along the way."""
    s = settings
    losses = LossesConfig(balance=BalanceLoss(coefficient=s["coefficient"])) if arm == "loss" else LossesConfig()
    config = layer(s["hidden"], s["width"], s["experts"], s["top_k"], losses=losses,
                   routing=RoutingConfig(selection_bias=arm == "bias"))  # fmt: skip
    task = TASKS[s["task"]](seed, s["hidden"], s["clusters"])
    loads, errors = [], []
    for step in train(config, task, s["steps"], s["tokens"], s["rate"], control=_control(arm, s["bias_rate"])):
        if step.step % max(1, s["steps"] // 40) == 0:
            loads.append([int(n) for n in step.record.plan.assigned_per_expert])
            errors.append(step.error)
    return {"numbers": judge(step.params, config, task), "series": {"loads": loads, "errors": errors}}


def _control(arm, rate):
    if arm != "bias":
        return None
    return lambda bias, record: update_selection_bias(bias, record.plan.assigned_per_expert, rate, study())


def findings(table, settings):
    """Deaths, and what they cost."""
    t = table
    return [
        Finding("dead_experts", "More experts die without balancing than with the balance loss",
                t.difference("none", "loss", "dead"), "experts"),
        Finding("dead_experts_bias", "More experts die without balancing than with the selection bias",
                t.difference("none", "bias", "dead"), "experts"),
        Finding("error_loss", "The error is higher without balancing than with the balance loss",
                t.difference("none", "loss", "error")),
        Finding("error_bias", "The error is higher without balancing than with the selection bias",
                t.difference("none", "bias", "error")),
        Finding("information", "Experts tell less about clusters without balancing than with the selection bias",
                t.difference("bias", "none", "shared_information")),
    ]  # fmt: skip


def draw(figure, table, settings):
    """Left: every expert's load over the steps, one seed; right: dead experts and error of every seed."""
    axes = figure.subplot_mosaic([["none", "dead"], ["loss", "dead"], ["bias", "error"]], width_ratios=[3, 2])
    for arm in ARMS:
        loads = table.series(arm, "loads")[0]
        image = heat(axes[arm], loads, settings["tokens"] * settings["top_k"], settings["steps"])
        label_panel(axes[arm], f"{WORDS[arm]}: share of the tokens, seed {table.seeds[0]}", "step", "expert")
    figure.colorbar(image, ax=[axes[arm] for arm in ARMS], shrink=0.6, label="even share = 1", location="left")
    words = list(WORDS.values())
    strip(axes["dead"], words, [table.numbers(arm, "dead") for arm in ARMS])
    label_panel(axes["dead"], f"Dead experts of {settings['experts']}, a dot a seed", "", "dead experts")
    strip(axes["error"], words, [table.numbers(arm, "error") for arm in ARMS])
    label_panel(axes["error"], "Error (1 = predicting the mean)", "", "error")


EXPERIMENT = Experiment(
    id="E1",
    name="collapse",
    title="Collapse and dead experts",
    question="Do experts die when nothing balances the router, and what does that cost?",
    settings={"steps": 500, "tokens": 256, "experts": 8, "top_k": 1, "hidden": 12, "width": 16, "clusters": 8,
              "rate": 0.005, "coefficient": 0.1, "bias_rate": 0.001, "task": "clusters"},
    quick={"steps": 60, "tokens": 128},
    arms=lambda settings: ARMS,
    measure=measure,
    findings=findings,
    draw=draw,
    choices={"task": tuple(TASKS)},
)  # fmt: skip
