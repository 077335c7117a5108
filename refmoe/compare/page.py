"""One self-contained page: the verdicts, and for each stage a map of its errors by expert.   Spec 7.12"""

from base64 import b64encode
from html import escape
from struct import pack
from zlib import compress, crc32

import numpy as np

from ..golden.run import stage_of
from .report import first_lines, headline, notes

WIDE, HIGH = 14, 10  # pixels of a cell
HEADS = ("stage", "section", "verdict", "matched", "ulp", "of rigorous", "of expected", "of trend", "expert", "row")
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:64em;padding:0 1em;color:#222;
background:#fff;overflow-wrap:anywhere}
.scroll{overflow-x:auto}table{border-collapse:collapse}td,th{padding:.15em .7em;text-align:left;white-space:nowrap}
td.n{text-align:right;font-variant-numeric:tabular-nums}.wrong{color:#b00020;font-weight:600}
.suspicious{color:#9a5b00;font-weight:600}.passed{color:#1b6e3a}pre{background:#f6f6f4;padding:1em;white-space:pre-wrap}
.map{display:flex;overflow-x:auto}
.map div{font:9px/10px system-ui;width:6.5em;flex:none;white-space:nowrap}.map img{flex:none;image-rendering:pixelated}
h2{font-size:1.05em;margin:1.4em 0 .3em}
@media(max-width:46em){body{margin:1em auto}td,th{padding:.15em .35em}td a{font-size:.85em}}
"""


def html_page(result):
    """The page as text; it fetches nothing."""
    comparison = result.comparison
    told = [headline(result)] + (first_lines(result) if comparison.first is not None else []) + notes(comparison)
    rows = "\n".join(_row(v) for v in comparison.verdicts)
    maps = "\n".join(_map(v) for v in comparison.verdicts if v.map is not None)
    heads = "".join(f"<th>{word}</th>" for word in HEADS)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<title>{escape(headline(result))}</title><style>{STYLE}</style></head><body>
<h1>{escape(result.title)}</h1>
<pre>{escape(chr(10).join(told))}</pre>
<div class="scroll"><table><tr>{heads}</tr>
{rows}
</table></div>
<p>The maps show the greatest error over the expected one: white 0, yellow near the bound, red beyond it. A row is an
expert where the elements of a stage belong to experts, else a run of its rows; across, its columns.</p>
{maps}
</body></html>
"""


def _row(v):
    shares = v.of_rigorous, v.of_statistical, v.trends.worst.excess
    figures = f"{v.matched:.2%}", f"{v.ulp:.3g}", *(f"{share:.3g}" for share in shares)
    cells = "".join(f'<td class="n">{text}</td>' for text in figures)
    expert = v.worst_expert if v.worst_expert >= 0 else ""
    name = f'<a href="#{escape(v.name)}">{escape(v.name)}</a>'
    said = f'<td>{stage_of(v.name)}</td><td class="{v.verdict}">{v.verdict}</td>'
    where = f"<td>{expert}</td><td>{v.place[0] if v.place else ''}</td>"
    return f"<tr><td>{name}</td>{said}{cells}{where}</tr>"


def _map(v):
    """The map as a picture in the page itself, the names of its rows beside it."""
    m = v.map
    names = "<br>".join(f"{m.word} {first}" for first in m.firsts)
    rows, columns = m.cells.shape
    data = b64encode(_png(_colours(m.cells))).decode()
    picture = f'<img alt="errors" width="{columns * WIDE}" height="{rows * HIGH}" src="data:image/png;base64,{data}">'
    head = f'<h2 id="{escape(v.name)}">{escape(v.name)}: {v.verdict}</h2>'
    return f'{head}<div class="map"><div>{names}</div>{picture}</div>'


def _colours(shares):
    """(R, C) shares of the bound -> (R, C, 3): white, yellow near 1, red beyond, darker by the power of ten."""
    inside = np.minimum(shares, 1.0)
    near = np.stack([np.full(shares.shape, 255.0), 255 - 60 * inside, 255 - 200 * inside], axis=-1)
    red = np.maximum(120, 215 - 20 * np.log10(np.maximum(shares, 1.0)))
    beyond = np.stack([red, np.full(shares.shape, 20.0), np.full(shares.shape, 40.0)], axis=-1)
    return np.where(shares[..., None] > 1, beyond, near).astype(np.uint8)


def _png(pixels):
    """(R, C, 3) bytes as a PNG: three chunks, each with its length and checksum."""
    def chunk(kind, data):
        return pack(">I", len(data)) + kind + data + pack(">I", crc32(kind + data))

    head = pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 8, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", compress(rows, 9)) + chunk(b"IEND", b"")
