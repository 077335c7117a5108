"""The bytes a decoder reads: the text of the law, or a file of the user's; batches by integer recipe."""

from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..models.presets import spec_folder
from ..recipes import generate_ids
from ..refusals import require

HELD_OUT = 10  # one part of so many, the last, is not trained on


class Corpus(NamedTuple):
    """Bytes, the digest that names them in a run's key, and where they came from."""

    source: str
    digest: str  # SHA-256
    data: object  # (L,) uint8


def load_corpus(path=None):
    """A file's bytes, or without a path those of the chapters in `spec/`, in the order of their names.

    Raises ValueError for a file that cannot be read or holds less than 1024 bytes.
    """
    files = sorted(spec_folder().glob("*.md")) if path is None else [Path(path)]
    raw = b"".join(map(_read, files))
    fix = "give a longer file, or leave it out for the text of spec/"
    require(len(raw) >= 1024, ValueError, "text", "at least 1024 bytes", f"{len(raw)} in {path}", fix)
    source = "spec/*.md" if path is None else Path(path).name
    return Corpus(source, sha256(raw).hexdigest(), np.frombuffer(raw, np.uint8))


def _read(path):
    try:
        return path.read_bytes()
    except OSError as error:
        fix = "give another, or leave it out for the text of spec/"
        why = error.strerror or type(error).__name__
        raise ValueError(f"text: expected a file that can be read, got {str(path)!r} ({why}); {fix}") from None


def check_length(corpus, context):
    """What is held out must hold a window. Raises ValueError."""
    wanted = f"more than {context} bytes held out, a tenth of it: what the context reads"
    fix = "give a longer text or a shorter context"
    require(len(held_out_part(corpus)) > context, ValueError, "text", wanted, len(held_out_part(corpus)), fix)


def training_part(corpus):
    """All but the last tenth."""
    return corpus.data[: len(corpus.data) - len(corpus.data) // HELD_OUT]


def held_out_part(corpus):
    """The last tenth."""
    return corpus.data[len(corpus.data) - len(corpus.data) // HELD_OUT :]


def draw_batch(data, sequences, context, seed, step):
    """Windows of the data at places drawn for this step, and the same one byte on: tokens, targets (B, S) int64."""
    fix = "give a longer text or a shorter context"
    require(len(data) > context, ValueError, "text", f"more than {context} bytes to read from", len(data), fix)
    starts = generate_ids(f"batch.{step}", (sequences,), seed, len(data) - context)
    return windows(data, starts, context)


def windows(data, starts, context):
    """tokens, targets (B, S) of the windows that start there."""
    rows = data[starts[:, None] + np.arange(context + 1)].astype(np.int64)
    return rows[:, :-1], rows[:, 1:]
