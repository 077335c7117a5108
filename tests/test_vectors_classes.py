"""The three classes of the vectors: what is called exact is, and the bounds of the rest follow from the file."""

from fractions import Fraction

import numpy as np
import pytest
from other_kernels import Other, made, segments
from test_vectors import SUITES, from_file, parsed

from refmoe.compare import ACCUMULATORS
from refmoe.compare.noted import NOTHING, formats_of, last_bit
from refmoe.formats import round_to
from refmoe.golden.cases.form import Case, f32
from refmoe.golden.classes import held_to_every_bit, measure
from refmoe.golden.manifest import hexed
from refmoe.testing import assert_conforms, cases, find_case
from refmoe.testing.vectors import results

ROWS = [(f"{chapter}/{row['id']}", row) for chapter, suite in SUITES.items() for row in suite["cases"]]
EXACT = [pytest.param(id, row, id=id) for id, row in ROWS if row["class"] == "exact"]


class Narrow(Other):
    """Every product and every partial sum rounded to one format, from the last term to the first."""

    kept = "float32"

    def r(self, value):
        return round_to(np.asarray(value, np.float64), self.kept).astype(np.float64)

    def total(self, products):
        out = np.zeros(products.shape[1:])
        for one in products[::-1]:
            out = self.r(out + self.r(one))
        return out

    def product(self, a, b, bias=None):
        terms = np.moveaxis(a.astype(np.float64)[:, :, None] * b.astype(np.float64)[None], 1, 0)
        last = np.zeros((0, a.shape[0], b.shape[1])) if bias is None else np.broadcast_to(bias, terms.shape[1:])[None]
        return self.total(np.concatenate([terms, last]))

    def contract(self, name, x_rows, w, offsets=None, bias=None):
        w, bias = w if w.ndim == 3 else w[None], bias if bias is None or bias.ndim == 2 else bias[None]
        parts = [self.product(x_rows[r], w[e].T, None if bias is None else bias[e])
                 for e, r in segments(offsets, x_rows)]  # fmt: skip
        return self.stored(name, np.concatenate(parts))

    def contract_backward_x(self, name, pairs, offsets=None):
        d = np.concatenate([d for d, _ in pairs], axis=1)
        w = np.concatenate([w if w.ndim == 3 else w[None] for _, w in pairs], axis=1)
        return self.stored(name, np.concatenate([self.product(d[r], w[e]) for e, r in segments(offsets, d)]))

    def contract_backward_w(self, name, d_rows, x_rows, offsets=None, acc=None):
        parts = [self.product(d_rows[r].T, x_rows[r]) for _, r in segments(offsets, d_rows)]
        return self.stored(name, parts[0] if offsets is None else np.stack(parts))

    def contract_rows(self, name, a, b):
        return self.stored(name, self.total((a.astype(np.float64) * b).T))

    def sum(self, name, terms):
        factors = [[made(one).astype(np.float64) for one in (t if isinstance(t, tuple) else (t,))] for t in terms]
        products = np.broadcast_arrays(*(f[0] if len(f) == 1 else f[0] * f[1] for f in factors))
        return self.stored(name, self.total(np.stack(products)))

    def sum_rows(self, name, rows, offsets=None, start=None):
        parts = [self.total(rows[r].astype(np.float64)) for _, r in segments(offsets, rows)]
        return self.stored(name, parts[0] if offsets is None else np.stack(parts))


def kept_in(name):
    return type(name, (Narrow,), {"kept": name})


@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::UserWarning")
@pytest.mark.parametrize(("id", "row"), EXACT)
def test_an_exact_case_is_exact_in_any_order_and_in_every_format_it_is_offered_for(id, row):
    """By rounding every product and partial sum, which knows nothing of how the class was found."""
    case = find_case(id)
    want = results(case)
    for name in row["exact_in"]:
        for kind in (kept_in(name), Other):
            got = results(case, kind)
            assert all(np.array_equal(want[n], got[n], equal_nan=True) for n in want), (name, kind)
    for array in (*want.values(), *case.inputs.values()):
        if array.dtype.kind == "f":
            assert all(np.array_equal(round_to(array, name), array) for name in row["exact_in"])


@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::UserWarning")
def test_rounding_every_partial_sum_tells_exact_cases_from_others():
    """The reading above is no formality: what is exact in a wider format only, or in none, comes out otherwise."""
    told = 0
    for id, row in ROWS:
        if row["class"] != "invalid" and row["call"] == "routed" and "bf16" not in row.get("exact_in", ()):
            case = find_case(id)
            want, got = results(case), results(case, kept_in("bf16"))
            told += any(not np.array_equal(want[name], got[name], equal_nan=True) for name in want)
    assert told >= 8


def contract(a, b, **more):
    inputs = {"x_rows": f32([a]), "w": f32([b])}
    return measure(Case("", (), "contract", inputs, **more), inputs).exact_in


@pytest.mark.parametrize(
    ("a", "exact_in"),
    [
        ([255, 1], ("bf16", "fp16", "float32")),
        ([256, 1], ("fp16", "float32")),
        ([256, 1, -256], ("fp16", "float32")),  # the total fits, a partial sum does not
        ([2047, 1], ("fp16", "float32")),
        ([2048, 1], ("float32",)),
        ([2.0**24 - 1, 1], ("float32",)),
        ([2.0**24, 1], ()),
        ([2.0**24, 1, -(2.0**24)], ()),
        ([2.0**15, 2.0**15], ("bf16", "float32")),  # beyond fp16's largest
        ([2.0**-25, 2.0**-25], ("bf16", "float32")),  # below its least
        ([2.0**-149], ("float32",)),
        ([0.1], ("float32",)),
    ],
)
def test_the_class_sees_one_bit_too_many(a, exact_in):
    assert contract(a, [1.0] * len(a)) == exact_in
    assert contract(a[::-1], [1.0] * len(a)) == exact_in


def test_a_product_of_too_many_bits_is_not_exact():
    assert contract([4097.0], [4097.0]) == ()
    assert contract([257.0], [1.0], store="bf16") == ()  # its own store rounds it
    assert contract([15.0], [17.0]) == ("bf16", "fp16", "float32")


def test_last_bits_by_fractions():
    values = np.array([1.0, 1.5, -3.0, 2.0**-149, 0.1, 2.0**60, 0.0])
    for v, bit in zip(values, last_bit(values), strict=True):
        if v:
            whole = Fraction(v) / Fraction(2) ** int(bit)
            assert whole.denominator == 1
            assert whole.numerator % 2 == 1
    assert last_bit(values)[-1] == NOTHING
    assert formats_of(np.array(3.0), np.array(0)) == 7


# --- exact cases are held to every bit -------------------------------------------------------------------------------


def test_one_step_is_wrong_in_an_exact_case_and_right_in_a_rounded_one():
    exact = next(c for c in cases("numerics", "contract") if c.exact_in and c.comment == "nothing but a bias")
    got = results(exact)["out"]
    assert_conforms(exact, got)
    for dtype in (np.float32, np.float64):
        said = rf"^{exact.id}, exact: .*\nout is wrong(?s:.*)flag EmptySum: a contraction"
        with pytest.raises(AssertionError, match=said):
            assert_conforms(exact, np.nextafter(got, np.float32(9)).astype(dtype))
    rounded = next(c for c in cases("experts", "expert_ffn") if c.kind == "rounded")
    got = results(rounded)["gate_rows"]
    got[0, 0] = np.nextafter(got[0, 0], np.float32(9))
    assert_conforms(rounded, {"gate_rows": got})


def test_what_is_held_to_every_bit():
    every, wide = ("bf16", "fp16", "float32"), ("float32",)
    assert held_to_every_bit(every, "BF16", "bf16", "bf16")
    assert held_to_every_bit(wide, "F64", "f32", "float32")
    assert not held_to_every_bit(wide, "BF16", "f32", "float32")  # a narrower type rounds
    assert not held_to_every_bit(wide, "F32", "bf16", "float32")  # a narrower sum rounds
    assert not held_to_every_bit(wide, "F32", "mixed", "bf16")
    assert not held_to_every_bit(every, "F32", "hopper-fp8", "float32")
    assert not held_to_every_bit((), "F32", "f32", "float32")


# --- rounded cases: bounds that follow from the file ------------------------------------------------------------------


# Stages that read nothing but the case's inputs: what they are off is their own.
FIRST = {"out", "gate_rows", "up_rows", "d_hidden_rows", "routed", "d_y_rows", "d_topk_weights", "d_x_experts"}
STAGES = [(id, row) for id, row in ROWS if row["call"] in ("contract", "sum", "rows", "expert_ffn") and "sums" in row]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_terms_and_magnitudes_bound_another_order():
    """kappa(K) S + u |want| holds for float32 sums in reverse, and mostly nothing near as small would."""
    row_of = ACCUMULATORS["f32"]
    tight = 0
    for id, row in STAGES:
        case = find_case(id)
        if case.profile != "exact":
            continue
        want, got = results(case), results(case, Other)
        for name in FIRST & row["sums"].keys():
            chain = row["sums"][name]
            S = parsed(chain["magnitude"]).astype(np.float64)
            unit = {"float32": 2.0**-24, "bf16": 2.0**-8, "fp16": 2.0**-11}[case.store]
            with np.errstate(all="ignore"):
                room = row_of.kappa(chain["terms"]) * S * (1 + 2.0**-20) + 2 * unit * np.abs(want[name]) + 2.0**-140
                off = np.abs(got[name].astype(np.float64) - want[name])
            assert ((off <= room) | ~np.isfinite(want[name]) | (S >= 2.0**127)).all(), (id, name)
            tight += int((off > room / 8).any())
    assert tight >= 3


def test_magnitudes_by_fractions():
    for id, row in STAGES:
        if row["call"] != "contract" or "out" not in row["sums"]:
            continue
        inputs = from_file(row).inputs
        values = [inputs["x_rows"][0], inputs["w"][0], *([inputs["bias"]] if "bias" in inputs else [])]
        if not all(np.isfinite(v).all() for v in values):
            continue
        pairs = [(Fraction(float(a)), Fraction(float(b))) for a, b in zip(*values[:2], strict=True)]
        pairs += [(Fraction(float(b)), 1) for b in (values[2] if len(values) > 2 else [])]
        S = parsed(row["sums"]["out"]["magnitude"]).item()
        exact = sum(abs(a * b) for a, b in pairs)
        assert row["sums"]["out"]["terms"] == len(pairs)
        if np.isfinite(S):
            assert abs(Fraction(S) - exact) <= exact / 2**23 + Fraction(2) ** -149, id


def test_margins_are_those_of_the_ranked_values():
    checked = 0
    for _, row in ROWS:
        named = row["expected"].get("choice_scores", {})
        routing = row["config"].get("routing", {})
        if "margins" not in row or "values" not in named or row["call"] != "route" or "selection" in routing:
            continue
        if {"second_expert", "selection_base", "noise"} & set(routing):
            continue
        K = row["config"]["top_k"]
        ranked = -np.sort(-parsed(named).astype(np.float64), axis=-1)
        if K < ranked.shape[1]:
            with np.errstate(invalid="ignore"):
                want = (ranked[:, K - 1] - ranked[:, K]).astype(np.float32)
            assert np.array_equal(parsed(row["margins"]), want), row["comment"]
            checked += 1
    assert checked >= 25


def test_the_cases_of_the_package_are_those_of_the_files():
    for id, row in ROWS:
        case = find_case(id)
        assert (case.call, case.comment, list(case.flags)) == (row["call"], row["comment"], row["flags"]), id
        assert hexed(case.config) == row["config"], id
        for name, array in from_file(row).inputs.items():
            assert np.array_equal(case.inputs[name], array, equal_nan=array.dtype.kind == "f"), (id, name)


def test_every_case_has_a_class_and_no_class_is_empty():
    assert all((row["class"] == "invalid") == (row["result"] == "invalid") for _, row in ROWS)
    assert {row["class"] for _, row in ROWS} == {"exact", "rounded", "invalid"}
    assert all(find_case(id).kind == row["class"] for id, row in ROWS[::9])
