"""Experts with few rows are computed straight from their weights (csrc/few.c): the same bits as everywhere else."""

import numpy as np
import pytest

from refmoe import kernels

if kernels.build_error() is not None:
    pytest.skip(f"no compiled module: {kernels.build_error()}", allow_module_level=True)

from kernel_calls import Guarded, differing_bits
from kernel_cases import CODE_MAKERS, MAKERS, RULES, CodeCase, coarse, drifting, special, value_of, wide
from kernel_oracle import Rule

from refmoe.numerics.contract import NumpyEngine

KERNELS = [name for name, can_run, _ in kernels.available() if can_run]
FEW = RULES[:6]  # exact and chain in every format

each_kernel = pytest.mark.parametrize("kernel", KERNELS)
each_rule = pytest.mark.parametrize("rule", FEW, ids=lambda rule: f"{rule.profile}-{rule.format}")


def operands(make, counts, M, K, seed=0):
    """x, w, offsets, and the addends a product may be given."""
    rng, offsets = np.random.default_rng(seed), np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    E, N = len(counts), int(offsets[-1])
    x, w, bias, acc = (make(rng, shape) for shape in ((N, K), (E, M, K), (E, M), (N, M)))
    return (x, w, offsets), ({}, {"bias": bias}, {"acc": acc}, {"bias": bias, "acc": acc})


def assert_as_numpy(kernel, rule, given, addends, threads=(1,), force=None):
    for more in addends:
        want = NumpyEngine().grouped_matmul(rule, *given, **more)
        for count in threads:
            got = Guarded(kernel, count).grouped_matmul(rule._replace(force_tier=force), *given, **more)
            assert differing_bits(got, want) == 0


@each_rule
@each_kernel
def test_every_number_of_rows_beside_every_rest_of_the_sum(kernel, rule):
    """Rows 1 to 9; sums with every remainder of a vector, and of two; outputs that fill no block, one, and a piece."""
    for K in (1, 7, 8, 15, 17, 31, 32, 33, 48, 63):
        given, addends = operands(special if K % 2 else wide, range(10), (1, 8, 17, 16, 15, 33)[K % 6], K, seed=K)
        assert_as_numpy(kernel, rule, given, addends[:: 3 if K < 32 else 1])


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
@each_rule
@each_kernel
def test_few_and_many_rows_side_by_side_and_threads_that_share_them(kernel, rule, make):
    given, addends = operands(make, (1, 0, 20, 2, 9, 3, 1, 35, 8, 4), 203, 21, seed=3)
    assert_as_numpy(kernel, rule, given, addends[::3], threads=(1, 2, 3))


@pytest.mark.parametrize("force", ("compensated", "exact"))
@pytest.mark.parametrize("form", ("float32", "bf16", "fp16"))
@each_kernel
def test_forced_tiers(kernel, form, force):
    given, addends = operands(coarse, (1, 3, 0, 2, 8), 19, 37)
    assert_as_numpy(kernel, Rule("exact", form), given, addends[::3], force=force)


@pytest.mark.parametrize("rows", range(1, 10))
@each_kernel
def test_the_bound_covers_the_error_of_every_addition(kernel, rows):
    """The sum is above the midpoint by what float64 loses term by term, though it stands below it all the while.

    A lane that holds 2^n of the ones loses half a unit of its last place, 2^(n - 53), with every step.
    """
    length = 2048
    for last in (2.0**-53, 2.0**-52, 2.0**-51):
        for part in (7 / 8, 3 / 4, 1 / 2, 1 / 4, 1 / 8, 1 / 16):
            x = drifting(length, last, part * length * last)
            x = np.stack([x if row % 2 else -x for row in range(rows)])
            got = Guarded(kernel, 1).grouped_matmul(
                Rule("exact", "float32"), x, np.ones((1, 17, length), np.float32), np.array([0, rows])
            )
            assert (got == np.sign(x[:, :1]) * np.float32(16 + 2.0**-19)).all()


@each_kernel
def test_acc_and_bias_count_among_the_terms(kernel):
    """They are large, cancel, and take with them what the sum had below their last place."""
    for rows in (1, 2, 5):
        x, w = np.full((rows, 3), 2.0**-40, np.float32), np.ones((1, 5, 3), np.float32)
        acc, bias = np.full((rows, 5), 2.0**20, np.float32), np.full((1, 5), -(2.0**20), np.float32)
        rule = Rule("exact", "float32")
        got = Guarded(kernel, 1).grouped_matmul(rule, x, w, np.array([0, rows]), acc=acc, bias=bias)
        assert (got == np.float32(3 * 2.0**-40)).all()


@each_kernel
def test_no_chain_meets_the_padding_of_a_vector(kernel):
    """A chain of -0 stays -0: one product of padding, +0, would make it +0."""
    for rows in (1, 2, 9):
        for K in (1, 5, 17, 30):
            x, w = np.full((rows, K), -0.0, np.float32), np.ones((1, 18, K), np.float32)
            acc = np.full((rows, 18), -0.0, np.float32)
            got = Guarded(kernel, 1).grouped_matmul(Rule("chain", "float32"), x, w, np.array([0, rows]), acc=acc)
            assert np.signbit(got).all()


@each_rule
@each_kernel
def test_one_weight_beyond_all_numbers_spoils_its_own_output_alone(kernel, rule):
    for K, at in ((1, 0), (19, 0), (19, 18), (40, 33)):
        for value in (np.inf, -np.inf, np.nan):
            given, addends = operands(coarse, (1, 2, 5), 18, K, seed=at)
            given[1][:, 7, at] = value
            assert_as_numpy(kernel, rule, given, addends[:1])


@pytest.mark.parametrize("rule", [Rule("chain", "float32"), Rule("exact", "float32")], ids=lambda rule: rule.profile)
@each_kernel
def test_weights_may_begin_at_any_place_of_a_line(kernel, rule):
    """Rows a whole number of lines apart, from each of the 16 places: a chain begins and ends within a step."""
    for K in (16, 32, 48, 80):
        (x, w, offsets), addends = operands(wide, (1, 4), 18, K, seed=K)
        want = NumpyEngine().grouped_matmul(rule, x, w, offsets, **addends[2])
        room = np.zeros(w.size + 32, np.float32)
        for first in range(16):
            begin = first - room.ctypes.data % 64 // 4 + 16
            room[begin : begin + w.size] = w.ravel()
            placed = room[begin : begin + w.size].reshape(w.shape)
            got = kernels.load(kernel, 1).grouped_matmul(rule, x, placed, offsets, **addends[2])
            assert placed.ctypes.data % 64 == 4 * first and differing_bits(got, want) == 0


@pytest.mark.parametrize("right", ("bf16", "fp16"))
@pytest.mark.parametrize("profile", ("exact", "chain"))
@each_kernel
def test_weights_of_16_bits_for_every_number_of_rows(kernel, profile, right):
    rule = Rule(profile, "float32")
    for K, left in ((1, "float32"), (17, right), (31, "bf16"), (32, "float32"), (33, right), (64, "fp16"), (96, right)):
        for make in CODE_MAKERS[K % 2 :]:
            case = CodeCase(make, range(10), (33, 16, 7)[K % 3], K, left, right, seed=K)
            x, w = value_of(case.x, left), value_of(case.w, right)
            for more in ({}, {"bias": case.bias, "acc": case.acc_rows}):
                want = NumpyEngine().grouped_matmul(rule, x, w, case.offsets, **more)
                got = Guarded(kernel, 1, left, right).grouped_matmul(rule, case.x, case.w, case.offsets, **more)
                assert differing_bits(got, want) == 0


@pytest.mark.parametrize("right", ("float32", "bf16", "fp16"))
@each_kernel
def test_zeros_times_an_infinite_weight_are_no_number(kernel, right):
    """All that is left of the sum says +0, were the weight not looked at."""
    weights = np.full((1, 18, 19), np.float32(0.5))
    weights[0, 7, 11] = np.inf
    codes = {"float32": weights, "bf16": (weights.view(np.uint32) >> 16).astype(np.uint16)}
    codes["fp16"] = weights.astype(np.float16).view(np.uint16)
    for rows in (1, 3, 9):
        x, engine = np.zeros((rows, 19), np.float32), Guarded(kernel, 1, right=right)
        got = engine.grouped_matmul(Rule("exact", "float32"), x, codes[right], np.array([0, rows]))
        assert np.isnan(got[:, 7]).all() and not np.delete(got, 7, axis=1).any()
