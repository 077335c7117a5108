"""Reading one layer of a real checkpoint: safetensors files, declared layouts, config.json.

`read_layer(directory, layer)` is the way in; `families.py` is the table it reads by.
"""

from .families import FAMILIES, NOT_YET
from .layer import Layer, read_layer

__all__ = ["FAMILIES", "NOT_YET", "Layer", "read_layer"]
