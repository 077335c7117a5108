"""The floating-point environment that every public call needs.   Spec 6.1"""

import numpy as np

from .rounding import UNIT

# What tells one environment from another, as bits: a changed one would change the numbers.
_LEAST, _ONE = np.ones(2, np.uint32).view(np.float32), np.ones(2, np.float32)
_WIDE = np.full(2, (1023 - 149) << 52, np.uint64).view(np.float64)
_UNITS, _HALVES = np.array([1.0, -1.0, 1.0]), np.array([UNIT, -UNIT, 3 * UNIT])
_NEAREST = np.array([1.0, -1.0, 1.0 + 4 * UNIT])


def check_environment():
    """Raises RuntimeError unless this thread rounds to nearest even and keeps subnormals.   Spec 6.1"""
    keeps = (_LEAST * _ONE).tobytes() == _LEAST.tobytes() and _LEAST.astype(np.float64).tobytes() == _WIDE.tobytes()
    if not keeps or (_UNITS + _HALVES).tobytes() != _NEAREST.tobytes():
        raise RuntimeError(
            "floating-point environment: expected round-to-nearest with subnormals kept, got another mode; "
            "some library changed it in this thread (fast-math code does): restore it or use a fresh process"
        )
