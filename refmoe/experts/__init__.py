"""Expert feed-forward on sorted rows, the shared expert, and back.   Spec 3, 5.4-5.7"""

from .feed_forward import expert_ffn, expert_ffn_backward
from .records import ExpertsRecord, FeedForward, RoutedGrads, RowGrads, SharedGrads, SharedRecord
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
    "RoutedGrads",
    "RowGrads",
    "SharedGrads",
    "SharedRecord",
    "constant_experts",
    "constant_experts_backward",
    "expert_ffn",
    "expert_ffn_backward",
    "routed_experts",
    "routed_experts_backward",
    "shared_expert",
    "shared_expert_backward",
    "weightless_experts",
    "weightless_experts_backward",
]
