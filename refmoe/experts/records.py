"""What the experts store, there and back.   Spec 3, 5.4-5.7"""

from typing import NamedTuple


class ExpertsRecord(NamedTuple):
    """Rows in expert order. The stages between x_rows and y_rows have rows of experts with weights only."""

    latent_x: object = None  # (T, l), where the experts work in a narrower space
    latent_rms: object = None  # (T, 1)
    normed_latent_x: object = None  # (T, l)
    x_rows: object = None  # (N, D), or (N, l)
    weighted_x_rows: object = None  # (N, D), only where the weight acts on the input
    gate_rows: object = None  # (N, F), None without a gate
    up_rows: object = None  # (N, F)
    hidden_rows: object = None  # (N, F)
    weighted_hidden_rows: object = None  # (N, F), only where the weight acts on the hidden rows
    constant_logits: object = None  # (rows of constant experts, 2)
    constant_weights: object = None  # (rows of constant experts, 2)
    y_rows: object = None  # (N, D), or (N, l)
    scaled_y_rows: object = None  # (N, D), or (N, l), where a scale stands before the norm
    y_rms: object = None  # (N, 1), where each expert's output is normed
    normed_y_rows: object = None  # (N, D), or (N, l)
    latent_routed: object = None  # (T, l), the weighted sum in the narrower space
    latent_routed_rms: object = None  # (T, 1)
    normed_latent_routed: object = None  # (T, l)


class FeedForward(NamedTuple):
    """What rows become inside the experts that have weights."""

    gate_rows: object = None  # (N, F), None without a gate
    up_rows: object = None  # (N, F)
    hidden_rows: object = None  # (N, F)
    weighted_hidden_rows: object = None  # (N, F), only where the weight acts on the hidden rows
    y_rows: object = None  # (N, D)


class SharedRecord(NamedTuple):
    """The stages of n shared experts, R = n T rows; the gate's are None without one."""

    gate_rows: object = None  # (R, S)
    up_rows: object = None  # (R, S)
    hidden_rows: object = None  # (R, S)
    y_rows: object = None  # (R, D)
    shared_gate_logits: object = None  # (T, 1)
    shared_gate: object = None  # (T, 1)
    shared: object = None  # (T, D)


class RowGrads(NamedTuple):
    """Gradients of an expert's stages, by row."""

    d_constant_weights: object = None  # (rows of constant experts, 2)
    d_constant_logits: object = None  # (rows of constant experts, 2)
    d_weighted_hidden_rows: object = None  # (N, F), only where the weight acts on the hidden rows
    d_hidden_rows: object = None  # (N, F)
    d_gate_rows: object = None  # (N, F), None without a gate
    d_up_rows: object = None  # (N, F)
    d_x_rows: object = None  # (N, D)


class LatentGrads(NamedTuple):
    """Gradients of the stages into the narrower space and out of it."""

    d_normed_latent_routed: object = None  # (T, l)
    d_latent_routed: object = None  # (T, l)
    d_normed_latent_x: object = None  # (T, l)
    d_latent_x: object = None  # (T, l)


class RoutedGrads(NamedTuple):
    """Gradients of the routed experts' stages."""

    d_x_experts: object = None  # (T, D)
    d_x_residual: object = None  # (T, D), where routed has a part of x itself
    d_topk_weights: object = None  # (T, K)
    latent: LatentGrads = None
    d_normed_y_rows: object = None  # (N, D), only where each expert's output is normed
    d_scaled_y_rows: object = None  # (N, D), only where a scale stands before that norm
    d_y_rows: object = None  # (N, D)
    d_weighted_x_rows: object = None  # (N, D), only where the weight acts on the input
    rows: RowGrads = None


class SharedGrads(NamedTuple):
    """Gradients of the shared expert's stages."""

    d_y_rows: object = None  # (R, D)
    d_hidden_rows: object = None  # (R, S)
    d_gate_rows: object = None  # (R, S)
    d_up_rows: object = None  # (R, S)
    d_x_rows: object = None  # (R, D), through the experts
    d_shared_gate: object = None  # (T, 1)
    d_shared_gate_logits: object = None  # (T, 1)
    d_x_gate: object = None  # (T, D), through the gate
    d_x_shared: object = None  # (T, D), both
    d_shared_weights: object = None  # (T, n), where the router weighs the shared experts
