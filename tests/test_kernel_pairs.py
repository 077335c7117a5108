"""Two k a step (csrc/pairs.c): taken where they may be and nowhere else, and weights copied ahead."""

from pathlib import Path

import numpy as np
import pytest
from kernel_calls import Guarded, differing_bits
from kernel_cases import middle_codes, value_of
from kernel_oracle import Rule

from refmoe import kernels

KERNELS = [name for name, can_run, _ in kernels.available() if can_run]
each_kernel = pytest.mark.parametrize("kernel", KERNELS)
RULE = Rule("chain", "float32")
CPU = Path("/proc/cpuinfo")
HAS_DOT = CPU.exists() and "avx512_bf16" in CPU.read_text()


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


@pytest.mark.parametrize("length", (768, 530))
@each_kernel
def test_pairs_end_with_the_band_before_an_unsafe_weight(kernel, length):
    """In any run of any band, of those too that are copied while the run before them is summed."""
    x, w, offsets = operands(length)
    bands = 12 if kernel == "avx512" and HAS_DOT else 0
    for output in (0, 11, 12, 23, 35, 36, 39):
        for k in (0, 255, 256, 300, 512, length - 1):
            unsafe = w.copy()
            unsafe[0, output, k] = 0x0001 + k
            assert paired(kernel, x, unsafe, offsets) == 37 * (output // 12) * bands
    x[36, length - 1] = 0x8001
    assert paired(kernel, x, w, offsets) == 0
