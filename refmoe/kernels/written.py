"""Formulas of + - * / and square roots in C, as methods of the engine.   csrc/refmoe_written.h"""

import numpy as np

from . import memory

_WORK = 4  # multiplications that a number of these formulas is worth, for the choice of threads


class Written:
    """What `CEngine` carries out as it is written, in float32: what NumPy makes of the same lines, bit for bit."""

    def rms_norm(self, x, w, eps):
        """rms (N, 1), normed = x / rms, out = normed w; None for arrays that C does not read. x (N, M), w (M,)"""
        if not _readable(x, w):
            return None
        rms, normed, out = memory.empty((len(x), 1), np.float32), _like(x), _like(x)
        self._write("rms_norm", x.size, *x.shape, eps, x, w, rms, normed, out)
        return rms, normed, out

    def rms_norm_backward(self, d_out, normed, rms, w):
        """d_x (N, M) and d_out normed (N, M), the rows of the gradient of w; None as above."""
        if not _readable(d_out, normed, rms, w):
            return None
        d_x, d_gain = _like(d_out), _like(d_out)
        self._write("rms_norm_backward", d_out.size, *d_out.shape, d_out, normed, rms, w, d_x, d_gain)
        return d_x, d_gain

    def adamw(self, constants, g, p, m, v):
        """One step of AdamW in place; constants in the order of refmoe_adamw_constants. False: nothing was done."""
        if not _readable(g, p, m, v):
            return False
        self._write("adamw", g.size, self._ffi.new("refmoe_adamw_constants *", constants), g.size, g, p, m, v)
        return True

    def _write(self, name, size, *arguments):
        """One call of C."""
        how = self._ffi.new("refmoe_how *", {"kernel": self._index, "threads": self._threads_for(size * _WORK)})
        arguments = [self._pointer(a) if isinstance(a, np.ndarray) else a for a in arguments]
        status = getattr(self._lib, f"refmoe_{name}")(how, *arguments)
        if status != self._lib.REFMOE_OK:
            raise ValueError(f"{name}: expected what refmoe_written.h allows, got its status {status}; see there")
        with self._lock:
            self.calls[name, self.kernel] += 1


def _readable(*arrays):
    return all(a.dtype == np.float32 and a.dtype.isnative and a.flags.c_contiguous and a.flags.aligned for a in arrays)


def _like(array):
    return memory.empty(array.shape, np.float32)
