"""A file that a command writes: there whole, or as it was before, with the mode that open() gives."""

import os
from contextlib import contextmanager
from pathlib import Path

from .refusals import require


def check_folder(option, path):
    """Before the first minute is spent: can the file be there?  path None is none. Raises ValueError."""
    ok = path is None or Path(path).parent.is_dir()
    require(ok, ValueError, option, "a file in a folder that exists", repr(str(path)), "make the folder first")
    free = path is None or not Path(path).is_dir()
    require(free, ValueError, option, "the name of a file", f"{str(path)!r}, which is a folder", "name a file in it")


def make_folder(option, path):
    """The folder, made with those above it where it is not there. Raises ValueError."""
    fix = "choose another"
    require(str(path), ValueError, option, "the name of a folder", "an empty one", fix)
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = f"{str(path)!r} ({error.strerror})"
        raise ValueError(f"{option}: expected a folder, or a name at which one can be made, got {why}; {fix}") from None


@contextmanager
def whole(path):
    """The name of a file beside `path` that takes its place at the end; it is removed when anything ends the work.

    What a link points to is replaced, and not the link; a file that is there keeps its mode. A place that is no file,
    such as a terminal or a pipe, is written to as it is: the name is its own.
    """
    if Path(path).exists() and not Path(path).is_file():
        yield Path(path)
        return
    path = Path(path).resolve()
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        if path.exists():
            partial.chmod(path.stat().st_mode & 0o7777)
        _force(partial)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_whole(path, text):
    """The text in a file that is there whole, or as it was before."""
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _force(path):
    """Onto the disk, so that after a power cut the name does not stand for an empty file."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
