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

    @property
    def x_right(self):
        """x as the second operand of the gradient of weights."""
        return self.x

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


# ---- operands of 16 bits ----

def any_codes(rng, shape, form):
    """Every code alike, with infinities, NaN and subnormals; of bf16 exponents that overflow and vanish."""
    return rng.integers(0, 1 << 16, shape).astype(np.uint16)


def middle_codes(rng, shape, form):
    """Numbers round 1 of both signs, over a few binades: nothing overflows, and sums must be rounded."""
    one = {"bf16": 0x3F80, "fp16": 0x3C00}[form]
    binade = {"bf16": 1 << 7, "fp16": 1 << 10}[form]
    codes = one + rng.integers(-4 * binade, 4 * binade, shape) | rng.integers(0, 2, shape) << 15
    return codes.astype(np.uint16)


def small_codes(rng, shape, form):
    """Subnormals and zeros of both signs, and now and then a large number that lifts them."""
    codes = rng.integers(0, {"bf16": 1 << 8, "fp16": 1 << 11}[form], shape)
    codes = np.where(rng.random(shape) < 0.3, {"bf16": 0x7E80, "fp16": 0x7800}[form], codes)
    return (codes | rng.integers(0, 2, shape) << 15).astype(np.uint16)


CODE_MAKERS = (middle_codes, any_codes, small_codes)


def value_of(codes, form):
    """What the codes stand for, as float32; float32 itself."""
    if form == "float32":
        return codes
    with np.errstate(invalid="ignore"):  # a signalling NaN
        numbers = codes.view(np.float16).astype(np.float32) if form == "fp16" else codes.astype(np.uint32) << 16
    return np.where(np.isnan(numbers.view(np.float32)), np.float32(np.nan), numbers.view(np.float32))


class CodeCase:
    """Operands of all three products, the first of each in the format `left`, the second in `right`."""

    def __init__(self, make, counts, M, K, left, right, M2=3, seed=0):
        rng, self.formats = np.random.default_rng(seed), (left, right)
        self.offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        E, N = len(counts), int(self.offsets[-1])
        shapes = {"x": (N, K), "d": (N, M), "d2": (N, M2)}, {"w": (E, M, K), "w2": (E, M2, K), "x_right": (N, K)}
        for form, names in zip((left, right), shapes, strict=True):
            for name, shape in names.items():
                setattr(self, name, wide(rng, shape) if form == "float32" else make(rng, shape, form))
        self.bias, self.acc_rows = coarse(rng, (E, M)), coarse(rng, (N, M))
        self.acc_x, self.acc_w = coarse(rng, (N, K)), coarse(rng, (E, M, K))

    def outputs(self, engine, rule, give):
        """As Case.outputs; `give(codes, format)` is what the engine takes for an operand."""
        forward, back_x, back_w = (getattr(engine, name) for name in PRODUCTS)
        left, right = self.formats
        x, d, d2 = (give(array, left) for array in (self.x, self.d, self.d2))
        w, w2, x_right = (give(array, right) for array in (self.w, self.w2, self.x_right))
        yield forward(rule, x, w, self.offsets)
        yield forward(rule, x, w, self.offsets, bias=self.bias)
        yield forward(rule, x, w, self.offsets, bias=self.bias, acc=self.acc_rows)
        yield back_x(rule, [(d, w)], self.offsets)
        yield back_x(rule, [(d, w), (d2, w2)], self.offsets, acc=self.acc_x)
        yield back_w(rule, d, x_right, self.offsets)
        yield back_w(rule, d, x_right, self.offsets, acc=self.acc_w)


def grid_of_codes(form):
    """x (n, 3), w (1, n, 3) of codes: 1 * a + 1 * b + tiny * c, where a + b is often a midpoint of the format."""
    numbers = np.array([1.0, 1.5, 2.0**-8, 2.0**-9, 2.0**-11, 2.0**-12, 3 * 2.0**-9, -1.0, 0.0, 1.0 + 2.0**-7])
    a, b = (grid.ravel() for grid in np.meshgrid(numbers, numbers))
    x = np.stack([np.ones(4), np.ones(4), [0.0, 2.0**-14, -(2.0**-14), 2.0**-10]], axis=1)
    w = np.stack([a, b, np.full(len(a), 2.0**-14)], axis=1)[None]
    if form == "fp16":
        return x.astype(np.float16).view(np.uint16), w.astype(np.float16).view(np.uint16)
    narrow = [(array.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16) for array in (x, w)]
    return tuple(narrow)


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

def drifting(length, last, rest):
    """Terms whose float64 sums lose every later one: 16 of 1, a midpoint less a little, then `last` without end."""
    terms = np.full(length, last)
    terms[:16] = 1
    terms[16:18] = 2.0**-20, -rest
    assert (terms.astype(np.float32) == terms).all()
    return terms.astype(np.float32)


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
