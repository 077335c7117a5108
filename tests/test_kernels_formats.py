"""Operands of 16 bits give the bits of the numbers that their codes stand for: every product, kernel, format, size."""

import numpy as np
import pytest

from refmoe import kernels

if kernels.build_error() is not None:
    pytest.skip(f"no compiled module: {kernels.build_error()}", allow_module_level=True)

import kernel_oracle as oracle
from kernel_calls import CODES, Guarded, differing_bits, lib
from kernel_cases import CODE_MAKERS, CodeCase, grid_of_codes, middle_codes, sizes_round_a_tile, value_of
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


# ---- two k a step (csrc/pairs.c), where the processor can and the operands allow it ----


def forward_equals_carriers(kernel, x, w, offsets, left="bf16", form="float32", **more):
    """The chain of bf16 weights gives the bits of float32 operands; returns them."""
    rule, numbers = Rule("chain", form), [value_of(x, left), value_of(w, "bf16")]
    want = Guarded(kernel, 1).grouped_matmul(rule, *numbers, offsets, **more)
    for threads in (1, 2):
        got = Guarded(kernel, threads, left, "bf16").grouped_matmul(rule, x, w, offsets, **more)
        assert differing_bits(got, want) == 0
    return want


@pytest.mark.parametrize("rows", (9, 16, 17, 40, 71, 130))
@each_kernel
def test_pairs_keep_the_order_of_the_sum(kernel, rows):
    rng = np.random.default_rng(rows)
    for length in (1, 2, 33, 511, 513, 1027):
        x, w = (middle_codes(rng, shape, "bf16") for shape in ((rows, length), (1, 29, length)))
        bias = value_of(middle_codes(rng, (1, 29), "bf16"), "bf16")
        forward_equals_carriers(kernel, x, w, np.array([0, rows]))
        forward_equals_carriers(kernel, x, w, np.array([0, rows]), form="bf16", bias=bias)
        numbers, acc = value_of(x, "bf16"), np.tile(bias[0], (rows, 1))
        forward_equals_carriers(kernel, numbers, w, np.array([0, rows]), "float32")
        forward_equals_carriers(kernel, numbers, w, np.array([0, rows]), "float32", acc=acc)


@each_kernel
def test_numbers_that_are_not_bf16_are_not_cut_to_it(kernel):
    rng, offsets = np.random.default_rng(0), np.array([0, 40])
    w, x = middle_codes(rng, (1, 13, 70), "bf16"), value_of(middle_codes(rng, (40, 70), "bf16"), "bf16")
    for row, k in ((0, 0), (33, 69), (39, 1)):
        other = x.copy()
        other[row, k] = np.nextafter(other[row, k], np.float32(9))
        forward_equals_carriers(kernel, other, w, offsets, "float32")


@pytest.mark.parametrize("last", range(-80, -55))
@each_kernel
def test_sums_next_to_the_subnormals_are_kept(kernel, last):
    """255 * 255 - 254 * 256 = 1, in units of 2^last each: the instruction would flush it from 2^-127 on."""
    x, w = (np.array(row) * 2.0**last for row in ((255, -254, 0), (255, 256, 2.0**90)))
    x, w = (np.tile(row.astype(np.float32).view(np.uint32) >> 16, (9, 1)).astype(np.uint16) for row in (x, w))
    got = forward_equals_carriers(kernel, x, w[None], np.array([0, 9]))
    assert (got == np.float32(2.0 ** (2 * last))).all()


@pytest.mark.parametrize("code", (0x2400, 0x23FF, 0xA3FF, 0x0001, 0x8001, 0x8000, 0x7F80, 0xFF80, 0x7FC0, 0x7F7F))
@each_kernel
def test_one_unsafe_number_anywhere_changes_no_bit(kernel, code):
    """At 2^-55 and beside it, subnormal, infinite, NaN: among the rows of x or in any band and run of the weights."""
    rng, offsets = np.random.default_rng(code), np.array([0, 37, 75])
    x, w = (middle_codes(rng, shape, "bf16") for shape in ((75, 530), (2, 27, 530)))
    x[:, 100:120] = rng.integers(0x2400, 0x2500, (75, 20))  # small, and still safe
    for at in (None, (0, 0, 0), (0, 13, 529), (1, 26, 110), (0, 12, 515)):
        rows, weights = x.copy(), w.copy()
        if at is None:
            rows[36, 110] = code
        else:
            weights[at] = code
        forward_equals_carriers(kernel, rows, weights, offsets)
        if at is not None:  # alone: what would be flushed is the whole sum
            forward_equals_carriers(kernel, rows, np.where(weights == code, weights, 0).astype(np.uint16), offsets)
