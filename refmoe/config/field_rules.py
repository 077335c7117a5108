"""What one field may hold: its type, its choices, its least value.   Spec 0.3, 0.4"""

import dataclasses
import math

from ..refusals import is_integer, require, shown

POSITIVE = {"minimum": 1}
COUNT = {"minimum": 0}
FLOAT = {"kind": float}
WEIGHT = {"kind": float, "minimum": 0.0}


def one_of(*values):
    """The metadata of a field that takes one of these values."""
    return {"one_of": values}


class Section:
    """A part of the configuration: checks each field against its metadata when it is made, prints what it says."""

    def __init_subclass__(cls):
        cls.__repr__ = _what_it_says  # of its own, so that `dataclass` leaves it

    def __post_init__(self):
        for spec in dataclasses.fields(self):
            value = _checked(spec, getattr(self, spec.name), f"{type(self).__name__}.{spec.name}")
            object.__setattr__(self, spec.name, value)


def _what_it_says(section):
    """The fields that are not at their defaults: a hundred that are would hide them."""
    said = []
    for spec in dataclasses.fields(section):
        neutral = spec.default if spec.default_factory is dataclasses.MISSING else spec.default_factory()
        value = getattr(section, spec.name)
        said += [] if value == neutral else [f"{spec.name}={value!r}"]
    return f"{type(section).__name__}({', '.join(said)})"


def _checked(spec, value, where):
    rule = spec.metadata
    if value is None and spec.default is None:
        return value
    if "section" in rule:
        wanted = rule["section"]
        return _typed(isinstance(value, wanted), where, f"a {wanted.__name__}", value)
    if "one_of" in rule:
        wanted = "one of " + ", ".join(map(repr, rule["one_of"]))
        ok = any(type(value) is type(allowed) and value == allowed for allowed in rule["one_of"])
        require(ok, ValueError, where, wanted, shown(value), "choose one of these")
        return value
    if isinstance(spec.default, bool):
        return _typed(isinstance(value, bool), where, "True or False", value)
    value = _float(value, where) if rule.get("kind") is float else _integer(value, where)
    low = rule.get("minimum", -math.inf)
    require(value >= low, ValueError, where, f"at least {low}", repr(value), "raise it")
    return value


def _typed(condition, where, expected, value):
    require(condition, TypeError, where, expected, shown(value), "correct the type")
    return value


def _float(value, where):
    if isinstance(value, str):  # a constant that a model rounded first is written as a hexadecimal float
        is_hex = value.lstrip("+-").startswith("0x")
        value = _read(float.fromhex, _typed(is_hex, where, "a number or a hexadecimal float string", value), where)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    value = _read(float, _typed(is_number, where, "a number", value), where)
    require(math.isfinite(value), ValueError, where, "a finite number", repr(value), "leave it out for no value")
    return value


def _read(into, value, where):
    try:
        return into(value)
    except (ValueError, OverflowError):  # what is no hexadecimal float, or larger than any
        found = None
    got = str(value) if len(str(value)) < 40 else f"{str(value)[:40]}..."
    require(found is not None, ValueError, where, "a number that binary64 holds", got, "correct it")


def _integer(value, where):
    value = int(_typed(is_integer(value), where, "an integer", value))
    require(value < 1 << 63, ValueError, where, "an integer below 2^63", f"{value!r:.40}", "lower it")
    return value
