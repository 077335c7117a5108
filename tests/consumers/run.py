"""Every consumer on bundles of `refmoe golden`, and copies of it with one line wrong, which must be refused.

`make consumers` runs all. A tool that is missing is a skip, and an error unless the consumer's row says why it may be.
"""

import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from refmoe import SPEC_VERSION
from refmoe.compare.command import compare_files
from refmoe.compare.report import text_report
from refmoe.recipes import generate
from refmoe.safetensors import open_tensors

HERE = Path(__file__).resolve().parent
PYTHON = sys.executable
CHAPTER = HERE.parents[1] / "spec/7-golden.md"
BUNDLES = {"f32": ["--seed", "3"], "bf16": ["--store", "bf16"]}
TOKENS = 64
# All that a Python consumer is asked, in one process, since its library takes seconds to load: first values, and for
# each bundle the inputs, as bytes, and its own verdict.
PYTHON_DRIVER = """
import json, sys, numpy, {module} as consumer
def floats(made):
    return numpy.asarray(made.detach().float() if hasattr(made, "detach") else made)
cases, bundles = json.loads(sys.argv[1])
for recipe, name, seed, exponent in cases:
    made = floats(consumer.generate(recipe, name, int(seed), int(exponent), (4,)))
    print(*(f"{{word:08x}}" for word in made.view(numpy.uint32)))
for label, bundle, accumulator in bundles:
    given, d_y, _ = consumer.inputs(bundle)
    for name, made in (given | dict(d_y=d_y)).items():
        floats(made).tofile(f"{{label}}." + ("" if name in ("x", "d_y") else "params.") + name)
    consumer.verify(bundle, accumulator)
"""


class Refused(Exception):
    """What a consumer made is wrong, and the text says what: a wrong copy must end here."""


class Broken(Exception):
    """A consumer could not be built or run to its end."""


class Consumer(NamedTuple):
    """One implementation: what it needs, how it is built and run, and what is edited to make it wrong."""

    source: str
    tool: list  # succeeds where the tool is there
    build: list
    run: list
    judge: str  # "self", by its exit status; "compare", `refmoe compare` reads what it wrote; "refmoe" and "export"
    accumulators: dict  # bundle -> how its sums are rounded
    mistakes: dict  # what is wrong -> (file, a text that stands there once, what stands there instead)


CC, CXX = os.environ.get("CC", "cc"), os.environ.get("CXX", "c++")
FLAGS = ["-O2", "-Wall", "-Wextra", "-Werror"]
CENTRE = "the recipe's centre is off by one"
CONSUMERS = {
    "C": Consumer(
        "verify.c", [CC, "--version"], [CC, "-std=c11", *FLAGS, "verify.c", "-o", "verify"], ["./verify"],
        "self", {"f32": "f32", "bf16": "f32"}, {
            CENTRE: ("refmoe_bundle.h", "sum - 131070", "sum - 131069"),
            "the last k is dropped": ("verify.c", "k < K; k++) sum +=", "k + 1 < K; k++) sum +="),
            "experts begin a row late": ("verify.c", "n = offsets[e]; n <", "n = offsets[e] + 1; n <")}),
    "C++": Consumer(
        "layer.cpp", [CXX, "--version"], [CXX, "-std=c++11", *FLAGS, "layer.cpp", "-o", "layer"], ["./layer"],
        "compare", {"f32": "f32"}, {
            CENTRE: ("refmoe_bundle.h", "sum - 131070", "sum - 131069"),
            "gate and up are swapped": ("layer.cpp", "g / (1 + std::exp(-g)) * u", "u / (1 + std::exp(-u)) * g")}),
    "JavaScript": Consumer(
        "layer.mjs", ["node", "--version"], [], ["node", "layer.mjs"], "compare", {"f32": "f64"}, {
            CENTRE: ("layer.mjs", "-131070", "-131069"),
            "the weight is left out": ("layer.mjs", "Math.fround(weight) *", "")}),
    "PyTorch": Consumer(
        "torch_block.py", [PYTHON, "-c", "import torch"], [], [PYTHON, "torch_block.py"], "refmoe",
        {"f32": "f32", "bf16": "mixed"}, {
            CENTRE: ("torch_block.py", "131070", "131069"),
            "offsets of the expert before": ("torch_block.py", ".cumsum(0)", ".roll(1).cumsum(0)")}),
    "JAX": Consumer(
        "jax_block.py", [PYTHON, "-c", "import jax"], [], [PYTHON, "jax_block.py"], "refmoe", {"f32": "f32"}, {
            CENTRE: ("jax_block.py", "131070", "131069"),
            "silu is left out": ("jax_block.py", "jax.nn.silu(ragged_dot", "(ragged_dot")}),
    "trace set": Consumer(
        "trace_set.py", [PYTHON, "-c", "import torch"], [], [PYTHON, "trace_set.py"], "export",
        {"f32": "f64", "bf16": "f64"}, {
            "gate and up are swapped": ("trace_set.py", '"reference"]', '"reference"].replace("up, gate", "gate, up")'),
            "rows of the next expert": ("trace_set.py", '["reference"]', '["reference"].replace("b[e]", "b[e - 1]")')}),
}  # fmt: skip

# The one list of what may be skipped where its tool is missing, and why; a skip of anything else is an error.
MAY_BE_SKIPPED = {
    "C++": "every other step does with a C compiler",
    "JavaScript": "no other step needs Node",
    "JAX": "it is large, and not built for every Python and processor",
}


def is_there(consumer):
    """Does its tool answer?"""
    found = shutil.which(consumer.tool[0])
    return bool(found) and subprocess.run(consumer.tool, capture_output=True).returncode == 0


def call(command, folder, what, codes=(0,)):
    """A command's result. Raises Broken for an exit status that it must not have."""
    done = subprocess.run(list(map(str, command)), cwd=folder, capture_output=True)
    if done.returncode not in codes:
        said = (done.stderr or done.stdout).decode(errors="replace").strip()[-2000:]
        raise Broken(f"{what}: exit status {done.returncode}\n{said}")
    return done


def make_bundles(folder):
    """name -> directory of each bundle."""
    for name, options in BUNDLES.items():
        golden = [PYTHON, "-m", "refmoe", "golden", "--config", HERE / "case.json", "--tokens", TOKENS]
        call([*golden, *options, "--out", folder / name], None, "refmoe golden")
    return {name: folder / name for name in BUNDLES}


def copied(consumer, folder, mistake=None):
    """The consumer's files in a folder of their own, built; with one text replaced where there is a mistake."""
    folder.mkdir(parents=True)
    for path in HERE.iterdir():
        if path.is_file() and path != Path(__file__).resolve():
            shutil.copy(path, folder)
    if mistake:
        name, old, new = mistake
        text = (folder / name).read_text()
        if text.count(old) != 1:
            raise Broken(f"{name}: expected {old!r} once, it stands there {text.count(old)} times")
        (folder / name).write_text(text.replace(old, new))
    if consumer.build:
        call(consumer.build, folder, "build")
    return folder


def first_values():
    """(recipe, name, seed, exponent, values) of the table of first values in the law."""
    row = r"^\| `(\w+)` \| `([\w.]+)` \| (\d+) \| (-?\d+) \|((?: `\S+` \|){4})$"
    found = re.findall(row, CHAPTER.read_text(encoding="utf-8"), re.MULTILINE)
    return [(*case, [float.fromhex(v) for v in re.findall(r"`(\S+)`", values)]) for *case, values in found]


def check_values(said):
    """The words that a consumer printed are the known answers of every recipe."""
    words = [[struct.unpack(">f", bytes.fromhex(word))[0] for word in line.split()] for line in said.splitlines()]
    for (*case, wanted), got in zip_longest(first_values(), words, fillvalue=[]):
        if got != wanted:
            raise Refused(f"first values {' '.join(case)}: expected {wanted}, got {got}")


def check_inputs(bundle, made):
    """Every input, as float32, is the recipe's bit for bit. made(name): the bytes that a consumer made."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    shapes = {tensor["name"]: tensor["shape"] for tensor in manifest["tensors"]}
    for name, row in manifest["inputs"].items():
        wanted = generate(row["name"], tuple(shapes[name]), row["seed"], row["recipe"], row["exponent"])
        if made(name) != wanted.tobytes():
            raise Refused(f"{name}: not the bits of its recipe")


def examine_python(consumer, folder, bundles):
    """A consumer that judges itself by refmoe.testing."""
    code = PYTHON_DRIVER.format(module=Path(consumer.source).stem)
    asked = [case for *case, _ in first_values()], [(b, str(bundles[b]), a) for b, a in consumer.accumulators.items()]
    done = call([PYTHON, "-c", code, json.dumps(asked)], folder, "run", (0, 1))
    values = done.stdout.decode().splitlines(keepends=True)[: len(asked[0])]
    if values:
        check_values("".join(values))
    require_verdict(done)
    for label in consumer.accumulators:
        check_inputs(bundles[label], lambda name, label=label: (folder / f"{label}.{name}").read_bytes())


def examine_program(consumer, folder, bundles):
    """A program: it judges itself ("self"), or writes its tensors for `refmoe compare`."""
    cases = [word for *case, _ in first_values() for word in case]
    check_values(call([*consumer.run, "values", *cases], folder, "values").stdout.decode())
    for label, accumulator in consumer.accumulators.items():
        bundle, mine = bundles[label], folder / f"{label}.safetensors"
        if consumer.judge == "self":
            check_inputs(bundle, lambda n, b=bundle: call([*consumer.run, b, "inputs", n], folder, "inputs").stdout)
            done = call([*consumer.run, bundle], folder, "run", (0, 1))
            refusal = done.stdout.decode() if done.returncode else None
        else:
            call([*consumer.run, bundle, mine], folder, "run")
            with open_tensors(mine) as reader:
                check_inputs(bundle, lambda name, reader=reader: reader.codes(name).tobytes())
            result = compare_files(bundle, mine, SPEC_VERSION, accumulator=accumulator)
            refusal = None if result.passed else text_report(result)
        if refusal is not None:
            raise Refused(refusal)


def examine_export(consumer, folder, bundles):
    """The definitions of an export compute what the bundle holds."""
    for label, accumulator in consumer.accumulators.items():
        export = [PYTHON, "-m", "refmoe", "export", bundles[label], "--to", "flashinfer-bench", label]
        call(export, folder, "refmoe export")
        require_verdict(call([*consumer.run, label, bundles[label], accumulator], folder, "run", (0, 1)))


def require_verdict(done):
    """Raises Refused or Broken for a Python program that assert_conforms ended, or something else."""
    complaint = done.stderr.decode()
    if done.returncode:
        raise (Refused if "AssertionError: NOT PASSED" in complaint else Broken)(complaint[-2000:])


def examine(consumer, folder, bundles):
    """Raises Refused unless recipes, inputs and verdicts are right; Broken if it does not come to a verdict."""
    kinds = {"refmoe": examine_python, "export": examine_export}
    kinds.get(consumer.judge, examine_program)(consumer, folder, bundles)


def prove(name, consumer, folder, bundles):
    """The consumer is accepted, and each of its wrong copies refused."""
    examine(consumer, copied(consumer, folder / "right"), bundles)
    for number, (what, mistake) in enumerate(consumer.mistakes.items()):
        try:
            examine(consumer, copied(consumer, folder / f"wrong{number}", mistake), bundles)
        except Refused:
            continue
        raise Broken(f"{name}: accepted although {what}")


def run_one(name, consumer, work, bundles, may_be_skipped):
    """(passed, skipped or FAILED; what there is to say about it)."""
    if not is_there(consumer):
        listed = name in may_be_skipped
        reason = may_be_skipped[name] if listed else "no skip of it is listed"
        return "skipped" if listed else "FAILED", f"without {' '.join(consumer.tool)[-20:]}: {reason}"
    try:
        prove(name, consumer, work / consumer.source, bundles)
    except (Refused, Broken) as error:
        return "FAILED", str(error)
    return "passed", f"{consumer.source}; refused when {', '.join(consumer.mistakes)}"


def run(consumers=CONSUMERS, may_be_skipped=MAY_BE_SKIPPED):
    """A line for each consumer as it ends; the exit status: 1 if one failed, or was skipped and not listed."""
    ends = []
    with tempfile.TemporaryDirectory() as work:
        bundles = make_bundles(Path(work))
        for name, consumer in consumers.items():
            began = time.perf_counter()
            end, said = run_one(name, consumer, Path(work), bundles, may_be_skipped)
            print(f"{name:<10} {end:<7} {time.perf_counter() - began:5.1f} s  {said}", flush=True)
            ends.append(f"{name} {end}")
    print(f"consumers: {', '.join(ends)}")
    return int(any(end.endswith("FAILED") for end in ends))


if __name__ == "__main__":
    sys.exit(run({name: CONSUMERS[name] for name in sys.argv[1:] or CONSUMERS}))
