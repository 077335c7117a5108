"""Every field of the configuration as a row: name, default, values, meaning.   Spec 0.3

A meaning is the comment that stands at the field, read from the source, so there is one text and not two.
"""

import dataclasses
import inspect
import io
import re
import textwrap
import tokenize
from typing import NamedTuple

from .reading import HF_NAMES, SHARED_COUNTS


class Row(NamedTuple):
    """A field: dotted path, default as it is written, what it may hold, what it means, Hugging Face's names for it."""

    path: str
    default: str
    values: str
    about: str
    aliases: tuple


def field_rows(section, prefix=""):
    """The rows of a section and of the sections in it, in the order they are declared."""
    comments = field_comments(section)
    for spec in dataclasses.fields(section):
        path, inner = prefix + spec.name, spec.metadata.get("section")
        if inner is None or spec.default is None:
            about = comments.get(spec.name, "") if inner is None else _first_sentence(inner)
            yield Row(path, default_of(spec), values_of(spec), about, _aliases(path))
        if inner is not None:
            yield from field_rows(inner, f"{path}.")


def _first_sentence(section):
    return inspect.getdoc(section).split("\n")[0].split("   Spec")[0].rstrip(".")


def default_of(spec):
    """The default as a user would write it; "required" where there is none."""
    return "required" if spec.default is dataclasses.MISSING else repr(spec.default).replace("'", '"')


def values_of(spec):
    """What a field may hold, in words."""
    rule, none = spec.metadata, " or None" if spec.default is None else ""
    if "one_of" in rule:
        return ", ".join(repr(value).replace("'", '"') for value in rule["one_of"]) + none
    if "section" in rule:
        return "a section" + none
    if isinstance(spec.default, bool):
        return "False, True"
    low = rule.get("minimum")
    text = "a number" if rule.get("kind") is float else "a whole number"
    return text + (f" from {low:g} on" if low is not None else "") + none


def _aliases(path):
    counts = SHARED_COUNTS if path == "experts.shared_intermediate_size" else ()
    return tuple(alias for alias, place in HF_NAMES.items() if place == path and alias != path) + counts


def field_comments(section):
    """name -> the comment at each field of a dataclass, from its source; several lines become one.

    A comment stands on one of the field's lines; one on a line of its own belongs to the field below it.
    """
    source = textwrap.dedent(inspect.getsource(section))
    found, name, above, depth = {}, None, "", 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            text = token.string.lstrip("#").strip()
            if depth == 0 and token.line.lstrip().startswith("#"):
                above = f"{above} {text}".strip()
            else:
                found[name] = f"{found.get(name, '')} {text}".strip()
        elif token.type == tokenize.OP:
            depth += (token.string in "([{") - (token.string in ")]}")
        elif token.type == tokenize.NAME and depth == 0 and re.match(rf"\s+{token.string}\s*:", token.line):
            name, above = token.string, found.update({token.string: above} if above else {}) or ""
    return found
