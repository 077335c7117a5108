"""Complex step: the forward's own formulas in complex128, at x + ih.   Spec 5.10

The complex functions are NumPy's and SciPy's, so none of the library's derivatives takes part.
"""

from itertools import pairwise

import numpy as np

from ..numerics.arithmetic import Plain
from ..numerics.terms import factors_of, value_of

STEP = 1e-200  # the error of complex step is of order STEP^2: far below the last bit


def complex_step(function, at, i):
    """The derivative of function(at) with respect to element i: Im function(at + ih) / h."""
    moved = at.astype(np.complex128)
    moved.reshape(-1)[i] += 1j * STEP
    with np.errstate(all="ignore"):
        return np.imag(function(moved)) / STEP


class Complex128(Plain):
    """The reading of a formula in complex128."""

    exp, expm1, log, log1p, sqrt, tanh = np.exp, np.expm1, np.log, np.log1p, np.sqrt, np.tanh

    def erf(self, z):
        return _scipy_special().erf(z)

    def erfc(self, z):
        return _scipy_special().erfc(z)

    def sigmoid(self, z):
        return 1 / (1 + np.exp(-z))

    def softplus(self, z):
        return np.log(1 + np.exp(z))

    def real(self, z):
        return np.real(z)

    def sum(self, z, axis=-1, keepdims=False):
        return np.sum(z, axis=axis, keepdims=keepdims)

    def max(self, z, axis=-1, keepdims=False):
        return np.max(np.real(z), axis=axis, keepdims=keepdims)


def _scipy_special():
    """SciPy's functions, asked for by exact GELU alone: everything else needs NumPy alone."""
    try:
        from scipy import special
    except ImportError:
        fix = "install scipy (pip install scipy)"
        raise ImportError(f"activation 'gelu': expected SciPy for its complex erfc, got none; {fix}") from None
    return special


class ComplexStep:
    """A policy with the methods the forward asks of `Numerics`, all in complex128."""

    profile = "complex128"
    dtype = np.complex128

    def contract(self, name, x_rows, w, offsets=None, bias=None):
        w = w if w.ndim == 3 else w[None]
        bias = bias if bias is None or bias.ndim == 2 else bias[None]
        offsets = [0, len(x_rows)] if offsets is None else offsets
        out = np.zeros((len(x_rows), w.shape[1]), complex)
        for e in range(len(w)):
            rows = slice(int(offsets[e]), int(offsets[e + 1]))
            out[rows] = x_rows[rows] @ w[e].T + (0 if bias is None else bias[e])
        return out

    def contract_backward_w(self, name, d_rows, x_rows, offsets):
        return np.stack([d_rows[a:b].T @ x_rows[a:b] for a, b in pairwise(offsets)])

    def sum(self, name, terms):
        return sum(value_of(factors_of(term)) for term in terms)

    def evaluate(self, name, formula, *stored, core=0, **constants):
        return formula(Complex128(), *stored, **constants)
