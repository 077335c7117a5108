"""The table of families: model_type -> what its checkpoints declare. To add a family, add a row to one of the files."""

from . import sigmoid, softmax
from .form import Family, Place

FAMILIES = {**softmax.FAMILIES, **sigmoid.FAMILIES}

# Published families whose checkpoints are known and not read, and why.
_MODALITIES = "text and images have routers and experts of their own around one shared expert, which is two layers"
NOT_YET = {
    "zaya": "its router is a network with a state of its own, and no field of MoEConfig states that: give its logits",
    "doge": "its experts are rows of an embedding, found by product keys, and no field of MoEConfig states that",
    "nllb-moe": "transformers' own forward of it runs two of its experts only (spec 8.3), so no reading could be held "
    "against it",
    "ernie4_5_vl_moe": _MODALITIES,
    "ernie4_5_vl_moe_text": _MODALITIES,
}

__all__ = ["FAMILIES", "NOT_YET", "Family", "Place"]
