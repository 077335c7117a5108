"""The C kernels give the bits of rational arithmetic and of NumPy: every product, profile, format, size, tier."""

import numpy as np
import pytest

from refmoe import kernels

if kernels.build_error() is not None:
    pytest.skip(f"no compiled module: {kernels.build_error()}", allow_module_level=True)

import kernel_oracle as oracle
from kernel_calls import CODES, Guarded, assert_same, differing_bits, lib
from kernel_cases import (
    MAKERS,
    PRODUCTS,
    RULES,
    Case,
    coarse,
    diagonal,
    grid_edges,
    hard_triples,
    midpoint_terms,
    overflow_edges,
    sizes_round_a_tile,
    special,
    subnormal_midpoints,
    wide,
)
from kernel_oracle import Rule

from refmoe.numerics.contract import NumpyEngine

KERNELS = [name for name, can_run, _ in kernels.available() if can_run]

each_kernel = pytest.mark.parametrize("kernel", KERNELS)
each_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.profile}-{rule.format}")


# ---- bits against rational arithmetic ----

ORACLE_CASES = {}


def oracle_case(make, rule):
    """The case and the oracle's outputs, made once for all kernels."""
    if (make, rule) not in ORACLE_CASES:
        case = Case(make, rule, counts=(5, 0, 1, 3), M=10, K=7, seed=MAKERS.index(make))
        ORACLE_CASES[make, rule] = case, list(case.outputs(oracle, rule))
    return ORACLE_CASES[make, rule]


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
@each_rule
@each_kernel
def test_bits_equal_rational_arithmetic(kernel, rule, make):
    case, want = oracle_case(make, rule)
    assert_same(case, rule, kernel, want)


@pytest.mark.parametrize("force", ("compensated", "exact"))
@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("form", ("float32", "bf16", "fp16"))
def test_forced_tiers_equal_rational_arithmetic(form, make, force):
    rule = Rule("exact", form)
    case, want = oracle_case(make, rule)
    assert_same(case, rule, KERNELS[-1], want, threads=(2,), force=force)


# ---- bits against NumPy, over sizes ----

def sizes(kernel, rule):
    index, profile = KERNELS.index(kernel), CODES[rule.profile]
    return sizes_round_a_tile(lib.refmoe_tile_rows(index, profile), lib.refmoe_tile_cols(index, profile))


@each_rule
@each_kernel
def test_bits_equal_numpy_at_every_size(kernel, rule):
    for number, (counts, M, K) in enumerate(sizes(kernel, rule)):
        for make in (wide, special):
            case = Case(make, rule, counts, M, K, seed=number)
            assert_same(case, rule, kernel, list(case.outputs(NumpyEngine(), rule)))


@each_kernel
def test_a_long_sum_fills_many_packed_runs(kernel):
    rule = Rule("exact", "float32")
    case = Case(wide, rule, counts=(3, 12), M=35, K=2053)
    assert_same(case, rule, kernel, list(case.outputs(NumpyEngine(), rule)), threads=(1, 2))


@pytest.mark.parametrize("profile", ("exact", "chain"))
@each_kernel
def test_long_sums_of_many_rows_take_several_units(kernel, profile):
    rule = Rule(profile, "float32")
    case = Case(wide, rule, counts=(3, 140), M=5, K=2053)
    assert_same(case, rule, kernel, list(case.outputs(NumpyEngine(), rule)), threads=(1, 2))


# Rows, columns and sums next to where blocks, panels, runs and units of either engine end; from 96 rows on weights are
# turned. A second unit has fewer columns than the first and finds its rows held.
LARGE_OUTPUTS = {}
LARGE = [((95, 0, 97), 225, 17), ((98, 14), 34, 259), ((14, 25), 258, 49)]


@pytest.mark.parametrize(("counts", "M", "K"), LARGE)
@pytest.mark.parametrize("rule", RULES[:6], ids=lambda rule: f"{rule.profile}-{rule.format}")
@each_kernel
def test_bits_equal_numpy_where_engines_begin_and_end(kernel, rule, counts, M, K):
    case = Case(wide, rule, counts, M, K)
    if (counts, rule) not in LARGE_OUTPUTS:
        LARGE_OUTPUTS[counts, rule] = list(case.outputs(NumpyEngine(), rule))
    assert_same(case, rule, kernel, LARGE_OUTPUTS[counts, rule], threads=(1,))


@pytest.mark.parametrize(("counts", "M", "K"), [((33, 9), 29, 1024), ((97, 14), 13, 520)])
@each_kernel
def test_bits_equal_numpy_where_weights_are_read_where_they_lie(kernel, counts, M, K):
    """Rows 4 KiB apart are taken half as many at a time; a last band has fewer; many rows meet long sums so, too."""
    rule, case = Rule("chain", "float32"), Case(wide, Rule("chain", "float32"), counts, M, K)
    assert_same(case, rule, kernel, list(case.outputs(NumpyEngine(), rule)), threads=(1,))


@pytest.mark.parametrize(("make", "form"), [(wide, "float32"), (wide, "bf16"), (special, "float32")])
@each_kernel
def test_every_width_of_tiles_that_read_weights_where_they_lie(kernel, make, form):
    """Rows of each width, and more than the widest holds; bias, acc and NaN end in the tile."""
    rule, counts = Rule("chain", form), (9, 16, 20, 27, 37, 45, 50, 57)
    case = Case(make, rule, counts, 27, 19)
    assert_same(case, rule, kernel, list(case.outputs(NumpyEngine(), rule)), threads=(1,))


@pytest.mark.parametrize("kernel", KERNELS[:1] + KERNELS[-1:])
def test_nan_is_one_value_where_tiles_write_the_output(kernel):
    """Sums of a whole tile never pass another pair of hands."""
    rule, case = Rule("chain", "float32"), Case(special, Rule("chain", "float32"), (97, 3), 64, 32)
    assert_same(case, rule, kernel, list(case.outputs(NumpyEngine(), rule)), threads=(1,))


# ---- midpoints ----

@pytest.mark.parametrize("force", (None, "compensated", "exact"))
@pytest.mark.parametrize("form", ("float32", "bf16", "fp16"))
@each_kernel
def test_midpoints_plus_and_minus_one_quantum(kernel, form, force):
    sums = [terms for pair in midpoint_terms(form, np.random.default_rng(1)) for terms in pair]
    sums += [*subnormal_midpoints(form), *overflow_edges(form), *grid_edges(form)]
    engine, rule = Guarded(kernel, 2), Rule("exact", form, force)
    x, w = diagonal(sums)
    offsets = np.arange(len(sums) + 1)
    want = np.array([[oracle.exact_sum(terms, [], form)] for terms in sums], np.float32)
    assert differing_bits(engine.grouped_matmul(rule, x, w[:, None], offsets), want) == 0
    assert differing_bits(engine.grouped_matmul_backward_x(rule, [(x, w[:, :, None])], offsets), want) == 0
    length = x.shape[1]
    plan = np.arange(0, x.size + 1, length)
    got = engine.grouped_matmul_backward_w(rule, x.reshape(-1, 1), w.reshape(-1, 1), plan)
    assert differing_bits(got.reshape(-1, 1), want) == 0
    assert force != "exact" or engine.tiers[:3] == (0, 0, 0)


@pytest.mark.parametrize("apart", (1, 3, 4))
@pytest.mark.parametrize("form", ("float32", "bf16", "fp16"))
def test_midpoints_among_many_terms(form, apart):
    """Sums whose errors are kept four side by side: all terms in one of the four, or in several of them."""
    sums = [terms for pair in midpoint_terms(form, np.random.default_rng(1)) for terms in pair]
    want = np.array([[oracle.exact_sum(terms, [], form)] for terms in sums], np.float32)
    x, w = diagonal(sums)
    long = np.zeros((2, len(sums), 270), np.float32)
    long[0, :, 200 : 200 + apart * x.shape[1] : apart], long[1, :, 200 : 200 + apart * w.shape[1] : apart] = x, w
    engine = Guarded("portable", 1)
    for force in (None, "compensated"):
        got = engine.grouped_matmul(Rule("exact", form, force), long[0], long[1][:, None], np.arange(len(sums) + 1))
        assert differing_bits(got, want) == 0
    assert engine.tiers[2] > 0


@each_kernel
def test_midpoints_made_by_accumulator_and_bias(kernel):
    rule, engine = Rule("exact", "float32"), Guarded(kernel, 1)
    values = [2.0**-24, -(2.0**-24), 2.0**-24 + 2.0**-47, 2.0**-149, -(2.0**-149), 1.0, -1.0, 0.0, -0.0, 3.4e38, np.inf]
    acc, bias = (np.array(grid, np.float32).reshape(-1, 1) for grid in np.meshgrid(values, values))
    n = len(acc)
    x, w = np.ones((n, 1), np.float32), np.ones((n, 1, 1), np.float32)
    addends = np.hstack([acc, bias]).tolist()
    want = [oracle.exact_sum([(1.0, 1.0)], pair, "float32") for pair in addends]
    got = engine.grouped_matmul(rule, x, w, np.arange(n + 1), bias=bias, acc=acc)
    assert differing_bits(got[:, 0], np.array(want, np.float32)) == 0


@each_rule
@each_kernel
def test_zeros_of_both_signs_over_no_and_one_product(kernel, rule):
    """-0 plus -0 is +0 where the value is exact, and -0 in a chain that starts from an accumulator of -0."""
    zeros = np.array([0.0, -0.0], oracle.dtype(rule))
    factor, acc, bias = (grid.reshape(-1, 1) for grid in np.meshgrid(zeros, zeros, zeros))
    offsets, engine = np.arange(9), Guarded(kernel, 1)
    for length in (0, 1):
        x, w = np.ones((8, length), factor.dtype), np.repeat(factor[..., None], length, axis=2)
        for addends in ({}, {"acc": acc}, {"bias": bias}, {"acc": acc, "bias": bias}):
            want = oracle.grouped_matmul(rule, x, w, offsets, **addends)
            assert differing_bits(engine.grouped_matmul(rule, x, w, offsets, **addends), want) == 0


@each_kernel
def test_fused_multiply_add_beside_midpoints(kernel):
    triples = np.array(list(hard_triples()))
    a, b, c = triples.astype(np.float32).T.reshape(3, -1, 1)
    assert (np.hstack([a, b, c]) == triples).all()
    want = np.array([[oracle.fused(*triple)] for triple in triples.tolist()], np.float32)
    twice = np.float32(a.astype(np.float64) * b + c)
    got = Guarded(kernel, 1).grouped_matmul(Rule("chain", "float32"), a, b[:, None], np.arange(len(a) + 1), acc=c)
    assert differing_bits(got, want) == 0
    assert differing_bits(twice, want) > 50  # rounding twice is wrong on these: they are hard


@pytest.mark.parametrize("profile", ["chain", "exact"])
@each_kernel
def test_large_gradients_are_stored_past_the_caches(kernel, profile):
    """More than 16 MiB, on lines of the cache (as the engine allocates) and beside them; exact ones that the rounding
    test leaves open are stored a second time."""
    rule, rng, offsets = Rule(profile, "float32"), np.random.default_rng(5), [0, 1, 3]
    d, x = special(rng, (3, 1040)), special(rng, (3, 2064))
    want, engine = NumpyEngine().grouped_matmul_backward_w(rule, d, x, offsets), kernels.load(kernel, 2)
    got = engine.grouped_matmul_backward_w(rule, d, x, offsets)
    assert got.nbytes > 1 << 24 and got.ctypes.data % 64 == 0
    assert differing_bits(got, want) == 0
    assert differing_bits(Guarded(kernel, 2).grouped_matmul_backward_w(rule, d, x, offsets), want) == 0


# ---- tiers and counters ----

@each_kernel
def test_every_tier_is_entered_and_counted(kernel):
    engine, rng, rule = kernels.load(kernel, 2), np.random.default_rng(0), Rule("exact", "float32")
    sums = [terms for terms, _ in midpoint_terms("float32", rng)]
    x, w = diagonal(sums)
    engine.grouped_matmul(rule, x, w[:, None], np.arange(len(sums) + 1))
    few, many = coarse(rng, (64, 32)), coarse(rng, (1, 64, 32))
    engine.grouped_matmul(rule, few, many, [0, 64])
    assert min(engine.tiers[tier] for tier in kernels.TIERS) > 0
    assert engine.tiers.total() == len(sums) + 64 * 64
    assert engine.calls == {("grouped_matmul", kernel): 2}


@each_kernel
def test_the_grid_of_long_sums_is_that_of_the_portable_kernel(kernel):
    """Rows whose least bits fall across the edge of the test, zeros, a subnormal; along both kinds of columns."""
    rule, rng = Rule("exact", "float32"), np.random.default_rng(6)
    x, w = ((rng.integers(-8191, 8192, shape) * 2.0**-10).astype(np.float32) for shape in ((40, 301), (1, 301, 301)))
    x[:32, 7], w[0, :, 7], w[0, 7] = 2.0 ** -np.arange(18, 50), 0, 0
    x[32:, 9::2], x[33, :], x[34, 300] = -0.0, 0.0, 2.0**-149
    for product in ("forward", "back"):
        got = []
        for engine in (Guarded(kernel, 1), Guarded("portable", 1)):
            call = engine.grouped_matmul if product == "forward" else engine.grouped_matmul_backward_x
            out = call(rule, x, w, [0, 40]) if product == "forward" else call(rule, [(x, w)], [0, 40])
            got.append((out, engine.tiers))
        assert differing_bits(got[0][0], got[1][0]) == 0
        assert got[0][1] == got[1][1] and min(got[0][1][1:3]) > 5


@each_kernel
def test_counters_name_the_function_and_the_kernel(kernel):
    engine, rule = kernels.load(kernel, 1), Rule("chain", "float32")
    case = Case(wide, rule, (2, 1), 3, 4)
    list(case.outputs(engine, rule))
    assert engine.calls == {(PRODUCTS[0], kernel): 3, (PRODUCTS[1], kernel): 2, (PRODUCTS[2], kernel): 2}
    assert engine.tiers.total() == 0


@each_kernel
def test_the_engine_remembers_the_most_scratch_memory_of_a_call(kernel):
    engine, direct, rule = kernels.load(kernel, 1), Guarded(kernel, 1), Rule("exact", "float32")
    few, many = Case(wide, rule, (2,), 3, 4), Case(wide, rule, (2,), 3, 4000)
    taken = []
    for case in (few, many, few):
        engine.grouped_matmul(rule, case.x, case.w, case.offsets)
        direct.grouped_matmul(rule, case.x, case.w, case.offsets)
        taken.append(direct.workspace_bytes)
        assert engine.workspace_bytes == max(taken)
    assert 0 < taken[0] < taken[1] < 5 << 19


@each_rule
@each_kernel
def test_the_engine_equals_the_guarded_calls(kernel, rule):
    case = Case(special, rule, (4, 0, 9), 11, 6)
    assert_same(case, rule, kernel, list(case.outputs(kernels.load(kernel, 2), rule)))


@each_kernel
def test_a_row_alone_equals_the_row_in_a_batch(kernel):
    engine, rng = kernels.load(kernel, 2), np.random.default_rng(3)
    x, w = wide(rng, (40, 33)), wide(rng, (1, 21, 33))
    for rule in RULES[:6]:
        batch = engine.grouped_matmul(rule, x, w, [0, 40])
        alone = [engine.grouped_matmul(rule, x[n : n + 1], w, [0, 1]) for n in range(40)]
        assert differing_bits(np.concatenate(alone), batch) == 0


# ---- bounds that grow block by block of the sum ----


@each_kernel
@pytest.mark.parametrize(("rows", "columns"), [(1, 3), (13, 25), (33, 205)])
@pytest.mark.parametrize(("x", "w", "answer"), [
    ((2.0**30, 1, 2.0**30), (2.0**30, 1, -(2.0**30)), 1),
    ((2.0**126, 2.0**72, 2.0**126), (2.0**-76, 2.0**-76, -(2.0**-76)), 2.0**-4),  # no float32 holds these squares
    ((2.0**-16, 2.0**-70, 2.0**-16), (2.0**76, 2.0**76, -(2.0**76)), 2.0**6)])
def test_a_block_is_bounded_by_its_own_norm(kernel, rows, columns, x, w, answer):
    """Nothing in the first blocks of k, then terms that cancel and take the answer with them in float64."""
    rule, at = Rule("exact", "float32"), 300
    row, column = np.zeros((rows, 400), np.float32), np.zeros((1, columns, 400), np.float32)
    row[:, at : at + 3], column[0, :, at : at + 3] = x, w
    offsets = np.array([0, rows])
    assert (Guarded(kernel, 1).grouped_matmul(rule, row, column, offsets) == answer).all()
    back = np.ascontiguousarray(column.transpose(0, 2, 1))
    assert (Guarded(kernel, 1).grouped_matmul_backward_x(rule, [(row, back)], offsets) == answer).all()


@each_kernel
@pytest.mark.parametrize("rows", [13, 41])
def test_sums_of_many_steps_meet_acc_and_bias_in_every_unit(kernel, rows):
    """Rows of several shapes, more outputs than a unit has, and fewer in the last: each has the bound of its own."""
    rule = Rule("exact", "bf16")
    case = Case(wide, rule, (rows, 0, 7), 197, 290)
    assert_same(case, rule, kernel, list(case.outputs(Guarded("portable", 2), rule)), threads=(2,))


@each_kernel
@pytest.mark.parametrize(("form", "half"), [("bf16", 2.0**-8), ("fp16", 2.0**-11)])
def test_a_bias_on_a_midpoint_leaves_the_sum_its_say(kernel, form, half):
    """What float64 loses beside the bias decides which way the tie goes."""
    x, signs = np.full((1, 1), 2.0**-30, np.float32), np.array([1, -1, 1, -1], np.float32)
    w = (signs * 2.0**-30).astype(np.float32).reshape(1, 4, 1)
    bias = np.array([[1 + half, 1 + half, 1 + 3 * half, 1 + 3 * half]], np.float32)
    got = Guarded(kernel, 1).grouped_matmul(Rule("exact", form), x, w, np.array([0, 1]), bias=bias)
    np.testing.assert_array_equal(got, [[1 + 2 * half, 1, 1 + 4 * half, 1 + 2 * half]])
