"""`refmoe golden`: one layer, computed and written as a bundle; `refmoe check`: a bundle, made again.   Spec 7"""

import sys

from ..arguments import count
from .arrays import GATE_UPS, LAYOUTS, house_layout, load_arrays
from .bundle import write_bundle
from .containers import CONTAINERS
from .errors import BundleError
from .inputs import prepare
from .listing import listing, listing_report
from .narrow import Options, narrowed, require_stages
from .quantised import quantised_rows
from .report import check_report, golden_report
from .verify import check_bundle

STORES = {"f32": "float32", "bf16": "bf16", "f16": "fp16", "f64": "float64"}


def add_arguments(golden):
    """The arguments of `refmoe golden`, on an argparse parser."""
    _of_the_case(golden)
    golden.add_argument("--format", choices=CONTAINERS, default="safetensors",
                        help="the container of the tensors; raw is plain bytes and a text index")  # fmt: skip
    golden.add_argument("--experts", type=_ids, metavar="0,17", help="write these experts' parts only, and those whole")
    golden.add_argument("--stages", type=_words, metavar="NAMES",
                        help="write these tensors only: names, or what stands before a dot (y,routing)")  # fmt: skip
    golden.add_argument("--ranks", type=count, metavar="R", help="add what R expert-parallel ranks exchange")
    golden.add_argument("--list", action="store_true", help="say what the bundle would hold, and make nothing")
    golden.add_argument("--force", action="store_true", help="replace an existing bundle")
    golden.add_argument("--out", metavar="DIR", help="the bundle; it appears when all is done")


def _of_the_case(golden):
    golden.add_argument("preset", nargs="?", help="the layer of a real model (see `refmoe presets`)")
    golden.add_argument("--config", metavar="FILE", help="a configuration in JSON instead of a preset")
    golden.add_argument("--checkpoint", metavar="DIR", help="a layer of a Hugging Face checkpoint instead of a preset")
    golden.add_argument("--layer", type=count, metavar="N", help="which layer of --checkpoint, from 0")
    golden.add_argument(
        "--scale", choices=("full", "minimal"), default="full", help="the preset's sizes (default: full)"
    )
    golden.add_argument("--tokens", type=count, help="number of tokens (default: 64, or what --inputs holds)")
    golden.add_argument("--profile", choices=("exact", "chain", "float64"), default="exact")
    golden.add_argument("--store", choices=STORES, help="storage format (default: f32, or f64 with profile float64)")
    golden.add_argument("--no-backward", action="store_true", help="leave out the gradients")
    golden.add_argument("--seed", type=count, default=0, help="seed of the recipes (default: 0)")
    golden.add_argument(
        "--inputs", metavar="FILE", help="x and any weights by name, as .safetensors or .npz; the rest by recipe"
    )
    golden.add_argument("--layout", choices=LAYOUTS, default="out_in", help="axes of your expert weights")
    golden.add_argument("--gate-up", choices=GATE_UPS, default="separate", help="how your w_gate_up joins gate and up")
    golden.add_argument("--weights", metavar="SCHEME", help="quantise the expert matrices: fp8-block, mxfp4, nvfp4 ...")
    golden.add_argument("--scale-rule", metavar="RULE", help="floor, up or even, for scales that are powers of two")


def _ids(text):
    return [count(word) for word in text.split(",")]


def _words(text):
    return [word.strip() for word in text.split(",")]


def run(args, say=str):
    """Computes the case, writes the bundle, prints the report."""
    import refmoe

    if args.out is None and not args.list:
        raise ValueError("--out: expected the directory of the bundle, got none; name one, or pass --list")
    num = refmoe.Numerics(profile=args.profile, store=STORES.get(args.store), backend=args.backend,
                          threads=args.threads, kernel=args.kernel)  # fmt: skip
    config, title, arrays = _case(args, num, say)
    tokens, rows, stored = prepare(config, num, args.tokens, not args.no_backward, args.seed, arrays)
    rows = quantised_rows(rows, args.weights, args.scale_rule)
    options = Options(args.format, narrowed(config, args.experts, args.stages), args.ranks)
    if args.list or args.stages:
        listed = listing(config, num, tokens, rows, stored, options)
        require_stages(options.narrow, [row.name for row in listed.tensors])
    if args.list:
        print(listing_report(listed, title))
        return 0
    case = config, num, refmoe.SPEC_VERSION, title, tokens, rows, stored
    written = write_bundle(args.out, *case, args.force, say, options)
    print(golden_report(written, config, num, args.out))
    return 0


def _case(args, num, say):
    """(configuration, title, arrays by name): of a checkpoint's layer, a preset or a file, and of --inputs."""
    own = house_layout(load_arrays(args.inputs), args.layout, args.gate_up) if args.inputs else {}
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
    say("")
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


def check(args, say=str):
    """Exit status: 0 every bit agrees, 1 something is wrong, 2 unreadable or of another version."""
    import refmoe

    try:
        checked = check_bundle(args.directory, refmoe.SPEC_VERSION, args.backend, args.threads, args.kernel, say)
        say("")
    except BundleError as error:
        say("")
        print(f"refmoe: {error}", file=sys.stderr)
        return error.code
    print(check_report(checked, args.directory), file=sys.stderr if checked.differences else sys.stdout)
    return 1 if checked.differences else 0
