"""One self-contained page of all runs in some folders: pictures, findings, tables, and the command that made each."""

import re
from html import escape
from pathlib import Path

from ..models.presets import spec_folder
from ..refusals import require
from ..writing import check_folder, write_whole
from .page import command, fold, page, picture, section, to_html
from .results import PICTURE, RESULTS, RUN, read_json
from .settings import as_text
from .training_page import training_section


def write_report(folders, out=None):
    """Writes the page -> (path, number of runs). A folder is a run or holds runs; the page goes to the first.

    Raises ValueError for a folder without a finished run.
    """
    runs = sorted({run for folder in folders for run in _runs(Path(folder))}, key=_order)
    path = Path(out) if out else Path(folders[0]) / "report.html"
    check_folder("--out", path)
    write_whole(path, page([_section(run) for run in runs]))
    return path, len(runs)


def _runs(folder):
    runs = [path.parent for path in (*folder.glob(RESULTS), *folder.glob(f"*/{RESULTS}"))]
    fix = "make one with `refmoe lab run NAME` or `refmoe lab train`"
    require(runs, ValueError, "--runs", "a folder with finished runs in it", repr(str(folder)), fix)
    return runs


def _order(run):
    number = re.match(r"E(\d+)-", run.name)
    return (int(number[1]) if number else 999, run.name, str(run))


def _section(folder):
    results = read_json(folder / RESULTS)
    if "experiment" in results:
        return _of_experiment(folder, results)
    known, fix = "held_out" in results, "remove it from the folder"
    require(known, ValueError, str(folder / RESULTS), "results of the lab", "something else", fix)
    return training_section(folder, results)


def _of_experiment(folder, results):
    seeds = len(results["seeds"])
    told = "\n".join(map(_finding, results["findings"]))
    settings = ", ".join(f"{k} {_plain(v)}" for k, v in results["settings"].items())
    done = f"{_explanation(results['experiment'])}\n<p>Settings: {escape(settings)}. Key {escape(results['key'])}.</p>"
    return section(results["experiment"], results["title"], [
        f"<p><em>{escape(results['question'])}</em></p>",
        picture(folder / PICTURE, results["title"]),
        f"<ul>\n{told}\n</ul>",
        command(f"{read_json(folder / RUN)['command']} --seeds {seeds}"),
        fold(f"Numbers: mean of {seeds} seeds, least to largest", f'<div class="scroll">{_table(results)}</div>'),
        fold("What was done", done),
    ])  # fmt: skip


def _plain(value):
    """A setting as --set takes it."""
    return as_text(tuple(value)) if isinstance(value, list) else as_text(value) or "-"


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
