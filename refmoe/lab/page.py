"""How the page of `refmoe lab report` looks: style, frame, pictures, the little Markdown of the explanations."""

import base64
import re
from html import escape

# On a narrow screen a picture keeps a size at which it can be read, and moves sideways in a box of its own.
STYLE = """
:root{color-scheme:light dark}body{font:16px/1.55 system-ui,sans-serif;margin:0 auto;max-width:60em;padding:0 1em 4em;
overflow-wrap:anywhere}h1{font-size:1.6em}h2{margin-top:2.2em;border-top:3px solid #3566b8;padding-top:.6em}
img{display:block;width:100%;height:auto;background:#fff;border-radius:4px}.scroll{overflow-x:auto}.hint{display:none}
table{border-collapse:collapse;font-size:.9em}td,th{padding:.2em .8em;text-align:right;white-space:nowrap}
td:first-child,th:first-child{text-align:left}th{border-bottom:1px solid #888}
pre{white-space:pre-wrap;padding:.7em;background:#8882;border-radius:4px}pre span{display:inline-block}
.yes{color:#1b7a3d}.no{color:#b3261e}.open{color:#8a6100}li{margin:.3em 0}nav a{display:inline-block;margin-right:1em}
details{margin:.8em 0}summary{cursor:pointer}
@media(max-width:46em){.scroll img{width:46em}.hint{display:block;font-size:.8em;opacity:.7}}
@media(prefers-color-scheme:dark){.yes{color:#7bd69a}.no{color:#ff8f86}.open{color:#e8bf5a}}
"""


def page(sections):
    """The whole page as text; it fetches nothing. sections: (id, title, html)"""
    links = "".join(f'<a href="#{escape(i)}">{escape(i)} {escape(title)}</a> ' for i, title, _ in sections)
    body = "\n".join(html for _, _, html in sections)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>refmoe lab</title><style>{STYLE}</style></head><body>
<h1>refmoe lab</h1>
<p>Small layers on made-up tasks, all seeds shown. Every finding in the coloured lists is computed from the run's
results.json; "What was done" is the experiment's page, the same for all runs, and holds no result. A sign test over few
seeds is weak evidence, and none of it says anything about large models.</p>
<nav>{links}</nav>
{body}
</body></html>
"""


def section(name, title, parts):
    """(id, title, html) of a run: a heading, then what it shows."""
    inner = "\n".join(parts)
    return name, title, f'<section><h2 id="{escape(name)}">{escape(name)} {escape(title)}</h2>\n{inner}\n</section>'


def picture(path, title):
    """The picture in the page itself."""
    if not path.exists():
        return "<p>No picture: matplotlib was not installed when this ran.</p>"
    data = base64.b64encode(path.read_bytes()).decode()
    hint = '<div class="hint">The picture moves sideways.</div>'
    return f'<div class="scroll"><img alt="{escape(title)}" src="data:image/png;base64,{data}"></div>{hint}'


def command(text):
    """What was typed; it is not broken within a word, where a phone would part -- from what follows."""
    return f"<pre>{' '.join(f'<span>{escape(word)}</span>' for word in text.split())}</pre>"


def fold(summary, html):
    """What is opened by a touch."""
    return f"<details><summary>{escape(summary)}</summary>{html}</details>"


def to_html(markdown):
    """The little Markdown that the pages use: headings, paragraphs, lists, code."""
    blocks = re.split(r"\n{2,}", markdown.strip())
    return "\n".join(_block(block) for block in blocks)


def _block(text):
    if text.startswith("```"):
        return f"<pre>{escape(text.split(chr(10), 1)[1].rsplit('```', 1)[0])}</pre>"
    if text.startswith("#"):
        return f"<h3>{_inline(text.lstrip('# '))}</h3>"
    if text.startswith(("* ", "- ")):
        items = re.split(r"\n(?=[*-] )", text)
        return "<ul>" + "".join(f"<li>{_inline(item[2:])}</li>" for item in items) + "</ul>"
    return f"<p>{_inline(text)}</p>"


def _inline(text):
    text = escape(text, quote=False)
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
    return re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", text)
