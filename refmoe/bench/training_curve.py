"""Whether both sides learn alike: the loss on held-out text along a run, for several seeds.

    python -m refmoe.bench.training --curve STEPS --seeds N [--out FILE]

A seed decides the first values and the batches of both sides. The held-out loss is taken at the beginning, at the end
and at nine steps between. At each the difference of the sides is that of their means over the seeds, and the spread is
the larger of their standard deviations over the seeds (of a sample: N - 1). The verdict: the curves are the same within
seed spread if at every one of these steps the size of the difference is at most the spread.
"""

import json
from statistics import mean, stdev

import numpy as np

from ..writing import write_whole
from .training_sides import batches_of, make_config

SIDES = ("refmoe", "grouped_mm")
POINTS = 10


def train(side, threads, sequences, steps, seed):
    """step -> loss on the held-out text, of one run."""
    from .training import make_side

    config = make_config(sequences)
    made, batches, text = make_side(side, config, threads, seed), batches_of(config, seed), held_out_batch(config)
    at = sorted({steps * i // POINTS for i in range(POINTS + 1)})
    curve = {0: made.held_out(*text)}
    for done in range(1, steps + 1):
        made.step(*next(batches))
        if done in at:
            curve[done] = made.held_out(*text)
    return curve


def held_out_batch(config, sequences=16):
    """Evenly spaced windows of the text that is never drawn."""
    from ..lab.text import held_out_part, load_corpus, windows

    data, S = held_out_part(load_corpus()), config.decoder.context
    return windows(data, np.arange(sequences) * (len(data) - S - 1) // (sequences - 1), S)


def command(args):
    """Trains every side with every seed, a process each, one after the other."""
    curves = {side: [] for side in SIDES}
    for seed in range(args.seeds):
        for side in SIDES:
            curves[side].append(_curve_of(side, args, seed))
            step, loss = list(curves[side][-1].items())[-1]
            print(f"seed {seed}, {side}: {loss:.4f} after {step} steps", flush=True)
    rows = judge(curves)
    print("\n".join(report(rows)))
    if args.out:
        made = {"steps": args.curve, "sequences": args.sequences, "curves": curves, "rows": rows, "same": same(rows)}
        write_whole(args.out, json.dumps(made, indent=1) + "\n")


def _curve_of(side, args, seed):
    from .training import start

    more = ["--curve", str(args.curve), "--seed", str(seed)]
    child = start(side, args.threads, args.sequences, "passive", more)
    said, _ = child.communicate()
    if child.returncode:
        raise SystemExit(f"{side}: expected its curve, got status {child.returncode}; it says above what it lacks")
    return {int(step): loss for step, loss in json.loads(said).items()}


def judge(curves):
    """side -> one curve (step -> loss) a seed  ->  rows of step, the two means, their difference, the spread."""
    rows = []
    for step in curves[SIDES[0]][0]:
        ours, theirs = ([curve[step] for curve in curves[side]] for side in SIDES)
        spread = max(stdev(ours), stdev(theirs))
        rows.append({"step": step, **dict(zip(SIDES, (mean(ours), mean(theirs)), strict=True)),
                     "difference": mean(ours) - mean(theirs), "spread": spread})  # fmt: skip
    return rows


def same(rows):
    return all(abs(row["difference"]) <= row["spread"] for row in rows)


def report(rows):
    yield f"{'step':>8}" + "".join(f"{side:>12}" for side in SIDES) + f"{'difference':>12}{'spread':>12}"
    for row in rows:
        yield f"{row['step']:8}" + "".join(f"{row[c]:12.5f}" for c in (*SIDES, "difference", "spread"))
    beyond = [str(row["step"]) for row in rows if abs(row["difference"]) > row["spread"]]
    if beyond:
        yield f"verdict: not the same: the difference exceeds the spread over the seeds at step {', '.join(beyond)}"
    else:
        yield "verdict: the same curve within seed spread, at every step above"
