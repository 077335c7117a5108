"""E5: capacity, who is dropped, and the weights after the drop.   spec/lab/E5.md"""

from fractions import Fraction
from math import comb, fsum

import numpy as np

from ...config import BalanceLoss, DispatchConfig, LossesConfig, RoutingConfig
from ...inputs import Given
from ...layer import moe_forward
from ...recipes import generate
from ..experiment import Experiment, Finding, check
from ..measures import mean
from ..plots import COLOURS, curves, label_panel, strip
from ..settings import exact
from ..student import judge, layer, start_params, trained
from ..tasks import TEST, Clusters, study

TRIALS = 40  # batches of a random router
PARTS = 16  # places of a batch that drops are told by


def arms(settings):
    tight = exact(settings["factors"][0])
    factors = [f"{exact(factor)} position" for factor in settings["factors"]]
    return ("no limit", *factors, f"{tight} probability", f"{tight} position, renormalised")


def layer_of(arm, settings):
    """The configuration an arm stands for."""
    s, word = settings, arm.split()
    dispatch = DispatchConfig()
    if arm != "no limit":
        after = arm.endswith("renormalised")
        policy = word[1].rstrip(",")
        dispatch = DispatchConfig(capacity_factor=float(word[0]), drop_policy=policy, normalize_after_drop=after)
    losses = LossesConfig(balance=BalanceLoss(coefficient=s["coefficient"]))
    routing = RoutingConfig(normalize=True)
    return layer(s["hidden"], s["width"], s["experts"], s["top_k"], dispatch=dispatch, losses=losses, routing=routing)


def measure(arm, seed, settings):
    """Trains under the limit; then what a router without preferences would drop, counted and predicted."""
    s, config = settings, layer_of(arm, settings)
    task = Clusters(seed, s["hidden"], s["clusters"])
    step = trained(config, task, s["steps"], s["tokens"], s["rate"])
    batch = task.batch(TEST, s["tokens"])
    plan = moe_forward(batch.x, step.params, config, study()).plan
    by_place = dropped_by_place(plan)
    counted, deviation = random_router(config, seed, s)
    numbers = judge(step.params, config, task, s["tokens"]) | {
        "dropped": float(mean(by_place)), "late": _late(by_place), "random_dropped": counted,
        "random_predicted": float(predicted(config, s)), "random_deviation": deviation,
    }  # fmt: skip
    return {"numbers": numbers, "series": {"dropped_by_place": by_place}}


def dropped_by_place(plan, parts=PARTS):
    """The share of slots dropped, by place in the batch."""
    return [mean((rows < 0).reshape(-1)) for rows in np.array_split(plan.slot_row, parts)]


def _late(by_place):
    """The share of the drops that fall on the later half of the batch; a half where nothing is dropped."""
    half = len(by_place) // 2
    return fsum(by_place[half:]) / fsum(by_place) if fsum(by_place) else 0.5


def random_router(config, seed, s):
    """(mean share dropped over batches of random logits, standard error of that mean)."""
    params, shares = start_params(config, seed), []
    for trial in range(TRIALS):
        logits = generate(f"random.{trial}", (s["tokens"], s["experts"]), seed).astype(np.float64)
        x = np.zeros((s["tokens"], s["hidden"]))
        plan = moe_forward(x, params, config, study(), Given(logits=logits)).plan
        shares.append(mean((plan.slot_row < 0).reshape(-1)))
    middle = mean(shares)
    return middle, float(np.sqrt(fsum((v - middle) ** 2 for v in shares) / (TRIALS - 1) / TRIALS))


def predicted(config, s):
    """E [(n - C)+] E / (T K), n binomial (T, K / E): each token picks an expert with probability K / E."""
    if not config.dispatch.limited:
        return Fraction(0)
    T, K, E = s["tokens"], s["top_k"], s["experts"]
    capacity = -(-(Fraction(config.dispatch.capacity_factor) * T * K) // E)
    q = Fraction(K, E)
    over = sum((n - capacity) * comb(T, n) * q**n * (1 - q) ** (T - n) for n in range(int(capacity) + 1, T + 1))
    return over * E / (T * K)


def findings(table, settings):
    t, names = table, arms(settings)
    first, loosest, probability, renormalised = names[1], names[len(settings["factors"])], *names[-2:]
    pairs = zip(t.numbers(first, "random_dropped"), t.numbers(first, "random_predicted"),
                t.numbers(first, "random_deviation"), strict=True)  # fmt: skip
    return [
        check("prediction", "What a random router drops is the binomial prediction, to 4 standard errors",
              [abs(a - b) / e if e else 0.0 for a, b, e in pairs], 4),
        Finding("late", "Drops by position fall on the later half of the batch more than drops by probability",
                t.difference(first, probability, "late"), "of the drops"),
        Finding("cost", f"The error is higher at factor {first.split()[0]} than without a limit",
                t.difference(first, "no limit", "error")),
        Finding("roomy", f"The error is higher at factor {first.split()[0]} than at {loosest.split()[0]}",
                t.difference(first, loosest, "error")),
        Finding("policy", "The error is higher when drops are by position than by probability",
                t.difference(first, probability, "error")),
        Finding("renormalise", "Renormalising after the drop lowers the error", t.difference(first, renormalised,
                "error")),
    ]  # fmt: skip


def _told(arm):
    """An arm in words that need no page: its first number is the capacity factor."""
    factor, _, rule = arm.partition(" ")
    return "no\nlimit" if arm == "no limit" else f"factor {factor},\nby {rule}".replace("position, ", "position,\n")


def draw(figure, table, settings):
    names = arms(settings)
    axes = figure.subplot_mosaic([["error", "dropped"], ["place", "random"]])
    for panel, title in (("error", "Error (1 = predicting the mean)"), ("dropped", "Share dropped after training")):
        strip(axes[panel], names, [table.numbers(arm, panel) for arm in names])
        label_panel(axes[panel], title)
        axes[panel].set_xticks(range(len(names)), map(_told, names), rotation=0, ha="center", fontsize=9)
    both = names[1], names[-2]
    lines = [table.series(arm, "dropped_by_place") for arm in both]
    at = (np.arange(len(lines[0][0])) + 0.5) / len(lines[0][0])
    curves(axes["place"], at, lines, [_told(arm).replace("\n", " ") for arm in both],
           [COLOURS[names.index(arm)] for arm in both])  # fmt: skip
    label_panel(axes["place"], "Share dropped by place in the batch (0 first, 1 last)", "place", "share dropped")
    limited = names[1 : 1 + len(settings["factors"])]
    at = np.arange(len(limited))
    counted = np.array([table.numbers(arm, "random_dropped") for arm in limited])
    axes["random"].plot(at, counted, "o", color="#3566b8", markersize=6)
    axes["random"].plot(at, [table.numbers(arm, "random_predicted")[0] for arm in limited], "_", color="#d1495b",
                        markersize=40, markeredgewidth=3, label="predicted exactly, without parameters")  # fmt: skip
    axes["random"].set_xticks(at, [arm.split()[0] for arm in limited])
    axes["random"].set_xlim(-0.5, len(limited) - 0.5)
    axes["random"].margins(y=0.3)
    axes["random"].legend(frameon=False, loc="upper right", markerscale=0.4)
    label_panel(axes["random"], "What a random router drops, a dot a seed", "capacity factor", "share dropped")


EXPERIMENT = Experiment(
    id="E5",
    name="capacity",
    title="Capacity, drops, and weights after the drop",
    question="What do a capacity, and the rule that drops beyond it, cost?",
    settings={"steps": 200, "tokens": 256, "experts": 8, "top_k": 2, "hidden": 12, "width": 16, "clusters": 8,
              "rate": 0.005, "coefficient": 0.01, "factors": (1.0, 1.25, 2.0)},
    quick={"steps": 20, "tokens": 64},
    arms=arms,
    measure=measure,
    findings=findings,
    draw=draw,
    limits=(
        ("top_k", "at least 2: one renormalised weight is always 1", lambda s: s["top_k"] > 1),
        ("factors", "factors above 0", lambda s: s["factors"][0] > 0),
        ("tokens", f"at least {PARTS}, as many as places are told apart", lambda s: s["tokens"] >= PARTS),
    ),
)  # fmt: skip
