"""The door to the compiled kernels: finds the module, lists kernels, checks arguments, calls C.   csrc/refmoe_kernels.h

Nothing is imported from the rest of the package, and the compiled module only when it is first asked for.
"""

import importlib
import os
import threading
from collections import Counter

import numpy as np

MODULE = "refmoe._kernels"
REMEDY = "install a C compiler and Python's headers, and install refmoe again; REFMOE_REQUIRE_C=1 shows what fails"
WORK_OF_A_THREAD = 1 << 18  # multiplications; below this a second thread is slower than none
TIERS = ("rounding_test", "grid", "compensated", "exact")
KNOWN = ("portable", "neon", "avx2", "avx512")  # slowest first on each processor, as in csrc/kernel_table.c
_PROFILES = {"exact": "REFMOE_EXACT", "chain": "REFMOE_CHAIN", "float64": "REFMOE_UNFUSED"}
_FORMATS = {"float32": "REFMOE_FLOAT32", "bf16": "REFMOE_BF16", "fp16": "REFMOE_FP16", "float64": "REFMOE_FLOAT64"}
_FORCES = {None: "REFMOE_FORCE_NOTHING", "compensated": "REFMOE_FORCE_COMPENSATED", "exact": "REFMOE_FORCE_EXACT"}


def available():
    """Rows (name, can_run, reason it cannot or None), slowest first. Never fails."""
    cause = build_error()
    if cause is not None:
        return tuple((name, False, cause) for name in KNOWN)
    ffi, lib = _module()
    table = {_text(ffi, lib.refmoe_kernel_name(i)): i for i in range(lib.refmoe_kernel_count())}
    return tuple(_row(ffi, lib, name, table.get(name)) for name in [*KNOWN, *(table.keys() - set(KNOWN))])


def _row(ffi, lib, name, index):
    if index is None:
        return name, False, "not built for this processor"
    if lib.refmoe_kernel_runs_here(index):
        return name, True, None
    return name, False, f"needs {_text(ffi, lib.refmoe_kernel_needs(index))}"


def build_error():
    """Why the compiled module cannot be imported, in the importer's words; None if it can."""
    try:
        _module()
    except ImportError as error:
        return f"{type(error).__name__}: {error}"
    return None


def build_report():
    """Rows (fact, value) about the compiled module: compiler, OpenMP. Empty without the module."""
    if build_error() is not None:
        return ()
    ffi, lib = _module()
    openmp = str(lib.refmoe_openmp() or "no: calls are serial")
    return ("compiler", _text(ffi, lib.refmoe_compiler())), ("OpenMP", openmp)


def load(kernel=None, threads=None):
    """The C engine. kernel: a name, else REFMOE_KERNEL, else the last that runs here; threads: a count, else
    REFMOE_NUM_THREADS, else the processors this process may use.

    Raises ImportError if the compiled module is missing, ValueError for a kernel that is unknown or cannot run here and
    for a count that is not a positive integer.
    """
    cause = build_error()
    if cause is not None:
        raise ImportError(f"backend 'c': expected the compiled module {MODULE}, got {cause}; {REMEDY}", name=MODULE)
    asked = threads is not None or bool(os.environ.get("REFMOE_NUM_THREADS"))
    return CEngine(_choose_kernel(kernel), _choose_threads(threads), adapt=not asked)


def _module():
    module = importlib.import_module(MODULE)
    return module.ffi, module.lib


def _text(ffi, chars):
    return ffi.string(chars).decode()


def _choose_kernel(kernel):
    source = "kernel" if kernel is not None else "REFMOE_KERNEL"
    kernel = kernel if kernel is not None else os.environ.get("REFMOE_KERNEL") or None
    rows = available()
    able = [name for name, can_run, _ in rows if can_run]
    if kernel is None:
        return able[-1]
    if kernel not in able:
        reason = next((reason for name, _, reason in rows if name == kernel), "there is no such kernel")
        raise ValueError(f"{source}: expected one of {', '.join(able)}, got {kernel!r} ({reason}); choose one of these")
    return kernel


def _choose_threads(threads):
    source = "threads" if threads is not None else "REFMOE_NUM_THREADS"
    asked = threads if threads is not None else os.environ.get("REFMOE_NUM_THREADS") or len(os.sched_getaffinity(0))
    try:
        count = int(asked) if isinstance(asked, str) else asked.__index__()
    except (ValueError, AttributeError):
        count = 0
    if not 1 <= count < 2**31:
        raise ValueError(f"{source}: expected a positive count, got {asked!r}; give 1 or more")
    return count


class CEngine:
    """The three grouped products in C.

    `calls` counts (function, kernel), `tiers` the outputs that each tier of `exact` decided. Safe to call from several
    threads: a call has its own output and scratch memory and runs without the interpreter's lock; the counters are
    added under a lock of their own.
    """

    name = "c"

    def __init__(self, kernel, threads, adapt=False):
        self.kernel, self.threads, self._adapt = kernel, threads, adapt
        self.calls, self.tiers = Counter(), Counter()
        self._lock = threading.Lock()
        self._ffi, self._lib = _module()
        names = [_text(self._ffi, self._lib.refmoe_kernel_name(i)) for i in range(self._lib.refmoe_kernel_count())]
        self._index = names.index(kernel)

    def grouped_matmul(self, rule, x_rows, w, offsets, bias=None, acc=None):
        """out[n, m] = sum_k x[n, k] w[e(n), m, k] (+ acc[n, m]) (+ bias[e(n), m]).

        x_rows (N, K), w (E, M, K), offsets (E + 1,), bias (E, M), acc (N, M) -> new array (N, M).
        """
        dtype = _dtype(rule)
        w = _array("w", w, dtype, (None, None, None))
        E, M, K = w.shape
        x_rows = _array("x_rows", x_rows, dtype, (None, K))
        N = len(x_rows)
        offsets = _offsets(offsets, E, N)
        bias, acc = _array("bias", bias, dtype, (E, M), True), _array("acc", acc, dtype, (N, M), True)
        out = np.empty((N, M), dtype)
        sizes = (E, N, M, K, self._pointer(offsets))
        self._call("grouped_matmul", rule, dtype, N * M * K, *sizes, *map(self._pointer, (x_rows, w, bias, acc, out)))
        return out

    def grouped_matmul_backward_x(self, rule, pairs, offsets, acc=None):
        """out[n, k] = sum over the pairs, then over m, of d[n, m] w[e(n), m, k] (+ acc[n, k]).

        pairs: one or two of (d (N, M), w (E, M, K)), each with its own M; offsets (E + 1,), acc (N, K)
        -> new array (N, K).
        """
        dtype = _dtype(rule)
        if not 1 <= len(pairs) <= 2:
            raise ValueError(f"pairs: expected 1 or 2 pairs (d, w), got {len(pairs)}; add further sums with acc")
        pairs = [_pair(index, pair, dtype) for index, pair in enumerate(pairs)]
        (N, _), (E, _, K) = pairs[0][0].shape, pairs[0][1].shape
        for index, (d, w) in enumerate(pairs):
            _array(f"pairs[{index}] d", d, dtype, (N, None))
            _array(f"pairs[{index}] w", w, dtype, (E, None, K))
        offsets, acc = _offsets(offsets, E, N), _array("acc", acc, dtype, (N, K), True)
        out = np.empty((N, K), dtype)
        rows = [(self._pointer(d), self._pointer(w), d.shape[1]) for d, w in pairs]
        table = self._ffi.new(f"refmoe_pair_f{8 * dtype.itemsize}[]", rows)
        work = N * K * sum(d.shape[1] for d, _ in pairs)
        self._call("grouped_matmul_backward_x", rule, dtype, work, E, N, K, self._pointer(offsets), len(pairs), table,
                   self._pointer(acc), self._pointer(out))
        return out

    def grouped_matmul_backward_w(self, rule, d_rows, x_rows, offsets, acc=None):
        """out[e, m, k] = sum over the rows n of e, ascending, of d[n, m] x[n, k] (+ acc[e, m, k]).

        d_rows (N, M), x_rows (N, K), offsets (E + 1,), acc (E, M, K) -> new array (E, M, K).
        """
        dtype = _dtype(rule)
        d_rows = _array("d_rows", d_rows, dtype, (None, None))
        N, M = d_rows.shape
        x_rows = _array("x_rows", x_rows, dtype, (N, None))
        E, K = max(len(offsets) - 1, 0), x_rows.shape[1]
        offsets, acc = _offsets(offsets, E, N), _array("acc", acc, dtype, (E, M, K), True)
        out = np.empty((E, M, K), dtype)
        sizes, arrays = (E, N, M, K, self._pointer(offsets)), map(self._pointer, (d_rows, x_rows, acc, out))
        self._call("grouped_matmul_backward_w", rule, dtype, N * M * K, *sizes, *arrays)
        return out

    def _pointer(self, array):
        """A C pointer that keeps nothing alive: the arrays live in the caller's frame for the time of the call."""
        if array is None or array.size == 0:
            return self._ffi.NULL
        kind = {4: "float *", 8: "double *"}[array.itemsize] if array.dtype != np.int64 else "int64_t *"
        return self._ffi.cast(kind, array.ctypes.data)

    def _threads_for(self, work):
        """One thread where waking another would cost more than it does, unless a count was asked for."""
        return min(self.threads, 1 + work // WORK_OF_A_THREAD) if self._adapt else self.threads

    def _call(self, name, rule, dtype, work, *arguments):
        function = getattr(self._lib, f"refmoe_{name}_f{8 * dtype.itemsize}")
        how = self._ffi.new("refmoe_how *", self._how(rule, self._threads_for(work)))
        tiers = self._ffi.new("refmoe_tiers *")
        status = function(how, *arguments, *([tiers] if dtype == np.float32 else []))
        if status == self._lib.REFMOE_NO_MEMORY:
            raise MemoryError(f"{name}: expected memory for {self.threads} threads to work in, got none; use fewer")
        if status != self._lib.REFMOE_OK:
            raise ValueError(f"{name}: expected what refmoe_kernels.h allows, got its status {status}; see there")
        with self._lock:
            self.calls[name, self.kernel] += 1
            if rule.profile == "exact":
                self.tiers.update({tier: getattr(tiers, tier) for tier in TIERS})

    def _how(self, rule, threads):
        codes = (_code("profile", rule.profile, _PROFILES), _code("format", rule.format, _FORMATS),
                 _code("force_tier", rule.force_tier, _FORCES))
        return (self._index, threads, *(getattr(self._lib, code) for code in codes))


def _code(name, value, table):
    if value not in table:
        names = ", ".join(map(str, table))
        raise ValueError(f"rule.{name}: expected one of {names}, got {value!r}; choose one of these")
    return table[value]


def _dtype(rule):
    return np.dtype(np.float64 if rule.profile == "float64" else np.float32)


def _pair(index, pair, dtype):
    d, w = pair
    w = _array(f"pairs[{index}] w", w, dtype, (None, None, None))
    return _array(f"pairs[{index}] d", d, dtype, (None, w.shape[1])), w


def _array(name, array, dtype, shape, optional=False):
    """The array, or a dense copy of it; None in `shape` is any size. Raises TypeError or ValueError."""
    if array is None and optional:
        return None
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name}: expected a NumPy array, got {type(array).__name__}; convert it with numpy.asarray")
    if array.dtype != dtype or not array.dtype.isnative:
        raise TypeError(f"{name}: expected native {dtype.name}, got {array.dtype.str}; use .astype(numpy.{dtype.name})")
    if array.ndim != len(shape) or any(want not in (None, got) for want, got in zip(shape, array.shape, strict=True)):
        wanted = "(" + ", ".join("any" if size is None else str(size) for size in shape) + ")"
        raise ValueError(f"{name}: expected shape {wanted}, got {array.shape}; check the axes against the others")
    return np.require(array, requirements=("C", "A"))


def _offsets(offsets, experts, rows):
    """(E + 1,) rising from 0 to N, as int64. Raises TypeError or ValueError."""
    array = np.asarray(offsets)
    if array.dtype.kind not in "iu":
        raise TypeError(f"offsets: expected integers, got {array.dtype.str}; use .astype(numpy.int64)")
    if array.shape != (experts + 1,):
        raise ValueError(f"offsets: expected shape ({experts + 1},), got {array.shape}; give E + 1 entries")
    array = np.require(array, np.int64, ("C", "A"))
    if array[0] != 0 or array[-1] != rows or (array[1:] < array[:-1]).any():
        got = np.array2string(array, threshold=8)
        raise ValueError(f"offsets: expected values rising from 0 to {rows}, got {got}; take them from the plan")
    return array
