"""Builds the kernels and replay.c for several processors and replays NumPy's bits on each, emulated where it must be.

    python tests/cross/cross.py [--slice] [--able] [TARGET ...]      (make cross)
    python tests/cross/cross.py --packages                           Debian packages of the targets that lack a tool

A target whose compiler or emulator is missing is an error, or with `--able` left out and named on the last line.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT / "csrc"))

from build import ARITHMETIC, OTHER, SOURCES  # noqa: E402
from replay import TILES  # noqa: E402

BIG_ENDIAN = ("-U__BYTE_ORDER__", "-D__BYTE_ORDER__=__ORDER_BIG_ENDIAN__")


class Target(NamedTuple):
    """How to compile for a processor and what runs the result. refused: flags under which nothing may compile."""

    compiler: str
    flags: tuple
    emulator: tuple = ()
    refused: tuple = (("-mbig-endian",), ("-ffast-math",))
    packages: tuple = ()


TARGETS = {
    "native": Target("gcc", ("-fopenmp", "-pthread"), refused=(BIG_ENDIAN, ("-ffast-math",))),
    "sanitized": Target("gcc", ("-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"), refused=()),
    "aarch64": Target(
        "aarch64-linux-gnu-gcc", ("-fopenmp", "-pthread", "-static"), ("qemu-aarch64-static",),
        packages=("gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross", "qemu-user-static")),
    "arm": Target(
        "arm-linux-gnueabihf-gcc", ("-fopenmp", "-pthread", "-static"), ("qemu-arm-static",),
        packages=("gcc-arm-linux-gnueabihf", "libc6-dev-armhf-cross", "qemu-user-static")),
}  # fmt: skip
DRIVERS = ("replay", "refuse", "sums", "written", "formulas")  # of the C files beside this one
OPERANDS = ("sums", "written", "formulas")  # drivers with a file of their own, by the Python files beside them
CORES = threading.Semaphore(os.cpu_count() or 1)  # one process of any target on each


def missing(target):
    """The tools of a target that are not installed."""
    return [tool for tool in (target.compiler, *target.emulator) if not shutil.which(tool)]


def compiler(target, *more):
    """The command that compiles for a target, without its sources."""
    return [target.compiler, *ARITHMETIC, *OTHER, *target.flags, f"-I{ROOT / 'csrc'}", *map(str, more)]


def build(target, folder):
    """The drivers of a target, each linked with the kernels."""
    longest_first = sorted(SOURCES, key=lambda name: "avx" not in name)
    must([compiler(target, "-c", ROOT / "csrc" / name) for name in longest_first], folder)
    objects = [Path(name).with_suffix(".o") for name in SOURCES]
    linked = "-Wl,--wrap=aligned_alloc", "-o"
    must([[*compiler(target, HERE / f"{driver}.c", *objects), *linked, driver] for driver in DRIVERS], folder)
    return [folder / driver for driver in DRIVERS]


def must(commands, folder):
    """All of them at once, a core each."""

    def one(command):
        with CORES:
            return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for command, done in zip(commands, pool.map(one, commands), strict=True):
            if done.returncode:
                raise SystemExit(f"cross: {' '.join(map(str, command))}\n{done.stderr}")


def assert_refused(target, folder):
    """Under the target's refused flags the compiler must stop at an #error of csrc/. Yields what it said."""
    for flags in target.refused:
        command = compiler(target, "-fsyntax-only", *flags, ROOT / "csrc" / "tile_portable.c")
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode == 0 or "#error" not in done.stderr:
            raise SystemExit(f"cross: {' '.join(command)} was to be refused by an #error\n{done.stderr}")
        reason = next(line for line in done.stderr.splitlines() if "#error" in line).partition("#error ")[2]
        yield f"ok   {' '.join(flags)} is refused: {reason}"


def assert_tiles_are_listed(command):
    """Sizes next to the tiles of every kernel must be in the file: replay.TILES has to know them."""
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for name, *tiles in re.findall(r"^kernel (\w+): tiles (\d+x\d+) (\d+x\d+) (\d+x\d+)", listing, re.M):
        for (profile, listed), tile in zip(TILES.items(), tiles, strict=True):
            if tuple(map(int, tile.split("x"))) not in listed:
                raise SystemExit(f"cross: tiles {tile} of {name} ({profile}) are not among TILES of replay.py")


def run(name, target, replay, folder):
    """Build and run a target's drivers; a failure ends the target with its status. -> what they said"""
    folder.mkdir(parents=True, exist_ok=True)
    said = [f"--- {name}", *assert_refused(target, folder)]
    drivers = build(target, folder)
    assert_tiles_are_listed([*target.emulator, drivers[0]])
    files = {"replay": [replay], **{suffix: [replay.with_suffix(f".{suffix}")] for suffix in OPERANDS}}
    for driver in drivers:
        command = [*target.emulator, driver, *files.get(driver.name, [])]
        with CORES:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        said.append(done.stdout.rstrip())
        if done.returncode:
            what = "\n".join(said)
            raise SystemExit(f"{what}\ncross: {driver.name} on {name} ended with status {done.returncode}")
    return "\n".join(said)


def run_all(names, replay, folder):
    """All targets side by side, so that no core waits for the emulator or the longest file of another."""
    with ThreadPoolExecutor(len(names)) as pool:
        for made in [pool.submit(run, name, TARGETS[name], replay, folder / name) for name in names]:
            print(made.result(), flush=True)


def choose(names, able):
    """The targets to run, and a sentence for each that is left out."""
    lacking = {name: missing(TARGETS[name]) for name in names}
    left = [f"{name} (no {', '.join(tools)})" for name, tools in lacking.items() if tools]
    if left and not able:
        packages = sorted({p for name, tools in lacking.items() if tools for p in TARGETS[name].packages})
        raise SystemExit(f"cross: {'; '.join(left)}; on Debian: apt-get install {' '.join(packages)}")
    return [name for name in names if not lacking[name]], left


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; default all")
    parser.add_argument("--slice", action="store_true", help="a shorter file")
    parser.add_argument("--able", action="store_true", help="leave out targets whose tools are missing")
    parser.add_argument("--packages", action="store_true", help="print the Debian packages that are missing")
    parser.add_argument("--folder", type=Path, default=ROOT / "out" / "cross")
    given = parser.parse_args()
    if unknown := set(given.targets) - set(TARGETS):
        parser.error(f"expected targets of {', '.join(TARGETS)}, got {', '.join(sorted(unknown))}")
    if given.packages:
        print(*sorted({p for target in TARGETS.values() if missing(target) for p in target.packages}))
        return
    names, left = choose(given.targets or list(TARGETS), given.able)
    given.folder.mkdir(parents=True, exist_ok=True)
    replay = given.folder / "kernels.replay"
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    subprocess.run([sys.executable, HERE / "replay.py", replay, *["--slice"] * given.slice], check=True)
    for name in OPERANDS:
        subprocess.run([sys.executable, HERE / f"{name}.py", replay.with_suffix(f".{name}")], check=True)
    run_all(names, replay, given.folder)
    print(f"cross: every bit alike on {', '.join(names)}" + f"; NOT run: {'; '.join(left)}" * bool(left))


if __name__ == "__main__":
    main()
