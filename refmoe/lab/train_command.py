"""`refmoe lab train`: a decoder on bytes, in a folder, going on where it stopped."""

import shlex
import sys
from pathlib import Path

from ..arguments import above_zero, count, positive, whole
from .runs import Interrupted

OUT = "out/lab/train"  # where the run goes unless --out names another place
DEFAULTS = {"size": "byte", "text": None, "steps": 300, "sequences": 16, "rate": 1e-3, "seed": 0, "dense": False}
WARM_UP = 20  # steps until the rate is reached; constant from there, so that a run can be made longer
# hidden size, heads, context, blocks, experts, an expert's width
SIZES = {"small": (64, 4, 64, 2, 4, 96), "byte": (128, 4, 128, 4, 8, 384)}


def add_train(verbs):
    """The arguments of `refmoe lab train`."""
    train = verbs.add_parser("train", help="train a decoder on bytes; goes on where it was interrupted")
    train.add_argument("--size", choices=SIZES, help="byte has 5 million parameters (default: byte)")
    train.add_argument("--text", metavar="FILE", help="what it reads (default: the chapters of spec/)")
    train.add_argument("--steps", type=positive, metavar="N", help="in all (default: 300)")
    train.add_argument("--sequences", type=whole(1, 4096), metavar="N", help="of one step (default: 16)")
    train.add_argument("--rate", type=above_zero, help="of AdamW, after a short warm-up (default: 0.001)")
    train.add_argument("--seed", type=count, help="of parameters and batches (default: 0)")
    train.add_argument("--dense", action="store_true", help="one expert of the same active width in each block")
    train.add_argument("--out", metavar="DIR", default=OUT, help=f"the run's folder (default: {OUT})")
    train.set_defaults(verb=run_train, **DEFAULTS)


def run_train(args):
    """Trains; 0, or 130 after Ctrl-C."""
    from .decoder import DecoderNumerics
    from .text import load_corpus
    from .training_page import write_curve
    from .training_run import run_training

    corpus, every = load_corpus(args.text), max(1, args.steps // 20)

    def say(made):
        if made.step % every == 0:
            print(f"step {made.step + 1} of {args.steps}: loss {made.loss:.4f}{_busiest(made)}", flush=True)

    try:
        num = DecoderNumerics("chain")
        state, losses = run_training(make_config(args), corpus, args.seed, args.steps, num, args.out, progress=say,
                                     command=command_of(args))  # fmt: skip
    except Interrupted as interrupted:
        print(f"refmoe: {interrupted}", file=sys.stderr)
        return 130
    print(f"{state.step} steps are in {args.out}: loss {losses[0]:.4f} to {losses[-1]:.4f} nats a byte")
    why = write_curve(Path(args.out))
    print(f"no picture: {why}" if why else f"`refmoe lab report --runs {shlex.quote(args.out)}` shows it as a page")
    return 0


def command_of(args):
    """What made the run, without its place: the arguments that are not the defaults."""
    changed = {name: getattr(args, name) for name, default in DEFAULTS.items() if getattr(args, name) != default}
    words = [f"--{name}" if value is True else f"--{name} {shlex.quote(str(value))}" for name, value in changed.items()]
    return " ".join(["refmoe lab train", *words])


def make_config(args):
    """The decoder of that size, and how it is trained."""
    from ..config import MoEConfig, RoutingConfig
    from .decoder import DecoderConfig, DenseConfig
    from .schedules import Schedule
    from .training import TrainingConfig

    D, heads, context, blocks, E, F = SIZES[args.size]
    layer = MoEConfig(hidden_size=D, intermediate_size=F, num_experts=E, top_k=2, routing=RoutingConfig(normalize=True))
    block = DenseConfig(D, 2 * F) if args.dense else layer
    schedule = Schedule(((0, args.rate / WARM_UP), (WARM_UP - 1, args.rate)))
    decoder = DecoderConfig(D, heads, context, (block,) * blocks)
    return TrainingConfig(decoder, schedule=schedule, sequences=args.sequences)


def _busiest(made):
    """What the busiest expert of any layer has, over an even share."""
    shares = [load.max() * len(load) / load.sum() for load in made.loads if load is not None]
    return f", the busiest expert has {max(shares):.2f} times its share" if shares else ""
