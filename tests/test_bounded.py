"""The first reading: what a formula's value in float64 is off by is never more than the bound that travels with it.

Bounds that are too small are invisible to random layers, so each operation is held against its truth at the ends of
intervals, where an exact enclosure leaves no room, and every kind of bound is seen to fail when it is cut. (A bound is
itself computed in float64; what that loses, `rounding_test` adds again.)
"""

from fractions import Fraction

import mpmath
import numpy as np
import pytest

from refmoe.numerics import bounded
from refmoe.numerics.bounded import Bounded, BoundedArithmetic
from refmoe.numerics.contract import _bound
from refmoe.numerics.fixed_point import as_fraction
from refmoe.numerics.precise import PrecisionNeeded
from refmoe.numerics.precise_arithmetic import PreciseArithmetic
from refmoe.numerics.rounding import _SLACK, UNIT

M = BoundedArithmetic()
mpmath.mp.dps = 60

# name -> (reading, truth, domain of its argument)
UNARY = {
    "exp": (M.exp, mpmath.exp, (-30, 30)),
    "expm1": (M.expm1, mpmath.expm1, (-30, 30)),
    "log": (M.log, mpmath.log, (0.01, 1e6)),
    "log1p": (M.log1p, mpmath.log1p, (-0.99, 1e6)),
    "sqrt": (M.sqrt, mpmath.sqrt, (0.01, 1e6)),
    "sigmoid": (M.sigmoid, lambda t: 1 / (1 + mpmath.exp(-t)), (-40, 40)),
    "softplus": (M.softplus, lambda t: mpmath.log1p(mpmath.exp(t)), (-40, 40)),
    "tanh": (M.tanh, mpmath.tanh, (-5, 5)),
    "erf": (M.erf, mpmath.erf, (-3, 3)),
    "erfc": (M.erfc, mpmath.erfc, (-3, 20)),
}
BINARY = {
    "add": (lambda a, b: a + b, lambda a, b: a + b),
    "subtract": (lambda a, b: a - b, lambda a, b: a - b),
    "multiply": (lambda a, b: a * b, lambda a, b: a * b),
    "divide": (lambda a, b: a / b, lambda a, b: a / b),
}
WIDTHS = (0.0, 2.0**-40, 2.0**-12)  # relative errors that arguments bring along


def ratios(made, truths):
    """|truth - v| / e by element, for arrays of exact truths; e = 0 demands that they agree."""
    out = []
    for v, e, truth in zip(np.ravel(made.v), np.ravel(np.broadcast_to(made.e, np.shape(made.v))), truths, strict=True):
        off = abs(mpmath.mpf(float(v)) - truth)
        assert e > 0 or off == 0, (float(v), truth)
        out.append(float(off / mpmath.mpf(float(e))) if off else 0.0)
    return np.array(out)


def draw(domain, seed, count=400):
    low, high = domain
    rng = np.random.default_rng(seed)
    near_zero = rng.uniform(-1, 1, count // 4) * 2.0 ** rng.integers(-60, 0, count // 4).astype(float)
    return np.concatenate([rng.uniform(low, high, count), near_zero[(near_zero > low) & (near_zero < high)]])


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", UNARY)
def test_a_function_stays_within_its_bound_at_both_ends_of_its_argument(name, width):
    reading, truth, domain = UNARY[name]
    x = draw(domain, 1)
    made = reading(Bounded(x, np.abs(x) * width))
    worst = 0.0
    for end in (-1, 1):
        exact = [mpmath.mpf(float(v)) * (1 + end * mpmath.mpf(width)) for v in x]
        worst = max(worst, ratios(made, [truth(t) for t in exact]).max())
    assert worst <= _SLACK
    # An argument's error reaches the result: with a bound cut to a quarter of that, some end lies outside.
    assert width == 0.0 or worst > 0.25


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", BINARY)
def test_an_operation_stays_within_its_bound_at_every_corner(name, width):
    reading, truth = BINARY[name]
    rng = np.random.default_rng(2)
    a, b = (rng.standard_normal(400) * 2.0 ** rng.integers(-30, 30, 400) for _ in range(2))
    b[:100] = -a[:100] * (1 + rng.integers(-4, 5, 100) * 2.0**-50)  # sums that cancel almost, or altogether
    made = reading(Bounded(a, np.abs(a) * width), Bounded(b, np.abs(b) * width))
    worst = 0.0
    for s, t in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
        first = [mpmath.mpf(float(v)) * (1 + s * mpmath.mpf(width)) for v in a]
        second = [mpmath.mpf(float(v)) * (1 + t * mpmath.mpf(width)) for v in b]
        worst = max(worst, ratios(made, [truth(*pair) for pair in zip(first, second, strict=True)]).max())
    assert 0.9 < worst <= _SLACK  # a bound smaller by a tenth is broken here


def test_products_of_short_numbers_are_exact_and_of_long_ones_are_not():
    a, b = np.array([1 + 2.0**-23]), np.array([1 - 2.0**-24])
    assert (M.array(a) * M.array(b)).e == 0.0 and (M.array(a) * M.array(b) * M.array(a)).e > 0.0
    assert (M.array(a, 53) * M.array(b, 24)).e > 0.0


def test_what_underflows_is_covered():
    tiny = Bounded(np.array([2.0**-600, 3.0e-200]), 0.0)
    made = tiny * Bounded(np.array([2.0**-600, 1.1e-130]), 0.0)
    assert ratios(made, [mpmath.mpf(2) ** -1200, mpmath.mpf(3.0e-200) * mpmath.mpf(1.1e-130)]).max() <= 1.0
    made = tiny / Bounded(np.array([2.0**500, 1.7e130]), 0.0)
    assert ratios(made, [mpmath.mpf(2) ** -1100, mpmath.mpf(3.0e-200) / mpmath.mpf(1.7e130)]).max() <= 1.0


def test_a_divisor_that_may_be_zero_bounds_nothing():
    with np.errstate(divide="ignore"):
        for error in (1e-3, 2e-3):
            made = Bounded(np.array([1.0]), 0.0) / Bounded(np.array([1e-3]), np.array([error]))
            assert not np.isfinite(made.e).any()


@pytest.mark.parametrize("count", [2, 3, 17, 300])
def test_the_bound_of_a_sum_covers_any_order(count):
    """(n - 1) u sum |x| + the terms' own errors, in rational arithmetic."""
    rng = np.random.default_rng(count)
    x = rng.standard_normal((20, count)) * 2.0 ** rng.integers(-8, 8, (20, count))
    e = np.abs(x) * 2.0**-30
    made = M.sum(Bounded(x, e))
    for row, error, value, bound in zip(x, e, made.v, made.e, strict=True):
        size = sum(abs(Fraction(float(v))) for v in row)
        brought = sum(Fraction(float(v)) for v in error)
        needed = (count - 1) * Fraction(UNIT) * size + brought * (1 - Fraction(2) ** -40)
        assert needed <= Fraction(float(bound)) <= 2 * (needed + Fraction(UNIT) * size)
        assert abs(sum(Fraction(float(v)) for v in row) - Fraction(float(value))) <= Fraction(float(bound))


@pytest.mark.parametrize("terms", [2, 5, 64, 1000])
def test_the_bound_of_a_contraction_covers_any_order(terms):
    """gamma_(L-1) sum |a_i b_i| is what the analysis asks for; the bound used is at least that for each output."""
    rng = np.random.default_rng(terms)
    a, b = rng.standard_normal((3, terms)), rng.standard_normal((terms, 4))
    b[:, 0] = a[0]  # where Cauchy and Schwarz leave nothing over
    bound = _bound(a, b)
    for i in range(3):
        for j in range(4):
            size = sum(abs(Fraction(float(p)) * Fraction(float(q))) for p, q in zip(a[i], b[:, j], strict=True))
            gamma = (terms - 1) * Fraction(UNIT) / (1 - (terms - 1) * Fraction(UNIT))
            assert gamma * size <= Fraction(float(bound[i, j]))
    assert bound[0, 0] <= 4.5 * terms * UNIT * float(a[0] @ a[0])


def test_a_choice_is_made_only_where_the_bound_lies_outside():
    """choose(x, 1, a, b): a at or below 1, b above, nothing known where 1 lies within the error of x."""
    x = Bounded(np.array([1.0, 1.0 + 2.0**-52, 1.0, 1.0 + 2.0**-30, 0.5, 3.0]), np.array([0, 0, 1e-20, 1e-9, 0.4, 1.9]))
    made = M.choose(x, 1.0, Bounded(np.full(6, 5.0)), 7)
    assert made.v.tolist() == [5, 7, 5, 7, 5, 7]
    assert np.isfinite(made.e).tolist() == [True, True, False, False, True, True]


def test_a_choice_among_intervals_waits_for_enough_bits():
    m = PreciseArithmetic(40)
    sigmoid = m.sigmoid(m.array(np.array([0.0, 1e-30, -1e-30, 2.0, 1e-3])))
    assert [v.lo for v in m.choose(sigmoid[[0, 1, 2, 3]], 0.5, 1, 0)] == [1, 0, 1, 0]
    near = float(np.float64(1 / (1 + np.exp(-1e-3))))
    with pytest.raises(PrecisionNeeded):
        m.choose(sigmoid[4:], near, 1, 0)
    more = PreciseArithmetic(200)
    truth = 1 / (1 + mpmath.exp(-mpmath.mpf(1e-3))) > mpmath.mpf(near)
    assert [v.lo for v in more.choose(more.sigmoid(more.array(np.array([1e-3]))), near, 0, 1)] == [int(truth)]


@pytest.mark.parametrize("p", [1, 2, 3, 7])
def test_roots_and_powers_stay_within_their_bounds(p):
    x = np.abs(draw((1e-6, 1e6), 4)) + 1e-6
    roots = [mpmath.root(mpmath.mpf(float(v)), p) for v in x]
    assert ratios(M.root(Bounded(x, 0.0), p), roots).max() <= _SLACK
    assert ratios(M.power(Bounded(x, 0.0), p), [mpmath.mpf(float(v)) ** p for v in x]).max() <= _SLACK
    exact = PreciseArithmetic(200)
    for v, truth in zip(x[::20], roots[::20]):
        (made,) = exact.root(exact.array(np.array([v])), p)
        low, high = (
            mpmath.mpf(end.numerator) / end.denominator for end in (as_fraction(made.lo), as_fraction(made.hi))
        )
        assert low <= truth <= high and high - low <= truth * mpmath.mpf(2) ** -190
    (made,) = exact.root(exact.array(np.array([1.5**p])), p)
    assert made.exact and made.lo == 1.5


def test_a_sum_over_roots_stays_within_its_bound_and_sees_what_cancels():
    terms, squares = draw((-3, 3), 5, 64).reshape(-1, 4)[:16], np.abs(draw((0.1, 9), 6, 64))[:16, None]
    truth = [sum(mpmath.mpf(float(t)) / mpmath.sqrt(float(q)) for t, (q,) in zip(c, squares)) for c in terms.T]
    assert ratios(M.sum_over_roots(Bounded(terms, 0.0), Bounded(squares, 0.0)), truth).max() <= _SLACK
    exact = PreciseArithmetic(200)
    rows = np.array([[1.0, 1.0], [2.0, 1.0], [-2.0, 3.0], [0.0, 1.0]])
    made = exact.sum_over_roots(exact.array(rows), exact.array(np.array([[2.0], [8.0], [2.0], [3.0]])))
    assert made[0, 0].exact and made[0, 0].lo == 0 and not made[0, 1].exact  # 1/sqrt 2 + 2/sqrt 8 - 2/sqrt 2


COMPOSED = {
    "softcap": (M.softcap, lambda t: 4 * mpmath.tanh(t / 4)),
    "softcap_derivative": (M.softcap_derivative, lambda t: 1 - mpmath.tanh(t / 4) ** 2),
}


@pytest.mark.parametrize("name", COMPOSED)
def test_soft_caps_stay_within_their_bounds(name):
    reading, truth = COMPOSED[name]
    x = draw((-30, 30), 3)
    assert ratios(reading(Bounded(x, 0.0), 4.0), [truth(mpmath.mpf(float(v))) for v in x]).max() <= _SLACK


CUTS = {  # a part of the bounds that is taken away, and the reading that must then be seen to lie
    "the rounding of a product": ("_rounding", lambda v, nonzero: 0.9 * UNIT * np.abs(v), "multiply"),
    "what an argument brings to exp": ("_growth", lambda e: e * 0.2, "exp"),
    "what an argument brings to sigmoid": ("_growth", lambda e: e * 0.2, "sigmoid"),
}


@pytest.mark.parametrize("what", CUTS)
def test_a_bound_that_is_cut_is_seen(what, monkeypatch):
    name, less, reading = CUTS[what]
    monkeypatch.setattr(bounded, name, less)
    with pytest.raises(AssertionError):
        if reading in BINARY:
            test_an_operation_stays_within_its_bound_at_every_corner(reading, 0.0)
        else:
            test_a_function_stays_within_its_bound_at_both_ends_of_its_argument(reading, 2.0**-12)
