"""E2: how strong a balance loss should be, and what it costs.   spec/lab/E2.md"""

from ...config import BalanceLoss, LossesConfig
from ..experiment import Experiment, Finding
from ..measures import cosine, mean
from ..plots import label_panel, strip
from ..settings import exact
from ..student import judge, layer, train
from ..tasks import Clusters, study


def arms(settings):
    return tuple(exact(c) for c in settings["coefficients"])


def measure(arm, seed, settings):
    """Trains with one coefficient; the angle between the task's and the loss's gradient of the router, on the way."""
    s = settings
    config = layer(s["hidden"], s["width"], s["experts"], s["top_k"],
                   losses=LossesConfig(balance=BalanceLoss(coefficient=float(arm))))  # fmt: skip
    task, cosines = Clusters(seed, s["hidden"], s["clusters"], skew=s["skew"]), []
    for step in train(config, task, s["steps"], s["tokens"], s["rate"]):
        if step.step % max(1, s["steps"] // 40) == 0:
            cosines.append(interference(step, task.batch(step.step, s["tokens"]).x))
    half = cosines[len(cosines) // 2 :]
    return {"numbers": judge(step.params, config, task) | {"cosine": mean(half)}, "series": {"cosines": cosines}}


def interference(step, x):
    """The cosine between d_w_router of the task and of the balance loss; 0 where the loss has none."""
    parts = step.grads.d_logits_task, step.grads.d_logits_balance
    return cosine(*(study().contract_backward_w("d_w_router", d, x) for d in parts))


def findings(table, settings):
    names = arms(settings)
    t, none, middle, most = table, names[0], names[-2], names[-1]
    return [
        Finding("balance", f"Loads are more even with coefficient {most} than with {none}",
                t.difference(none, most, "max_violation")),
        Finding("too_little", f"The error is higher with coefficient {none} than with {middle}",
                t.difference(none, middle, "error")),
        Finding("too_much", f"The error is higher with coefficient {most} than with {middle}",
                t.difference(most, middle, "error")),
        Finding("interference", f"With coefficient {most} the loss's gradient of the router points against the task's",
                [-c for c in t.numbers(most, "cosine")]),
    ]  # fmt: skip


def draw(figure, table, settings):
    words, parts = arms(settings), figure.subplots(1, 3)
    titles = {"error": "Error (1 = predicting the mean)",
              "max_violation": "Greatest load over an even one, less 1",
              "cosine": "Cosine of task's and loss's gradient"}  # fmt: skip
    for axes, (name, title) in zip(parts, titles.items(), strict=True):
        strip(axes, words, [table.numbers(arm, name) for arm in words])
        label_panel(axes, title, "coefficient of the balance loss", "")
    parts[1].set_ylabel("imbalance (0 is even)")
    parts[2].set_ylabel("below 0 they pull against each other")
    parts[2].axhline(0, color="#9aa0a6", linewidth=1)


EXPERIMENT = Experiment(
    id="E2",
    name="balance-sweep",
    title="The balance loss, from nothing to too much",
    question="How do load and error move with the coefficient of the balance loss?",
    settings={"steps": 400, "tokens": 256, "experts": 8, "top_k": 1, "hidden": 12, "width": 16, "clusters": 8,
              "skew": "even", "rate": 0.005, "coefficients": (0.0, 0.001, 0.01, 0.1, 1.0)},
    quick={"steps": 40, "tokens": 128},
    arms=arms,
    measure=measure,
    findings=findings,
    draw=draw,
    choices={"skew": ("even", "zipf")},
)  # fmt: skip
