"""`refmoe lab list`, `refmoe lab run`, `refmoe lab train`, `refmoe lab report`."""

import os
import sys

from ..arguments import whole
from ..writing import make_folder
from .progress import live
from .runs import Interrupted, run_experiment
from .settings import as_text, merged_settings, settings_for_all
from .train_command import add_train

OUT = "out/lab"  # where runs go unless --out names another place


def add_arguments(command):
    """The arguments of `refmoe lab`."""
    verbs = command.add_subparsers(metavar="{list,run,train,report}", required=True)
    listing = verbs.add_parser("list", help="the experiments and their settings")
    listing.set_defaults(verb=run_list)
    run = verbs.add_parser("run", help="run an experiment, or all; goes on where it was interrupted")
    run.add_argument("experiment", metavar="NAME", help="an id or a name of `refmoe lab list`, or all")
    run.add_argument("--seeds", type=whole(1, 1000), metavar="N", help="seeds 0 to N - 1 (default: 5, with --quick 2)")
    run.add_argument("--out", metavar="DIR", default=OUT, help=f"where the run's folder goes (default: {OUT})")
    run.add_argument("--set", dest="words", action="append", default=[], metavar="KEY=VALUE", help="change a setting")
    run.add_argument("--quick", action="store_true", help="small sizes: does it work, not what comes out")
    run.add_argument("--jobs", type=whole(1, 256), metavar="N", help="processes (default: the processors allowed)")
    run.set_defaults(verb=run_run)
    add_train(verbs)
    report = verbs.add_parser("report", help="one page of all runs in a folder")
    report.add_argument("--runs", metavar="DIR", nargs="+", default=[OUT],
                        help=f"runs of experiments and of training, or folders of them (default: {OUT})")  # fmt: skip
    report.add_argument("--out", metavar="FILE", help="the page (default: report.html in the first folder)")
    report.set_defaults(verb=run_report)


def run(args):
    """Runs the verb; 0, or 130 after Ctrl-C."""
    return args.verb(args)


def run_list(args):
    from .experiments import EXPERIMENTS

    for e in EXPERIMENTS.values():
        settings = " ".join(f"{name}={as_text(value)}" for name, value in e.settings.items())
        print(f"{e.id:<4} {e.name:<18} {e.question}\n{'':24}{settings}")
    print("\n`refmoe lab run NAME` runs one, `refmoe lab run all --quick` looks whether all work.")
    return 0


def run_run(args):
    from .experiments import find_experiments

    chosen = find_experiments(args.experiment)
    words = settings_for_all(chosen, args.words) if len(chosen) > 1 else {chosen[0].id: args.words}
    settings = {e.id: merged_settings(e, words[e.id], args.quick) for e in chosen}
    digests = {e.id: _digest(e, settings[e.id]) for e in chosen}  # before the first minute is spent
    make_folder("--out", args.out)
    seeds, jobs = range(args.seeds or (2 if args.quick else 5)), args.jobs or len(os.sched_getaffinity(0))
    try:
        for experiment in chosen:
            _run_one(experiment, settings[experiment.id], seeds, args.out, jobs, digests[experiment.id])
    except Interrupted as interrupted:
        print(f"refmoe: {interrupted}", file=sys.stderr)
        return 130
    return 0


def _run_one(experiment, settings, seeds, out, jobs, corpus):
    with live(f"{experiment.id} {experiment.name}") as progress:
        results, why, folder = run_experiment(experiment, settings, seeds, out, jobs, progress, corpus)
    print(f"{experiment.id}  {experiment.title}: {len(results['arms'])} arms, {len(seeds)} seeds, in {folder}")
    for finding in results["findings"]:
        print(f"  {finding['sentence']}")
    if why:
        print(f"  no picture: {why}")


def _digest(experiment, settings):
    """Of the text, where one is read. Raises ValueError for a file that cannot be, or is too short."""
    from .text import check_length, load_corpus

    if not experiment.corpus:
        return None
    corpus = load_corpus(settings["text"] or None)
    check_length(corpus, settings["context"])
    return corpus.digest


def run_report(args):
    from .report import write_report

    path, count = write_report(args.runs, args.out)
    print(f"{count} runs in {path}")
    return 0
