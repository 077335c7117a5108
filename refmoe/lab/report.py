"""One self-contained page of all runs in a folder: pictures, findings, tables, and the command that made each."""

import base64
import re
from html import escape
from pathlib import Path

from ..models.presets import spec_folder
from ..refusals import require
from ..writing import check_folder, write_whole
from .results import PICTURE, RESULTS, RUN, read_json

STYLE = """
:root{color-scheme:light dark}body{font:16px/1.55 system-ui,sans-serif;margin:0 auto;max-width:60em;padding:0 1em 4em}
h1{font-size:1.6em}h2{margin-top:2.2em;border-top:3px solid #3566b8;padding-top:.6em}img{max-width:100%;height:auto;
background:#fff;border-radius:4px}.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.9em}
td,th{padding:.2em .8em;text-align:right;white-space:nowrap}td:first-child,th:first-child{text-align:left}
th{border-bottom:1px solid #888}pre{overflow-x:auto;padding:.7em;background:#8882;border-radius:4px}
.yes{color:#1b7a3d}.no{color:#b3261e}.open{color:#8a6100}li{margin:.3em 0}nav a{margin-right:.8em;white-space:nowrap}
details{margin:.8em 0}summary{cursor:pointer}
@media(prefers-color-scheme:dark){.yes{color:#7bd69a}.no{color:#ff8f86}.open{color:#e8bf5a}}
"""


def write_report(folder, out=None):
    """Writes the page -> (path, number of runs). Raises ValueError where there is no finished run."""
    folder = Path(folder)
    runs = sorted(folder.glob(f"*/{RESULTS}"), key=lambda path: _order(path.parent.name))
    fix = "make one with `refmoe lab run NAME`"
    require(runs, ValueError, "--runs", "a folder with finished runs in it", repr(str(folder)), fix)
    path = Path(out) if out else folder / "report.html"
    check_folder("--out", path)
    write_whole(path, page([_section(run.parent) for run in runs]))
    return path, len(runs)


def _order(name):
    number = re.match(r"E(\d+)", name)
    return (int(number[1]) if number else 999, name)


def page(sections):
    """The whole page as text; it fetches nothing. sections: (id, title, html)"""
    links = "".join(f'<a href="#{escape(i)}">{escape(i)}&nbsp;{escape(title)}</a> ' for i, title, _ in sections)
    body = "\n".join(html for _, _, html in sections)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>refmoe lab</title><style>{STYLE}</style></head><body>
<h1>refmoe lab</h1>
<p>Small layers on made-up tasks, all seeds shown. Every sentence below is computed from the run's results.json; a sign
test over few seeds is weak evidence, and none of it says anything about large models.</p>
<nav>{links}</nav>
{body}
</body></html>
"""


def _section(folder):
    results, run = read_json(folder / RESULTS), read_json(folder / RUN)
    told = "\n".join(_finding(f) for f in results["findings"])
    seeds = len(results["seeds"])
    command = f"{run['command']} --seeds {seeds}"
    html = f"""<section><h2 id="{escape(results["experiment"])}">{escape(results["experiment"])}
{escape(results["title"])}</h2>
<p><em>{escape(results["question"])}</em></p>
{_picture(folder / PICTURE, results)}
<ul>
{told}
</ul>
<pre>{escape(command)}</pre>
<details><summary>Numbers: mean of {seeds} seeds, least to largest</summary><div class="scroll">{_table(results)}</div>
</details>
<details><summary>What was done</summary>{_explanation(results["experiment"])}
<p>Settings: {escape(", ".join(f"{k} {v}" for k, v in results["settings"].items()))}. Key {escape(results["key"])}.</p>
</details></section>"""
    return results["experiment"], results["title"], html


def _picture(path, results):
    if not path.exists():
        return "<p>No picture: matplotlib was not installed when this ran.</p>"
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{escape(results["title"])}" src="data:image/png;base64,{data}">'


def _finding(finding):
    test = finding["sign_test"]
    kind = "yes" if not test["against"] + test["ties"] else "no" if not test["for"] else "open"
    return f'<li class="{kind}">{escape(finding["sentence"])}</li>'


def _table(results):
    names = list(dict.fromkeys(name for arm in results["arms"].values() for name in arm))
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    rows = "\n".join(f"<tr><td>{escape(arm)}</td>{''.join(_cell(numbers.get(n)) for n in names)}</tr>"
                     for arm, numbers in results["arms"].items())  # fmt: skip
    return f"<table><tr><th></th>{head}</tr>\n{rows}</table>"


def _cell(number):
    if number is None:
        return "<td></td>"
    return f"<td>{number['mean']:.4g}<br><small>{number['min']:.3g} to {number['max']:.3g}</small></td>"


def _explanation(name):
    path = spec_folder() / "lab" / f"{name}.md"
    return to_html(path.read_text(encoding="utf-8")) if path.exists() else ""


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
