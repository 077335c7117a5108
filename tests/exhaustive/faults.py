"""Every truncation point, every byte of the forms and many bits of the payload of a small bundle: each must be refused.

    python tests/exhaustive/faults.py [--bits 10000] [--slice 1]

For each container a tiny bundle is spoilt in one place after another: cut at every byte; every byte of the manifest and
of all that is not payload changed in two bits, and set to 0 and 255; random bits of the payload changed. Every one must
be refused by a FileError of one line, nothing else, in bounded memory. `--slice n` cuts and changes at every n-th place
only. Exits 1 if one is not refused.
"""

import argparse
import random
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from golden_case import tiny, write

import refmoe
from refmoe.golden import BundleError
from refmoe.golden.containers import CONTAINERS
from refmoe.golden.verify import open_bundle

ROOM = 64  # MiB that all refusals together may add


def outcome(directory):
    """What is wrong with how a spoilt bundle is met; None where it is refused as it must be."""
    try:
        with open_bundle(directory, refmoe.SPEC_VERSION):
            return "was accepted"
    except BundleError as error:
        return None if len(str(error).splitlines()) == 1 and len(str(error)) < 600 else f"said {str(error)[:200]!r}"
    except Exception as error:  # whatever comes here is what is looked for
        return f"crashed with {type(error).__name__}: {error}"


def put(path, place, data):
    with open(path, "r+b") as file:
        file.seek(place)
        file.write(data)


def payload_spans(directory):
    """Where the payload of the container's first file lies."""
    with open_bundle(directory, refmoe.SPEC_VERSION) as (_, reader):
        return reader.path.name, [(reader.start + e.begin, reader.start + e.end) for e in reader.entries.values()]


def altered(path, places, step):
    """(what was done) with one place after another spoilt, and mended again."""
    whole = path.read_bytes()
    for place in places:
        for value in {whole[place] ^ 1 << (place // step + k) % 8 for k in (0, 5)} | {0, 255} - {whole[place]}:
            put(path, place, bytes([value]))
            yield f"byte {place} set to {value}"
        put(path, place, whole[place : place + 1])


def cut(path, step):
    whole = path.read_bytes()
    for length in range(0, len(whole), step):
        path.write_bytes(whole[:length])
        yield f"cut to {length} bytes"
    path.write_bytes(whole + b"\0")
    yield "a byte too long"
    path.write_bytes(whole)


def flipped(path, spans, count, seed):
    whole, generator = path.read_bytes(), random.Random(seed)
    inside = [place for a, b in spans for place in range(a, b)]
    for _ in range(count):
        place, bit = generator.choice(inside), generator.randrange(8)
        put(path, place, bytes([whole[place] ^ 1 << bit]))
        yield f"bit {bit} of byte {place} flipped"
        put(path, place, whole[place : place + 1])


def faults(directory, bits, step):
    """(file, what was done) of each fault; the bundle is spoilt while it is looked at."""
    name, spans = payload_spans(directory)
    payload = {place for a, b in spans for place in range(a, b)}
    for path in sorted(directory.iterdir()):
        places = [p for p in range(path.stat().st_size) if path.name != name or p not in payload]
        for done in cut(path, step):
            yield path.name, done
        for done in altered(path, places[::step], step):
            yield path.name, done
    for done in flipped(directory / name, spans, bits, seed=step):
        yield name, done


def walk(directory, bits, step):
    """Faults of one bundle, and those that were not met as they must be."""
    count, bad = 0, []
    for file, done in faults(directory, bits, step):
        wrong = outcome(directory)
        count += 1
        if wrong:
            bad.append(f"{directory.name}/{file}: {done}: {wrong}")
    if outcome(directory) != "was accepted":
        bad.append(f"{directory.name}: the mended bundle is refused")
    return count, bad


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bits", type=int, default=10000)
    parser.add_argument("--slice", type=int, default=1)
    asked = parser.parse_args()
    room, failed = Path(tempfile.mkdtemp()), []
    try:
        for name in CONTAINERS:
            start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            write(room / name, tiny(), tokens=2, container=name)
            count, bad = walk(room / name, asked.bits, asked.slice)
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
            if grown > ROOM:
                bad.append(f"{name}: memory grew by {grown:.0f} MiB")
            seconds = time.perf_counter() - start
            print(f"{name:12} {count} faults, {count - len(bad)} refused, {seconds:.1f} s", flush=True)
            failed += bad
    finally:
        shutil.rmtree(room)
    print("\n".join(failed[:20]), end="\n" if failed else "")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
