"""Routers and losses of the suite "conformance": margins of at least 2^-6, ties apart."""

import numpy as np

from .form import Case, f32, ints, sizes

NOTES = {
    "TopOneRenorm": ("K = 1 with renormalisation not exactly the scaling factor", "the router's score in the output"),
    "GroupMask": ("experts of closed groups ranked as 0", "with negative biases a closed group is chosen"),
    "GroupTopN": ("group score taken as the maximum, not the sum of the best n", "another group is kept"),
    "GroupBias": ("group scores without the selection bias", "another group is kept"),
    "BiasInWeights": ("the selection bias leaks into the weights", "weights off by the bias"),
    "SoftmaxOrder": ("softmax of all where of the kept is meant, or the reverse", "weights off by a factor"),
    "TieHighestId": ("equal values ranked by the highest id, or in no order", "another expert runs"),
    "ScaleAfterNorm": ("scaling factor applied before renormalising", "the factor cancels"),
    "NormEps": ("epsilon left out, or a floor where it is added", "weights that do not sum to what they should"),
    "SoftmaxJacobian": ("only the chosen logits get a gradient through a full softmax", "a biased router gradient"),
    "NormGradient": ("the normaliser taken for a constant", "a biased router gradient"),
    "SigmoidSlope": ("gradient of the score taken for that of the logit", "a gradient four times too large, or more"),
    "ReluScore": ("relu scores with a slope of 1 at 0", "an expert at the edge never leaves it"),
    "LargeLogits": ("exponentials without the shift by the maximum", "overflow"),
    "Replay": ("replayed indices sorted, or chosen anew", "slots and weights do not match"),
    "UnusedWeight": ("index -1 read as the last expert's weight", "a phantom expert"),
    "RouterFloat32": ("logits rounded to 16 bits", "other experts at near ties"),
    "SaturatedScores": ("an epsilon nobody asked for in the sum of scores", "tiny scores weigh nothing"),
    "EdgeSizes": ("E = 1 or K = E not handled, as by a threshold at the next value", "a crash, or too few experts"),
    "RefusedLogits": ("logits that are not finite let through", "silent nonsense"),
    "RefusedIndices": ("an expert named twice, or none by that name, let through", "silent nonsense"),
    "LossFamily": ("balance loss not divided by K", "a coefficient off by K"),
    "PaddingMask": ("padding counted, or averaged over", "a loss diluted by empty tokens"),
    "LossGradient": ("the softmax's own mean left out of the loss's gradient", "every expert pushed down"),
    "ZLoss": ("log-sum-exp not squared, or its gradient without the 2", "another loss"),
}


def route(comment, logits, num_experts, top_k, routing=None, refused="", **inputs):
    """One table of logits through a router."""
    config = sizes(num_experts, top_k, **({"routing": routing} if routing else {}))
    given = {} if logits is None else {"logits": f32(logits)}
    return Case(comment, (), "route", given | inputs, config, refused=refused)


LOGITS = [[1.25, -0.75, 0.5, 2.0], [0.125, 0.75, -3.0, 0.25]]
G2 = f32([[0.5, -1.25], [2.0, 3.0]])


SIGMOID = {"score_fn": "sigmoid"}
NORMED = {"score_fn": "sigmoid", "normalize": True}
RELU = {"score_fn": "relu"}


def routers():
    """Every router."""
    yield from _choices()
    yield from _weights()
    yield from _gradients()
    yield from _edges()
    yield from _refused()


def _choices():
    yield route("one expert a token, renormalised", LOGITS, 4, 1, NORMED)
    groups = {"score_fn": "sigmoid", "selection_bias": True, "num_groups": 2, "top_groups": 1, "group_score_topn": 1}
    yield route("a closed group under negative biases", [[1.0, 0.5, 2.0, 0.25]], 4, 2, groups,
                selection_bias=f32([-4.0, -4.0, -2.0, -3.0]))  # fmt: skip
    relu = {"score_fn": "relu", "num_groups": 2, "top_groups": 1, "group_score_topn": 2}
    yield route("the best group by two, not by one", [[3.0, 0.5, 2.0, 2.5]], 4, 1, relu)
    biased = {"score_fn": "relu", "num_groups": 2, "top_groups": 1, "group_score_topn": 1, "selection_bias": True}
    yield route("a bias decides the group", [[3.0, 0.5, 2.0, 1.0]], 4, 1, biased, selection_bias=f32([0, 0, 8.0, 0]))
    biased = {"score_fn": "relu", "selection_bias": True}
    yield route("a bias moves the choice and no weight", [[3.0, 0.5, 2.0]], 3, 1, biased, selection_bias=f32([0, 8, 0]))
    yield route("a bias of 12, a score of 1e-8", [[-18.0, 3.0, 2.0]], 3, 2, NORMED | {"selection_bias": True},
                selection_bias=f32([12.0, 0, 0]))  # fmt: skip


def _weights():
    yield route("softmax of all", LOGITS, 4, 2)
    yield route("softmax of the kept", LOGITS, 4, 2, {"normalize": True})
    yield route("all logits equal", [[0.5] * 5], 5, 2, SIGMOID)
    yield route("a tie at the boundary of K", [[1, 2, 1, 3, 1]], 5, 3, RELU)
    scaled = {"score_fn": "relu", "normalize": True, "scaling_factor": 2.5}
    yield route("renormalised, then scaled", [[3.0, 1.0, 0.5]], 3, 2, scaled)
    yield route(
        "an epsilon in the sum", [[3.0, 1.0, 0.5]], 3, 2, {"score_fn": "relu", "normalize": True, "norm_eps": 4.0}
    )


def _gradients():
    yield route("gradient through softmax of all", LOGITS, 4, 2, None, d_topk_weights=G2)
    yield route("gradient through softmax of the kept", LOGITS, 4, 2, {"normalize": True}, d_topk_weights=G2)
    yield route("gradient of sigmoids", LOGITS, 4, 2, SIGMOID, d_topk_weights=G2)
    yield route("gradient of renormalised sigmoids", LOGITS, 4, 2, NORMED, d_topk_weights=G2)
    yield route("gradient of relu scores, one at exactly 0", [[3.0, 1.0, -0.5], [0.0, 2.0, 1.0]], 3, 2,
                RELU, d_topk_weights=G2, topk_indices=ints([[0, 1], [1, 0]]))  # fmt: skip


def _edges():
    yield route("logits of +-90, +-1000 and +-1e30", [[90, -90, 89, 0], [1e3, 999, -1e3, 0], [1e30, -1e30, 0, 5]], 4, 1)
    yield route("replayed, and not the best", LOGITS, 4, 2, RELU, topk_indices=ints([[3, 0], [1, 3]]))
    yield route("replayed with unused slots", LOGITS, 4, 2, RELU, topk_indices=ints([[-1, 3], [-1, -1]]))
    near = {"x": f32([[256.0, 1.0]]), "w_router": f32([[1.0, 0.0], [1.0, 1.0]])}
    config = sizes(2, 1, 2, routing=RELU)
    yield Case("logits of nine bits, tokens of eight", (), "route", near, config, store="bf16")
    yield route("all sigmoids below 1e-20", [[-60.0, -61.0, -80.0], [-50.0, -55.0, -49.0]], 3, 2, NORMED)
    yield route("one expert", [[3.0], [2.0]], 1, 1, RELU)
    yield route("every expert chosen", [[1.0, 3.0, 2.0]], 3, 3, RELU)
    yield route("no tokens", np.zeros((0, 3)), 3, 2, RELU)


def _refused():
    for bad in (np.nan, np.inf):
        yield route(f"a logit of {bad}", [[1.0, bad, 3.0]], 3, 2, RELU, refused="logits")
    for wrong in ([[1, 1]], [[0, 3]], [[-2, 0]]):
        yield route(f"replayed indices {wrong}, as a hash table's row may hold", [[1.0, 2.0, 3.0]], 3, 2,
                    RELU, refused="topk_indices", topk_indices=ints(wrong))  # fmt: skip


def losses():
    """Balance and z-loss with their gradients."""

    def loss(comment, section, top_k=1, logits=LOGITS, **inputs):
        return Case(comment, (), "loss", {"logits": f32(logits)} | inputs, sizes(len(logits[0]), top_k, losses=section))

    balance, z = {"balance": {"coefficient": 1.0}}, {"z": {"coefficient": 1.0}}
    yield loss("balance, one choice a token", balance)
    yield loss("balance, two choices", balance, 2)
    yield loss("z-loss", z)
    for name, section in (("balance", balance), ("z", z)):
        yield loss(f"{name}, one token padding", section, logits=[*LOGITS, [3.0, 0.0, 0.5, -1.0]],
                   token_mask=np.array([1, 1, 0], bool))  # fmt: skip
        yield loss(f"{name}, nothing but padding", section, token_mask=np.zeros(2, bool))
    yield loss("z-loss of large logits", z, logits=[[1000.0, 999.0, 0.0, -1000.0]])
