"""Learning rates by step: piecewise linear, or a table. No cosine, no power: the same bits on every machine."""

from dataclasses import dataclass
from itertools import pairwise
from math import isfinite

from ..refusals import require


@dataclass(frozen=True)
class Schedule:
    """Points ((step, rate), ...), steps ascending: linear between them, constant before the first and after the last.

    Raises ValueError for no point, for steps that do not ascend and for rates that are negative or not finite.
    """

    points: tuple

    def __post_init__(self):
        require(len(self.points) > 0, ValueError, "points", "at least one (step, rate)", "none", "give a constant")
        ascend = all(a[0] < b[0] for a, b in pairwise(self.points))
        require(ascend, ValueError, "points", "ascending steps", self.points, "sort them, each step once")
        fine = all(isfinite(rate) and rate >= 0 for _, rate in self.points)
        require(fine, ValueError, "points", "finite rates, at least 0", self.points, "correct them")

    def rate(self, step):
        """a + (b - a) ((step - s_a) / (s_b - s_a)) between the points (s_a, a) and (s_b, b), in binary64."""
        if step <= self.points[0][0]:
            return float(self.points[0][1])
        for (start, a), (end, b) in pairwise(self.points):
            if step < end:
                return a + (b - a) * ((step - start) / (end - start))
        return float(self.points[-1][1])


def constant(rate):
    """The same rate at every step."""
    return Schedule(((0, rate),))


def warm_up_and_decay(peak, warm_up, steps, last=0.0):
    """Linear from peak / warm_up at step 0 to the peak at step warm_up - 1, then linear to `last` at the last step."""
    fits = 0 <= warm_up < steps
    require(fits, ValueError, "warm_up", f"from 0 to below the {steps} steps", warm_up, "shorten it")
    points = {steps - 1: last, max(warm_up - 1, 0): peak}
    if warm_up > 1:
        points[0] = peak / warm_up
    return Schedule(tuple(sorted(points.items())))


def table(rates):
    """One rate a step, the last one from there on."""
    return Schedule(tuple(enumerate(rates)))
