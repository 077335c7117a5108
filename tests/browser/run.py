"""`make browser`: the HTML pages in a real browser, at a phone's width and at a desk's.

    python tests/browser/run.py [--out DIR] [--browser PROGRAM] [--has-browser]

The pages are made by the commands: the report of all experiments and of a training run, and a comparison that fails.
Each is refused for what runs out of its sides, script errors, outside addresses, pictures that are missing or too small
to read, links that lead nowhere. Copies with one fault each must be refused for that fault. Pictures of the pages, for
a person to look at, are left in DIR.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from looking import WIDTHS, find_browser, look, photograph
from planted import FAULTS

from refmoe.golden.arrays import load_arrays
from refmoe.safetensors import write_tensors

ROOT = Path(__file__).parent.parent.parent


def refmoe(*words, status=0):
    """Runs a command of the house."""
    run = subprocess.run([sys.executable, "-m", "refmoe", *map(str, words)], cwd=ROOT, capture_output=True, text=True)
    if run.returncode != status:
        sys.exit(f"browser: refmoe {' '.join(map(str, words))}: status {run.returncode}\n{run.stdout}{run.stderr}")


def make_pages(work):
    """name -> (text, pictures it must have)."""
    lab, bundle, mine = work / "lab", work / "bundle", work / "mine.safetensors"
    refmoe("lab", "run", "all", "--quick", "--seeds", 1, "--out", lab)
    refmoe("lab", "train", "--size", "small", "--steps", 40, "--sequences", 2, "--out", lab / "train")
    refmoe("lab", "report", "--runs", lab)
    refmoe("golden", "deepseek-v3", "--scale", "minimal", "--tokens", 24, "--out", bundle)
    spoil(bundle / "tensors.safetensors", mine)
    refmoe("compare", bundle, mine, "--html", work / "compare.html", status=1)
    texts = {"report": lab / "report.html", "compare": work / "compare.html"}
    texts = {name: path.read_text(encoding="utf-8") for name, path in texts.items()}
    return {"report": (texts["report"], 16), "compare": (texts["compare"], texts["compare"].count("<h2"))}


def spoil(tensors, mine):
    """A submission with one row of one expert half as large again."""
    arrays = {name: np.array(a) for name, a in load_arrays(tensors).items() if a.dtype == np.float32 and a.ndim}
    arrays["experts.y_rows"][5] *= 1.5
    write_tensors(mine, {name: ("F32", a) for name, a in arrays.items()})


def check_pages(browser, pages, work):
    """Every page at every width; the faults that were found."""
    views = {f"{name} at {width}": (text, width, pictures)
             for name, (text, pictures) in pages.items() for width in WIDTHS}  # fmt: skip
    found = look(browser, views, work)
    for view, faults in found.items():
        print(f"{view}: {'; '.join(faults) or 'ok'}")
    return sum(map(len, found.values()))


def check_faults(browser, pages, work):
    """Copies with one fault each, at a phone's width; how many were not refused for it."""
    views = {}
    for fault in FAULTS:
        text, pictures = pages[fault.page]
        edited = fault.edit(text)
        if edited == text:
            sys.exit(f"browser: planting {fault.name!r} changed nothing")
        views[fault.name] = (edited, min(WIDTHS), pictures)
    found, missed = look(browser, views, work), 0
    for fault in FAULTS:
        seen = any(fault.said in told for told in found[fault.name])
        missed += not seen
        print(f"planted: {fault.name}: {'refused' if seen else 'NOT SEEN'} ({'; '.join(found[fault.name])[:90]})")
    return missed


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "browser", help="where pictures of the pages go")
    parser.add_argument("--browser", help="Chromium's program (default: the first that is found)")
    parser.add_argument("--has-browser", action="store_true", help="is one there? status 0 or 1, nothing else is done")
    args = parser.parse_args()
    browser = find_browser(args.browser)
    if args.has_browser:
        sys.exit(browser is None)
    if browser is None:
        sys.exit("browser: expected Chromium, found none; install it (on Debian: chromium) or name it with --browser")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    work = Path(tempfile.mkdtemp(prefix="refmoe-browser-"))
    try:
        pages = make_pages(work)
        bad, missed = check_pages(browser, pages, work), check_faults(browser, pages, work)
        photograph(browser, pages, work, args.out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    good = not bad and not missed
    print(f"browser: {len(pages)} pages at {len(WIDTHS)} widths, {bad} faults; "
          f"{len(FAULTS) - missed} of {len(FAULTS)} planted faults refused; pictures in {args.out}")  # fmt: skip
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
