"""`refmoe bench`: who is called when, with pretended contestants by a pretended clock."""

import types

import pytest

from refmoe.__main__ import parser
from refmoe.bench import children, command, measure
from refmoe.bench.cases import make_case, plain_config


def options():
    return command.options_of(parser().parse_args(["bench", "--quick"]))


class Turn:
    """Stands for a child whose every call takes as long, by a clock of its own."""

    def __init__(self, seconds):
        self.seconds, self.now = seconds, 0.0

    def ask(self, message, patience):
        self.now += self.seconds
        return {"seconds": self.seconds}

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        pass


@pytest.mark.parametrize(("seconds", "rounds"), [(1.0, 5), (3.0, 5), (4.0, 4), (9.0, 3), (30.0, 2), (70.0, 1)])
def test_rounds_end_with_the_samples_or_the_seconds(seconds, rounds, monkeypatch):
    """All samples, or no round that begins after 30 seconds; but three, unless those are far beyond."""
    turn = Turn(seconds)
    monkeypatch.setattr(measure, "time", turn)
    made = measure.alternate([(turn, "a"), (turn, "b")], options() | {"budget": 30.0, "samples": 5})
    assert [len(taken) for taken in made.values()] == [rounds, rounds]


class Pretended:
    """A contestant whose calls take what is said, by one clock for all; `calls` is the order of them all."""

    now, calls = 0.0, []

    def __init__(self, seconds, dies=None):
        self.seconds, self.dies, self.alive = seconds, dies, True

    def __call__(self, name, *about):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def is_alive(self):
        return self.alive

    def ask(self, message, patience):
        if message["do"] == "load":
            names = list(self.seconds)
            return {"settings": names, "failed": {}, "facts": {}, "errors": {}, "first_seconds": self.seconds}
        if message["setting"] == self.dies:
            raise children.ChildFailed("no more", "died")
        Pretended.now += self.seconds[message["setting"]]
        Pretended.calls.append(message["setting"])
        return {"seconds": self.seconds[message["setting"]]}


def rows_beside(monkeypatch, peer, budget=30.0, samples=9):
    """({setting: row}, failures) of a pretended peer beside a pretended refmoe."""
    monkeypatch.setattr(Pretended, "now", 0.0)
    monkeypatch.setattr(Pretended, "calls", [])
    monkeypatch.setattr(measure, "time", types.SimpleNamespace(monotonic=lambda: Pretended.now, sleep=lambda _: None))
    monkeypatch.setattr(measure, "Child", peer)
    chosen, case = options() | {"budget": budget, "samples": samples}, make_case("case", plain_config(64, 32, 8, 2), 4)
    house = Pretended({"chain x2": 0.1, "exact x2": 0.2})
    rows, failures = measure.one_peer("peer", None, None, case, chosen, house, list(house.seconds))
    return {row["setting"]: row for row in rows}, failures


def test_a_slow_setting_does_not_take_the_rounds_of_the_others(monkeypatch):
    rows, failures = rows_beside(monkeypatch, Pretended({"eager": 100.0, "batched": 2.0, "grouped": 1.0}))
    assert {name: len(row["samples"]) for name, row in rows.items()} == {"batched": 9, "grouped": 9, "eager": 2}
    assert {name: [len(taken) for taken in row["refmoe"].values()] for name, row in rows.items()} == {
        "batched": [9, 9], "grouped": [9, 9], "eager": [6, 6]}  # fmt: skip
    assert [row["alone"] for row in rows.values()] == [False, False, True] and not failures
    first = Pretended.calls.index("eager")
    assert {"batched", "grouped"} <= set(Pretended.calls[:first]) and set(Pretended.calls[first:]) == {
        "eager", "chain x2", "exact x2"}  # fmt: skip


@pytest.mark.parametrize(("seconds", "rounds"), [(31.0, 3), (70.0, 2), (121.0, 1)])
def test_a_slow_setting_has_few_rounds_of_its_own_with_refmoe_thrice_in_each(seconds, rounds, monkeypatch):
    row = rows_beside(monkeypatch, Pretended({"eager": seconds}))[0]["eager"]
    assert len(row["samples"]) == rounds and len(row["refmoe"]["chain x2"]) == 3 * rounds


def test_settings_within_the_budget_have_the_fewest_rounds_whatever_they_take(monkeypatch):
    rows, _ = rows_beside(monkeypatch, Pretended(dict.fromkeys("abcdef", 29.0)))
    assert [len(row["samples"]) for row in rows.values()] == [3] * 6


def test_each_sequence_wakes_refmoe_with_a_call_that_does_not_count(monkeypatch):
    rows, _ = rows_beside(monkeypatch, Pretended({"eager": 100.0, "grouped": 1.0}), samples=3)
    counted = sum(len(row["refmoe"]["chain x2"]) for row in rows.values())
    assert Pretended.calls[:5] == ["chain x2", "exact x2", "chain x2", "exact x2", "grouped"]
    assert Pretended.calls.count("chain x2") == counted + 2


def test_a_slow_setting_that_dies_leaves_the_others(monkeypatch):
    rows, failures = rows_beside(monkeypatch, Pretended({"eager": 100.0, "grouped": 1.0}, dies="eager"))
    assert list(rows) == ["grouped"] and [f["kind"] for f in failures] == ["died"]
