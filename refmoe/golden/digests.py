"""Digests of tensors, whole or expert by expert, and strided samples of what is too large to store.   Spec 7.5, 7.6"""

import hashlib
import threading
from math import prod

import numpy as np

from ..formats import FORMATS, decode, encode
from ..safetensors import DTYPES, element_bytes

SAMPLE_COUNT = 4096  # a sample has at most this many elements


def stored_dtype(array, format_name):
    """The safetensors type of a stored tensor: the format's for floats, the array's own for integers and flags."""
    if array.dtype.kind == "f":
        return FORMATS[format_name].safetensors
    return {"i": "I64", "u": "U8", "b": "BOOL"}[array.dtype.kind]


def to_codes(array, dtype):
    """carrier -> the elements as they stand in the file, little-endian."""
    if array.dtype.kind != "f":
        return np.asarray(array).astype(DTYPES[dtype], copy=False)
    name = next(row.name for row in FORMATS.values() if row.safetensors == dtype)
    return encode(array, name).view(DTYPES[dtype]).reshape(array.shape)


def from_codes(codes, dtype):
    """Elements of a file -> carrier: float32 or float64 for floats, the integers themselves otherwise."""
    for row in FORMATS.values():
        if row.safetensors == dtype and not row.integer:
            return decode(codes.view(f"<u{codes.dtype.itemsize}"), row.name).reshape(codes.shape)
    return codes.astype(codes.dtype.newbyteorder("="), copy=False)


def sha256(data):
    """SHA-256 of a buffer, or of the blocks of an iterator, in hexadecimal."""
    digest = hashlib.sha256()
    for block in [data] if isinstance(data, (bytes, memoryview)) else data:
        digest.update(block)
    return digest.hexdigest()


def tensor_digest(codes, by_expert=False):
    """SHA-256 of the tensor's bytes; `by_expert`: of the digests of its parts along the first axis."""
    if not by_expert:
        return sha256(element_bytes(codes))
    return combined_digest(sha256(element_bytes(part)) for part in codes)


def combined_digest(digests):
    """SHA-256 of the experts' digests, 32 bytes each, in the order of the experts."""
    return sha256(b"".join(map(bytes.fromhex, digests)))


def sample_stride(shape):
    """The smallest odd step that leaves at most SAMPLE_COUNT elements of a tensor."""
    return -(-max(prod(shape), 1) // SAMPLE_COUNT) | 1


def sample(flat, stride, start=0):
    """Elements 0, stride, 2 stride ... of a tensor, of which `flat` holds the elements from `start` on."""
    return flat[-start % stride :: stride]


GRADIENT = "bytes of gradients"  # what progress counts


class DigestSink:
    """Takes a tensor one expert at a time, in any order and from any thread, and keeps a digest and a sample of it.

    `take(e, part)` is the layer's way to hand over a gradient, `needs(e)` says whether it has to. name and pool: where
    finished experts are remembered (`weights.Makers`). whole: experts of which every element is kept.
    """

    def __init__(self, shape, dtype, name="", pool=None, whole=()):
        self.shape, self.dtype = tuple(shape), dtype
        self.stride = sample_stride(shape)
        self.whole = dict.fromkeys(whole)
        self._name, self._pool, self._zeros = name, pool, None
        self._parts = {} if pool is None else self._remembered()
        self._lock = threading.Lock()

    def needs(self, e):
        """Whether expert e has still to come."""
        return e not in self._parts

    def _remembered(self):
        """What an interrupted run finished: a digest and a sample each, of all but those that are kept whole."""
        size, element = prod(self.shape[1:]), DTYPES[self.dtype]
        counts = {e: len(range(-(e * size) % self.stride, size, self.stride)) for e in range(self.shape[0])}
        rows = {e: self._pool.kept(self._name, e, 32 + n * element.itemsize) for e, n in counts.items()}
        kept = {e: data for e, data in rows.items() if data is not None and e not in self.whole}
        self._pool.did(GRADIENT, len(kept) * size * element.itemsize)
        return {e: (data[:32].hex(), np.frombuffer(data[32:], element)) for e, data in kept.items()}

    def take(self, e, part):
        self.take_codes(e, to_codes(np.asarray(part), self.dtype))

    def take_codes(self, e, codes):
        """The same of elements as they stand in the file."""
        codes = codes.reshape(-1)
        kept = sample(codes, self.stride, e * codes.size).copy()
        row = self._digest(codes), kept
        if e in self.whole:
            self.whole[e] = codes.reshape(self.shape[1:]).copy()
        if self._pool is not None:
            self._pool.keep(self._name, e, bytes.fromhex(row[0]) + kept.tobytes())
            self._pool.did(GRADIENT, codes.nbytes)
        with self._lock:
            if e in self._parts:
                raise ValueError(f"expert {e}: expected once, came twice; a sink takes each expert one time")
            self._parts[e] = row

    def _digest(self, codes):
        """Experts without tokens have gradients that are all alike: +0."""
        if codes.view(f"u{codes.itemsize}").any():
            return sha256(element_bytes(codes))
        self._zeros = self._zeros or sha256(element_bytes(codes))
        return self._zeros

    def result(self):
        """(digest of the tensor, its sample). Every expert must have come."""
        missing = [e for e in range(self.shape[0]) if e not in self._parts]
        if missing:
            raise ValueError(f"expected every expert, expert {missing[0]} never came")
        rows = [self._parts[e] for e in range(self.shape[0])]
        return combined_digest(digest for digest, _ in rows), np.concatenate([kept for _, kept in rows])
