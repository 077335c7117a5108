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
}
