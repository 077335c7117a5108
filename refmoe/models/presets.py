"""Presets: one JSON file a real model, in `spec/presets`.   Spec 0.3

A preset holds the configuration of the published layer (`full`), the sizes that make it tiny without changing a rule
(`minimal`), the figures of the model around it (`model`, null where they are not known well enough to count it), and
where each value was read (`sources`). Adding a model is adding a file.
"""

import difflib
from pathlib import Path

from ..config import MoEConfig, load_json
from ..refusals import require, shown

SCALES = ("full", "minimal")
_KEYS = {"name", "description", "full", "minimal", "model", "sources", "notes"}
# One preset for each kind of layer: what the vectors and the longest tests run. The others differ in sizes and in
# combinations of the same rules.
FAMILIES = (
    "deepseek-v3",
    "gpt-oss-20b",
    "mixtral-8x7b",
    "olmoe-1b-7b",
    "qwen1.5-moe-a2.7b",
    "qwen3-30b-a3b",
    "switch-base-8",
)


def names():
    """The names of all presets, in alphabetical order."""
    return tuple(sorted(path.stem for path in presets_folder().glob("*.json") if path.stem != "schema"))


def load_preset(name, scale="full"):
    """MoEConfig of a published layer: at its own sizes ("full") or at tiny ones with the same rules ("minimal").

    Raises ValueError for an unknown name (with the nearest known ones) or scale.
    """
    ok = isinstance(scale, str) and scale in SCALES
    require(ok, ValueError, "scale", f"one of {', '.join(SCALES)}", shown(scale), "choose one of these")
    info = preset_info(name)
    data = info["full"] if scale == "full" else merged(info["full"], info["minimal"])
    return MoEConfig.from_dict(data)


def preset_info(name):
    """The preset's file as a dictionary: name, description, full, minimal, model, sources, notes.

    Raises ValueError for an unknown name, or for a file that is not a preset.
    """
    known = names()
    wanted = f"one of the {len(known)} that `refmoe presets` lists"
    ok = isinstance(name, str) and name in known
    require(ok, ValueError, "preset", wanted, f"{name!r:.80}", _suggestion(name, known))
    path = presets_folder() / f"{name}.json"
    info = load_json(path)
    ok = isinstance(info, dict) and set(info) == _KEYS and info["name"] == name
    keys = ", ".join(sorted(_KEYS))
    require(ok, ValueError, str(path), f"the keys {keys} and the name {name!r}", "others", "correct the file")
    return info


def merged(base, changes):
    """base with the values of `changes` in place of its own, section by section."""
    out = dict(base)
    for key, value in changes.items():
        inner = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merged(out[key], value) if inner else value
    return out


def spec_folder():
    """The law's folder: `_spec` inside an installed package, `spec` beside the package in a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed, checkout = package / "_spec", package.parent / "spec"
    found = [folder for folder in (installed, checkout) if (folder / "presets").is_dir()]
    require(found, ValueError, "presets", f"the folder {installed} or {checkout}", "neither", "install refmoe again")
    return found[0]


def presets_folder():
    return spec_folder() / "presets"


def _suggestion(name, known):
    close = difflib.get_close_matches(str(name).lower(), known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else "choose one of these"
