"""The bars: what must hold on 2 cores, as data; each met, not met, failed or not measured in a given run."""

from typing import NamedTuple

from . import figures
from .cases import make_case, plain_config

# A bar that counts peers needs these in the run. NumPy has no bf16, and says so.
REQUIRED = (("numpy loop", "loop"), ("torch dense", "loop"), ("transformers", "eager"), ("transformers", "grouped_mm"))
GROWN = (8, 32, 128, 512)  # experts, at the same number of rows
THREADS = 2


class Bar(NamedTuple):
    """`figure(cases, limits)` gives a number, or None where something was not measured."""

    text: str
    sign: str  # ">=" or "<="
    need: float
    goal: float | None
    figure: object
    peers_of: str | None = None  # the case whose peers it needs


def cases():
    """label -> the cases that the bars are about."""
    from ..models.presets import load_preset

    qwen, oss, mixtral = ((name, load_preset(name)) for name in ("qwen3-30b-a3b", "gpt-oss-20b", "mixtral-8x7b"))
    made = {"prefill": make_case(*qwen, 512), "long": make_case(*qwen, 2048),
            "prefill bf16": make_case(*qwen, 512, store="bf16")}  # fmt: skip
    for tokens in (1, 8):
        for store in ("float32", "bf16"):
            made[f"decode {tokens} {store}"] = make_case(*qwen, tokens, store=store)
    made["square experts"], made["eight experts"] = make_case(*oss, 128), make_case(*mixtral, 128)
    made["training"] = make_case(*qwen, 512, "training")
    made["small"] = make_case("small experiment", plain_config(128, 256, 8, 2), 2048, "training")
    for E in GROWN:
        made[f"grown {E}"] = make_case(f"{E} experts", plain_config(1024, 256, E, 4), 512)
    made["one expert"] = make_case(*qwen, 2048, routing="one_expert")
    made["five experts"] = make_case("512 experts", plain_config(2048, 512, 512, 5), 2048, routing="five_experts")
    return made


def _peers(label, profile, names=None):
    def figure(cases, limits):
        found = label in cases and figures.best(cases[label], f"{profile} x{THREADS}", names)
        return found[0] if found else None

    return figure


def _tile(label, profile):
    return lambda cases, limits: _of(cases, label, figures.share_of_tile, f"{profile} x{THREADS}", limits)


def _read(label, profile):
    return lambda cases, limits: _of(cases, label, figures.share_of_read, f"{profile} x{THREADS}", limits)


def _of(cases, label, function, *arguments):
    return function(cases[label], *arguments) if label in cases else None


def _outside(label, profile, names=None):
    def figure(cases, limits):
        share = _of(cases, label, figures.inside, f"{profile} x{THREADS}", names)
        return None if share is None else 1 - share

    return figure


def _threads(label, profile):
    def figure(cases, limits):
        one, two = (_of(cases, label, figures.seconds, f"{profile} x{n}") for n in (1, THREADS))
        return one / two if one and two else None

    return figure


def _growth(profile):
    """The largest time(E) / (1.3 time(8) + extra weight bytes / streaming read)."""

    def figure(cases, limits):
        setting = f"{profile} x{THREADS}"
        times = {E: _of(cases, f"grown {E}", figures.seconds, setting) for E in GROWN}
        read = figures.read_limit(limits, setting)
        if not read or not all(times.values()):
            return None
        few = cases["grown 8"]["weight_bytes"]
        allowed = {E: 1.3 * times[8] + (cases[f"grown {E}"]["weight_bytes"] - few) / read for E in GROWN[1:]}
        return max(times[E] / allowed[E] for E in GROWN[1:])

    return figure


def _decode_bars():
    for store in ("float32", "bf16"):
        for tokens in (1, 8):
            label = f"decode {tokens} {store}"
            for profile in ("chain", "exact"):
                what = f"{store} {profile}, Qwen3-30B-A3B, {tokens} token{'s' * (tokens > 1)}"
                yield Bar(f"{what}: weights over streaming read", ">=", 0.85, None, _read(label, profile))
                yield Bar(f"{what}: times the best of the peers", ">=", 1.0, None, _peers(label, profile), label)


BARS = (
    Bar("float32 chain, Qwen3-30B-A3B, 512 tokens: times the best of the peers", ">=", 2.2, 3.0,
        _peers("prefill", "chain"), "prefill"),
    Bar("the same: products over the tile in cache", ">=", 0.60, None, _tile("prefill", "chain")),
    Bar("the same at 2048 tokens: products over the tile in cache", ">=", 0.75, None, _tile("long", "chain")),
    Bar("the same at 512 tokens: share of the time outside the products", "<=", 0.15, None,
        _outside("prefill", "chain", figures.PRODUCTS)),
    Bar("float32 exact, Qwen3-30B-A3B, 512 tokens: times the best of the peers", ">=", 1.3, 1.6,
        _peers("prefill", "exact"), "prefill"),
    Bar("the same: products over the float64 tile in cache", ">=", 0.70, None, _tile("prefill", "exact")),
    Bar("bf16 chain, Qwen3-30B-A3B, 512 tokens: times the best of the peers in bf16", ">=", 1.7, 2.0,
        _peers("prefill bf16", "chain"), "prefill bf16"),
    *_decode_bars(),
    Bar("float32 chain, GPT-OSS-20B, 128 tokens: times the best of the peers", ">=", 2.5, None,
        _peers("square experts", "chain"), "square experts"),
    Bar("float32 chain, Mixtral 8x7B, 128 tokens: times the best of the peers", ">=", 2.5, None,
        _peers("eight experts", "chain"), "eight experts"),
    Bar("training step, float32 chain, Qwen3-30B-A3B, 512 tokens: times transformers' best", ">=", 3.0, None,
        _peers("training", "chain", ("transformers",)), "training"),
    Bar("small experiment, forward and backward, chain: times the best of the peers", ">=", 2.0, 3.0,
        _peers("small", "chain"), "small"),
    Bar("the same: share of the time outside C", "<=", 0.10, None, _outside("small", "chain")),
    Bar("8 to 512 experts, same rows, chain: time over what is allowed", "<=", 1.0, None, _growth("chain")),
    Bar("8 to 512 experts, same rows, exact: time over what is allowed", "<=", 1.0, None, _growth("exact")),
    *(Bar(f"{profile}, 2 threads against 1, {what}", ">=", need, None, _threads(label, profile))
      for profile in ("chain", "exact")
      for what, label, need in (("2048 tokens", "long", 1.8), ("90 % of the rows in one expert", "one expert", 1.7),
                                ("5 of 512 experts", "five experts", 1.7))),
)  # fmt: skip


def judge(measured, limits):
    """Rows {"bar", "sign", "need", "goal", "figure", "verdict"} of every bar; measured: label -> result of the case."""
    return [_judged(bar, measured, limits) for bar in BARS]


def _judged(bar, measured, limits):
    row = {"bar": bar.text, "sign": bar.sign, "need": bar.need, "goal": bar.goal}
    absent = missing(measured[bar.peers_of]) if bar.peers_of in measured else []
    figure = bar.figure(measured, limits)
    if absent:
        return row | {"figure": figure, "verdict": f"failed: without {', '.join(absent)}"}
    if figure is None:
        return row | {"figure": None, "verdict": "not measured"}
    met = figure >= bar.need if bar.sign == ">=" else figure <= bar.need
    return row | {"figure": figure, "verdict": "met" if met else "NOT met"}


def missing(case):
    """The peers that a bar needs and this case's measurement lacks; what a peer cannot do by nature is not missing."""
    there = {(p["name"], p["setting"]) for p in case["peers"]}
    unable = {f["name"] for f in case["failures"] if f["kind"] == "refused" and f["setting"] is None}
    return [" ".join(r) for r in REQUIRED if r not in there and r[0] not in unable]
