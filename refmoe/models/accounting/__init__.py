"""How large a published model is, and what one token costs: exact integers from a preset's figures.

    tensors   every tensor of the text backbone, how often it stands there and how often a token reads it
    mixers    the tensors of attention in its variants and of linear recurrences
    counts    parameters, storage, arithmetic and traffic from those tensors
    published the printed figures, and whether a difference needs a reason
    sweep     what changes with the number of experts
    report, plots, command   tables, pictures, `refmoe params`

Conventions, printed under every table: the text backbone without vision towers and multi-token prediction; biases that
only steer the choice are counted where a checkpoint stores them; "active" is everything but the routed experts a token
does not choose, once with and once without the input embedding, which is a look-up. The key-value cache is not a
parameter and is left out.
"""

from .counts import PARTS, STORAGE, by_part, cost, counted, expected_experts, stored_bytes
from .published import comparison
from .tensors import Tensor, model_tensors

__all__ = [
    "Tensor",
    "model_tensors",
    "PARTS",
    "STORAGE",
    "counted",
    "by_part",
    "stored_bytes",
    "expected_experts",
    "cost",
    "comparison",
]
