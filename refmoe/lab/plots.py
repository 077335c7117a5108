"""Parts that the pictures share. matplotlib is reached through the axes that are given."""

import numpy as np

from ..models.accounting.plots import ACTIVE, GREY, INK, SOFT, TOTAL

COLOURS = (TOTAL, ACTIVE, "#f0a202", "#7a9e5f", "#6d597a", "#4fb0c6", INK, GREY)


def label_panel(axes, title, x="", y=""):
    """A title that says what is seen, and the axes' names."""
    axes.set_title(title, fontsize=12)
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def heat(axes, loads, even, steps):
    """Loads by time (columns) and expert (rows), as multiples of an even share; returns the image."""
    shares = np.array(loads, float).T * len(loads[0]) / even
    image = axes.imshow(shares, aspect="auto", cmap="viridis", vmin=0, vmax=3, interpolation="nearest",
                        extent=(0, steps, len(shares) - 0.5, -0.5))  # fmt: skip
    axes.set_yticks(range(len(shares)))
    axes.tick_params(labelsize=9)
    return image


def strip(axes, words, groups, colours=COLOURS):
    """A column of dots an arm, one dot a seed, and a line at their mean; zero is in sight."""
    for at, values in enumerate(groups):
        spread = (np.arange(len(values)) - (len(values) - 1) / 2) * 0.08
        axes.plot(at + spread, values, "o", color=colours[at % len(colours)], markersize=8, alpha=0.85, clip_on=False)
        axes.hlines(sum(values) / len(values), at - 0.3, at + 0.3, color=INK, linewidth=2)
    if len(words) <= 3:  # room to stand upright, in two lines where a comma parts them
        axes.set_xticks(range(len(words)), [word.replace(", ", ",\n") for word in words])
    else:
        axes.set_xticks(range(len(words)), words, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_xlim(-0.6, len(words) - 0.4)
    explain(axes.figure, "a dot is a seed, the black line their mean")
    every = [value for values in groups for value in values]
    axes.set_ylim(min(0.0, min(every)) * 1.08, max(max(every), 1e-12) * 1.12)


def curves(axes, at, groups, words, colours=COLOURS):
    """A thin line a seed and a thick one at the mean, by arm: at (n,), groups: arm -> seeds -> (n,)."""
    for number, (word, lines) in enumerate(zip(words, groups, strict=True)):
        colour = colours[number % len(colours)]
        for line in lines:
            axes.plot(at, line, color=colour, linewidth=0.8, alpha=0.35)
        axes.plot(at, np.mean(np.array(lines, float), axis=0), color=colour, linewidth=2.6, label=word)
    if all(float(value).is_integer() for value in at):  # steps are counted
        axes.xaxis.get_major_locator().set_params(integer=True)
    explain(axes.figure, "a thin line is a seed, the thick one their mean")
    beside = {"loc": "center left", "bbox_to_anchor": (1, 0.5)} if len(words) > 3 else {}  # many would hide the lines
    axes.legend(frameon=False, fontsize=11, **beside)


def explain(figure, text):
    """Adds to the one line below everything, once."""
    said = figure.get_supxlabel()
    if text not in said.lower():
        figure.supxlabel(f"{said}; {text}" if said else text[0].upper() + text[1:], fontsize=11, color=SOFT)
