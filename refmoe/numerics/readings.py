"""A formula rounded once: read in float64 with error bounds, then in intervals where that left it open.   Spec 6.5"""

from contextlib import suppress

import numpy as np

from ..formats import round_fraction
from .beyond import Beyond
from .bounded import BoundedArithmetic
from .precise import PrecisionNeeded, round_interval
from .precise_arithmetic import PreciseArithmetic
from .rounding import rounding_test

_BITS = (200, 400, 800, 1600, 3200)  # precisions tried in turn on what a rounding test leaves over
_BLOCK = 1 << 15  # elements of a formula read at a time: its temporaries stay in cache


def rounded_once(name, formula, stored, core, constants, rule):
    """The stored value of a formula of binary64 arrays, a block of instances at a time.   Spec 6.5

    stored: arrays whose last `core` axes are one instance; constants: by name; rule: the stage's profile and format
    """
    stored = _broadcast_loops(stored, core)
    if stored[0].ndim == core or stored[0].size <= _BLOCK:
        return _rounded_once(name, formula, stored, core, constants, rule)
    step = max(1, _BLOCK * len(stored[0]) // stored[0].size)
    blocks = [[array[at : at + step] for array in stored] for at in range(0, len(stored[0]), step)]
    return np.concatenate([_rounded_once(name, formula, block, core, constants, rule) for block in blocks])


def _rounded_once(name, formula, stored, core, constants, rule):
    """The first reading in float64 with error bounds; the second, of what that left undecided, in intervals."""
    m = BoundedArithmetic()
    with np.errstate(all="ignore"):
        result = formula(m, *(m.array(array, _bits(array)) for array in stored), **constants)
        value = np.asarray(result.v, np.float64)
        out, decided = rounding_test(value, np.broadcast_to(result.e, value.shape), rule.format)
    loops = stored[0].ndim - core
    if rule.force_tier == "exact":
        decided = np.asarray(~np.isfinite(value))
    beyond = _has_nonfinite(stored, core).reshape(decided.shape[:loops] + (1,) * (decided.ndim - loops))
    decided = np.asarray(decided & np.isfinite(value) & ~beyond)
    for bits in _BITS:
        if decided.all():
            return out
        m = PreciseArithmetic(bits)
        for index in _pending(decided, loops):
            with suppress(PrecisionNeeded), np.errstate(all="ignore"):
                _read_again(m, formula, [array[index] for array in stored], constants, out, decided, index, rule.format)
    if decided.all():
        return out
    raise ArithmeticError(f"{name}: undecided at {_BITS[-1]} bits; please report the inputs")


def _read_again(m, formula, stored, constants, out, decided, index, name):
    value = np.asarray(formula(m, *(m.array(array) for array in stored), **constants), object)
    rounded = [_settled(v, name) for v in value.reshape(-1)]
    done = np.array([settled for settled, _ in rounded], bool).reshape(value.shape)
    kept = np.array([v if settled else 0.0 for settled, v in rounded], out.dtype).reshape(value.shape)
    out[index] = np.where(done & ~decided[index], kept, out[index])
    decided[index] |= done


def _settled(value, name):
    if isinstance(value, Beyond):
        return True, value.lo
    return round_interval(value, lambda exact, negative: round_fraction(exact, name, negative))


def _bits(array):
    """Significant bits of the elements, at most: 24 for float32 values and counts below 2^24."""
    return 24 if (array == array.astype(np.float32)).all() else 53


def _has_nonfinite(stored, core):
    """Per instance: is there an infinity or NaN among its inputs? Those are read in intervals and `Beyond`."""
    bad = [~np.isfinite(array) for array in stored]
    axes = tuple(range(-core, 0))
    return np.logical_or.reduce([b.any(axis=axes) if core else b for b in bad])


def _pending(decided, loops):
    """The indices of the instances with an element left over, one by one: none must hold up its neighbours."""
    if not loops:
        return [...]
    left = np.nonzero(~decided.reshape(decided.shape[:loops] + (-1,)).all(axis=-1))
    return list(zip(*(axis[:, None] for axis in left), strict=True))


def _broadcast_loops(stored, core):
    loops = np.broadcast_shapes(*(array.shape[: array.ndim - core] for array in stored))
    return [np.broadcast_to(array, loops + array.shape[array.ndim - core :]) for array in stored]
