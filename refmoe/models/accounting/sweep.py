"""What the number of experts changes, and a dense model of the same active size.   Spec 0.3"""

from .counts import counted
from .tensors import Tensor

EXPERTS = (1, 2, 4, 8, 16, 32, 64, 128, 192, 256, 384, 512)


def sweep_experts(info, experts=EXPERTS):
    """One row a number of experts, all else as in the model: {"num_experts", "total", "active"}.

    Numbers below top_k are left out: that many experts cannot be chosen.
    """
    top_k = info["full"]["top_k"]
    return [_row(info, E) for E in experts if E >= top_k]


def _row(info, E):
    changed = info | {"full": info["full"] | {"num_experts": E, "routing": _ungrouped(info["full"]["routing"])}}
    counts = counted(changed)
    return {"num_experts": E, "total": counts["total"], "active": counts["active"]}


def _ungrouped(routing):
    """Groups have no parameters, and their number need not divide another number of experts."""
    return {key: value for key, value in routing.items() if "group" not in key}


def feed_forward(hidden_size, intermediate_size, num_experts, top_k, matrices=3, match_dense=False):
    """One layer's feed-forward alone, dense and as a mixture, without biases and shared experts.

    matrices m: 3 with a gate, 2 without. match_dense: experts shrink to F' = round((dense - router) / (E m D)), so that
    the mixture is as large as the dense layer; where the router alone is larger they keep their width.
    Returns {"dense", "expert_intermediate_size", "expert", "router", "total", "active"}.
    """
    D, F, E = hidden_size, intermediate_size, num_experts
    dense, router = matrices * D * F, D * E
    width = round((dense - router) / (E * matrices * D)) if match_dense and router < dense else F
    expert = Tensor("routed", "expert", (matrices, D, width), E, top_k).size
    sizes = {"dense": dense, "expert_intermediate_size": width, "expert": expert, "router": router}
    return sizes | {"total": E * expert + router, "active": top_k * expert + router}
