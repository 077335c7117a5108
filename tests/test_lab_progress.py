"""The lab's live line: plain, with rich, cleared when it ends or is interrupted, and none where nobody looks."""

import io
import sys
import types

import pytest

from refmoe.lab.progress import live


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def plain(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.console", None)


def test_a_plain_line_tells_where_it_is_and_is_cleared(plain):
    with live("E1", screen := Terminal()) as progress:
        progress(3, 15, "none, seed 1")
    assert screen.getvalue() == "\r\033[KE1  3 of 15  none, seed 1\r\033[K"


def test_an_interruption_stands_on_a_line_of_its_own(plain):
    screen = Terminal()
    with pytest.raises(KeyboardInterrupt), live("E1", screen) as progress:
        progress(3, 15, "none, seed 1")
        raise KeyboardInterrupt
    assert screen.getvalue().endswith("\r\033[K")


def test_nothing_is_drawn_where_nobody_looks():
    with live("E1", screen := io.StringIO()) as progress:
        progress(1, 2, "")
    assert screen.getvalue() == ""


def test_rich_keeps_the_line_where_it_is_installed(monkeypatch):
    told = []

    class Progress:
        def __init__(self, *columns, console, transient):
            assert transient and console == "console"

        def __enter__(self):
            return self

        def __exit__(self, *error):
            told.append("closed")

        def add_task(self, title, **about):
            return title

        def update(self, task, **about):
            told.append((task, about["completed"], about["total"], about["word"]))

    column = dict.fromkeys(("BarColumn", "MofNCompleteColumn", "TextColumn", "TimeElapsedColumn"), lambda *about: None)
    monkeypatch.setitem(sys.modules, "rich", types.ModuleType("rich"))
    monkeypatch.setitem(sys.modules, "rich.console", types.SimpleNamespace(Console=lambda file: "console"))
    monkeypatch.setitem(sys.modules, "rich.progress", types.SimpleNamespace(Progress=Progress, **column))
    with live("E1", Terminal()) as progress:
        progress(3, 15, "none, seed 1")
    assert told == [("E1", 3, 15, "none, seed 1"), "closed"]
