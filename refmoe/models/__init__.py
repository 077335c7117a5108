"""Published layers as data: configurations of real models, with a source for each field."""

from .presets import FAMILIES, load_preset, names, preset_info

__all__ = ["FAMILIES", "load_preset", "names", "preset_info"]
