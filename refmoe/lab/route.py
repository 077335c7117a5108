"""`refmoe route`: what a router does with a text, as numbers, in the terminal or as a picture."""

import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..arguments import count, positive
from ..golden.arrays import load_arrays
from ..inputs import Given
from ..layer import moe_forward
from ..models.accounting.plots import check_picture
from ..models.presets import load_preset
from ..numerics import Numerics
from ..recipes import carried, generate, init_given, init_params
from ..refusals import require
from ..writing import check_folder, write_whole
from .measures import dead_experts, entropy, log, max_violation
from .tasks import in_float64

PLACES = 16  # parts of the text that drops are told by
PREFIXES = ("record.routing.", "record.plan.", "routing.", "plan.")


class Routed(NamedTuple):
    """The record's part that is looked at; None where it is not there."""

    title: str
    num_experts: int
    topk_indices: object  # (T, K), -1 unused
    slot_row: object = None  # (T, K), -1 dropped or unused
    scores: object = None  # (T, E)
    margin: object = None  # (T,)


def add_arguments(command):
    """The arguments of `refmoe route`."""
    source = command.add_mutually_exclusive_group(required=True)
    source.add_argument("--preset", metavar="P", help="a layer of `refmoe presets`, with parameters by recipe")
    source.add_argument("--record", metavar="FILE", help="a record saved as .safetensors or .npz, from any run")
    command.add_argument("--text", metavar="FILE", help="with --preset: what is routed, a token a byte")
    command.add_argument("--scale", choices=("minimal", "full"), default="minimal", help="the preset's sizes")
    command.add_argument("--tokens", type=positive, default=512, help="bytes of the text at most (default: 512)")
    command.add_argument("--seed", type=count, default=0, help="seed of the recipes (default: 0)")
    command.add_argument("--plot", metavar="FILE", help="draw it: .png, .svg or .pdf")
    command.add_argument("--json", metavar="FILE", help="write every number")


def run(args):
    """Prints what the router did; 0."""
    fix = "a record has been routed already" if args.record else "name a file, a token a byte"
    wanted = "None with --record" if args.record else "a file with --preset"
    require(bool(args.text) != bool(args.record), ValueError, "--text", wanted, repr(args.text), fix)
    check_folder("--json", args.json)
    check_picture(args.plot)
    if args.record:
        routed = read_record(args.record)
    else:
        routed = route_text(args.preset, read_text(args.text, args.tokens), args.scale, args.seed)
    seen = look(routed)
    if args.json:
        write_whole(args.json, json.dumps(seen, indent=1) + "\n")
    if args.plot:
        from .route_page import draw

        draw(routed, seen, args.plot)
    print(told(routed, seen))
    return 0


def read_text(path, tokens):
    """The first bytes of a file, as ids from 0 to 255. Raises ValueError for one that cannot be read, or is empty."""
    try:
        with open(path, "rb") as file:
            data = file.read(tokens)
    except OSError as error:
        got = f"{str(path)!r} ({error.strerror})"
        raise ValueError(f"--text: expected a file that can be read, got {got}; name another") from None
    require(data, ValueError, "--text", "a file with at least one byte", f"{str(path)!r}, which is empty", "fill it")
    return np.frombuffer(data, np.uint8).astype(np.int64)


def route_text(preset, ids, scale, seed):
    """Bytes through a preset's router: x_t = the byte's vector + half the one before it, all by recipe."""
    config = narrow(load_preset(preset, scale=scale))
    num, T = Numerics("float64"), len(ids)
    fix = "name another preset"
    require(config.routing.selection != "soft", ValueError, "--preset", "a layer that chooses", repr(preset), fix)
    params = in_float64(init_params(config, seed))
    vectors = generate("embedding", (256, config.hidden_size), seed).astype(np.float64)
    before = vectors[np.concatenate([ids[:1], ids[:-1]])]
    drawn = {name: a for name, a in init_given(config, T, seed).items() if name not in ("noise", "jitter")}
    given = Given(**{name: carried(a, np.float64) for name, a in drawn.items()})
    given = given._replace(sequence_ids=np.zeros(T, np.int64))
    if config.routing.second_expert == "sampled":
        given = given._replace(noise=carried(init_given(config, T, seed)["noise"], np.float64))
    record = moe_forward(vectors[ids] + 0.5 * before, params, config, num, given)
    routing = record.routing
    title = f"{preset}, {scale} scale, parameters by recipe, {T} bytes"
    return Routed(title, config.num_choices, routing.topk_indices, record.plan.slot_row, routing.scores, routing.margin)


def narrow(config):
    """The layer with experts of width 1: what stands behind a router has no part in its choice, and may fill a disk."""
    experts = config.experts
    shared = experts.shared_count if experts.shared_intermediate_size else 0
    return replace(config, intermediate_size=1, experts=replace(experts, shared_intermediate_size=shared))


def read_record(path):
    """Tensors by the names of the record, with or without what stands before them in a bundle.

    Raises ValueError for a file without topk_indices, or with tensors that do not fit.
    """
    fix = "save it as one of these"
    named = Path(path).suffix in (".safetensors", ".npz")
    require(named, ValueError, "--record", "a file ending in .safetensors or .npz", repr(str(path)), fix)
    arrays = load_arrays(path) if Path(path).exists() else {}
    found = {name: arrays[f"{p}{name}"] for p in ("", *PREFIXES) for name in Routed._fields if f"{p}{name}" in arrays}
    fix = "save the fields topk_indices, scores, margin of the routing record and slot_row of the plan"
    require("topk_indices" in found, ValueError, "--record", "a file with topk_indices", repr(str(path)), fix)
    chosen = found["topk_indices"]
    ok = chosen.ndim == 2 and chosen.dtype.kind == "i" and chosen.size > 0 and chosen.min() >= -1
    require(ok, ValueError, "topk_indices", "ids (T, K), -1 where unused", f"{chosen.dtype} {chosen.shape}", fix)
    shapes = {"slot_row": chosen.shape, "margin": chosen.shape[:1]}
    shapes["scores"] = (len(chosen), found["scores"].shape[-1]) if "scores" in found else None
    for name in shapes.keys() & found.keys():
        got = found[name].shape
        require(got == shapes[name], ValueError, name, f"shape {shapes[name]}", got, "save both from one run")
    E = found["scores"].shape[1] if "scores" in found else int(chosen.max()) + 1
    require(int(chosen.max()) < E, ValueError, "topk_indices", f"ids below {E}", int(chosen.max()), "save both")
    return Routed(Path(path).name, E, **{name: found.get(name) for name in Routed._fields[2:]})


def look(routed):
    """Every number of the report: load, entropy, co-activation, margins, drops by place."""
    chosen, E = routed.topk_indices, routed.num_experts
    counts = np.bincount(chosen[chosen >= 0], minlength=E)
    seen = {"title": routed.title, "tokens": len(chosen), "experts": E, "load": counts.tolist(),
            "load_entropy": entropy(counts) / _most(E), "max_violation": max_violation(counts),
            "dead": dead_experts(counts), "together": together(chosen, E).tolist()}  # fmt: skip
    if routed.scores is not None and (routed.scores >= 0).all():
        p = routed.scores / np.maximum(routed.scores.sum(axis=1, keepdims=True), 1e-300)
        seen["token_entropy"] = float(-(p * log(p)).sum() / len(p) / _most(E))
    if routed.margin is not None:
        seen["margins"] = {f"{q}%": float(np.percentile(routed.margin, q)) for q in (1, 10, 50, 90)}
    if routed.slot_row is not None:
        gone = (routed.slot_row < 0) & (chosen >= 0)
        seen["dropped"] = int(gone.sum())
        seen["drops_by_place"] = [int(part.sum()) for part in np.array_split(gone, min(PLACES, len(gone)))]
    return seen


def _most(E):
    """The entropy of an even choice among E; 1 for a single expert."""
    return float(log([E])[0]) if E > 1 else 1.0


def together(chosen, E):
    """How often two experts serve one token: (E, E), zero on the diagonal."""
    used = np.zeros((len(chosen), E), np.int64)
    rows, slots = np.nonzero(chosen >= 0)
    used[rows, chosen[rows, slots]] = 1
    table = np.array([[int((used[:, a] & used[:, b]).sum()) for b in range(E)] for a in range(E)])
    return table * (1 - np.eye(E, dtype=np.int64))


def told(routed, seen):
    """The report for a terminal."""
    lines = [seen["title"], f"load of {seen['experts']} experts (| is an even share)", *_bars(seen["load"])]
    lines.append(f"entropy of the load {seen['load_entropy']:.3f} of 1; greatest load {1 + seen['max_violation']:.2f} "
                 f"times an even one; {seen['dead']} experts below a tenth of it")  # fmt: skip
    if "token_entropy" in seen:
        lines.append(f"entropy of a token's scores {seen['token_entropy']:.3f} of 1 on average")
    lines.append(_pairs(np.array(seen["together"])))
    if "margins" in seen:
        of = ", ".join(f"{q} of tokens below {value:.3g}" for q, value in seen["margins"].items())
        lines.append(f"margins between the last choice and the next: {of}")
    if "dropped" in seen:
        where = f", by place {' '.join(map(str, seen['drops_by_place']))}" if seen["dropped"] else ""
        lines.append(f"slots dropped: {seen['dropped']}{where}")
    return "\n".join(lines)


def _bars(load, most=64, width=50):
    """A bar an expert, the busiest first where there are many."""
    top, even = max(1, *load), sum(load) / len(load)
    order = range(len(load)) if len(load) <= most else np.argsort(-np.array(load), kind="stable")[:most]
    mark = round(even * width / top)
    for e in order:
        bar = "#" * round(load[e] * width / top)
        line = bar.ljust(width + 1)
        yield f"{e:>5} {load[e]:>6}  {line[:mark]}{'|' if line[mark] == ' ' else '#'}{line[mark + 1 :]}".rstrip()
    if len(load) > most:
        yield f"      and {len(load) - most} with fewer"


def _pairs(table):
    """The experts that serve one token most often together."""
    first, second = np.triu_indices(len(table), 1)
    order = np.argsort(-table[first, second], kind="stable")[:3]
    some = [f"{first[i]} and {second[i]} ({table[first[i], second[i]]})" for i in order if table[first[i], second[i]]]
    return "most often together: " + (", ".join(some) or "nobody, one expert a token")
