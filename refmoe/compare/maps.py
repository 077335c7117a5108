"""A small picture of where a tensor's errors are: the greatest share of the bound by expert, or run of rows.

Spec 7.12
"""

from typing import NamedTuple

import numpy as np

COLUMNS = 48  # cells of a map's row at most
LARGEST = 64  # rows of a map at most, where they are not experts
HIGHEST = 1e6  # shares beyond it look alike


class ErrorMap(NamedTuple):
    """cells (R, C): the greatest share of the statistical bound; word and firsts name the rows."""

    cells: object
    word: str  # "expert" or "rows from"
    firsts: list


def error_map(share, owners=None):
    """The map of shares (R, ...); owners: (R,) the expert of each row, ascending, or None."""
    share = np.minimum(np.nan_to_num(share, nan=HIGHEST, posinf=HIGHEST), HIGHEST)
    if not share.size:
        return None
    flat = share.reshape(len(share), -1) if share.ndim else share.reshape(1, 1)
    columns = np.arange(0, flat.shape[1], -(-flat.shape[1] // COLUMNS))
    flat = np.maximum.reduceat(flat, columns, axis=1)
    if owners is None:
        firsts = np.arange(0, len(flat), -(-len(flat) // LARGEST))
        return ErrorMap(np.maximum.reduceat(flat, firsts, axis=0), "rows from", firsts.tolist())
    firsts = np.flatnonzero(np.diff(owners, prepend=-2))
    return ErrorMap(np.maximum.reduceat(flat, firsts, axis=0), "expert", owners[firsts].tolist())


def stacked(maps):
    """The map of a tensor out of those of its experts' parts: a row each."""
    if not maps or maps[0] is None:
        return None
    return ErrorMap(np.stack([m.cells.max(axis=0) for m in maps]), "expert", list(range(len(maps))))
