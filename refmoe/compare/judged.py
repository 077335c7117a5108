"""A submission against a golden case: every stage that is there, in causal order.   Spec 7.12"""

from typing import NamedTuple

import numpy as np

from ..config import MoEConfig
from ..golden.digests import combined_digest, sha256, tensor_digest, to_codes
from ..golden.errors import BundleError
from ..golden.inputs import is_expert_tensor
from ..numerics import Numerics
from ..refusals import require, require_instance, require_listener, shown
from ..safetensors import element_bytes
from .groups import grouping
from .selected import Selected, judge_selection
from .stages import is_late, is_made, passage, submission
from .trends import Trend, Trends
from .verdicts import PASSED, SUSPICIOUS, WRONG, Verdict, judge, judge_by_expert

SELECTION = "routing.topk_indices"


class Mine(NamedTuple):
    """A submitted tensor: its elements as float64 or int64, and its type as safetensors calls it.

    values: an array; for gradients of expert weights anything with `shape` and `dtype` that is indexed by the expert.
    """

    values: object
    dtype: str


class Comparison(NamedTuple):
    """All that is said of a submission."""

    verdicts: list  # in causal order
    missing: list  # tensors of the case that were not submitted
    unknown: list  # names that the case does not have
    free: int  # tokens that may route either way
    swapped: int  # of them, those that did
    excused: int  # of them, those that could not be judged as the selection is not known
    accumulator: object
    law: object  # the passage by the law, for guesses
    own: object  # the passage on the submission's own tensors

    @property
    def first(self):
        """The first verdict that is not "passed", in causal order, wrong or suspicious; or None."""
        return next((v for v in self.verdicts if v.verdict != PASSED), None)

    def passed(self, rigorous=False):
        """Did every stage pass? `rigorous` accepts what is only suspicious."""
        return all(v.verdict == PASSED or (rigorous and v.verdict == SUSPICIOUS) for v in self.verdicts)


def compare_tensors(config, inputs, num, mine, accumulator, rows=None, say=None):
    """mine: name -> Mine. rows: name -> row of the manifest, whose digests the recomputed case must have.

    Raises ValueError for a tensor that cannot be judged as it is, BundleError where the case is not the bundle's.
    """
    require_instance("config", config, MoEConfig, "use load_preset or MoEConfig.from_dict")
    require_instance("num", num, Numerics, "use Numerics()")
    ok = isinstance(mine, dict) and all(isinstance(one, Mine) for one in mine.values())
    require(ok, TypeError, "mine", "a dictionary from names to Mine", type(mine).__name__, "wrap each array in a Mine")
    ok = rows is None or (isinstance(rows, dict) and all(isinstance(row, dict) for row in rows.values()))
    require(ok, TypeError, "rows", "a dictionary of the manifest's rows, or None", shown(rows), "key them by name")
    require_listener("say", say)
    say = say or str
    say("the law's values")
    if not any(name.startswith("grads.") for name in mine):
        inputs = inputs._replace(d_y=None)  # nothing of the way back is asked for
    law = passage(config, inputs, num, accumulator)
    _check_digests(law, num, rows)
    unknown = sorted(mine.keys() - law.tensors.keys())
    mine = {name: mine[name] for name in law.tensors if name in mine}
    _check_shapes(mine, law)
    say("the selection")
    selected, before = _select(config, inputs, num, mine, accumulator, law)
    replay = _replayed(selected, law, before)
    routed = law if replay is None else passage(config, inputs, num, accumulator, replay)
    say("each stage on your own inputs")
    own = passage(config, inputs, num, accumulator, replay, submission(routed, mine))
    excused = selected.free if SELECTION not in mine and selected.free.any() else None
    routed, own = _with_ranking(routed, law), _with_ranking(own, before)
    verdicts = [_verdict(n, mine[n], routed, own, selected, excused, config, num, accumulator) for n in mine]
    missing = [n for n in law.tensors if n not in mine]
    some = 0 if excused is None else int(excused.sum())
    free = int(selected.free.sum())
    return Comparison(verdicts, missing, unknown, free, selected.swapped, some, accumulator, routed, own)


def _check_digests(law, num, rows):
    for name, row in (rows or {}).items():
        if name not in law.tensors:
            continue
        if _digest(name, law.tensors[name], row["dtype"]) != row["sha256"]:
            raise BundleError("manifest.json", name, "does not follow from the bundle's inputs; run `refmoe check`")


def _digest(name, array, dtype):
    if is_late(array):
        made = (to_codes(array.stored(e), dtype) for e in range(len(array)))
        return combined_digest(sha256(element_bytes(codes)) for codes in made)
    return tensor_digest(to_codes(np.asarray(array), dtype), is_expert_tensor(name))


def _check_shapes(mine, law):
    for name, got in mine.items():
        array = law.tensors[name]
        kind, wanted = got.values.dtype.kind, array.dtype.kind
        if tuple(got.values.shape) != array.shape and _same_rows(name, got, array):
            raise ValueError(f"{name}: expected shape {array.shape}, got {got.values.shape}; submit the case's layout")
        if (kind == "f") != (wanted == "f"):
            kinds = "floats" if wanted == "f" else "integers"
            raise ValueError(f"{name}: expected {kinds}, got {got.dtype}; convert it")


def _same_rows(name, got, array):
    """Rows in expert order are as many as the selection says, which may be another one."""
    return not (len(got.values.shape) == array.ndim and got.values.shape[1:] == array.shape[1:] and "row" in name)


def _with_ranking(run, before):
    """A replayed selection ranks nothing: what was ranked is taken from the passage before it."""
    return run._replace(tensors=before.tensors | run.tensors)


def _replayed(selected, law, before):
    """What the later stages read: the submitted selection, else that of the submitted scores; None: the law's."""
    wanted, golden = before.record.routing.topk_indices, law.record.routing.topk_indices
    indices = wanted if selected.indices is None else selected.indices
    return None if np.array_equal(indices, golden) and np.array_equal(wanted, golden) else indices


def _select(config, inputs, num, mine, accumulator, law):
    """What is said of the selection, and the passage on the submission's own scores but with the law's selection."""
    if law.record.routing.topk_indices is None:
        return Selected(None, [], np.zeros(len(inputs.x), bool), 0), law
    early = {n: m for n, m in mine.items() if n.startswith("routing.") and is_made(law.tensors[n])}
    forward = inputs._replace(d_y=None)
    run = passage(config, forward, num, accumulator, submitted=submission(law, early)) if early else law
    got = mine.get(SELECTION)
    return judge_selection(None if got is None else got.values, run, config), run


def _verdict(name, got, law, own, selected, excused, config, num, accumulator):
    array = own.tensors[name]
    terms = max(config.hidden_size, config.intermediate_size, len(law.record.y))
    if is_late(array):
        return judge_by_expert(name, got, law.tensors[name], array, num, accumulator.drift(terms))
    if got.values.shape != array.shape:
        return flat_verdict(name, got, np.ones(1, bool), f"expected shape {array.shape}, got {got.values.shape}")
    if name == SELECTION:
        return _selection(name, got, selected, np.asarray(array))
    if array.dtype.kind != "f":
        return flat_verdict(name, got, got.values != np.asarray(array))
    if not is_made(array):
        return flat_verdict(name, got, np.zeros(1, bool), "not judged: no bound is known for it")
    view = grouping(name, array, own, config)
    rows = _excused_rows(array, excused, law)
    return judge(name, got, law.tensors[name], array, view, num, accumulator.drift(terms), rows)


def _excused_rows(array, excused, law):
    """Which rows belong to tokens whose selection is unknown; sums over tokens are judged all the same."""
    if excused is None or not array.ndim:
        return None
    if len(array) == len(excused):
        return excused
    plan = law.record.plan
    owners = plan.row_slot // plan.slot_row.shape[1] if plan is not None else np.zeros(0, int)
    return excused[owners] if len(array) == len(owners) else None


def flat_verdict(name, got, differ, note=""):
    """The verdict on integers: equal or not."""
    wrong = differ.any() and not note.startswith("not judged")
    place = tuple(map(int, np.unravel_index(int(differ.argmax()), differ.shape))) if wrong and differ.ndim else ()
    most = float("inf") if wrong else 0.0
    still = Trends(Trend(-1, 0.0, float("inf"), 0.0, float("inf")), [])
    share = 1.0 - float(differ.mean()) if differ.size else 1.0
    verdict, size = WRONG if wrong else PASSED, got.values.size
    return Verdict(name, verdict, size, share, most, most, most, place, -1, most, 0.0, 0, size, still, note)


def _selection(name, got, selected, law):
    differ = np.zeros(len(law), bool)
    differ[selected.wrong] = True
    note = selected.message
    if selected.swapped and not note:
        note = f"{selected.swapped} tokens route otherwise, as their scores are too close to call"
    return flat_verdict(name, got, differ, note)
