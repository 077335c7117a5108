"""One bundle, made again under every kernel and thread count: the digest must not move.

    python tests/exhaustive/digests.py [--preset qwen3-30b-a3b] [--scale full] [--tokens 64] [--numpy-tokens 4]
                                       [--others DIR] [--only-others]

Forward and backward with each kernel that this machine can run, on 1 and 2 threads; then the forward of fewer tokens
with C and with NumPy alone; with --others that again under the oldest and the newest Python to be had (python3.11 up on
the PATH), each with the oldest NumPy that refmoe supports and the newest that installs, in environments below DIR. What
cannot run here or cannot be had is reported as not run. Exits 1 if a digest differs.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from refmoe import kernels

ROOT = Path(__file__).resolve().parent.parent.parent
OLDEST_NUMPY = "numpy==2.0.*"  # of pyproject.toml
BACKENDS = "c", "numpy"
MINORS = range(11, 30)  # Python 3.11 and what may come


def digest_of(options, room, python=sys.executable):
    """Writes a bundle with these options and returns its digest and the seconds it took."""
    start = time.perf_counter()
    target = Path(room) / "bundle"
    command = [python, "-m", "refmoe", "golden", *options, "--force", "--out", str(target)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    printed = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, cwd=room).stdout
    digest = next(line.split()[1] for line in printed.splitlines() if line.startswith("digest"))
    return digest, time.perf_counter() - start


def report(runs, room):
    """Prints a line for each run; True if all digests agree."""
    digests = set()
    for label, options, *python in runs:
        digest, seconds = digest_of(options, room, *python)
        digests.add(digest)
        print(f"{digest}  {seconds:6.1f} s  {label}", flush=True)
    print("one digest" if len(digests) == 1 else f"DIFFERENT: {len(digests)} digests", flush=True)
    return len(digests) == 1


def pythons():
    """The oldest and the newest Python from 3.11 on that run here, by name."""
    named = [sys.executable] + [path for path in (shutil.which(f"python3.{n}") for n in MINORS) if path]
    ask = "import sys, venv, ensurepip; print(*sys.version_info[:2])"
    answers = [(subprocess.run([path, "-c", ask], capture_output=True, text=True, check=False), path) for path in named]
    found = {tuple(map(int, done.stdout.split())): path for done, path in answers if done.returncode == 0}
    return {found[version]: ".".join(map(str, version)) for version in {min(found), max(found)} if version >= (3, 11)}


def environments(folder):
    """(label, interpreter) of each environment that could be made; the others are named."""
    for path, version in sorted(pythons().items(), key=lambda item: item[1]):
        for numpy in (OLDEST_NUMPY, "numpy"):
            room = Path(folder).resolve() / f"{version}-{'oldest' if '=' in numpy else 'newest'}"
            python = str(room / "bin" / "python")
            subprocess.run([path, "-m", "venv", str(room)], check=True)
            install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"]
            if subprocess.run([*install, numpy, "cffi>=2.0"], capture_output=True, check=False).returncode:
                print(f"not run: Python {version} with {numpy} (no wheel of it could be installed)", flush=True)
                continue
            ask = "import platform, numpy; print(f'Python {platform.python_version()}, NumPy {numpy.__version__}')"
            yield subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True).stdout.strip(), python


def others(folder, asked, room):
    """The forward of a few tokens, and a small layer both ways, in every environment and on both backends."""
    base, few = [asked.preset, "--scale", asked.scale], ["--tokens", asked.numpy_tokens, "--no-backward"]
    small = [asked.preset, "--scale", "minimal", "--tokens", "64"]
    found, same = [("this environment", sys.executable), *environments(folder)], True
    for name, options in {"forward": [*base, *few], "both ways, minimal": small}.items():
        runs = [
            (f"{name}, {label}, {b}", [*options, "--backend", b], python) for label, python in found for b in BACKENDS
        ]
        same &= report(runs, room)
    return same


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="qwen3-30b-a3b")
    parser.add_argument("--scale", default="full")
    parser.add_argument("--tokens", default="64")
    parser.add_argument("--numpy-tokens", default="4")
    parser.add_argument("--others", metavar="DIR", help="other versions of Python and NumPy too, set up below DIR")
    parser.add_argument("--only-others", action="store_true", help="and nothing but these")
    asked = parser.parse_args()
    base = [asked.preset, "--scale", asked.scale]
    here = [name for name, runs, _ in kernels.available() if runs]
    for name, runs, reason in kernels.available():
        if not runs:
            print(f"not run: kernel {name} ({reason})")
    both_ways = [
        (f"{kernel}, {threads} threads", [*base, "--tokens", asked.tokens, "--kernel", kernel, "--threads", threads])
        for kernel in here
        for threads in ("1", "2")
    ]
    forward = [*base, "--tokens", asked.numpy_tokens, "--no-backward", "--backend"]
    with tempfile.TemporaryDirectory() as room:
        same = asked.only_others or report(both_ways, room)
        if not asked.only_others:
            same &= report([(f"forward of {asked.numpy_tokens} tokens, {b}", [*forward, b]) for b in BACKENDS], room)
        if asked.others:
            same &= others(asked.others, asked, room)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
