"""The committed vectors: one file a chapter, each case with the bug it catches.   Spec 7.9"""

from . import conformance, dispatch, experts, formats, gradients, losses, numerics, routing
from .calls import CALLS, run
from .form import Case, Recipe

CHAPTERS = {
    "routing": routing,
    "dispatch": dispatch,
    "experts": experts,
    "losses": losses,
    "gradients": gradients,
    "numerics": numerics,
    "formats": formats,
    "conformance": conformance,
}

__all__ = ["CALLS", "CHAPTERS", "Case", "Recipe", "run"]
