"""Calls of the kernels through C with every buffer under guard."""

import numpy as np
from kernel_oracle import dtype

from refmoe import _kernels

ffi, lib = _kernels.ffi, _kernels.lib
CODES = {"exact": lib.REFMOE_EXACT, "chain": lib.REFMOE_CHAIN, "float64": lib.REFMOE_UNFUSED,
         "float32": lib.REFMOE_FLOAT32, "bf16": lib.REFMOE_BF16, "fp16": lib.REFMOE_FP16}
FORCES = {None: lib.REFMOE_FORCE_NOTHING, "compensated": lib.REFMOE_FORCE_COMPENSATED, "exact": lib.REFMOE_FORCE_EXACT}
GUARD = 29  # items on each side; odd, so that no buffer is aligned to a vector


# ---- calls under guard ----

class Buffer:
    """A copy of an array (or NaN of a shape) between two runs of guard words, at an odd address in items."""

    def __init__(self, content, kind=None):
        array = np.full(content, np.nan, kind) if isinstance(content, tuple) else np.asarray(content)
        word = {2: 0x7FA5, 4: 0x7FA5A5A5, 8: 0x7FF5A5A5A5A5A5A5}[array.itemsize]
        self.all = np.full(array.size + 2 * GUARD, word, f"u{array.itemsize}")
        self.array = self.all[GUARD : GUARD + array.size].view(array.dtype).reshape(array.shape)
        self.array[...] = array
        self.before = self.all.copy()

    def pointer(self):
        kind = {"u2": "uint16_t *", "f4": "float *", "f8": "double *", "i8": "int64_t *"}[self.array.dtype.str[1:]]
        return ffi.cast(kind, self.all.ctypes.data + GUARD * self.all.itemsize)

    def assert_guards(self):
        end = GUARD + self.array.size
        assert (self.all[:GUARD] == self.before[:GUARD]).all()
        assert (self.all[end:] == self.before[end:]).all()

    def assert_untouched(self):
        assert (self.all == self.before).all()


class Guarded:
    """The three products through C directly: NaN in the output before, guard words round everything.

    The methods have the engine's signatures; inputs are compared after each call; `tiers` holds the counts of the last.
    left, right: the formats of the first and the second operand; those of 16 bits are given as codes.
    """

    def __init__(self, kernel, threads, left="float32", right="float32"):
        self.operands = left, right
        names = [ffi.string(lib.refmoe_kernel_name(i)).decode() for i in range(lib.refmoe_kernel_count())]
        self.index, self.threads = names.index(kernel), threads
        self.tiers = None

    def grouped_matmul(self, rule, x, w, offsets, bias=None, acc=None):
        (E, M, K), N = w.shape, len(x)
        return self._run("grouped_matmul", rule, (E, N, M, K), offsets, [x, w, bias, acc], (N, M))

    def grouped_matmul_backward_w(self, rule, d, x, offsets, acc=None):
        E, (N, M), K = len(offsets) - 1, d.shape, x.shape[1]
        return self._run("grouped_matmul_backward_w", rule, (E, N, M, K), offsets, [d, x, acc], (E, M, K))

    def grouped_matmul_backward_x(self, rule, pairs, offsets, acc=None):
        (N, _), (E, _, K) = pairs[0][0].shape, pairs[0][1].shape
        held = [(Buffer(d), Buffer(w)) for d, w in pairs]
        table = [(d.pointer(), w.pointer(), d.array.shape[1]) for d, w in held]
        pair_type = "refmoe_pair_f32[]" if dtype(rule) is np.float32 else "refmoe_pair_f64[]"
        extra = len(pairs), ffi.new(pair_type, table)
        out = self._run("grouped_matmul_backward_x", rule, (E, N, K), offsets, [acc], (N, K), extra)
        for buffer in (b for pair in held for b in pair):
            buffer.assert_untouched()
        return out

    def _run(self, name, rule, sizes, offsets, inputs, shape, extra=()):
        held = [None if array is None else Buffer(array) for array in inputs]
        plan, out = Buffer(np.asarray(offsets, np.int64)), Buffer(shape, dtype(rule))
        pointers = [ffi.NULL if buffer is None else buffer.pointer() for buffer in held]
        narrow = dtype(rule) is np.float32
        report = ffi.new("refmoe_report *")
        function = getattr(lib, f"refmoe_{name}_f{32 if narrow else 64}")
        last = [out.pointer(), *([report] if narrow else [])]
        status = function(self.how(rule), *sizes, plan.pointer(), *extra, *pointers, *last)
        assert status == lib.REFMOE_OK
        for buffer in [plan, *(b for b in held if b is not None)]:
            buffer.assert_untouched()
        out.assert_guards()
        self.tiers = (report.rounding_test, report.grid, report.compensated, report.exact)
        self.workspace_bytes, self.paired = report.workspace_bytes, report.paired
        assert sum(self.tiers) == (out.array.size if rule.profile == "exact" else 0)
        return out.array

    def how(self, rule):
        form = lib.REFMOE_FLOAT64 if rule.profile == "float64" else CODES[rule.format]
        operands = [form] * 2 if rule.profile == "float64" else [CODES[name] for name in self.operands]
        fields = self.index, self.threads, CODES[rule.profile], form, FORCES[rule.force_tier], *operands
        return ffi.new("refmoe_how *", fields)


def differing_bits(a, b):
    """How many elements differ; every NaN must be the canonical one in `a`, and any in `b` equals it."""
    nan = np.array(np.nan, a.dtype)
    b = np.where(np.isnan(b), nan, b)
    integer = f"u{a.itemsize}"
    assert a.shape == b.shape and a.dtype == b.dtype
    return int((np.ascontiguousarray(a).view(integer) != b.view(integer)).sum())


def assert_same(case, rule, kernel, want, threads=(1, 2, 3), force=None):
    for count in threads:
        got = case.outputs(Guarded(kernel, count), rule._replace(force_tier=force))
        assert [differing_bits(a, b) for a, b in zip(got, want, strict=True)] == [0] * 7
