"""Sizes of published models: exact integers, the printed figures beside them, and what a token costs."""

import importlib.util
import itertools
import json
import math
import subprocess
import sys
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from refmoe.config import MoEConfig
from refmoe.models import load_preset, names, preset_info
from refmoe.models.accounting import (
    PARTS,
    STORAGE,
    Tensor,
    by_part,
    comparison,
    cost,
    counted,
    expected_experts,
    model_tensors,
    plots,
    published,
    stored_bytes,
    sweep,
)
from refmoe.models.accounting.command import countable, main_params
from refmoe.models.accounting.mixers import MIXERS
from refmoe.models.accounting.tensors import is_whole, moe_blocks
from refmoe.models.presets import merged
from refmoe.recipes import parameter_shapes

ROOT = Path(__file__).parent.parent
INFOS = {name: preset_info(name) for name in names()}
MODELS = tuple(name for name, info in INFOS.items() if info["model"] is not None)
COUNTED = tuple(name for name in MODELS if is_whole(INFOS[name]))
PARTIAL = tuple(name for name in MODELS if name not in COUNTED)  # only their MoE layers are counted

# Counted by others from the published figures: total, active with and without the input embedding. Integers are exact,
# decimals are billions as far as they were given.
EXACT = {
    "deepseek-v3": (671_026_419_200, 37_552_297_472, 36.63),
    "deepseek-v3.2": (671_877_944_064, 38.40, 37.48),
    "deepseek-v2": (235_741_434_880, 21.38, 20.85),
    "deepseek-v2-lite": (15_706_484_224, 2.66, 2.45),
    "kimi-k2": (1_026_408_232_448, 32.86, 31.69),
    "glm-4.5": (352_797_829_024, 33.63, 32.86),
    "glm-4.5-air": (106_852_251_264, 13.42, 12.80),
    "glm-5": (743_911_218_432, 41.78, 40.83),
    "mistral-large-3": (673_421_089_792, 39.95, 39.01),
    "mixtral-8x7b": (46_702_792_704, 12_879_925_248, 12.75),
    "mixtral-8x22b": (140_620_634_112, 39_152_031_744, 38.96),
    "gpt-oss-20b": (20_914_757_184, 4_187_440_704, 3.61),
    "gpt-oss-120b": (116_829_156_672, 5_711_982_912, 5.13),
    "qwen1.5-moe-a2.7b": (14_315_784_192, 2_689_173_504, 2.38),
    "qwen3-30b-a3b": (30_532_122_624, 3_353_032_704, 3.04),
    "qwen3-235b-a22b": (235_093_634_560, 22_190_763_520, 21.57),
    "qwen3-next-80b-a3b": (79_674_391_296, 3_874_929_408, 3.56),
    "qwen3.5-35b-a3b": (34_660_610_688, 3.45, 2.95),
    "qwen3.5-397b-a17b": (396_346_350_336, 17.35, 16.33),
    "nemotron-3-nano": (31_577_940_288, 3_580_076_352, 3.228),
    "nemotron-3-super": (120_668_707_840, 12_770_237_440, 12.23),
    "olmoe-1b-7b": (6_919_161_856, 1_282_017_280, 1.18),
    "llama-4-scout": (107_769_861_120, 17.17, 16.14),
    "llama-4-maverick": (400_711_848_960, 17.18, 16.15),
    "minimax-m2": (228_689_764_864, 11.03, 10.42),
    "dbrx": (131_596_523_520, 36.47, 35.85),
    "phi-3.5-moe": (41_873_153_344, 6.64, 6.51),
    "granite-3.1-3b-a800m": (3_298_793_472, 0.883, 0.807),
    "granite-3.1-1b-a400m": (1_334_628_352, 0.429, 0.378),
    "ernie-4.5-21b-a3b": (21_825_437_888, 3.35, 3.09),
    "ernie-4.5-300b-a47b": (299_484_163_264, 47.93, 47.08),
    "dots.llm1": (142_774_381_696, 14.02, 13.39),
    "hunyuan-a13b": (80_393_183_232, 12.75, 12.22),
    "grok-1": (315_684_820_992, 83.76, 82.95),
    "arctic": (478_584_608_768, 17.32, 17.09),
    "longcat-flash": (560_664_980_480, None, 27.1),
}


def agrees(number, stated):
    """Equal to an integer; to a decimal in billions within half a unit of its last digit; to None always."""
    if stated is None or isinstance(stated, int):
        return stated is None or number == stated
    value, half = published.printed_value(f"{stated}B")
    return abs(number - value) <= half


@pytest.mark.parametrize("name", EXACT)
def test_counts_equal_the_exact_integers(name):
    counts = counted(INFOS[name])
    total, active, without = EXACT[name]
    assert counts["total"] == total
    assert agrees(counts["active"], active) and agrees(counts["active_without_input_embedding"], without)


@pytest.mark.parametrize(("name", "total"), [("switch-base-8", 449_469_696), ("switch-base-128", 4_980_423_936)])
def test_the_class_default_of_the_oldest_model_counts_as_others_counted_it(name, total):
    """d_ff = 2048 is the default of the class and gives the integers others published; the checkpoints have 3072."""
    width = {"intermediate_size": 2048}
    assert counted(merged(INFOS[name], {"full": width, "model": {"dense": width}}))["total"] == total
    assert INFOS[name]["full"]["intermediate_size"] == 3072


# Layers, and the weights of routed and shared experts in them, of models whose other parts are not counted.
EXPERTS_ALONE = {
    "deepseek-v4-flash": (43, 43 * 257 * 3 * 4096 * 2048),
    "deepseek-v4-pro": (61, 61 * 385 * 3 * 7168 * 3072),
    "diffusiongemma-26b-a4b": (30, 30 * 128 * 3 * 2816 * 704),
    "gemma-4-26b-a4b": (30, 30 * 128 * 3 * 2816 * 704),
    "kimi-k3": (92, 92 * (896 * 3 * 3584 * 3072 + 2 * 3 * 7168 * 3072)),
    "nemotron-3-ultra": (48, 48 * (512 * 2 * 2048 * 5120 + 2 * 8192 * 10240)),
    "minimax-m3": (57, 57 * 129 * 3 * 6144 * 3072),
    "step-3.7-flash": (42, 42 * 289 * 3 * 4096 * 1280),
}


@pytest.mark.parametrize("name", PARTIAL)
def test_the_moe_layers_alone(name):
    info, rows = INFOS[name], by_part(INFOS[name])
    layers, weights = EXPERTS_ALONE[name]
    assert moe_blocks(info) == layers and set(rows) <= {"router", "routed", "shared", "latent"}
    assert rows["routed"]["total"] + rows.get("shared", {"total": 0})["total"] == weights
    counts = counted(info)
    assert counts["total"] == sum(row["total"] for row in rows.values())
    assert counts["active"] == counts["active_without_input_embedding"] < counts["total"]
    assert comparison(info) == {"total": None, "active": None}  # what is printed is of the whole model
    one, many = (cost(info, batch)["weight_bytes"]["bf16"] for batch in (1, 10**6))
    assert one == pytest.approx(2 * counts["active"]) and many * 10**6 == pytest.approx(2 * counts["total"])


@pytest.mark.parametrize(("experts", "billions"), [(0, 18.7), (8, 27.1), (12, 31.4)])
def test_experts_without_weights_make_the_active_size_a_range(experts, billions):
    assert agrees(counted(INFOS["longcat-flash"], experts)["active_without_input_embedding"], billions)


# --- the formulas that no exact integer pins -------------------------------------------------------------------------


def size(kind, D, **figures):
    return sum(math.prod(shape) for shape in MIXERS[kind](D, **figures).values())


def test_mixers_by_hand():
    # in, convolution and its bias, x to (dt, B, C), dt and its bias, A, D, three norms, out; then the short convolution
    by_hand = 5 * 12 + 6 * 3 + 6 + 6 * (2 + 8) + 2 * 6 + 6 + 6 * 4 + 6 + (2 + 4 + 4) + 6 * 5
    assert size("mamba1", 5, inner_size=6, state_size=4, step_rank=2, kernel_size=3) == by_hand
    assert size("short_convolution", 5, kernel_size=3) == 3 * 25 + 15 + 25
    values = 5 * (4 * 3 + 2 * 3 + 2 * 7 + 4 * 7)  # four query heads of 3, two of keys and of values, values of 7
    assert size("grouped_query", 5, heads=4, kv_heads=2, head_size=3, value_size=7) == values
    assert size("grouped_query", 5, heads=4, kv_heads=2, head_size=3, value_size=7, head_gates=True) == values + 20


@pytest.mark.parametrize("name", names())
def test_the_layer_counted_is_the_layer_computed(name):
    """One MoE block's tensors are the parameters of the configuration, no more and no fewer."""
    info = preset_info(name) | {"model": {"vocab_size": 1, "tied_embeddings": True, "mixers": {}, "final_norms": 1}}
    info["model"]["blocks"] = [{"count": 1, "mixers": [], "ffns": ["moe"], "norms": 0}]
    parameters = sum(math.prod(shape) for shape, _ in parameter_shapes(load_preset(name)).values())
    outside = 2 * info["full"]["hidden_size"]  # an embedding of one row, the final norm
    assert counted(info)["total"] == parameters + outside


@pytest.mark.parametrize("name", COUNTED)
def test_parts_add_up(name):
    rows, counts = by_part(INFOS[name]), counted(INFOS[name])
    assert list(rows) == [part for part in PARTS if part in rows] and {"router", "routed", "embeddings"} <= set(rows)
    assert sum(row["total"] for row in rows.values()) == counts["total"]
    assert sum(row["active"] for row in rows.values()) == counts["active"]
    assert all(row["active"] == row["total"] for part, row in rows.items() if part != "routed")
    assert 0 < counts["active_without_input_embedding"] < counts["active"] < counts["total"]


# --- the model sections ----------------------------------------------------------------------------------------------


def leaves(section, prefix=""):
    for key, value in section.items():
        yield from leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]


@pytest.mark.parametrize("name", COUNTED)
def test_every_figure_has_its_source_and_no_other(name):
    """A source stands for a field, or for a whole section of them."""
    model = dict(INFOS[name]["model"])
    sources = set(model.pop("sources"))
    del model["published"]
    covered = {leaf: {s for s in sources if leaf == s or leaf.startswith(s + ".")} for leaf in leaves(model)}
    assert all(covered.values()) and set().union(*covered.values()) == sources


@pytest.mark.parametrize("name", COUNTED)
def test_blocks_use_what_the_section_defines(name):
    model = INFOS[name]["model"]
    assert {m for block in model["blocks"] for m in block["mixers"]} == set(model["mixers"])
    ffns = {ffn for block in model["blocks"] for ffn in block["ffns"]}
    assert "moe" in ffns and ("dense" in ffns) == ("dense" in model)


@pytest.mark.parametrize("name", COUNTED)
def test_a_difference_has_a_reason(name):
    for key, row in comparison(INFOS[name]).items():
        assert row is None or row["reason"] or not row["needs_reason"], f"{key}: {row}"


def test_what_needs_a_reason():
    assert published.printed_value("46.7B") == (46_700_000_000, 50_000_000)
    assert published.printed_value("1.04T") == (1_040_000_000_000, 5_000_000_000)
    assert published.printed_value("37B") == (37_000_000_000, 500_000_000)

    def needs(figure, count):
        row = {"figure": figure, "source": "", "verified": True}
        return published._compared(row, count, "total")["needs_reason"]

    assert not needs("3B", 3_400_000_000)  # 13 %, but within half a unit
    assert needs("3B", 3_600_000_000)
    assert not needs("200B", 202_000_000_000)  # two units, but 1 %
    assert needs("200B", 203_100_000_000) and needs("200B", 196_900_000_000)


def test_the_convention_that_is_compared():
    rows = {name: comparison(INFOS[name])["active"] for name in ("mixtral-8x7b", "gpt-oss-20b", "kimi-k2")}
    assert rows["mixtral-8x7b"]["counted"] == 12_879_925_248 and rows["mixtral-8x7b"]["convention_stated"]
    assert rows["gpt-oss-20b"]["counted"] == 3_608_307_264 and rows["gpt-oss-20b"]["convention_stated"]
    nearer = rows["kimi-k2"]
    assert nearer["counted"] == 31_687_095_808 and not nearer["convention_stated"]


# --- storage, arithmetic, traffic ------------------------------------------------------------------------------------


def test_storage_formats_on_odd_shapes():
    matrix = Tensor("routed", "w", (130, 257), 1, Fraction(1))
    assert STORAGE["fp32"](matrix) == 4 * 130 * 257 and STORAGE["bf16"](matrix) == 2 * 130 * 257
    assert STORAGE["fp8"](matrix) == 130 * 257 + 4 * 2 * 3
    assert STORAGE["mxfp4"](matrix) == 130 * 9 * (16 + 1)
    for other in (matrix._replace(part="embeddings"), matrix._replace(shape=(130,)), matrix._replace(part="router")):
        assert STORAGE["fp8"](other) == STORAGE["mxfp4"](other) == STORAGE["bf16"](other)
    assert STORAGE["mxfp4"](matrix._replace(part="attention")) == STORAGE["bf16"](matrix)


@pytest.mark.parametrize(("name", "gibibytes"), [("gpt-oss-20b", 12.8), ("gpt-oss-120b", 60.8)])
def test_published_checkpoint_sizes(name, gibibytes):
    """The two checkpoints whose makers print their size in MXFP4."""
    assert abs(stored_bytes(INFOS[name])["mxfp4"] / 2**30 - gibibytes) <= 0.05


def test_expected_experts_by_enumeration():
    E, k, N = 4, 2, 3
    choices = list(itertools.combinations(range(E), k))
    met = [len(set().union(*batch)) for batch in itertools.product(choices, repeat=N)]
    assert expected_experts(E, k, N) == pytest.approx(sum(met) / len(met), rel=1e-12)
    assert expected_experts(8, 2, 1) == pytest.approx(2, rel=1e-12)


def test_cost_of_one_token_by_hand():
    """The smallest family: attention, router, two of eight experts and the output head are multiplied."""
    info, D, F, L, V = INFOS["mixtral-8x7b"], 4096, 14336, 32, 32000
    attention = D * (4096 + 1024 + 1024) + 4096 * D
    matrices = L * (attention + 8 * D + 2 * 3 * D * F) + V * D
    one = cost(info)
    assert one["flops"] == 2 * matrices and one["moe_layers"] == L and one["experts_met"] == pytest.approx(2)
    norms = 2 * L * D + D
    assert one["weight_bytes"]["bf16"] == pytest.approx(2 * (matrices + norms + D), rel=1e-12)


@pytest.mark.parametrize("name", ["deepseek-v3", "granite-3.1-1b-a400m", "longcat-flash"])
def test_a_larger_batch_shares_the_weights(name):
    info = INFOS[name]
    read = [cost(info, batch)["weight_bytes"]["bf16"] for batch in (1, 8, 64, 100_000)]
    assert read == sorted(read, reverse=True)
    table = info["model"]["vocab_size"] * (0 if info["model"]["tied_embeddings"] else 1)
    width = info["full"]["hidden_size"]
    everything = 2 * (counted(info)["total"] - table * width)  # all experts are met; of the input table a row a token
    assert read[-1] * 100_000 == pytest.approx(everything + 100_000 * 2 * width, rel=1e-9)


# --- the number of experts -------------------------------------------------------------------------------------------


def test_a_known_estimate_of_one_layer():
    """The documented example of a widely read tutorial: eight experts as large together as the dense layer."""
    sizes = sweep.feed_forward(7168, 14336, num_experts=8, top_k=2, match_dense=True)
    assert sizes == {
        "dense": 308_281_344,
        "expert_intermediate_size": 1792,
        "expert": 38_535_168,
        "router": 57_344,
        "total": 308_338_688,
        "active": 77_127_680,
    }
    assert sweep.feed_forward(7168, 14336, 8, 2)["total"] == 8 * 308_281_344 + 57_344
    assert sweep.feed_forward(8, 2, 4, 1, matrices=2)["dense"] == 32
    tiny = sweep.feed_forward(4, 1, 512, 1, match_dense=True)  # the router alone is larger than the dense layer
    assert tiny["expert_intermediate_size"] == 1


@pytest.mark.parametrize("name", ["qwen3-30b-a3b", "deepseek-v3", "switch-base-8"])
def test_sweep_of_experts(name):
    info = INFOS[name]
    rows = sweep.sweep_experts(info)
    assert [row["num_experts"] for row in rows] == [E for E in sweep.EXPERTS if E >= info["full"]["top_k"]]
    own = next(row for row in rows if row["num_experts"] == info["full"]["num_experts"])
    counts = counted(info)
    assert (own["total"], own["active"]) == (counts["total"], counts["active"])
    (low, high), layers = (rows[0], rows[-1]), cost(info)["moe_layers"]
    expert = sum(t.size for t in model_tensors(info) if t.part == "routed") // info_repeats(info)
    D, biased = info["full"]["hidden_size"], info["full"]["routing"].get("selection_bias", False)
    more = layers * (high["num_experts"] - low["num_experts"])
    assert high["active"] - low["active"] == more * (D + biased)  # the router's rows alone
    assert high["total"] - low["total"] == more * (D + biased + expert)


def info_repeats(info):
    """How many groups of blocks hold MoE layers: each lists an expert's tensors once."""
    return sum("moe" in block["ffns"] for block in info["model"]["blocks"])


def test_swept_configurations_are_valid():
    info = INFOS["deepseek-v3"]
    changed = sweep._ungrouped(info["full"]["routing"])
    assert MoEConfig.from_dict(info["full"] | {"num_experts": 13, "routing": changed}).num_experts == 13


# --- the command -----------------------------------------------------------------------------------------------------


def test_overview_lists_every_model_with_reasons_and_conventions(capsys):
    assert main_params([]) == 0
    text = capsys.readouterr().out
    for name in COUNTED:
        assert f"\n{name} " in text
    assert "671,026,419,200" in text and "Why figures differ:" in text and "KV cache" in text
    assert "Not counted: " + ", ".join(sorted(set(INFOS) - set(MODELS))) in text
    alone = text.split("MoE layers alone: ")[1].split("\n\n")[1].splitlines()[1:]
    assert [line.split()[0] for line in alone] == list(PARTIAL)
    reasons = [row["reason"] for info in countable(()) for row in comparison(info).values() if row and row["reason"]]
    assert reasons and all(reason in text for reason in reasons)
    starred = [line.split()[0] for line in text.splitlines() if "*" in line]
    assert starred == [n for n in COUNTED if any(r and r["needs_reason"] for r in comparison(INFOS[n]).values())]


def test_details_of_one_model(capsys):
    assert main_params(["mixtral-8x7b", "--batch", "16"]) == 0
    text = capsys.readouterr().out
    assert "46,702,792,704" in text and "12,879,925,248" in text and "KV cache excluded" in text
    assert "decoding 16 token(s)" in text and f"meets {expected_experts(8, 2, 16):,.1f} of 8 experts" in text
    assert main_params(["longcat-flash", "deepseek-v2-lite"]) == 0
    text = capsys.readouterr().out
    assert "published active 27B" in text and "with none to 32,182,676,480 with 12" in text
    assert "unverified: hidden_size, " in text
    assert main_params(["deepseek-v4-pro"]) == 0
    text = capsys.readouterr().out
    assert "The 61 MoE layers alone; the rest of the model is not counted. Printed of the whole: total 1.6T" in text


def test_json_holds_everything(capsys):
    assert main_params(["gpt-oss-120b", "--json", "--batch", "4"]) == 0
    (data,) = json.loads(capsys.readouterr().out)
    assert data["counts"] == {
        "total": 116_829_156_672,
        "active": 5_711_982_912,
        "active_without_input_embedding": 5_132_849_472,
    }
    assert set(data["bytes"]) == set(data["token"]["weight_bytes"]) == set(STORAGE)
    assert (
        data["token"]["batch"] == 4
        and data["kv_cache"] == "excluded"
        and data["published"]["total"]["figure"] == "117B"
    )
    assert main_params(["--json"]) == 0
    assert {row["name"]: row["scope"] for row in json.loads(capsys.readouterr().out)} == {
        name: "text backbone" if name in COUNTED else "MoE layers alone" for name in MODELS
    }


def test_sweep_command(capsys):
    assert main_params(["mixtral-8x7b", "--sweep", "num_experts", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["rows"] == sweep.sweep_experts(INFOS["mixtral-8x7b"]) and data["top_k"] == 2
    assert main_params(["--sweep", "num_experts"]) == 0
    assert "qwen3-30b-a3b with other numbers of experts" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["aria"], "params: expected a model whose figures are known, got aria; .*No model section"),
        (["minimax-m3", "--sweep", "num_experts"], "--sweep: expected a model that is counted whole, got minimax-m3"),
        (["mixtral"], "preset: expected one of .*got 'mixtral'; did you mean 'mixtral-8x"),
        (["mixtral-8x7b", "dbrx", "--sweep", "num_experts"], "--sweep: expected one model, got mixtral-8x7b, dbrx"),
    ],
)
def test_refusals(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        main_params(arguments)


@pytest.mark.parametrize("arguments", [["--batch", "0"], ["--batch", "x"], ["--sweep", "layers"]])
def test_wrong_arguments_are_usage_errors(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main_params(arguments)
    assert stopped.value.code == 2 and "error: argument" in capsys.readouterr().err


# --- pictures --------------------------------------------------------------------------------------------------------


def drawn(monkeypatch):
    """A figure that remembers what is drawn, in the place of matplotlib's."""
    fig, panes = MagicMock(), (MagicMock(), MagicMock())
    fig.canvas.get_supported_filetypes.return_value = {"png": ""}
    fig.subplots.return_value = panes
    panes[0].get_legend_handles_labels.return_value = ((), ())
    monkeypatch.setattr(plots, "figure", lambda width, height: (fig, nullcontext()))
    return fig, panes


def test_the_sweep_draws_its_numbers(monkeypatch, capsys):
    fig, (left, right) = drawn(monkeypatch)
    assert main_params(["--sweep", "num_experts", "--plot", "x.png"]) == 0
    rows = sweep.sweep_experts(INFOS["qwen3-30b-a3b"])
    for call, key in zip(left.plot.call_args_list, ("total", "active"), strict=True):
        assert call.args == ([row["num_experts"] for row in rows], [row[key] / 1e9 for row in rows])
    shown = right.set_yticks.call_args.args[1]
    pairs = [(counted(INFOS[n])["active"] / 1e9, counted(INFOS[n])["total"] / 1e9) for n in shown]
    assert len(shown) == 12 and [tuple(call.args[0]) for call in right.plot.call_args_list] == pairs
    totals = sorted(counted(INFOS[name])["total"] / 1e9 for name in COUNTED)
    assert (pairs[0][1], pairs[-1][1]) == (totals[0], totals[-1])
    fig.savefig.assert_called_once_with("x.png")
    assert "qwen3-30b-a3b" in capsys.readouterr().out


def test_the_models_draw_their_parts(monkeypatch, capsys):
    fig, (total, active) = drawn(monkeypatch)
    assert main_params(["mixtral-8x7b", "deepseek-v3", "--plot", "x.png"]) == 0
    for axes, key in ((total, "total"), (active, "active")):
        ends = [0.0, 0.0]
        for call in axes.barh.call_args_list:
            assert call.kwargs["left"] == ends
            ends = [end + width for end, width in zip(ends, call.args[1], strict=True)]
        whole = [counted(INFOS[name])[key] / 1e9 for name in ("mixtral-8x7b", "deepseek-v3")]
        assert ends == pytest.approx(whole, rel=1e-12)
    fig.savefig.assert_called_once_with("x.png")
    assert "46,702,792,704" in capsys.readouterr().out


def test_a_file_that_cannot_be_drawn_is_refused(monkeypatch, capsys):
    drawn(monkeypatch)
    with pytest.raises(ValueError, match=r"--plot: expected a file name that ends in .*got 'x.txt'"):
        main_params(["mixtral-8x7b", "--plot", "x.txt"])
    capsys.readouterr()


def test_a_picture_or_the_way_to_get_one(tmp_path, capsys):
    """With matplotlib a real picture; without it the sentence that says what to install."""
    path = tmp_path / "sweep.png"
    if importlib.util.find_spec("matplotlib"):
        assert main_params(["--sweep", "num_experts", "--plot", str(path)]) == 0
        header = path.read_bytes()[:24]
        assert header[:8] == b"\x89PNG\r\n\x1a\n" and int.from_bytes(header[16:20], "big") == 2250
    else:
        with pytest.raises(ImportError, match=r"plots need matplotlib .*; install refmoe\[plot\]"):
            main_params(["--sweep", "num_experts", "--plot", str(path)])
        assert not path.exists()
    capsys.readouterr()


def test_counting_loads_neither_matplotlib_nor_the_layer():
    code = (
        "import sys; from refmoe.models.accounting.command import main_params; main_params(['mixtral-8x7b']);"
        "sys.exit('matplotlib' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
