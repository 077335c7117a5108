"""What runs here and why: versions, backend, kernels, threads, BLAS, environment."""

import importlib
import importlib.metadata
import os
import platform
import sys
import warnings

import numpy as np

from .refusals import require, shown

VARIABLES = ("REFMOE_BACKEND", "REFMOE_KERNEL", "REFMOE_NUM_THREADS",
             "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENBLAS_CORETYPE", "NPY_DISABLE_CPU_FEATURES")


def show_config(file=None):
    """Prints the report of `config_report`, to standard output unless a file is given."""
    ok = file is None or hasattr(file, "write")
    require(ok, TypeError, "file", "an open file or None", shown(file), "open it for writing")
    print(config_report(), file=file)


def config_report():
    """The report as text, a line for each fact; it never fails, whatever is missing."""
    sections = {"versions": _versions(), "backend": _backend(), "kernels": _kernels(), "BLAS": _blas(),
                "environment": _environment()}
    lines = []
    for title, rows in sections.items():
        lines.append(title)
        lines += [f"  {name:<26}{value}" for name, value in rows]
    return "\n".join(lines)


def _versions():
    from . import SPEC_VERSION, __version__

    yield "refmoe", __version__
    yield "SPEC_VERSION", SPEC_VERSION
    yield "Python", f"{platform.python_version()} ({sys.implementation.name}, {platform.system()} {platform.machine()})"
    for name in ("numpy", "cffi"):
        yield name, _version_of(name)


def _version_of(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _backend():
    """The engine that `Numerics()` gets now, and the reason."""
    from .numerics import Numerics

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # the reason is part of the report
            engine = Numerics().engine
    except (ValueError, ImportError) as error:
        yield "in use", "none"
        yield "why", error
        return
    yield "in use", engine.name
    yield "kernel", engine.kernel or "-"
    yield "threads", f"{engine.threads} of {os.cpu_count()} processors"
    yield "why", _reason(engine.name)


def _reason(name):
    from .kernels import build_error

    asked = os.environ.get("REFMOE_BACKEND", "auto")
    if asked != "auto":
        return f"REFMOE_BACKEND={asked}"
    if name == "c":
        return "the compiled module is there"
    return f"no compiled module: {build_error()}; install a C compiler and install refmoe again"


def _kernels():
    from .kernels import available, build_report

    for name, can_run, reason in available():
        yield name, ("can run" if can_run else "cannot run") + (f": {reason}" if reason else "")
    yield from build_report()


def _blas():
    """Only exact-by-bound work is given to BLAS, so it decides speed and never a bit."""
    built = np.show_config(mode="dicts").get("Build Dependencies", {}).get("blas", {})
    yield "NumPy was built with", f"{built.get('name', 'unknown')} {built.get('version', '')}".rstrip()
    try:
        pools = importlib.import_module("threadpoolctl").threadpool_info()
    except ImportError:
        yield "running", "unknown (threadpoolctl is not installed)"
        return
    for pool in pools:
        core = pool.get("architecture", "core type unknown")
        yield "running", f"{pool.get('internal_api')} {pool.get('version')}, {core}, {pool.get('num_threads')} threads"


def _environment():
    return [(name, os.environ.get(name, "-")) for name in VARIABLES]
