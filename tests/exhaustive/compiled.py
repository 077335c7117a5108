"""All 2^32 float32 arguments of the activations that C evaluates, and of their slopes, with every kernel.

    python tests/exhaustive/compiled.py [--slice i/n] [function ...]

A slice takes the bit patterns i, i + n, i + 2n ... What C decides must be the exact value rounded once. Functions of
NumPy and SciPy give it to within 2^-48 (1 + |z|) of the sizes that enter it, z what stands in the exponential; where
that does not tell how it rounds, mpmath does. Exit status 1 if a decided value is wrong.
"""

import argparse
import sys
from pathlib import Path

import mpmath
import numpy as np
from scipy.special import expit

sys.path.insert(0, str(Path(__file__).resolve().parent))

from curves import CURVES, PLAIN

from refmoe import kernels
from refmoe.numerics import Numerics

CHUNK = 1 << 20
LIBRARY_BOUND = 2.0**-48
FARTHEST = 1000.0  # beyond it the sigmoid is 0 or 1 in every format, with room to spare
DIGITS = 60


def itself(x, root, cube):
    return x, x


def cubic(x, root, cube):
    return root * x * (1 + cube * x * x), root * x * (1 + 3 * cube * x * x)


# name -> (activation, is it the slope, x -> z and x dz/dx); the activation is x sigmoid(z), "sigmoid" without the x
FUNCTIONS = {
    "silu": ("silu", False, itself),
    "silu'": ("silu", True, itself),
    "gelu_tanh": ("gelu_tanh", False, cubic),
    "gelu_tanh'": ("gelu_tanh", True, cubic),
    "sigmoid": ("sigmoid", False, itself),
    "sigmoid'": ("sigmoid", True, itself),
}


def composed(name, x, z, dz, s, other):
    """The function from the sigmoids of z and -z; `dz` negated and made positive gives the size of its terms."""
    activation, is_slope, _ = FUNCTIONS[name]
    if activation == "sigmoid":
        return s * other if is_slope else s
    return s * (1 + dz * other) if is_slope else x * s


def by_library(name, x):
    """The value in binary64 and how far it may be off; x float32."""
    x = x.astype(np.float64)
    if name in CURVES:
        value, size, z = CURVES[name][2](x)
        return np.where(x == 0, value + 0.0, value), LIBRARY_BOUND * (1 + z) * size
    z, dz = (np.clip(a, -FARTHEST, FARTHEST) for a in FUNCTIONS[name][2](x, np.sqrt(8 / np.pi), 0.044715))
    s, other = expit(z), expit(-z)
    size = np.abs(composed(name, np.abs(x), z, np.abs(dz), s, other))
    value = composed(name, x, z, dz, s, other)
    return np.where(x == 0, value + 0.0, value), LIBRARY_BOUND * (1 + np.abs(z)) * size  # an exact zero is +0


def by_truth(name, x):
    """The value of one argument to 60 digits."""
    if name in CURVES:
        return CURVES[name][3](mpmath.mpf(float(x)))
    x, root, cube = mpmath.mpf(float(x)), mpmath.sqrt(mpmath.mpf(8) / mpmath.pi), mpmath.mpf("0.044715")
    z, dz = FUNCTIONS[name][2](x, root, cube)
    return composed(name, x, z, dz, 1 / (1 + mpmath.exp(-z)), 1 / (1 + mpmath.exp(z)))


def is_nearest(made, truth):
    """Whether no float32 is nearer to the truth, which is never halfway: the function is transcendental."""
    below, above = (float(np.nextafter(made, np.float32(end))) for end in (-np.inf, np.inf))
    return (float(made) + below) / 2 < truth < (float(made) + above) / 2


def by_kernel(num, name, x):
    """What C made of x, and the places that it left open."""
    activation, is_slope = CURVES[name][:2] if name in CURVES else ((FUNCTIONS[name][0], *PLAIN), FUNCTIONS[name][1])
    formula, operands = ("gated_backward", (np.ones_like(x), x)) if is_slope else ("gated", (x,))
    return num.engine.formula(num._rule("hidden_rows"), formula, activation, operands)[0]


def check(name, x, nums):
    """(left open, decided by mpmath, wrong) of one chunk, over the kernels; prints what is wrong."""
    with np.errstate(all="ignore"):
        value, off = by_library(name, x)
        low, high = (end.astype(np.float32) for end in (value - off, value + off))
        expected = value.astype(np.float32)
    doubtful, judged, wrong, left = low != high, {}, 0, 0
    for kernel, num in nums.items():
        made, open_places = by_kernel(num, name, x)
        decided = np.ones(x.size, bool)
        decided[open_places] = False
        left += len(open_places)
        bad = np.flatnonzero(decided & ~doubtful & (made.view(np.uint32) != expected.view(np.uint32)))
        for i in np.flatnonzero(decided & doubtful):
            judged.setdefault(i, by_truth(name, x[i]))
            if not is_nearest(made[i], judged[i]):
                bad = np.append(bad, i)
        for i in bad[:5]:
            print(f"{name} {kernel}: of {x[i]!r} made {made[i]!r}, expected {expected[i]!r}")
        wrong += bad.size
    return np.array([left, len(judged), wrong])


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("functions", nargs="*", help=" ".join([*FUNCTIONS, *CURVES]))
    parser.add_argument("--slice", default="0/1", metavar="i/n")
    options = parser.parse_args(arguments)
    first, step = map(int, options.slice.split("/"))
    nums = {name: Numerics(backend="c", kernel=name, threads=1) for name, can_run, _ in kernels.available() if can_run}
    failed = False
    with mpmath.workdps(DIGITS):
        for name in options.functions or [*FUNCTIONS, *CURVES]:
            seen, total = 0, np.zeros(3, int)
            for start in range(first, 1 << 32, CHUNK * step):
                codes = np.arange(start, min(start + CHUNK * step, 1 << 32), step, dtype=np.uint64)
                total += check(name, codes.astype(np.uint32).view(np.float32), nums)
                seen += codes.size
            failed |= total[2] > 0
            print(f"{name:14} {seen} arguments, kernels {', '.join(nums)}:", end=" ")
            print(f"left open {total[0]}, decided by mpmath {total[1]}, wrong {total[2]}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
