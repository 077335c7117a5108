"""This machine's limits, by csrc/limits.c: multiply-adds on registers, the kernels' tiles in cache, bytes from memory.

A limit's setting is named "WHAT PROFILE KERNEL xTHREADS", the read's "read STREAMS xTHREADS"; products of bf16, two
k a step, are "WHAT pairs KERNEL xTHREADS", where the processor has such an instruction.
"""

import importlib

import numpy as np

from ... import kernels
from ..child import Refused
from . import Loaded

LENGTHS = {"chain": 128, "exact": 96}  # terms of a tile's sums: the operands are 12 to 24 KB
PAIR_WORDS = 112  # of two terms each: 21 KB
STREAMS = (1, 2, 4, 8)
PROFILES = {"chain": 1, "exact": 0}  # as refmoe_profile


def prepare(inputs, options):
    """Calls of about options["milliseconds"] each; the buffer read holds options["megabytes"]."""
    if kernels.build_error():
        raise Refused(kernels.build_error())
    machine = Machine(options["milliseconds"] / 1000, options["megabytes"] << 20)
    calls = {}
    for kernel in (name for name, runs, _ in kernels.available() if runs):
        for profile in PROFILES:
            for threads in options["threads"]:
                for what in ("registers", "tile", "lanes"):
                    calls[f"{what} {profile} {kernel} x{threads}"] = machine.computing(what, profile, kernel, threads)
        for threads in options["threads"]:
            for what in ("registers", "tile"):
                calls[f"{what} pairs {kernel} x{threads}"] = machine.pairing(what, kernel, threads)
    for threads in options["threads"]:
        for streams in STREAMS:
            calls[f"read {streams} x{threads}"] = machine.reading(streams, threads)
    able = {name: call for name, call in calls.items() if call is not None}
    return Loaded(able, {"bytes read": machine.buffer.nbytes}, checks=False, more=machine.more)


class Machine:
    """The measures, each with the number of steps that takes the time wanted."""

    def __init__(self, seconds, size):
        module = importlib.import_module(kernels.compiled.MODULE)
        self.ffi, self.lib, self.seconds = module.ffi, module.lib, seconds
        self.work, self.last = self.ffi.new("double *"), {}
        self.names = [self.ffi.string(self.lib.refmoe_kernel_name(i)).decode()
                      for i in range(self.lib.refmoe_kernel_count())]  # fmt: skip
        self.buffer = np.ones(max(size // 8, 512) // 512 * 512)

    def more(self):
        return self.last

    def computing(self, what, profile, kernel, threads):
        """A call without arguments; None where this kernel has no such measure."""
        index, code, length = self.names.index(kernel), PROFILES[profile], LENGTHS[profile]

        def measure(steps):
            if what == "registers":
                return self.lib.refmoe_limit_registers(index, code, threads, steps, self.work)
            return self.lib.refmoe_limit_tile(index, code, what == "lanes", threads, length, steps, self.work)

        return self._call(measure, 100)

    def pairing(self, what, kernel, threads):
        """The same for two k a step."""
        index = self.names.index(kernel)

        def measure(steps):
            if what == "registers":
                return self.lib.refmoe_limit_pair_registers(index, threads, steps, self.work)
            return self.lib.refmoe_limit_pair_tile(index, threads, PAIR_WORDS, steps, self.work)

        return self._call(measure, 100)

    def reading(self, streams, threads):
        pointer = self.ffi.cast("void *", self.buffer.ctypes.data)
        size = self.buffer.nbytes
        return self._call(lambda n: self.lib.refmoe_limit_read(pointer, size, streams, threads, n, self.work), 1)

    def _call(self, measure, steps):
        """Steps grow until the time is reached; that is the warm-up, too."""
        taken = measure(steps)
        while 0 <= taken < self.seconds / 2 and steps < 1 << 50:
            steps = int(steps * min(8.0, max(2.0, self.seconds / max(taken, 1e-9))))
            taken = measure(steps)
        return None if taken < 0 else lambda: self._note(measure(steps))

    def _note(self, seconds):
        self.last = {"seconds": seconds, "work": self.work[0]}
