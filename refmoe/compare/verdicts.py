"""Three verdicts on one stage: wrong, suspicious, passed, and the figures behind them.   Spec 7.12"""

from typing import NamedTuple

import numpy as np

from .stages import format_unit

PASSED, SUSPICIOUS, WRONG = "passed", "suspicious", "wrong"
DEVIATIONS = 8  # times the expected deviation, and times a standard error
FEWEST = 16  # elements of about equal weight from which a slope or a mean is told


class Trend(NamedTuple):
    """got against want over a group of elements: the least-squares slope less 1, the mean error, what each may be."""

    group: int  # an expert, or -1 for the whole tensor
    slope: float
    slope_limit: float
    bias: float
    bias_limit: float

    @property
    def excess(self):
        """How far beyond its limit; above 1 it is systematic."""
        pairs = (self.slope, self.slope_limit), (self.bias, self.bias_limit)
        return max(abs(a) / b if b else (np.inf if a else 0.0) for a, b in pairs)


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
    trend: Trend  # of the whole tensor
    by_expert: list  # Trend of each expert
    note: str = ""
    map: object = None  # greatest share of the statistical bound by expert and part, for pictures

    @property
    def row(self):
        return int(self.place[0]) if self.place else 0


def judge(name, got, law, own, view, num, drift, excused=None):
    """The verdict on `got` (values, dtype), given the golden tensor and the stage on the submission's own inputs.

    law, own: Tracked. view: `Grouping` of the elements. excused: rows that may differ, as their tokens may route
    either way.
    """
    unit, least = _exactness(name, got, own, num)
    value, values = own.part("value"), got.values
    with np.errstate(all="ignore"):
        error = _errors(values, value, np.asarray(law, np.float64))
        rounding = unit * np.abs(value) + least
        rigorous = np.nan_to_num(own.part("allowed") + rounding, nan=np.inf, posinf=np.inf)
        likely = DEVIATIONS * np.sqrt(own.part("spread")) + rounding
        statistical = np.minimum(np.nan_to_num(likely, nan=np.inf, posinf=np.inf), rigorous)
        if excused is not None:
            error[excused] = 0.0
        inherited = np.abs(value - law.part("value"))
        share, most = _share(error, statistical), _share(error, rigorous)
    whole, by_expert = trends(error, value, np.sqrt(own.part("coherent")), view, unit, drift)
    systematic = whole.excess > 1 or any(t.excess > 1 for t in by_expert)
    lost = (share > 1) & ~np.isfinite(values)  # no rounding makes it, whatever the accumulator
    verdict = WRONG if (most > 1).any() or lost.any() else SUSPICIOUS if (share > 1).any() or systematic else PASSED
    place = np.unravel_index(int(share.argmax()), share.shape) if share.size and share.ndim else ()
    return Verdict(
        name, verdict, values.size, float((values == np.asarray(law)).mean()) if values.size else 1.0,
        _greatest(error / _spacing(value, unit)), _greatest(most), _greatest(share), tuple(map(int, place)),
        _worst_expert(share, by_expert, view, place, verdict), _greatest(error), _greatest(inherited),
        int((np.isfinite(value) & ~np.isfinite(values)).sum()), whole, by_expert, map=share,
    )  # fmt: skip


def _exactness(name, got, own, num):
    """A copy of bits is exact, unless it was submitted in a narrower type."""
    unit, least = format_unit(name.rpartition(".")[2] if not name.startswith("losses.") else name, got.dtype, num)
    if own.part("origin").any():
        return unit, least
    kept = (got.values == np.asarray(own, np.float64)).all()
    narrow = {"BF16": 2.0**-8, "F16": 2.0**-11}.get(got.dtype, 0.0)
    return (0.0, 0.0) if kept or narrow == 0.0 else (narrow, least)


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
        return np.where(unit > 0, 2 * unit * 2.0 ** np.floor(np.log2(np.maximum(np.abs(value), 1e-300))), 1.0)


def _greatest(array):
    return float(np.max(np.abs(array), initial=0.0))


def _worst_expert(share, by_expert, view, place, verdict):
    """The expert of the worst trend if that is what gives it away, else the one of the worst element."""
    worst = max(by_expert, key=lambda t: t.excess, default=None)
    if worst is not None and worst.excess > 1:
        return worst.group
    if view.labels is not None and place:
        return int(np.broadcast_to(view.labels, share.shape)[place])
    return -1


# --- what is systematic ----------------------------------------------------------------------------------------------


def trends(error, value, coherent, view, unit, drift):
    """(Trend of the whole tensor, [Trend of each expert]).

    Errors that were inherited may be common to a row, or to a whole group where rows were summed over; they count as
    one.
    """
    clusters = np.broadcast_to(np.arange(len(error)).reshape(-1, *[1] * (error.ndim - 1)), error.shape) \
        if error.ndim else np.zeros((), int)  # fmt: skip
    if view.summed:
        clusters = np.zeros(error.shape, int)
    whole = _trends(error, value, coherent, np.zeros(error.shape, int), clusters, unit, drift, [-1])
    if view.tokens is not None:
        rows = np.broadcast_to(np.arange(len(view.tokens))[:, None], view.parts.shape)
        labels = np.broadcast_to(view.labels_of_parts[:, None], view.parts.shape)
        picked = error[view.tokens], view.parts, coherent[view.tokens]
        return whole[0], _trends(*picked, labels, rows, unit, drift, range(view.experts))
    if view.labels is None:
        return whole[0], []
    labels = np.broadcast_to(view.labels, error.shape)
    return whole[0], _trends(error, value, coherent, labels, clusters, unit, drift, range(view.experts))


def _trends(error, value, coherent, labels, clusters, unit, drift, groups):
    flat = [np.asarray(a).reshape(-1) for a in (error, value, coherent, labels, clusters)]
    good = np.isfinite(flat[0]) & np.isfinite(flat[1]) & np.isfinite(flat[2]) & (flat[3] >= 0)
    e, v, c, label, cluster = (a[good] for a in flat)
    size = len(groups)

    def add(x):
        return np.bincount(label, x, minlength=size)[:size]

    with np.errstate(all="ignore"):
        n, square = add(np.ones(len(e))), add(v * v)
        slope, bias = np.nan_to_num(add(e * v) / square), np.nan_to_num(add(e) / n)
        rounding = (unit * v) ** 2 / 3  # what any rounding to the format leaves, however few elements show it
        seen = np.maximum(add((v * (e - slope[label] * v)) ** 2), add(v * v * rounding))
        of_slope = (seen + _common(np.abs(v) * c, label, cluster, size)) / square**2
        seen = np.maximum(add((e - bias[label]) ** 2), add(rounding))
        of_bias = (seen + _common(c, label, cluster, size)) / n**2
        slope_limit = DEVIATIONS * np.sqrt(of_slope) + unit / 4 + drift
        bias_limit = DEVIATIONS * np.sqrt(of_bias) + (unit / 4 + drift) * add(np.abs(v)) / n
        few = square**2 < FEWEST * add(v**4), add(e * e) ** 2 < FEWEST * add(e**4)
    limits = (slope_limit, few[0]), (bias_limit, few[1])
    slope_limit, bias_limit = (np.where(none | ~np.isfinite(limit), np.inf, limit) for limit, none in limits)
    columns = slope, slope_limit, bias, bias_limit
    return [Trend(group, *(float(column[i]) for column in columns)) for i, group in enumerate(groups)]


def _common(deviation, label, cluster, size):
    """The variance of a sum whose terms move together within a cluster: the squares of the clusters' sums."""
    if not len(label):
        return np.zeros(size)
    width = int(cluster.max()) + 1
    sums = np.bincount(label * width + cluster, deviation, minlength=size * width)
    return (sums**2).reshape(-1, width)[:size].sum(axis=1)
