"""Skips are counted: with --check-skips the run fails when the skipped tests are not those of tests/skips.txt.

With workers (pytest-xdist) the first process counts; what a worker skips while it collects comes by `workeroutput`.
"""

from pathlib import Path

import pytest

LISTED = Path(__file__).parent / "skips.txt"


def pytest_addoption(parser):
    parser.addoption("--check-skips", action="store_true", help="fail if the skipped tests differ from tests/skips.txt")


def pytest_configure(config):
    if config.getoption("--check-skips"):
        of_a_worker = hasattr(config, "workeroutput")
        config.pluginmanager.register(
            CollectedSkips() if of_a_worker else SkipCounter(read_skips(LISTED.read_text(encoding="utf-8")))
        )


class SkipCounter:
    """Collects the ids of skipped tests, prints them, and turns a difference from the list into a failure."""

    def __init__(self, listed):
        self.listed, self.seen = set(listed), set()

    def pytest_runtest_logreport(self, report):
        if report.skipped and not hasattr(report, "wasxfail"):
            self.seen.add(report.nodeid)

    def pytest_collectreport(self, report):
        if report.skipped:
            self.seen.add(report.nodeid)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node):
        self.seen.update(getattr(node, "workeroutput", {}).get("collected_skips", ()))

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session, exitstatus):
        if exitstatus == pytest.ExitCode.OK and self.differences():
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter):
        terminalreporter.section("skipped tests")
        for name in sorted(self.seen) or ["none"]:
            terminalreporter.line(name)
        for line in self.differences():
            terminalreporter.line(line, red=True)

    def differences(self):
        """Lines that say how the skipped tests differ from the list; none if they agree."""
        extra = [f"skipped but not in tests/skips.txt: {name}" for name in sorted(self.seen - self.listed)]
        return extra + [f"in tests/skips.txt but not skipped: {name}" for name in sorted(self.listed - self.seen)]


class CollectedSkips:
    """What a worker skipped while it collected, which it must pass on by hand."""

    def __init__(self):
        self.seen = []

    def pytest_collectreport(self, report):
        if report.skipped:
            self.seen.append(report.nodeid)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session):
        session.config.workeroutput["collected_skips"] = self.seen


def read_skips(text):
    """test id -> reason, from lines `test id  # reason`; a skip without a reason is an error."""
    listed = {}
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            name, mark, reason = line.partition("  # ")
            if not (mark and reason.strip()):
                raise pytest.UsageError(f"tests/skips.txt: expected `test id  # reason`, got {line!r}")
            listed[name.strip()] = reason.strip()
    return listed
