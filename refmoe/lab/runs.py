"""Runs an experiment: every arm with every seed, in processes, each result kept as soon as it is there."""

import signal
import threading
from contextlib import closing, contextmanager
from multiprocessing import get_context
from multiprocessing.connection import wait
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
        with closing(_measured(experiment, settings, missing, jobs)) as found:
            for (arm, seed), measured in found:
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
    if min(jobs, len(work)) < 2:
        yield from map(_measure, work)
        return
    workers = _start_workers(min(jobs, len(work)))
    try:
        yield from _shared_out(work, [near for near, _ in workers])
    finally:
        for _, process in workers:
            process.terminate()
            process.join()


def _measure(work):
    from .experiments import EXPERIMENTS

    name, settings, (arm, seed) = work
    return (arm, seed), EXPERIMENTS[name].measure(arm, seed, settings)


# --- processes: a pipe each and no lock in common, so that one can be ended at any time -------------------------------


def _start_workers(count):
    """[(our end of the pipe, process)]; they are deaf to Ctrl-C from birth: the first process ends them."""
    context, workers = get_context("spawn"), []
    with _deaf():
        for _ in range(count):
            near, far = context.Pipe()
            process = context.Process(target=_work, args=(far,), daemon=True)
            process.start()
            far.close()
            workers.append((near, process))
    return workers


@contextmanager
def _deaf():
    """Ignores Ctrl-C for a moment, where that can be set."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _shared_out(work, pipes):
    """Gives each worker its next piece as it hands in the last."""
    left, busy = list(reversed(work)), list(pipes)
    for pipe in busy:
        pipe.send(left.pop())
    while busy:
        for pipe in wait(busy):
            try:
                done, failure = pipe.recv()
            except EOFError:
                raise RuntimeError("a process of the run ended by itself; what is finished is kept") from None
            if failure is not None:
                raise failure
            if left:
                pipe.send(left.pop())
            else:
                busy.remove(pipe)
            yield done


def _work(pipe):
    """A worker: measures what it is sent until it is ended."""
    while True:
        try:
            pipe.send((_measure(pipe.recv()), None))
        except EOFError:
            return
        except Exception as failure:
            pipe.send((None, failure))
