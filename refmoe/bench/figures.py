"""From samples to figures: medians, ratios, shares of a limit."""

import statistics

PRODUCTS = ("grouped_matmul", "grouped_matmul_backward_x", "grouped_matmul_backward_w")
UNCOUNTED = {("torch dense", "one product")}  # not the layer: shown, never counted as a peer


def spread(samples):
    """(least, lower quartile, median, upper quartile) of the seconds."""
    ordered = sorted(samples)
    if len(ordered) < 2:
        return (ordered[0],) * 4
    low, middle, high = statistics.quantiles(ordered, n=4, method="inclusive")
    return ordered[0], low, middle, high


def median(samples):
    return statistics.median(samples)


def seconds(case, setting):
    """The median of refmoe's own samples; None where the setting was not timed."""
    taken = case["refmoe"].get(setting)
    return median([sample["seconds"] for sample in taken]) if taken else None


def inside(case, setting, names=None):
    """The median share of a call that was spent in the engine: in all of C, or in the functions named."""
    shares = []
    for sample in case["refmoe"].get(setting, ()):
        parts = sample.get("inside", {})
        shares.append(sum(parts[n] for n in parts if names is None or n in names) / sample["seconds"])
    return median(shares) if shares else None


def counted(case, names=None):
    """The rows of peers that count."""
    rows = [p for p in case["peers"] if (p["name"], p["setting"]) not in UNCOUNTED]
    return [p for p in rows if names is None or p["name"] in names]


def ratio(row, setting):
    """How many times faster refmoe was than the peer, both measured in turn; None if that setting was not beside."""
    beside = row["refmoe"].get(setting)
    return median(row["samples"]) / median(beside) if beside else None


def best(case, setting, names=None):
    """(ratio to the best peer, that row), or None without peers."""
    ratios = [(ratio(p, setting), p) for p in counted(case, names)]
    ratios = [(r, p) for r, p in ratios if r is not None]
    return min(ratios, key=lambda pair: pair[0]) if ratios else None


def limit(limits, *starts):
    """The best rate among the limits whose name begins so; None if there is none."""
    rates = [r for row in limits if row["name"].startswith(starts) and row["rates"] for r in row["rates"]]
    return max(rates) if rates else None


def threads_of(setting):
    return int(setting.rpartition("x")[2])


def tile_limit(limits, setting, store="float32"):
    """The best tile of the setting's profile and thread count, of any kernel: operations a second.

    Chains of bf16 are held against the tile that takes two k a step, where there is one.
    """
    profile, threads = setting.split()[0], threads_of(setting)
    rows = [r for r in limits if r["name"].startswith((f"tile {profile} ", f"lanes {profile} "))]
    if profile == "chain" and store == "bf16":
        rows = [r for r in limits if r["name"].startswith("tile pairs ") and r["rates"]] or rows
    return limit([r for r in rows if threads_of(r["name"]) == threads], "")


def read_limit(limits, setting):
    """The best streaming read with that many threads: bytes a second."""
    return limit(
        [r for r in limits if r["name"].startswith("read") and threads_of(r["name"]) == threads_of(setting)], ""
    )


def share_of_tile(case, setting, limits):
    """The products' operations a second over the tile's."""
    share, whole = inside(case, setting, PRODUCTS), seconds(case, setting)
    most = tile_limit(limits, setting, case["store"])
    return case["flops"] / (share * whole) / most if share and most else None


def share_of_read(case, setting, limits):
    """The weights' bytes a second over the streaming read."""
    whole, most = seconds(case, setting), read_limit(limits, setting)
    return case["weight_bytes"] / whole / most if whole and most else None
