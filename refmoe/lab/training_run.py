"""A training run in a folder: it goes on where it stopped, and ends with the same bits as if it had not."""

import csv
import io
import json
from pathlib import Path

from ..refusals import require
from ..writing import make_folder, write_whole
from .checkpoints import read_checkpoint, write_checkpoint
from .interrupts import asked_to_stop
from .runs import Interrupted
from .text import check_length
from .training import evaluate, run_key, start, train

CHECKPOINT = "checkpoint.safetensors"


def run_training(config, corpus, seed, steps, num, out, every=100, progress=lambda made: None, **about):
    """Trains until `steps` steps are done, or goes on from out/checkpoint.safetensors -> TrainingState, losses.

    A checkpoint and losses.csv are written every so many steps and at the end, results.json at the end; `about` is
    what else it shall say. Raises ValueError for a folder of another run or of other files, Interrupted after Ctrl-C:
    the step is finished and kept first.
    """
    check_length(corpus, config.decoder.context)
    make_folder("--out", out)
    out = Path(out)
    _check_folder(out)
    key, (state, losses) = run_key(config, corpus, seed, num), (start(config, seed, num), [])
    if (out / CHECKPOINT).exists():
        state, losses = read_checkpoint(out / CHECKPOINT, state, key)
    fix = "ask for more, or choose another folder"
    require(steps >= max(state.step, 1), ValueError, "steps", f"at least {max(state.step, 1)}", steps, fix)
    with asked_to_stop() as stop:
        for reached, made in train(state, steps, config, corpus, seed, num):
            state = reached
            losses.append(made.loss)
            progress(made)
            if stop() or state.step == steps or state.step % every == 0:
                _keep(out, state, losses, key)
            if stop() and state.step < steps:
                said = f"interrupted: {state.step} of {steps} steps are kept in {out / CHECKPOINT}"
                raise Interrupted(f"{said}; the same command goes on from there")
    held_out = evaluate(state.params, config, corpus, num)
    results = {"key": key, "steps": state.step, "first_loss": losses[0], "last_loss": losses[-1], "held_out": held_out}
    results |= about
    write_whole(out / "results.json", json.dumps(results, indent=2, sort_keys=True) + "\n")
    return state, losses


def _check_folder(out):
    fix = "choose another name"
    own = (out / CHECKPOINT).exists() or not any(out.iterdir())
    require(own, ValueError, "out", "an empty folder or a training run's", f"other files in {out}", fix)


def _keep(out, state, losses, key):
    write_checkpoint(out / CHECKPOINT, state, losses, key)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("step", "loss"), *enumerate(losses)])
    write_whole(out / "losses.csv", text.getvalue())
