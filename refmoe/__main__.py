"""The command line: `refmoe COMMAND`, or `python -m refmoe COMMAND`.

Exit status: 0 all is well; 1 a bundle, a vector, a gradient or a bit is wrong; 2 the request cannot be met;
130 interrupted.
Errors are one sentence on standard error.
"""

import os
import signal
import sys

from refmoe.arguments import Parser, count

REFUSALS = (ValueError, TypeError, ImportError, OSError, MemoryError, ArithmeticError, RuntimeError)


def main(argv=None):
    """Parses the arguments, runs the command, returns the exit status."""
    try:
        signal.signal(signal.SIGTERM, _terminate)
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="replace")  # a terminal without block characters still gets its report
        args = parser().parse_args(argv)
        return args.run(args)
    except KeyboardInterrupt as error:
        _say("")
        print(f"refmoe: interrupted; {_notes(error) or 'nothing half done is left behind'}", file=sys.stderr)
        return 130
    except SystemExit as error:
        if _notes(error):
            _say("")
            print(f"refmoe: ended; {_notes(error)}", file=sys.stderr)
        raise
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader of our output went away
        return 0
    except REFUSALS as error:
        _say("")
        said = "; ".join(filter(None, (str(error) or type(error).__name__, _notes(error))))
        print(f"refmoe: error: {' '.join(said.split())}", file=sys.stderr)
        return 2


def _notes(error):
    """What the error left behind, if it says so."""
    return "; ".join(getattr(error, "__notes__", ()))


def _terminate(number, frame):
    raise SystemExit(128 + number)


def _say(step):
    """The step at work, on a terminal; the next one, or the report, takes its place."""
    if sys.stderr.isatty():
        print(f"\r\033[K{step + ' ...' if step else ''}", end="", file=sys.stderr, flush=True)


# --- arguments -------------------------------------------------------------------------------------------------------


def parser():
    """The whole command line."""
    top = Parser(prog="refmoe", description="A mixture-of-experts layer whose every bit has a meaning.")
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    _add_golden(commands)
    _add_check(commands)
    _add_compare(commands)
    _add_export(commands)
    presets = _add(commands, "presets", run_presets, "list the layers of real models, or where one's fields were read")
    presets.add_argument("preset", nargs="?", help="one of them: each field with its source")
    fields = _add(commands, "fields", run_fields, "list the fields of the configuration")
    fields.add_argument("--markdown", action="store_true", help="as the page spec/fields.md")
    fields.add_argument("--write", action="store_true", help="write them into README.md, spec/fields.md and the schema")
    _add_params(commands)
    _add_bench(commands)
    _add_lab(commands)
    _add_route(commands)
    _add(commands, "info", run_info, "versions, backend and why, kernels, threads")
    _add(commands, "kernels", run_kernels, "list the compiled kernels and which of them can run here")
    vectors = _add(commands, "vectors", run_vectors, "write the small committed vectors")
    vectors.add_argument("--check", action="store_true", help="write nothing; fail when the files are stale")
    gradients = _add(commands, "gradients", run_gradients, "check every gradient of a preset by complex step")
    gradients.add_argument("preset")
    gradients.add_argument("--seed", type=count, default=0)
    return top


def _add(commands, name, run, text):
    command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    command.set_defaults(run=run)
    return command


def _add_golden(commands):
    from refmoe.golden.command import add_arguments

    golden = _add(commands, "golden", run_golden, "compute one layer and write a golden bundle of it")
    add_arguments(golden)
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


def _add_export(commands):
    from refmoe.golden.exports.command import add_arguments

    add_arguments(_add(commands, "export", run_export, "write a golden bundle in a form that others read"))


def _add_engine(command):
    command.add_argument("--backend", choices=("auto", "c", "numpy"), default="auto")
    command.add_argument("--threads", type=count)
    command.add_argument("--kernel", help="a compiled kernel by name (see `refmoe kernels`)")


# --- commands --------------------------------------------------------------------------------------------------------


def run_golden(args):
    """One layer, as a bundle."""
    from refmoe.golden.command import run

    return run(args, _say)


def run_check(args):
    """A bundle, made again."""
    from refmoe.golden.command import check

    return check(args, _say)


def run_compare(args):
    """Somebody's tensors against a bundle."""
    import refmoe
    from refmoe.compare.command import run

    return run(args, refmoe.SPEC_VERSION, _say)


def run_export(args):
    """A bundle in another form."""
    import refmoe
    from refmoe.golden.exports.command import run

    return run(args, refmoe.SPEC_VERSION)


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


def _add_lab(commands):
    from refmoe.lab.command import add_arguments

    add_arguments(_add(commands, "lab", run_lab, "run experiments on small layers: what a mixture of experts does"))


def _add_route(commands):
    from refmoe.lab.route import add_arguments

    add_arguments(_add(commands, "route", run_route, "show whom a router chooses for a text, or chose in a record"))


def run_lab(args):
    """Experiments."""
    from refmoe.lab.command import run

    return run(args)


def run_route(args):
    """What a router does with a text."""
    from refmoe.lab.route import run

    return run(args)


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
    from refmoe.golden.vectors import CHAPTERS, check_vectors, write_vectors

    if not args.check:
        print(*(f"written: {name}" for name in write_vectors()), sep="\n")
        return 0
    stale = check_vectors()
    for name in stale:
        print(f"stale: {name}; run `refmoe vectors`")
    if not stale:
        print(f"{len(CHAPTERS)} suites made again, every byte agrees")
    return 1 if stale else 0


def run_gradients(args):
    import refmoe

    config = refmoe.load_preset(args.preset, scale="minimal")
    result = refmoe.check_gradients(config, seed=args.seed, oracle=True)
    print(result)
    return 0 if result.ok else 1


if __name__ == "__main__":
    sys.exit(main())
