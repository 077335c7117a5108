"""Collects the results of the comparison and prints them as a table at the end."""

import pytest
from outside import ELSEWHERE, WRONG

COLLECTED = pytest.StashKey()


def pytest_configure(config):
    config.stash[COLLECTED] = []


@pytest.fixture
def results(request):
    return request.config.stash[COLLECTED]


def pytest_terminal_summary(terminalreporter, config):
    rows = config.stash[COLLECTED]
    if not rows:
        return
    terminalreporter.section("refmoe in float64 against transformers in float32: max|a - b| / max|b|")
    terminalreporter.line(f"{'block':34}{'forward':>9}{'gradients':>11}  {'worst gradient':18}without")
    for r in rows:
        terminalreporter.line(f"{r.name:34}{r.forward:9.1e}{r.gradient:11.1e}  {r.worst:18}{r.part}".rstrip())
    forward, gradient = max(r.forward for r in rows), max(r.gradient for r in rows)
    terminalreporter.line(f"{f'worst of {len(rows)}':34}{forward:9.1e}{gradient:11.1e}")
    terminalreporter.section("not compared: not a routed feed-forward", sep="-")
    for name, reason in ELSEWHERE.items():
        terminalreporter.line(f"{name:24}{reason}")
    for name, (reason, lines) in WRONG.items():
        terminalreporter.section(f"not compared: {name} is itself wrong", sep="-")
        terminalreporter.line(reason + ":" + lines.rstrip())
