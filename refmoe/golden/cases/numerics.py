"""Cases of chapter 6: contractions at midpoints and limits, rounding, sums, elementary functions."""

import numpy as np

from .form import Case, above, f32

ABOUT = "One rounding: of contractions, of sums, of elementary functions, into each format."

NOTES = {
    "Midpoint": ("a sum rounded on the way to a midpoint", "ties that break the wrong way"),
    "Cancellation": ("large terms swallow the small ones", "relative errors of 100 %"),
    "Order": ("a chain that is split, reordered or not fused", "the last bits of profile chain"),
    "SignedZero": ("an exact zero with the sign of its operands, or a rounded zero without its own", "-0 for +0"),
    "Subnormal": ("flush to zero", "small results vanish"),
    "Overflow": ("saturation, or an intermediate overflow", "the largest value, or NaN, for infinity"),
    "Infinity": ("0 times infinity, or infinity minus infinity, not NaN", "a NaN that hides"),
    "DoubleRounding": ("a narrow format reached through float32", "one step off at midpoints"),
    "BiasInside": ("bias added after the rounding", "the last bit"),
    "CorrectRounding": ("a library's function within one unit, but not nearest", "other bits on another machine"),
    "EmptySum": ("a contraction over nothing left unwritten", "garbage"),
}


def cases():
    """Every case of the chapter."""
    yield from _contractions()
    yield from _rounding()
    yield from _sums()
    yield from _functions()


def _contract(comment, flags, a, b, bias=None, **more):
    inputs = {"x_rows": f32([a]).reshape(1, -1), "w": f32([b]).reshape(1, -1)}
    return Case(comment, flags, "contract", inputs | ({} if bias is None else {"bias": f32(bias)}), **more)


def _contractions():
    half, tiny = 2.0**-24, 2.0**-60
    hard = {
        "a tie goes to even, down": ([1.0, half], [1.0, 1.0]),
        "a tie goes to even, up": ([above(1.0), half], [1.0, 1.0]),
        "a tie plus a little goes up": ([1.0, half, tiny], [1.0, 1.0, tiny]),
        "a tie minus a little goes down": ([above(1.0), half, tiny], [1.0, 1.0, -tiny]),
        "large terms cancel": ([2.0**60, 1.0, 2.0**60], [2.0**60, 1.0, -(2.0**60)]),
        "terms out of order": ([1.0, 1e8, -1e8, 0.1], [1.0, 1.0, 1.0, 1.0]),
    }
    for comment, (a, b) in hard.items():
        flags = ("Cancellation",) if "cancel" in comment or "order" in comment else ("Midpoint",)
        yield _contract(comment, flags, a, b)
        yield _contract(f"{comment}; chain", ("Order", *flags), a, b, profile="chain")
    yield from _limits()
    yield _contract("the bias decides a tie", ("BiasInside", "Midpoint"), [1.0, half], [1.0, 1.0], bias=[tiny])
    yield _contract(
        "chain adds the bias last", ("BiasInside", "Order"), [1.0, half], [1.0, 1.0], bias=[half], profile="chain"
    )
    yield _contract("nothing to contract", ("EmptySum",), [], [])
    yield _contract("nothing but a bias", ("EmptySum", "BiasInside"), [], [], bias=[-0.5])
    for store, precision in (("bf16", 8), ("fp16", 11)):
        u = 2.0**-precision
        above_tie = [1.0, u, 2.0**-20], [1.0, 1.0, 2.0**-20]
        yield _contract(f"just above a midpoint of {store}", ("DoubleRounding", "Midpoint"), *above_tie, store=store)
        yield _contract(f"a midpoint of {store}", ("Midpoint",), [1.0, u], [1.0, 1.0], store=store)


def _limits():
    least = 2.0**-149
    yield _contract("an exact zero is +0", ("SignedZero",), [-0.0, 1.0, -1.0], [1.0, 1.0, 1.0])
    yield _contract("-0 times 1 is +0", ("SignedZero",), [-0.0], [1.0])
    yield _contract("chain starts from +0", ("SignedZero", "Order"), [-0.0], [1.0], profile="chain")
    yield _contract(
        "a product below half the least subnormal keeps its sign", ("SignedZero", "Subnormal"), [-least], [0.25]
    )
    yield _contract("half the least subnormal ties to zero", ("Subnormal", "Midpoint"), [least], [0.5])
    yield _contract("subnormal operands and result", ("Subnormal",), [3 * least, 2.0**-126], [1.0, 0.5])
    for store, big in (("float32", 2.0**127), ("bf16", 2.0**127), ("fp16", 2.0**15)):
        yield _contract(f"overflow of {store}", ("Overflow",), [big, big], [1.0, 1.0], store=store)
    yield _contract(
        "an overflow that cancels", ("Overflow", "Cancellation"), [2.0**127, 2.0**127, -(2.0**127)], [2.0, 2.0, 4.0]
    )
    inf = float("inf")
    for comment, a in (
        ("infinity minus infinity", [inf, -inf]),
        ("an infinity", [1.0, -inf]),
        ("NaN", [float("nan"), 1.0]),
    ):
        yield _contract(comment, ("Infinity",), a, [1.0, 1.0])
    yield _contract("0 times infinity", ("Infinity",), [0.0, 1.0], [inf, 1.0])


def _rounding():
    for store, precision, low, high in (("float32", 24, -149, 127), ("bf16", 8, -133, 127), ("fp16", 11, -24, 15)):
        u, top = 2.0**-precision, (2 - 2.0**-precision) * 2.0**high
        value = np.array([
            1 + u, 1 + 3 * u, 1 + u + 2.0**-45, -(1 + u) + 2.0**-45, 2.0**low / 2, -(2.0**low) / 2, 2.0**low * 0.75,
            2.0**low * 1.5, top, np.nextafter(top, 0), -top, 0.0, -0.0, np.inf, np.nan,
        ])  # fmt: skip
        yield Case(
            f"binary64 to {store}",
            ("Midpoint", "Subnormal", "Overflow", "DoubleRounding"),
            "round",
            {"value": value},
            store=store,
        )


def _sums():
    half = 2.0**-24
    terms = f32(
        [[1.0, 1.0, -0.0, 1e30, 2.0**-149], [half, -1.0, -0.0, 1.0, 2.0**-149], [half, 0.0, -0.0, -1e30, -(2.0**-148)]]
    )
    yield Case("three terms, one rounding", ("Midpoint", "SignedZero", "Cancellation"), "sum", {"terms": terms})


def _functions():
    points = [0.0, -0.0, 1.0, -1.0, 0.5, -2.75, 17.0, -17.0, 88.75, -104.0, 2.0**-13, -(2.0**-30), 1e-40, 3.0e38]
    for name in (
        "exp",
        "sigmoid",
        "tanh",
        "erf",
        "erfc",
        "softplus",
        "silu",
        "gelu",
        "gelu_tanh",
        "silu_derivative",
        "gelu_derivative",
    ):
        yield Case(name, ("CorrectRounding",), "function", {"t": f32(points)}, options={"name": name})
    for store in ("bf16", "fp16"):
        exact = f32([1.0, -1.0, 0.5, -2.75, 4.0, -4.5, 0.0078125, -8.0])
        yield Case(
            f"sigmoid into {store}",
            ("CorrectRounding", "DoubleRounding"),
            "function",
            {"t": exact},
            store=store,
            options={"name": "sigmoid"},
        )
    rows = f32([[1.0, 2.0, 3.0], [0.0, -200.0, 0.0], [1e30, 0.0, -1e30]])
    for name in ("softmax", "logsumexp"):
        yield Case(f"{name} by rows", ("CorrectRounding", "Overflow"), "function", {"t": rows}, options={"name": name})
