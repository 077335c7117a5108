"""Operands for all three products, each made for a reason. Needs NumPy alone: tests/cross/ writes them to a file."""

import numpy as np
from kernel_oracle import FORMATS, Rule, dtype

PRODUCTS = ("grouped_matmul", "grouped_matmul_backward_x", "grouped_matmul_backward_w")
RULES = [Rule(profile, form) for profile in ("exact", "chain") for form in ("float32", "bf16", "fp16")]
RULES.append(Rule("float64", "float64"))


# ---- operands ----

def wide(rng, shape, kind=np.float32):
    """Full significands over 40 binades: sums that must be rounded."""
    return (rng.standard_normal(shape) * 2.0 ** rng.integers(-20, 20, shape)).astype(kind)


def coarse(rng, shape, kind=np.float32):
    """Eight-bit significands near 1: short sums of their products often are midpoints."""
    return (rng.integers(-255, 256, shape) * 2.0 ** rng.integers(-9, -6, shape)).astype(kind)


def tiny(rng, shape, kind=np.float32):
    """Products and sums round the least numbers of every format."""
    least = {np.float32: -149, np.float64: -1074}[kind]
    scale = 2.0 ** rng.choice([least, least + 20, least // 2, least // 2 + 3, -12], shape)
    return (rng.integers(-9, 10, shape) * scale).astype(kind)


def special(rng, shape, kind=np.float32):
    """Mostly ordinary; now and then a signed zero, a subnormal, the largest number, an infinity or NaN."""
    info = np.finfo(kind)
    least, largest = info.smallest_subnormal, info.max
    rare = np.array([0.0, -0.0, least, -info.tiny, largest, -largest, np.inf, -np.inf, np.nan], kind)
    return np.where(rng.random(shape) < 0.12, rng.choice(rare, shape), coarse(rng, shape, kind)).astype(kind)


def signed_zeros(rng, shape, kind=np.float32):
    """Zeros of both signs and opposite ones: exact cancellation."""
    return rng.choice(np.array([0.0, -0.0, 1.0, -1.0], kind), shape)


MAKERS = (wide, coarse, tiny, special, signed_zeros)


class Case:
    """Operands of all three products over one plan."""

    def __init__(self, make, rule, counts, M, K, M2=3, seed=0):
        rng, kind = np.random.default_rng(seed), dtype(rule)
        self.offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        E, N = len(counts), int(self.offsets[-1])
        shapes = {"x": (N, K), "w": (E, M, K), "d": (N, M), "d2": (N, M2), "w2": (E, M2, K), "bias": (E, M)}
        shapes |= {"acc_rows": (N, M), "acc_x": (N, K), "acc_w": (E, M, K)}
        for name, shape in shapes.items():
            setattr(self, name, make(rng, shape, kind))

    def outputs(self, engine, rule):
        """Every product, bare and with all it may be given."""
        forward, back_x, back_w = (getattr(engine, name) for name in PRODUCTS)
        yield forward(rule, self.x, self.w, self.offsets)
        yield forward(rule, self.x, self.w, self.offsets, bias=self.bias)
        yield forward(rule, self.x, self.w, self.offsets, bias=self.bias, acc=self.acc_rows)
        yield back_x(rule, [(self.d, self.w)], self.offsets)
        yield back_x(rule, [(self.d, self.w), (self.d2, self.w2)], self.offsets, acc=self.acc_x)
        yield back_w(rule, self.d, self.x, self.offsets)
        yield back_w(rule, self.d, self.x, self.offsets, acc=self.acc_w)


# ---- sizes ----

def sizes_round_a_tile(rows, cols):
    """(rows of each expert, M, K): each for a reason."""
    yield (1,), 1, 1  # the least
    yield (0, 0), 5, 3  # no rows at all
    yield (), 5, 3  # no experts
    yield (3, 0, 2), 0, 4  # no columns
    yield (3, 0, 2), 4, 0  # sums over nothing
    yield (rows - 1, rows, rows + 1), cols - 1, cols + 1  # round a tile, one side each
    yield (2 * rows + 1, 0, rows), cols, cols
    yield (1, 0, 2 * rows - 1), cols + 1, cols - 1
    yield (7, 13, 1), 37, 67  # primes; 67 is past one run of the transposition
    yield (33, 31), 2 * cols, 2 * cols + 3  # sums over rows next to where short sums end
    yield (2,), 3, 259  # more columns than a unit has, going back
    yield (2,), 259, 3  # and forward, under a bias
    yield (520, 1), 2, 3  # more rows than a unit has
    yield (1,) * 9, 5, 6  # more units than threads


# ---- midpoints ----

def midpoint_terms(form, rng):
    """Sums (a, b) that are a midpoint of the format, or a midpoint plus or minus something far smaller.

    m 2^q + 2^(q-1) + rest, where m has the format's precision; the last kind hides 2^-140 behind 2^-60 - 2^-60, so that
    two float64 lose it and only the integer accumulator can tell.
    """
    precision = FORMATS[form][0]
    rest = [[], [(2.0**-30, 2.0**-30)], [(-(2.0**-30), 2.0**-30)], [(2.0**-70, 2.0**-70)], [(2.0**-70, -(2.0**-70))],
            [(1.0, 2.0**-60), (2.0**-70, 2.0**-70), (-1.0, 2.0**-60)],
            [(1.0, 2.0**-60), (-(2.0**-70), 2.0**-70), (-1.0, 2.0**-60)]]
    for m in (2 ** (precision - 1), 2 ** (precision - 1) + 1, 2**precision - 2, 2**precision - 1):
        for q in (-8, 3 - precision, 0):
            for sign in (1.0, -1.0):
                for more in rest:
                    terms = [(sign * m, 2.0**q), (sign, 2.0 ** (q - 1)), *more]
                    yield terms, [terms[i] for i in rng.permutation(len(terms))]


def subnormal_midpoints(form):
    """Sums round the midpoints of the format's subnormals, down to half the least number."""
    precision, least, _ = FORMATS[form]
    half = 2.0 ** ((least - precision) // 2 - 30), 2.0 ** (least - precision - ((least - precision) // 2 - 30))
    tail = (2.0**-140, 2.0**-140)
    for m in (1, 3, 5, 2**precision - 1):
        for sign in (1.0, -1.0):
            for more in ([], [tail], [(-tail[0], tail[1])]):
                yield [(sign * m * half[0], half[1]), *more]


def overflow_edges(form):
    """Sums at the midpoint between the largest finite number and the first power of two beyond it."""
    precision, _, beyond = FORMATS[form]
    for sign in (1.0, -1.0):
        for rest in (0.0, 2.0**-149, -(2.0**-149)):
            quantum = 2.0 ** (beyond - precision - 1)  # half of the last place of the largest number
            yield [(sign * 2.0 ** (precision + 1), quantum), (-sign, quantum), (rest, 2.0**-100)]
            yield [(sign * 2.0**120, 2.0**120), (rest, 1.0)]


def grid_edges(form):
    """A midpoint plus half a unit of float64: a grid test that allows one bit too many takes it for the midpoint."""
    half = 2.0 ** (25 - FORMATS[form][0])
    for sign in (1.0, -1.0):
        yield [(sign * 2.0**12, 2.0**13), (sign * half, 1.0), (sign * 2.0**-14, 2.0**-14)]


def diagonal(sums):
    """x (n, L), w (n, L) whose diagonal of x w^T are the sums (padded with zeros, which add nothing in exact)."""
    length = max(map(len, sums))
    exact = np.array([[*terms, *[(0.0, 0.0)] * (length - len(terms))] for terms in sums])
    padded = exact.astype(np.float32)
    assert (padded == exact).all()  # else the oracle would see other numbers than the kernel
    return np.ascontiguousarray(padded[..., 0]), np.ascontiguousarray(padded[..., 1])


def hard_triples():
    """a b + c that float64 takes for a float32 midpoint though it lies 2^-36 of the product beside one."""
    above, below = (1 + 2.0**-12, 1 - 2.0**-12 + 2.0**-24), (1 + 2.0**-18, 1 - 2.0**-18)  # products 1 +- 2^-36
    for a, b in (above, below):
        for n in (1, 2, 3, 2**23 - 1, 2**23, 2**23 + 1, 2**24 - 1):
            for last in (-149, -140, -126, -23, 0, 100):  # exponent of the last place of c
                for sign in (1.0, -1.0):
                    half = 2.0 ** ((last - 1) // 2), 2.0 ** (last - 1 - (last - 1) // 2)
                    yield a * half[0], sign * b * half[1], n * 2.0**last
                    yield a * half[0], sign * b * half[1], -n * 2.0**last
