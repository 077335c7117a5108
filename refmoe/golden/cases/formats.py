"""Cases of 6.2: every format of 8 bits and less at its midpoints and limits, every scheme of codes and scales."""

import numpy as np

from ...formats import FORMATS, SCHEMES, decode
from .form import Case, Recipe, above, f32

ABOUT = "Numbers as codes of few bits, weights as codes and scales: rounding, scale rules, exact products."

NOTES = {
    "TieAway": ("ties of a conversion to codes broken upward or away from zero", "codes one step off at midpoints"),
    "Subnormal": ("subnormal codes flushed to zero", "the small weights of a block vanish"),
    "Overflow": ("another overflow than the one that was asked for", "NaN or infinity for the largest value"),
    "SignedZero": ("a zero without its sign, or an integer's with one", "code 8 for 0, or 0 for 8"),
    "DoubleRounding": ("codes reached through another format", "one step off beside midpoints"),
    "ScaleRule": ("scales by another rule than the one that is named", "codes and scales off by a factor of two"),
    "Reciprocal": ("multiplying with a rounded reciprocal of the scale", "codes one step off beside midpoints"),
    "ZeroBlock": ("a block of zeros divided by its scale of zero", "NaN"),
    "Asymmetric": ("integers scaled by 128 or 8", "codes off, and -128 for the largest magnitude"),
    "BlockEdge": ("the cut-off block at the end of a row scaled with its neighbour", "wrong scales at the edge"),
    "NibbleOrder": ("two codes of a byte the other way round", "columns swapped in pairs"),
    "TensorScale": ("the scale of the tensor left out, or multiplied twice", "weights off by a constant factor"),
    "RoundedWeight": ("code times scale rounded before the contraction", "the last bits of a product"),
    "LongProduct": ("a product of 55 bits rounded to 53 on its way", "ties that break the wrong way"),
}

MODES = {"E5M2": ("infinity", "saturate", "nan"), "E4M3": ("saturate", "nan"), "E8M0": ("saturate", "nan")}
NARROW = ("E5M2", "E4M3", "E3M2", "E2M3", "E2M1", "E8M0", "int8", "int4")


def cases():
    """Every case of the chapter."""
    yield from _conversions()
    for name, row in SCHEMES.items():
        for rule in row.rules:
            yield from _scheme(name, rule)
    yield from _long_products()


def _conversions():
    for name in NARROW:
        for mode in MODES.get(name, ("saturate",)):
            flags = ("TieAway", "Overflow", "DoubleRounding") + (("Subnormal", "SignedZero") if name != "E8M0" else ())
            options = {"format": name, "overflow": mode}
            yield Case(f"binary64 to {name}, {mode}", flags, "encode", {"value": _edges(name)}, options=options)


def _edges(name):
    """Midpoints and what lies beside them; the ends of the range."""
    row = FORMATS[name]
    least, unit, top = 2.0**row.quantum, 2.0 ** (1 - row.precision), row.largest
    if row.scale:
        middle = np.array([1.5, 3.0, 1.5 * 2.0**-127, 2.0**-130, 2.0**127 * 1.5, 2.0**128, 1.0])
        return np.concatenate([middle, np.nextafter(middle[:3], 0), [0.0, -1.0]])
    one = np.array([1.0, 3.0, 5.0]) * (0.5 if row.integer else unit / 2) + (0.0 if row.integer else 1.0)
    middle = np.concatenate([one, [least / 2, least * 1.5], [top + 2.0 ** (row.emax - row.precision)]])
    more = [1.0, top, row.lowest - least, top * 1.25, 1e300]
    values = np.concatenate([middle, np.nextafter(middle, 0), np.nextafter(middle, np.inf), more, [0.0]])
    return np.concatenate([values, -values[:5], -values[-5:]])


def _scheme(name, rule):
    row = SCHEMES[name]
    options = {"scheme": name, "rule": rule}
    flags = ("ScaleRule", "BlockEdge", "ZeroBlock", "TieAway", "SignedZero")
    flags += ("Asymmetric",) if FORMATS[row.format].integer else ("Subnormal",)
    flags += ("TensorScale",) if row.tensor_scale else ()
    flags += ("Reciprocal", "RoundedWeight") if row.scale != "E8M0" else ()
    flags += ("NibbleOrder",) if row.format in ("E2M1", "int4") else ()
    inputs = {"values": _matrix(row), "x_rows": _rows(11)}
    block = "1 8" if row.block[0] == 1 else "3 8"
    small = options | {"block": block}
    yield Case(f"{name} by {rule}, blocks of {block}", flags, "quantise", inputs, options=small)
    if row.scale != "E8M0":
        yield Case(f"{name}, blocks of {block}, chain", flags, "quantise", inputs, options=small, profile="chain")
    size = (2, 3, row.block[1] + 5)
    inputs = {"values": Recipe("w_up", size, exponent=-3), "x_rows": Recipe("x", (1, size[2]), "wide")}
    flags = ("ScaleRule", "BlockEdge") + (("TensorScale",) if row.tensor_scale else ())
    yield Case(f"{name} by {rule}", flags, "quantise", inputs, options=options)


def _long_products():
    """127 * 15131769 * 9999799 is a midpoint of float32 and one unit, to which binary64 is blind."""
    inputs = {"values": f32([[[1921734656.0, 0.0]]]), "x_rows": f32([[9999799.0, 1.0]])}
    for profile in ("exact", "chain"):
        options = {"scheme": "int8", "rule": "amax"}
        yield Case(
            "a product of 55 bits beside a midpoint",
            ("LongProduct",),
            "quantise",
            inputs,
            options=options,
            profile=profile,
        )


def _rows(columns):
    """Numbers of 24 bits of both signs, and a zero."""
    return f32([[above(1.0 + k / 7, 1) * (-1) ** k for k in range(columns - 1)] + [-0.0]])


def _matrix(row):
    """(1, 4, 11), for blocks of 8 and 3: ties at scale 1; zeros; what the rules disagree on; ties at another scale."""
    fmt = FORMATS[row.format]
    least, top = 2.0**fmt.quantum, fmt.largest
    unit = 1.0 if fmt.integer else 2.0 ** (1 - fmt.precision)
    whole = top * FORMATS[row.scale].largest if row.tensor_scale else top  # so that the tensor's scale is 1
    first = [top, 1 + unit / 2, 1 + 1.5 * unit, least / 2, -least / 2, -0.0, least * 0.75, -top]
    first += [1.1, -0.37, 0.05]
    zeros = [0.0, -0.0] * 5 + [whole]
    between = [top * 1.3, -1.0, 0.3, 2.6, -top, top * 0.49, 0.0, 1.7] + [2.0**-140, -(2.0**-149), 0.0]
    return f32([[first, zeros, between, _beside_ties(row.format, top * 0.7)]])


def _beside_ties(name, amax):
    """Midpoints of codes times amax / largest, and the float32 numbers next to them."""
    grid = np.unique(np.abs(decode(np.arange(8, dtype=np.uint8), name).astype(np.float64)))
    ties = (grid[1:] + grid[:-1]) / 2 * (float(np.float32(amax)) / FORMATS[name].largest)
    near = [above(tie, step) for tie in ties[-3:] for step in (-1, 0, 1)]
    return [amax, *near[:7], *(-v for v in near[7:9]), amax / 3]
