"""Cases of chapter 1: scores, groups, selection, weights, replay, and the way back through the weights."""

import numpy as np

from . import router, selection
from .form import Case, above, f32, ints, sizes

ABOUT = "From the router's logits to the experts of a token and their weights, and back."

NOTES = (
    {
        "TieLowestId": ("unstable or descending-id sort", "another expert runs, with the same weight"),
        "SignedZeroTie": ("-0 ranked below +0, as a sort of bit patterns does", "ties break the other way"),
        "GroupMask": (
            "experts of dropped groups filled with 0 where -inf is meant, or the reverse",
            "with negative biases a dropped group is chosen, or a kept expert passed over",
        ),
        "GroupTie": ("tied group scores not resolved to the lowest group", "a whole group is swapped"),
        "GroupTopN": ("group score taken as the maximum, not the sum of the best n", "another group is kept"),
        "BiasInWeights": ("the selection bias leaks into the weights", "weights off by the bias"),
        "TopOneRenorm": (
            "K = 1 with renormalisation not exactly the scaling factor, or a gradient through it",
            "the router learns from noise",
        ),
        "SaturatedScores": ("division by a sum of underflowed scores", "NaN or infinite weights"),
        "NormEps": ("epsilon added where it clamps, or left out", "weights that do not sum to what they should"),
        "KeptSoftmax": (
            "rounded full softmax renormalised instead of a softmax of the kept logits",
            "the last bits of the weights",
        ),
        "ScaleAfterNorm": ("scaling factor applied before renormalising", "the factor cancels"),
        "RankBase": ("scores ranked where logits are meant", "logits that round to one score swap experts"),
        "Replay": ("replayed indices sorted, or weights replayed with them", "slots and weights do not match"),
        "UnusedSlot": ("index -1 read as the last expert", "a phantom expert"),
        "LargeLogits": ("softmax without the shift by the maximum", "overflow to NaN"),
        "RouterFloat32": ("router computed in the narrow store", "other experts at near ties"),
        "SoftmaxJacobian": ("only the chosen logits get a gradient through a full softmax", "a biased router gradient"),
        "ReluScore": (
            "relu scores with a slope of 1 at 0, or a softmax of them",
            "an expert at the edge never leaves it",
        ),
        "EdgeSizes": ("E = 1 or K = E not handled", "out of bounds, or a partition that fails"),
        "Refused": ("bad input accepted", "silent nonsense"),
    }
    | router.NOTES
    | selection.NOTES
)


def cases():
    """Every case of the chapter."""
    yield from _selection()
    yield from _groups()
    yield from _weights()
    yield from _replay()
    yield from _backward()
    yield from _refused()
    yield from _relu()
    yield from router.scales()
    yield from selection.cases()
    yield from router.front()
    yield from router.joint()


def _relu():
    inputs = {"logits": f32([[1.5, -0.25, 0.0, 0.75], [-0.0, 2.0, -1e-45, 0.125]])}
    inputs |= {"d_topk_weights": f32([[0.5, -1.25, 2.0], [3.0, 0.25, 1.0]])}
    for routing in ({"scaling_factor": 2.5}, {"normalize": True, "norm_eps": 0.125}):
        config = sizes(4, 3, routing={"score_fn": "relu", **routing})
        yield Case(f"relu, {routing}", ("ReluScore", "NormEps"), "route", inputs, config)


def _selection():
    yield Case(
        "all logits equal: experts 0 and 1", ("TieLowestId",), "route", {"logits": f32([[0.5] * 5])}, sizes(5, 2)
    )
    yield Case("a tie at the boundary of K", ("TieLowestId",), "route", {"logits": f32([[1, 2, 1, 3, 1]])}, sizes(5, 3))
    zeros = {"logits": f32([[-0.0, 0.0, -1.0], [0.0, -0.0, -1.0]])}
    ranked = sizes(3, 1, routing={"selection_base": "logits"})
    yield Case("-0 and +0 are equal when ranked", ("SignedZeroTie",), "route", zeros, ranked)
    near = {"logits": f32([[above(0.25, k) for k in (0, 2, 1, 3)]])}
    for base in ("scores", "logits"):
        config = sizes(4, 2, routing={"selection_base": base})
        yield Case(f"logits one step apart, ranked by {base}", ("RankBase", "TieLowestId"), "route", near, config)
    yield Case("one expert", ("EdgeSizes",), "route", {"logits": f32([[3.0], [-2.0]])}, sizes(1, 1))
    yield Case("every expert chosen", ("EdgeSizes",), "route", {"logits": f32([[0.1, 0.3, 0.2]])}, sizes(3, 3))
    yield Case("logits of +-90 and +-1e30", ("LargeLogits",), "route",
               {"logits": f32([[90, -90, 89.5, 0], [1e30, -1e30, 1e30, 0]])}, sizes(4, 2))  # fmt: skip
    exact = {"x": f32([[1.0078125, 1.0]]), "w_router": f32([[1.0, 1.0], [1.0, 1.0078125]])}
    yield Case(
        "logits stay float32 when tokens are stored in bf16",
        ("RouterFloat32",),
        "route",
        exact,
        sizes(2, 1, 2),
        store="bf16",
    )


def _groups():
    logits = {"logits": f32([[0.0, 0.2, 1.0, -0.5, 0.9, 0.8], [3.0, 3.0, -3.0, 3.0, 0.0, 0.0]])}
    negative = {**logits, "selection_bias": f32([-2.0, -2.5, -2.0, -3.0, -2.0, -2.25])}
    for mask in ("-inf", "zero"):
        routing = {"score_fn": "sigmoid", "selection_bias": True, "num_groups": 3, "top_groups": 2, "group_mask": mask}
        comment = f"negative biases, dropped groups ranked as {mask}"
        yield Case(comment, ("GroupMask", "BiasInWeights"), "route", negative, sizes(6, 3, routing=routing))
    for n in (1, 2):
        routing = {"score_fn": "sigmoid", "num_groups": 3, "top_groups": 1, "group_score_topn": n}
        yield Case(f"group score of the best {n}", ("GroupTopN",), "route", logits, sizes(6, 2, routing=routing))
    routing = {"score_fn": "sigmoid", "num_groups": 3, "top_groups": 1}
    tied = {"logits": f32([[0.5, -0.5, -0.5, 0.5, 0.5, -0.5]])}
    yield Case("three groups of equal score", ("GroupTie", "TieLowestId"), "route", tied, sizes(6, 1, routing=routing))


def _weights():
    logits = {"logits": f32([[1.3, -0.7, 0.4, 2.1], [0.1, 0.1, -3.0, 0.25]])}
    yield Case("softmax, not renormalised", ("KeptSoftmax",), "route", logits, sizes(4, 2))
    kept = sizes(4, 2, routing={"normalize": True, "scaling_factor": 2.5})
    yield Case("softmax of the kept logits, times 2.5", ("KeptSoftmax", "ScaleAfterNorm"), "route", logits, kept)
    for score in ("sigmoid", "sqrt_softplus"):
        for mode in ("add", "clamp"):
            routing = {
                "score_fn": score,
                "normalize": True,
                "norm_eps": 0.75,
                "norm_eps_mode": mode,
                "scaling_factor": 1.5,
            }
            yield Case(
                f"{score}, epsilon 0.75 {mode}",
                ("NormEps", "ScaleAfterNorm"),
                "route",
                logits,
                sizes(4, 2, routing=routing),
            )
    biased = {**logits, "selection_bias": f32([-4.0, 12.0, 0.0, -1.0])}
    routing = {"score_fn": "sigmoid", "selection_bias": True, "normalize": True}
    yield Case(
        "a bias of 12 moves the choice and no weight", ("BiasInWeights",), "route", biased, sizes(4, 2, routing=routing)
    )
    tiny = {"logits": f32([[-60.0, -61.0, -80.0], [-90.0, -100.0, -103.0]])}
    for eps in (0.0, 1e-20):
        routing = {"score_fn": "sigmoid", "normalize": True, "norm_eps": eps}
        yield Case(
            f"scores down to the subnormals, epsilon {eps:g}",
            ("SaturatedScores", "NormEps"),
            "route",
            tiny,
            sizes(3, 2, routing=routing),
        )
    high = {"logits": f32([[40.0, 20.0, 17.0, 16.0]])}
    routing = {"score_fn": "sigmoid", "normalize": True}
    yield Case(
        "scores that round to 1 tie", ("SaturatedScores", "TieLowestId"), "route", high, sizes(4, 2, routing=routing)
    )


def _replay():
    logits = f32([[1.3, -0.7, 0.4, 2.1], [0.1, 0.2, -3.0, 0.25]])
    given = {"logits": logits, "topk_indices": ints([[1, 3], [2, 0]])}
    routing = {"normalize": True}
    yield Case(
        "replayed indices keep their order; weights come from the live logits",
        ("Replay",),
        "route",
        given,
        sizes(4, 2, routing=routing),
    )
    unused = {
        "logits": logits,
        "topk_indices": ints([[-1, 2], [-1, -1]]),
        "d_topk_weights": f32([[1.0, 0.5], [2.0, 3.0]]),
    }
    yield Case(
        "unused slots have weight +0 and no gradient",
        ("Replay", "UnusedSlot"),
        "route",
        unused,
        sizes(4, 2, routing=routing),
    )


def _backward():
    inputs = {
        "logits": f32([[1.3, -0.7, 0.4, 2.1], [0.1, 0.1, -3.0, 0.25]]),
        "d_topk_weights": f32([[0.5, -1.25], [1e-3, 3.0]]),
    }
    yield Case(
        "softmax without renormalisation reaches every logit", ("SoftmaxJacobian",), "route", inputs, sizes(4, 2)
    )
    yield Case("kept softmax leaves +0 off the selection", ("SoftmaxJacobian", "KeptSoftmax"), "route", inputs,
               sizes(4, 2, routing={"normalize": True}))  # fmt: skip
    for score in ("sigmoid", "sqrt_softplus"):
        for normalize in (False, True):
            routing = {"score_fn": score, "normalize": normalize, "scaling_factor": 2.5}
            yield Case(
                f"{score}, renormalised: {normalize}", ("NormEps",), "route", inputs, sizes(4, 2, routing=routing)
            )
    clamp = {"score_fn": "sigmoid", "normalize": True, "norm_eps": 1.25, "norm_eps_mode": "clamp"}
    yield Case("a sum below the clamp is a constant", ("NormEps",), "route", inputs, sizes(4, 2, routing=clamp))
    one = {"logits": inputs["logits"], "d_topk_weights": f32([[0.5], [-3.0]])}
    for score in ("softmax", "sigmoid"):
        routing = {"score_fn": score, "normalize": True, "scaling_factor": 1.5}
        yield Case(f"one expert a token, {score}", ("TopOneRenorm",), "route", one, sizes(4, 1, routing=routing))
    equal = {"logits": inputs["logits"], "d_topk_weights": f32([[0.3, 0.3], [-7.0, -7.0]])}
    yield Case(
        "equal upstream gradients cancel to exactly +0",
        ("KeptSoftmax",),
        "route",
        equal,
        sizes(4, 2, routing={"normalize": True}),
    )


def _refused():
    logits = f32([[1.0, 2.0, 3.0]])
    yield Case(
        "a NaN logit", ("Refused",), "route", {"logits": f32([[1.0, np.nan, 3.0]])}, sizes(3, 2), refused="logits"
    )
    yield Case(
        "an infinite logit",
        ("Refused",),
        "route",
        {"logits": f32([[1.0, -np.inf, 3.0]])},
        sizes(3, 2),
        refused="logits",
    )
    for indices in ([[1, 1]], [[0, 3]], [[-2, 0]]):
        given = {"logits": logits, "topk_indices": ints(indices)}
        yield Case(
            f"replayed indices {indices}",
            ("Refused", "Replay"),
            "route",
            given,
            sizes(3, 2),
            refused="given.topk_indices",
        )
    gone = {"logits": f32([[-200.0, -300.0, -400.0]])}
    routing = {"score_fn": "sigmoid", "normalize": True}
    yield Case("a sum of scores that is 0, with epsilon 0", ("Refused", "SaturatedScores"), "route", gone,
               sizes(3, 2, routing=routing), refused="normalize")  # fmt: skip
    yield Case(
        "more experts a token than experts", ("Refused",), "route", {"logits": logits}, sizes(3, 4), refused="top_k"
    )
    uneven = sizes(3, 1, routing={"num_groups": 2, "top_groups": 1, "group_score_topn": 1})
    yield Case(
        "groups that do not divide the experts", ("Refused",), "route", {"logits": logits}, uneven, refused="num_groups"
    )
