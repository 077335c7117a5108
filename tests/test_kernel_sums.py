"""Exact sums in C give the bits of rational arithmetic and of NumPy: every kernel, format, shape of a term."""

import numpy as np
import pytest

from refmoe import kernels

if kernels.build_error() is not None:
    pytest.skip(f"no compiled module: {kernels.build_error()}", allow_module_level=True)

import kernel_oracle as oracle
from kernel_calls import Buffer, differing_bits, ffi, lib
from kernel_cases import (
    MAKERS,
    coarse,
    diagonal,
    grid_edges,
    midpoint_terms,
    overflow_edges,
    subnormal_midpoints,
    wide,
)

from refmoe.numerics import Gathered, Numerics

KERNELS = [name for name, can_run, _ in kernels.available() if can_run]
FORMATS = ("float32", "bf16", "fp16")
THREADS = (1, 2, 3)

each_kernel = pytest.mark.parametrize("kernel", KERNELS)
each_format = pytest.mark.parametrize("form", FORMATS)


def policy(form, kernel=None, threads=1):
    return Numerics(store=form, backend="c" if kernel else "numpy", kernel=kernel, threads=threads)


def in_c(kernel, form, terms, threads=2, name="routed"):
    """The sum in C, and not somewhere else."""
    num = policy(form, kernel, threads)
    made = num.sum(name, terms)
    assert num.engine.calls == {("sum", kernel): 1}
    return made


@pytest.mark.parametrize("count", (127, 128, 129, 300))
@each_kernel
def test_as_many_terms_as_the_stack_holds_and_more(kernel, count):
    terms = list(wide(np.random.default_rng(count), (count, 19, 5)))
    for threads in THREADS:
        assert differing_bits(in_c(kernel, "float32", terms, threads), policy("float32").sum("routed", terms)) == 0


# ---- bits against rational arithmetic ----


@each_format
@each_kernel
def test_midpoints_plus_and_minus_one_quantum(kernel, form):
    """Each sum is a column; without its factors of one, also as a sum of plain numbers where they are float32."""
    sums = [terms for pair in midpoint_terms(form, np.random.default_rng(1)) for terms in pair]
    sums += [*subnormal_midpoints(form), *overflow_edges(form), *grid_edges(form)]
    a, b = diagonal(sums)
    want = np.array([oracle.exact_sum(terms, [], form) for terms in sums], np.float32)
    assert differing_bits(in_c(kernel, form, list(zip(a.T, b.T))), want) == 0


@each_format
@each_kernel
def test_plain_midpoints(kernel, form):
    precision = oracle.FORMATS[form][0]
    half, least = 2.0**-precision, 2.0**-149
    heads = [1.0, 1 + 2 * half, 1 + 4 * half, 2 - 2 * half, 2.0**-100, 1.5]
    rest = [half, -half, half / 2, least, -least, 2.0**-60, -(2.0**-60), 0.0, -0.0]
    grid = np.array(np.meshgrid(heads, rest, rest, [0.0, 2.0**-130], [1.0, -1.0])).reshape(5, -1)
    terms = list((grid[:4] * grid[4]).astype(np.float32))
    want = [oracle.exact_sum([], parts, form) for parts in np.array(terms, float).T.tolist()]
    assert differing_bits(in_c(kernel, form, terms), np.array(want, np.float32)) == 0


@pytest.mark.parametrize("force", ("compensated", "exact"))
def test_forced_tiers_give_the_same_bits(force):
    for form in FORMATS:
        a, b = diagonal([terms for pair in midpoint_terms(form, np.random.default_rng(2)) for terms in pair])
        terms = list(zip(a.T, b.T))
        num = Numerics(store=form, backend="c", force_tier=force)
        assert differing_bits(num.sum("routed", terms), in_c(KERNELS[-1], form, terms)) == 0


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
@each_format
@each_kernel
def test_bits_equal_rational_arithmetic(kernel, form, make):
    rng = np.random.default_rng(MAKERS.index(make))
    a, b, c = make(rng, (5, 13)), make(rng, (5, 13)), make(rng, (5, 13))
    pairs = [list(zip(row, other)) for row, other in zip(a.T.tolist(), b.T.tolist())]
    with_product = [oracle.exact_sum(p, q, form) for p, q in zip(pairs, c.T.tolist())]
    plain = [oracle.exact_sum([], q, form) for q in c.T.tolist()]
    got = in_c(kernel, form, [*zip(a, b), *c]), in_c(kernel, form, list(c))
    assert [differing_bits(x, np.array(y, np.float32)) for x, y in zip(got, (with_product, plain))] == [0, 0]


# ---- bits against NumPy ----


def shapes_of_terms(make, rng, n, m):
    """Lists of terms of every shape: gathered, weighted, broadcast along rows or columns, strided."""
    rows, index, weights = make(rng, (n + 3, m)), rng.integers(-1, n + 3, (n, 4)), make(rng, (n, 4))
    parts = [Gathered(rows, index[:, k]) for k in range(4)]
    yield parts
    yield [(weights[:, k, None], part) for k, part in enumerate(parts)]
    yield [(weights[:, :1], parts[0])]
    yield [*((weights[:, k, None], part) for k, part in enumerate(parts[:2])), make(rng, (m,)), make(rng, (n, m))]
    yield [make(rng, (n, m)), make(rng, (n, m))]
    yield [rows[:n], parts[0], rows[:n], Gathered(rows[:n], index[:, 0] % n), (rows[:n], parts[1])]
    yield [make(rng, (n, 2 * m))[:, ::2], make(rng, (m, n)).T, make(rng, (n, 1)), make(rng, (2 * n, m))[::-2]]
    yield [make(rng, (n, m)), np.ndarray((n, m), np.float32, rng.bytes(n * (4 * m + 2)), 0, (4 * m + 2, 4))]
    yield [make(rng, (m,)), (make(rng, (m,)), make(rng, (m,)))]
    yield [make(rng, (2, n, m)), (make(rng, (2, n, m)), make(rng, (2, n, m)))]


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
@each_format
@each_kernel
def test_bits_equal_numpy_for_every_shape_of_a_term(kernel, form, make):
    for n, m in ((1, 1), (9, 7), (19, 8), (2, 37)):
        for terms in shapes_of_terms(make, np.random.default_rng(n), n, m):
            want = policy(form).sum("routed", terms)
            for threads in THREADS:
                assert differing_bits(in_c(kernel, form, terms, threads), want) == 0


@each_kernel
def test_a_row_that_is_not_there_outweighs_nan(kernel):
    rows, index = np.full((1, 3), np.inf, np.float32), np.array([-1, 0, -1])
    weights = np.array([[np.nan], [1], [0]], np.float32)
    want = np.array([[0] * 3, [np.inf] * 3, [0] * 3], np.float32)
    terms = [(weights, Gathered(rows, index))]
    assert differing_bits(in_c(kernel, "float32", terms), want) == 0
    assert differing_bits(policy("float32").sum("routed", terms), want) == 0


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
@each_format
def test_sums_of_rows_equal_sums_of_terms(form, make):
    rng, offsets = np.random.default_rng(5), np.array([0, 5, 5, 6, 23])
    rows, start = make(rng, (23, 9)), make(rng, (4, 9))
    slow = policy(form)
    for first in (None, start):
        starts = np.zeros_like(start) if first is None else first
        want = [slow.sum("d_b_up", [s, *rows[a:b]]) for s, a, b in zip(starts, offsets, offsets[1:])]
        for num in (slow, *(policy(form, kernel, 2) for kernel in KERNELS)):
            assert differing_bits(num.sum_rows("d_b_up", rows, offsets, first), np.array(want)) == 0


def test_sums_of_rows_in_float64_follow_the_rows():
    rng, num = np.random.default_rng(5), Numerics("float64")
    rows, start = wide(rng, (23, 9), np.float64), wide(rng, (2, 9), np.float64)
    got = num.sum_rows("d_b_up", rows, np.array([0, 5, 23]), start)
    want = [num.sum("d_b_up", [s, *part]) for s, part in zip(start, (rows[:5], rows[5:]))]
    assert differing_bits(got, np.array(want)) == 0


def test_what_c_does_not_read_is_added_by_numpy():
    num = policy("float32", KERNELS[-1])
    doubles = np.array([1.0, 2.0**-30])
    assert (num.sum("routed", [doubles, doubles]) == 2 * doubles).all()
    assert num.sum("routed", [np.ones((0, 3), np.float32)]).shape == (0, 3)
    assert not num.engine.calls


# ---- weighted sums by slot ----


@pytest.mark.parametrize("top_k", (1, 8, 129))
@each_format
@each_kernel
def test_a_weighted_sum_is_the_sum_of_its_terms(kernel, form, top_k):
    rng = np.random.default_rng(top_k)
    rows, weights = wide(rng, (40, 21)), wide(rng, (17, top_k))
    slot_row = rng.integers(-1, 40, (17, top_k))
    slot_row[3] = -1
    terms = [(weights[:, k, None], Gathered(rows, slot_row[:, k])) for k in range(top_k)]
    want = policy(form).sum("routed", terms)
    for threads in THREADS:
        num = policy(form, kernel, threads)
        assert differing_bits(num.weighted_sum("routed", rows, weights, slot_row), want) == 0
        assert num.engine.calls == {("weighted_sum", kernel): 1}


def test_without_rows_a_weighted_sum_is_zero_and_without_slots_c_has_none():
    num, weights = policy("float32", KERNELS[-1]), np.ones((3, 2), np.float32)
    none = np.full((3, 2), -1)
    assert (num.weighted_sum("routed", np.ones((0, 5), np.float32), weights, none) == np.zeros((3, 5))).all()
    rows = np.ones((2, 5), np.float32)
    assert num.weighted_sum("routed", rows, weights[:, :0], none[:, :0]) is None
    assert num.weighted_sum("routed", rows, weights, none.astype(np.int32)) is None


def weighted(table, index, into, how=None, **changes):
    """refmoe_weighted_sum_f32 of 20 tokens, two slots each, weights of 1."""
    N, m = table.array.shape
    held = Buffer(np.ones((20, 2), np.float32))
    given = {"tokens": 20, "cols": m, "top_k": 2, "rows": N, "y_rows": table.pointer(), "weights": held.pointer(),
             "slot_row": index.pointer(), "out": into.pointer()} | changes  # fmt: skip
    how = ffi.new("refmoe_how *", how or (len(KERNELS) - 1, 2, lib.REFMOE_EXACT, lib.REFMOE_FLOAT32, 0))
    status = lib.refmoe_weighted_sum_f32(how, *given.values())
    held.assert_untouched()
    return status


def test_a_weighted_sum_writes_its_output_alone():
    rows, index, _ = buffers()
    out = Buffer((20, 5), np.float32)
    assert weighted(rows, index, out) == lib.REFMOE_OK
    rows.assert_untouched(), index.assert_untouched(), out.assert_guards()
    taken = np.where(index.array[:, None] < 0, 0, rows.array[index.array]).reshape(20, 2, 5)
    assert differing_bits(out.array, taken.sum(axis=1) + np.float32(0)) == 0


WEIGHTED = {
    "REFMOE_BAD_KERNEL": [{"how": (99, 1, 0, 0, 0)}],
    "REFMOE_BAD_THREADS": [{"how": (0, 0, 0, 0, 0)}],
    "REFMOE_BAD_FORMAT": [{"how": (0, 1, 0, lib.REFMOE_FLOAT64, 0)}],
    "REFMOE_BAD_POINTER": [{name: ffi.NULL} for name in ("y_rows", "weights", "slot_row", "out")],
    "REFMOE_BAD_SIZE": [{"tokens": -1}, {"cols": -1}, {"top_k": 0}, {"rows": -1}, {"cols": 1 << 60}],
    "REFMOE_BAD_OFFSETS": [{"rows": 5}],
}


@pytest.mark.parametrize("status", WEIGHTED)
def test_a_weighted_sum_refuses_before_the_first_write(status):
    rows, index, _ = buffers()
    index.array[:] = np.arange(40) % 6
    out = Buffer((20, 5), np.float32)
    for changes in WEIGHTED[status]:
        assert weighted(rows, index, out, **changes) == getattr(lib, status), changes
    index.array[-1] = -2
    assert weighted(rows, index, out) == lib.REFMOE_BAD_OFFSETS
    out.assert_untouched()


# ---- what C refuses, and what it leaves alone ----

NO_VIEW = (ffi.NULL, 0, 0, ffi.NULL, 0, 0)


def call(table, index, out, how=None, sizes=None, **changes):
    """refmoe_sum_f32 on rows gathered by an index."""
    N, m = table.array.shape
    view = {"array": table.pointer(), "row": m, "col": 1, "index": index.pointer(), "step": 1, "rows": N} | changes
    terms = ffi.new("refmoe_term[]", [(tuple(view.values()), NO_VIEW)])
    sizes = sizes or (*out.array.shape, 1)
    how = ffi.new("refmoe_how *", how or (len(KERNELS) - 1, 2, lib.REFMOE_EXACT, lib.REFMOE_FLOAT32, 0))
    return lib.refmoe_sum_f32(how, *sizes, terms, out.pointer())


def buffers():
    rng = np.random.default_rng(0)
    return Buffer(coarse(rng, (6, 5))), Buffer(rng.integers(-1, 6, 40)), Buffer((40, 5), np.float32)


def test_only_the_output_is_written():
    rows, index, out = buffers()
    assert call(rows, index, out) == lib.REFMOE_OK
    rows.assert_untouched(), index.assert_untouched(), out.assert_guards()
    want = np.where(index.array[:, None] < 0, 0, rows.array[index.array]) + np.float32(0)
    assert differing_bits(out.array, want) == 0


REFUSED = {
    "REFMOE_BAD_KERNEL": {"how": (99, 1, 0, 0, 0)},
    "REFMOE_BAD_THREADS": {"how": (0, 0, 0, 0, 0)},
    "REFMOE_BAD_FORMAT": {"how": (0, 1, 0, lib.REFMOE_FLOAT64, 0)},
    "REFMOE_BAD_FORCE": {"how": (0, 1, 0, 0, 3)},
    "REFMOE_BAD_POINTER": {"array": ffi.NULL},
    "REFMOE_BAD_SIZE": {"col": 2},
    "REFMOE_BAD_OFFSETS": {"rows": 5},
}


@pytest.mark.parametrize("status", REFUSED)
def test_refusals_come_before_the_first_write(status):
    rows, index, out = buffers()
    index.array[:] = np.arange(40) % 6
    assert call(rows, index, out, **REFUSED[status]) == getattr(lib, status)
    out.assert_untouched()


@pytest.mark.parametrize("sizes", [(-1, 5, 1), (40, -1, 1), (40, 5, 0), (1 << 40, 1 << 40, 1)])
def test_impossible_sizes_are_refused(sizes):
    rows, index, out = buffers()
    assert call(rows, index, out, sizes=sizes) == lib.REFMOE_BAD_SIZE
    out.assert_untouched()


def test_an_index_below_minus_one_is_refused():
    rows, index, out = buffers()
    index.array[-1] = -2
    assert call(rows, index, out) == lib.REFMOE_BAD_OFFSETS
    with pytest.raises(ValueError, match="sum"):
        policy("float32", KERNELS[-1]).sum("routed", [Gathered(rows.array, index.array)])
