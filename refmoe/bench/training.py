"""The lab's decoder against the same model in PyTorch with transformers' experts: one step each, turn by turn.

    python -m refmoe.bench.training [--threads 2] [--rounds 8] [--sequences 16]
    python -m refmoe.bench.training --curve STEPS --seeds N [--out FILE]

Both train the same model on the same batches (training_sides.py), each in a process of its own that waits while the
others work. Whether waiting threads spin is decided by OMP_WAIT_POLICY: every side runs under both, as it is by default
and passive, and its faster one counts. The table has seconds and processor seconds of a step, and of the way there and
back through one MoE block; then the parts of a step, how far the losses are from each other, and what the machine could
do at most. PyTorch's experts run under two implementations; the faster one is compared. Needs torch and transformers.
With --curve the question is whether both learn alike: training_curve.py.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from statistics import median

from ..arguments import Parser
from ..recipes import generate
from .children import clean_environment
from .training_sides import PARTS, batches_of, make_config, make_refmoe, make_torch, operations

SIDES = ("refmoe", "eager", "grouped_mm")  # this library, then transformers' experts by their implementation
WAITS = {"default": {}, "passive": {"OMP_WAIT_POLICY": "passive"}}
LABELS = tuple(f"{side} {wait}" for side in SIDES for wait in WAITS)
MEASURES = STEP, MOE = "step", "moe"
PAUSE = 0.02  # seconds after a turn: threads that spin give up


# --- a side's process, and its parent ---------------------------------------------------------------------------------


def make_side(side, config, threads, seed=0):
    made = make_refmoe if side == "refmoe" else make_torch
    more = () if side == "refmoe" else (side,)
    return made(config, threads, *more, seed=seed)


def serve(side, threads, sequences):
    """For each line on standard input (a measure's name) one on standard output: seconds, processor seconds, loss,
    seconds of the parts."""
    config = make_config(sequences)
    made, batches = make_side(side, config, threads), batches_of(config)
    x, d_y = (generate(name, (config.sequences * config.decoder.context, 128), 0) for name in ("x", "d_y"))
    for line in sys.stdin:
        work, read = (made.moe, (x, d_y)) if line.strip() == MOE else (made.step, next(batches))
        wall, used = time.perf_counter(), time.process_time()
        loss = work(*read)
        print(json.dumps([time.perf_counter() - wall, time.process_time() - used, loss, made.parts]), flush=True)


def start(side, threads, sequences, wait, more=()):
    """The process of a side."""
    sizes = ["--threads", str(threads), "--sequences", str(sequences)]
    command = [sys.executable, "-m", "refmoe.bench.training", *sizes, "--side", side, *more]
    environment = clean_environment(os.environ, threads, WAITS[wait])
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def compare(threads, rounds, sequences):
    """label (side and wait) -> measure -> list of [seconds, processor seconds, loss, parts], all taking turns."""
    children = {label: start(label.split()[0], threads, sequences, label.split()[1]) for label in LABELS}
    found = {label: {measure: [] for measure in MEASURES} for label in LABELS}
    try:
        for measure in MEASURES:
            for _ in range(rounds):
                for label, child in children.items():
                    found[label][measure].append(_turn(label, child, measure))
    finally:
        for child in children.values():
            child.stdin.close()
            child.wait()
    return found


def _turn(label, child, measure):
    time.sleep(PAUSE)
    child.stdin.write(measure + "\n")
    child.stdin.flush()
    answer = child.stdout.readline()
    if not answer:
        raise SystemExit(f"{label}: expected an answer, got the end of its process; it says above what it lacks")
    return json.loads(answer)


# --- the report -------------------------------------------------------------------------------------------------------


def middle(rows, column):
    """The median without the first round."""
    return median(row[column] for row in rows[1:])


def fastest(found, measure, sides):
    """The label with the least seconds among those of the sides."""
    return min((l for l in found if l.split()[0] in sides), key=lambda label: middle(found[label][measure], 0))


def report(found):
    """The lines of the tables."""
    yield f"{'side':<20}" + "".join(f"{m + ' s':>10}{m + ' cpu s':>12}" for m in MEASURES)
    for label, rows in found.items():
        yield f"{label:<20}" + "".join(f"{middle(rows[m], 0):10.3f}{middle(rows[m], 1):12.3f}" for m in MEASURES)
    for measure in MEASURES:
        ours, theirs = fastest(found, measure, SIDES[:1]), fastest(found, measure, SIDES[1:])
        wall, used = (middle(found[theirs][measure], i) / middle(found[ours][measure], i) for i in (0, 1))
        yield f"{measure}: refmoe is {wall:.2f} times as fast as the faster of the others ({theirs} against {ours}), " \
              f"{used:.2f} by processor time"  # fmt: skip
    yield from parts_of(found)
    ours, eager = ([row[2] for row in found[f"{side} passive"][STEP]] for side in SIDES[:2])
    furthest = max(abs(a - b) for a, b in zip(ours, eager, strict=True))
    yield f"loss from {ours[0]:.4f} to {ours[-1]:.4f}; eager's is at most {furthest:.1e} away"


def parts_of(found):
    """Where a step's seconds go."""
    yield f"{'parts of a step':<20}" + "".join(f"{part:>12}" for part in PARTS)
    for side in SIDES:
        label = fastest(found, STEP, [side])
        parts = [row[3] for row in found[label][STEP][1:]]
        seconds = [median(p[part] for p in parts) if part in parts[0] else None for part in PARTS]
        yield f"{label:<20}" + "".join(f"{'' if s is None else format(s, '.4f'):>12}" for s in seconds)


def roofline(found, config, rate):
    """What the products of a step take at `rate` operations a second, multiply-adds on registers."""
    least = operations(config) / rate
    yield f"a step's products are {operations(config) / 1e9:.2f} GFLOP: {least * 1e3:.1f} ms of multiply-adds on " \
          f"registers alone ({rate / 1e9:.0f} GFLOP/s), which is"  # fmt: skip
    for sides in (SIDES[:1], SIDES[1:]):
        label = fastest(found, STEP, sides)
        rows = found[label][STEP]
        yield f"  {least / middle(rows, 0):.0%} of {label}'s step"
        products = [row[3].get("products") for row in rows[1:]]
        if products[0]:
            inside = median(products)
            yield f"  {least / inside:.0%} of its products; all else is {middle(rows, 0) - inside:.4f} s"


def registers(threads):
    """Operations a second of multiply-adds on registers, by the fastest kernel; None without the module."""
    from .. import kernels
    from .contestants.limits import Machine

    if kernels.build_error():
        return None
    machine, rates = Machine(0.1, 1 << 20), []
    for name in (name for name, runs, _ in kernels.available() if runs):
        call = machine.computing("registers", "chain", name, threads)
        if call is not None:
            call()
            rates.append(machine.last["work"] / machine.last["seconds"])
    return max(rates)


def main(words=None):
    parser = Parser(prog="python -m refmoe.bench.training", description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=2, help="of each side (default: 2)")
    parser.add_argument("--rounds", type=int, default=8, help="steps each, the first not counted (default: 8)")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--sequences", type=int, default=16, help="of 128 bytes, a step (default: 16)")
    parser.add_argument("--curve", type=int, metavar="STEPS", help="compare the curves of so many steps instead")
    parser.add_argument("--seeds", type=int, default=5, help="of a curve (default: 5)")
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", help="where the curves are written, as JSON")
    args = parser.parse_args(words)
    if args.rounds < 2 or args.threads < 1 or args.sequences < 1:
        parser.error("expected at least 2 rounds, 1 thread and 1 sequence; give more")
    if args.curve is not None and (args.curve < 1 or args.seeds < 2):
        parser.error("expected a curve of at least 1 step and 2 seeds; give more")
    if args.out and args.curve is None:
        parser.error("--out: expected --curve STEPS with it, whose curves it names a file for; add it")
    run(args)


def run(args):
    from . import training_curve

    if args.side and args.curve is not None:
        print(json.dumps(training_curve.train(args.side, args.threads, args.sequences, args.curve, args.seed)))
    elif args.side:
        serve(args.side, args.threads, args.sequences)
    elif args.curve is not None:
        training_curve.command(args)
    else:
        found, rate = compare(args.threads, args.rounds, args.sequences), registers(args.threads)
        print("\n".join(report(found)))
        print("\n".join(roofline(found, make_config(args.sequences), rate) if rate else []))


if __name__ == "__main__":
    main()
