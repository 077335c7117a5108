"""Expert weights by recipe, made when they are asked for, one expert at a time, the next ones under way.   Spec 7.2

The layer reads expert weights through an object with `shape`, `dtype` and a call `weights(e)`; this is that object for
a recipe. A background pool makes the experts ahead of the one asked for, and digests each as it is made.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from math import prod

import numpy as np

from ..recipes import generate
from ..safetensors import element_bytes
from .digests import combined_digest, sha256, to_codes

AHEAD = 3  # experts under way behind the one that was asked for
CACHE_BYTES = 1 << 30  # of one tensor: within it every expert is made once, beyond it each pass makes them again


class RecipeWeights:
    """(E, F, D) weights by recipe: `weights(e)` is generate(name, (E, F, D), ...)[e], read-only.

    Experts are kept up to CACHE_BYTES. Safe to call from several threads.
    """

    def __init__(self, row, shape, num_dtype, file_dtype, pool):
        self.shape, self.dtype, self.ndim = tuple(shape), np.dtype(num_dtype), len(shape)
        self._row, self._file_dtype, self._pool = row, file_dtype, pool
        self._room = max(AHEAD + 2, CACHE_BYTES // max(1, prod(shape[1:]) * self.dtype.itemsize))
        self._made, self._digests, self._lock = {}, {}, threading.Lock()

    def __len__(self):
        return self.shape[0]

    def __call__(self, e):
        """Expert e, and a start on the next ones."""
        future = self._future(e)
        for later in range(e + 1, min(e + 1 + AHEAD, len(self))):
            self._future(later)
        return future.result()

    weights = __getitem__ = __call__

    def digest(self):
        """The digest of the whole tensor, expert by expert; experts that were never asked for are made now."""
        for e in range(len(self)):
            if e not in self._digests:
                self(e)
        return combined_digest(self._digests[e] for e in range(len(self)))

    def _future(self, e):
        with self._lock:
            if e not in self._made:
                while len(self._made) >= self._room:
                    del self._made[next(iter(self._made))]
                self._made[e] = self._pool.submit(self._make, e)
            return self._made[e]

    def _make(self, e):
        size = prod(self.shape[1:])
        row = self._row
        made = generate(row["name"], self.shape[1:], row["seed"], row["recipe"], row["exponent"], start=e * size)
        made = made.astype(self.dtype, copy=False)
        made.flags.writeable = False
        if e not in self._digests:
            self._digests[e] = sha256(element_bytes(to_codes(made, self._file_dtype)))
        return made


def maker_pool():
    """The pool the weights of one run share: two threads, as NumPy and SHA-256 let go of the interpreter's lock."""
    return ThreadPoolExecutor(max_workers=2, thread_name_prefix="recipe")
