"""`refmoe params`: sizes of published models as a table, JSON or a picture.   Spec 0.3"""

import json

from ...arguments import Parser, positive
from ...refusals import require
from .. import names as all_names
from .. import preset_info
from . import report
from .plots import check_picture
from .sweep import sweep_experts
from .tensors import is_whole

SWEPT = "qwen3-30b-a3b"  # the model whose experts are multiplied unless another is named


def add_arguments(command):
    """The arguments of `refmoe params`, on an argparse parser."""
    command.add_argument("presets", nargs="*", metavar="PRESET", help="models to count (default: all, one line each)")
    command.add_argument("--json", action="store_true", help="everything that is counted, as JSON")
    command.add_argument("--plot", metavar="FILE", help="draw it: .png, .svg or .pdf")
    command.add_argument("--sweep", choices=("num_experts",), help="the same model with other numbers of experts")
    command.add_argument("--batch", type=positive, default=1, metavar="N", help="tokens decoded together (default: 1)")


def run(args):
    """Prints what was asked for; 0. Raises ValueError for what cannot be counted, ImportError without matplotlib."""
    check_picture(args.plot)
    return _run_sweep(args) if args.sweep else _run_models(args)


def main_params(argv=None):
    """`run` on a list of arguments of its own."""
    parser = Parser(prog="refmoe params", description="Sizes of published models.")
    add_arguments(parser)
    return run(parser.parse_args(argv))


def countable(names):
    """The named models, or all; ValueError for one whose figures are not known well enough to count it."""
    infos = [preset_info(name) for name in names or all_names()]
    for info in infos if names else ():
        why = next((note for note in info["notes"] if note.startswith("No model section")), "name another")
        require(info["model"] is not None, ValueError, "params", "a model whose figures are known", info["name"], why)
    return [info for info in infos if info["model"] is not None]


def _run_models(args):
    infos = countable(args.presets)
    if args.json:
        print(json.dumps([report.summary(info, args.batch) for info in infos], indent=2))
    elif args.presets:
        print("\n\n".join([*(report.details(info, args.batch) for info in infos), report.CONVENTIONS]))
    else:
        print(report.overview(infos) + _left_out())
    if args.plot:
        from .plots import draw_models

        draw_models(infos, args.plot)
    return 0


def _left_out():
    names = [name for name in all_names() if preset_info(name)["model"] is None]
    return "\nu: has unverified figures (name the model to see which). Not counted: " + (", ".join(names) or "none")


def _run_sweep(args):
    require(len(args.presets) < 2, ValueError, "--sweep", "one model", ", ".join(args.presets), "name one")
    (info,) = countable(args.presets or [SWEPT])
    require(is_whole(info), ValueError, "--sweep", "a model that is counted whole", info["name"], "name another")
    rows = sweep_experts(info)
    if args.json:
        print(json.dumps({"name": info["name"], "top_k": info["full"]["top_k"], "rows": rows}, indent=2))
    else:
        print(f"{info['name']} with other numbers of experts, top {info['full']['top_k']}\n")
        print(f"{'experts':>8}{'total':>22}{'active':>20}{'share':>8}")
        for row in rows:
            share = row["active"] / row["total"]
            print(f"{row['num_experts']:>8}{row['total']:>22,}{row['active']:>20,}{share:>8.1%}")
    if args.plot:
        from .plots import draw_sweep

        draw_sweep(info, [other for other in countable(()) if is_whole(other)], args.plot)
    return 0
