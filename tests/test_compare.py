"""Verdicts on other implementations: what is right passes, what is wrong is told, the first of it by name."""

import re
from pathlib import Path

import numpy as np
import pytest
from other_kernels import Case, Other, mine_of, plain_config, verdicts

import refmoe
from refmoe.compare import ACCUMULATORS, find_accumulator
from refmoe.compare.rough import RoughArithmetic
from refmoe.compare.stages import is_made, passage
from refmoe.compare.trends import row_moments, trends_of
from refmoe.golden.run import flattened
from refmoe.inputs import Given

PRESETS = ["deepseek-v3", "gpt-oss-20b", "inkling", "nemotron-3-super", "moe-plus-plus", "remoe"]


@pytest.fixture(scope="module", params=["float32", "bf16"])
def case(request):
    return Case(plain_config(experts={"shared_intermediate_size": 16}), 96, request.param)


class Scaled(Other):
    """One expert's rows are a hundredth too large."""

    def contract(self, name, x_rows, w, offsets=None, bias=None):
        out = super().contract(name, x_rows, w, offsets, bias)
        if name == "y_rows" and len(offsets) > 2:
            out[int(offsets[3]) : int(offsets[4])] *= np.float32(1.01)
        return self.stored(name, out)


class NoLastProduct(Other):
    """The last product of a sum is left out."""

    def contract(self, name, x_rows, w, offsets=None, bias=None):
        return super().contract(name, x_rows[:, :-1], w[..., :-1], offsets, bias)


class Doubled(Other):
    """The weight is applied twice."""

    def sum(self, name, terms):
        twice = [(t[0] * t[0], t[1]) if name == "routed" else t for t in terms]
        return super().sum(name, twice)


class Nan(Other):
    """A padded row leaks."""

    def contract(self, name, x_rows, w, offsets=None, bias=None):
        out = super().contract(name, x_rows, w, offsets, bias)
        if name == "up_rows":
            out[-1] = np.nan
        return out


# --- what is right passes --------------------------------------------------------------------------------------------


def test_another_order_in_float32_passes_whole_and_in_part(case):
    arrays = case.of()
    assert verdicts(case.compare(arrays)) == {}
    for part in (["y"], ["grads.d_x"], ["experts.hidden_rows", "grads.params.w_down"]):
        assert verdicts(case.compare(arrays, part)) == {}


def test_the_law_itself_passes_with_every_element_matched(case):
    comparison = case.compare(case.of(refmoe.Numerics))
    assert verdicts(comparison) == {}
    assert all(v.matched == 1.0 for v in comparison.verdicts)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("store", ["float32", "bf16"])
def test_families_pass_in_another_order(preset, store):
    case = Case(refmoe.load_preset(preset, scale="minimal"), 16, store)
    assert verdicts(case.compare(case.of())) == {}


def test_the_passage_is_the_layer_bit_for_bit_and_knows_every_stage():
    for preset in PRESETS:
        case = Case(refmoe.load_preset(preset, scale="minimal"), 12)
        run = passage(case.config, case.inputs, case.num, find_accumulator("f32"))
        assert not run.lost
        given = Given(**case.inputs.given)
        record = refmoe.moe_forward(case.inputs.x, case.inputs.params, case.config, case.num, given=given)
        for name, array in flattened("", record):
            assert np.asarray(run.tensors[name]).tobytes() == array.tobytes(), name
            assert array.dtype.kind != "f" or name == "routing.margin" or is_made(run.tensors[name]), name


# --- what is wrong is told -------------------------------------------------------------------------------------------


def test_one_expert_a_hundredth_too_large_is_named_from_y_alone(case):
    arrays = case.of(Scaled)
    assert arrays["plan.tokens_per_expert"][3] >= 32 - 8
    only_y = case.compare(arrays, ["y"])
    assert only_y.first.verdict in ("suspicious", "wrong")
    assert only_y.first.worst_expert == 3
    assert not only_y.passed()
    whole = case.compare(arrays).first
    assert (whole.name, whole.worst_expert) == ("experts.y_rows", 3)


@pytest.mark.parametrize(
    ("kind", "first"), [(NoLastProduct, "routing.logits"), (Doubled, "routed"), (Nan, "experts.up_rows")]
)
def test_the_first_wrong_stage_is_named_and_the_rest_judged_on_its_own_inputs(case, kind, first):
    comparison = case.compare(case.of(kind))
    assert (comparison.first.name, comparison.first.verdict) == (first, "wrong")
    if kind is Doubled:
        assert verdicts(comparison) == {"routed": "wrong"}
        y = next(v for v in comparison.verdicts if v.name == "y")
        assert y.inherited > 10 * y.added


def test_one_bit_of_a_copy_is_wrong(case):
    arrays = case.of()
    rows = arrays["experts.x_rows"] = arrays["experts.x_rows"].copy()
    rows[5, 7] = np.nextafter(rows[5, 7], np.float32(9))
    first = case.compare(arrays).first
    assert (first.name, first.verdict, first.place) == ("experts.x_rows", "wrong", (5, 7))


def test_what_the_accumulator_may_do_decides():
    case = Case(plain_config(), 64)
    exact = case.of(refmoe.Numerics)
    coarse = {n: a * np.float32(1 + 2**-18) if a.dtype.kind == "f" and n == "experts.gate_rows" else a
              for n, a in exact.items()}  # fmt: skip
    assert case.compare(coarse, ["experts.gate_rows"]).first is not None
    assert case.compare(coarse, ["experts.gate_rows"], accumulator="bf16").first is None


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_where_the_accumulator_says_nothing_what_is_not_finite_is_wrong_still(bad):
    """Without the selection no token's row is judged by its numbers, as each may route otherwise; with it they are."""
    case = Case(plain_config(hidden_size=256), 8)
    arrays, names = case.of(), ["experts.gate_rows"]
    assert case.compare(arrays, names, accumulator="bf16").first is None
    rows = arrays["experts.gate_rows"] = arrays["experts.gate_rows"].copy()
    rows[2, 3] = bad
    for known in (names, [*names, "routing.topk_indices"]):
        comparison = case.compare(arrays, known, accumulator="bf16")
        assert comparison.excused == (8 if known is names else 0)
        assert (comparison.first.verdict, comparison.first.place, comparison.first.of_rigorous) == ("wrong", (2, 3), 0)


@pytest.mark.parametrize(("heavy", "told"), [(15, False), (16, True)])
def test_a_trend_is_told_from_sixteen_elements_of_equal_weight(heavy, told):
    value = np.zeros((4, 16))
    value.flat[:heavy] = 1.0
    (trend,) = trends_of(row_moments(value / 64, value, 0 * value).all(), [-1], 2.0**-24, 0.0, True)
    assert (trend.slope, trend.excess > 1, np.isfinite(trend.slope_limit)) == (1 / 64, told, told)


# --- selection -------------------------------------------------------------------------------------------------------


def test_a_wrong_choice_is_wrong_and_a_tie_is_free():
    case = Case(plain_config(), 16)
    arrays = case.of()
    chosen = arrays["routing.topk_indices"] = arrays["routing.topk_indices"].copy()
    chosen[4, 1] = next(e for e in range(6) if e not in chosen[4])
    comparison = case.compare(arrays, ["routing.topk_indices"])
    assert comparison.first.verdict == "wrong"
    assert "token 4" in comparison.first.note


def test_equal_scores_may_go_either_way():
    logits = np.zeros((8, 6), np.float32)
    logits[:, 2] = 1
    case = Case(plain_config(), None, arrays={"x": np.ones((8, 48), np.float32), "logits": logits})
    arrays = case.of()
    assert (arrays["routing.topk_indices"] == [2, 0]).all()
    swapped = np.tile(np.array([2, 5]), (8, 1))
    comparison = case.compare({"routing.topk_indices": swapped})
    assert (comparison.passed(), comparison.swapped, comparison.free) == (True, 8, 8)
    blind = case.compare(arrays, ["y"])
    assert blind.excused == 8
    assert not case.compare({"routing.topk_indices": np.tile(np.array([0, 5]), (8, 1))}).passed()


def test_a_selection_that_names_an_expert_twice_or_none_there_is_is_wrong():
    case = Case(plain_config(), 8)
    for bad in ([1, 1], [0, 6]):
        first = case.compare({"routing.topk_indices": np.tile(np.array(bad), (8, 1))}).first
        assert first.verdict == "wrong"
        assert "token 0 names an expert twice" in first.note or "expected ids" in first.note


# --- what cannot be judged -------------------------------------------------------------------------------------------


def test_shapes_and_types_are_refused_by_name():
    case = Case(plain_config(), 8)
    with pytest.raises(ValueError, match=r"y: expected shape \(8, 48\), got \(48, 8\)"):
        case.compare({"y": np.zeros((48, 8), np.float32)})
    with pytest.raises(ValueError, match=r"plan.row_slot: expected integers, got F32"):
        case.compare({"plan.row_slot": np.zeros(16, np.float32)})


def test_the_way_back_is_computed_only_where_it_is_judged():
    case = Case(plain_config(), 8)
    arrays = case.of()
    assert case.compare(arrays, ["y"]).own.grads is None
    assert case.compare(arrays, ["grads.d_x"]).own.grads is not None


def test_unknown_and_missing_tensors_are_listed():
    case = Case(plain_config(), 8)
    comparison = case.compare({"y": case.of()["y"], "z": np.zeros(3, np.float32)})
    assert comparison.unknown == ["z"]
    assert "routed" in comparison.missing
    assert "y" not in comparison.missing


# --- bounds ----------------------------------------------------------------------------------------------------------


def test_the_bound_of_a_contraction_is_kappa_times_the_magnitude():
    case, row = Case(plain_config(), 8), find_accumulator("f32")
    logits = passage(case.config, case.inputs, case.num, row).tensors["routing.logits"]
    size = np.abs(case.inputs.x.astype(np.float64)) @ np.abs(case.inputs.params.w_router.astype(np.float64)).T
    assert np.allclose(logits.part("allowed"), row.kappa(48) * size, rtol=1e-6)
    square = case.inputs.x.astype(np.float64) ** 2 @ case.inputs.params.w_router.astype(np.float64).T ** 2
    assert np.allclose(logits.part("spread"), 48 * 2.0**-48 * square, rtol=1e-6)


def test_measured_errors_stay_within_the_rigorous_bound_and_reach_a_share_of_the_other():
    case = Case(plain_config(), 64)
    shares = [v.of_statistical for v in case.compare(case.of()).verdicts if v.of_statistical]
    assert max(shares) < 1
    assert max(shares) > 0.02, "a bound that is never near says nothing"


def test_accumulators_rise_with_length_and_say_when_they_say_nothing():
    for row in ACCUMULATORS.values():
        assert row.kappa(64) <= row.kappa(4096)
        assert row.source
    assert find_accumulator("bf16").kappa(256) == np.inf
    with pytest.raises(ValueError, match="--accumulator: expected one of f64, f32"):
        find_accumulator("f31")


@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_tanh", "softmax", "sqrt_softplus", "relu"])
def test_formulas_in_float32_stay_within_what_their_operations_may_do(name):
    z = np.random.default_rng(1).normal(size=(64, 8)).astype(np.float32) * 3
    m = RoughArithmetic(2.0**-24)
    rough = getattr(m, name)(m.array(z.astype(np.float64), 1e-6))
    moved = getattr(m, name)(m.array(z.astype(np.float64) + 1e-6, 0.0)).v
    assert (np.abs(moved - rough.v) <= rough.e).all()
    assert rough.e.max() < 1e-3


def test_mine_keeps_integers_whole():
    assert mine_of(np.arange(3)).dtype == "I64"


def test_the_law_lists_the_accumulators_there_are():
    text = (Path(__file__).parent.parent / "spec/7-golden.md").read_text(encoding="utf-8")
    table = text.partition("| accumulator |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `([\w-]+)` \|", table, re.M) == list(ACCUMULATORS)


def test_a_selection_that_follows_from_other_scores_is_read_by_the_stages_after_it():
    """Scores that differ within their bounds may rank otherwise; the rows then stand in another order."""
    case = Case(plain_config(), 32)
    shifted = case.inputs.params._replace(w_router=case.inputs.params.w_router[::-1].copy())
    arrays = case.of(params=shifted)
    names = verdicts(case.compare(arrays))
    assert names.pop("routing.logits") == "wrong"
    assert all(name.startswith("grads.") for name in names), names


def test_one_tile_of_rows_is_named():
    """Sixteen rows of an expert, each element well within its bound."""
    case = Case(plain_config(), 96)
    arrays, offsets = case.of(), case.of(refmoe.Numerics)["plan.expert_offsets"]
    start = int(offsets[np.diff(offsets).argmax()]) + 16
    rows = arrays["experts.gate_rows"].copy()
    rows[start : start + 16] *= np.float32(1 + 2**-21)
    first = case.compare({"experts.gate_rows": rows}).first
    assert (first.verdict, first.trends.worst.rows) == ("suspicious", (start, start + 15))
    assert first.of_statistical < 1
