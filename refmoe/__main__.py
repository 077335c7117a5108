"""The command line: `refmoe COMMAND`, or `python -m refmoe COMMAND`.

Exit status: 0 all is well; 1 a bundle, a vector, a gradient or a bit is wrong; 2 the request cannot be met;
130 interrupted.
Errors are one sentence on standard error.
"""

import argparse
import os
import signal
import sys

STORES = {"f32": "float32", "bf16": "bf16", "f16": "fp16", "f64": "float64"}
REFUSALS = (ValueError, TypeError, ImportError, OSError, MemoryError, ArithmeticError, RuntimeError)


def main(argv=None):
    """Parses the arguments, runs the command, returns the exit status."""
    try:
        signal.signal(signal.SIGTERM, _terminate)
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="replace")  # a terminal without block characters still gets its report
        args = parser().parse_args(argv)
        return args.run(args)
    except KeyboardInterrupt:
        _say("")
        print("refmoe: interrupted; nothing half done is left behind", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader of our output went away
        return 0
    except REFUSALS as error:
        _say("")
        print(f"refmoe: error: {error}", file=sys.stderr)
        return 2


def _terminate(number, frame):
    raise SystemExit(128 + number)


def _say(step):
    """The step at work, on a terminal; the next one, or the report, takes its place."""
    if sys.stderr.isatty():
        print(f"\r\033[K{step + ' ...' if step else ''}", end="", file=sys.stderr, flush=True)


# --- arguments -------------------------------------------------------------------------------------------------------


def parser():
    """The whole command line."""
    top = argparse.ArgumentParser(
        prog="refmoe", description="A mixture-of-experts layer whose every bit has a meaning."
    )
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    _add_golden(commands)
    _add_check(commands)
    _add_compare(commands)
    presets = _add(commands, "presets", run_presets, "list the layers of real models, or where one's fields were read")
    presets.add_argument("preset", nargs="?", help="one of them: each field with its source")
    fields = _add(commands, "fields", run_fields, "list the fields of the configuration")
    fields.add_argument("--markdown", action="store_true", help="as the page spec/fields.md")
    fields.add_argument("--write", action="store_true", help="write them into README.md, spec/fields.md and the schema")
    _add_params(commands)
    _add_bench(commands)
    _add(commands, "info", run_info, "versions, backend and why, kernels, threads")
    _add(commands, "kernels", run_kernels, "list the compiled kernels and which of them can run here")
    vectors = _add(commands, "vectors", run_vectors, "write the small committed vectors")
    vectors.add_argument("--check", action="store_true", help="write nothing; fail when the files are stale")
    gradients = _add(commands, "gradients", run_gradients, "check every gradient of a preset by complex step")
    gradients.add_argument("preset")
    gradients.add_argument("--seed", type=_count, default=0)
    return top


def _add(commands, name, run, text):
    command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    command.set_defaults(run=run)
    return command


def _add_golden(commands):
    golden = _add(commands, "golden", run_golden, "compute one layer and write a golden bundle of it")
    golden.add_argument("preset", nargs="?", help="the layer of a real model (see `refmoe presets`)")
    golden.add_argument("--config", metavar="FILE", help="a configuration in JSON instead of a preset")
    golden.add_argument("--checkpoint", metavar="DIR", help="a layer of a Hugging Face checkpoint instead of a preset")
    golden.add_argument("--layer", type=_count, metavar="N", help="which layer of --checkpoint, from 0")
    golden.add_argument(
        "--scale", choices=("full", "minimal"), default="full", help="the preset's sizes (default: full)"
    )
    golden.add_argument("--tokens", type=_count, help="number of tokens (default: 64, or what --inputs holds)")
    golden.add_argument("--profile", choices=("exact", "chain", "float64"), default="exact")
    golden.add_argument("--store", choices=STORES, help="storage format (default: f32, or f64 with profile float64)")
    golden.add_argument("--no-backward", action="store_true", help="leave out the gradients")
    golden.add_argument("--seed", type=_count, default=0, help="seed of the recipes (default: 0)")
    golden.add_argument(
        "--inputs", metavar="FILE", help="x and any weights by name, as .safetensors or .npz; the rest by recipe"
    )
    golden.add_argument("--layout", choices=("out_in", "in_out"), default="out_in", help="axes of your expert weights")
    golden.add_argument("--gate-up", choices=("separate", "concatenated", "interleaved"), default="separate",
                        help="how your w_gate_up joins gate and up")  # fmt: skip
    golden.add_argument("--weights", metavar="SCHEME", help="quantise the expert matrices: fp8-block, mxfp4, nvfp4 ...")
    golden.add_argument("--scale-rule", metavar="RULE", help="floor, up or even, for scales that are powers of two")
    golden.add_argument("--force", action="store_true", help="replace an existing bundle")
    golden.add_argument("--out", metavar="DIR", required=True, help="the bundle; it appears when all is done")
    _add_engine(golden)


def _add_check(commands):
    check = _add(commands, "check", run_check, "recompute a golden bundle and compare every bit")
    check.add_argument("directory", metavar="DIR")
    _add_engine(check)


def _add_compare(commands):
    from refmoe.compare.command import add_arguments

    compare = _add(commands, "compare", run_compare, "judge your own tensors against a golden bundle")
    add_arguments(compare)
    _add_engine(compare)


def _add_engine(command):
    command.add_argument("--backend", choices=("auto", "c", "numpy"), default="auto")
    command.add_argument("--threads", type=_count)
    command.add_argument("--kernel", help="a compiled kernel by name (see `refmoe kernels`)")


def _count(text):
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"expected a whole number, not negative, got {text!r}")
    return int(text)


# --- commands --------------------------------------------------------------------------------------------------------


def run_golden(args):
    import refmoe
    from refmoe.golden import report, write_bundle
    from refmoe.golden.inputs import prepare
    from refmoe.golden.quantised import quantised_rows

    num = refmoe.Numerics(profile=args.profile, store=STORES.get(args.store), backend=args.backend,
                          threads=args.threads, kernel=args.kernel)  # fmt: skip
    config, title, arrays = _case(args, num)
    tokens, rows, stored = prepare(config, num, args.tokens, not args.no_backward, args.seed, arrays)
    rows = quantised_rows(rows, args.weights, args.scale_rule)
    written = write_bundle(args.out, config, num, refmoe.SPEC_VERSION, title, tokens, rows, stored, args.force, _say)
    print(report.golden_report(written, config, num, args.out))
    return 0


def _case(args, num):
    """(configuration, title, arrays by name): of a checkpoint's layer, a preset or a file, and of --inputs."""
    own = _user_arrays(args)
    if args.checkpoint is None:
        if args.layer is not None:
            raise ValueError("--layer: expected beside --checkpoint DIR, got it alone; leave it out")
        return *_configuration(args), own
    others = {"a preset": args.preset, "--config": args.config}
    other = next((name for name, value in others.items() if value), None)
    if other or args.layer is None:
        wrong = f"{other} as well" if other else "no layer"
        raise ValueError(f"--checkpoint: expected it with --layer N and nothing else that names a layer, got {wrong}")
    from refmoe.models.checkpoint import read_layer
    from refmoe.recipes import name_params

    layer = read_layer(args.checkpoint, args.layer)
    _say("")
    print(*layer.notes, sep="\n", file=sys.stderr)
    floats = {name: a for name, a in name_params(layer.params).items() if not callable(a) and a.dtype.kind == "f"}
    named = name_params(layer.params) | {name: a.astype(num.dtype) for name, a in floats.items()}
    both = sorted(named.keys() & own.keys())
    if both:
        raise ValueError(f"--inputs: expected no parameters beside --checkpoint, got {both[0]!r}; leave it out")
    return layer.config, layer.title, named | own


def _configuration(args):
    """(configuration, title) of a preset or of a file, exactly one of which must be given."""
    import refmoe

    if (args.preset is None) == (args.config is None):
        raise ValueError(
            "golden: expected a preset or --config FILE, got " + ("both" if args.preset else "neither") + "; give one"
        )
    if args.config:
        return refmoe.MoEConfig.from_json(args.config), "own configuration"
    return refmoe.load_preset(args.preset, scale=args.scale), f"{args.preset} ({args.scale} scale)"


def _user_arrays(args):
    from refmoe.golden.arrays import house_layout, load_arrays

    return house_layout(load_arrays(args.inputs), args.layout, args.gate_up) if args.inputs else {}


def run_check(args):
    import refmoe
    from refmoe.golden import BundleError, check_bundle, report

    try:
        checked = check_bundle(args.directory, refmoe.SPEC_VERSION, args.backend, args.threads, args.kernel, _say)
        _say("")
    except BundleError as error:
        _say("")
        print(f"refmoe: {error}", file=sys.stderr)
        return error.code
    print(report.check_report(checked, args.directory), file=sys.stderr if checked.differences else sys.stdout)
    return 1 if checked.differences else 0


def run_compare(args):
    """Somebody's tensors against a bundle."""
    import refmoe
    from refmoe.compare.command import run

    return run(args, refmoe.SPEC_VERSION, _say)


def _add_params(commands):
    from refmoe.models.accounting.command import add_arguments

    add_arguments(_add(commands, "params", run_params, "count the parameters, bytes and cost of published models"))


def run_params(args):
    """Sizes of published models."""
    from refmoe.models.accounting.command import run

    return run(args)


def _add_bench(commands):
    from refmoe.bench.command import add_arguments

    add_arguments(_add(commands, "bench", run_bench, "prove the bits, then time refmoe, this machine and the peers"))


def run_bench(args):
    """Ratios in one run."""
    from refmoe.bench.command import run

    return run(args, _say)


def run_presets(args):
    from refmoe.models import listing

    print(listing.details(args.preset) if args.preset else listing.overview())
    return 0


def run_fields(args):
    from refmoe.models import generated

    if args.write:
        for path in generated.write():
            print(f"written: {path}")
    else:
        print(generated.full_table() if args.markdown else generated.text_table())
    return 0


def run_info(args):
    import refmoe

    refmoe.show_config()
    return 0


def run_kernels(args):
    from refmoe import kernels

    if kernels.build_error() is not None:
        print(f"no compiled module: {kernels.build_error()}")
        return 0
    for name, can_run, reason in kernels.available():
        print(f"{name:<10} {'runs here' if can_run else 'not run here'}" + (f": {reason}" if reason else ""))
    return 0


def run_vectors(args):
    from refmoe.golden.vectors import check_vectors, write_vectors

    stale = check_vectors() if args.check else []
    for name in stale if args.check else write_vectors():
        print(f"stale: {name}; run `refmoe vectors`" if args.check else f"written: {name}")
    return 1 if stale else 0


def run_gradients(args):
    import refmoe

    result = refmoe.check_gradients(refmoe.load_preset(args.preset, scale="minimal"), seed=args.seed)
    print(result)
    return 0 if result.ok else 1


if __name__ == "__main__":
    sys.exit(main())
