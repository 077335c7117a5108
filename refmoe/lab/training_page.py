"""What a training run shows of itself: the loss curve as a picture, and its section of the report."""

import csv
import json
from html import escape

import numpy as np

from ..models.accounting.plots import ACTIVE, INK, TOTAL
from .measures import mean
from .page import command, fold, picture, section
from .plots import label_panel
from .results import PICTURE, RESULTS, draw_picture, read_json


def write_curve(folder):
    """The picture of a finished run, from its files -> None, or why there is none."""
    results, losses = read_json(folder / RESULTS), read_losses(folder)
    return draw_picture(folder / PICTURE, _title(results), lambda fig: _draw(fig, losses, results["held_out"]))


def read_losses(folder):
    """A number for each step done."""
    with open(folder / "losses.csv", encoding="utf-8", newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def _draw(figure, losses, held_out):
    """Every step, the means of steps in a row, and what was left on text that was not trained on."""
    axes, every = figure.subplots(), max(1, len(losses) // 20)
    axes.plot(range(len(losses)), losses, color=TOTAL, linewidth=1.2, alpha=0.6, label="each step")
    if every > 1:
        parts = range(0, len(losses) - every + 1, every)
        means = [mean(losses[at : at + every]) for at in parts]
        axes.plot(np.array(parts) + (every - 1) / 2, means, color=INK, linewidth=2.6, label=f"mean of {every} steps")
    label = f"held-out text, at the end: {held_out:.3f}"
    axes.axhline(held_out, color=ACTIVE, linewidth=2, linestyle="--", label=label)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, loc="lower left")
    label_panel(axes, "Loss while training (a guess among 256 bytes: 5.545)", "step", "nats a byte")


def training_section(folder, results):
    """(id, title, html) of the run in a folder."""
    r, title = results, _title(results)
    told = (f"Loss {r['first_loss']:.4f} at the first step, {r['last_loss']:.4f} at the last of {r['steps']}; "
            f"{r['held_out']:.4f} nats a byte on held-out text.")  # fmt: skip
    made = command(r["command"]) if "command" in r else "<p>Made by a program.</p>"
    key = f"<pre>{escape(json.dumps(r['key'], indent=1))}</pre>"
    parts = [picture(folder / PICTURE, title), f"<ul><li>{told}</li></ul>", made]
    return section(folder.name, title, [*parts, fold("Its key: what decides every bit of it", key)])


def _title(results):
    """What was trained, from the run's key."""
    decoder = results["key"]["config"]["decoder"]
    kinds = dict.fromkeys(map(_kind, decoder["blocks"]))
    blocks = len(decoder["blocks"])
    return f"Decoder of {blocks} block{'s' * (blocks > 1)}, hidden size {decoder['hidden_size']}: {' and '.join(kinds)}"


def _kind(block):
    if "num_experts" not in block:
        return "dense"
    return f"{block['num_experts']} experts, top {block['top_k']}"
