"""Weights as codes and scales, each kind made for a reason, and what NumPy makes of their exact products."""

import numpy as np
from kernel_cases import PRODUCTS, coarse, wide

from refmoe.formats import FORMATS, SCHEMES, Packed, pack_nibbles

SCALE_BITS = {"E8M0": (1, 255), "E4M3": (8, 126), "float32": (1, 0x7F7FFFFF)}  # codes of numbers above zero


def number_of_codes(form):
    return 1 << {"E3M2": 6, "E2M3": 6, "E2M1": 4, "int4": 4}.get(form, 8)


def any_scales(rng, shape, form):
    """Every positive number of the format alike, subnormals too; float32 with 24 bits."""
    low, high = SCALE_BITS[form]
    return rng.integers(low, high, shape)


def middle_scales(rng, shape, form):
    """Numbers round 1, so that many of them meet in one sum."""
    low, high = {"E8M0": (124, 131), "E4M3": (0x30, 0x48), "float32": (0x3E800001, 0x40800000)}[form]
    return rng.integers(low, high, shape)


def odd_scales(rng, shape, form):
    """Middle ones, and now and then NaN, zero, infinity, the least number, a negative one, whatever the format has."""
    rare = {"E8M0": [255, 0], "E4M3": [127, 255, 0, 1, 0xB8], "float32": [0x7FC00000, 0xFF800000, 0, 1, 0xC0490FDB]}
    return np.where(rng.random(shape) < 0.1, rng.choice(rare[form], shape), middle_scales(rng, shape, form))


SCALE_MAKERS = (middle_scales, any_scales, odd_scales)


def packed(rng, shape, scheme, scales=middle_scales, block=None):
    """(E, M, K) weights of a scheme: every code there is, under scales of a kind."""
    row = SCHEMES[scheme]
    (E, M, K), block = shape, block or row.block
    codes = rng.integers(0, number_of_codes(row.format), shape).astype(np.uint8)
    if number_of_codes(row.format) == 16:
        codes = pack_nibbles(np.pad(codes, ((0, 0), (0, 0), (0, K % 2))))
    made = scales(rng, (E, -(-M // block[0]), -(-K // block[1])), row.scale)
    if row.scale == "E8M0":  # within float32, beyond which NumPy refuses
        made = np.where(made == 255, 255, np.minimum(made, 254 - FORMATS[row.format].emax - 1))
    made = made.astype(np.uint32).view(np.float32) if row.scale == "float32" else made.astype(np.uint8)
    tensor = wide(rng, E) if row.tensor_scale else None
    columns = K if number_of_codes(row.format) == 16 and K % 2 else None
    return Packed(codes, row.format, made, block, row.scale, tensor, columns)


def products(w):
    """The exact products (E, M, K): float64, or float32 where it holds them."""
    with np.errstate(invalid="ignore"):
        return np.stack([w(e) for e in range(len(w))])


class ScaledCase:
    """Operands of the two products that read weights."""

    def __init__(self, make, scheme, counts, M, K, scales=middle_scales, block=None, M2=3, seed=0):
        rng = np.random.default_rng(seed)
        self.offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        E, N = len(counts), int(self.offsets[-1])
        self.w, self.w2 = (packed(rng, (E, rows, K), scheme, scales, block) for rows in (M, M2))
        self.x, self.d, self.d2 = (make(rng, shape) for shape in ((N, K), (N, M), (N, M2)))
        self.bias, self.acc_rows, self.acc_x = (coarse(rng, shape) for shape in ((E, M), (N, M), (N, K)))

    def outputs(self, engine, rule, give=lambda w: w):
        """`give(w)` is what the engine takes for weights."""
        forward, back_x = (getattr(engine, name) for name in PRODUCTS[:2])
        w, w2 = give(self.w), give(self.w2)
        yield forward(rule, self.x, w, self.offsets)
        yield forward(rule, self.x, w, self.offsets, bias=self.bias)
        yield forward(rule, self.x, w, self.offsets, bias=self.bias, acc=self.acc_rows)
        yield back_x(rule, [(self.d, w)], self.offsets)
        yield back_x(rule, [(self.d, w), (self.d2, w2)], self.offsets, acc=self.acc_x)
