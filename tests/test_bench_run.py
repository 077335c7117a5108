"""`refmoe bench` at work: parity before timing, processes that fail, limits, a quick run and its JSON."""

import json
import os
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from refmoe import kernels
from refmoe.__main__ import main, parser
from refmoe.bench import bars, child, children, command, figures, machine, measure, report
from refmoe.bench.cases import Inputs, make_case, plain_config
from refmoe.bench.contestants import house, limits

SMALL = plain_config(64, 32, 8, 2)
OWN = {"profiles": ["chain", "exact"], "threads": [1], "kernel": None}
NUMBERS = {"type": "array", "items": {"type": "number"}}
SECONDS = {"type": "array", "minItems": 1, "items": {"type": "number", "exclusiveMinimum": 0}}


def options(*words):
    return command.options_of(parser().parse_args(["bench", "--quick", "--patience", "120", *words]))


# --- parity before timing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("product", figures.PRODUCTS)
def test_one_wrong_bit_is_refused(product, monkeypatch):
    right = getattr(kernels.CEngine, product)

    def wrong(self, *arguments, **named):
        made = right(self, *arguments, **named)
        made.view(np.uint32)[..., -1] ^= 1
        return made

    monkeypatch.setattr(kernels.CEngine, product, wrong)
    with pytest.raises(child.NotEqual, match="nothing is timed"):
        house.prepare(Inputs(make_case("case", SMALL, 9, "training")), OWN)


@pytest.mark.parametrize("phase", ["forward", "backward", "training"])
@pytest.mark.parametrize("store", ["float32", "bf16", "fp16"])
def test_every_phase_is_proved(phase, store):
    loaded = house.prepare(Inputs(make_case("case", SMALL, 9, phase, store)), OWN)
    proofs = loaded.facts["proofs"]
    assert [p["setting"] for p in proofs] == ["chain x1", "exact x1"] and all(p["tokens"] == 9 for p in proofs)
    assert all(("expert" in p) == (phase != "forward") for p in proofs)


PLANTED = """
import sys
from refmoe import kernels
from refmoe.bench.child import main
right = kernels.CEngine.grouped_matmul
def wrong(*arguments, **named):
    made = right(*arguments, **named)
    made[..., -1] += 1
    return made
kernels.CEngine.grouped_matmul = wrong
main(sys.argv[1])
"""


def in_place_of(monkeypatch, name, program):
    """Child processes of that contestant run the program; the others are what they are."""

    def start(who, threads, extra=(), python=None, command=None):
        program_of = [sys.executable, "-c", program, who] if who == name else None
        return children.Child(who, threads, extra, python, program_of)

    monkeypatch.setattr(measure, "Child", start)


def test_a_run_that_finds_a_wrong_bit_times_nothing(monkeypatch, capsys):
    in_place_of(monkeypatch, "refmoe", PLANTED)
    assert main(["bench", "--quick", "--patience", "120"]) == 1
    told = capsys.readouterr()
    assert "nothing is timed" in told.err and not told.out


# --- processes --------------------------------------------------------------------------------------------------------

ANSWERS = "import sys\nfor line in sys.stdin: print('{\"seconds\": 1.0}', flush=True)"


def run_child(program, seconds=60.0, extra=()):
    with children.Child("any", 1, extra, command=[sys.executable, "-c", program]) as made:
        return made.ask({"do": "go", "setting": "any"}, seconds)


def test_a_child_answers():
    assert run_child(ANSWERS) == {"seconds": 1.0}


@pytest.mark.parametrize(
    ("program", "kind", "reason"),
    [
        ("import os; os.abort()", "died", "status -6"),
        ("import sys; sys.exit('no licence')", "died", "no licence"),
        ("print('hello', flush=True); input(); input()", "error", "hello"),
        ("""print('{"failed": "too big", "kind": "refused"}', flush=True); input(); input()""", "refused", "too big"),
    ],
)
def test_children_that_fail(program, kind, reason):
    with pytest.raises(children.ChildFailed, match=reason) as failure:
        run_child(program)
    assert failure.value.kind == kind


def test_a_child_that_hangs_is_ended():
    with children.Child("any", 1, command=[sys.executable, "-c", "import time; time.sleep(600)"]) as made:
        with pytest.raises(children.ChildFailed, match="no answer") as failure:
            made.ask({"do": "go", "setting": "any"}, 0.2)
        assert failure.value.kind == "hangs" and not made.is_alive()


@pytest.mark.parametrize(
    ("program", "kind", "patience"),
    [("import os; input(); os.abort()", "died", 60.0), ("import time; time.sleep(600)", "hangs", 3.0)],
)
def test_a_peer_that_fails_does_not_take_the_run_with_it(program, kind, patience, monkeypatch):
    in_place_of(monkeypatch, "numpy loop", program)
    case, chosen = make_case("case", SMALL, 4), options()
    with children.Child("refmoe", 1) as first:
        settings, _ = measure.load_refmoe(first, case, chosen)
        rows, failures = measure.one_peer(
            "numpy loop", None, None, case, chosen | {"patience": patience}, first, settings
        )
        assert rows == [] and [f["kind"] for f in failures] == [kind]
        assert first.ask({"do": "go", "setting": settings[0]}, 60)["seconds"] > 0


def test_a_peer_whose_python_is_not_there_is_missing():
    rows, failures = measure.one_peer(
        "torch dense", None, "/nowhere/python", make_case("case", SMALL, 4), options(), None, []
    )
    assert rows == [] and failures[0]["kind"] == "missing"


def test_what_steers_blas_and_threads_is_cleared(monkeypatch):
    for name in ("OPENBLAS_CORETYPE", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "MKL_CBWR", "NPY_DISABLE_CPU_FEATURES",
                 "REFMOE_KERNEL", "OMP_NUM_THREADS"):  # fmt: skip
        monkeypatch.setenv(name, "planted")
    program = "import json, os\ninput()\nprint(json.dumps(dict(os.environ)), flush=True)"
    seen = run_child(program, extra={"OPENBLAS_CORETYPE": "Haswell"})
    assert "planted" not in seen.values() and seen["PATH"] == os.environ["PATH"]
    assert seen["OPENBLAS_CORETYPE"] == "Haswell" and seen["OMP_NUM_THREADS"] == seen["OPENBLAS_NUM_THREADS"] == "1"


def test_core_types_are_those_of_the_processor(monkeypatch):
    monkeypatch.setattr(machine, "_cpu", {"flags": "fpu avx2 fma sse2"}.get)
    assert machine.core_types() == ["Haswell", "Zen"]
    monkeypatch.setattr(machine, "_cpu", {"Features": "fp asimd atomics"}.get)
    assert machine.core_types() == ["ARMV8", "NEOVERSEN1"]
    monkeypatch.setattr(machine, "_cpu", {}.get)
    assert machine.core_types() == []


# --- limits -----------------------------------------------------------------------------------------------------------

CPU = Path("/proc/cpuinfo")


def test_limits_have_the_order_of_magnitude_of_a_processor():
    """An optimised-away loop would be beyond any processor, a loop of calls below."""
    loaded = limits.prepare(None, {"threads": [1, 2], "milliseconds": 1, "megabytes": 1})
    for name, call in loaded.calls.items():
        call()
        told = loaded.more()
        assert told["work"] > 0 and 1e6 < told["work"] / told["seconds"] < 1e14, name
    best = [name for name, can_run, _ in kernels.available() if can_run][-1]
    wanted = {f"{what} {profile} {best} x2" for what in ("tile", "lanes") for profile in ("chain", "exact")}
    assert wanted | {"read 4 x1"} <= loaded.calls.keys()
    two = {f"{what} pairs avx512 x{threads}" for what in ("registers", "tile") for threads in (1, 2)}
    has = best == "avx512" and CPU.exists() and "avx512_bf16" in CPU.read_text()
    assert {name for name in loaded.calls if "pairs" in name} == (two if has else set())


def test_limits_refuse_what_they_cannot_measure():
    machine = limits.Machine(0.001, 1 << 16)
    lib, work, null = machine.lib, machine.work, machine.ffi.NULL
    refused = [
        lib.refmoe_limit_registers(99, 1, 1, 1, work),
        lib.refmoe_limit_registers(machine.names.index("portable"), 1, 1, 1, work),
        lib.refmoe_limit_registers(len(machine.names) - 1, 2, 1, 1, work),
        lib.refmoe_limit_tile(0, 1, 0, 0, 1, 1, work),
        lib.refmoe_limit_tile(0, 1, 1, 1, 1 << 20, 1, work),
        lib.refmoe_limit_tile_bytes(0, 1, 2, 1),
        lib.refmoe_limit_pair_registers(machine.names.index("portable"), 1, 1, work),
        lib.refmoe_limit_pair_tile(machine.names.index("portable"), 1, 1, 1, work),
        lib.refmoe_limit_pair_tile(len(machine.names) - 1, 1, 0, 1, work),
        lib.refmoe_limit_read(null, 64, 1, 1, 1, work),
        lib.refmoe_limit_read(null, 64, 3, 1, 1, work),
    ]
    assert all(answer < 0 for answer in refused)


def test_the_tiles_operands_stay_in_the_first_cache():
    machine = limits.Machine(0.001, 1 << 16)
    for kernel in range(len(machine.names)):
        for profile, code in limits.PROFILES.items():
            for lanes in (0, 1):
                size = machine.lib.refmoe_limit_tile_bytes(kernel, code, lanes, limits.LENGTHS[profile])
                assert 0 < size < 32 << 10, (machine.names[kernel], profile, lanes)
    assert 0 < machine.lib.refmoe_limit_pair_tile_bytes(limits.PAIR_WORDS) < 32 << 10


# --- the run ----------------------------------------------------------------------------------------------------------

SCHEMA = {
    "type": "object",
    "required": ["machine", "options", "limits", "cases", "bars"],
    "properties": {
        "machine": {"required": ["processor", "processors", "caches", "load", "load_at_the_end", "numpy", "refmoe"]},
        "limits": {"minItems": 1, "items": {"required": ["name", "rates"], "properties": {"rates": NUMBERS}}},
        "cases": {
            "minItems": 3,
            "items": {
                "required": ["key", "config", "flops", "weight_bytes", "refmoe", "peers", "failures", "facts"],
                "properties": {
                    "refmoe": {
                        "minProperties": 2,
                        "additionalProperties": {"minItems": 1, "items": {"required": ["seconds", "inside"]}},
                    },
                    "peers": {
                        "items": {
                            "required": ["name", "variant", "setting", "samples", "refmoe", "facts", "error", "alone"],
                            "properties": {"samples": SECONDS, "refmoe": {"additionalProperties": SECONDS}},
                        }
                    },
                    "failures": {"items": {"required": ["name", "variant", "setting", "reason", "kind"]}},
                    "facts": {"required": ["kernel", "compiler", "proofs", "memory_beyond_inputs"]},
                },
            },
        },
    },
}


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """A quick run: (what it printed, its JSON, the folder)."""
    folder = tmp_path_factory.mktemp("bench")
    words = [
        "bench",
        "--quick",
        "--patience",
        "120",
        "--json",
        str(folder / "run.json"),
        "--plot",
        str(folder / "run.png"),
    ]
    with pytest.MonkeyPatch.context() as patch:
        told = []
        patch.setattr("builtins.print", lambda *words, **_: told.append(" ".join(map(str, words))))
        assert main(words) == 0
    return "\n".join(told), json.loads((folder / "run.json").read_text()), folder


def test_the_json_of_a_run_holds_everything(quick):
    jsonschema.validate(quick[1], SCHEMA)
    rows = [peer for case in quick[1]["cases"] for peer in case["peers"]]
    assert rows and all(row["facts"]["blas core"] for row in rows)


def test_what_is_printed_names_the_machine_the_limits_and_the_ratios(quick):
    text, result, folder = quick
    for said in (
        result["machine"]["processor"],
        "read 4 x1",
        "refmoe chain x1",
        "numpy loop, loop",
        "bits equal to NumPy's",
    ):
        assert said in text
    assert (folder / "run.png").stat().st_size > 1000


# --- a run that is interrupted ----------------------------------------------------------------------------------------


def test_an_interrupted_run_keeps_what_it_has(monkeypatch, capsys, tmp_path):
    right, seen = measure.one_case, []

    def second_is_interrupted(case, *others):
        seen.append(case)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return right(case, *others)

    monkeypatch.setattr(measure, "one_case", second_is_interrupted)
    path = tmp_path / "bench.json"
    assert main(["bench", "--quick", "--patience", "120", "--json", str(path)]) == 130
    told, kept = capsys.readouterr(), json.loads(path.read_text())
    assert told.err.splitlines()[-1] == f"refmoe: interrupted after 1 cases; what was measured is in {path}"
    assert kept["interrupted"] and [c["phase"] for c in kept["cases"]] == ["forward"] and "quick" in told.out
    assert [p.name for p in tmp_path.iterdir()] == ["bench.json"]


def test_bars_of_cases_that_were_not_reached_are_not_measured():
    assert {row["verdict"] for row in bars.judge({}, [])} == {"not measured"}


@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_a_folder_that_is_not_there_is_refused_first(option, capsys, tmp_path):
    assert main(["bench", "--quick", option, str(tmp_path / "none" / "file")]) == 2
    told = capsys.readouterr()
    assert f"{option}: expected a file in a folder that exists" in told.err and not told.out


def test_a_plot_without_matplotlib_is_refused_before_anything_is_measured(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(measure, "run", lambda *_: pytest.fail("measured"))
    assert main(["bench", "--quick", "--plot", str(tmp_path / "a.png")]) == 2
    assert "install refmoe[plot]" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_the_roofline_has_one_colour_for_each_name():
    rows = [("a", 1, 2), ("b", 1, 3), ("a", 4, 5)]
    assert report.by_name(rows) == {"a": ((1, 4), (2, 5)), "b": ((1,), (3,))}


def test_the_roof_has_its_corner_where_both_limits_meet():
    """Between the corner and a neighbouring power of two a straight line would cut off what is possible."""
    assert report.roof(120e9, 20e9) == ([0.25, 6.0, 2048.0], [5.0, 120.0, 120.0])
