"""The gradient checker: every gradient of the layer, by three other ways to the same number.   Spec 5.10

    step        complex step: the forward's formulas at x + ih, element by element
    digits      the same formulas with eighty digits: the slope along a direction, right to fifty
    (here)      central differences in binary64, along the same direction
    subjects    what is checked
    table       what is told

Branches, selection, counts and maxima are those of the real run.
"""

import numpy as np

from ..recipes import generate
from ..refusals import require_count, require_flag
from .digits import FiftyDigits, slope
from .step import STEP, Complex128, ComplexStep, complex_step
from .subjects import all_subjects, make_case, make_given
from .table import TOLERANCE, GradientCheck, Row

__all__ = ["STEP", "TOLERANCE", "Complex128", "ComplexStep", "GradientCheck", "Row", "check_gradients", "complex_step",
           "make_given"]  # fmt: skip

WIDTHS = 2.0**-17, 2.0**-24  # of the central difference; the narrow one where the wide one crosses a kink


def check_gradients(config, seed=0, num_tokens=6, limit=4096, oracle=False):
    """Every gradient of one layer in profile float64, element by element.   Spec 5.10

    config MoEConfig; num_tokens T; limit: elements checked of one tensor, evenly strided where it has more; oracle:
    by fifty digits as well, where mpmath is installed (.missing says why not) -> GradientCheck with .ok, .errors and a
    printable table. Raises ImportError for exact GELU without SciPy, TypeError or ValueError for bad arguments.
    """
    num_tokens, limit = require_count("num_tokens", num_tokens), require_count("limit", limit)
    require_flag("oracle", oracle)
    case = make_case(config, seed, num_tokens)
    digits, missing = find_oracle() if oracle else (None, "not asked for (oracle=True)")
    exact = [function for *_, function in all_subjects(*case, digits)] if digits else None
    rows = tuple(_check(*subject, exact and exact[at], digits, seed, limit)
                 for at, subject in enumerate(all_subjects(*case, ComplexStep())))  # fmt: skip
    margin = case[5].routing.margin
    return GradientCheck(rows, None if margin is None else float(margin.min()), missing)


def find_oracle():
    """(the policy, ""), or (None, why there is none)."""
    try:
        return FiftyDigits(), ""
    except ImportError as error:
        return None, f"they need mpmath ({error}); install it (pip install mpmath)"


def _check(name, gradient, at, function, exact_function, digits, seed, limit):
    stride = -(-gradient.size // limit)
    index = np.arange(0, gradient.size, stride)
    exact = np.array([complex_step(function, at, i) for i in index])
    g = gradient.reshape(-1)[index]
    noise = 2.0**-50 * abs(function(at))  # the rounding of the function's own value
    bar = max(TOLERANCE["complex_step"], _ratio(noise, np.abs(exact).max(initial=noise)))
    direction = generate(f"direction.{name}", at.shape, seed).astype(np.float64)
    oracle, oracle_bar = _oracle(gradient, at, exact_function, direction, noise, digits)
    difference, difference_bar = _difference(gradient, at, function, direction, noise)
    errors = relative_error(g, exact, noise), oracle, difference
    return Row(name, len(index), *errors, (bar, oracle_bar, difference_bar))


def _oracle(gradient, at, function, direction, noise, digits):
    """The error of the slope along a direction against fifty digits, and its bar; None without an oracle."""
    if digits is None:
        return None, TOLERANCE["fifty_digits"]
    size, along = _size(gradient, direction), digits.exact(gradient) * digits.exact(direction)
    error = abs(np.sum(along) - slope(function, at, direction, digits))
    bar = _ratio(noise * np.sqrt(np.sum(direction * direction)), size)
    return _ratio(float(error), size), max(TOLERANCE["fifty_digits"], bar)


def _size(gradient, direction):
    """What the slope could be: |g| |d|."""
    return np.sqrt(np.sum(gradient * gradient) * np.sum(direction * direction))


def _difference(gradient, at, function, direction, noise):
    """The error of the slope along a direction, and its bar, by the first step that is within it, or the last."""
    size = _size(gradient, direction)
    for width in WIDTHS:
        error = _ratio(abs(np.sum(gradient * direction) - central_difference(function, at, direction, width)), size)
        bar = max(TOLERANCE["difference"], _ratio(4 * noise / width, size))
        if error <= bar:
            break
    return error, bar


def _ratio(a, b):
    return float(a / b) if b else float(a)


def central_difference(function, at, direction, width):
    """The slope along a direction, (f(+h) - f(-h)) / 2h, to order h^2."""
    with np.errstate(all="ignore"):
        ahead, behind = (np.real(function(at + sign * width * direction)) for sign in (1, -1))
    return (ahead - behind) / (2 * width)


def relative_error(got, want, noise):
    """max|got - want| / max|want|. A gradient that vanishes (a reference within the rounding of the function's own
    value) must be 0 to the same rounding: then the error is max|got| / noise, or 0."""
    scale = np.abs(want).max(initial=0.0)
    if scale <= noise:
        largest = np.abs(got).max(initial=0.0)
        return 0.0 if largest <= noise else float(largest / noise)
    return float(np.abs(got - want).max() / scale)
