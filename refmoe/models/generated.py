"""What is written from the dataclasses of the configuration: the lists of its fields and the schema of presets.

`refmoe fields --write` brings the three up to date in a checkout, and a test keeps them so: the list in README.md, the
table in spec/fields.md, the part `config` of spec/presets/schema.json.   Spec 0.3
"""

import dataclasses
import json
from itertools import groupby

from ..config import MoEConfig
from ..config.fields import field_rows
from ..refusals import require
from .presets import presets_folder, spec_folder

BEGIN, END = "<!-- fields: written by `refmoe fields --write` -->", "<!-- end of fields -->"
CHAPTERS = {"": 0, "routing": 1, "dispatch": 2, "experts": 3, "losses": 4}


def sections():
    """[(dotted name of the section, its rows)]; the four sizes are the section ""."""
    return [
        (name, list(rows)) for name, rows in groupby(field_rows(MoEConfig), lambda row: row.path.rpartition(".")[0])
    ]


def compact_list():
    """The list of the README: one row a section, each field with its default."""
    lines = ["| section | fields, each with its neutral value |", "| --- | --- |"]
    lines += [f"| {_title(name)} | {', '.join(map(_short, rows))} |" for name, rows in merged_sections()]
    return "\n".join(lines)


def merged_sections():
    """`sections`, those of one name together: a loss stands between two fields of `losses`."""
    out = {}
    for name, rows in sections():
        out.setdefault(name, []).extend(rows)
    return list(out.items())


def _title(name):
    return f"`{name}`" if name else "(sizes)"


def _short(row):
    name = row.path.rpartition(".")[2]
    return f"`{name}`" if row.default == "required" else f"`{name}` {row.default}"


def full_table():
    """The page spec/fields.md: every field with its values and its meaning."""
    parts = [_HEAD]
    for name, rows in merged_sections():
        parts.append(f"\n## {_title(name)}: chapter {CHAPTERS[name.split('.')[0]]}\n")
        parts.append(
            "| field | default | values | meaning | in Hugging Face configs |\n| --- | --- | --- | --- | --- |"
        )
        parts += [_full(row) for row in rows]
    return "\n".join(parts) + "\n"


_HEAD = """# The fields of the configuration

Written by `refmoe fields --write` from the dataclasses in `refmoe/config`; the chapters are the law, and say what each
field does. A field at its default changes no bit. Names of Hugging Face configs are accepted in JSON files."""


def _full(row):
    cells = f"`{row.path}`", row.default, row.values, row.about, ", ".join(f"`{alias}`" for alias in row.aliases)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def text_table():
    """The same for a terminal."""
    rows = [(row.path, row.default, row.about or row.values) for _, rows in merged_sections() for row in rows]
    wide, short = (max(len(row[i]) for row in rows) for i in (0, 1))
    return "\n".join(f"{path:<{wide}}  {default:<{short}}  {about}".rstrip() for path, default, about in rows)


def schema_of(section):
    """The JSON schema of a section's fields."""
    known = {spec.name: _schema_of_field(spec) for spec in dataclasses.fields(section)}
    return {"type": "object", "properties": known, "additionalProperties": False}


def _schema_of_field(spec):
    rule, none = spec.metadata, spec.default is None
    if "section" in rule:
        return schema_of(rule["section"])
    if "one_of" in rule:
        return {"enum": [*rule["one_of"], *([None] if none else [])]}
    kind = "number" if rule.get("kind") is float else "boolean" if isinstance(spec.default, bool) else "integer"
    low = {"minimum": int(rule["minimum"])} if "minimum" in rule else {}  # every bound there is, is whole
    return {"type": [kind, "null"] if none else kind} | low


# --- the files -------------------------------------------------------------------------------------------------------


def stale():
    """[(path, text it should hold)] of the generated files that are not up to date."""
    return [(path, text) for path, text in _wanted().items() if _now(path) != text]


def write():
    """Brings the generated files of a checkout up to date; their paths."""
    changed = stale()
    for path, text in changed:
        path.write_text(text, encoding="utf-8")
    return [path for path, _ in changed]


def _wanted():
    """path -> text, of the checkout this package lies in; ValueError for an installed package."""
    readme, schema = spec_folder().parent / "README.md", presets_folder() / "schema.json"
    text, fix = _now(readme), "run it in a checkout"
    found = BEGIN in text and END in text
    require(found, ValueError, "fields", f"a README with the marks {BEGIN} and {END}", str(readme), fix)
    head, tail = text.split(BEGIN)[0], text.split(END)[1]
    data = json.loads(_now(schema))
    data["$defs"]["config"] = schema_of(MoEConfig)
    return {
        readme: f"{head}{BEGIN}\n\n{compact_list()}\n\n{END}{tail}",
        spec_folder() / "fields.md": full_table(),
        schema: json.dumps(data, indent=2) + "\n",
    }


def _now(path):
    return path.read_text(encoding="utf-8") if path.exists() else ""
