"""A contestant's process: `python -m refmoe.bench.child NAME`. One JSON object a line comes in, one goes out.

    {"do": "load", "case": {...} or null, "options": {...}}
                                  ->  {"settings": [...], "facts": {...}, "errors": {...}, "first_seconds": {...}, ...}
    {"do": "go", "setting": NAME}                    ->  {"seconds": S, ...}
    {"do": "stop"}                                   ->  the end

Any failure is answered by {"failed": sentence, "kind": "refused" (it cannot do this), "parity", "missing" or "error"}.
"""

import importlib
import json
import os
import re
import resource
import sys
import time
from pathlib import Path

import numpy as np

from .cases import Case, Inputs, expected

CONTESTANTS = {
    "refmoe": "house",
    "numpy loop": "numpy_loop",
    "torch dense": "torch_dense",
    "transformers": "transformers_experts",
    "jax ragged_dot": "jax_ragged",
    "ggml": "ggml",
    "onnxruntime": "onnx_moe",
    "limits": "limits",
}
TOLERANCE = {
    "float32": 1e-4,
    "bf16": 3e-2,
    "fp16": 1e-2,
}  # of y, relative to its largest
SAMPLED = 2  # tokens that are recomputed


class Refused(Exception):
    """This contestant cannot do what is asked; the sentence says why."""


class NotEqual(Exception):
    """C and NumPy differ in a bit: nothing may be timed."""


def main(name):
    """Answers until told to stop. Libraries that print to standard output are heard on standard error."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    keep_to_processors(int(os.environ.get("OMP_NUM_THREADS", "0")))
    loaded = None
    for line in sys.stdin:
        message = json.loads(line)
        if message["do"] == "stop":
            return
        try:
            if message["do"] == "load":
                loaded, answer = load(name, message["case"], message["options"])
            else:
                answer = go(loaded, message["setting"])
        except Exception as error:  # whatever a library raises is its contestant's failure, and no other's
            answer = {"failed": sentence(error), "kind": kind(error)}
        print(json.dumps(answer), file=answers, flush=True)


def keep_to_processors(count):
    """No more processors than threads are timed, for libraries that take what they find."""
    allowed = sorted(os.sched_getaffinity(0))
    if 0 < count < len(allowed):
        os.sched_setaffinity(0, allowed[:count])


def sentence(error):
    own = isinstance(error, Refused | NotEqual)
    return " ".join((str(error) if own else f"{type(error).__name__}: {error}").split())[:500]


def kind(error):
    kinds = {"Refused": "refused", "NotEqual": "parity", "ModuleNotFoundError": "missing"}
    return kinds.get(type(error).__name__, "error")


def load(name, case, options):
    """The contestant with its case in memory, each setting called once: (loaded, answer)."""
    module = importlib.import_module(f"{__package__}.contestants.{CONTESTANTS[name]}")
    inputs = Inputs(Case.from_dict(case)) if case else None
    loaded = module.prepare(inputs, options)
    before = begin_peak()
    errors, failed, first_seconds = {}, {}, {}
    for setting in list(loaded.calls):
        try:
            start = time.perf_counter()
            y = loaded.calls[setting]()
            first_seconds[setting] = time.perf_counter() - start
            errors[setting] = deviation(inputs, loaded.read(y)) if loaded.checks and y is not None else None
        except Exception as error:  # this way of calling the library fails; the others may work
            failed[setting] = {"reason": sentence(error), "kind": kind(error)}
            del loaded.calls[setting]
    most = tolerance(inputs)
    wrong = {s: {"reason": f"y differs by {e:.1e}", "kind": "wrong"} for s, e in errors.items() if e and not e <= most}
    for setting in wrong:
        del loaded.calls[setting]
    facts = loaded.facts | {"memory_beyond_inputs": peak_memory() - before}
    return loaded, {"settings": list(loaded.calls), "facts": facts, "errors": errors, "failed": failed | wrong,
                    "first_seconds": first_seconds}  # fmt: skip


def tolerance(inputs):
    return TOLERANCE[inputs.case.store] if inputs else 0.0


def deviation(inputs, y):
    """The largest difference from the formula in some tokens, relative to the largest value."""
    tokens = np.unique(np.linspace(0, inputs.case.tokens - 1, SAMPLED).astype(int))
    want, got = expected(inputs, tokens), y[tokens].astype(np.float64)
    return float(np.abs(got - want).max() / np.abs(want).max())


def begin_peak():
    """Bytes in memory now; where the system allows it, `peak_memory` counts from here."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        return peak_memory()
    return status_bytes("VmRSS")


def peak_memory():
    """The most bytes that were in memory at once."""
    return status_bytes("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def status_bytes(field):
    """A line of /proc/self/status, 0 where there is none."""
    path = Path("/proc/self/status")
    found = re.search(rf"^{field}:\s*(\d+) kB", path.read_text(encoding="utf-8"), re.M) if path.exists() else None
    return int(found[1]) * 1024 if found else 0


def go(loaded, setting):
    """One call by the clock; `more` adds what the contestant itself knows of it."""
    call = loaded.calls[setting]
    start = time.perf_counter()
    call()
    seconds = time.perf_counter() - start
    return {"seconds": seconds} | (loaded.more() if loaded.more else {})


if __name__ == "__main__":
    # As a module of the package, so that its classes are the ones that contestants raise.
    importlib.import_module("refmoe.bench.child").main(sys.argv[1])
