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
MAKE = "elements of weights"  # what progress counts
CACHE_BYTES = 1 << 30  # of one tensor: within it every expert is made once, beyond it each pass makes them again


class RecipeWeights:
    """(E, F, D) weights by recipe: `weights(e)` is generate(name, (E, F, D), ...)[e], read-only.

    Experts are kept up to CACHE_BYTES. Safe to call from several threads. pool: Makers, which remembers digests.
    """

    def __init__(self, row, shape, num_dtype, file_dtype, pool):
        self.shape, self.dtype, self.ndim = tuple(shape), np.dtype(num_dtype), len(shape)
        self._row, self._file_dtype, self._pool = row, file_dtype, pool
        self._room = max(AHEAD + 2, CACHE_BYTES // max(1, prod(shape[1:]) * self.dtype.itemsize))
        self._made, self._lock = {}, threading.Lock()
        self._digests = {e: kept.hex() for e in range(shape[0]) if (kept := pool.kept(self._label, e, 32))}

    def __len__(self):
        return self.shape[0]

    @property
    def name(self):
        """The name its recipe knows it by: "shared.w_up"."""
        return self._row["name"]

    @property
    def _label(self):
        return f"weights {self.name}"

    def __call__(self, e):
        """Expert e, and a start on the next ones."""
        return self.expert(e, range(e + 1, len(self)))

    weights = __getitem__ = __call__

    def expert(self, e, following):
        """Expert e, and a start on the first few of those that will be asked for next."""
        self.start([e, *following[:AHEAD]])
        return self._future(e).result()

    def start(self, experts):
        """These will be asked for."""
        for e in experts:
            self._future(e)

    def digest(self):
        """The digest of the whole tensor, expert by expert; experts that were never asked for are made now."""
        missing = [e for e in range(len(self)) if e not in self._digests]
        for at, e in enumerate(missing):
            self.expert(e, missing[at + 1 :])
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
            self._pool.keep(self._label, e, bytes.fromhex(self._digests[e]))
        self._pool.did(MAKE, size)
        return made


class Makers(ThreadPoolExecutor):
    """The pool the weights of one run share, and what the run keeps of them should it be interrupted.

    Two threads, as NumPy and SHA-256 let go of the interpreter's lock. work: a `Work`; progress: a `Progress`.
    """

    def __init__(self, work=None, progress=None):
        super().__init__(max_workers=2, thread_name_prefix="recipe")
        self.work, self.progress = work, progress

    def __exit__(self, *error):
        """Experts that nobody will ask for are not waited for."""
        self.shutdown(wait=True, cancel_futures=True)

    def kept(self, name, e, size):
        """The bytes that were kept under a name, `size` of them, or None."""
        return None if self.work is None else self.work.get(name, e, size)

    def keep(self, name, e, data):
        """Keeps them."""
        if self.work is not None:
            self.work.put(name, e, data)

    def did(self, kind, amount):
        """Counts a piece of the work."""
        if self.progress is not None:
            self.progress.did(kind, amount)


def maker_pool(work=None, progress=None):
    """The pool of one run."""
    return Makers(work, progress)
