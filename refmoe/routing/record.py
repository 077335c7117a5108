"""What the router made, there and back.   Spec 1.7, 5.9"""

from typing import NamedTuple


class RoutingRecord(NamedTuple):
    """What the router made. With replayed indices nothing is ranked: choice_scores, group_scores, margin are None."""

    jittered_x: object = None  # (T, D), x times given factors
    router_x: object = None  # (T, D), what the router reads, where it is not x
    raw_logits: object = None  # (T, E), before a scale or soft cap
    clean_logits: object = None  # (T, E), before noise
    noise_logits: object = None  # (T, E)
    noise_std: object = None  # (T, E)
    logits: object = None  # (T, E)
    scores: object = None  # (T, E)
    row_potentials: object = None  # (I, T), of Sinkhorn's iterations
    column_potentials: object = None  # (I, E)
    choice_scores: object = None  # (T, E), after the group mask
    second_choice_scores: object = None  # (T, E), what a sampled second expert is ranked by
    group_scores: object = None  # (T, G)
    topk_indices: object = None  # (T, K), best first; -1 unused
    raw_topk_weights: object = None  # (T, K), before the drop; only with normalize_after_drop
    unscaled_topk_weights: object = None  # (T, K), before the learned scales; only with them
    topk_weights: object = None  # (T, K)
    shared_logits: object = None  # (T, n), of the shared experts, where they share the normaliser
    shared_scores: object = None  # (T, n)
    unscaled_shared_weights: object = None  # (T, n)
    shared_weights: object = None  # (T, n)
    router_gram: object = None  # (E, E), w_router w_router^T, where a loss reads it
    lse: object = None  # (T,), log-sum-exp of the logits; reported, read by nothing
    margin: object = None  # (T,), K-th minus (K+1)-th choice score; reported, read by nothing


class RouterGrads(NamedTuple):
    """Gradients of the router's stages that only some configurations have; None elsewhere."""

    d_unscaled_topk_weights: object = None  # (T, K)
    d_unscaled_shared_weights: object = None  # (T, n)
    d_shared_logits: object = None  # (T, n)
    d_clean_logits: object = None  # (T, E)
    d_noise_std: object = None  # (T, E)
    d_noise_logits: object = None  # (T, E)
    d_raw_logits: object = None  # (T, E)
    d_router_x: object = None  # (T, D)
    d_jittered_x: object = None  # (T, D)
