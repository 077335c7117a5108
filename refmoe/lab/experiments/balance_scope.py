"""E4: balancing every sequence, or the batch as a whole.   spec/lab/E4.md"""

import numpy as np

from ...config import BalanceLoss, LossesConfig
from ...layer import moe_forward
from ..experiment import Experiment, Finding, check
from ..measures import mean
from ..plots import curves, label_panel, strip
from ..student import given_of, judge, layer, train
from ..tasks import TEST, Clusters, study

ARMS = ("batch", "sequence")
WORDS = {"batch": "loss over the batch", "sequence": "loss by sequence"}


def measure(arm, seed, settings):
    """Trains with one scope; both losses and what stands between them, along the way."""
    s = settings
    configs = {scope: layer(s["hidden"], s["width"], s["experts"], s["top_k"], losses=_loss(scope, s["coefficient"]))
               for scope in ARMS}  # fmt: skip
    task = Clusters(seed, s["hidden"], s["clusters"], sequence_length=s["tokens"] // s["sequences"])
    series = {"step": [], "batch_loss": [], "covariance": [], "sequence_loss": []}
    gaps = []
    for step in train(configs[arm], task, s["steps"], s["tokens"], s["rate"]):
        if step.step % max(1, s["steps"] // 40) == 0 or step.step == s["steps"] - 1:
            found = identity(configs, step.params, task.batch(TEST + 1, s["tokens"]), s["coefficient"])
            gaps.append(found.pop("gap"))
            for name, value in {"step": step.step, **found}.items():
                series[name].append(value)
    numbers = judge(step.params, configs[arm], task, 4 * s["tokens"])
    return {"numbers": numbers | {"identity_gap": max(gaps), "covariance": series["covariance"][-1]}, "series": series}


def _loss(scope, coefficient):
    return LossesConfig(balance=BalanceLoss(coefficient=coefficient, scope=scope))


def identity(configs, params, batch, coefficient):
    """loss by sequence = loss over the batch + coefficient E sum_e cov_s(f_se, P_se), for sequences of one length."""
    loss = {}
    for scope, config in configs.items():
        record = moe_forward(batch.x, params, config, study(), given_of(batch, config))
        loss[scope] = float(record.losses.balance)
    f, p = by_sequence(record, batch.sequence_ids, config)
    E = config.num_experts
    covariance = coefficient * E * sum(_covariance(f[:, e], p[:, e]) for e in range(E))
    gap = abs(loss["batch"] + covariance - loss["sequence"])
    return {"batch_loss": loss["batch"], "covariance": covariance, "sequence_loss": loss["sequence"], "gap": gap}


def by_sequence(record, sequence_ids, config):
    """Fractions of choices and mean probabilities of every sequence: (S, E) each."""
    rows = [np.flatnonzero(sequence_ids == s) for s in np.unique(sequence_ids)]
    chosen, scores = record.routing.topk_indices, record.routing.scores
    f = [np.bincount(chosen[r].reshape(-1), minlength=config.num_experts) / chosen[r].size for r in rows]
    return np.array(f), np.array([[mean(column) for column in scores[r].T] for r in rows])


def _covariance(a, b):
    return mean(a * b) - mean(a) * mean(b)


def findings(table, settings):
    t = table
    return [
        Finding("information", "Experts tell more about domains when the batch is balanced, not each sequence",
                t.difference("batch", "sequence", "shared_information")),
        Finding("error", "The error is higher when each sequence is balanced",
                t.difference("sequence", "batch", "error")),
        Finding("covariance", "Balancing the batch leaves room for the covariance that balancing sequences takes away",
                t.difference("batch", "sequence", "covariance")),
        check("identity", "Loss by sequence = loss over the batch + covariance, to 1e-12 at every step looked at",
              list(map(max, *(t.numbers(arm, "identity_gap") for arm in ARMS))), 1e-12),
    ]  # fmt: skip


def draw(figure, table, settings):
    """Above: the identity term by term; below: what the two scopes lead to."""
    axes = figure.subplot_mosaic([["batch", "batch", "sequence", "sequence"], ["information", "information", "error",
                                  "error"]], height_ratios=[3, 2])  # fmt: skip
    axes["batch"].sharey(axes["sequence"])
    terms = {"batch_loss": "over the batch", "covariance": "+ covariance", "sequence_loss": "= by sequence"}
    for arm in ARMS:
        groups = [table.series(arm, term) for term in terms]
        curves(axes[arm], table.series(arm, "step")[0], groups, list(terms.values()))
        label_panel(axes[arm], f"Trained with the {WORDS[arm]}", "step", "balance loss")
    for name, word in (("shared_information", "information"), ("error", "error")):
        strip(axes[word], list(WORDS.values()), [table.numbers(arm, name) for arm in ARMS])
    label_panel(axes["information"], "What experts tell about domains (1 = everything)", "", "information")
    label_panel(axes["error"], "Error (1 = predicting the mean), a dot a seed", "", "error")


EXPERIMENT = Experiment(
    id="E4",
    name="balance-scope",
    title="Balancing each sequence or the whole batch",
    question="What does a balance loss cost when it acts on every sequence instead of the batch?",
    settings={"steps": 500, "tokens": 256, "sequences": 8, "experts": 8, "top_k": 1, "hidden": 12, "width": 16,
              "clusters": 8, "rate": 0.005, "coefficient": 0.1},
    quick={"steps": 60, "tokens": 128},
    arms=lambda settings: ARMS,
    measure=measure,
    findings=findings,
    draw=draw,
    limits=(("sequences", "a divisor of tokens, for one length", lambda s: s["tokens"] % s["sequences"] == 0),),
)  # fmt: skip
