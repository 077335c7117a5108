"""E15: replicated experts under skewed loads.   spec/lab/E15.md"""

from fractions import Fraction
from itertools import pairwise

import numpy as np

from ...recipes import generate
from ..experiment import Experiment, Finding
from ..plots import curves, label_panel

ARMS = ("even", "zipf")


def measure(arm, seed, settings):
    """Loads of one batch, then spares given to the busiest experts; loads of a rank over the mean, exactly."""
    s = settings
    loads = draw_loads(arm, seed, s)
    spares = range(s["ranks"] + 1)
    ratios = [float(imbalance(place(replicate(loads, spare), s["ranks"]), loads, s["ranks"])) for spare in spares]
    numbers = {"before": ratios[0], "after": ratios[-1],
               "rises": sum(b > a for a, b in pairwise(ratios)),
               "busiest": float(Fraction(max(loads), sum(loads)))}  # fmt: skip
    return {"numbers": numbers, "series": {"ratios": ratios, "spares": list(spares)}}


def draw_loads(arm, seed, s):
    """Tokens an expert gets: each token draws one, evenly or as 1 / rank."""
    shares = np.ones(s["experts"]) if arm == "even" else 1.0 / np.arange(1, s["experts"] + 1)
    upto = np.cumsum(shares)
    at = generate("loads", (s["tokens"],), seed, "unit").astype(np.float64) * upto[-1]
    chosen = np.minimum(np.searchsorted(upto, at, side="right"), s["experts"] - 1)
    return [int(n) for n in np.bincount(chosen, minlength=s["experts"])]


def replicate(loads, spares):
    """Every expert once, and each spare to the expert with the most tokens a copy: [(tokens of a copy, expert)]."""
    copies = [1] * len(loads)
    for _ in range(spares):
        busiest = max(range(len(loads)), key=lambda e: (Fraction(loads[e], copies[e]), -e))
        copies[busiest] += 1
    return [(Fraction(loads[e], copies[e]), e) for e in range(len(loads)) for _ in range(copies[e])]


def place(copies, ranks):
    """Copies by falling load, each to the least busy rank with room: [tokens of a rank]."""
    room, busy = -(-len(copies) // ranks), [[Fraction(0), 0, rank] for rank in range(ranks)]
    for load, _ in sorted(copies, key=lambda copy: (-copy[0], copy[1])):
        rank = min((entry for entry in busy if entry[1] < room), key=lambda entry: (entry[0], entry[2]))
        rank[0] += load
        rank[1] += 1
    return [entry[0] for entry in busy]


def imbalance(busy, loads, ranks):
    """The busiest rank over the mean: 1 is perfect."""
    return max(busy) * ranks / sum(loads)


def findings(table, settings):
    t = table
    return [
        Finding("relief", "Spare copies lower the busiest rank's load under skew",
                [a - b for a, b in zip(t.numbers("zipf", "before"), t.numbers("zipf", "after"), strict=True)],
                "of the mean load"),
        Finding("monotone", "It falls, or stays, with every further spare",
                [1 if n == 0 else -1 for n in t.numbers("zipf", "rises")],
                detail=f"rises {sum(t.numbers('zipf', 'rises'))} times in all"),
        Finding("needed", "Without spares, skew makes the busiest rank busier than even choices do",
                t.difference("zipf", "even", "before"), "of the mean load"),
    ]  # fmt: skip


def draw(figure, table, settings):
    axes = figure.subplots()
    spares = table.series("zipf", "spares")[0]
    words = ["even choices", "skewed: the n-th expert as 1 / n"]
    curves(axes, spares, [table.series(arm, "ratios") for arm in ARMS], words)
    axes.axhline(1, color="#9aa0a6", linewidth=1)
    label_panel(axes, f"Busiest of {settings['ranks']} ranks over the mean (1 is perfect)",
                f"spare copies beside {settings['experts']} experts", "load of the busiest rank")  # fmt: skip


EXPERIMENT = Experiment(
    id="E15",
    name="replicas",
    title="Copies of busy experts",
    question="How far do spare copies of busy experts even out the load of ranks?",
    settings={"tokens": 4096, "experts": 64, "ranks": 16},
    quick={"tokens": 1024},
    arms=lambda settings: ARMS,
    measure=measure,
    findings=findings,
    draw=draw,
)
