"""All 2^32 float32 arguments of each elementary function, against the double functions of NumPy and SciPy.

    python tests/exhaustive/elementary.py [--slice i/n] [function ...]

A slice takes the bit patterns i, i + n, i + 2n ... Where the two differ by more than the proven bound plus 2^-50 of the
value, mpmath decides. Exit status 1 if a bound is broken.
"""

import argparse
import sys
from pathlib import Path

import mpmath
import numpy as np
import scipy.special

sys.path.insert(0, str(Path(__file__).parent.parent))

from elementary_truth import TRUTH

from refmoe.numerics import elementary

CHUNK = 1 << 20
LIBRARY_BOUND = 2.0**-50
DIGITS = 60

LIBRARY = {
    "exp": np.exp,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "sigmoid": scipy.special.expit,
    "tanh": np.tanh,
    "softplus": lambda x: np.logaddexp(0.0, x),
    "erf": scipy.special.erf,
    "erfc": scipy.special.erfc,
}


def true_error(name, x, y):
    """|y - f(x)| - ABSOLUTE_BOUND, not below zero, relative to |f(x)|; y and x finite."""
    with mpmath.workdps(DIGITS):
        truth = TRUTH[name](mpmath.mpf(float(x)))
        excess = abs(mpmath.mpf(float(y)) - truth) - mpmath.mpf(elementary.ABSOLUTE_BOUND)
        return float(excess / abs(truth)) if excess > 0 else 0.0


def walk(name, first, step):
    """(arguments, most they differ from the library, number decided by mpmath, their largest error), in bounds."""
    bound, seen, worst, judged, error = elementary.RELATIVE_BOUND[name], 0, 0.0, 0, 0.0
    for start in range(first, 1 << 32, CHUNK * step):
        codes = np.arange(start, min(start + CHUNK * step, 1 << 32), step, dtype=np.uint64).astype(np.uint32)
        with np.errstate(all="ignore"):
            x = codes.view(np.float32).astype(np.float64)
            ours, theirs = getattr(elementary, name)(x), LIBRARY[name](x)
            gap = np.maximum(np.abs(ours - theirs) - elementary.ABSOLUTE_BOUND, 0.0) / np.abs(ours)
        gap = np.where((ours == theirs) | (np.isnan(ours) & np.isnan(theirs)), 0.0, gap)
        doubtful = ~(gap <= bound + LIBRARY_BOUND)
        seen, judged = seen + x.size, judged + int(doubtful.sum())
        worst = max(worst, gap[~doubtful].max(initial=0.0) / bound)
        pairs = zip(x[doubtful], ours[doubtful], strict=True)
        error = max([error, *(true_error(name, a, b) / bound for a, b in pairs)])
    return seen, worst, judged, error


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("functions", nargs="*", help=" ".join(LIBRARY))
    parser.add_argument("--slice", default="0/1", metavar="i/n")
    options = parser.parse_args(arguments)
    first, step = map(int, options.slice.split("/"))
    broken = False
    for name in options.functions or LIBRARY:
        seen, worst, judged, error = walk(name, first, step)
        broken |= not error <= 1.0
        print(f"{name:9} {seen} arguments; from the library at most {worst:.2f} bounds;", end=" ")
        print(f"{judged} decided by mpmath, off by at most {error:.2f} bounds", flush=True)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
