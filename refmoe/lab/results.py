"""What a run leaves: a JSON file for every arm and seed, tables as CSV, results.json, a picture.

No file holds a time or a machine's name: the same key gives the same bytes.
"""

import csv
import hashlib
import io
import json
from pathlib import Path

from .. import SPEC_VERSION, __version__
from ..refusals import require
from ..writing import whole, write_whole
from .experiment import Table
from .measures import mean
from .settings import as_words

RUN, RESULTS, SEEDS, CURVES, PICTURE = "run.json", "results.json", "seeds.csv", "curves.csv", "picture.png"


def run_key(experiment, settings, corpus=None):
    """The digest of what decides every bit of a run but its seeds."""
    decisive = {k: v for k, v in settings.items() if not (corpus and k == "text")}  # its bytes, not its name
    text = json.dumps([experiment.id, decisive, corpus, __version__, SPEC_VERSION], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def to_json(value):
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def open_run(folder, experiment, settings, key):
    """Makes the run's folder, or goes on with the one that is there.

    Raises ValueError where it holds a run of another key, or something that is no run.
    """
    folder, about = Path(folder), Path(folder) / RUN
    if about.exists():
        found = read_json(about).get("key")
        wanted = f"a run of these settings (key {key})"
        fix = "choose another --out, or remove the folder"
        require(found == key, ValueError, str(folder), wanted, f"one of others (key {found})", fix)
        return
    empty = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    wanted, got = "an empty folder or a run's", f"other files in {folder}"
    require(empty, ValueError, "--out", wanted, got, "choose another")
    folder.mkdir(parents=True, exist_ok=True)
    words = " ".join(f"--set {word}" for word in as_words(experiment, settings))
    command = f"refmoe lab run {experiment.id} {words}".strip()
    write_whole(about, to_json({"experiment": experiment.id, "name": experiment.name, "settings": settings, "key": key,
                                "command": command}))  # fmt: skip


def read_json(path):
    """Raises ValueError, in one sentence, for what is no JSON object."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError):
        found = None
    fix = "remove it, and run again"
    require(isinstance(found, dict), ValueError, str(path), "a JSON object, whole", "something else", fix)
    return found


def unit_path(folder, arm, seed):
    safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in arm)
    return Path(folder) / "seeds" / f"{safe}-seed{seed}.json"


def read_unit(folder, arm, seed, key):
    """What was measured, or None where it is not there, or of another key."""
    path = unit_path(folder, arm, seed)
    if not path.exists():
        return None
    found = read_json(path)
    return found if (found.get("key"), found.get("arm"), found.get("seed")) == (key, arm, seed) else None


def write_unit(folder, arm, seed, key, measured):
    path = unit_path(folder, arm, seed)
    path.parent.mkdir(exist_ok=True)
    write_whole(path, to_json({"arm": arm, "seed": seed, "key": key, **measured}))


def write_results(folder, experiment, settings, key, arms, seeds):
    """results.json, the tables and the picture from the units that are there -> (results, why there is no picture)."""
    folder = Path(folder)
    units = {(arm, seed): read_unit(folder, arm, seed, key) for arm in arms for seed in seeds}
    table = Table(units, arms, seeds)
    results = summary(experiment, settings, key, table)
    write_whole(folder / SEEDS, seeds_csv(table))
    write_whole(folder / CURVES, curves_csv(table))
    write_whole(folder / RESULTS, to_json(results))
    return results, write_picture(folder / PICTURE, experiment, table, settings)


def summary(experiment, settings, key, table):
    """Everything that a text may claim, with the numbers behind it."""
    names = table.names()
    arms = {arm: {n: _of_seeds(table, arm, n) for n in names if n in table.units[arm, table.seeds[0]]["numbers"]}
            for arm in table.arms}  # fmt: skip
    findings = [finding.judged() for finding in experiment.findings(table, settings)]
    run = {"experiment": experiment.id, "name": experiment.name, "title": experiment.title, "key": key}
    return run | {"question": experiment.question, "settings": settings, "seeds": list(table.seeds),
                  "findings": findings, "arms": arms}  # fmt: skip


def _of_seeds(table, arm, name):
    values = table.numbers(arm, name)
    return {"mean": mean(values), "min": min(values), "max": max(values), "values": values}


def seeds_csv(table):
    """A row an arm and seed, a column a number."""
    names, out = table.names(), io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["arm", "seed", *names])
    for (arm, seed), unit in table.units.items():
        writer.writerow([arm, seed, *(unit["numbers"].get(name, "") for name in names)])
    return out.getvalue()


def curves_csv(table):
    """A row a point: arm, seed, series, index, value; tables within a series have an index a level."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["arm", "seed", "series", "index", "value"])
    for (arm, seed), unit in table.units.items():
        for name, values in unit["series"].items():
            writer.writerows([arm, seed, name, index, value] for index, value in _points(values))
    return out.getvalue()


def _points(values, at=""):
    for index, value in enumerate(values):
        here = f"{at}.{index}" if at else str(index)
        if isinstance(value, list):
            yield from _points(value, here)
        else:
            yield here, value


def write_picture(path, experiment, table, settings):
    """Draws it; returns None, or why not."""
    title = f"{experiment.id}  {experiment.title}"
    return draw_picture(path, title, lambda fig: experiment.draw(fig, table, settings))


def draw_picture(path, title, draw):
    """A picture of a run, as draw(figure) makes it, under its title -> None, or why there is none."""
    from ..models.accounting.plots import figure

    try:
        fig, style = figure(13, 7)
    except ImportError as error:
        return str(error)
    with style:
        draw(fig)
        fig.suptitle(title, x=0.01, ha="left", fontsize=17, fontweight="bold")
        with whole(path) as partial:
            fig.savefig(partial, format="png", metadata={"Software": None})
    return None
