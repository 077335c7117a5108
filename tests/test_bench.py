"""`refmoe bench`: options, cases, contestants, figures and bars. Nothing here holds a speed against a bar."""

import json

import numpy as np
import pytest

import refmoe
from refmoe.__main__ import main, parser
from refmoe.bench import bars, child, command, figures, machine, measure, report
from refmoe.bench.cases import ROUTINGS, Case, Inputs, expected, make_case, plain_config, preset_cases
from refmoe.bench.contestants import house, numpy_loop

SMALL = plain_config(64, 32, 8, 2)
OWN = {"profiles": ["chain", "exact"], "threads": [1], "kernel": None}


# --- options ----------------------------------------------------------------------------------------------------------


def test_the_cases_of_the_bars_are_timed_unless_told_otherwise():
    args = parser().parse_args(["bench"])
    assert command.choose(args).keys() == bars.cases().keys() and command.barred(args)
    chosen = command.options_of(args)
    assert (
        chosen["peers"] == ["numpy loop"] and chosen["profiles"] == ["chain", "exact"] and max(chosen["threads"]) <= 2
    )


def test_peers_are_timed_where_a_bar_or_the_user_asks_for_them():
    args = parser().parse_args(["bench"])
    chosen = command.choose(args)
    without = {label for label, case in chosen.items() if case.key in command.peerless(args, chosen)}
    assert without == {"long", "one expert", "five experts", *(f"grown {E}" for E in bars.GROWN)}
    args = parser().parse_args("bench --shape mixtral-8x7b".split())
    assert command.peerless(args, command.choose(args)) == []


def test_shapes_phases_and_stores():
    args = parser().parse_args("bench --shape mixtral-8x7b --tokens 3 5 --store float32 bf16 --peers".split())
    made = command.choose(args).values()
    assert {(c.tokens, c.phase, c.store) for c in made} == {
        (tokens, phase, store)
        for store in ("float32", "bf16")
        for tokens, phase in ((3, "forward"), (5, "forward"), (5, "backward"), (5, "training"))
    }
    assert {c.config.intermediate_size for c in made} == {14336} and not command.barred(args)
    assert command.options_of(args)["peers"] == list(measure.PEERS)


@pytest.mark.parametrize(
    "words", ["--samples 0", "--tokens -1", "--store f64", "--profile float64", "--threads many", "--budget soon"]
)
def test_options_that_mean_nothing_are_refused(words, capsys):
    with pytest.raises(SystemExit):
        parser().parse_args(["bench", *words.split()])
    assert "error" in capsys.readouterr().err


def test_requests_that_cannot_be_met_say_so(capsys):
    assert main(["bench", "--shape", "no-such-model"]) == 2 and "no-such-model" in capsys.readouterr().err
    assert main(["bench", "--only", "nothing"]) == 2 and "--only" in capsys.readouterr().err
    assert main(["bench", "--quick", "--kernel", "abacus"]) == 2 and "abacus" in capsys.readouterr().err


# --- cases ------------------------------------------------------------------------------------------------------------


def test_routings():
    config = plain_config(4, 4, 64, 8)
    even, one, five = (make_case("case", config, 200, routing=routing) for routing in ROUTINGS)
    for case in (even, five):
        assert all(len(set(row)) == case.config.top_k for row in case.topk_indices.tolist())
    assert len(np.unique(even.topk_indices)) == 64
    assert one.config.top_k == 1 and np.bincount(one.topk_indices.ravel(), minlength=64).max() >= 180
    assert five.config.top_k == 5 and len(np.unique(five.topk_indices)) == 5
    assert five.weight_bytes == 5 * 3 * 16 * 4 and even.flops == 2 * 200 * 8 * 3 * 16


@pytest.mark.parametrize("routing", ROUTINGS)
def test_whoever_routes_by_the_logits_chooses_the_given_experts(routing):
    case = make_case("case", plain_config(4, 4, 16, 4), 50, routing=routing)
    inputs, K = Inputs(case), case.config.top_k
    assert (np.argsort(-inputs.logits, axis=-1, kind="stable")[:, :K] == case.topk_indices).all()
    layer = house.Layer(inputs)
    record = layer.forward(refmoe.Numerics(), "all")
    assert (record.routing.topk_indices == case.topk_indices).all()
    np.testing.assert_allclose(record.routing.topk_weights, inputs.topk_weights, rtol=1e-6)


def test_a_case_travels_as_json():
    for case in (*bars.cases().values(), *preset_cases("gpt-oss-20b", (2,), scale="minimal")):
        assert Case.from_dict(json.loads(json.dumps(case.to_dict()))) == case


def test_only_the_experts_of_a_preset_are_timed():
    config = make_case("case", refmoe.load_preset("deepseek-v3"), 4).config
    assert config.experts.shared_intermediate_size == 0 and config.routing.num_groups == 1
    assert make_case("case", refmoe.load_preset("gpt-oss-20b"), 4).config.experts.limit == 7.0


@pytest.mark.parametrize("preset", ["qwen3-30b-a3b", "gpt-oss-20b", "nemotron-3-nano"])
def test_the_formula_is_the_layers(preset):
    """What every contestant's answer is held against, against refmoe."""
    case = make_case("case", refmoe.load_preset(preset, scale="minimal"), 6)
    inputs = Inputs(case)
    y = house.Layer(inputs).forward(refmoe.Numerics(), "y").y
    np.testing.assert_allclose(expected(inputs, range(6)), y, rtol=1e-5, atol=1e-6)


# --- contestants ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["qwen3-30b-a3b", "gpt-oss-20b", "nemotron-3-nano"])
def test_the_numpy_loop_computes_the_layer(preset):
    case = make_case("case", refmoe.load_preset(preset, scale="minimal"), 9)
    _, answer = child.load("numpy loop", case.to_dict(), {})
    assert answer["settings"] == ["loop"] and answer["errors"]["loop"] < 1e-5
    assert answer["facts"]["numpy"] == np.__version__


def test_the_numpy_loop_goes_the_whole_way_back():
    case = make_case("case", SMALL, 9, "training")
    inputs = Inputs(case)
    weights, layer, num = numpy_loop.Weights(inputs), house.Layer(inputs), refmoe.Numerics()
    weights.step()
    grads = layer.backward(num, layer.forward(num, "backward"))
    joined = np.concatenate([grads.params.w_gate, grads.params.w_up], axis=1)
    for got, want in ((weights.d_x, grads.d_x_experts), (weights.d_weights, grads.d_topk_weights),
                      (weights.d_first, joined), (weights.d_down, grads.params.w_down)):  # fmt: skip
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


def test_what_a_contestant_cannot_do_it_refuses():
    with pytest.raises(child.Refused, match="bf16"):
        child.load("numpy loop", make_case("case", SMALL, 4, store="bf16").to_dict(), {})


def test_a_contestant_that_computes_another_layer_is_not_timed(monkeypatch):
    wrong = numpy_loop.Weights.forward
    monkeypatch.setattr(numpy_loop.Weights, "forward", lambda self: wrong(self) * np.float32(1.01))
    _, answer = child.load("numpy loop", make_case("case", SMALL, 9).to_dict(), {})
    assert answer["settings"] == [] and answer["failed"]["loop"]["kind"] == "wrong"


def test_a_contestant_without_its_library_is_missing():
    with pytest.raises(ModuleNotFoundError) as error:
        child.load("jax ragged_dot", make_case("case", SMALL, 4).to_dict(), {})
    assert child.kind(error.value) == "missing"


def test_the_time_inside_c_is_noted():
    loaded, answer = child.load("refmoe", make_case("case", SMALL, 49, "training").to_dict(), OWN)
    for setting in answer["settings"]:
        told = child.go(loaded, setting)
        assert set(told["inside"]) >= set(figures.PRODUCTS)
        assert 0 < sum(told["inside"].values()) <= told["seconds"]


# --- figures and bars -------------------------------------------------------------------------------------------------


def result_of(case, seconds, peers=(), failures=(), inside=0.5):
    """A measurement that was not made: refmoe's seconds by setting, peers as (name, setting, seconds)."""
    taken = {s: [{"seconds": t, "inside": {"grouped_matmul": t * inside}}] * 3 for s, t in seconds.items()}
    beside = {s: [t] * 3 for s, t in seconds.items() if s.endswith("x2")}
    rows = [{"name": n, "setting": s, "variant": None, "samples": [t] * 3, "refmoe": beside, "facts": {}, "error": 0.0}
            for n, s, t in peers]  # fmt: skip
    return {"key": case.key, "store": case.store, "flops": case.flops, "weight_bytes": case.weight_bytes,
            "refmoe": taken, "peers": rows, "failures": list(failures),
            "facts": {"proofs": [{"tokens": 1}], "memory_beyond_inputs": 0}}  # fmt: skip


TIMES = {f"{profile} x{threads}": 2.0 / threads for profile in ("chain", "exact") for threads in (1, 2)}
ALL = [(name, setting, 2.5 + i) for i, (name, setting) in enumerate(bars.REQUIRED)]
LIMITS = [{"name": "read 4 x2", "rates": [1e9, 2e9]}, {"name": "tile chain avx2 x2", "rates": [3e12]},
          {"name": "lanes chain avx2 x2", "rates": [4e12]}, {"name": "tile chain avx2 x1", "rates": [9e12]},
          {"name": "tile exact avx2 x2", "rates": [5e12]}]  # fmt: skip


def verdicts(measured, start):
    return [row for row in bars.judge(measured, LIMITS) if row["bar"].startswith(start)]


def test_bars_that_nobody_measured_are_not_met():
    rows = bars.judge({}, [])
    assert len(rows) >= 30 and {row["verdict"] for row in rows} == {"not measured"}


def test_a_ratio_is_to_the_best_peer():
    case = bars.cases()["prefill"]
    quick_row = ("torch dense", "one product", 0.1)  # not the layer
    measured = {"prefill": result_of(case, TIMES, [*ALL, quick_row])}
    (row,) = verdicts(measured, "float32 chain, Qwen3-30B-A3B, 512")
    assert row["figure"] == 2.5 and row["verdict"] == "met"
    measured = {"prefill": result_of(case, TIMES, [*ALL, ("ggml", "mul_mat_id", 2.0)])}
    (row,) = verdicts(measured, "float32 chain, Qwen3-30B-A3B, 512")
    assert row["figure"] == 2.0 and row["verdict"] == "NOT met"


@pytest.mark.parametrize("absent", range(len(bars.REQUIRED)))
def test_a_missing_peer_is_a_failed_bar(absent):
    peers = [row for i, row in enumerate(ALL) if i != absent]
    measured = {"prefill": result_of(bars.cases()["prefill"], TIMES, peers)}
    (row,) = verdicts(measured, "float32 chain, Qwen3-30B-A3B, 512")
    assert row["verdict"] == "failed: without " + " ".join(bars.REQUIRED[absent])


def test_what_a_peer_cannot_do_is_not_missing():
    refused = {"name": "numpy loop", "variant": None, "setting": None, "reason": "NumPy has no bf16", "kind": "refused"}
    measured = {"prefill bf16": result_of(bars.cases()["prefill bf16"], TIMES, ALL[1:], [refused])}
    (row,) = verdicts(measured, "bf16 chain, Qwen3-30B-A3B, 512")
    assert row["verdict"] == "met"


def test_shares_of_the_limits():
    case = bars.cases()["prefill"]
    measured = result_of(case, TIMES, inside=0.25)
    assert figures.share_of_tile(measured, "chain x2", LIMITS) == pytest.approx(case.flops / 0.25 / 4e12)
    assert figures.share_of_read(measured, "exact x2", LIMITS) == pytest.approx(case.weight_bytes / 2e9)
    assert figures.share_of_tile(measured, "chain x2", []) is None
    (row,) = verdicts({"prefill": measured}, "the same at 512 tokens: share of the time outside")
    assert row["figure"] == pytest.approx(0.75) and row["verdict"] == "NOT met"


def test_chains_of_bf16_are_held_against_the_tile_that_takes_two_terms_a_step():
    case = bars.cases()["prefill bf16"]
    measured = result_of(case, TIMES, inside=0.25)
    pairs = {"name": "tile pairs avx512 x2", "rates": [8e12]}
    assert figures.share_of_tile(measured, "chain x2", LIMITS) == pytest.approx(case.flops / 0.25 / 4e12)
    assert figures.share_of_tile(measured, "chain x2", [*LIMITS, pairs]) == pytest.approx(case.flops / 0.25 / 8e12)
    assert figures.tile_limit([*LIMITS, pairs], "chain x2") == 4e12


def test_growth_and_threads():
    grown = {f"grown {E}": result_of(bars.cases()[f"grown {E}"], TIMES) for E in bars.GROWN}
    (row,) = verdicts(grown, "8 to 512 experts, same rows, chain")
    extra = (grown["grown 32"]["weight_bytes"] - grown["grown 8"]["weight_bytes"]) / 2e9
    assert row["figure"] == pytest.approx(1 / (1.3 + extra)) and row["verdict"] == "met"
    (row,) = verdicts({"long": result_of(bars.cases()["long"], TIMES)}, "chain, 2 threads against 1, 2048")
    assert row["figure"] == 2.0 and row["verdict"] == "met"


def test_the_report_of_bars_and_failures():
    failure = {"name": "ggml", "variant": None, "setting": None, "reason": "no library", "kind": "missing"}
    case = result_of(bars.cases()["prefill"], TIMES, ALL, [failure])
    told = {"machine": machine.describe(), "limits": [*LIMITS, {"name": "none", "rates": [], "failed": "no C"}],
            "cases": [case], "bars": bars.judge({"prefill": case}, LIMITS)}  # fmt: skip
    text = report.text(told)
    for said in ("ggml: missing: no library", "NOT met", "not measured", "no C", "2.50 >= 2.2 (goal 3.0): met"):
        assert said in text
