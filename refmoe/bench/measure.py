"""The run: every contestant in its own process, in turn with refmoe, each by its own clock.

A round is one call of each. Rounds go on until the samples are taken or the budget's seconds are over, but there are
FEWEST of them. A setting of a peer whose first call alone took longer than the budget does not stand among the others:
it has a sequence of its own, after theirs, in which each of its calls follows FEWEST of refmoe's, and which ends with
its first round once that took FAR_BEYOND times the budget. Each sequence begins with a call of refmoe that is not
counted: it lay idle while the peer was loaded and each setting of the peer was called once.
"""

import time
from math import inf

from . import machine
from .children import Child, ChildFailed

# Contestants besides refmoe: whether the peers' Python is needed, and what the environment is varied by.
PEERS = {"numpy loop": (False, "core types"), "torch dense": (True, None), "transformers": (True, None),
         "jax ragged_dot": (True, None), "ggml": (True, None), "onnxruntime": (True, None)}  # fmt: skip
PAUSE = 0.25  # seconds between calls: OpenBLAS's threads spin for 2^28 ticks, a tenth of a second, after theirs
FEWEST = 3  # rounds, whatever they take; refmoe alone, and a slow setting of a peer, are content with fewer at
FAR_BEYOND = 4  # times the budget


class ParityRefused(Exception):
    """Something that was to be timed is not equal to NumPy's bits."""


def run(cases, options, say=lambda step: None, keep=lambda result: None):
    """A dictionary of everything measured. Raises ParityRefused.

    keep(result) is called after each case. An interruption ends the run, not what it has: "interrupted" says so.
    """
    result = {"machine": machine.describe(), "options": options, "limits": [], "cases": [], "interrupted": False}
    try:
        _measure(cases, options, say, keep, result)
    except KeyboardInterrupt:
        result["interrupted"] = True
    result["machine"]["load_at_the_end"] = machine.load()
    return result


def _measure(cases, options, say, keep, result):
    result["limits"] = limits(options, say)
    for case in cases:
        result["cases"].append(one_case(case, options, say))
        keep(result)
    if not options["quick"]:
        again = {row["name"]: row["rates"] for row in limits(options, say)}  # a machine that slowed down shows
        for row in result["limits"]:
            row["rates"] += again.get(row["name"], [])


def limits(options, say):
    """Rows {"name", "rates"}: operations or bytes a second, a number a sample."""
    say("limits of the machine")
    settings = {"threads": options["threads"], "milliseconds": 2 if options["quick"] else 40,
                "megabytes": 4 if options["quick"] else 512}  # fmt: skip
    with Child("limits", max(options["threads"])) as child:
        try:
            loaded = child.ask({"do": "load", "case": None, "options": settings}, options["patience"])
        except ChildFailed as failure:
            return [{"name": "none", "rates": [], "failed": str(failure)}]
        samples = alternate([(child, name) for name in loaded["settings"]], options, FEWEST if options["quick"] else 5)
    return [{"name": n, "rates": [s["work"] / s["seconds"] for s in taken]} for (_, n), taken in samples.items()]


def one_case(case, options, say):
    """What a case took: refmoe's samples, and each peer's with refmoe's in turn."""
    result = {"key": case.key, "name": case.name, "tokens": case.tokens, "phase": case.phase, "store": case.store,
              "routing": case.routing, "flops": case.flops, "weight_bytes": case.weight_bytes,
              "config": case.config.to_dict(), "refmoe": {}, "peers": [], "failures": []}  # fmt: skip
    threads = options["threads"]
    with Child("refmoe", max(threads)) as house:
        say(f"{case.key}: parity")
        settings, facts = load_refmoe(house, case, options)
        result["facts"] = facts
        say(f"{case.key}: refmoe")
        taken = alternate([(house, s) for s in settings], options)
        result["refmoe"] = {s: taken[house, s] for s in settings}
        beside = [s for s in settings if s.endswith(f"x{max(threads)}")]
        for name, variant, python in variants(options) if case.key not in options["peerless"] else ():
            say(f"{case.key}: {name} {variant or ''}")
            made, failures = one_peer(name, variant, python, case, options, house, beside)
            result["peers"] += made
            result["failures"] += failures
    return result


def load_refmoe(house, case, options):
    own = {"profiles": options["profiles"], "threads": options["threads"], "kernel": options["kernel"]}
    try:
        loaded = house.ask({"do": "load", "case": case.to_dict(), "options": own}, options["patience"])
    except ChildFailed as failure:
        if failure.kind != "parity":
            raise
        raise ParityRefused(f"{case.key}: {failure}") from failure
    for setting, failed in loaded["failed"].items():
        raise ParityRefused(f"{case.key}, {setting}: {failed['reason']}")
    return loaded["settings"], loaded["facts"]


def variants(options):
    """(name, core type or None, python) of every process of a peer."""
    for name in options["peers"]:
        elsewhere, varied = PEERS[name]
        python = options["peers_python"] if elsewhere else None
        types = machine.core_types()[: 1 if options["quick"] else None] or [None]
        for variant in types if varied else [None]:
            yield name, variant, python


def one_peer(name, variant, python, case, options, house, beside):
    """(rows, failures) of one process of a peer. Whatever happens to it, the run goes on."""
    extra = {"OPENBLAS_CORETYPE": variant} if variant else {}
    who, rows, failures = {"name": name, "variant": variant}, [], []
    try:
        with Child(name, max(options["threads"]), extra, python) as peer:
            message = {"do": "load", "case": case.to_dict(), "options": {}}
            loaded = peer.ask(message, options["patience"])
            failures += [who | {"setting": s} | failed for s, failed in loaded["failed"].items()]
            for settings, alone in sequences(loaded, options["budget"]):
                made = one_sequence(peer, settings, alone, options, house, beside)
                told = {"facts": loaded["facts"]}
                rows += [who | told | row | {"error": loaded["errors"].get(row["setting"])} for row in made]
    except ChildFailed as failure:
        if not house.is_alive():  # refmoe itself
            raise
        failures.append(who | {"setting": None, "reason": str(failure), "kind": failure.kind})
    except OSError as error:  # its Python does not start
        failures.append(who | {"setting": None, "reason": str(error), "kind": "missing"})
    return rows, failures


def sequences(loaded, budget):
    """(settings that take turns, is it a slow one alone?): the fast ones together, then each slow one."""
    slow = [s for s in loaded["settings"] if loaded["first_seconds"][s] > budget]
    fast = [s for s in loaded["settings"] if s not in slow]
    return [(fast, False)] * bool(fast) + [([s], True) for s in slow]


def one_sequence(peer, settings, alone, options, house, beside):
    """A row for each of the settings: its samples, and refmoe's of the same sequence."""
    own = [(house, s) for s in beside]
    for child, setting in own:
        child.ask({"do": "go", "setting": setting}, options["patience"])  # awake again
    turns = own * (FEWEST if alone else 1) + [(peer, s) for s in settings]
    taken = alternate(turns, options, far_beyond=FAR_BEYOND if alone else inf)
    refmoe = {s: seconds_of(taken[house, s]) for s in beside}
    return [{"setting": s, "samples": seconds_of(taken[peer, s]), "refmoe": refmoe, "alone": alone} for s in settings]


def seconds_of(samples):
    return [sample["seconds"] for sample in samples]


def alternate(turns, options, samples=None, far_beyond=FAR_BEYOND):
    """{(child, setting): answers}: each turn once a round, again and again, as the rule above says."""
    taken = {turn: [] for turn in turns}
    wanted = samples or options["samples"]
    start = time.monotonic()
    for done in range(wanted):
        taking = time.monotonic() - start
        enough = min(FEWEST, wanted) if taking < far_beyond * options["budget"] else 1
        if taking > options["budget"] and done >= enough:
            break
        for child, setting in turns:
            time.sleep(0 if options["quick"] else PAUSE)
            taken[child, setting].append(child.ask({"do": "go", "setting": setting}, options["patience"]))
    return taken
