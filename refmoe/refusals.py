"""The one sentence of a refusal: what was wrong, what was expected, what came, and one fix.   Spec 0.4"""

import numpy as np


def require(condition, error, argument, expected, got, fix):
    """Raises error("argument: expected ..., got ...; fix") unless the condition holds.   Spec 0.4"""
    if not condition:
        raise error(f"{argument}: expected {expected}, got {got}; {fix}")


def is_finite_number(value):
    """Is it one real number? A complex one would lose its imaginary part on its way into a formula.   Spec 0.4"""
    real = np.asarray(value)
    return real.ndim == 0 and real.dtype.kind in "fiu" and bool(np.isfinite(real))
