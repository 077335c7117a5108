"""A live line on a terminal: rich's when it is installed, a plain one otherwise, none elsewhere."""

import sys
from contextlib import contextmanager


@contextmanager
def live(title, stream=None):
    """A function (done, total, word) that keeps one line up to date."""
    stream = stream or sys.stderr
    if not stream.isatty():
        yield lambda done, total, word: None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    except ImportError:
        yield from _plain(title, stream)
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, TextColumn("{task.fields[word]}"), console=Console(file=stream), transient=True) as bar:
        task = bar.add_task(title, total=None, word="")
        yield lambda done, total, word: bar.update(task, completed=done, total=total, word=word)


def _plain(title, stream):
    """The line is cleared at the end, and where an interruption is told of on it."""
    try:
        yield lambda done, total, word: print(f"\r\033[K{title}  {done} of {total}  {word}", end="", file=stream,
                                              flush=True)  # fmt: skip
    finally:
        print("\r\033[K", end="", file=stream, flush=True)
