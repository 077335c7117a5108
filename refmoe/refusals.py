"""The one sentence of a refusal: what was wrong, what was expected, what came, and one fix.   Spec 0.4"""

import os

import numpy as np


def require(condition, error, argument, expected, got, fix):
    """Raises error("argument: expected ..., got ...; fix") unless the condition holds.   Spec 0.4"""
    if not condition:
        raise error(f"{argument}: expected {expected}, got {got}; {fix}")


def is_finite_number(value):
    """Is it one real number? A complex one would lose its imaginary part on its way into a formula.   Spec 0.4"""
    real = np.asarray(value)
    return real.ndim == 0 and real.dtype.kind in "fiu" and bool(np.isfinite(real))


def require_fields(argument, value, kind):
    """Raises TypeError unless the value has every field of the NamedTuple `kind`.   Spec 0.4"""
    wanted, fix = f"a {kind.__name__} ({', '.join(kind._fields)})", f"give what makes a {kind.__name__}"
    ok = all(hasattr(value, field) for field in kind._fields)
    require(ok, TypeError, argument, wanted, type(value).__name__, fix)


def require_instance(argument, value, kind, fix, wanted=None):
    """Raises TypeError unless the value is one of the class `kind`, which `wanted` puts in words.   Spec 0.4"""
    if not isinstance(value, kind):  # the words take longer than what they are about
        require(False, TypeError, argument, wanted or f"a {kind.__name__}", type(value).__name__, fix)


def require_path(argument, value):
    """Raises TypeError unless the value names a place in the file system.   Spec 0.4"""
    ok = isinstance(value, str | os.PathLike)
    require(ok, TypeError, argument, "a path", f"{type(value).__name__}", "give a string or a pathlib.Path")
