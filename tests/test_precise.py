"""Intervals and functions of any precision: the truth is inside, ends are narrow, exact points are exact."""

import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refmoe.numerics import fixed_point
from refmoe.numerics.precise import Interval, Precise, PrecisionNeeded, round_interval

TRUTH = {
    "exp": mpmath.exp,
    "expm1": mpmath.expm1,
    "log": mpmath.log,
    "log1p": mpmath.log1p,
    "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)),
    "tanh": mpmath.tanh,
    "softplus": lambda x: max(x, 0) + mpmath.log1p(mpmath.exp(-abs(x))),
    "erf": mpmath.erf,
    "erfc": mpmath.erfc,
    "sqrt": mpmath.sqrt,
}
AT_ZERO = {"exp": 1, "expm1": 0, "log1p": 0, "sigmoid": Fraction(1, 2), "tanh": 0, "erf": 0, "erfc": 1, "sqrt": 0}


def exactly(fraction):
    return mpmath.mpf(fraction.numerator) / fraction.denominator


def precise_arguments(name, rng):
    """80 arguments below 30 in magnitude, of every size down to 2^-300; positive where the domain asks for it."""
    small = rng.uniform(-1, 1, 25) * 2.0 ** rng.integers(-300, 0, 25)
    x = np.concatenate([rng.normal(size=30), rng.uniform(-30, 30, 25), small])
    if name in ("log", "sqrt"):
        near_one = 1 + rng.normal(size=20) * 2.0 ** -rng.integers(1, 52, 20)
        x = np.abs(np.concatenate([x, near_one, 2.0 ** rng.uniform(-1000, 1000, 20)]))
    return np.where(x <= -1, -x, x) if name == "log1p" else x


@pytest.mark.parametrize("bits", [60, 200, 370])
@pytest.mark.parametrize("name", TRUTH)
def test_intervals_contain_the_truth_and_are_narrow(name, bits):
    m = Precise(bits)
    x = precise_arguments(name, np.random.default_rng(bits))
    with mpmath.workdps(620):
        for value, interval in zip(x.tolist(), getattr(m, name)(m.array(x)), strict=True):
            truth = TRUTH[name](mpmath.mpf(value))
            if interval.exact:
                assert exactly(interval.lo) == truth
            else:
                assert exactly(interval.lo) < truth < exactly(interval.hi)
                assert interval.hi - interval.lo <= abs(interval.lo) / 2 ** (bits - 2)


def test_intervals_at_1600_bits_and_of_rational_arguments():
    with mpmath.workdps(900):
        for name in TRUTH:
            for x in (Fraction(1, 3), Fraction(22, 7), Fraction(9, 8), Fraction(100, 3)):
                interval = getattr(Precise(1600), name)(Interval(x))
                assert exactly(interval.lo) < TRUTH[name](exactly(x)) < exactly(interval.hi)
                assert interval.hi - interval.lo < abs(interval.lo) / 2**1590


@pytest.mark.parametrize("name", TRUTH)
def test_an_interval_argument_is_carried_through(name):
    """The values at points inside an interval lie inside the interval of its values."""
    m = Precise(200)
    x = Interval(Fraction(5, 4), Fraction(3, 2), 200)
    image = getattr(m, name)(x)
    for inside in (1.25, 1.2500001, 1.4, 1.5):
        point = getattr(m, name)(Interval(inside))
        assert image.lo < point.hi and point.lo < image.hi
    assert not image.exact


def test_exact_points_stay_exact():
    m = Precise(200)
    zero = m.constant(0)
    for name, value in AT_ZERO.items():
        got = getattr(m, name)(zero)
        assert got.exact and got.lo == value
    assert m.log(m.constant(1)).is_zero
    assert m.sqrt(m.constant(Fraction(49, 4))).lo == Fraction(7, 2) and m.sqrt_constant(9).exact
    assert not m.sqrt_constant(2).exact


def test_limits_are_quick_and_one_sided():
    m = Precise(200)
    low, high = m.constant(-1e30), m.constant(1e30)
    for name in ("exp", "sigmoid", "softplus"):
        tail = getattr(m, name)(low)
        assert tail.lo == 0 < tail.hi < Fraction(1, 2**1100)
    assert m.erfc(high).lo == 0 < m.erfc(high).hi < Fraction(1, 2**1100)
    for one in (m.sigmoid(high), m.tanh(high), m.erf(high)):
        assert one.lo < 1 == one.hi
    assert m.tanh(low).lo == -1 == m.expm1(low).lo and m.erfc(low).hi == 2
    assert m.softplus(high).lo == Fraction(1e30) < m.softplus(high).hi
    for name in ("exp", "expm1"):
        with pytest.raises(OverflowError):
            getattr(m, name)(high)


def test_constants():
    with mpmath.workdps(1300):
        for q in (64, 200, 1000, 4000):
            assert abs(fixed_point.fixed_pi(q) - mpmath.pi * mpmath.mpf(2) ** q) < 1
            assert abs(fixed_point.fixed_ln2(q) - mpmath.log(2) * mpmath.mpf(2) ** q) < 1
        assert exactly(Precise(200).pi.lo) < mpmath.pi < exactly(Precise(200).pi.hi)


fractions = st.fractions(-1000, 1000, max_denominator=10**6)


@st.composite
def intervals_with_a_member(draw):
    x = draw(fractions)
    if draw(st.booleans()):
        return Interval(x, None, 40), x
    below, above = draw(st.integers(1, 10**6)), draw(st.integers(1, 10**6))
    return Interval(x - Fraction(below, 10**5), x + Fraction(above, 10**5), 40), x


@settings(max_examples=400, deadline=None)
@given(intervals_with_a_member(), intervals_with_a_member(), fractions)
def test_arithmetic_keeps_every_member_inside(first, second, number):
    (a, x), (b, y) = first, second
    results = [
        (a + b, x + y), (a - b, x - y), (a * b, x * y), (-a, -x), (abs(a), abs(x)),
        (number + a, number + x), (number - a, number - x), (a * number, number * x), (a - 3, x - 3),
        (2.5 * a, Fraction(5, 2) * x),
    ]  # fmt: skip
    if b.lo > 0 or b.hi < 0:
        results += [(a / b, x / y), (number / b, number / y)]
    for interval, truth in results:
        assert interval.lo == truth if interval.exact else interval.lo < truth < interval.hi
    assert not (a.exact and b.exact) or (a * b).exact
    assert (a * 0).is_zero and (0.0 * b).is_zero


def test_division_by_what_may_be_zero():
    for divisor in (Interval(Fraction(-1), Fraction(1)), Interval(Fraction(0), Fraction(1))):
        with pytest.raises(PrecisionNeeded):
            1 / divisor
    with pytest.raises(ZeroDivisionError):
        1 / Interval(0)
    for outside in ("log", "sqrt", "log1p"):
        with pytest.raises(PrecisionNeeded):
            getattr(Precise(200), outside)(Interval(Fraction(-3), Fraction(1)))


def test_ends_are_rounded_outwards_to_the_bits():
    third = Interval(Fraction(1, 3) - Fraction(1, 10**9), Fraction(1, 3), 50)
    assert third.lo < Fraction(1, 3) - Fraction(1, 10**9) and third.hi > Fraction(1, 3)
    for end in (third.lo, third.hi, (third * third).lo, (-third).hi):
        assert abs(end.numerator).bit_length() <= 51


def test_array_operations_match_fractions():
    m = Precise(200)
    values = np.array([[1.5, -2.0, 0.1], [3.0, 1e-300, -0.0]])
    a = m.array(values)
    assert [x.lo for x in m.sum(a)] == [sum(map(Fraction, row)) for row in values.tolist()]
    assert m.sum(a, axis=0, keepdims=True).shape == (1, 3) and m.sum(a, axis=(0, 1)).exact
    assert [x.lo for x in m.sum(a[:, :0])] == [0, 0]
    assert [x.lo for x in m.max(a)] == [Fraction(1.5), 3] and m.max(a, keepdims=True).shape == (2, 1)
    assert m.max(a, axis=(0, 1)).lo == 3
    assert [x.lo for x in m.minimum(a, 1.0)[0]] == [1, -2, Fraction(0.1)]
    assert [x.lo for x in m.maximum(a, m.constant(1))[0]] == [Fraction(1.5), 1, 1]
    assert m.where(values > 0, a, -a)[0, 1].lo == 2
    assert (values * a)[0, 1].lo == 4 and (a / 2)[0, 1].lo == -1 and (np.float64(2) * a[0, 0]).lo == 3
    assert m.array(0.25)[()].lo == Fraction(1, 4)


def to_bf16(fraction, negative):
    """Nearest multiple of 2^-7 in [1, 2), nearest even, by its definition; a zero takes the sign given."""
    n = round(fraction * 128)
    return float(Fraction(n, 128)) if n else -0.0 if negative else 0.0


@settings(max_examples=300, deadline=None)
@given(st.integers(-64, 64), st.integers(1, 400), st.sampled_from([32, 320, 3200]))
def test_a_decided_interval_rounds_alike_at_every_member(low, width, unit):
    interval = Interval(Fraction(low, 256), Fraction(low, 256) + Fraction(width, 8 * unit), 60)
    inside = [interval.lo + (interval.hi - interval.lo) * Fraction(part, 10**6) for part in (1, 500_003, 999_999)]
    rounded = {str(to_bf16(x, x < 0)) for x in inside}
    decided, value = round_interval(interval, to_bf16)
    assert rounded == {str(value)} if decided else len(rounded) > 1 or interval.lo < 0 < interval.hi


def test_rounding_an_interval():
    tie, least = Fraction(257, 256), Fraction(1, 2**300)
    assert round_interval(Interval(tie), to_bf16) == (True, 1.0)
    assert round_interval(Interval(tie, tie + least, 400), to_bf16) == (True, 1.0078125)
    assert round_interval(Interval(tie - least, tie, 400), to_bf16) == (True, 1.0)
    assert not round_interval(Interval(tie - least, tie + least, 400), to_bf16)[0]
    assert not round_interval(Interval(-least, least), to_bf16)[0]
    zero = Fraction(0)
    for positive in (Interval(0), Interval(least), Interval(zero, least)):
        decided, value = round_interval(positive, to_bf16)
        assert decided and value == 0.0 and math.copysign(1.0, value) == 1.0
    for negative in (Interval(-least), Interval(-least, zero)):
        decided, value = round_interval(negative, to_bf16)
        assert decided and value == 0.0 and math.copysign(1.0, value) == -1.0
