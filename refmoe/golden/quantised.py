"""Weights that a case quantises itself: made by recipe, then codes and scales, an expert at a time.   Spec 7.11.1

The row of `inputs` is that of the recipe with the scheme and its rule beside it, so a check makes the codes again.
"""

from functools import lru_cache
from math import prod

import numpy as np

from ..formats import SCHEMES, Packed, quantise, scheme_and_rule
from .packed import Experts

SOURCE = "quantised"
CACHE_BYTES = 1 << 28  # of codes of one tensor: within it every expert is quantised once, beyond it once a pass
MATRICES = ("w_gate", "w_up", "w_down")


def quantised_rows(rows, scheme, rule):
    """The rows of a case whose expert matrices are quantised; unchanged without a scheme.

    Raises ValueError for a scheme or rule that is not there, and for matrices that do not come by recipe.
    """
    if scheme is None:
        if rule is not None:
            raise ValueError(f"--scale-rule: expected beside --weights SCHEME, got {rule!r} alone; leave it out")
        return rows
    _, rule = scheme_and_rule(scheme, rule)
    names = [name for name in rows if name.startswith("params.") and name.rpartition(".")[2] in MATRICES]
    other = next((name for name in names if rows[name]["source"] != "recipe"), None)
    if other:
        raise ValueError(f"--weights: expected expert weights by recipe, got your own {other}; leave one of them out")
    return rows | {name: rows[name] | {"source": SOURCE, "scheme": scheme, "rule": rule} for name in names}


def quantised(row, weights):
    """The weights of a row as `Packed`, out of (E, M, K) values; an expert is quantised when it is asked for."""
    room = max(4, CACHE_BYTES // max(1, prod(weights.shape[1:])))
    made = lru_cache(maxsize=room)(lambda e: _expert(row, weights, e))
    first, count = made(0), len(weights)
    shape, scale_shape = first.codes.shape[1:], first.scales.shape[1:]
    codes = Experts((count, *shape), first.codes.dtype, lambda e: made(e).codes[0])
    scales = Experts((count, *scale_shape), first.scales.dtype, lambda e: made(e).scales[0])
    tensor = None
    if SCHEMES[row["scheme"]].tensor_scale:
        tensor = np.concatenate([made(e).tensor_scales for e in range(count)])
    return Packed(codes, first.format, scales, first.block, first.scale_format, tensor, first.columns)


def _expert(row, weights, e):
    values = np.asarray(weights[e]).astype(np.float32, copy=False)  # a recipe's values are float32 in every profile
    return quantise(values[None], row["scheme"], row["rule"])
