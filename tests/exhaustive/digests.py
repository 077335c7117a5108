"""One bundle, made again under every kernel and thread count: the digest must not move.

    python tests/exhaustive/digests.py [--preset qwen3-30b-a3b] [--scale full] [--tokens 64] [--numpy-tokens 4]

Forward and backward with each kernel that this machine can run, on 1 and 2 threads; then the forward of fewer tokens
with C and with NumPy alone. A kernel that cannot run here is reported as not run. Exits 1 if a digest differs.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from refmoe import kernels


def digest_of(options, room):
    """Writes a bundle with these options and returns its digest and the seconds it took."""
    start = time.perf_counter()
    target = Path(room) / "bundle"
    command = [sys.executable, "-m", "refmoe", "golden", *options, "--force", "--out", str(target)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    digest = next(line.split()[1] for line in printed.splitlines() if line.startswith("digest"))
    return digest, time.perf_counter() - start


def report(runs, room):
    """Prints a line for each run; True if all digests agree."""
    digests = set()
    for label, options in runs:
        digest, seconds = digest_of(options, room)
        digests.add(digest)
        print(f"{digest}  {seconds:6.1f} s  {label}", flush=True)
    print("one digest" if len(digests) == 1 else f"DIFFERENT: {len(digests)} digests", flush=True)
    return len(digests) == 1


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="qwen3-30b-a3b")
    parser.add_argument("--scale", default="full")
    parser.add_argument("--tokens", default="64")
    parser.add_argument("--numpy-tokens", default="4")
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
        same = report(both_ways, room)
        same &= report([(f"forward of {asked.numpy_tokens} tokens, {b}", [*forward, b]) for b in ("c", "numpy")], room)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
