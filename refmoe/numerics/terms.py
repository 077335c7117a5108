"""What `Numerics.sum` adds: stored arrays, rows gathered from one, products of two of these.   Spec 6.4"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Gathered:
    """Stands for rows[index], and where the index is -1 for a term that is not there: +0, whatever it is multiplied by.

    rows (N, D), index (T,) -> an array (T, D) that is not made where an engine can read it from `rows`
    """

    rows: object
    index: object



def factors_of(term):
    """(array, index or None) of each factor of a term, as engines read them."""
    factors = term if isinstance(term, tuple) else (term,)
    return [(f.rows, f.index) if isinstance(f, Gathered) else (f, None) for f in factors]


def value_of(factors, widen=lambda array: array):
    """The array that the factors of a term stand for; each is widened first."""
    made = None
    for array, index in factors:
        array = widen(array if index is None else _gather(array, index))
        made = array if made is None else made * array
    for _, index in factors if len(factors) > 1 else ():
        made = made if index is None else np.where((index >= 0)[:, None], made, made.dtype.type(0))
    return made


def _gather(rows, index):
    if len(rows) == 0:
        return np.zeros((len(index), rows.shape[1]), rows.dtype)
    return np.where((index >= 0)[:, None], rows[index], rows.dtype.type(0))
