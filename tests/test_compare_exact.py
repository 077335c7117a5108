"""Where every partial sum is a number of the accumulator no implementation may miss a bit; elsewhere it may."""

from itertools import permutations

import numpy as np
import pytest
from other_kernels import Case, plain_config, verdicts

from refmoe.compare import ACCUMULATORS
from refmoe.compare.exactness import adds_exactly, quantum, significand
from refmoe.formats import round_to

LINEAR = ("routing.logits", "experts.x_rows", "experts.up_rows", "experts.hidden_rows", "experts.y_rows")


@pytest.fixture(scope="module")
def dyadic():
    """Plain relu experts over small integers times powers of two; nothing but the weights needs a rounding."""
    rng = np.random.default_rng(0)
    shapes = {"x": (12, 16), "d_y": (12, 16), "w_router": (6, 16), "w_up": (6, 8, 16), "w_down": (6, 16, 8)}
    arrays = {name: rng.integers(-9, 10, shape).astype(np.float32) / 4 for name, shape in shapes.items()}
    sizes = {"hidden_size": 16, "intermediate_size": 8}
    return Case(plain_config(**sizes, experts={"gated": False, "activation": "relu"}), None, arrays=arrays)


def test_linear_stages_of_small_integers_are_exact_and_another_order_has_their_bits(dyadic):
    comparison = dyadic.compare(dyadic.of())
    assert verdicts(comparison) == {}
    exact = {v.name: v.exact / v.elements for v in comparison.verdicts}
    assert all(exact[name] == 1 for name in LINEAR)
    assert exact["routing.topk_weights"] == 0, "a softmax is not"


@pytest.mark.parametrize("name", LINEAR)
def test_the_last_bit_of_an_exact_stage_is_wrong(dyadic, name):
    array = dyadic.of()[name].copy()
    array[2, 3] = np.nextafter(array[2, 3], np.float32(9))
    first = dyadic.compare({name: array}).first
    assert (first.name, first.verdict, first.place) == (name, "wrong", (2, 3))


def test_the_last_bit_of_a_rounded_stage_is_not():
    case = Case(plain_config(), 12)
    array = case.of()["experts.up_rows"].copy()
    array[2, 3] = np.nextafter(array[2, 3], np.float32(9))
    assert case.compare({"experts.up_rows": array}).passed()


def test_a_narrow_submission_may_round_what_it_cannot_hold(dyadic):
    rows = dyadic.of()["experts.y_rows"]
    narrow = round_to(rows.astype(np.float64), "bf16")
    verdict = dyadic.compare({"experts.y_rows": narrow}, dtype="BF16").verdicts[0]
    assert verdict.verdict == "passed"
    assert 0 < (narrow != rows).sum() <= verdict.elements - verdict.exact


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "F8_E4M3", "F8_E5M2", "F8_E8M0"])
def test_every_type_of_a_submission_can_be_judged(dyadic, dtype):
    values = np.full_like(dyadic.of()["experts.y_rows"], 0.5)
    assert dyadic.compare({"experts.y_rows": values}, dtype=dtype).first.verdict == "wrong"


@pytest.mark.parametrize(("name", "bits"), [("float32", 24), ("fp16", 11), ("bf16", 8)])
def test_the_limit_is_where_a_sum_begins_to_depend_on_its_order(name, bits):
    def exact(*terms):
        return adds_exactly([(np.array(terms, float),)], np.abs(terms).sum(), bits, name)

    def sums(*terms):
        totals = set()
        for order in permutations(terms):
            total = 0.0
            for term in order:
                total = float(round_to(np.float64(total + term), name))
            totals.add(total)
        return totals

    whole = 2.0**bits
    for terms in [(whole / 2, whole / 4, 1, -1, 3), (whole - 4, 3, 1), (-whole / 2, 1, whole / 4 - 1)]:
        assert exact(*terms)
        assert sums(*terms) == {sum(terms)}
    assert not exact(whole, 1, 1)
    assert len(sums(whole, 1, 1)) == 2


def test_neither_overflow_nor_underflow_is_exact():
    one = np.ones(4)
    assert not adds_exactly([(one * 32768, one)], 4 * 32768.0, 11, "fp16")
    assert adds_exactly([(one * 8192, one)], 4 * 8192.0, 11, "fp16")
    tiny = 2.0**-75
    assert adds_exactly([(one * tiny, one * 2 * tiny)], 8 * tiny**2, 24, "float32")
    assert not adds_exactly([(one * tiny / 4, one * tiny)], tiny**2, 24, "float32")
    assert not adds_exactly([(one * np.inf, one)], np.inf, 24, "float32")
    assert not adds_exactly([(one * np.nan, one)], np.nan, 24, "float32")


def test_a_long_operand_is_read_to_its_end():
    long = np.ones(1000)
    assert adds_exactly([(long, long)], 1000.0, 24, "float32")
    long[-1] = 1 + 2.0**-20
    assert not adds_exactly([(long, long)], 1000.0, 24, "float32")


def test_operands_that_are_cut_are_not_exact():
    row = ACCUMULATORS["tf32"]
    held, cut = (np.array([1.0, 1 + 2.0**-last]) for last in (10, 11))
    assert adds_exactly([(held, held)], 4.0, *row.exact, row.operands)
    assert not adds_exactly([(cut, np.ones(2))], 4.0, *row.exact, row.operands)


def test_quanta_and_significands():
    values = np.array([0.0, 12.0, -0.375, 2.0**-149, 5e-324, 1 + 2.0**-52])
    assert [quantum(values[i : i + 1]) for i in range(6)] == [np.inf, 2, -3, -149, -1074, -52]
    assert [significand(values[i : i + 1]) for i in range(6)] == [0, 2, 2, 1, 1, 53]
