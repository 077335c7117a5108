"""Two k a step (csrc/pairs.c): taken where they may be and nowhere else, and weights copied ahead."""

from pathlib import Path

import numpy as np
import pytest
from kernel_calls import Guarded, differing_bits
from kernel_cases import middle_codes, value_of
from kernel_oracle import Rule

from refmoe import kernels
from refmoe.formats import Packed

KERNELS = [name for name, can_run, _ in kernels.available() if can_run]
each_kernel = pytest.mark.parametrize("kernel", KERNELS)
RULE = Rule("chain", "float32")
CPU = Path("/proc/cpuinfo")
HAS_DOT = CPU.exists() and "avx512_bf16" in CPU.read_text()
SPECIAL = (0x2400, 0x23FF, 0xA3FF, 0x0001, 0x8000, 0x7F80, 0xFF80, 0x7FC0, 0x7F7F)  # 2^-55 and beside it; Inf; NaN
SAFE = {0x2400, 0x8000, 0x7F80, 0xFF80, 0x7FC0, 0x7F7F}


def paired(kernel, x, w, offsets, rule=RULE, left="bf16", **more):
    """How many outputs were; their bits are those of float32 operands, for one thread and two."""
    want = Guarded(kernel, 1).grouped_matmul(rule, value_of(x, left), value_of(w, "bf16"), offsets, **more)
    counts = set()
    for threads in (1, 2):
        engine = Guarded(kernel, threads, left, "bf16")
        assert differing_bits(engine.grouped_matmul(rule, x, w, offsets, **more), want) == 0
        counts.add(engine.paired)
    return counts.pop() if len(counts) == 1 else counts


def operands(length, rows=37, outputs=40):
    rng = np.random.default_rng(length)
    x, w = (middle_codes(rng, shape, "bf16") for shape in ((rows, length), (1, outputs, length)))
    return x, w, np.array([0, rows])


@pytest.mark.parametrize("length", (64, 256, 352, 511, 768, 1100))
@each_kernel
def test_pairs_are_taken_where_the_processor_has_them(kernel, length):
    x, w, offsets = operands(length)
    every = 37 * 40 if kernel == "avx512" and HAS_DOT else 0
    assert paired(kernel, x, w, offsets) == every
    assert paired(kernel, value_of(x, "bf16"), w, offsets, left="float32") == every
    assert paired(kernel, x, w, offsets, Rule("chain", "bf16"), bias=value_of(w[:, :, 0], "bf16")) == every
    assert paired(kernel, x, w, offsets, Rule("exact", "float32")) == 0
    assert paired(kernel, x, w, offsets, acc=np.ones((37, 40), np.float32)) == 0


@pytest.mark.parametrize("length", (768, 530, 2112))
@each_kernel
def test_pairs_end_with_the_panel_before_an_unsafe_weight(kernel, length):
    """In any run of any panel of 32 outputs, of those too that are turned while the run before them is summed."""
    x, w, offsets = operands(length, 13, 70)
    panel = 32 if kernel == "avx512" and HAS_DOT else 0
    for output in (0, 31, 32, 63, 69):
        for k in (0, 300, length - 65, length - 1):
            unsafe = w.copy()
            unsafe[0, output, k] = 0x0001 + k
            assert paired(kernel, x, unsafe, offsets) == 13 * (output // 32) * panel
    x[12, length - 1] = 0x8001
    assert paired(kernel, x, w, offsets) == 0


@each_kernel
def test_the_first_panel_of_a_unit_is_turned_with_the_one_before_it(kernel):
    """Across experts, of which one has no rows and another so few that weights are read in blocks of 16 outputs."""
    rng, offsets = np.random.default_rng(4), np.array([0, 12, 12, 21, 24, 44])
    x, w = middle_codes(rng, (44, 96), "bf16"), middle_codes(rng, (5, 64, 96), "bf16")
    every = kernel == "avx512" and HAS_DOT
    for expert, lost in ((0, 12), (1, 0), (2, 9), (3, 3), (4, 20)):
        for output, k in ((0, 0), (17, 95), (31, 64)):
            unsafe = w.copy()
            unsafe[expert, output, k] = 0x0001
            before = 3 * (output // 16 * 16) if expert == 3 else 0
            assert paired(kernel, x, unsafe, offsets) == ((44 - lost) * 64 + before) * every
    assert paired(kernel, x, np.where(w == w[2, 5, 5], 0, w).astype(np.uint16), offsets) == 44 * 64 * every


# ---- few rows: weights where they lie, a block of 16 outputs at a time ----

@pytest.mark.parametrize("length", (1, 2, 31, 32, 33, 63, 64, 161))
@each_kernel
def test_few_rows_take_pairs_in_whole_blocks(kernel, length):
    """1 to 8 rows, blocks and a rest of 8 outputs; sums of half a word, and with every kind of rest."""
    blocks = 32 if kernel == "avx512" and HAS_DOT else 0
    for rows in range(1, 9):
        x, w, offsets = operands(length, rows)
        assert paired(kernel, x, w, offsets) == rows * blocks
        assert paired(kernel, value_of(x, "bf16"), w, offsets, left="float32") == rows * blocks
        assert paired(kernel, value_of(x, "bf16") * np.float32(1 + 2**-9), w, offsets, left="float32") == 0
        assert paired(kernel, x, w, offsets, Rule("chain", "bf16"), bias=value_of(w[:, :, 0], "bf16")) == rows * blocks
        assert paired(kernel, x, w, offsets, acc=np.ones((rows, 40), np.float32)) == 0
        assert paired(kernel, x, w[:, :15], offsets) == 0


@each_kernel
def test_pairs_of_few_rows_end_with_the_block_before_an_unsafe_weight(kernel):
    """In the first k and the last, in lines and beside them; zeros, infinities and NaN are no reason."""
    block = 16 if kernel == "avx512" and HAS_DOT else 0
    for rows, length in ((1, 96), (3, 77)):
        x, w, offsets = operands(length, rows, 64)
        for output in (0, 15, 16, 47, 63):
            for k in (0, 31, 32, length - 1):
                for code in SPECIAL:
                    special = w.copy()
                    special[0, output, k] = code
                    done = 64 if code in SAFE else output // 16 * 16
                    assert paired(kernel, x, special, offsets) == rows * (done if block else 0)
        x[rows - 1, length - 1] = 0x8001
        assert paired(kernel, x, w, offsets) == 0


@each_kernel
def test_pairs_of_few_rows_begin_where_lines_do(kernel):
    """Rows of whole lines from every place of a line, of which every second is the middle of a word."""
    for length in (32, 64, 96):
        x, w, offsets = operands(length, 2, 32)
        want = Guarded(kernel, 1).grouped_matmul(RULE, value_of(x, "bf16"), value_of(w, "bf16"), offsets)
        room = np.zeros(w.size + 64, np.uint16)
        for first in range(32):
            begin = (first - room.ctypes.data % 64 // 2) % 32
            placed = room[begin : begin + w.size].reshape(w.shape)
            placed[...] = w
            engine = kernels.load(kernel, 1)
            got = engine.grouped_matmul(RULE, value_of(x, "bf16"), Packed(placed, "bf16"), offsets)
            assert placed.ctypes.data % 64 == 2 * first and differing_bits(got, want) == 0
            assert engine.paired == (64 if kernel == "avx512" and HAS_DOT else 0)


@pytest.mark.parametrize("kernel", KERNELS[-1:])
def test_what_large_weights_push_out_is_stored_past_the_caches(kernel):
    """More than 16 MiB of weights, outputs on the lines of the cache (as the engine allocates) and beside them."""
    rng, M, K = np.random.default_rng(3), 1040, 8128
    x, w = middle_codes(rng, (32, K), "bf16"), np.resize(middle_codes(rng, (1, 8, K + 5), "bf16"), (1, M, K))
    want = Guarded(kernel, 2).grouped_matmul(RULE, value_of(x, "bf16"), value_of(w, "bf16"), [0, 32])
    got = kernels.load(kernel, 2).grouped_matmul(RULE, value_of(x, "bf16"), Packed(w, "bf16"), [0, 32])
    assert w.nbytes > 1 << 24 and got.ctypes.data % 64 == 0
    assert differing_bits(got, want) == 0
    assert paired(kernel, x, w, np.array([0, 32])) == (32 * M if kernel == "avx512" and HAS_DOT else 0)


# ---- the way back: portable C, which has no such instruction, is what it is held against ----

FORMS = ("bf16", "float32")
each_other = pytest.mark.parametrize("kernel", [name for name in KERNELS if name != "portable"] or KERNELS)
STORED = Rule("chain", "bf16")


def outputs_paired(kernel, call, shape, left, right="bf16"):
    """How many outputs were, where call(engine, given) is one product; given(codes, format): how it is passed."""
    want = call(Guarded("portable", 1), lambda codes, form: value_of(codes, "bf16"))
    for threads in (2, 1):
        engine = Guarded(kernel, threads, left, right)
        got = call(engine, lambda codes, form: codes if form == "bf16" else value_of(codes, "bf16"))
        assert got.shape == shape and differing_bits(got, want) == 0
    return engine.paired  # by one thread, whose units do not depend on how many there are


def back_to_x(kernel, pairs, offsets, left, rule=STORED):
    def call(engine, given):
        return engine.grouped_matmul_backward_x(rule, [(given(d, left), given(w, "bf16")) for d, w in pairs], offsets)

    return outputs_paired(kernel, call, (len(pairs[0][0]), pairs[0][1].shape[2]), left)


def back_to_w(kernel, d, x, offsets, form, rule=STORED):
    def call(engine, given):
        return engine.grouped_matmul_backward_w(rule, given(d, form), given(x, form), offsets)

    return outputs_paired(kernel, call, (len(offsets) - 1, d.shape[1], x.shape[1]), form, form)


@pytest.mark.parametrize("form", FORMS)
@each_other
def test_pairs_back_to_x(kernel, form):
    """Odd and even sums, of one operand and of two, longer than a run; columns beside the last whole panel."""
    rng, offsets, every = np.random.default_rng(1), np.array([0, 1, 1, 30]), kernel == "avx512" and HAS_DOT
    for K, *lengths in ((33, 1), (8, 2), (300, 257), (40, 31, 5), (32, 514, 256)):
        pairs = [(middle_codes(rng, (30, M), "bf16"), middle_codes(rng, (3, M, K), "bf16")) for M in lengths]
        for rule in (STORED, RULE, Rule("chain", "fp16")):
            assert back_to_x(kernel, pairs, offsets, form, rule) == 30 * K * every
    d, w = pairs[1]
    for code in SPECIAL:
        for at in ((1, 0, 0), (2, 511, 31), (2, 255, 7)):
            weights = pairs[0][1].copy()
            weights[at] = code
            got = back_to_x(kernel, [(pairs[0][0], weights), (d, w)], offsets, form)
            unsafe = 0 if code in SAFE or at[0] == 1 else 29  # the expert in the middle has no rows
            assert got == (30 - unsafe) * 32 * every
        rows = d.copy()
        rows[29, 255] = code
        assert back_to_x(kernel, [pairs[0], (rows, w)], offsets, form) == (30 if code in SAFE else 1) * 32 * every


@pytest.mark.parametrize("form", FORMS)
@each_other
def test_pairs_back_to_w(kernel, form):
    """One row, none, odd and even numbers of them, more than a run; outputs beside the last whole tile and panel."""
    rng, offsets = np.random.default_rng(2), np.array([0, 1, 1, 34, 62, 333])
    every, M, K = kernel == "avx512" and HAS_DOT, 29, 300
    d, x = (middle_codes(rng, (333, n), "bf16") for n in (M, K))
    for rule in (STORED, RULE) if form == "bf16" else (STORED,):
        assert back_to_w(kernel, d, x, offsets, form, rule) == 4 * M * K * every
    for code in SPECIAL:
        for left, right in ((code, 0x3F80), (0x3F80, code)):
            rows, others = d.copy(), x.copy()
            rows[332, 28], others[61, 299] = left, right
            got = back_to_w(kernel, rows, others, offsets, form)
            lost = 0 if code in SAFE else M * K if left == code else M * (K - 160)  # the second unit of columns
            assert got == (4 * M * K - lost) * every


@each_other
def test_pairs_are_not_taken_back_to_w_where_numbers_are_not_bf16(kernel):
    rng, offsets = np.random.default_rng(3), np.array([0, 9, 20])
    d, x = (value_of(middle_codes(rng, (20, n), "bf16"), "bf16") for n in (13, 64))
    x[19, 63] = np.nextafter(x[19, 63], np.float32(9))
    engine = Guarded(kernel, 1)
    for rule, acc in ((STORED, None), (RULE, None), (STORED, np.ones((2, 13, 64), np.float32))):
        got = engine.grouped_matmul_backward_w(rule, d, x, offsets, acc)
        assert differing_bits(got, Guarded("portable", 1).grouped_matmul_backward_w(rule, d, x, offsets, acc)) == 0
        first = kernel == "avx512" and HAS_DOT and rule == STORED and acc is None
        assert engine.paired == 13 * 64 * first
