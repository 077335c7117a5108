"""E14: one layer on several virtual ranks.   spec/lab/E14.md"""

import numpy as np

from ...config import BalanceLoss, DispatchConfig, LossesConfig
from ...layer import moe_backward, moe_forward
from ...numerics import Numerics
from ...recipes import init_params, name_params
from ..experiment import Experiment, Finding, check
from ..plots import label_panel, strip
from ..student import layer
from ..tasks import Clusters

ARMS = ("no limit", "capacity", "balance loss of the rank")


def measure(arm, seed, settings):
    """A batch at once, and cut into the ranks' parts: outputs by token, gradients summed over ranks."""
    s = settings
    sections = {"capacity": {"dispatch": DispatchConfig(capacity_factor=1.0)},
                "balance loss of the rank": {"losses": LossesConfig(balance=BalanceLoss(coefficient=1.0))}}  # fmt: skip
    config = layer(s["hidden"], s["width"], s["experts"], s["top_k"], **sections.get(arm, {}))
    num, params = Numerics("exact", threads=1), init_params(config, seed)
    batch = Clusters(seed, s["hidden"]).batch(0, s["tokens"])
    x, d_y = batch.x.astype(np.float32), batch.target.astype(np.float32)
    whole = _there_and_back(x, d_y, params, config, num)
    parts = [_there_and_back(*part, params, config, num)
             for part in zip(np.split(x, s["ranks"]), np.split(d_y, s["ranks"]), strict=True)]  # fmt: skip
    y = np.concatenate([y for y, _ in parts])
    off = {name: _gap(num.sum("d_" + name, [grads[name] for _, grads in parts]), g) for name, g in whole[1].items()}
    numbers = {"outputs_changed": int((y != whole[0]).any(axis=1).sum()) / s["tokens"],
               "router_gap": off["w_router"], "largest_gap": max(off.values())}  # fmt: skip
    return {"numbers": numbers, "series": {}}


def _there_and_back(x, d_y, params, config, num):
    record = moe_forward(x, params, config, num)
    return record.y, name_params(moe_backward(d_y, x, params, record, config, num).params)


def _gap(got, want):
    return float(np.abs(got.astype(np.float64) - want).max() / np.abs(want.astype(np.float64)).max())


def findings(table, settings):
    t, (free, limited, local) = table, ARMS
    return [
        check("outputs", "Without a limit no bit of an output depends on the cut into ranks",
              t.numbers(free, "outputs_changed"), 0),
        check("gradients", "Without a limit the ranks' gradients sum to the whole one, to 1e-6 (one float32 rounding a "
              "rank)", t.numbers(free, "largest_gap"), 1e-6),
        Finding("capacity", "With a capacity outputs depend on the cut", t.difference(limited, free, "outputs_changed"),
                "of the tokens"),
        Finding("capacity_gradients", "With a capacity gradients depend on it too", t.difference(limited, free,
                "largest_gap")),
        Finding("local_loss", "A balance loss of each rank's own counts gives the router another gradient",
                t.difference(local, free, "router_gap")),
    ]  # fmt: skip


def draw(figure, table, settings):
    left, right = figure.subplots(1, 2)
    strip(left, ARMS, [table.numbers(arm, "outputs_changed") for arm in ARMS])
    label_panel(left, f"Share of outputs changed by a cut into {settings['ranks']} ranks")
    strip(right, ARMS, [table.numbers(arm, "largest_gap") for arm in ARMS])
    right.set_ylim(1e-9, 100)
    right.set_yscale("log")
    label_panel(right, "Largest gap of a gradient, over its largest entry")


EXPERIMENT = Experiment(
    id="E14",
    name="ranks",
    title="One layer on several ranks",
    question="Does cutting a batch into ranks change outputs or gradients?",
    settings={"tokens": 64, "ranks": 4, "experts": 8, "top_k": 2, "hidden": 12, "width": 16},
    quick={"tokens": 32},
    arms=lambda settings: ARMS,
    measure=measure,
    findings=findings,
    draw=draw,
    limits=(("ranks", "a divisor of tokens", lambda s: s["tokens"] % s["ranks"] == 0),),
)
