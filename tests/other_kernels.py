"""A layer as somebody else might have written it: float32 sums in another order, with or without a mistake.

`Other` stands where `Numerics` does; a mistake is a subclass that overrides one thing.
"""

import itertools

import numpy as np

import refmoe
from refmoe.compare import Mine, compare_tensors, find_accumulator
from refmoe.formats import round_to
from refmoe.golden.inputs import make_inputs, prepare
from refmoe.golden.run import flattened
from refmoe.golden.weights import maker_pool
from refmoe.inputs import Given
from refmoe.numerics import Gathered


class Other(refmoe.Numerics):
    """Sums from the last product to the first, rounded to float32 each time, then to the format of the stage."""

    def contract(self, name, x_rows, w, offsets=None, bias=None):
        w, bias = w if w.ndim == 3 else w[None], bias if bias is None or bias.ndim == 2 else bias[None]
        rows = [product(x_rows[r], w[e].T, None if bias is None else bias[e]) for e, r in segments(offsets, x_rows)]
        return self.stored(name, np.concatenate(rows))

    def contract_backward_x(self, name, pairs, offsets=None):
        made = [np.concatenate([product(d[r], (w if w.ndim == 3 else w[None])[e]) for e, r in segments(offsets, d)])
                for d, w in pairs]  # fmt: skip
        return self.stored(name, sum(made))

    def contract_backward_w(self, name, d_rows, x_rows, offsets=None, acc=None):
        made = [product(d_rows[r].T, x_rows[r]) for _, r in segments(offsets, d_rows)]
        return self.stored(name, made[0] if offsets is None else np.stack(made))

    def contract_rows(self, name, a, b):
        return self.stored(name, sum((a[:, k] * b[:, k] for k in reversed(range(a.shape[1]))), np.float32(0)))

    def sum(self, name, terms):
        out = np.float32(0)
        for term in reversed(terms):
            factors = [made(one) for one in (term if isinstance(term, tuple) else (term,))]
            out = out + (factors[0] * factors[1] if len(factors) > 1 else factors[0])
        return self.stored(name, out)

    def sum_rows(self, name, rows, offsets=None, start=None):
        sums = [sum(reversed(rows[r]), np.zeros(rows.shape[1], np.float32)) for _, r in segments(offsets, rows)]
        return self.stored(name, sums[0] if offsets is None else np.stack(sums))

    def stored(self, name, value):
        return round_to(np.asarray(value, np.float64), self.format_of(name))


def product(a, b, bias=None):
    out = np.zeros((a.shape[0], b.shape[1]), np.float32) + (0 if bias is None else bias)
    for k in reversed(range(a.shape[1])):
        out = out + a[:, k : k + 1] * b[k : k + 1]
    return out


def made(factor):
    """Gathered rows as an array, 0 where there is none."""
    if not isinstance(factor, Gathered):
        return factor
    if not len(factor.rows):
        return np.zeros((len(factor.index), factor.rows.shape[1]), np.float32)
    return np.where(factor.index[:, None] >= 0, factor.rows[factor.index], np.float32(0))


def segments(offsets, rows):
    ends = [0, len(rows)] if offsets is None else [int(at) for at in offsets]
    return [(e, slice(a, b)) for e, (a, b) in enumerate(itertools.pairwise(ends))]


class Case:
    """A golden case in memory, and what other implementations make of it."""

    def __init__(self, config, tokens, store="float32", arrays=None, seed=0):
        self.config, self.num, self._before = config, refmoe.Numerics(store=store), {}
        tokens, self.rows, stored = prepare(config, self.num, tokens, True, seed, arrays or {})
        with maker_pool() as pool:
            self.inputs = make_inputs(config, self.num, tokens, self.rows, stored, pool)

    def of(self, kind=Other, config=None, params=None):
        """name -> array of every tensor, from the class `kind`, or with a wrong configuration or parameters.

        Read-only, as what the same class made before is given again.
        """
        if config is not None or params is not None:
            return self._made(kind, config, params)
        if kind not in self._before:
            self._before[kind] = self._made(kind, None, None)
            for array in self._before[kind].values():
                array.flags.writeable = False
        return dict(self._before[kind])

    def _made(self, kind, config, params):
        num, x, d_y = kind(store=self.num.store), self.inputs.x, self.inputs.d_y
        config, params, given = config or self.config, params or self.inputs.params, Given(**self.inputs.given)
        record = refmoe.moe_forward(x, params, config, num, given=given)
        grads = refmoe.moe_backward(d_y, x, params, record, config, num, given=given)
        return dict(flattened("", record)) | dict(flattened("grads", grads))

    def compare(self, arrays, names=None, accumulator="f32", dtype="F32"):
        """The comparison of all tensors, or of those named."""
        mine = {n: mine_of(a, dtype) for n, a in arrays.items() if names is None or n in names}
        return compare_tensors(self.config, self.inputs, self.num, mine, find_accumulator(accumulator))


def mine_of(array, dtype="F32"):
    floats = array.dtype.kind == "f"
    return Mine(array.astype(np.float64 if floats else np.int64), dtype if floats else "I64")


def verdicts(comparison):
    """name -> verdict of what did not pass."""
    return {v.name: v.verdict for v in comparison.verdicts if v.verdict != "passed"}


def plain_config(**sections):
    sizes = {"hidden_size": 48, "intermediate_size": 24, "num_experts": 6, "top_k": 2}
    return refmoe.MoEConfig.from_dict(sizes | sections)
