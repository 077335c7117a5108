"""The one door: contract, sum, evaluate, in three profiles.   Spec 6

Every stored tensor of the layer is made by one of the three methods of `Numerics`, under the name of what it makes; the
name decides its format. In `exact` and `chain` a stored value is the exact real value of its formula, rounded once
(`chain` contracts with a float32 chain instead); in `float64` everything is IEEE binary64, one operation for each
written one. NumPy and C agree in every bit.
"""

import os
import warnings
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise

import numpy as np

from .. import kernels
from ..formats import Packed, canonical_nan, is_representable
from ..refusals import require
from .arithmetic import Binary64
from .contract import NumpyEngine, Rule
from .environment import check_environment
from .named import Named as Named
from .readings import rounded_once
from .rounding import sequential_sum
from .stages import FORMAT_OF
from .terms import Gathered as Gathered
from .terms import factors_of, value_of

_DTYPES = np.dtype(np.float32), np.dtype(np.float64)
_CARRIERS = ("float32", "float64")  # formats that hold every value of the arrays they come in
STORES = {"exact": ("float32", "bf16", "fp16"), "chain": ("float32", "bf16", "fp16"), "float64": ("float64",)}


@dataclass(frozen=True)
class Numerics:
    """The arithmetic policy `num`: profile, storage format, engine.   Spec 6

    profile "exact", "chain" or "float64"; store "float32", "bf16" or "fp16" ("float64" exactly when the profile is);
    backend "auto", "c" or "numpy"; threads and kernel choose within C. force_tier sends every output of an exact
    contraction at least to the tier "compensated" or "exact"; "exact" also reads every formula in intervals.
    Raises ValueError, or ImportError if backend "c" is missing.
    """

    profile: str = "exact"
    store: str | None = None
    backend: str = "auto"
    threads: int | None = None
    kernel: str | None = None
    force_tier: str | None = None
    engine: object = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        _check_choice("profile", self.profile, STORES)
        store = STORES[self.profile][0] if self.store is None else self.store
        _check_choice("store", store, STORES[self.profile])
        _check_choice("backend", self.backend, ("auto", "c", "numpy"))
        _check_choice("force_tier", self.force_tier, (None, "compensated", "exact"))
        wanted, fix = f"None in profile {self.profile!r}", "tiers are of profile 'exact'"
        ok = self.force_tier is None or self.profile == "exact"
        require(ok, ValueError, "force_tier", wanted, repr(self.force_tier), fix)
        object.__setattr__(self, "store", store)
        object.__setattr__(self, "engine", _make_engine(self.backend, self.kernel, self.threads))

    def format_of(self, name):
        """The format of the stage `name`."""
        wanted = FORMAT_OF[name.removeprefix("shared.")]
        if self.profile == "float64":
            return "float64"
        return self.store if wanted == "store" else "float32"

    @property
    def dtype(self):
        """The NumPy type of the carriers."""
        return np.float64 if self.profile == "float64" else np.float32

    # --- contractions: Spec 6.3 ---------------------------------------------------------------------------------------

    def contract(self, name, x_rows, w, offsets=None, bias=None):
        """out[n, m] = sum_k x_rows[n, k] w[e(n), m, k] + bias[e(n), m].

        x_rows (N, K), w (E, M, K) with offsets (E+1,), or w (M, K) for one group -> (N, M)
        """
        w = self._weights(w)
        offsets = _whole(len(x_rows)) if offsets is None else offsets
        bias = bias if bias is None or bias.ndim == 2 else bias[None]
        return self._engine_for(w).grouped_matmul(self._rule(name), x_rows, w, offsets, bias=bias)

    def contract_backward_x(self, name, pairs, offsets=None):
        """out[n, k] = sum over the pairs, then over m, of d[n, m] w[e(n), m, k]: one stage.

        pairs [(d (N, M), w (E, M, K) or (M, K))] -> (N, K)
        """
        pairs = [(d, self._weights(w)) for d, w in pairs]
        offsets = _whole(len(pairs[0][0])) if offsets is None else offsets
        return self._engine_for(*(w for _, w in pairs)).grouped_matmul_backward_x(self._rule(name), pairs, offsets)

    def contract_backward_w(self, name, d_rows, x_rows, offsets=None, acc=None):
        """out[e, m, k] = sum over the rows n of e, ascending, of d_rows[n, m] x_rows[n, k] (+ acc).

        d_rows (N, M), x_rows (N, K) -> (E, M, K), or (M, K) without offsets
        """
        rule = self._rule(name)
        if offsets is not None:
            return self.engine.grouped_matmul_backward_w(rule, d_rows, x_rows, offsets, acc=acc)
        acc = None if acc is None else acc[None]
        return self.engine.grouped_matmul_backward_w(rule, d_rows, x_rows, _whole(len(d_rows)), acc=acc)[0]

    def contract_rows(self, name, a, b):
        """out[n] = sum_k a[n, k] b[n, k]: N groups of one row, so the same law as any contraction."""
        ask = getattr(self.engine, "row_products", None)
        made = ask(self._rule(name), a, b) if ask else None
        if made is not None:
            return made
        offsets = np.arange(len(a) + 1, dtype=np.int64)
        return self.engine.grouped_matmul(self._rule(name), a, b[:, None, :], offsets)[:, 0]

    def feed_forward(self, activation, x_rows, gate, up, down, offsets, weights=None, slots=None):
        """The stages of experts with few rows, each the same bits as one by one, where the engine has all in one call.

        activation: parameters of the formula "gated"; gate, up, down: w and bias, gate (None, None) for plain experts.
        slots: weights and rows (T, K) of the `weighted_sum` of y_rows, or None
        -> gate_rows, up_rows, hidden_rows, weighted_hidden_rows, y_rows, their sum; None from hidden_rows on where a
        formula is to be read again; None where there is no such call. What overrides `contract` is asked by stage.
        """
        if type(self) is not Numerics or self.profile == "float64" or self.force_tier == "exact":
            return None
        made = getattr(self._engine_for(gate[0], up[0], down[0]), "feed_forward", None)
        if made is None:
            return None
        return made(self._rule("hidden_rows"), activation, x_rows, gate, up, down, offsets, weights, slots)

    def takes_codes(self, *weights):
        """Whether one contraction takes all experts of these `Packed` weights: the engine reads their codes where they
        lie. What overrides `contract` is given arrays."""
        reads = getattr(self.engine, "reads_codes", None)
        if type(self) is not Numerics or self.profile == "float64" or reads is None:
            return False
        return all(isinstance(w, Packed) and reads(w) for w in weights) and len({w.format for w in weights}) == 1

    def _weights(self, w):
        """(E, M, K), in binary64 for the profile that computes in it; what a narrower format holds is exact there."""
        w = w if w.ndim == 3 else w[None]
        return w.astype(np.float64) if self.profile == "float64" and w.dtype == np.float32 else w

    def _engine_for(self, *weights):
        """The engine; NumPy's where weights are arrays of products beyond float32: C reads them as codes and scales."""
        wide = self.profile != "float64" and any(isinstance(w, np.ndarray) and w.dtype == np.float64 for w in weights)
        return NumpyEngine() if wide else self.engine

    def _rule(self, name):
        return Rule(self.profile, self.format_of(name), self.force_tier)

    # --- sums: Spec 6.4 -----------------------------------------------------------------------------------------------

    def sum(self, name, terms):
        """The sum of the terms; a term is a stored array or a pair of them, standing for their product.

        terms: list of arrays, `Gathered` rows or pairs of these, which broadcast to one shape -> array. `exact` and
        `chain`: the exact sum, rounded once. `float64`: in the order of the list, from +0.
        """
        if self.profile == "float64":
            with np.errstate(invalid="ignore", over="ignore", under="ignore"):
                return sequential_sum([value_of(factors_of(term), _binary64) for term in terms])
        rule, terms = self._rule(name), list(map(factors_of, terms))
        made = self.engine.sum(rule, terms)
        return NumpyEngine().sum(rule, terms) if made is None else made

    def weighted_sum(self, name, rows, weights, slot_row):
        """`sum` of weights[:, k] rows[slot_row[:, k]] over k, (T, D), where the engine has it in one; else None."""
        asked = type(self) is Numerics and self.profile != "float64" and getattr(self.engine, "weighted_sum", None)
        return asked(self._rule(name), rows, weights, slot_row) if asked else None

    def sum_rows(self, name, rows, offsets=None, start=None):
        """out[i] = start[i] + the sum of the rows offsets[i] .. offsets[i+1], as `sum` adds.

        rows (N, M), offsets (I+1,), start (I, M) or None for +0 -> (I, M); without offsets (M,) and (M,)
        """
        if offsets is None:
            start = None if start is None else start[None]
            return self.sum_rows(name, rows, _whole(len(rows)), start)[0]
        if self.profile == "float64":
            start = np.zeros((len(offsets) - 1, rows.shape[1])) if start is None else start
            return np.stack([self.sum(name, [s, *rows[a:b]]) for s, (a, b) in zip(start, pairwise(offsets))])
        start = None if start is None else start[:, None]
        ones, rule = np.ones((len(rows), 1), rows.dtype), Rule("exact", self.format_of(name), self.force_tier)
        return self.engine.grouped_matmul_backward_w(rule, ones, rows, offsets, acc=start)[:, 0]

    # --- formulas: Spec 6.5 -------------------------------------------------------------------------------------------

    def evaluate(self, name, formula, *stored, core=0, **constants):
        """formula(m, *stored, **constants), rounded once.

        The last `core` axes of each stored array belong to one instance of the formula (0: element by element,
        1: row by row, 2: the whole table); the axes before them broadcast.
        """
        made = self._compiled((name,), formula, stored, core)
        return self._interpreted(name, formula, stored, core, constants) if made is None else made[0]

    def evaluate_all(self, names, formulas, *stored):
        """The stored values of several formulas of the same arrays, read element by element.

        names: one for each of formulas.formula -> tuple of arrays
        """
        made = self._compiled(names, formulas, stored, 0)
        return made or tuple(map(lambda name, one: self.evaluate(name, one, *stored), names, formulas.formula))

    def kept_softmax(self, name, logits, topk_indices, kept, counted, c):
        """c softmax(logits at the slots that weigh), +0 elsewhere, where the engine has it in one; else None.

        logits (T, E), topk_indices (T, K), kept (T, K) or None, ids below `counted` weigh -> (T, K)
        """
        asked = type(self) is Numerics and self.profile != "float64" and self.force_tier != "exact"
        ask = getattr(self.engine, "kept_softmax", None) if asked else None
        return ask and ask(self._rule(name), logits, topk_indices, kept, counted, c)

    def _compiled(self, names, formula, stored, core):
        """What the engine makes of a formula it knows, its open elements or rows read here; None if it knows none."""
        if self.profile == "float64" or self.force_tier == "exact" or not isinstance(formula, Named):
            return None
        made = self.engine.formula(self._rule(names[0]), formula.name, formula.parameters, stored)
        formulas = formula.formula if len(names) > 1 else [formula]
        return made and tuple(
            self._completed(*result, name, one, stored, core)
            for result, name, one in zip(made, names, formulas, strict=True)
        )

    def _completed(self, out, left, name, formula, stored, core):
        if len(left):
            loops = stored[0].shape[:-core] if core else out.shape
            cores = [array.shape[array.ndim - core :] for array in stored]
            flat = [np.broadcast_to(a, loops + c).reshape(-1, *c)[left] for a, c in zip(stored, cores, strict=True)]
            out.reshape(-1, *out.shape[len(loops) :])[left] = self._interpreted(name, formula, flat, core, {})
        return out

    def _interpreted(self, name, formula, stored, core, constants):
        """A reading of the formula in NumPy."""
        stored = [np.asarray(array, np.float64) for array in stored]
        if self.profile == "float64":
            with np.errstate(all="ignore"):
                out = formula(Binary64(), *stored, **constants)
            return canonical_nan(np.asarray(out, np.float64) + 0.0)
        return rounded_once(name, formula, stored, core, constants, self._rule(name))

    # --- the door -----------------------------------------------------------------------------------------------------

    def check_stored(self, name, array, shape, is_read=True):
        """The array itself if it can be the stored tensor `name`, else an error that says what is wrong with it.

        Raises TypeError for a wrong type, dtype or byte order, ValueError for a wrong shape or, where anybody reads
        them, a value out of format.
        """
        shape = tuple(shape)
        if not is_plain(array):  # words take longer than the comparison: here and below
            wanted, got = f"a NumPy array of shape {shape}", type(array).__name__
            require(False, TypeError, name, wanted, got, "convert it with numpy.asarray")
        if array.dtype != _DTYPES[self.profile == "float64"]:  # in the other byte order it differs
            kind = np.dtype(self.dtype).name
            wanted, fix = f"native {kind} in profile {self.profile!r}", f"use .astype(numpy.{kind})"
            require(False, TypeError, name, wanted, array.dtype.str, fix)
        if array.shape != shape:
            require(False, ValueError, name, f"shape {shape}", array.shape, "check its axes")
        if is_read and self.store not in _CARRIERS:
            self._check_values(name, array)
        return array

    def _check_values(self, name, array):
        store = self.format_of(name.rpartition(".")[2])
        fits = store in _CARRIERS or is_representable(array, store)
        fix = f"round it with refmoe.formats.round_to(array, {store!r})"
        require(fits, ValueError, name, f"values that {store} can represent", "others", fix)

    def check_environment(self):
        """Raises RuntimeError unless this thread rounds to nearest even and keeps subnormals.   Spec 6.1"""
        check_environment()


def by_engine(num, name, *arguments):
    """What the engine of a policy makes in one call of integers or copies of bits; None where it has no such method, or
    not for these arrays, and where `num` has no engine: then the caller makes it."""
    asked = getattr(getattr(num, "engine", None), name, None)
    return asked and asked(*arguments)


def is_plain(array):
    """Is it an array whose elements are its values, axis by axis?"""
    return type(array) is np.ndarray or (isinstance(array, np.ndarray) and not isinstance(array, _UNLIKE_ARRAYS))


_UNLIKE_ARRAYS = (np.ma.MaskedArray, np.matrix)  # a mask hides elements, `*` of matrices is another product


def _check_choice(name, value, allowed):
    ok = isinstance(value, str | None) and value in allowed
    require(ok, ValueError, name, f"one of {', '.join(map(str, allowed))}", repr(value), "choose one of these")


def _make_engine(backend, kernel, threads):
    asked = os.environ.get("REFMOE_BACKEND", "auto") if backend == "auto" else backend
    _check_choice("REFMOE_BACKEND", asked, ("auto", "c", "numpy"))
    if asked == "numpy":
        fix = "kernels are of backend 'c': leave it out"
        require(kernel is None, ValueError, "kernel", "None with backend 'numpy'", repr(kernel), fix)
        return NumpyEngine()
    if asked == "auto" and kernel is None and kernels.build_error() is not None:  # who names a kernel wants C
        _warn_once(kernels.build_error())
        return NumpyEngine()
    return kernels.load(kernel=kernel, threads=threads)


@lru_cache(maxsize=1)
def _warn_once(cause):
    warnings.warn(
        f"refmoe runs on NumPy alone, which is slower but gives the same bits: {cause}", RuntimeWarning, stacklevel=5
    )


def _whole(rows):
    return np.array([0, rows], np.int64)


def _binary64(array):
    return np.asarray(array, np.float64)
