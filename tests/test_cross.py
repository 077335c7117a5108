"""The C library away from Python: the replay of NumPy's bits finds what is wrong, and `make lib` gives what it says."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import cross
import formulas
import kernel_cases as made
import numpy as np
import pytest
import replay
import sums
import written
from kernel_oracle import Rule

import refmoe
from refmoe.numerics.contract import NumpyEngine

ROOT = Path(__file__).parent.parent
RULE = Rule("exact", "bf16")
OFFERED = re.search(r"^OFFERED := (.*)$", (ROOT / "Makefile").read_text(), re.M)[1].split()
MANUALS = "".join((ROOT / "csrc" / header).read_text() for header in OFFERED)
DECLARED = re.findall(r"\b(refmoe_\w+)\(", MANUALS)


# ---- the replay ----


@pytest.fixture(scope="module")
def drivers(tmp_path_factory):
    return cross.build(cross.TARGETS["native"], tmp_path_factory.mktemp("drivers"))


@pytest.fixture(scope="module")
def one_case():
    return replay.encode("exact bf16", "wide", RULE, made.Case(made.wide, RULE, (5, 0, 1, 3), M=10, K=7))


def run_driver(driver, path, content):
    path.write_bytes(content)
    done = subprocess.run([driver, path], capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout.splitlines()[-1], done.stderr


def test_every_rule_replays(drivers, tmp_path):
    cases = [(rule, case) for rule in made.RULES for case in replay.ordinary(rule)]
    content = b"".join(replay.encode(f"{rule.profile} {rule.format}", name, rule, case) for rule, (name, case) in cases)
    assert run_driver(drivers[0], tmp_path / "f", content) == (0, f"replayed {len(cases)} cases, every bit alike", "")


def test_codes_with_scales_are_replayed_and_one_bit_off_is_found(drivers, tmp_path):
    """The last byte of all: of the gradient, of two pairs, through the last scheme's weights."""
    rules = [rule for rule in made.RULES if rule.profile != "float64" and rule.format == "float32"]
    cases = [(rule, *case) for rule in rules for case in replay.of_scales(True)]
    content = b"".join(replay.encode_scaled(f"{rule.profile} of codes", name, rule, case) for rule, name, case in cases)
    assert run_driver(drivers[0], tmp_path / "f", content) == (0, f"replayed {len(cases)} cases, every bit alike", "")
    code, said, _ = run_driver(drivers[0], tmp_path / "f", content[:-2] + bytes([content[-2] ^ 1, content[-1]]))
    assert code == 1 and "grouped_matmul_backward_x of two pairs with acc: number 554: expected 0x" in said


def test_one_bit_off_is_found_and_named(drivers, one_case, tmp_path):
    last = len(one_case) - 2  # a middle byte of the last number of the last call
    wrong = one_case[:last] + bytes([one_case[last] ^ 1]) + one_case[last + 1 :]
    code, said, _ = run_driver(drivers[0], tmp_path / "f", one_case + wrong)
    assert code == 1
    assert said.startswith("FAIL exact bf16 / wide: kernel portable, 1 thread(s), forced tier 0")
    assert "grouped_matmul_backward_w with acc: number 279: expected 0x" in said


@pytest.mark.parametrize(
    ("end", "reason"), [(0, "holds no case"), (50, "ends within a case"), (-1, "ends within a case")]
)
def test_a_cut_file_is_no_pass(drivers, one_case, tmp_path, end, reason):
    code, _, error = run_driver(drivers[0], tmp_path / "f", one_case[:end])
    assert code == 2 and reason in error


def test_sums_are_replayed_and_one_bit_off_is_found(drivers, tmp_path):
    content = b"".join(sums.encode("fp16", *case) for case in sums.cases("fp16"))
    assert run_driver(drivers[2], tmp_path / "f", content)[:2] == (0, "ok   sums: 21 cases")
    wrong = content[:-2] + bytes([content[-2] ^ 1]) + content[-1:]
    code, said, _ = run_driver(drivers[2], tmp_path / "f", wrong)
    assert code == 1 and said.startswith("FAIL sums / midpoints: kernel portable, 1 thread(s), forced tier 0, call 2")


def test_written_operations_are_replayed_and_one_bit_off_is_found(drivers, tmp_path):
    with np.errstate(all="ignore"):
        cases = list(written.cases())
        content = b"".join(written.encode(*case) for case in cases)
    assert {kind for _, kind, *_ in cases} == set(range(6))
    assert run_driver(drivers[3], tmp_path / "f", content)[:2] == (0, f"ok   written: {len(cases)} cases")
    wrong = content[:-2] + bytes([content[-2] ^ 1]) + content[-1:]
    code, said, _ = run_driver(drivers[3], tmp_path / "f", wrong)
    assert code == 1 and said.startswith("FAIL written / signed_zeros 1x40x1x36: kernel portable, 1 thread(s)")


def test_formulas_are_replayed_and_one_bit_off_is_found(drivers, tmp_path):
    cases = list(formulas.cases("bf16"))
    content = b"".join(formulas.encode("bf16", *case) for case in cases)
    assert run_driver(drivers[4], tmp_path / "f", content)[:2] == (0, f"ok   formulas: {2 * len(cases)} cases")
    wrong = content[:-2] + bytes([content[-2] ^ 1]) + content[-1:]
    code, said, _ = run_driver(drivers[4], tmp_path / "f", wrong)
    assert code == 1 and said.startswith("FAIL formulas / up capped backward: kernel portable, 1 thread(s)")


def test_bad_calls_from_c_and_a_forked_child(drivers):
    done = subprocess.run([drivers[1]], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "") and "bad calls refused" in done.stdout


def test_tiles_of_the_kernels_here_have_their_sizes_in_the_file(drivers):
    cross.assert_tiles_are_listed([drivers[0]])


def test_other_byte_orders_and_fast_math_do_not_compile(tmp_path):
    said = list(cross.assert_refused(cross.TARGETS["native"], tmp_path))
    assert len(said) == 2 and "little-endian" in said[0]


def test_a_missing_emulator_is_an_error_or_is_named(monkeypatch):
    monkeypatch.setattr(cross.shutil, "which", lambda tool: None if tool.startswith("qemu") else tool)
    with pytest.raises(SystemExit, match=r"arm \(no qemu-arm-static\); on Debian: apt-get install .*qemu-user-static"):
        cross.choose(["native", "arm"], able=False)
    assert cross.choose(["native", "arm"], able=True) == (["native"], ["arm (no qemu-arm-static)"])


# ---- the library ----


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("library")
    clean = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "CFLAGS")}
    done = subprocess.run(["make", "lib", f"LIB={folder}"], cwd=ROOT, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def printed(*command):
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def test_the_shared_library_has_the_names_of_the_header_and_no_others(library):
    names = printed("nm", "-D", "--defined-only", library / "lib" / "librefmoe_kernels.so").split()[2::3]
    assert sorted(names) == sorted(DECLARED)


def test_the_package_file_names_the_version(library):
    text = (library / "lib" / "pkgconfig" / "refmoe_kernels.pc").read_text()
    assert f"Version: {refmoe.__version__}\n" in text and "@" not in text


@pytest.mark.parametrize("name", ("librefmoe_kernels.so", "librefmoe_kernels.a"))
def test_the_example_prints_what_numpy_computes(library, name):
    program = library / f"example-{name}"
    paths = f"-I{library}/include", library / "lib" / name, f"-Wl,-rpath,{library}/lib", "-fopenmp", "-pthread"
    printed("gcc", "-std=c11", "-Wall", "-Werror", ROOT / "csrc" / "example.c", *paths, "-o", program)
    x = np.array([[1, 2, 3], [1e8, 1, -1e8], [4, 5, 6]], np.float32)
    w = np.array([[[1, 1, 1], [1, 0, 2]], [[0, 1, 0], [-1, -1, -1]]], np.float32)
    lines = []
    for profile in ("exact", "chain"):
        y = NumpyEngine().grouped_matmul(Rule(profile, "float32"), x, w, np.array([0, 2, 3]))
        lines += [f"{profile} row {n}: {row[0]:.9g} {row[1]:.9g}" for n, row in enumerate(y)]
    assert printed(program).splitlines() == lines


def test_the_header_is_c_and_cxx(library, tmp_path):
    source = tmp_path / "use.c"
    source.write_text("#include <refmoe_kernels.h>\nint main(void) { return refmoe_kernel_count() < 1; }\n")
    for compiler in filter(shutil.which, ("gcc", "g++")):
        language = {"gcc": "c", "g++": "c++"}[compiler]
        shared = "-L", library / "lib", "-lrefmoe_kernels", f"-Wl,-rpath,{library}/lib"
        strict = "-x", language, "-Wall", "-Wextra", "-Werror", "-pedantic"
        printed(compiler, *strict, f"-I{library}/include", source, *shared, "-o", tmp_path / "use")
        printed(tmp_path / "use")
