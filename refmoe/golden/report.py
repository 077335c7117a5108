"""The printed reports. Whatever depends on the machine, the clock or the backend is said here and nowhere else."""

import resource

import numpy as np

WIDTH = 24  # characters of the longest bar
MARKS = " ▁▂▃▄▅▆▇█"


def golden_report(written, config, num, directory):
    """What `golden` computed and left behind, in at most forty lines."""
    manifest, run = written.manifest, written.manifest["run"]
    sizes = f"E {config.num_experts}, top {config.top_k}, D {config.hidden_size}, F {config.intermediate_size}"
    done = "forward and backward" if run["backward"] else "forward"
    total, load = sum(written.seconds.values()), written.tokens_per_expert
    rows = [
        f"{manifest['title']}: {sizes}; {run['tokens']} tokens, {done}",
        f"profile {num.profile}, store {num.store}; {len(manifest['tensors'])} tensors; {engine_line(num)}",
        "",
        *([] if load is None else [*load_chart(np.asarray(load)), ""]),
        *tier_lines(num),
        "seconds  "
        + ", ".join(f"{name} {value:.1f}" for name, value in written.seconds.items())
        + f"; in all {total:.1f}",
        f"memory   {peak_mebibytes():.0f} MiB at its peak",
        f"digest   {manifest['digest']}",
        f"written  {directory}",
    ]
    return "\n".join(rows)


def check_report(checked, directory):
    """What `check` found, the first divergent stage first."""
    name = f"{directory}: {checked.manifest['title']}"
    if not checked.differences:
        agreed = f"{name}: {checked.tensors} tensors recomputed, every bit agrees ({engine_line(checked.num)})"
        return f"{agreed}\ndigest   {checked.manifest['digest']}"
    shown = [f"{directory}/{place(tensor, checked.file)}: {message}" for tensor, message in checked.differences[:10]]
    more = len(checked.differences) - len(shown)
    head = f"{name}: {len(checked.differences)} of {checked.tensors} tensors differ, first in the order of computation:"
    return "\n".join([head, *shown] + ([f"and {more} more"] if more else []))


def place(tensor, file):
    """File and tensor, as messages name them."""
    return f"{file}: tensor {tensor!r}" if tensor else "manifest.json"


def load_chart(counts):
    """Slots assigned to each expert as bars; with many experts a character each."""
    top = max(1, int(counts.max(initial=0)))
    if len(counts) <= 16:
        return [f"  expert {e:3d} {n:6d} {bar(n, top, WIDTH)}" for e, n in enumerate(counts)]
    total, most = counts.sum(), f"{top} (expert {counts.argmax()})"
    head = f"load: {total} slots, mean {total / len(counts):.1f} an expert, least {counts.min()}, most {most}"
    width = max(32, -(-len(counts) // 512) * 32)  # at most sixteen lines
    text = "".join(MARKS[-(-n * (len(MARKS) - 1) // top)] for n in counts.tolist())
    rows = range(0, len(counts), width)
    return [head] + [f"  {at:4d} {text[at : at + width]:{width}}  {counts[at : at + width].sum():6d}" for at in rows]


def bar(value, top, width):
    """A bar of at most `width` characters; anything above zero shows."""
    return "█" * max(int(value > 0), round(width * value / top))


def tier_lines(num):
    """The share of the contractions' outputs that each tier decided; empty for profiles without tiers."""
    total = sum(num.engine.tiers.values())
    if not total:
        return []
    shares = (
        f"{name} {count / total:.3%}" for name, count in sorted(num.engine.tiers.items(), key=lambda row: -row[1])
    )
    return [f"tiers    {', '.join(shares)} of {total} outputs"]


def engine_line(num):
    """Backend, kernel, threads, and the BLAS that NumPy was built with."""
    blas = np.show_config(mode="dicts").get("Build Dependencies", {}).get("blas", {}).get("name", "unknown")
    kernel = f", kernel {num.engine.kernel}" if num.engine.kernel else ""
    return f"backend {num.engine.name}{kernel}, threads {num.engine.threads}; NumPy's BLAS {blas}"


def peak_mebibytes():
    """The largest resident memory this process had (Linux counts it in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
