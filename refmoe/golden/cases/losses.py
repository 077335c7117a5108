"""Cases of chapter 4: the nine values of one table of logits, scopes, masks, the controller."""

import numpy as np

from . import controllers
from .form import Case, above, f32, ints, sizes

ABOUT = "Balance losses, z-loss, importance loss, their gradients, and the selection-bias controller."

NOTES = {
    "LossFamily": ("counts divided by k or not, of all choices or of the first", "a coefficient off by k"),
    "SigmoidNorm": ("sigmoid scores not normalised by row", "a loss whose size depends on the logits"),
    "Variance": ("unbiased variance where the population's is meant, or the reverse", "a factor E/(E-1)"),
    "SparseGates": ("importance of the full softmax where only the kept gates count, or the reverse", "another loss"),
    "BelowOne": ("1 taken for a lower bound", "an assertion that fails on legal data"),
    "PaddingMask": ("padding counted or averaged", "a loss diluted by empty tokens"),
    "NoTokens": ("mean over no tokens", "NaN in the first step of a pipeline"),
    "SequenceScope": ("mean of products taken over the batch", "no balance within sequences"),
    "GlobalScope": ("fractions of the micro-batch alone", "specialisation is punished"),
    "PlainSelection": ("counts of the biased, grouped selection where the plain top K is meant", "other fractions"),
    "OneStage": ("fractions or mean probabilities rounded on the way", "the last bits"),
    "LargeLogits": ("log-sum-exp without shift", "overflow"),
    "ZeroAtBalance": ("sign(0) taken as +-1", "biases that never rest"),
    "DeviceCounts": ("choices counted where tokens are meant, or a token counted twice", "traffic balanced wrongly"),
    "Information": ("the sign, one half for the other, or the log of an underflowed mean", "NaN, or balance undone"),
    "LoadThreshold": ("own logit among the thresholds, or probabilities compared with logits", "a load that is none"),
    "Orthogonality": ("the diagonal left in, sign(0) other than 0, or a loss per token", "a router pulled to zero"),
    "ReluWeights": ("softmax in place of the weights, or a gradient at zero", "experts that never switch off"),
    "ControllerSign": ("sign reversed, or load compared with a rounded mean", "collapse"),
    **controllers.NOTES,
}

FIXTURE = [
    [1.0, 0.5, -0.5, 0.0],
    [0.8, 1.2, 0.1, -1.0],
    [1.5, -0.2, 0.3, 0.7],
    [0.2, 0.1, 0.9, -0.3],
    [1.1, 0.6, -1.2, 0.4],
    [-0.4, 0.3, 0.2, 0.25],
]
ONE = {"coefficient": 1.0}

# name -> (section of the configuration's losses, where the value stands in the results), nine in all
NINE = {
    "all choices, divided by k": {"balance": ONE},
    "all choices, undivided": {"balance": {**ONE, "divide_by_k": False}},
    "first choices": {"balance": {**ONE, "counts": "first"}},
    "row-normalised sigmoid": {"balance": {**ONE, "probs": "normalized_sigmoid"}},
    "raw sigmoid": {"balance": {**ONE, "probs": "sigmoid"}},
    "CV^2 of the full softmax": {"importance": ONE},
    "CV^2 of the kept gates": {"importance": {**ONE, "gates": "topk"}},
    "CV^2 of the kept gates, unbiased": {"importance": {**ONE, "gates": "topk", "ddof": 1}},
    "router z-loss": {"z": ONE},
}


def cases():
    """Every case of the chapter."""
    for name, section in NINE.items():
        flags = {"balance": ("LossFamily", "OneStage"), "importance": ("Variance", "SparseGates"), "z": ("OneStage",)}[
            next(iter(section))
        ]
        extra = ("SigmoidNorm",) if "sigmoid" in name else ()
        yield Case(f"fixture: {name}", flags + extra, "loss", {"logits": f32(FIXTURE)}, sizes(4, 2, losses=section))
    yield from _scopes()
    yield from _edges()
    yield from _controller()
    yield from _devices()
    yield from controllers.cases(FIXTURE)
    yield from _orthogonal()


def _scopes():
    logits = f32(FIXTURE)
    every = {"balance": ONE, "z": ONE, "importance": ONE}
    masked = {"logits": logits, "token_mask": np.array([1, 1, 0, 1, 0, 1], bool)}
    yield Case("two padding tokens", ("PaddingMask",), "loss", masked, sizes(4, 2, losses=every))
    nothing = {"logits": logits, "token_mask": np.zeros(6, bool)}
    yield Case(
        "only padding: +0 and gradient +0", ("NoTokens", "PaddingMask"), "loss", nothing, sizes(4, 2, losses=every)
    )
    sequences = {
        "logits": logits,
        "sequence_ids": ints([4, 4, 9, 4, 9, 9]),
        "token_mask": np.array([1, 1, 1, 1, 1, 0], bool),
    }
    by_sequence = sizes(4, 2, losses={"balance": {**ONE, "scope": "sequence"}})
    yield Case(
        "two sequences of unequal length, one padding token",
        ("SequenceScope", "PaddingMask"),
        "loss",
        sequences,
        by_sequence,
    )
    counted = {"logits": logits, "counts_so_far": ints([10, 0, 3, 7])}
    yield Case(
        "fractions over two micro-batches",
        ("GlobalScope",),
        "loss",
        counted,
        sizes(4, 2, losses={"balance": {**ONE, "scope": "global"}}),
    )
    biased = {"logits": logits, "selection_bias": f32([-1.0, 0.0, 1.0, 0.5])}
    for selection in ("actual", "plain"):
        losses = {"balance": {**ONE, "selection": selection, "probs": "normalized_sigmoid"}}
        config = sizes(4, 2, routing={"score_fn": "sigmoid", "selection_bias": True}, losses=losses)
        yield Case(f"biased selection, counts of the {selection} one", ("PlainSelection",), "loss", biased, config)


def _devices():
    logits = f32(FIXTURE)
    yield from _loads({"logits": logits})
    for terms in ("both", "marginal", "conditional"):
        config = sizes(4, 2, losses={"mutual_information": {**ONE, "terms": terms}})
        yield Case(f"mutual information: {terms}", ("Information",), "loss", {"logits": logits}, config)
    config = sizes(4, 2, losses={"mutual_information": ONE})
    same = f32([[1.0, 0.5, -0.5, 0.0], [3.0, 2.5, 1.5, 2.0]])
    yield Case("rows that differ by a constant: +0", ("Information",), "loss", {"logits": same}, config)
    far = f32([[1500.0, 0.0, -5.0, 1.0], [1499.0, 0.0, 0.0, 0.0]])
    yield Case("information below every format", ("Information", "LargeLogits"), "loss", {"logits": far}, config)
    for name, more in (("device", {}), ("communication", {"device_limit": 2})):
        section = {name: {**ONE, "num_devices": 2, **more}}
        yield Case(
            f"the fixture on two devices: {name}",
            ("DeviceCounts",),
            "loss",
            {"logits": logits},
            sizes(4, 2, losses=section),
        )
    replayed = {
        "logits": logits,
        "topk_indices": ints([[0, 1], [2, -1], [3, 2], [-1, -1], [1, 3], [0, 2]]),
        "sequence_ids": ints([0, 0, 0, 1, 1, 1]),
    }
    section = {"coefficient": 0.5, "num_devices": 2, "scope": "sequence"}
    losses = {"device": section, "communication": {**section, "probs": "normalized_sigmoid", "device_limit": 2}}
    yield Case(
        "unused slots reach no device; by sequence",
        ("DeviceCounts", "SequenceScope"),
        "loss",
        replayed,
        sizes(4, 2, losses=losses),
    )
    relu = {"balance": {**ONE, "probs": "relu"}, "importance": {**ONE, "form": "deviation"}}
    yield Case(
        "positive parts in place of probabilities; squared deviations",
        ("ReluWeights", "Variance"),
        "loss",
        {"logits": logits},
        sizes(4, 2, losses=relu),
    )


def _loads(logits):
    noisy = logits | {"clean_logits": f32(FIXTURE[::-1]), "noise_std": f32([[0.5, 0.75] * 2] * 6)}
    for section in ({}, {"threshold": "kth"}, {"ddof": 1, "eps": 0.5}):
        named = ", ".join(map(str, section.values())) or "of the others"
        config = sizes(4, 2, losses={"load": {**ONE, **section}})
        yield Case(f"load under noise: {named}", ("LoadThreshold",), "loss", noisy, config)
    config = sizes(4, 2, losses={"load": ONE})
    yield Case("load without noise: counts, no gradient", ("LoadThreshold",), "loss", logits, config)
    ties = {"logits": f32([[1.0, 1.0, 1.0], [0.0, 2.0, 2.0]]), "clean_logits": f32([[1.0, 0.5, 2.0], [0.0, 1.0, 3.0]])}
    ties["noise_std"] = f32([[0.5, 0.25, 1.0]] * 2)
    config = sizes(3, 1, losses={"load": ONE})
    yield Case("load with ties at the threshold", ("LoadThreshold",), "loss", ties, config)


def _orthogonal():
    """A matrix of inner products with 1 on its diagonal and 0 beside it, and what is near them."""
    least = above(0)
    gram = [[1.0, 0.0, -0.3, least], [0.0, above(1), 0.7, 0.1], [-0.3, 0.7, 0.25, 0.0], [least, 0.1, 0.0, 3.1]]
    inputs = {"logits": f32(FIXTURE[:2]), "router_gram": f32(gram)}
    for form in ("l1", "frobenius"):
        config = sizes(4, 2, losses={"orthogonality": {"coefficient": 0.1, "form": form}})
        yield Case(f"orthogonality of the router: {form}", ("Orthogonality",), "loss", inputs, config)
    padded = inputs | {"token_mask": np.zeros(2, bool)}
    yield Case("orthogonality without a token", ("Orthogonality", "NoTokens"), "loss", padded, config)
    config = sizes(4, 2, losses={"orthogonality": ONE})
    yield Case("orthogonality with given logits: +0", ("Orthogonality",), "loss", {"logits": f32(FIXTURE)}, config)


def _edges():
    # p = (0.51, 0.49) for nine tokens, (about 0, about 1) for one: the loss is below 1 and legal
    below = f32([[0.040005, 0.0]] * 9 + [[-40.0, 40.0]])
    yield Case("a balance loss below 1", ("BelowOne",), "loss", {"logits": below}, sizes(2, 1, losses={"balance": ONE}))
    large = {"logits": f32([[90.0, -90.0, 0.0], [-1e4, -1e4, above(-1e4)]])}
    yield Case(
        "z-loss of large logits", ("LargeLogits",), "loss", large, sizes(3, 1, losses={"z": {"coefficient": 0.001}})
    )
    equal = {"logits": f32([[0.3] * 4] * 2)}
    yield Case(
        "uniform probabilities, loads 2 2 0 0",
        ("LossFamily",),
        "loss",
        equal,
        sizes(4, 2, losses={"balance": ONE, "importance": ONE}),
    )


def _controller():
    for load in ([4, 4, 4], [5, 3, 4], [1, 0, 0]):
        inputs = {"selection_bias": f32([0.1, -0.1, 0.0]), "assigned_per_expert": ints(load)}
        yield Case(
            f"loads {load}",
            ("ControllerSign", "ZeroAtBalance"),
            "selection_bias",
            inputs,
            options={"rate": "0x1.0624dd2f1a9fcp-10"},
        )
