"""Configurations of the rules of selection: fields for `cases.config_of`, the losses' for `cases.losses_of`."""

FIELDS = {
    "per_group": {
        "routing": {"score_fn": "sigmoid", "selection": "per_group", "num_groups": 3, "normalize": True},
        "dispatch": {"capacity": 2},
        "losses": {"balance": {}},
    },
    "hash": {
        "routing": {
            "score_fn": "sqrt_softplus",
            "selection": "hash",
            "hash_vocab_size": 7,
            "normalize": True,
            "norm_eps": 1e-20,
            "scaling_factor": 1.5,
        }
    },
    "threshold": {
        "routing": {"score_fn": "sigmoid", "selection": "threshold", "threshold": 0.5, "normalize": True},
        "losses": {"balance": {"probs": "sigmoid"}},
        "top_k": 2,
    },
    "threshold_relu": {
        "routing": {"score_fn": "relu", "selection": "threshold", "scaling_factor": 1.5},
        "dispatch": {"capacity_factor": 1.0, "capacity_scope": "sequence"},
        "top_k": 2,
    },
    "top_p": {
        "routing": {"selection": "top_p", "top_p": 0.4, "normalize": True},
        "losses": {"balance": {}, "importance": {"gates": "topk"}},
        "top_k": 2,
    },
    "sparsemixer": {
        "routing": {
            "selection": "sparsemixer",
            "selection_base": "logits",
            "sparsemixer_eps": 0.4,
            "scaling_factor": 1.5,
            "router_bias": True,
        },
        "dispatch": {"capacity": 3},
        "losses": {"balance": {}},
        "top_k": 2,
    },
    "expert_choice": {
        "routing": {"selection": "expert_choice"},
        "dispatch": {"capacity_factor": 1.0},
        "losses": {"balance": {}},
        "top_k": 2,
    },
    "expert_choice_tokens": {
        "routing": {
            "selection": "expert_choice",
            "score_fn": "softmax_tokens",
            "divide_by_count": True,
            "scaling_factor": 1.5,
        },
        "dispatch": {"capacity": 1, "capacity_scope": "sequence"},
        "top_k": 2,
    },
    "expert_choice_normalized": {
        "routing": {"selection": "expert_choice", "normalize": True, "router_bias": True},
        "dispatch": {"capacity": 3},
        "top_k": 2,
    },
    "softmax_tokens": {"routing": {"score_fn": "softmax_tokens", "normalize": True}, "top_k": 2},
    "divided_sigmoid": {"routing": {"score_fn": "sigmoid", "divide_by_count": True, "scaling_factor": 2.5}, "top_k": 2},
    "sinkhorn": {
        "routing": {"selection_base": "sinkhorn", "sinkhorn_iterations": 3, "selection_bias": True},
        "dispatch": {"capacity": 3},
        "losses": {"balance": {}},
        "top_k": 2,
    },
    "sampled_second": {
        "routing": {"second_expert": "sampled", "normalize": True},
        "losses": {"balance": {}},
        "top_k": 2,
    },
    "assignment": {
        "routing": {"selection": "assignment", "selection_base": "logits", "score_fn": "sigmoid"},
        "top_k": 1,
    },
    "top_p_softmax": {"routing": {"selection": "top_p", "top_p": 0.7, "selection_bias": True}, "top_k": 2},
}
