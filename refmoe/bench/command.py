"""`refmoe bench`: its options, and the run."""

import json
import sys
from pathlib import Path

from .. import kernels
from ..arguments import above_zero, positive, whole
from ..models.accounting.plots import check_picture
from ..writing import check_folder, write_whole
from . import bars, cases, machine, measure, report
from .measure import PEERS

PEERS_PYTHON = ".venv-peers/bin/python"  # where `make bench-peers` puts it
QUICK = (64, 32, 8, 2)  # D, F, E, K


def add_arguments(command):
    """The options of the subcommand."""
    command.add_argument("--shape", nargs="+", metavar="PRESET", help="these layers instead of the bars' cases")
    command.add_argument("--tokens", nargs="+", type=positive, metavar="T", help="with --shape: numbers of tokens")
    command.add_argument(
        "--store", nargs="+", choices=("float32", "bf16", "fp16"), default=["float32"], help="with --shape"
    )
    command.add_argument("--profile", nargs="+", choices=("chain", "exact"), default=["chain", "exact"])
    command.add_argument("--threads", nargs="+", type=whole(1, 256), help="thread counts (default: 1 and all)")
    command.add_argument("--kernel", help="a compiled kernel by name (default: the best that runs here)")
    command.add_argument("--peers", action="store_true", help="all peers, from the environment of `make bench-peers`")
    command.add_argument("--peers-python", metavar="FILE", help=f"that environment's Python (default: {PEERS_PYTHON})")
    command.add_argument("--only", nargs="+", metavar="LABEL", help="of the bars' cases, those whose label begins so")
    command.add_argument("--samples", type=positive, default=9, help="calls of each contestant (default: 9)")
    command.add_argument(
        "--budget", type=above_zero, default=30.0, metavar="SECONDS", help="no further round beyond (default: 30)"
    )
    command.add_argument(
        "--patience", type=above_zero, default=600.0, metavar="SECONDS", help="the longest answer waited for"
    )
    command.add_argument("--quick", action="store_true", help="tiny sizes, few samples: does it work, not how fast")
    command.add_argument("--json", metavar="FILE", help="write everything, each sample included")
    command.add_argument("--plot", metavar="FILE", help="write the roofline as a picture (needs matplotlib)")


def run(args, say=lambda step: None):
    """Status 0; 1 where bits differ: nothing is timed; 130 when interrupted: what was measured is told and kept."""
    chosen = choose(args)
    if args.kernel:
        kernels.load(args.kernel)  # or it is refused here
    check_folder("--json", args.json)
    check_picture(args.plot)
    options = options_of(args) | {"peerless": peerless(args, chosen)}

    def keep(result):
        judge(result, chosen, args)
        if args.json:
            write_whole(args.json, json.dumps(result, indent=1) + "\n")

    try:
        result = measure.run(list(chosen.values()), options, say, keep)
    except measure.ParityRefused as refusal:
        say("")
        print(f"refmoe: parity: {refusal}", file=sys.stderr)
        return 1
    keep(result)
    say("")
    print(report.text(result))
    if args.plot:
        report.plot(result, args.plot)
    return tell_interruption(result, args) if result["interrupted"] else 0


def judge(result, chosen, args):
    """Adds the bars' verdicts on the cases there are."""
    by_key = {case["key"]: case for case in result["cases"]}
    measured = {label: by_key[case.key] for label, case in chosen.items() if case.key in by_key}
    result["bars"] = bars.judge(measured, result["limits"]) if barred(args) else []


def tell_interruption(result, args):
    kept = f"; what was measured is in {args.json}" if args.json else ""
    print(f"refmoe: interrupted after {len(result['cases'])} cases{kept}", file=sys.stderr)
    return 130


def barred(args):
    """The bars are judged by runs of their own cases at published sizes."""
    return not (args.shape or args.quick)


def peerless(args, chosen):
    """The keys of cases that no bar holds against a peer."""
    needed = {bar.peers_of for bar in bars.BARS} if barred(args) else chosen
    return [case.key for label, case in chosen.items() if label not in needed]


def choose(args):
    """label -> case. Raises ValueError for labels and presets that are not there."""
    if args.quick:
        return {phase: cases.make_case("quick", cases.plain_config(*QUICK), (args.tokens or [16])[0], phase)
                for phase in cases.PHASES}  # fmt: skip
    if args.shape:
        made = [case for preset in args.shape for case in cases.preset_cases(preset, args.tokens, args.store)]
        return {case.key: case for case in made}
    chosen = bars.cases()
    if args.only:
        chosen = {label: case for label, case in chosen.items() if label.startswith(tuple(args.only))}
        if not chosen:
            raise ValueError(f"--only: expected the start of one of {', '.join(bars.cases())}, got {args.only}")
    return chosen


def options_of(args):
    """What the run is told, and the JSON repeats. The bars are of 2 threads; a quick run has one."""
    usual = [1] if args.quick else [1, machine.allowed() if args.shape else min(bars.THREADS, machine.allowed())]
    python = Path(args.peers_python or PEERS_PYTHON).absolute()  # a link into an environment stays one
    return {
        "quick": args.quick,
        "profiles": args.profile,
        "kernel": args.kernel,
        "threads": sorted(set(args.threads or usual)),
        "peers": list(PEERS) if args.peers else ["numpy loop"],
        "peers_python": str(python),
        "samples": 2 if args.quick else args.samples,
        "budget": args.budget,
        "patience": args.patience,
        "peerless": [],
    }
