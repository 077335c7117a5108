"""Three verdicts on one stage: wrong, suspicious, passed, and the figures behind them.   Spec 7.12

A tensor is measured whole, or an expert at a time where it is too large for that; what was measured of the parts joins.
"""

from typing import NamedTuple

import numpy as np

from ..formats import round_to
from .groups import Grouping
from .maps import error_map, stacked
from .stages import coarser_formats
from .trends import DEVIATIONS, Moments, Trends, joined, row_moments, trends_of, worst_block

PASSED, SUSPICIOUS, WRONG = "passed", "suspicious", "wrong"


class Verdict(NamedTuple):
    """What is said of one submitted tensor."""

    name: str
    verdict: str
    elements: int
    matched: float  # share of elements equal to the golden ones
    ulp: float  # greatest error in units of the last place
    of_rigorous: float  # greatest error over the rigorous bound
    of_statistical: float  # greatest error over the statistical bound
    place: tuple  # of the greatest share of the statistical bound
    worst_expert: int  # -1 where the tensor has none
    added: float  # greatest error of the stage on the submission's own inputs
    inherited: float  # how far those inputs moved the stage
    unfinished: int  # elements that are not finite where the law's are
    exact: int  # elements of which no implementation may miss a bit
    trends: Trends  # slope and mean error, of the whole and of its parts
    note: str = ""
    map: object = None  # greatest share of the statistical bound by expert and part, for pictures

    @property
    def row(self):
        return int(self.place[0]) if self.place else 0


class Measured(NamedTuple):
    """What a tensor shows, or one expert's part of it."""

    elements: int
    equal: int
    ulp: float
    of_rigorous: float
    of_statistical: float
    place: tuple
    expert: int  # that of the place, or -1
    added: float
    inherited: float
    unfinished: int
    exact: int
    lost: bool  # is something not finite that should be?
    unit: float
    sums: Moments  # of the whole, one group
    by_expert: object  # Moments, one group an expert, or None
    block: object  # the worst Trend of a block of rows, or None
    map: object


def judge(name, got, law, own, view, num, drift, excused=None):
    """The verdict on `got` (values, dtype), given the golden tensor and the stage on the submission's own inputs.

    law, own: Tracked. view: `Grouping` of the elements. excused: rows whose numbers may differ, as their tokens may
    route either way.
    """
    return _verdict(name, _measured(name, got, law, own, view, num, drift, excused), view, drift)


def judge_by_expert(name, got, law, own, num, drift):
    """The same where law and own give an expert's part at a time, and got.values too."""
    parts, view = [], Grouping(len(own), summed=True)
    for e in range(len(own)):
        part = got._replace(values=got.values[e])
        m = _measured(name, part, law.part(e), own.part(e), Grouping(summed=True), num, drift)
        block = m.block and m.block._replace(group=e)
        parts.append(m._replace(place=(e, *m.place), expert=e, by_expert=m.sums, block=block))
    return _verdict(name, _joined(parts), view, drift)


def _measured(name, got, law, own, view, num, drift, excused=None):
    value, values, formats = own.part("value"), got.values, coarser_formats(name, got.dtype, num)
    unit = max(2.0**-row.precision for row in formats)
    with np.errstate(all="ignore"):
        error = _errors(values, value, np.asarray(law, np.float64))
        rounding, exact = _rounding(value, own.part("allowed"), formats)
        rigorous = np.nan_to_num(own.part("allowed") + rounding, nan=np.inf, posinf=np.inf)
        likely = DEVIATIONS * np.sqrt(own.part("spread")) + rounding
        statistical = np.minimum(np.nan_to_num(likely, nan=np.inf, posinf=np.inf), rigorous)
        if excused is not None:
            error[excused] = np.where(np.isfinite(values[excused]), 0.0, error[excused])  # no expert makes a NaN
        inherited = np.abs(value - law.part("value"))
        share, most = _share(error, statistical), _share(error, rigorous)
    place = np.unravel_index(int(share.argmax()), share.shape) if share.size and share.ndim else ()
    expert = -1 if view.labels is None or not place else int(np.broadcast_to(view.labels, share.shape)[place])
    lost = bool(((share > 1) & ~np.isfinite(values)).any())  # no rounding makes it, whatever the accumulator
    return Measured(
        values.size, int((values == np.asarray(law)).sum()), _greatest(error / _spacing(value, unit)), _greatest(most),
        _greatest(share), tuple(map(int, place)), expert, _greatest(error), _greatest(inherited),
        int((np.isfinite(value) & ~np.isfinite(values)).sum()), int(exact.sum()), lost, unit,
        *_sums(error, value, np.sqrt(own.part("coherent")), view, unit, drift), error_map(share, view.owners(share)),
    )  # fmt: skip


def _verdict(name, m, view, drift):
    experts = range(view.experts)
    by_expert = [] if m.by_expert is None else trends_of(m.by_expert, experts, m.unit, drift, view.summed)
    trends = Trends(trends_of(m.sums, [-1], m.unit, drift, view.summed)[0], by_expert, m.block)
    systematic = trends.worst.excess > 1
    verdict = WRONG if m.of_rigorous > 1 or m.lost else SUSPICIOUS if m.of_statistical > 1 or systematic else PASSED
    expert = trends.worst.group if systematic and trends.worst.group >= 0 else m.expert
    return Verdict(
        name, verdict, m.elements, m.equal / m.elements if m.elements else 1.0, m.ulp, m.of_rigorous, m.of_statistical,
        m.place, expert, m.added, m.inherited, m.unfinished, m.exact, trends, map=m.map,
    )  # fmt: skip


def _joined(parts):
    """What the parts show together: sums add, and the worst is the worst of any."""
    worst = max(parts, key=lambda m: m.of_statistical)
    blocks = [m.block for m in parts if m.block is not None]
    totals = {field: sum(getattr(m, field) for m in parts) for field in ("elements", "equal", "unfinished", "exact")}
    most = {field: max(getattr(m, field) for m in parts) for field in ("ulp", "of_rigorous", "added", "inherited")}
    by_expert = joined([m.by_expert for m in parts])
    block = max(blocks, key=lambda t: t.excess, default=None)
    return worst._replace(**totals, **most, lost=any(m.lost for m in parts), sums=by_expert.all(), by_expert=by_expert,
                          block=block, map=stacked([m.map for m in parts]))  # fmt: skip


def _rounding(value, allowed, formats):
    """(what rounding to the coarser of the formats may add, where it may add nothing).

    Where the stage itself allows nothing and each format holds the value, every implementation has its bits.
    """
    unit, least = max(2.0**-row.precision for row in formats), max(2.0 ** (row.quantum - 1) for row in formats)
    exact = allowed == 0
    if exact.any():
        for row in formats:
            exact = exact & (round_to(value, row.name, "saturate") == value)
    return np.where(exact, 0.0, unit * np.abs(value) + least), exact


def _errors(values, value, law):
    """|difference|, infinite where one is finite and the other is not; the same NaN or infinity is no error."""
    same = (values == law) | (np.isnan(values) & np.isnan(law))
    error = np.where(np.isfinite(values) & np.isfinite(value), values - value, np.inf)
    return np.where(~np.isfinite(law) & same, 0.0, error)


def _share(error, limit):
    """|error| / limit; 0 where both are 0, and where nothing is beyond the limit."""
    share = np.abs(error) / np.where(limit > 0, limit, 0.0)
    return np.where((error == 0) | np.isposinf(limit), 0.0, share)


def _spacing(value, unit):
    with np.errstate(all="ignore"):
        return 2 * unit * 2.0 ** np.floor(np.log2(np.maximum(np.abs(value), 1e-300)))


def _greatest(array):
    return float(np.max(np.abs(array), initial=0.0))


def _sums(error, value, common, view, unit, drift):
    """(Moments of the whole, Moments by expert or None, the worst Trend of a block of rows or None)."""
    count = len(error) if error.ndim else 1
    flat = [np.reshape(a, (count, -1)) for a in (error, value, common)] if error.size else [np.zeros((0, 1))] * 3
    rows, owners = row_moments(*flat), view.owners(error)
    block = worst_block(rows, owners, unit, drift, view.summed) if error.ndim == 2 else None
    by_expert = None
    if view.tokens is not None:
        parts = row_moments(flat[0][view.tokens], view.parts, flat[2][view.tokens])
        by_expert = parts.by(view.labels_of_parts, view.experts)
    elif owners is not None:
        by_expert = rows.by(owners, view.experts)
    elif view.labels is not None:
        labels = np.broadcast_to(view.labels, error.shape).reshape(-1)
        by_expert = row_moments(*(a.reshape(-1, 1) for a in flat)).by(labels, view.experts)
    return rows.all(), by_expert, block
