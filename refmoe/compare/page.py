"""One self-contained page: the verdicts, and for each stage a map of its errors by expert.   Spec 7.12"""

from html import escape

import numpy as np

from ..golden.run import stage_of
from .report import first_lines, headline, notes

COLUMNS = 48  # cells of a map's row at most
LARGEST = 64  # rows of a map at most
HEADS = ("stage", "section", "verdict", "matched", "ulp", "of rigorous", "of expected", "expert")
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:64em;padding:0 1em;color:#222}
table{border-collapse:collapse}td,th{padding:.15em .7em;text-align:left}
td.n{text-align:right;font-variant-numeric:tabular-nums}.wrong{color:#b00020;font-weight:600}
.suspicious{color:#9a5b00;font-weight:600}.passed{color:#1b6e3a}pre{background:#f6f6f4;padding:1em;overflow:auto}
.map{line-height:0}.map i{display:inline-block;width:14px;height:10px}.map b{display:inline-block;width:6em;height:10px;
font:10px/10px system-ui;vertical-align:top}h2{font-size:1.05em;margin:1.4em 0 .3em}
"""


def html_page(result):
    """The page as text; it fetches nothing."""
    comparison = result.comparison
    told = [headline(result)] + (first_lines(result) if comparison.first is not None else []) + notes(comparison)
    rows = "\n".join(_row(v) for v in comparison.verdicts)
    maps = "\n".join(_map(v, comparison) for v in comparison.verdicts if v.map is not None and v.map.size)
    heads = "".join(f"<th>{word}</th>" for word in HEADS)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(headline(result))}</title><style>{STYLE}</style></head><body>
<h1>{escape(result.title)}</h1>
<pre>{escape(chr(10).join(told))}</pre>
<table><tr>{heads}</tr>
{rows}
</table>
<p>The maps show the greatest error over the expected one: white 0, yellow near the bound, red beyond it. A row is an
expert where the elements of a stage belong to experts, else a run of its rows; across, its columns.</p>
{maps}
</body></html>
"""


def _row(v):
    figures = f"{v.matched:.2%}", f"{v.ulp:.3g}", f"{v.of_rigorous:.3g}", f"{v.of_statistical:.3g}"
    cells = "".join(f'<td class="n">{text}</td>' for text in figures)
    expert = v.worst_expert if v.worst_expert >= 0 else ""
    name = f'<a href="#{escape(v.name)}">{escape(v.name)}</a>'
    said = f'<td>{stage_of(v.name)}</td><td class="{v.verdict}">{v.verdict}</td>'
    return f"<tr><td>{name}</td>{said}{cells}<td>{expert}</td></tr>"


def _map(v, comparison):
    grid, names = _grid(v, comparison)
    lines = [f"<b>{escape(name)}</b>" + "".join(f'<i style="background:{_colour(x)}"></i>' for x in row) + "<br>"
             for name, row in zip(names, grid, strict=True)]  # fmt: skip
    return f'<h2 id="{escape(v.name)}">{escape(v.name)}: {v.verdict}</h2><div class="map">{"".join(lines)}</div>'


def _grid(v, comparison):
    """(rows, columns) of the greatest share, and the rows' names."""
    share = np.minimum(np.nan_to_num(np.abs(v.map), nan=np.inf, posinf=np.inf), 1e6)
    flat = share.reshape(len(share), -1) if share.ndim > 1 else share.reshape(-1, 1)
    owners, word = _owners(v, len(flat), comparison), "expert"
    if owners is None:
        owners, word = np.arange(len(flat)) * min(LARGEST, len(flat)) // max(1, len(flat)), "rows"
    columns = np.arange(flat.shape[1]) * min(COLUMNS, flat.shape[1]) // flat.shape[1]
    grid = np.zeros((int(owners.max(initial=0)) + 1, int(columns.max(initial=0)) + 1))
    np.maximum.at(grid, (owners[:, None], columns[None, :]), flat)
    firsts = np.searchsorted(owners, np.arange(len(grid))) if word == "rows" else np.arange(len(grid))
    return grid, [f"{word} {at}" for at in firsts]


def _owners(v, rows, comparison):
    """The expert of each row of a tensor in expert order, or of a parameter's gradient; else None."""
    plan = comparison.own.record.plan
    if not v.by_expert or plan is None:
        return None
    ends = np.asarray(plan.expert_offsets)
    by_row = v.name.startswith(("experts.", "grads.rows.")) or v.name.endswith("_rows")
    if by_row and rows <= ends[-1]:
        return np.repeat(np.arange(len(ends) - 1), np.diff(ends))[:rows]
    return np.arange(rows) if v.name.startswith("grads.params.") and rows == len(v.by_expert) else None


def _colour(share):
    if share > 1:
        return f"rgb({max(120, 215 - int(20 * np.log10(share)))},20,40)"
    return f"rgb(255,{255 - int(60 * share)},{255 - int(200 * share)})"
