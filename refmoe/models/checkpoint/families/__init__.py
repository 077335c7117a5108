"""The table of families: model_type -> what its checkpoints declare. To add a family, add a row to one of the files."""

from . import sigmoid, softmax
from .form import Family, Place

FAMILIES = {**softmax.FAMILIES, **sigmoid.FAMILIES}

# Published families whose layer today's configuration cannot state, and what it lacks.
NOT_YET = {
    "muse_spark_text": "latent experts with norms",
    "zaya": "a router network with a state of its own",
}

__all__ = ["FAMILIES", "NOT_YET", "Family", "Place"]
