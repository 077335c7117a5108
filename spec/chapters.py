"""Loads the fenced Python of the chapters, in order, into one namespace.

A traceback points into the Markdown: each fence is compiled under its chapter's file name, at its own line. Nothing
here comes from the library, and the library takes nothing from here.
"""

import linecache
import re
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^## (\d\.\d+) (.+)$", re.MULTILINE)


def chapters(folder=FOLDER):
    """The paths of the chapters, in the order of their numbers."""
    return sorted(folder.glob("[0-9]-*.md"))


def fences(path):
    """(line of its first statement, source) of each Python fence of a chapter."""
    text = path.read_text(encoding="utf-8")
    return [(text.count("\n", 0, match.start(1)) + 1, match.group(1)) for match in FENCE.finditer(text)]


def sections(folder=FOLDER):
    """number -> title of every numbered section."""
    texts = [path.read_text(encoding="utf-8") for path in chapters(folder)]
    return {number: title for text in texts for number, title in HEADING.findall(text)}


def law_chapters(folder=FOLDER):
    """Chapters 0 to 6: the ones whose fences are the law."""
    return [path for path in chapters(folder) if int(path.name[0]) <= 6]


def load(folder=FOLDER):
    """The namespace of all the fences of chapters 0 to 6."""
    namespace = {"__name__": "refmoe_law"}
    for path in law_chapters(folder):
        linecache.checkcache(str(path))
        for line, source in fences(path):
            exec(compile("\n" * (line - 1) + source, str(path), "exec"), namespace)
    return namespace
