"""The picture of `refmoe route`: load, co-activation, margins, drops by place."""

import numpy as np

from ..models.accounting.plots import GREY, TOTAL, figure, save
from .plots import label_panel


def draw(routed, seen, path):
    """Writes the picture. Raises ImportError without matplotlib, ValueError for an ending that cannot be written."""
    fig, style = figure(13, 8)
    with style:
        axes = fig.subplot_mosaic([["load", "together"], ["margin", "drops"]])
        _load(axes["load"], seen)
        _together(fig, axes["together"], np.array(seen["together"]))
        _margins(axes["margin"], routed.margin)
        _drops(axes["drops"], seen.get("drops_by_place"))
        fig.suptitle(seen["title"], x=0.01, ha="left", fontsize=15, fontweight="bold")
        save(fig, path)


def _load(axes, seen):
    axes.bar(range(seen["experts"]), seen["load"], color=TOTAL, width=0.85)
    axes.axhline(sum(seen["load"]) / seen["experts"], color=GREY, linewidth=1.5)
    label_panel(axes, f"Load (line: even); entropy {seen['load_entropy']:.3f} of 1", "expert", "slots")


def _together(fig, axes, table):
    image = axes.imshow(np.ma.masked_array(table, np.eye(len(table), dtype=bool)), cmap="viridis")
    fig.colorbar(image, ax=axes, label="tokens")
    label_panel(axes, "Experts that serve a token together", "expert", "expert")


def _margins(axes, margin):
    if margin is None:
        _absent(axes, "no margins: nothing was ranked")
    else:
        axes.hist(margin, bins=40, color=TOTAL)
    label_panel(axes, "Margins between the last choice and the next", "margin", "tokens")


def _drops(axes, drops):
    if drops is None:
        _absent(axes, "no plan in the record")
    elif not sum(drops):
        _absent(axes, "nothing was dropped")
    else:
        axes.bar((np.arange(len(drops)) + 0.5) / len(drops), drops, width=0.9 / len(drops), color=TOTAL)
    label_panel(axes, "Slots dropped by place in the text (0 first, 1 last)", "place", "slots")


def _absent(axes, text):
    axes.text(0.5, 0.5, text, ha="center", va="center", color="#5f6368", transform=axes.transAxes)
    axes.set_xticks([])
    axes.set_yticks([])
