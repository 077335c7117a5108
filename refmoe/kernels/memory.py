"""Memory of large arrays, lent again when nothing refers to it any more: the system would clear fresh pages each time.

A lent array is an ordinary array: it, its views and whoever else holds its buffer keep the memory, and the last of them
gives it back. Idle memory is bounded, shared by all engines of the process, and freed by `release`.
"""

import math
import os
import threading
import weakref
from typing import NamedTuple

import numpy as np

LEAST = 1 << 17  # bytes; what is smaller comes from the heap, which clears nothing
LINE = 64  # bytes of a line of the cache, where an array begins so that C can store past the caches
MOST, SHARE = 1 << 32, 8  # bytes that may lie idle, and no more than an eighth of the machine's memory
FIT = 2  # memory is lent for arrays of at least its half


class Loan(weakref.ref):
    """Knows what to give back when the array dies whose memory it is."""

    __slots__ = ("memory",)


class Memory(NamedTuple):
    """A buffer, its first byte at the beginning of a line, its size."""

    view: memoryview
    first: int
    nbytes: int


class Pool:
    """`idle`: memory that nobody refers to, the longest idle first; at most `most` bytes of it."""

    def __init__(self, most):
        self.most, self.idle, self._loans, self._lock = most, {}, {}, threading.RLock()

    def empty(self, shape, dtype):
        """An array (shape) that holds anything."""
        dtype = np.dtype(dtype)
        size = math.prod(shape) * dtype.itemsize
        if size < LEAST:
            return np.empty(shape, dtype)
        memory = self._take(size + LINE)
        owner, first = self._lend(memory), memory.first
        return owner[first : first + size].view(dtype).reshape(shape)

    def _take(self, size):
        """The least idle memory that fits, or fresh memory."""
        with self._lock:
            most = FIT * size  # a step of training leaves a hundred arrays to look through
            fits = [(nbytes, key) for key, (_, _, nbytes) in list(self.idle.items()) if size <= nbytes <= most]
            found = self.idle.pop(min(fits)[1], None) if fits else None
        return _fresh(size) if found is None else found

    def _lend(self, memory):
        """The array that every view of the loan refers to: NumPy looks no further than one that is on a memoryview."""
        owner = np.frombuffer(memory.view, np.uint8)
        loan = Loan(owner, self._give_back)
        loan.memory = memory
        self._loans[id(loan)] = loan
        return owner

    def _give_back(self, loan):
        """Called wherever the last view dies, even in a collection of garbage while this thread holds the lock."""
        with self._lock:
            self._loans.pop(id(loan), None)
            self.idle[id(loan.memory)] = loan.memory
            self._keep(self.most)

    def _keep(self, most):
        while self.idle and self.idle_bytes > most:
            self.idle.pop(next(iter(self.idle)), None)

    @property
    def idle_bytes(self):
        return sum([nbytes for _, _, nbytes in list(self.idle.values())])

    def release(self):
        """Gives all idle memory back to the system."""
        with self._lock:
            self._keep(0)

    def renew_lock(self):
        """After a fork, where another thread may have held it."""
        self._lock = threading.RLock()


def _fresh(size):
    made = np.empty(size, np.uint8)
    return Memory(memoryview(made), -made.ctypes.data % LINE, made.nbytes)


def _bound():
    """Bytes that may lie idle; none where the system does not tell how much memory it has."""
    if not hasattr(os, "sysconf"):
        return 0
    return min(MOST, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // SHARE)


POOL = Pool(_bound())
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=POOL.renew_lock)
empty, release = POOL.empty, POOL.release
