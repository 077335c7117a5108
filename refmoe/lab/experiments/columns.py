"""E10: which router columns get gradient under each scoring.   spec/lab/E10.md"""

import warnings

import numpy as np

from ...config import BalanceLoss, LossesConfig, RoutingConfig, ZLoss
from ...layer import moe_backward, moe_forward
from ..experiment import Experiment, Finding, check
from ..measures import mean
from ..student import layer, start_params
from ..tasks import Clusters, study

# arm -> (score function, renormalised, K or None for the setting, which of the logits' gradients)
SCORINGS = {
    "softmax": ("softmax", False, None, "d_logits_task"),
    "softmax, renormalised": ("softmax", True, None, "d_logits_task"),
    "softmax, K 1": ("softmax", False, 1, "d_logits_task"),
    "softmax, K 1, renormalised": ("softmax", True, 1, "d_logits_task"),
    "sigmoid": ("sigmoid", False, None, "d_logits_task"),
    "sigmoid, renormalised": ("sigmoid", True, None, "d_logits_task"),
    "sqrt-softplus": ("sqrt_softplus", False, None, "d_logits_task"),
    "relu": ("relu", False, None, "d_logits_task"),
    "balance loss": ("softmax", True, None, "d_logits_balance"),
    "z-loss": ("softmax", True, None, "d_logits_z"),
}
# What the law says of the columns that were not chosen, and of those that were: is there a gradient?
EXPECTED = {"softmax": (1, 1), "softmax, K 1": (1, 1), "balance loss": (1, 1), "z-loss": (1, 1),
            "softmax, K 1, renormalised": (0, 0)}  # fmt: skip


def measure(arm, seed, settings):
    """One batch there and back: the share of exact zeros among chosen and other columns, and sizes by rank."""
    s, (score_fn, normalize, top_k, source) = settings, SCORINGS[arm]
    losses = LossesConfig(balance=BalanceLoss(coefficient=0.01), z=ZLoss(coefficient=0.001))
    with warnings.catch_warnings(action="ignore"):  # K 1 renormalised is warned of; here it is the subject
        config = layer(s["hidden"], s["width"], s["experts"], top_k or s["top_k"], losses=losses,
                       routing=RoutingConfig(score_fn=score_fn, normalize=normalize))  # fmt: skip
    params, batch = start_params(config, seed), Clusters(seed, s["hidden"]).batch(0, s["tokens"])
    record = moe_forward(batch.x, params, config, study())
    grads = moe_backward((record.y - batch.target) / s["tokens"], batch.x, params, record, config, study())
    size = np.abs(getattr(grads, source))
    by_rank = np.take_along_axis(size, np.argsort(-record.routing.logits, axis=1, kind="stable"), axis=1)
    chosen = np.zeros(size.shape, bool)
    np.put_along_axis(chosen, record.routing.topk_indices, True, axis=1)
    numbers = {"chosen": _share(size[chosen] > 0), "not_chosen": _share(size[~chosen] > 0)}
    rows = [[float(v) for v in row] for row in by_rank[:48]]
    return {"numbers": numbers, "series": {"by_rank": rows, "mean_by_rank": [mean(c) for c in by_rank.T]}}


def _share(mask):
    return int(mask.sum()) / max(1, mask.size)


def findings(table, settings):
    """Differences of shares; the law's zeros are exact, so that a single stray number would show."""
    t = table

    def gap(arm):
        expected = EXPECTED.get(arm, (1, 0))
        pairs = zip(t.numbers(arm, "chosen"), t.numbers(arm, "not_chosen"), strict=True)
        return [abs(a - expected[0]) + abs(b - expected[1]) for a, b in pairs]

    wrong = list(map(max, *(gap(arm) for arm in SCORINGS if arm != "relu")))  # relu: also zero below zero
    return [
        Finding("others_learn", "Columns that were not chosen get gradient under softmax, and none once renormalised",
                t.difference("softmax", "softmax, renormalised", "not_chosen"), "of the columns"),
        Finding("one_expert", "The chosen column learns from the task under K 1, and not once renormalised",
                t.difference("softmax, K 1", "softmax, K 1, renormalised", "chosen"), "of the columns"),
        Finding("losses", "The balance loss reaches columns that the renormalised task cannot",
                t.difference("balance loss", "softmax, renormalised", "not_chosen"), "of the columns"),
        check("table", "Exact zeros stand where chapter 5 says and nowhere else, relu's scoring aside", wrong, 0),
    ]  # fmt: skip


def draw(figure, table, settings):
    """A panel a scoring: tokens down, columns in order of their logit; exact zeros are left blank."""
    from matplotlib.colors import LogNorm

    panels = figure.subplots(2, 5, sharey=True)
    for axes, arm in zip(panels.flat, SCORINGS, strict=True):
        size = np.array(table.series(arm, "by_rank")[0])
        top = max(size.max(), 1e-12)
        image = axes.imshow(np.ma.masked_equal(size / top, 0), aspect="auto", cmap="viridis", interpolation="nearest",
                            norm=LogNorm(1e-4, 1))  # fmt: skip
        axes.set_facecolor("#eeeeee")
        K = SCORINGS[arm][2] or settings["top_k"]
        axes.axvline(K - 0.5, color="#d1495b", linewidth=2)
        axes.set_xticks(range(size.shape[1]), range(1, size.shape[1] + 1))
        axes.set_title(arm.replace(", ", ",\n"), fontsize=12)
        if not size.any():
            axes.text(0.5, 0.5, "no gradient\nat all", ha="center", va="center", transform=axes.transAxes)
    for axes in panels[-1]:
        axes.set_xlabel("expert, by rank of its logit", fontsize=10)
    for axes in panels[:, 0]:
        axes.set_ylabel("token")
    figure.colorbar(image, ax=panels, shrink=0.7, label="|gradient of the logit|, largest = 1; grey: exactly zero")
    figure.supxlabel("Left of the red line: chosen. One batch of one seed; last two panels: of the losses", fontsize=11)


EXPERIMENT = Experiment(
    id="E10",
    name="columns",
    title="Which columns of the router get gradient",
    question="Which experts' logits does a token's gradient reach, under each way of making weights?",
    settings={"tokens": 256, "experts": 8, "top_k": 2, "hidden": 12, "width": 16},
    quick={"tokens": 64},
    arms=lambda settings: tuple(SCORINGS),
    measure=measure,
    findings=findings,
    draw=draw,
    limits=(("top_k", "below experts, so that some are not chosen", lambda s: s["top_k"] < s["experts"]),),
)
