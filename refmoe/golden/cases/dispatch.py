"""Cases of chapter 2: the plan, capacity and drops, permute and combine, and back."""

from ...config import CAPACITY_NAMES
from .form import Case, above, f32, ints, sizes

ABOUT = "From indices and weights to rows in expert order, and from rows back to tokens."

NOTES = {
    "RowOrder": ("rows of an expert in slot order, not in token order", "a permuted row tensor"),
    "EmptyExpert": ("experts without rows skipped in the offsets", "every later expert reads its neighbour's rows"),
    "SlotMajor": (
        "capacity counted token by token where first choices go first, or the reverse",
        "other slots are dropped",
    ),
    "Probability": ("drops by position where the smallest weights should go", "the best slots are lost"),
    "CapacityCeil": (
        "capacity rounded down, or computed in floating point from the decimal text",
        "one row more or less for each expert",
    ),
    "CapacityZero": ("capacity 0 read as no limit", "nothing is dropped"),
    "CapacityRule": ("another framework's capacity formula", "other slots are dropped"),
    "SequenceScope": ("capacity counted over the batch", "late sequences lose their tokens"),
    "BatchPriority": ("tokens served in their own order", "tokens with a small score keep their rows"),
    "Lots": ("a tie, or lots, settled by what a top-k kernel happens to do", "other slots are dropped"),
    "StandIn": ("a token's later choices served beside its first one", "tokens with two rows, and others with none"),
    "Protected": ("protected tokens dropped, or not counted", "a sequence that must not lose tokens does"),
    "DeviceBudget": ("a device's budget counted by expert", "a busy expert is cut although its device has room"),
    "Coin": (
        "the coin against the unnormalised weight, without its factor, or after the capacity",
        "second experts kept or lost, and with them the places of others",
    ),
    "MaskCounts": (
        "padding counted in assigned_per_expert, or not computed like any other token",
        "losses and controllers see ghosts",
    ),
    "UnusedSlot": ("index -1 dispatched", "a row of the last expert"),
    "OneRounding": ("combine rounds after each addition", "the last bits of the output"),
    "CancelZero": ("an exact zero stored as -0", "a sign that spreads"),
    "DroppedGradient": ("a dropped slot keeps a gradient", "the router is rewarded for nothing"),
}


def cases():
    """Every case of the chapter."""
    yield from _plans()
    yield from _capacity()
    yield from _rows()
    yield from _formulas()
    yield from _queues()


def _plans():
    yield Case("token order inside an expert, whatever the slot", ("RowOrder",), "plan",
               {"topk_indices": ints([[2, 0], [0, 2], [2, 1], [0, 1]])}, sizes(3, 2))  # fmt: skip
    yield Case(
        "experts 0, 2 and 4 get nothing",
        ("EmptyExpert",),
        "plan",
        {"topk_indices": ints([[3, 1], [1, 3]])},
        sizes(5, 2),
    )
    yield Case(
        "all tokens to the last expert", ("EmptyExpert",), "plan", {"topk_indices": ints([[2], [2], [2]])}, sizes(3, 1)
    )
    yield Case("no tokens at all", ("EmptyExpert",), "plan", {"topk_indices": ints([]).reshape(0, 2)}, sizes(3, 2))
    unused = {"topk_indices": ints([[-1, 1], [0, -1], [-1, -1]])}
    yield Case("unused slots have no row", ("UnusedSlot",), "plan", unused, sizes(2, 2))
    masked = {"topk_indices": ints([[0, 1], [1, 0], [1, 2]]), "token_mask": ints([1, 0, 1]).astype(bool)}
    yield Case("a masked token has rows and is not counted", ("MaskCounts",), "plan", masked, sizes(3, 2))


def _capacity():
    indices = ints([[0, 1], [1, 0], [0, 1], [1, 0]])
    weights = f32([[0.6, 0.4], [0.9, 0.1], [0.7, 0.3], [0.8, 0.1]])
    inputs = {"topk_indices": indices, "topk_weights": weights}
    for order in ("slot_major", "token_major"):
        for policy in ("position", "probability"):
            dispatch = {"capacity": 3, "slot_order": order, "drop_policy": policy}
            flags = ("SlotMajor",) if policy == "position" else ("Probability", "SlotMajor")
            yield Case(f"capacity 3, {policy}, {order}", flags, "plan", inputs, sizes(2, 2, dispatch=dispatch))
    yield Case("capacity 0 drops everything", ("CapacityZero",), "plan", inputs, sizes(2, 2, dispatch={"capacity": 0}))
    for factor in (0.5, 0.75, 1.1):
        config = sizes(2, 2, dispatch={"capacity_factor": factor})
        yield Case(f"capacity factor {factor}", ("CapacityCeil",), "plan", inputs, config)
    ten = {"topk_indices": ints([[t % 2] for t in range(10)] + [[0]] * 10)}
    yield Case("1.1 x 20 / 2 is a little more than 11, so 12", ("CapacityCeil",), "plan", ten,
               sizes(2, 1, dispatch={"capacity_factor": 1.1}))  # fmt: skip
    sequences = {"topk_indices": ints([[0], [0], [0], [0], [1], [0]]), "sequence_ids": ints([7, 7, 3, 3, 7, 3])}
    for scope in ("batch", "sequence"):
        config = sizes(2, 1, dispatch={"capacity": 2, "capacity_scope": scope})
        yield Case(f"capacity 2 by {scope}", ("SequenceScope",), "plan", sequences, config)


def _rows():
    config = sizes(3, 2, 2)
    inputs = {
        "topk_indices": ints([[2, 0], [0, 1], [1, 2]]),
        "topk_weights": f32([[0.75, 0.25], [0.1, 0.9], [1 / 3, 2 / 3]]),
        "x": f32([[1.5, -2.0], [0.1, 0.2], [-3.0, 7.0]]),
        "y_rows": f32([[0.3, -1.0], [2.5, 1e-8], [4.0, 1.0], [-7.0, 0.7], [0.11, 3e5], [1e-3, -1.0]]),
        "d_routed": f32([[1.0, -0.5], [0.3, 0.7], [-0.2, 1e-4]]),
        "d_x_rows": f32([[1.0, 2.0], [3.0, 5.0], [1e8, 1.0], [-1e8, 1.0], [1.0, 1e-30], [0.5, 0.25]]),
    }
    yield Case("permute, combine and both ways back", ("OneRounding", "RowOrder"), "rows", inputs, config)
    dropped = sizes(3, 2, 2, dispatch={"capacity": 1})
    fewer = inputs | {"y_rows": inputs["y_rows"][:3], "d_x_rows": inputs["d_x_rows"][:3]}
    yield Case("dropped slots give nothing and get nothing", ("DroppedGradient",), "rows", fewer, dropped)
    half = 2.0**-24
    exact = {
        "topk_indices": ints([[0, 1, 2]]),
        "topk_weights": f32([[1.0, 1.0, 1.0]]),
        "x": f32([[0.0, 0.0]]),
        "y_rows": f32([[1.0, 1.0], [half, -1.0], [half, -0.0]]),
        "d_routed": f32([[-0.0, 1.0]]),
        "d_x_rows": f32([[above(1.0), 1e30], [half, -1e30], [half, -0.0]]),
    }
    yield Case(
        "1 + 2^-24 + 2^-24 is one step above 1; x - x is +0",
        ("OneRounding", "CancelZero"),
        "rows",
        exact,
        sizes(3, 3, 2),
    )


def _formulas():
    wanted = {"topk_indices": ints([[0, 1 + t % 3] for t in range(10)])}
    for rule in CAPACITY_NAMES:
        config = sizes(4, 2, dispatch={"capacity_factor": 1.25, "capacity_rule": rule})
        yield Case(
            f"10 tokens, 4 experts, factor 1.25, by the formula of {rule}", ("CapacityRule",), "plan", wanted, config
        )
    for rule in ("megablocks", "tutel"):
        config = sizes(4, 2, dispatch={"capacity_factor": 0.0, "capacity_rule": rule})
        yield Case(f"factor 0 is no limit by the formula of {rule}", ("CapacityRule",), "plan", wanted, config)
    least = {"capacity_factor": 0.1, "capacity_rule": "deepspeed", "min_capacity": 4, "capacity_multiple": 8}
    yield Case("at least 4, up to a multiple of 8", ("CapacityRule",), "plan", wanted, sizes(4, 2, dispatch=least))


def _queues():
    inputs = {
        "topk_indices": ints([[0, 1], [1, 0], [0, 1], [1, 3], [0, 2], [-1, 0]]),
        "topk_weights": f32([[0.6, 0.4], [0.75, 0.25], [0.7, 0.3], [0.5, 0.5], [0.75, 0.25], [0.0, 1.0]]),
    }
    scores = f32([[0.4, 0.3, 0.2, 0.1], [0.2, 0.6, 0.1, 0.1], [0.5, 0.2, 0.2, 0.1], [0.1, 0.4, 0.1, 0.4],
                  [0.6, 0.1, 0.3, 0.0], [0.3, 0.3, 0.1, 0.7]])  # fmt: skip
    lots = {"priority": f32([[0.5, 0.25], [0.5, 0.75], [0.125, 0.0], [0.25, 0.5], [0.5, 0.0], [0.0, 0.75]])}
    safe = {"protected": ints([0, 0, 1, 0, 1, 1]).astype(bool)}
    for capacity in (1, 2):
        for comment, flag, more, dispatch in (
            ("the largest score first", "BatchPriority", {"scores": scores}, {"slot_order": "batch_prioritized"}),
            ("by lot, ties by the queue", "Lots", lots, {"drop_policy": "random"}),
            ("one row a token, later choices stand in", "StandIn", {}, {"keep_at_most": 1}),
            ("protected tokens", "Protected", safe, {"drop_policy": "probability"}),
            ("two devices", "DeviceBudget", {}, {"capacity_devices": 2, "drop_policy": "probability"}),
        ):
            config = sizes(4, 2, dispatch={"capacity": capacity, **dispatch})
            yield Case(f"capacity {capacity}: {comment}", (flag,), "plan", inputs | more, config)
    coin = {"coin": f32([0.8, 0.5, 0.25, 0.0, above(0.5, -1), 0.0])}  # 0.8 and 0.5 are lost at equality
    for capacity in (2, 9):
        config = sizes(4, 2, routing={"second_expert": "random"}, dispatch={"capacity": capacity})
        yield Case(f"a coin for the second expert, capacity {capacity}", ("Coin",), "plan", inputs | coin, config)
