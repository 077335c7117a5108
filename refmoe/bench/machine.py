"""The machine and the versions, as the table names them."""

import os
import platform
import re
import sys
from pathlib import Path

import numpy as np

# OpenBLAS's core types, with the processor's flags that each needs; those that run here are all tried.
CORE_TYPES = (
    ("Haswell", "avx2 fma"),
    ("Zen", "avx2 fma"),
    ("SkylakeX", "avx512f avx512dq avx512bw avx512vl avx512cd"),
    ("Cooperlake", "avx512f avx512dq avx512bw avx512vl avx512_bf16"),
    ("SapphireRapids", "avx512_bf16 amx_tile amx_bf16"),
    ("ARMV8", "asimd"),
    ("NEOVERSEN1", "asimd atomics"),
    ("NEOVERSEV1", "sve asimd"),
)


def describe():
    """What decides speed here, and is not refmoe's."""
    from .. import __version__

    return {
        "processor": _cpu("model name") or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "processors": os.cpu_count(),
        "allowed": allowed(),
        "caches": _caches(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()}",
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "load": load(),
        "refmoe": __version__,
        "numpy": np.__version__,
        "python": sys.version.split()[0],
    }


def allowed():
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))


def load():
    """The load of the last minute: above the threads in use, somebody else is measured too."""
    return round(os.getloadavg()[0], 2)


def core_types():
    """OpenBLAS's core types that this processor can run."""
    flags = set((_cpu("flags") or _cpu("Features") or "").split())
    return [name for name, needs in CORE_TYPES if set(needs.split()) <= flags]


def _cpu(field):
    found = re.search(rf"^{field}\s*: (.*)$", _read("/proc/cpuinfo") or "", re.M)
    return found[1] if found else None


def _caches():
    folder = Path("/sys/devices/system/cpu/cpu0/cache")
    levels = sorted(folder.glob("index*")) if folder.exists() else []
    return {f"L{_read(p / 'level')} {_read(p / 'type')}": _read(p / "size") for p in levels}


def _read(path):
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return None
