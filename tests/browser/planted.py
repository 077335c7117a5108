"""Faults of a page, one line each: what is edited, and the words it must be refused with."""

import re
from typing import NamedTuple


class Fault(NamedTuple):
    """A copy of `page` with one fault; `said` must stand in what is found."""

    name: str
    page: str
    said: str
    edit: object  # text -> text


def before_end(html):
    return lambda text: text.replace("</body>", f"{html}</body>")


def without(part, by=""):
    return lambda text: text.replace(part, by, 1)


FAULTS = (
    Fault("a block that is too wide", "report", "sideways", before_end('<div style="width:50em">wide</div>')),
    Fault("a word without an end", "compare", "sideways", lambda text: text.replace("anywhere", "normal").replace(
        "<h1>", f"<h1>{'long' * 40}")),
    Fault("a text that is cut off", "compare", "beyond the edge",
          before_end('<div style="overflow:hidden"><p style="width:60em">cut</p></div>')),
    Fault("a table without its box", "compare", "sideways", without('<div class="scroll">', "<div>")),
    Fault("a script that fails", "report", "script error", before_end("<script>nothing()</script>")),
    Fault("a promise that fails", "report", "script error", before_end("<script>Promise.reject(1)</script>")),
    Fault("a complaint on the console", "report", "script error", before_end("<script>console.error(1)</script>")),
    Fault("a picture from outside", "compare", "outside", before_end('<img alt="a" src="https://example.org/a.png">')),
    Fault("a style from outside", "report", "outside", without("<style>", "<style>@import 'https://example.org/a';")),
    Fault("a request by a script", "report", "outside",
          before_end("<script>fetch('/a'.replace('', 'https://example.org')).catch(() => 0)</script>")),
    Fault("a file beside the page", "report", "outside", before_end('<img alt="a" src="picture.png">')),
    Fault("a damaged picture", "report", "picture", lambda text: re.sub(r"base64,.{400}", "base64,", text, count=1)),
    Fault("a missing picture", "report", "pictures", lambda text: re.sub(r"<img [^>]*>", "", text, count=1)),
    Fault("a picture too small to read", "report", "too small", lambda text: re.sub(r"@media\(max-width.*", "", text)),
    Fault("no width of the screen", "compare", "viewport", lambda text: re.sub(r'<meta name="viewport".*', "", text)),
    Fault("a link that leads nowhere", "report", "nowhere", lambda text: text.replace('id="E3"', "")),
    Fault("an empty page", "compare", "headings", lambda text: re.sub(r"(?s)<body>.*</body>", "<body></body>", text)),
)  # fmt: skip
