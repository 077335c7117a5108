"""`refmoe compare` from end to end: statuses, reports, guesses, files that nobody vouches for."""

import json
import re
import xml.etree.ElementTree as ElementTree
import zlib
from dataclasses import replace

import numpy as np
import pytest
from other_kernels import Case, Other, mine_of, plain_config

import refmoe
from refmoe.__main__ import main
from refmoe.compare.guesses import HYPOTHESES, guesses
from refmoe.compare.page import _colours, _png
from refmoe.formats import round_to
from refmoe.golden import write_bundle
from refmoe.safetensors import write_tensors
from refmoe.writing import write_whole


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    case = Case(plain_config(experts={"shared_intermediate_size": 16}), 24)
    directory = tmp_path_factory.mktemp("compare") / "bundle"
    write_bundle(directory, case.config, case.num, refmoe.SPEC_VERSION, "a <small> case", 24, case.rows)
    return case, directory


def save(path, arrays):
    floats = {n: ("F32", np.ascontiguousarray(a)) for n, a in arrays.items() if a.dtype == np.float32}
    rest = {n: ("I64", np.ascontiguousarray(a)) for n, a in arrays.items() if a.dtype == np.int64}
    write_tensors(path, floats | rest)
    return path


PART = ["experts.hidden_rows", "experts.y_rows", "routed", "grads.params.w_down"]


def part(arrays):
    return {name: arrays[name] for name in PART}


def spoiled(arrays):
    rows = arrays["experts.y_rows"].copy()
    rows[3] *= np.float32(1.5)
    return arrays | {"experts.y_rows": rows}


# --- statuses and reports --------------------------------------------------------------------------------------------


def test_a_correct_submission_passes(bundle, tmp_path, capsys):
    case, directory = bundle
    mine = save(tmp_path / "mine.safetensors", case.of())
    assert main(["compare", str(directory), str(mine)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("passed: ")
    assert "grads.params.w_down" in out


def test_a_wrong_stage_is_named_first(bundle, tmp_path, capsys):
    case, directory = bundle
    mine = save(tmp_path / "mine.safetensors", spoiled(case.of()))
    assert main(["compare", str(directory), str(mine)]) == 1
    out = capsys.readouterr().out
    assert out.startswith("NOT PASSED")
    assert "first: experts.y_rows (section 3.1) is wrong; worst at [3, " in out
    assert "what it reads had moved it by" in out


def test_reports_for_machines_say_the_same(bundle, tmp_path, capsys):
    case, directory = bundle
    mine = save(tmp_path / "mine.safetensors", spoiled(part(case.of())) | {"extra": np.zeros(2, np.float32)})
    assert main(["compare", str(directory), str(mine), "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert (said["passed"], said["first"], said["unknown"]) == (False, "experts.y_rows", ["extra"])
    assert main(["compare", str(directory), str(mine), "--junit"]) == 1
    suite = ElementTree.fromstring(capsys.readouterr().out)
    bad = [c.get("name") for c in suite if len(c)]
    assert [s["name"] for s in said["stages"] if s["verdict"] != "passed"] == bad
    assert int(suite.get("failures")) == len(bad)


def test_the_page_is_whole_and_fetches_nothing(bundle, tmp_path):
    case, directory = bundle
    mine, page = save(tmp_path / "mine.safetensors", spoiled(part(case.of()))), tmp_path / "page.html"
    assert main(["compare", str(directory), str(mine), "--html", str(page)]) == 1
    text = page.read_text(encoding="utf-8")
    assert text.rstrip().endswith("</html>")
    assert "a &lt;small&gt; case" in text
    assert "expert 5" in text
    assert not any(word in text for word in ("http", "<script", "@import", "url("))
    pictures = re.findall(r'src="([^"]*)"', text)
    assert len(pictures) == len(PART)
    assert all(one.startswith("data:image/png;base64,") for one in pictures)


def test_the_map_is_a_picture_of_the_shares():
    """Decoded by hand: white, near the bound, and two powers of ten beyond it."""
    data = _png(_colours(np.array([[0.0, 1.0], [10.0, 1e6]])))
    chunks, at = {}, 8
    while at < len(data):
        size, kind = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        chunks[kind] = data[at + 8 : at + 8 + size]
        assert int.from_bytes(data[at + 8 + size : at + 12 + size]) == zlib.crc32(data[at + 4 : at + 8 + size])
        at += 12 + size
    assert chunks[b"IHDR"] == bytes([0, 0, 0, 2, 0, 0, 0, 2, 8, 2, 0, 0, 0])
    rows = zlib.decompress(chunks[b"IDAT"])
    assert list(rows) == [0, 255, 255, 255, 255, 195, 55, 0, 195, 20, 40, 120, 20, 40]


def test_nothing_half_written_is_left(tmp_path):
    page = tmp_path / "page.html"
    page.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(page, "new \ud800")
    assert page.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]


def test_a_map_renames_and_only_rigorous_accepts_what_is_suspicious(bundle, tmp_path, capsys):
    case, directory = bundle
    rows = case.of()["experts.gate_rows"].astype(np.float64)
    mine = save(tmp_path / "mine.safetensors", {"g": (rows * (1 + 2**-19)).astype(np.float32)})
    names = tmp_path / "names.json"
    names.write_text('{"g": "experts.gate_rows"}')
    args = ["compare", str(directory), str(mine), "--map", str(names)]
    assert main(args) == 1
    assert "suspicious" in capsys.readouterr().out
    assert main([*args, "--rigorous"]) == 0
    assert main(["compare", str(directory), str(mine)]) == 2
    assert "use --map" in capsys.readouterr().err


# --- guesses ---------------------------------------------------------------------------------------------------------


def changed(**fields):
    def arrays(case):
        params = case.inputs.params
        return case.of(params=params._replace(**{name: of(params) for name, of in fields.items()}))

    return arrays


def interleaved(params):
    return np.stack([params.w_gate, params.w_up], axis=2).reshape(len(params.w_gate), -1, params.w_gate.shape[2])


def halves(params):
    return np.concatenate([params.w_gate, params.w_up], axis=1)


def routed_otherwise(**fields):
    return lambda case: case.of(config=replace(case.config, routing=replace(case.config.routing, **fields)))


class Twice(Other):
    def sum(self, name, terms):
        return super().sum(name, [(t[0] * t[0], t[1]) if name == "routed" else t for t in terms])


class Unweighted(Other):
    def sum(self, name, terms):
        return super().sum(name, [t[1] if name == "routed" else t for t in terms])


class RoundedBefore(Other):
    def evaluate(self, name, formula, *stored, core=0, **constants):
        if name == "hidden_rows":
            stored = [round_to(a.astype(np.float64), "bf16") for a in stored]
        return super().evaluate(name, formula, *stored, core=core, **constants)


class NoShared(Other):
    def sum(self, name, terms):
        return super().sum(name, terms[:1] if name == "y" else terms)


class Saturated(Other):
    def contract(self, name, x_rows, w, offsets=None, bias=None):
        out = super().contract(name, x_rows, w, offsets, bias)
        return np.clip(out, -6, 6) if name == "up_rows" else out


class Biased(Other):
    """The weights come from the scores that were ranked."""

    def evaluate(self, name, formula, *stored, core=0, **constants):
        if name == "topk_weights":
            stored = (stored[0] + self.bias, *stored[1:])
        return super().evaluate(name, formula, *stored, core=core, **constants)


def biased(case):
    kind = type("Leak", (Biased,), {})
    chosen = case.of(refmoe.Numerics)["routing.topk_indices"]
    kind.bias = case.inputs.params.selection_bias[chosen]
    return case.of(kind)


FFN = ["experts.gate_rows", "experts.up_rows"]
WEIGHTS = ["routing.scores", "routing.topk_weights"]
MISTAKES = {
    "gate and up are swapped": (changed(w_gate=lambda p: p.w_up, w_up=lambda p: p.w_gate), ["y"]),
    "gate and up are interleaved": (
        changed(w_gate=lambda p: interleaved(p)[:, :24].copy(), w_up=lambda p: interleaved(p)[:, 24:].copy()), FFN),
    "gate and up are two halves": (
        changed(w_gate=lambda p: halves(p)[:, ::2].copy(), w_up=lambda p: halves(p)[:, 1::2].copy()), FFN),
    "w_down is transposed": (changed(w_down=lambda p: p.w_down.swapaxes(1, 2).copy()), ["experts.hidden_rows", "y"]),
    "each expert has the weights of the next": (
        changed(**{n: lambda p, n=n: np.roll(getattr(p, n), -1, axis=0) for n in ("w_gate", "w_up", "w_down")}), ["y"]),
    "the weights are not renormalised": (routed_otherwise(normalize=False, norm_eps=0.0), WEIGHTS),
    "the scaling factor is left out": (routed_otherwise(scaling_factor=1.0), WEIGHTS),
    "the selection bias leaked": (biased, WEIGHTS),
    "the weights are applied twice": (lambda case: case.of(Twice), ["routed", "y"]),
    "the weights are not applied": (lambda case: case.of(Unweighted), ["y"]),
    "gate and up are rounded to bf16": (lambda case: case.of(RoundedBefore), [*FFN, "experts.hidden_rows"]),
    "the shared expert is missing": (lambda case: case.of(NoShared), ["y"]),
    "saturated at 6, the largest value of E2M1": (lambda case: case.of(Saturated), FFN),
}  # fmt: skip


@pytest.fixture(scope="module")
def square():
    """Experts as wide as tokens, so that a transposed matrix fits; DeepSeek-V3's rule of weights; large tokens."""
    routing = {"score_fn": "sigmoid", "normalize": True, "norm_eps": 1e-20, "scaling_factor": 2.5}
    routing["selection_bias"] = True
    config = plain_config(hidden_size=24, routing=routing, experts={"shared_intermediate_size": 16})
    x = Case(config, 16).inputs.x * np.float32(64)
    return Case(config, None, arrays={"x": x})


@pytest.mark.parametrize("text", MISTAKES)
def test_the_cause_is_guessed(square, text):
    make, names = MISTAKES[text]
    arrays = make(square)
    comparison = square.compare(arrays, names)
    mine = {n: mine_of(arrays[n]) for n in names}
    found = guesses(comparison, mine, square.config, square.inputs, square.num)
    assert any(text in guess for guess in found), (comparison.first and comparison.first.name, found)
    assert len(found) <= 2, "a guess that always fits says nothing"


def test_what_is_right_gets_no_guess(square):
    arrays = square.of()
    assert guesses(square.compare(arrays), {}, square.config, square.inputs, square.num) == []


@pytest.mark.parametrize("preset", ["phi-3.5-moe", "switch-base-8"])
@pytest.mark.filterwarnings("error")
def test_a_hypothesis_that_no_configuration_can_be_is_no_guess(preset):
    """SparseMixer's weights are never renormalised; one expert's are not without a warning, which is not the user's."""
    case = Case(refmoe.load_preset(preset, scale="minimal"), 16)
    arrays = {"y": case.of()["y"] + np.float32(1)}
    comparison, mine = case.compare(arrays), {"y": mine_of(arrays["y"])}
    assert comparison.first.name == "y"
    assert guesses(comparison, mine, case.config, case.inputs, case.num) == []


def test_every_hypothesis_can_be_told_or_is_refused(square):
    law = square.compare({"y": square.of()["y"]}).own
    for text, (_, change) in HYPOTHESES.items():
        made = change(square.config, square.inputs.params, law)
        assert made is None or made.config is not None, text


# --- files that nobody vouches for -----------------------------------------------------------------------------------


def test_every_truncation_and_altered_header_of_a_submission_is_refused_with_one_line(bundle, tmp_path, capsys):
    case, directory = bundle
    whole = save(tmp_path / "mine.safetensors", {"y": case.of()["y"][:1]}).read_bytes()
    bad = tmp_path / "bad.safetensors"
    header = 8 + int.from_bytes(whole[:8], "little")
    spoilt = [whole[:n] for n in range(0, len(whole), 7)]
    spoilt += [whole[:n] + bytes([whole[n] ^ 4]) + whole[n + 1 :] for n in range(0, header - 4, 3)]
    for data in spoilt:
        bad.write_bytes(data)
        assert main(["compare", str(directory), str(bad)]) == 2, data[:header]
        err = capsys.readouterr().err
        assert err.startswith("refmoe: ")
        assert len(err.splitlines()) == 1


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1}', '{"a": "y", "b": "y"}', '{"a": "y", "a": "z"}', "{" * 5000])
def test_a_map_that_is_not_one_is_refused(bundle, tmp_path, capsys, text):
    case, directory = bundle
    mine, names = save(tmp_path / "mine.safetensors", {"y": case.of()["y"]}), tmp_path / "names.json"
    names.write_text(text)
    assert main(["compare", str(directory), str(mine), "--map", str(names)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_an_altered_bundle_is_no_referee(bundle, tmp_path, capsys):
    case, directory = bundle
    mine = save(tmp_path / "mine.safetensors", {"y": case.of()["y"]})
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in directory.iterdir():
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        (copy / path.name).write_bytes(data)
    assert main(["compare", str(copy), str(mine)]) == 2
    assert main(["compare", str(tmp_path / "none"), str(mine)]) == 2
    assert main(["compare", str(directory), str(mine), "--accumulator", "f31"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 3
