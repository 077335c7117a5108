"""The engine that `Numerics` asks for contractions: three calls of C, counted.   csrc/refmoe_kernels.h"""

import threading
from collections import Counter

import numpy as np

from . import codes, memory
from .arguments import array_of, dtype_of, offsets_of, operand_of, refuse_offsets
from .attention import Attention
from .compiled import load_module, text
from .desk import Desk, Room, take
from .dispatch import Dispatch
from .experts import Experts
from .formulas import Formulas
from .sums import Sums
from .written import Written

WORK_OF_A_THREAD = 1 << 18  # multiplications; below this a second thread is slower than none
TIERS = ("rounding_test", "grid", "compensated", "exact")
_PROFILES = {"exact": "REFMOE_EXACT", "chain": "REFMOE_CHAIN", "float64": "REFMOE_UNFUSED"}
_NAMES = ("float32", "bf16", "fp16", "float64", "E5M2", "E4M3", "E3M2", "E2M3", "E2M1", "int8", "int4", "E8M0")
_FORMATS = {name: f"REFMOE_{name.upper()}" for name in _NAMES}
_KINDS = {np.uint16: "uint16_t[]", np.float32: "float[]", np.float64: "double[]", np.int64: "int64_t[]",
          np.bool_: "uint8_t[]", np.uint8: "uint8_t[]"}  # fmt: skip
_FORCES = {None: "REFMOE_FORCE_NOTHING", "compensated": "REFMOE_FORCE_COMPENSATED", "exact": "REFMOE_FORCE_EXACT"}


class CEngine(Dispatch, Experts, Formulas, Sums, Written, Attention):
    """The three grouped products in C, experts with few rows, causal attention, named formulas, exact sums, written
    operations, and the way from slots to rows.

    `calls` counts (function, kernel), `tiers` the outputs that each tier of `exact` decided; `workspace_bytes` is the
    most scratch memory that one call used, `paired` counts outputs of bf16 chains that took two k a step. Safe to
    call from several threads: a call has its own output and scratch memory and runs without the interpreter's lock;
    the counters are added under a lock of their own. Large arrays and scratch memory are lent by `memory`, again and
    again; `release` gives back what lies idle. An operand of a product is an array, or anything with `codes` and a
    `format`, bf16 or fp16, as a `Packed`: these are read as codes. Weights may be a `Packed` of fewer bits with its
    scales.
    """

    name = "c"
    reads_codes = staticmethod(codes.reads)

    def __init__(self, kernel, threads, adapt=False):
        self.kernel, self.threads, self._adapt = kernel, threads, adapt
        self.calls, self.tiers, self.workspace_bytes, self.paired = Counter(), Counter(), 0, 0
        self._hows, self._activations, self._rooms, self._desks = {}, {}, [], []
        self._lock = threading.Lock()
        self._ffi, self._lib = load_module()
        self._null, self._from_buffer = self._ffi.NULL, self._ffi.from_buffer
        self._kinds = {np.dtype(kind): self._ffi.typeof(name) for kind, name in _KINDS.items()}
        names = [text(self._ffi, self._lib.refmoe_kernel_name(i)) for i in range(self._lib.refmoe_kernel_count())]
        self._index = names.index(kernel)

    def grouped_matmul(self, rule, x_rows, w, offsets, bias=None, acc=None):
        """out[n, m] = sum_k x[n, k] w[e(n), m, k] (+ acc[n, m]) (+ bias[e(n), m]).

        x_rows (N, K), w (E, M, K), offsets (E + 1,), bias (E, M), acc (N, M) -> new array (N, M).
        """
        dtype = dtype_of(rule)
        w, right, (E, M, K) = codes.weights_of("w", w, rule, (None, None, None))
        x_rows, left = operand_of("x_rows", x_rows, rule, (None, K))
        N = len(x_rows)
        offsets = offsets_of(offsets, E)
        bias, acc = array_of("bias", bias, dtype, (E, M), True), array_of("acc", acc, dtype, (N, M), True)
        out = memory.empty((N, M), dtype)
        arrays = map(self._pointer, (x_rows, w, bias, acc, out))
        self._call("grouped_matmul", rule, (left, right), N * M * K, (E, N, M, K), offsets, *arrays)
        return out

    def grouped_matmul_backward_x(self, rule, pairs, offsets, acc=None):
        """out[n, k] = sum over the pairs, then over m, of d[n, m] w[e(n), m, k] (+ acc[n, k]).

        pairs: one or two of (d (N, M), w (E, M, K)), each with its own M; offsets (E + 1,), acc (N, K)
        -> new array (N, K).
        """
        dtype = dtype_of(rule)
        pairs, left, right, E, K = codes.pairs_of(pairs, rule)
        N = len(pairs[0][0])
        offsets, acc = offsets_of(offsets, E), array_of("acc", acc, dtype, (N, K), True)
        out = memory.empty((N, K), dtype)
        rows = [(self._pointer(d), self._pointer(w), d.shape[1]) for d, w in pairs]
        table = self._ffi.new(f"refmoe_pair_f{8 * dtype.itemsize}[]", rows)
        work = N * K * sum(d.shape[1] for d, _ in pairs)
        rest = len(pairs), table, self._pointer(acc), self._pointer(out)
        self._call("grouped_matmul_backward_x", rule, (left, right), work, (E, N, K), offsets, *rest)
        return out

    def grouped_matmul_backward_w(self, rule, d_rows, x_rows, offsets, acc=None):
        """out[e, m, k] = sum over the rows n of e, ascending, of d[n, m] x[n, k] (+ acc[e, m, k]).

        d_rows (N, M), x_rows (N, K), offsets (E + 1,), acc (E, M, K) -> new array (E, M, K).
        """
        dtype = dtype_of(rule)
        d_rows, left = operand_of("d_rows", d_rows, rule, (None, None))
        N, M = d_rows.shape
        x_rows, right = operand_of("x_rows", x_rows, rule, (N, None))
        E, K = max(len(offsets) - 1, 0), x_rows.shape[1]
        offsets, acc = offsets_of(offsets, E), array_of("acc", acc, dtype, (E, M, K), True)
        out = memory.empty((E, M, K), dtype)
        arrays = map(self._pointer, (d_rows, x_rows, acc, out))
        self._call("grouped_matmul_backward_w", rule, (left, right), N * M * K, (E, N, M, K), offsets, *arrays)
        return out

    def _pointer(self, array):
        """A C pointer that keeps no array alive: they live in the caller's frame for the time of the call."""
        if array is None:
            return self._null
        if type(array) is not np.ndarray and codes.is_small(array):
            return codes.scaled_of(self._ffi, self._lib, _FORMATS, array)
        return self._from_buffer(self._kinds[array.dtype], array) if array.size else self._null

    def _threads_for(self, work):
        """One thread where waking another would cost more than it does, unless a count was asked for."""
        return min(self.threads, 1 + work // WORK_OF_A_THREAD) if self._adapt else self.threads

    def _call(self, name, rule, formats, work, sizes, offsets, *rest):
        """One call of C; False where experts with few rows are not offered."""
        narrow = rule.profile != "float64"
        function = getattr(self._lib, f"refmoe_{name}_f{32 if narrow else 64}")
        desk = take(self._desks) or Desk(self._ffi)
        how, report = desk.how(self._how(rule, self._threads_for(work), formats)), desk.report
        arguments = (*sizes, self._pointer(offsets), *rest, *([report] if narrow else []))
        status = self._in_workspace(how, lambda: function(how, *arguments))
        if status == self._lib.REFMOE_OK:
            self._count(name, rule, report if narrow else None)
        self._desks.append(desk)
        return status == self._lib.REFMOE_OK or self._refuse(status, name, offsets, sizes)

    def _refuse(self, status, name, offsets, sizes):
        """False where experts with few rows are not offered, else an error."""
        lib = self._lib
        if status == lib.REFMOE_BAD_OFFSETS:
            refuse_offsets(offsets, sizes[1])
        if name == "feed_forward" and status in (lib.REFMOE_MANY_ROWS, lib.REFMOE_BAD_PROFILE):
            return False
        if status == lib.REFMOE_NO_MEMORY:
            raise MemoryError(f"{name}: expected memory for {self.threads} threads to work in, got none; use fewer")
        raise ValueError(f"{name}: expected what refmoe_kernels.h allows, got its status {status}; see there")

    def _count(self, name, rule, report):
        with self._lock:
            self.calls[name, self.kernel] += 1
            if report is None:
                return
            self.workspace_bytes = max(self.workspace_bytes, report.workspace_bytes)
            self.paired += report.paired
            for tier in TIERS if rule.profile == "exact" else ():
                self.tiers[tier] += getattr(report, tier)

    def _in_workspace(self, how, call):
        """The call's status, in scratch memory as large as an earlier call needed; if it wants more, in more."""
        room = take(self._rooms) or Room(self._ffi, 1)
        while True:
            how.workspace = room.workspace()
            status = call()
            if status != self._lib.REFMOE_BAD_WORKSPACE:
                self._rooms.append(room)
                return status
            room = Room(self._ffi, how.workspace.bytes)

    def release(self):
        """Gives idle memory back to the system: arrays' and this engine's scratch memory."""
        self._rooms.clear()
        memory.release()

    def _read_how(self, rule, threads):
        """A refmoe_how for functions that read it alone and want no workspace: one for all callers."""
        key = rule, threads
        if key not in self._hows:
            self._hows[key] = self._ffi.new("refmoe_how *", self._how(rule, threads))
        return self._hows[key]

    def _how(self, rule, threads, formats=("float32", "float32")):
        """The fields of refmoe_how but for the workspace."""
        key = rule, threads, formats
        if key not in self._hows:
            self._hows[key] = self._new_how(*key)
        return self._hows[key]

    def _new_how(self, rule, threads, formats):
        codes = (
            _code("profile", rule.profile, _PROFILES),
            _code("format", rule.format, _FORMATS),
            _code("force_tier", rule.force_tier, _FORCES),
            *(_FORMATS[name] for name in formats),
        )
        return (self._index, threads, *(getattr(self._lib, code) for code in codes))


def _code(name, value, table):
    if value not in table:
        names = ", ".join(map(str, table))
        raise ValueError(f"rule.{name}: expected one of {names}, got {value!r}; choose one of these")
    return table[value]
