"""Cases of chapter 1, the rules of selection other than the plain one."""

import numpy as np

from .form import Case, f32, ints, sizes

NOTES = {
    "GroupShare": ("the best K of all groups taken where each group gives its share", "groups without a choice"),
    "HashTable": ("a table's ids sorted, or its weights not from the live scores", "slots and weights do not match"),
    "VariableCount": ("slots beyond a token's count filled with other experts, or read as one", "phantom experts"),
    "ThresholdExact": ("a threshold rounded to float32, or met by what equals it", "an expert too many or too few"),
    "TopPExact": ("a cumulative sum rounded before it is compared with p", "an expert too many or too few"),
    "SparseMixer": (
        "survivors by the wrong scale, the first expert left in round 2, or a multiplier on the way back",
        "weights and gradients of Phi-3.5-MoE off",
    ),
    "ExpertChoice": (
        "ties between tokens to the highest, or a token's experts in the order they came",
        "slots swapped",
    ),
    "SoftmaxTokens": ("a softmax over experts where one over tokens is meant, or over the whole batch", "other scores"),
    "Sinkhorn": ("exponentials that overflow, or rows and columns scaled in the other order", "another balance"),
    "SampledSecond": (
        "noise that moves the first choice, or enters the weights",
        "another first expert, other weights",
    ),
    "Assignment": ("an assignment accepted without its proof, or an unbalanced one", "tokens anywhere"),
}


def cases():
    """Every case of these rules."""
    logits = f32([[0.0, 2.0, 1.0, 5.0, 4.0, 3.0], [1.0, 1.0, 1.0, 1.0, 0.0, 0.0]])
    inputs = {"logits": logits, "d_topk_weights": f32([[1.0, -0.5], [0.25, 2.0]])}
    routing = {"selection": "per_group", "num_groups": 2}
    yield Case("the best of each of two groups, ties by id", ("GroupShare", "TieLowestId"), "route", inputs,
               sizes(6, 2, routing=routing))  # fmt: skip
    biased = {"logits": logits, "selection_bias": f32([3.0, 0.0, 0.0, 0.0, 0.0, -0.5])}
    routing |= {"score_fn": "sigmoid", "selection_bias": True, "num_groups": 3, "normalize": True}
    yield Case("the best of each of three groups, biased", ("GroupShare", "BiasInWeights"), "route", biased,
               sizes(6, 3, routing=routing))  # fmt: skip
    table = {"hash_table": ints([[3, 0], [1, 5], [4, 2]]), "token_ids": ints([2, 0])}
    routing = {"selection": "hash", "hash_vocab_size": 3, "score_fn": "sqrt_softplus", "normalize": True,
               "norm_eps": 1e-20, "scaling_factor": 1.5}  # fmt: skip
    yield Case("experts by table, weights by live scores", ("HashTable",), "route", inputs | table,
               sizes(6, 2, routing=routing))  # fmt: skip
    yield Case("a table with a selection bias", ("Refused", "HashTable"), "route", inputs | table,
               sizes(6, 2, routing=routing | {"selection_bias": True}), refused="selection_bias")  # fmt: skip
    yield from _variable()
    yield from _sparsemixer()
    yield from _expert_choice()
    yield from _balanced()
    yield from _assigned()


def _variable():
    logits = f32(
        [[0.0, 2.0, -1.0, 0.5, 2.0, 3.0], [-1.0, 0.0, -0.0, -2.0, -3.0, -4.0], [0.1, 0.25, 0.0, 0.0, 0.0, 0.0]]
    )
    relu = {"selection": "threshold", "score_fn": "relu"}
    inputs = {"logits": logits, "d_topk_weights": f32([[1.0, -0.5, 0.25, 2.0]] * 3)}
    comment = "every positive logit, as in ReMoE; a token without experts"
    yield Case(comment, ("VariableCount", "ThresholdExact"), "route", inputs,
               sizes(6, 2, routing=relu))  # fmt: skip
    exact = {"selection": "threshold", "selection_base": "logits", "threshold": 0.1}
    yield Case("the float32 next to 0.1 exceeds 0.1", ("ThresholdExact",), "route", {"logits": logits},
               sizes(6, 2, routing=exact))  # fmt: skip
    quarters = {"logits": f32([[0.0, 0.0, 0.0, 0.0, -1000.0, -1000.0], [3.0, 1.0, 2.0, 0.0, 0.0, 0.0]])}
    for p in (0.5, 0.5000001, 1.0):
        routing = {"selection": "top_p", "top_p": p, "normalize": True}
        yield Case(f"scores that make up {p}", ("TopPExact", "VariableCount"), "route", quarters,
                   sizes(6, 2, routing=routing))  # fmt: skip


def _sparsemixer():
    inputs = {"logits": f32([[4.0, 3.0, 2.25, 0.0], [-1.0, -3.0, -1.5, -1.25], [0.0, -0.0, 0.0, 0.0]])}
    inputs |= {"d_topk_weights": f32([[1.0, -0.5], [0.25, 2.0], [3.0, 1.0]])}
    routing = {"selection": "sparsemixer", "selection_base": "logits", "sparsemixer_eps": 0.125, "scaling_factor": 1.5}
    config = sizes(4, 2, routing=routing)
    yield Case("two rounds over the logits near the largest", ("SparseMixer", "TieLowestId"), "route", inputs, config)
    inputs |= {"topk_indices": ints([[1, 0], [3, 0], [2, -1]])}
    inputs |= {"multipliers": f32([[1 / 3, 1.0], [1 / 3, 1 / 3], [1.0, 1.0]])}
    comment = "a sampled choice: the multiplier weighs, and does not flow back"
    yield Case(comment, ("SparseMixer", "Replay", "UnusedSlot"), "route", inputs, config)


def _expert_choice():
    inputs = {"logits": f32([[0, 2, 3], [5, 1, 0], [1, 1, 0], [4, 0, 9]]), "d_topk_weights": f32([[1.0, -0.5]] * 4)}
    config = sizes(3, 2, routing={"selection": "expert_choice"}, dispatch={"capacity": 2})
    yield Case("each expert takes two tokens", ("ExpertChoice", "VariableCount"), "route", inputs, config)
    routing = {"selection": "expert_choice", "score_fn": "softmax_tokens", "divide_by_count": True}
    inputs |= {"sequence_ids": ints([1, 1, 0, 0])}
    config = sizes(3, 2, routing=routing, dispatch={"capacity": 1, "capacity_scope": "sequence"})
    yield Case("one token of each sequence, by a softmax over tokens, weights divided by the count",
               ("ExpertChoice", "SoftmaxTokens"), "route", inputs, config)  # fmt: skip


def _balanced():
    inputs = {"logits": f32([[3, 2, 0], [3, 2.5, -1], [3, 0, 1], [90, -90, 89]])}
    for n in (1, 4):
        routing = {"selection_base": "sinkhorn", "sinkhorn_iterations": n, "score_fn": "sigmoid"}
        yield Case(
            f"one expert a token, balanced in {n} steps", ("Sinkhorn",), "route", inputs, sizes(3, 1, routing=routing)
        )
    inputs = {"logits": f32([[4, 3, 2, 1], [1, 1, 1, 1]]), "noise": f32([[-9, 0, 2, 0], [-1, 0, 0.5, 0.5]])}
    routing = {"second_expert": "sampled", "normalize": True}
    yield Case(
        "second experts by noisy logits",
        ("SampledSecond", "TieLowestId"),
        "route",
        inputs,
        sizes(4, 2, routing=routing),
    )


def _assigned():
    logits = {"logits": f32([[3, 2, 0], [3, 2.5, -1], [3, 0, 1]])}
    config = sizes(3, 1, routing={"selection": "assignment", "selection_base": "logits", "score_fn": "sigmoid"})
    yield Case("evaluation: every token to its largest logit", ("Assignment",), "route", logits, config)
    best = {"topk_indices": ints([[0], [1], [2]]), "assignment_duals": np.array([2.25, 1.5, 0.0])}
    yield Case("a balanced assignment with prices that prove it", ("Assignment",), "route", logits | best, config)
    for indices, prices, refused in (
        ([[0], [1], [2]], [0, 0, 0], "assignment_duals"),
        ([[0], [0], [2]], [2.25, 1.5, 0], "topk_indices"),
    ):
        wrong = {"topk_indices": ints(indices), "assignment_duals": np.array(prices, np.float64)}
        yield Case(
            f"refused: {indices} at {prices}",
            ("Refused", "Assignment"),
            "route",
            logits | wrong,
            config,
            refused=refused,
        )
