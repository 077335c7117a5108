"""What the kernels must give, from rational arithmetic alone, and a way to call them with every buffer under guard.

Nothing here imports the package's own arithmetic: rounding, fused multiply-add and the three products are written again, an
output at a time, over `Fraction`.
"""

import math
from collections import namedtuple
from fractions import Fraction

import numpy as np

from refmoe import _kernels

ffi, lib = _kernels.ffi, _kernels.lib
Rule = namedtuple("Rule", "profile format force_tier", defaults=(None,))
# precision, exponent of the least normal number, exponent of the first power of two beyond the largest finite number
FORMATS = {"float32": (24, -126, 128), "bf16": (8, -126, 128), "fp16": (11, -14, 16)}
CODES = {"exact": lib.REFMOE_EXACT, "chain": lib.REFMOE_CHAIN, "float64": lib.REFMOE_UNFUSED,
         "float32": lib.REFMOE_FLOAT32, "bf16": lib.REFMOE_BF16, "fp16": lib.REFMOE_FP16}
FORCES = {None: lib.REFMOE_FORCE_NOTHING, "compensated": lib.REFMOE_FORCE_COMPENSATED, "exact": lib.REFMOE_FORCE_EXACT}
GUARD = 29  # items on each side; odd, so that no buffer is aligned to a vector


# ---- one output --------------------------------------------------------------------------------------------------------

def power(exponent):
    return Fraction(2) ** exponent


def round_exact(q, name):
    """The number of the format nearest to the fraction, half to even; q = 0 is +0; beyond the largest, infinity."""
    precision, least, beyond = FORMATS[name]
    if q == 0:
        return 0.0
    size = abs(q)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent -= size < power(exponent)
    quantum = power(max(exponent, least) - precision + 1)
    rounded = round(size / quantum) * quantum  # Fraction rounds half to even
    return math.copysign(math.inf if rounded >= power(beyond) else float(rounded), q)


def exact_sum(terms, addends, name):
    """terms: pairs of floats; addends: floats -> the stored value."""
    parts = [a * b for a, b in terms if not math.isfinite(a * b)] + [c for c in addends if not math.isfinite(c)]
    if parts:
        return sum(parts)  # infinities of one sign, or NaN
    return round_exact(sum((Fraction(a) * Fraction(b) for a, b in terms), sum(map(Fraction, addends), Fraction(0))), name)


def fused(a, b, c):
    """fma(a, b, c) in float32."""
    if not (math.isfinite(a) and math.isfinite(b) and math.isfinite(c)):
        return a * b + c
    q = Fraction(a) * Fraction(b) + Fraction(c)
    return round_exact(q, "float32") if q else a * b + c if a * b == 0 else 0.0


def chain_sum(terms, acc, bias, name):
    total = 0.0 if acc is None else acc
    for a, b in terms:
        total = fused(a, b, total)
    total = total if bias is None else fused(1.0, total, bias)
    if name == "float32" or total == 0 or not math.isfinite(total):
        return total
    return round_exact(Fraction(total), name)


def unfused_sum(terms, acc, bias):
    total = 0.0 if acc is None else acc
    for a, b in terms:
        total = total + a * b
    return total if bias is None else total + bias


def one_output(rule, terms, acc, bias):
    if rule.profile == "exact":
        return exact_sum(terms, [v for v in (acc, bias) if v is not None], rule.format)
    if rule.profile == "chain":
        return chain_sum(terms, acc, bias, rule.format)
    return unfused_sum(terms, acc, bias)


# ---- the three products ------------------------------------------------------------------------------------------------

def product(rule, a, b, acc, bias):
    """out[i, j] for a (R, L), b (L, C), acc (R, C) or None, bias (C,) or None, through one_output."""
    out = np.empty((a.shape[0], b.shape[1]), dtype(rule))
    rows, columns = a.tolist(), b.T.tolist()
    for i, j in np.ndindex(out.shape):
        at = None if acc is None else float(acc[i, j])
        out[i, j] = one_output(rule, list(zip(rows[i], columns[j], strict=True)), at, None if bias is None else float(bias[j]))
    return out


def dtype(rule):
    return np.float64 if rule.profile == "float64" else np.float32


def grouped_matmul(rule, x, w, offsets, bias=None, acc=None):
    out = np.empty((len(x), w.shape[1]), dtype(rule))
    for e in range(len(w)):
        rows = slice(offsets[e], offsets[e + 1])
        out[rows] = product(rule, x[rows], w[e].T, None if acc is None else acc[rows], None if bias is None else bias[e])
    return out


def grouped_matmul_backward_x(rule, pairs, offsets, acc=None):
    out = np.empty((len(pairs[0][0]), pairs[0][1].shape[2]), dtype(rule))
    for e in range(len(offsets) - 1):
        rows = slice(offsets[e], offsets[e + 1])
        a, b = np.concatenate([d[rows] for d, _ in pairs], axis=1), np.concatenate([w[e] for _, w in pairs])
        out[rows] = product(rule, a, b, None if acc is None else acc[rows], None)
    return out


def grouped_matmul_backward_w(rule, d, x, offsets, acc=None):
    out = np.empty((len(offsets) - 1, d.shape[1], x.shape[1]), dtype(rule))
    for e in range(len(out)):
        rows = slice(offsets[e], offsets[e + 1])
        out[e] = product(rule, d[rows].T, x[rows], None if acc is None else acc[e], None)
    return out


# ---- calls under guard -------------------------------------------------------------------------------------------------

class Buffer:
    """A copy of an array (or NaN of a shape) between two runs of guard words, at an odd address in items."""

    def __init__(self, content, kind=None):
        array = np.full(content, np.nan, kind) if isinstance(content, tuple) else np.asarray(content)
        word = {4: 0x7FA5A5A5, 8: 0x7FF5A5A5A5A5A5A5}[array.itemsize]
        self.all = np.full(array.size + 2 * GUARD, word, f"u{array.itemsize}")
        self.array = self.all[GUARD : GUARD + array.size].view(array.dtype).reshape(array.shape)
        self.array[...] = array
        self.before = self.all.copy()

    def pointer(self):
        kind = {"f4": "float *", "f8": "double *", "i8": "int64_t *"}[self.array.dtype.str[1:]]
        return ffi.cast(kind, self.all.ctypes.data + GUARD * self.all.itemsize)

    def assert_guards(self):
        size = self.array.size
        assert (self.all[:GUARD] == self.before[:GUARD]).all() and (self.all[GUARD + size :] == self.before[GUARD + size :]).all()

    def assert_untouched(self):
        assert (self.all == self.before).all()


class Guarded:
    """The three products through C directly: NaN in the output before, guard words round everything, inputs compared after.

    The methods have the engine's signatures; `tiers` holds the counts of the last call, `statuses` of every call.
    """

    def __init__(self, kernel, threads):
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
        out = self._run("grouped_matmul_backward_x", rule, (E, N, K), offsets, [acc], (N, K), (len(pairs), ffi.new(pair_type, table)))
        for buffer in (b for pair in held for b in pair):
            buffer.assert_untouched()
        return out

    def _run(self, name, rule, sizes, offsets, inputs, shape, extra=()):
        held = [None if array is None else Buffer(array) for array in inputs]
        plan, out = Buffer(np.asarray(offsets, np.int64)), Buffer(shape, dtype(rule))
        pointers = [ffi.NULL if buffer is None else buffer.pointer() for buffer in held]
        narrow = dtype(rule) is np.float32
        tiers = ffi.new("refmoe_tiers *")
        function = getattr(lib, f"refmoe_{name}_f{32 if narrow else 64}")
        status = function(self.how(rule), *sizes, plan.pointer(), *extra, *pointers, out.pointer(), *([tiers] if narrow else []))
        assert status == lib.REFMOE_OK
        for buffer in [plan, *(b for b in held if b is not None)]:
            buffer.assert_untouched()
        out.assert_guards()
        self.tiers = (tiers.rounding_test, tiers.grid, tiers.compensated, tiers.exact)
        assert sum(self.tiers) == (out.array.size if rule.profile == "exact" else 0)
        return out.array

    def how(self, rule):
        form = lib.REFMOE_FLOAT64 if rule.profile == "float64" else CODES[rule.format]
        return ffi.new("refmoe_how *", (self.index, self.threads, CODES[rule.profile], form, FORCES[rule.force_tier]))


def differing_bits(a, b):
    """How many elements differ; every NaN must be the canonical one in `a`, and any in `b` equals it."""
    nan = np.array(np.nan, a.dtype)
    b = np.where(np.isnan(b), nan, b)
    integer = f"u{a.itemsize}"
    assert a.shape == b.shape and a.dtype == b.dtype
    return int((np.ascontiguousarray(a).view(integer) != b.view(integer)).sum())
