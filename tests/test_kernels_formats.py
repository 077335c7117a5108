"""Operands of 16 bits give the bits of the numbers that their codes stand for: every product, kernel, format, size."""

import numpy as np
import pytest

from refmoe import kernels

if kernels.build_error() is not None:
    pytest.skip(f"no compiled module: {kernels.build_error()}", allow_module_level=True)

import kernel_oracle as oracle
from kernel_calls import CODES, Guarded, differing_bits, lib
from kernel_cases import CODE_MAKERS, CodeCase, grid_of_codes, sizes_round_a_tile, value_of
from kernel_oracle import Rule

KERNELS = [name for name, can_run, _ in kernels.available() if can_run]
PAIRS = [("bf16", "bf16"), ("fp16", "fp16"), ("bf16", "fp16"), ("float32", "bf16"), ("fp16", "float32")]
RULES = [Rule("exact", "float32"), Rule("exact", "bf16"), Rule("chain", "float32"), Rule("chain", "fp16")]

each_kernel = pytest.mark.parametrize("kernel", KERNELS)
each_pair = pytest.mark.parametrize(("left", "right"), PAIRS)
each_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.profile}-{rule.format}")


def assert_same(case, rule, kernel, want, threads=(1, 3)):
    for count in threads:
        got = case.outputs(Guarded(kernel, count, *case.formats), rule, lambda codes, form: codes)
        assert [differing_bits(a, b) for a, b in zip(got, want, strict=True)] == [0] * 7


def carried(case, rule, kernel):
    """What the same numbers give as float32, which test_kernels.py holds against NumPy."""
    return list(case.outputs(Guarded(kernel, 1), rule, value_of))


@pytest.mark.parametrize("make", CODE_MAKERS, ids=lambda make: make.__name__)
@each_rule
@each_pair
def test_bits_equal_rational_arithmetic(left, right, rule, make):
    case = CodeCase(make, (4, 0, 1), 9, 6, left, right)
    want = list(case.outputs(oracle, rule, value_of))
    for kernel in KERNELS:
        assert_same(case, rule, kernel, want)


@each_pair
@each_kernel
def test_bits_equal_those_of_carriers_at_every_size(kernel, left, right):
    for rule in RULES[:1] + RULES[2:3]:
        tile = [f(KERNELS.index(kernel), CODES[rule.profile]) for f in (lib.refmoe_tile_rows, lib.refmoe_tile_cols)]
        for number, (counts, M, K) in enumerate(sizes_round_a_tile(*tile)):
            case = CodeCase(CODE_MAKERS[number % len(CODE_MAKERS)], counts, M, K, left, right, seed=number)
            assert_same(case, rule, kernel, carried(case, rule, kernel), threads=(2,))


@pytest.mark.parametrize("form", ("bf16", "fp16"))
@each_kernel
def test_every_code_is_read_as_its_number(kernel, form):
    """1 * code in each place where a code may stand: the number itself, NaN canonical."""
    codes = np.arange(1 << 16, dtype=np.uint16).reshape(1, 1 << 16)
    numbers, one, all_rows = value_of(codes, form), np.ones((1, 1), np.float32), np.array([0, 1])
    for profile in ("exact", "chain"):
        rule, left, right = Rule(profile, "float32"), Guarded(kernel, 1, form), Guarded(kernel, 1, right=form)
        got = [
            left.grouped_matmul(rule, codes.T, one[None], np.array([0, 1 << 16])).T,
            right.grouped_matmul(rule, one, codes.reshape(1, -1, 1), all_rows),
            left.grouped_matmul_backward_x(rule, [(codes.T, one[None])], np.array([0, 1 << 16])).T,
            right.grouped_matmul_backward_x(rule, [(one, codes[None])], all_rows),
            left.grouped_matmul_backward_w(rule, codes, one, all_rows)[0].T,
            right.grouped_matmul_backward_w(rule, one, codes, all_rows)[0],
        ]
        want = np.where(numbers == 0, np.float32(0), numbers)  # a sum of zeros begins with +0
        assert [differing_bits(a, want) for a in got] == [0] * 6


@each_pair
@each_kernel
def test_long_sums_take_several_runs(kernel, left, right):
    for rule in RULES[:1] + RULES[2:3]:
        case = CodeCase(CODE_MAKERS[0], (3, 40), 5, 1031, left, right)
        assert_same(case, rule, kernel, carried(case, rule, kernel), threads=(2,))


@pytest.mark.parametrize("form", ("bf16", "fp16"))
@pytest.mark.parametrize("force", (None, "compensated", "exact"))
@each_kernel
def test_sums_of_codes_on_midpoints(kernel, form, force):
    """Short sums of 16-bit products are midpoints of the format: each tier reads the codes."""
    x, w = grid_of_codes(form)
    rule, offsets = Rule("exact", form, force), np.array([0, len(x)])
    a, b = value_of(x, form), value_of(w, form)
    want = np.array([[oracle.exact_sum(list(zip(r, c, strict=True)), [], form) for c in b[0].tolist()]
                     for r in a.tolist()], np.float32)  # fmt: skip
    engine = Guarded(kernel, 2, form, form)
    assert differing_bits(engine.grouped_matmul(rule, x, w, offsets), want) == 0
    assert force is None or sum(engine.tiers[:2]) == 0
    turned = np.ascontiguousarray(w.transpose(0, 2, 1))
    assert differing_bits(engine.grouped_matmul_backward_x(rule, [(x, turned)], offsets), want) == 0
    got = engine.grouped_matmul_backward_w(rule, np.ascontiguousarray(x.T), turned[0], np.array([0, x.shape[1]]))
    assert differing_bits(got[0], want) == 0
