"""--set key=value: read against an experiment's own settings, by the type of their defaults, within bounds."""

from itertools import pairwise

from ..arguments import shown
from ..refusals import require

# Bounds of a setting by its name: beyond them an experiment says nothing more, takes days, or does not fit in memory.
WHOLE = {"steps": (1, 100_000), "tokens": (2, 65_536), "sequences": (1, 4096), "context": (1, 4096), "splits": (1, 64),
         "ranks": (1, 256), "experts": (1, 1024), "clusters": (1, 1024), "width": (1, 65_536)}  # fmt: skip
OTHER = (1, 1024)
FLOAT = (0, 1000)
NUMBERS = 2**26  # of the largest array: half a GiB in float64


def merged_settings(experiment, words, quick=False):
    """The experiment's settings with what --quick and --set change. Raises ValueError that lists what is possible."""
    settings = experiment.settings | (experiment.quick if quick else {})
    for word in words:
        name, value = _pair(experiment, word)
        settings[name] = value
    for name, wanted, holds in (*COMMON, *experiment.limits):
        if name in settings:
            got, fix = f"{as_text(settings[name])} in {experiment.id}", "change one of them"
            require(holds(settings), ValueError, f"--set {name}", wanted, got, fix)
    return settings


def largest_array(settings):
    """Numbers in the largest array that a run of these settings makes, about."""
    s = {name: max(value) if isinstance(value, tuple) else value for name, value in settings.items()}
    rows = s.get("sequences", 1) * s["context"] if "context" in s else s.get("tokens", 1)
    hidden, layer = s.get("hidden", 1), s.get("experts", 1) * s.get("splits", 1) * s.get("width", 1)
    around = max(layer, hidden, s.get("context", 1))
    return max(rows * around, layer * hidden, s.get("clusters", 1) * hidden**2)


# What holds in every experiment that has the setting.
COMMON = (
    ("top_k", "at most experts", lambda s: s["top_k"] <= s["experts"]),
    ("width", f"with the other sizes, arrays of at most {NUMBERS} numbers", lambda s: largest_array(s) <= NUMBERS),
)


def settings_for_all(experiments, words):
    """For several experiments at once: id -> the words that it knows; each word must be known to one of them."""
    for word in words:
        known = any(word.partition("=")[0] in e.settings for e in experiments)
        names = ", ".join(sorted({name for e in experiments for name in e.settings}))
        require(known, ValueError, "--set", f"key=value with one of {names}", repr(word), "correct the key")
    return {e.id: [word for word in words if word.partition("=")[0] in e.settings] for e in experiments}


def _pair(experiment, word):
    name, sign, text = word.partition("=")
    known = ", ".join(f"{key}={as_text(value)}" for key, value in experiment.settings.items())
    ok, fix = bool(sign) and name in experiment.settings, "correct the key"
    require(ok, ValueError, "--set", f"key=value; {experiment.id} has {known}", repr(word), fix)
    return name, _value(experiment, name, text)


def _value(experiment, name, text):
    default = experiment.settings[name]
    if name in experiment.choices:
        names = ", ".join(experiment.choices[name])
        require(text in experiment.choices[name], ValueError, f"--set {name}", f"one of {names}", shown(text), "choose")
        return text
    if isinstance(default, str):
        return text
    if isinstance(default, tuple):
        return _rising(name, text, default)
    return _number(name, text, default)


def _rising(name, text, default):
    """Numbers parted by commas, each above the one before."""
    parts = text.split(",")
    wanted = f"2 to 16 numbers, each above the one before, as {as_text(default)}"
    require(1 < len(parts) < 17, ValueError, f"--set {name}", wanted, shown(text), "part them by commas")
    values = tuple(_number(name, part, default[0]) for part in parts)
    rise = all(a < b for a, b in pairwise(values))
    require(rise, ValueError, f"--set {name}", wanted, shown(text), "sort them")
    return values


def _number(name, text, default):
    """A number of the default's type, within its bounds."""
    is_whole = isinstance(default, int)
    least, most = WHOLE.get(name, OTHER) if is_whole else FLOAT
    try:
        value = (int if is_whole else float)(text) if text.isascii() and len(text) < 40 else None
    except ValueError:
        value = None
    kind = "a whole number" if is_whole else "a number"
    wanted = f"{kind} from {least} to {most}, as {default}"
    ok = value is not None and least <= value <= most
    require(ok, ValueError, f"--set {name}", wanted, shown(text), "write such a number")
    return value


def exact(number):
    """A float in few letters that are the number itself: the name of an arm."""
    short = f"{number:g}"
    return short if float(short) == number else repr(number)


def as_text(value):
    """A setting as --set takes it."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def as_words(experiment, settings):
    """The --set words that make these settings of the defaults."""
    changed = {k: v for k, v in settings.items() if v != experiment.settings[k]}
    return [f"{name}={as_text(value)}" for name, value in changed.items()]
