"""What is printed: the machine, its limits, a table for each case, the bars."""

from . import figures


def text(result):
    """The whole report."""
    parts = [_machine(result["machine"]), _limits(result["limits"])]
    parts += [_case(case, result["limits"]) for case in result["cases"]]
    parts.append(_versions(result["cases"]))
    if result.get("bars"):
        parts.append(_bars(result["bars"]))
    return "\n\n".join(parts)


def _machine(m):
    load = f"load {m['load']} before, {m.get('load_at_the_end', '-')} after"
    busy = "  THE MACHINE WAS BUSY: these figures are not worth much" if m["load"] > m["allowed"] * 0.5 else ""
    memory = f"{m['memory_bytes'] / 2**30:.0f} GiB"
    return "\n".join([
        f"{m['processor']}, {m['allowed']} of {m['processors']} processors, {memory}, {load}{busy}",
        f"refmoe {m['refmoe']}, NumPy {m['numpy']}, Python {m['python']}, {m['system']}",
    ])  # fmt: skip


def _limits(rows):
    lines = ["limits of this machine (best of the samples; lowest in brackets)"]
    for row in rows:
        if row["rates"]:
            unit = "GB/s" if row["name"].startswith("read") else "GFLOP/s"
            lines.append(f"  {row['name']:<28}{max(row['rates']) / 1e9:9.1f} {unit:<8}({min(row['rates']) / 1e9:.1f})")
        else:
            lines.append(f"  {row['name']:<28}{row.get('failed', 'not measured')}")
    return "\n".join(lines)


def _case(case, limits):
    head = f"{case['key']}: {case['flops'] / 1e9:.2f} GFLOP, {case['weight_bytes'] / 1e6:.1f} MB of weights"
    lines = [head, f"  {'':<38}{'median ms':>10}{'least':>9}{'quartiles':>19}{'GFLOP/s':>9}{'GB/s':>7}  against it"]
    for setting, taken in case["refmoe"].items():
        lines.append(_line(f"refmoe {setting}", [s["seconds"] for s in taken], case, _shares(case, setting, limits)))
    for row in case["peers"]:
        beside = ", ".join(f"{s.split()[0]} {figures.ratio(row, s):.2f}x" for s in row["refmoe"])
        name = f"{row['name']}, {row['setting']}" + _core(row)
        note = "" if (row["name"], row["setting"]) not in figures.UNCOUNTED else " (not the layer: not counted)"
        note += " (a sequence of its own)" * row.get("alone", False)
        lines.append(_line(name, row["samples"], case, beside + note))
    lines += [_failure(f) for f in case["failures"]]
    proofs = case["facts"]["proofs"]
    lines.append(f"  bits equal to NumPy's in {len(proofs)} settings, {proofs[0]['tokens']} tokens each"
                 f"; memory beyond inputs, results included: {case['facts']['memory_beyond_inputs'] / 2**20:.0f} MiB"
                 + (f"; {case['facts']['note']}" if "note" in case["facts"] else ""))  # fmt: skip
    return "\n".join(lines)


def _versions(cases):
    """What each contestant says of itself, once."""
    told = {}
    for case in cases:
        told.setdefault("refmoe", {"kernel": case["facts"].get("kernel"), "compiler": case["facts"].get("compiler")})
        for row in case["peers"]:
            facts = {k: v for k, v in row["facts"].items() if k != "memory_beyond_inputs"}
            told.setdefault(f"{row['name']} {row['variant'] or ''}".strip(), facts)
    return "\n".join(
        ["versions"] + [f"  {who}: " + ", ".join(f"{k} {v}" for k, v in f.items()) for who, f in told.items()]
    )


def _core(row):
    """The core type that was asked for, and what the library made of it."""
    asked, got = row["variant"], row["facts"].get("blas core")
    return "" if not asked else f" [{asked}]" if got == asked else f" [{asked}: {got}]"


def _failure(f):
    who = " ".join(f[part] for part in ("name", "variant", "setting") if f[part])
    return f"  {who}: {f['kind']}: {f['reason']}"


def _line(name, samples, case, note):
    least, low, middle, high = figures.spread(samples)
    quartiles = f"{low * 1e3:.2f} .. {high * 1e3:.2f}"
    rates = f"{case['flops'] / middle / 1e9:9.1f}{case['weight_bytes'] / middle / 1e9:7.1f}"
    return f"  {name:<38}{middle * 1e3:10.2f}{least * 1e3:9.2f}{quartiles:>19}{rates}  {note}"


def _shares(case, setting, limits):
    """How near the limits, and what is not the products."""
    found = {
        "tile": figures.share_of_tile(case, setting, limits),
        "read": figures.share_of_read(case, setting, limits),
        "in C": figures.inside(case, setting),
    }
    return ", ".join(f"{name} {100 * value:.0f} %" for name, value in found.items() if value is not None)


def _bars(bars):
    lines = ["bars"]
    for row in bars:
        figure = "-" if row["figure"] is None else f"{row['figure']:.2f}"
        goal = f" (goal {row['goal']})" if row["goal"] else ""
        lines.append(f"  {row['bar']:<88}{figure:>7} {row['sign']} {row['need']}{goal}: {row['verdict']}")
    return "\n".join(lines)


def plot(result, path):
    """The roofline: operations a second against operations a byte of weights, with this machine's limits in float32.

    Raises ImportError without matplotlib, ValueError for an ending that cannot be written.
    """
    from ..models.accounting.plots import figure, save

    fig, style = figure(10, 6.5)
    with style:
        _draw(fig.subplots(), result)
    save(fig, path)


def _draw(axes, result):
    threads = max(result["options"]["threads"])
    read = figures.read_limit(result["limits"], f"read x{threads}")
    for profile, style in (("chain", "-"), ("exact", "--")):
        tile = figures.tile_limit(result["limits"], f"{profile} x{threads}")
        if tile and read:
            axes.plot(*roof(tile, read), f"k{style}", label=f"limit of {profile}, float32")
    for name, (at, rates) in sorted(by_name(points(result, threads)).items()):
        axes.plot(at, rates, "o" if name.startswith("refmoe") else "x", label=name)
    axes.set(xscale="log", yscale="log", xlabel="operations a byte of weights", ylabel="GFLOP/s",
             title=result["machine"]["processor"])  # fmt: skip
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small", frameon=False)


def roof(tile, read):
    """(operations a byte, GFLOP/s) of the limit: its ends and its corner, where memory gives way to arithmetic."""
    at = sorted([0.25, tile / read, 2048.0])
    return at, [min(tile, read * x) / 1e9 for x in at]


def by_name(rows):
    """name -> (operations a byte, GFLOP/s) of all cases, so that who is timed has one colour."""
    found = {}
    for name, *place in rows:
        found.setdefault(name, []).append(place)
    return {name: tuple(zip(*places, strict=True)) for name, places in found.items()}


def points(result, threads):
    """(name, operations a byte, GFLOP/s) of each contestant in each case."""
    for case in result["cases"]:
        intensity = case["flops"] / case["weight_bytes"]
        rows = {f"refmoe {s}": figures.seconds(case, s) for s in case["refmoe"] if figures.threads_of(s) == threads}
        rows |= {f"{p['name']} {p['setting']}": figures.median(p["samples"]) for p in figures.counted(case)}
        yield from ((name, intensity, case["flops"] / taken / 1e9) for name, taken in rows.items())
