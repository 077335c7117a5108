"""Units of unit.c: output shared out among threads, rows that a thread holds from one unit to the next, empty pairs."""

import numpy as np
import pytest
from kernel_calls import Guarded, assert_same, differing_bits
from kernel_cases import RULES, Case, wide
from kernel_oracle import Rule, dtype

from refmoe import kernels
from refmoe.numerics.contract import NumpyEngine

KERNELS = [name for name, can_run, _ in kernels.available() if can_run]
each_kernel = pytest.mark.parametrize("kernel", KERNELS)


@pytest.mark.parametrize("counts", [(48,), (2, 44, 2)], ids=["alone", "with most of the rows"])
@pytest.mark.parametrize("profile", ("exact", "chain", "float64"))
@each_kernel
def test_one_expert_is_shared_out_among_all_threads(kernel, profile, counts):
    """Each thread that works has a room of its own, of which the workspace tells."""
    rule = Rule(profile, "float64" if profile == "float64" else "float32")
    rng, offsets = np.random.default_rng(3), np.concatenate([[0], np.cumsum(counts)])
    d, x = (wide(rng, (48, 96), dtype(rule)) for _ in range(2))
    engines = [kernels.load(kernel, threads) for threads in (1, 8)]
    got = [engine.grouped_matmul_backward_w(rule, d, x, offsets) for engine in engines]
    assert differing_bits(*got) == 0
    if profile != "float64":  # those calls report nothing
        assert engines[1].workspace_bytes > 6 * engines[0].workspace_bytes


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.format in ("float32", "float64")], ids=str)
@each_kernel
def test_rows_are_held_for_the_units_beside_and_no_others(kernel, rule):
    """As many rows of the next expert, of one that has none of its own, and columns of more than one unit."""
    case = Case(wide, rule, counts=(0, 5, 0, 5, 0), M=29, K=301)
    assert_same(case, rule, kernel, list(case.outputs(NumpyEngine(), rule)))


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.format in ("float32", "float64")], ids=str)
@each_kernel
def test_a_pair_of_no_columns_adds_nothing(kernel, rule):
    """First or last: the rows of the other are still those of each expert and unit."""
    rng, kind, offsets = np.random.default_rng(4), dtype(rule), [0, 5, 10, 150]
    d, w = wide(rng, (150, 7), kind), wide(rng, (3, 7, 19), kind)
    none = d[:, :0], w[:, :0]
    for threads in (1, 2):
        engine = Guarded(kernel, threads)
        want = engine.grouped_matmul_backward_x(rule, [(d, w)], offsets)
        for pairs in ([none, (d, w)], [(d, w), none]):
            assert differing_bits(engine.grouped_matmul_backward_x(rule, pairs, offsets), want) == 0
        assert not engine.grouped_matmul_backward_x(rule, [none, none], offsets).any()


@pytest.mark.parametrize("counts", [(0, 37, 13, 0), (150, 250)], ids=["few rows", "many"])
@pytest.mark.parametrize("form", ("float32", "bf16"))
@each_kernel
def test_back_to_x_through_several_runs_of_two_pairs(kernel, form, counts):
    """Weights that few rows meet are read where they lie, others are copied: whole panels, a rest, sums that wait."""
    rule, offsets = Rule("chain", form), np.concatenate([[0], np.cumsum(counts)])
    rng, N, K = np.random.default_rng(5), offsets[-1], 70
    pairs = [(wide(rng, (N, M), np.float32), wide(rng, (len(counts), M, K), np.float32)) for M in (131, 262)]
    acc = wide(rng, (N, K), np.float32)
    some = np.array([0, 13, 36, 37, N // 2, N - 1])
    for more in (None, acc):
        got = Guarded(kernel, 2).grouped_matmul_backward_x(rule, pairs, offsets, acc=more)
        expert = np.searchsorted(offsets, some, "right") - 1
        for row, e in zip(some, expert, strict=True):
            one = [(d[row : row + 1], w[e : e + 1]) for d, w in pairs]
            start = None if more is None else more[row : row + 1]
            want = NumpyEngine().grouped_matmul_backward_x(rule, one, np.array([0, 1]), acc=start)
            assert differing_bits(got[row : row + 1], want) == 0


@pytest.mark.parametrize("K", (1024, 1040), ids=["at one place of the cache", "elsewhere"])
@pytest.mark.parametrize("profile", ("exact", "chain"))
@each_kernel
def test_short_sums_of_columns_however_far_their_rows_are_apart(kernel, profile, K):
    """Few k are read where they lie, unless their lines meet: then they are copied."""
    rule, offsets = Rule(profile, "float32"), np.array([0, 19, 19, 31])
    rng, some = np.random.default_rng(6), np.array([0, 31, 32, 1000, K - 1])
    d, x = wide(rng, (31, 27), np.float32), wide(rng, (31, K), np.float32)
    want = NumpyEngine().grouped_matmul_backward_w(rule, d, np.ascontiguousarray(x[:, some]), offsets)
    got = Guarded(kernel, 2).grouped_matmul_backward_w(rule, d, x, offsets)
    assert differing_bits(np.ascontiguousarray(got[:, :, some]), want) == 0
