"""The door to the compiled kernels: finds them, lists them, gives the engine that calls C.   csrc/refmoe_kernels.h

Nothing is imported from the rest of the package, and the compiled module only when it is first asked for.
"""

import os

from . import compiled
from .compiled import load_module, text
from .engine import TIERS as TIERS
from .engine import CEngine

REMEDY = "install a C compiler and Python's headers, and install refmoe again; REFMOE_REQUIRE_C=1 shows what fails"
MOST_THREADS = 1024
KNOWN = ("portable", "neon", "avx2", "avx512")  # slowest first on each processor, as in csrc/kernel_table.c


def available():
    """Rows (name, can_run, reason it cannot or None), slowest first. Never fails."""
    cause = build_error()
    if cause is not None:
        return tuple((name, False, cause) for name in KNOWN)
    ffi, lib = load_module()
    table = {text(ffi, lib.refmoe_kernel_name(i)): i for i in range(lib.refmoe_kernel_count())}
    return tuple(_row(ffi, lib, name, table.get(name)) for name in [*KNOWN, *(table.keys() - set(KNOWN))])


def _row(ffi, lib, name, index):
    if index is None:
        return name, False, "not built for this processor"
    if lib.refmoe_kernel_runs_here(index):
        return name, True, None
    return name, False, f"needs {text(ffi, lib.refmoe_kernel_needs(index))}"


def build_error():
    """Why the compiled module cannot be imported, in the importer's words; None if it can."""
    try:
        load_module()
    except ImportError as error:
        return f"{type(error).__name__}: {error}"
    return None


def build_report():
    """Rows (fact, value) about the compiled module: compiler, OpenMP. Empty without the module."""
    if build_error() is not None:
        return ()
    ffi, lib = load_module()
    openmp = str(lib.refmoe_openmp() or "no: calls are serial")
    return ("compiler", text(ffi, lib.refmoe_compiler())), ("OpenMP", openmp)


def load(kernel=None, threads=None):
    """The C engine. kernel: a name, else REFMOE_KERNEL, else the last that runs here; threads: a count, else
    REFMOE_NUM_THREADS, else the processors this process may use.

    Raises ImportError if the compiled module is missing, ValueError for a kernel that is unknown or cannot run here and
    for a count that is not a positive integer.
    """
    cause = build_error()
    if cause is not None:
        name = compiled.MODULE
        raise ImportError(f"backend 'c': expected the compiled module {name}, got {cause}; {REMEDY}", name=name)
    asked = threads is not None or bool(os.environ.get("REFMOE_NUM_THREADS"))
    return CEngine(_choose_kernel(kernel), _choose_threads(threads), adapt=not asked)


def _choose_kernel(kernel):
    source = "kernel" if kernel is not None else "REFMOE_KERNEL"
    kernel = kernel if kernel is not None else os.environ.get("REFMOE_KERNEL") or None
    rows = available()
    able = [name for name, can_run, _ in rows if can_run]
    if kernel is None:
        return able[-1]
    if not isinstance(kernel, str) or kernel not in able:
        reasons = {name: reason for name, _, reason in rows}
        reason = reasons.get(str(kernel), "there is no such kernel")
        raise ValueError(f"{source}: expected one of {', '.join(able)}, got {kernel!r} ({reason}); choose one of these")
    return kernel


def _choose_threads(threads):
    source = "threads" if threads is not None else "REFMOE_NUM_THREADS"
    asked = threads if threads is not None else os.environ.get("REFMOE_NUM_THREADS") or len(os.sched_getaffinity(0))
    try:
        count = int(asked) if threads is None else threads.__index__()
    except (ValueError, TypeError, AttributeError):
        count = 0
    if not 1 <= count <= MOST_THREADS:
        fix = "give 1 or more" if count < 1 else f"give at most {MOST_THREADS}"
        raise ValueError(f"{source}: expected a positive count, got {asked!r}; {fix}")
    return count
