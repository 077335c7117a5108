"""Runs an experiment: every arm with every seed, in processes, each result kept as soon as it is there."""

import signal
from multiprocessing import get_context
from pathlib import Path

from . import results


class Interrupted(KeyboardInterrupt):
    """Ctrl-C: says what is kept, and where."""


def run_experiment(experiment, settings, seeds, out, jobs=1, progress=lambda done, total, word: None, corpus=None):
    """Measures what is not there yet, then writes the results -> (results, why there is no picture, folder).

    Raises ValueError for a folder of another run; Interrupted after Ctrl-C.
    """
    folder, key = Path(out) / experiment.folder, results.run_key(experiment, settings, corpus)
    arms = experiment.arms(settings)
    results.open_run(folder, experiment, settings, key)
    every = [(arm, seed) for seed in seeds for arm in arms]
    missing = [unit for unit in every if results.read_unit(folder, *unit, key) is None]
    done = len(every) - len(missing)
    try:
        progress(done, len(every), "")
        for (arm, seed), measured in _measured(experiment, settings, missing, jobs):
            results.write_unit(folder, arm, seed, key, measured)
            done += 1
            progress(done, len(every), f"{arm}, seed {seed}")
        return *results.write_results(folder, experiment, settings, key, arms, seeds), folder
    except KeyboardInterrupt:
        said = f"interrupted: {done} of {len(every)} runs of {experiment.id} are kept in {folder}"
        raise Interrupted(f"{said}; the same command goes on from there") from None


def _measured(experiment, settings, units, jobs):
    """(unit, what was measured), in any order."""
    work = [(experiment.id, settings, unit) for unit in units]
    jobs = min(jobs, len(work))
    if jobs < 2:
        yield from map(_measure, work)
        return
    with get_context("spawn").Pool(jobs, _ignore_interrupts) as pool:  # leaving ends the workers
        yield from pool.imap_unordered(_measure, work)


def _measure(work):
    from .experiments import EXPERIMENTS

    name, settings, (arm, seed) = work
    return (arm, seed), EXPERIMENTS[name].measure(arm, seed, settings)


def _ignore_interrupts():
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process hears it and ends the others
