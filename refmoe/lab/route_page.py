"""The picture of `refmoe route`: load, co-activation, margins, drops by place."""

import numpy as np

from ..models.accounting.plots import ACTIVE, SOFT, TOTAL, figure, save
from .plots import label_panel


def draw(routed, seen, path):
    """Writes the picture. Raises ImportError without matplotlib, ValueError for an ending that cannot be written."""
    fig, style = figure(13, 8)
    with style:
        axes = fig.subplot_mosaic([["load", "together"], ["margin", "drops"]])
        _load(axes["load"], seen)
        _together(fig, axes["together"], np.array(seen["together"]))
        _margins(axes["margin"], routed.margin)
        _drops(axes["drops"], seen)
        fig.suptitle(seen["title"], x=0.01, ha="left", fontsize=15, fontweight="bold")
        save(fig, path)


def _load(axes, seen):
    axes.bar(range(seen["experts"]), seen["load"], color=TOTAL, width=0.85)
    axes.axhline(sum(seen["load"]) / seen["experts"], color=ACTIVE, linewidth=2, linestyle="--", label="an even share")
    axes.legend(frameon=False, fontsize=11)
    axes.margins(y=0.15)
    _whole(axes.xaxis, axes.yaxis)
    title = f"Load: entropy {seen['load_entropy']:.3f} of 1; {seen['dead']} of {seen['experts']} experts dead"
    label_panel(axes, title, "expert (dead: below a tenth of an even share)", "slots")


def _together(fig, axes, table):
    title = "Tokens that two experts serve together"
    if not table.any():
        _absent(axes, title, "one expert a token")
        return
    image = axes.imshow(np.ma.masked_array(table, np.eye(len(table), dtype=bool)), cmap="viridis", vmin=0,
                        aspect="auto", interpolation="nearest")  # fmt: skip
    _whole(axes.xaxis, axes.yaxis, fig.colorbar(image, ax=axes, label="tokens").ax.yaxis)
    label_panel(axes, title, "expert", "expert")


def _margins(axes, margin):
    title = "Margins between the last choice and the next"
    if margin is None:
        _absent(axes, title, "no margins: nothing was ranked")
        return
    axes.hist(margin, bins=40, color=TOTAL)
    axes.axvline(np.median(margin), color=ACTIVE, linewidth=2, linestyle="--", label="half of the tokens are below")
    axes.legend(frameon=False, fontsize=11)
    _whole(axes.yaxis)
    label_panel(axes, title, "margin (small: a small change would choose otherwise)", "tokens")


def _drops(axes, seen):
    drops = seen.get("drops_by_place")
    if drops is None or not sum(drops):
        _absent(axes, "Slots dropped", "no plan in the record" if drops is None else "nothing was dropped")
        return
    axes.bar((np.arange(len(drops)) + 0.5) / len(drops), drops, width=0.9 / len(drops), color=TOTAL)
    axes.set_xlim(0, 1)
    _whole(axes.yaxis)
    every = sum(seen["load"])
    label_panel(axes, f"Slots dropped: {sum(drops)} of {every} ({sum(drops) / every:.0%})",
                "place in the text (0 first, 1 last)", "slots")  # fmt: skip


def _whole(*every):
    """Experts and tokens are counted: no tick between two numbers."""
    for axis in every:
        axis.get_major_locator().set_params(integer=True)


def _absent(axes, title, text):
    axes.text(0.5, 0.5, text, ha="center", va="center", color=SOFT, fontsize=14, transform=axes.transAxes)
    axes.set_xticks([])
    axes.set_yticks([])
    label_panel(axes, title)
