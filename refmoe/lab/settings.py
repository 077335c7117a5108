"""--set key=value: read against an experiment's own settings, by the type of their defaults."""

from math import isfinite

from ..refusals import require


def merged_settings(experiment, words, quick=False):
    """The experiment's settings with what --quick and --set change. Raises ValueError that lists what is possible."""
    settings = experiment.settings | (experiment.quick if quick else {})
    for word in words:
        name, value = _pair(experiment, word)
        settings[name] = value
    for name, wanted, holds in experiment.limits:
        got, fix = f"{as_text(settings[name])} in {experiment.id}", "change one of them"
        require(holds(settings), ValueError, f"--set {name}", wanted, got, fix)
    return settings


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
        require(text in experiment.choices[name], ValueError, f"--set {name}", f"one of {names}", repr(text), "choose")
        return text
    if isinstance(default, str):
        return text
    if isinstance(default, tuple):
        parts = text.split(",")
        wanted = f"two numbers or more, as {as_text(default)}"
        require(len(parts) > 1, ValueError, f"--set {name}", wanted, repr(text), "part them by commas")
        return tuple(_number(name, part, default[0]) for part in parts)
    return _number(name, text, default)


def _number(name, text, default):
    whole = isinstance(default, int)
    wanted = f"a whole number from 1 on, as {default}" if whole else f"a finite number, at least 0, as {default}"
    try:
        value = int(text) if whole else float(text)
    except ValueError:
        value = None
    ok = value is not None and (value >= 1 if whole else isfinite(value) and value >= 0)
    require(ok, ValueError, f"--set {name}", wanted, repr(text), "write a number")
    return value


def as_text(value):
    """A setting as --set takes it."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def as_words(experiment, settings):
    """The --set words that make these settings of the defaults."""
    changed = {k: v for k, v in settings.items() if v != experiment.settings[k]}
    return [f"{name}={as_text(value)}" for name, value in changed.items()]
