"""Expert feed-forward on sorted rows, the shared expert, and back.   Spec 3, 5.4-5.7"""

from .feed_forward import expert_ffn, expert_ffn_backward
from .latent import latent_in, latent_in_backward, latent_out, latent_out_backward
from .output import layer_output, layer_output_backward
from .post_norm import post_norm, post_norm_backward
from .records import ExpertsRecord, FeedForward, LatentGrads, RoutedGrads, RowGrads, SharedGrads, SharedRecord
from .residual import complement, complement_backward
from .routed import routed_experts, routed_experts_backward
from .shared import shared_expert, shared_expert_backward
from .weightless import (
    constant_experts,
    constant_experts_backward,
    weightless_experts,
    weightless_experts_backward,
)

__all__ = [
    "ExpertsRecord",
    "FeedForward",
    "LatentGrads",
    "RoutedGrads",
    "RowGrads",
    "SharedGrads",
    "SharedRecord",
    "complement",
    "complement_backward",
    "constant_experts",
    "constant_experts_backward",
    "expert_ffn",
    "expert_ffn_backward",
    "latent_in",
    "latent_in_backward",
    "latent_out",
    "latent_out_backward",
    "layer_output",
    "layer_output_backward",
    "post_norm",
    "post_norm_backward",
    "routed_experts",
    "routed_experts_backward",
    "shared_expert",
    "shared_expert_backward",
    "weightless_experts",
    "weightless_experts_backward",
]
