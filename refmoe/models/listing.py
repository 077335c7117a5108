"""`refmoe presets`: what there is, in lines; one preset with the source of each field.   Spec 0.3"""

import textwrap

from ..selection import is_causal
from .presets import load_preset, names, preset_info


def unverified(info):
    """The fields of the layer and of the model whose source could not be read."""
    model = info["model"] or {"sources": {}, "published": {}}
    rows = {**info.get("sources", {}), **{f"model.{name}": row for name, row in model["sources"].items()}}
    rows |= {f"model.published.{name}": row for name, row in model["published"].items() if row}
    return [name for name, row in rows.items() if not row["verified"]]


def overview():
    """A line a preset, whether later tokens reach earlier ones, and under it the fields that nobody could verify."""
    width = max(map(len, names()))
    return "\n".join(_entry(name, width) for name in names())


def _entry(name, width):
    config, info = load_preset(name), preset_info(name)
    sizes = f"E {config.num_experts}, top {config.top_k}, D {config.hidden_size}, F {config.intermediate_size}"
    line = f"{name:<{width}}  {sizes:<34}  {info['description']}"
    doubtful = unverified(info)
    line += "" if is_causal(config) else " Not causal."
    return line + (f"\n{'':<{width}}  unverified: {', '.join(doubtful)}" if doubtful else "")


def details(name):
    """One preset: the fields it sets under the source each was read in, then the notes."""
    info = preset_info(name)
    causal = "a token's output depends on earlier tokens of its sequence alone"
    reach = causal if is_causal(load_preset(name)) else "not causal: a token's output may depend on later ones"
    lines = [f"{name}: {info['description']}", reach]
    for source, verified in dict.fromkeys((row["source"], row["verified"]) for row in info["sources"].values()):
        lines += ["", _wrapped(("" if verified else "UNVERIFIED: ") + source)]
        fields = [field for field, row in info["sources"].items() if row == {"source": source, "verified": verified}]
        lines += [f"    {field} = {_at(info['full'], field)}" for field in fields]
    around = [field for field in unverified(info) if field.startswith("model.")]
    notes = [*info["notes"], *(["Unverified around the layer: " + ", ".join(around)] if around else [])]
    return "\n".join([*lines, "", *(_wrapped("- " + note, "  ") for note in notes)])


def _at(section, path):
    for key in path.split("."):
        section = section[key]
    return section


def _wrapped(text, indent=""):
    return textwrap.fill(text, 110, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
