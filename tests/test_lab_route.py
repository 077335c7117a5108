"""`refmoe route`: what is counted is there, in the terminal, as JSON, as a picture; what is wrong is refused."""

import json

import numpy as np
import pytest

from refmoe.__main__ import main
from refmoe.lab import route, route_page
from refmoe.models import names

TEXT = b"A mixture of experts has a router, and the router has a mixture of experts. " * 4


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text.txt").write_bytes(TEXT)
    return tmp_path / "text.txt"


CHOSEN = np.array([[0, 1], [0, 2], [1, 0], [3, -1]])


def routed(**more):
    return route.Routed("by hand", 5, CHOSEN, **more)


def test_the_numbers_of_a_record_by_hand():
    seen = route.look(routed(slot_row=np.array([[0, 2], [1, -1], [3, -1], [4, -1]]), margin=np.arange(4.0),
                             scores=np.eye(5)[:4]))  # fmt: skip
    assert seen["load"] == [3, 2, 1, 1, 0] and seen["dead"] == 1 and seen["max_violation"] == 5 * 3 / 7 - 1
    assert seen["together"][0] == [0, 2, 1, 0, 0] and np.trace(np.array(seen["together"])) == 0
    assert seen["dropped"] == 2 and seen["drops_by_place"] == [0, 1, 1, 0]  # -1 of an unused slot is no drop
    assert seen["token_entropy"] == 0 and seen["margins"]["50%"] == 1.5
    even = route.look(route.Routed("even", 4, np.arange(8).reshape(8, 1) % 4))
    assert abs(even["load_entropy"] - 1) < 1e-15 and "dropped" not in even and "margins" not in even


def test_the_terminal_shows_every_number(capsys):
    seen = route.look(routed(slot_row=np.zeros((4, 2), int), margin=np.arange(4.0)))
    told = route.told(routed(), seen)
    assert "0 and 1 (2), 0 and 2 (1)" in told and "slots dropped: 0" in told and "50% of tokens below 1.5" in told
    assert [line.count("#") for line in told.splitlines()[2:7]] == [50, 33, 17, 17, 0]


@pytest.mark.parametrize("preset", ["mixtral-8x7b", "deepseek-v3", "switch-base-8", "gpt-oss-20b"])
def test_a_preset_routes_a_text(preset, text, tmp_path, capsys):
    out = tmp_path / "seen.json"
    assert main(["route", "--preset", preset, "--text", str(text), "--tokens", "64", "--json", str(out)]) == 0
    seen = json.loads(out.read_text())
    told = capsys.readouterr().out
    assert seen["tokens"] == 64 and sum(seen["load"]) % 64 == 0 and f"load of {seen['experts']} experts" in told
    assert "parameters by recipe" in told


def test_every_preset_that_chooses_can_be_looked_at():
    ids = route.np.frombuffer(TEXT[:24], np.uint8).astype(np.int64)
    for name in names()[::6]:
        assert route.look(route.route_text(name, ids, "minimal", 0))["tokens"] == 24


def test_a_router_chooses_alike_whatever_stands_behind_it(monkeypatch):
    """Experts of width 1 take the place of a layer's own: those of a full-size one do not fit in memory."""
    ids = route.np.frombuffer(TEXT[:12], np.uint8).astype(np.int64)
    slim = {name: route.route_text(name, ids, "minimal", 0) for name in names()[::3]}
    monkeypatch.setattr(route, "narrow", lambda config: config)
    for name, found in slim.items():
        whole = route.route_text(name, ids, "minimal", 0)
        for a, b in zip(found, whole, strict=True):
            assert type(a) is type(b) and (np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b), name


def test_a_layer_of_full_size_is_routed_without_its_experts():
    found = route.route_text("deepseek-v3", np.arange(4), "full", 0)
    assert found.num_experts == 256 and found.topk_indices.shape == (4, 8)


def test_a_saved_record_says_the_same_as_the_run(text, tmp_path, capsys):
    found = route.route_text("deepseek-v3", route.read_text(text, 64), "minimal", 0)
    arrays = {f"routing.{n}": getattr(found, n) for n in ("topk_indices", "scores", "margin")}
    np.savez(tmp_path / "record.npz", **arrays, **{"plan.slot_row": found.slot_row})
    assert main(["route", "--record", str(tmp_path / "record.npz"), "--json", str(tmp_path / "b.json")]) == 0
    again, first = json.loads((tmp_path / "b.json").read_text()), route.look(found)
    assert {**again, "title": ""} == {**first, "title": ""}


def test_the_picture_has_four_parts(text, tmp_path):
    picture = tmp_path / "route.png"
    assert main(["route", "--preset", "switch-base-8", "--text", str(text), "--plot", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_panels_count_in_whole_numbers_and_say_what_is_not_there(monkeypatch):
    drawn = []
    monkeypatch.setattr(route_page, "save", lambda fig, path: drawn.append(fig))
    one = route.Routed("one expert a token", 3, np.array([[0], [1], [1]]), np.array([[0], [1], [-1]]))
    for found in (one, routed(margin=np.arange(4.0))):
        route_page.draw(found, route.look(found), "a.png")
    (load, pairs, margins, drops, *_), (_, two, half, _, bar) = (fig.axes for fig in drawn)
    assert all(tick == int(tick) for axes in (load, two, bar) for tick in (*axes.get_xticks(), *axes.get_yticks()))
    said = [[t.get_text() for t in axes.texts] for axes in (pairs, margins, drops, two, half)]
    assert said == [["one expert a token"], ["no margins: nothing was ranked"], [], [], []]
    assert drops.get_title("left") == "Slots dropped: 1 of 3 (33%)" and half.get_legend()


@pytest.mark.parametrize(("words", "said"), [
    (["--preset", "mixtral-8x7b"], "--text: expected a file with --preset"),
    (["--preset", "mixtral-8x7b", "--text", "missing.txt"], "expected a file that can be read"),
    (["--preset", "nobody", "--text", "TEXT"], "preset: expected one of"),
    (["--record", "missing.npz"], "expected a file with topk_indices"),
    (["--record", "TEXT"], "--record: expected a file ending in .safetensors or .npz"),
    (["--preset", "mixtral-8x7b", "--text", "TEXT", "--plot", "no/such/a.png"], "a folder that exists"),
    (["--record", "missing.npz", "--text", "TEXT"], "None with --record"),
])  # fmt: skip
def test_what_cannot_be_shown_is_refused_in_one_sentence(words, said, text, capsys):
    assert main(["route", *(str(text) if word == "TEXT" else word for word in words)]) == 2
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1


def test_tensors_that_do_not_fit_are_refused(tmp_path, capsys):
    np.savez(tmp_path / "r.npz", topk_indices=CHOSEN, scores=np.ones((3, 5)))
    assert main(["route", "--record", str(tmp_path / "r.npz")]) == 2
    assert "scores: expected shape (4, 5)" in capsys.readouterr().err
    np.savez(tmp_path / "r.npz", topk_indices=CHOSEN, scores=np.ones((4, 2)))
    assert main(["route", "--record", str(tmp_path / "r.npz")]) == 2
    assert "expected ids below 2" in capsys.readouterr().err


def test_an_empty_text_is_refused(tmp_path, capsys):
    (tmp_path / "none").write_bytes(b"")
    assert main(["route", "--preset", "mixtral-8x7b", "--text", str(tmp_path / "none")]) == 2
    assert "at least one byte" in capsys.readouterr().err
