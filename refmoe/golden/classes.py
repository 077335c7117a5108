"""Three classes of cases: exact, rounded, invalid; and what is said of a rounded one's sums and choices.   Spec 7.10"""

from typing import NamedTuple

import numpy as np

from ..compare.measured import Measured
from ..compare.tracked import track
from ..config import MoEConfig
from ..formats import FORMATS
from ..inputs import Given
from ..numerics import Numerics
from ..recipes import assemble_params
from ..routing import route
from .cases.calls import CALLS, LAYER_GIVEN

EXACT, ROUNDED, INVALID = "exact", "rounded", "invalid"


class Measure(NamedTuple):
    """What is known of a valid case beside its values."""

    exact_in: tuple  # the formats in which nothing is rounded on the way, whatever the order; () if there is none
    stages: dict  # result -> Stage: the length of its sums and their magnitudes, where it is one
    margins: object  # (T,) K-th less (K+1)-th ranked value, where experts are ranked


def class_of(refused, exact_in):
    """One of the three."""
    return INVALID if refused else EXACT if exact_in else ROUNDED


def measure(case, arrays):
    """The Measure of a valid case with these inputs."""
    num = Measured(Numerics(profile=case.profile, store=case.store, backend="numpy"))
    config = MoEConfig.from_dict(case.config) if case.config else None
    tracked = {name: track(a) if a.dtype.kind == "f" else a for name, a in arrays.items()}
    with np.errstate(all="ignore"):
        made = CALLS[case.call](config, num, tracked, **(case.options or {}))
    made = {name: array for name, array in made.items() if isinstance(array, np.ndarray)}
    stages = {name: num.stage_of(array) for name, array in made.items()}
    exact_in = num.exact_in(arrays.values(), made.values())
    # A case whose own store rounds what it makes is not exact, whatever a wider format could hold.
    exact_in = exact_in if case.store in exact_in else ()
    return Measure(exact_in, {n: s for n, s in stages.items() if s is not None}, margins_of(case, config, arrays))


def margins_of(case, config, arrays):
    """By how much each token's choice was made; None where nothing is ranked."""
    if case.call not in ("route", "layer") or config.routing.selection == "soft":
        return None
    plain = {name.removeprefix("params."): array for name, array in arrays.items()}
    given = Given(**{name: plain[name] for name in LAYER_GIVEN if name in plain})
    params = assemble_params({n: a for n, a in plain.items() if n not in ("x", "d_y", *LAYER_GIVEN)})
    num = Numerics(profile=case.profile, store=case.store, backend="numpy")
    with np.errstate(all="ignore"):
        return route(plain.get("x"), params, config, num, given).margin


# What an accumulator of 7.12 keeps its partial sums in, or cuts its operands to; the others keep float32 or more.
KEPT_IN = {"bf16": "bf16", "fp16": "fp16", "tf32": "fp16"}


def held_to_every_bit(exact_in, dtype, accumulator, store):
    """Must a submission of this safetensors type, by this accumulator, match in every bit? Narrower ones may round."""
    types = ("F64", *(FORMATS[name].safetensors for name in exact_in))
    kept = store if accumulator == "mixed" else KEPT_IN.get(accumulator, "float32")
    return dtype in types and accumulator != "hopper-fp8" and kept in exact_in
