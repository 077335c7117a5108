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


def is_integer(value):
    """Is it one whole number? True is none, and an array of one would lose its fraction on the way.   Spec 0.4"""
    return hasattr(value, "__index__") and not isinstance(value, bool | np.bool_ | np.ndarray)


def require_fields(argument, value, kind):
    """Raises TypeError unless the value has every field of the NamedTuple `kind`.   Spec 0.4"""
    wanted, fix = f"a {kind.__name__} ({', '.join(kind._fields)})", f"give what makes a {kind.__name__}"
    ok = all(hasattr(value, field) for field in kind._fields)
    require(ok, TypeError, argument, wanted, type(value).__name__, fix)


def require_instance(argument, value, kind, fix, wanted=None):
    """Raises TypeError unless the value is one of the class `kind`, which `wanted` puts in words.   Spec 0.4"""
    if not isinstance(value, kind):  # the words take longer than what they are about
        require(False, TypeError, argument, wanted or f"a {kind.__name__}", type(value).__name__, fix)


def shown(value):
    """What came, in one line of at most 80 letters.   Spec 0.4"""
    return " ".join(repr(value).split())[:80]


def require_flag(argument, value):
    """Raises TypeError unless the value is True or False; a word like "no" would be taken for True.   Spec 0.4"""
    ok = isinstance(value, bool | np.bool_)
    require(ok, TypeError, argument, "True or False", shown(value), "give one of the two")


def require_count(argument, value, least=1):
    """The value, an integer of at least `least` that 32 bits hold.   Spec 0.4"""
    ok = is_integer(value) and value >= least
    require(ok, ValueError, argument, f"an integer of at least {least}", shown(value), "pass one")
    require(value < 2**31, ValueError, argument, "an integer below 2^31", shown(value), "give a smaller one")
    return int(value)


def require_array(argument, value, kinds, axes, fix):
    """Raises TypeError or ValueError unless the value is an array of these kinds and so many axes.   Spec 0.4"""
    words = {"f": "floating-point numbers", "iu": "integers"}[kinds]
    ok = isinstance(value, np.ndarray) and value.dtype.kind in kinds
    got = f"one of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
    require(ok, TypeError, argument, f"a NumPy array of {words}", got, fix)
    require(value.ndim == axes, ValueError, argument, f"{axes} axes", f"shape {value.shape}", fix)


def require_listener(argument, value):
    """Raises TypeError unless the value can be told what is being done, or is None: nobody is told.   Spec 0.4"""
    ok = value is None or callable(value)
    require(ok, TypeError, argument, "a function or None", shown(value), "give one that takes a line of text")


def require_path(argument, value):
    """Raises TypeError unless the value names a place in the file system.   Spec 0.4"""
    ok = isinstance(value, str | os.PathLike)
    require(ok, TypeError, argument, "a path", f"{type(value).__name__}", "give a string or a pathlib.Path")
