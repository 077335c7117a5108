"""How far a long run has come, and how long the rest may take: a bar on a terminal, silence elsewhere.

What is to be done is known by kind (elements of weights to make, bytes of gradients to digest), each with the seconds a
unit is expected to take, so that cheap and dear pieces count for what they are.
"""

import sys
import threading
import time

INTERVAL = 0.2  # seconds between two looks


class Progress:
    """expected: kind -> (amount, seconds a unit). show(step, share, seconds left or None) is called now and then."""

    def __init__(self, expected, show, clock=time.monotonic):
        self._price = {kind: price for kind, (_, price) in expected.items()}
        self._total = sum(amount * price for amount, price in expected.values())
        self._show, self._clock, self._lock = show, clock, threading.Lock()
        self._done, self._given, self._step = 0.0, 0.0, ""
        self._since = self._shown = clock()

    def step(self, name):
        """The next part of the run begins."""
        self._step = name
        self._show(name, self.share(), None)

    def skip(self):
        """What is done so far was done by an earlier run: it says nothing about the speed of this one."""
        self._given = self._done

    def did(self, kind, amount):
        """A piece is done."""
        with self._lock:
            self._done += amount * self._price.get(kind, 0.0)
            now = self._clock()
            if now - self._shown < INTERVAL:
                return
            self._shown = now
        self._show(self._step, self.share(), self.left(now))

    def share(self):
        """Of the expected work, from 0 to 1."""
        return min(1.0, self._done / self._total) if self._total else 0.0

    def left(self, now):
        """Seconds, at the speed so far."""
        own = self._done - self._given
        return None if own <= 0 else max(0.0, (self._total - self._done) * (now - self._since) / own)


def line(step, share, left):
    """One line of text: the step, the share, a guess of the rest."""
    rest = "" if left is None else f", about {duration(left)} left"
    return f"{step} ({share:.0%}{rest})" if step else ""


def duration(seconds):
    """Seconds as people say them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Bar:
    """A bar of rich, where that is installed, on standard error."""

    def __init__(self):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rest]}")
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task("", total=1.0, rest="")

    def __call__(self, step, share, left):
        if not step:
            self._bar.stop()
            return
        self._bar.start()
        rest = f"{share:.0%}" + ("" if left is None else f", about {duration(left)} left")
        self._bar.update(self._task, description=step, completed=share, rest=rest)


def display(say):
    """What shows progress: a bar on a terminal with rich, else lines through `say`, which is silent off a terminal."""
    if sys.stderr.isatty():
        try:
            return Bar()
        except ImportError:
            pass
    return lambda step, share, left: say(line(step, share, left))
