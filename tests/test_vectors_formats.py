"""The flags of the suite "formats" are proven: each wrong reading is rejected by a case that bears its flag."""

import json

import numpy as np
import pytest
from planting import planted
from test_vectors import FOLDER, from_file, same

import refmoe
from refmoe.golden.cases import run

ROWS = json.loads((FOLDER / "formats" / "formats.json").read_bytes())["cases"]

# flag, module, text that stands there once, the wrong reading of it
MUTANTS = [
    (
        "TieAway",
        "formats.rounding",
        "rounded = np.ldexp(np.rint(np.ldexp(value, -quantum)), quantum)",
        "rounded = np.ldexp(np.copysign(np.floor(np.abs(np.ldexp(value, -quantum)) + 0.5), value), quantum)",
    ),
    ("TieAway", "formats.rounding", "return np.rint(value) + 0.0", "return np.floor(value + 0.5) + 0.0"),
    (
        "Subnormal",
        "formats.rounding",
        "np.maximum(rounded, 2.0**row.emin), nan) if row.scale else rounded",
        "np.maximum(rounded, 2.0**row.emin), nan) if row.scale else np.where(abs(rounded) < 2.0**row.emin, 0, rounded)",
    ),
    ("Overflow", "formats.rounding", '"saturate": (row.largest, row.lowest)', '"saturate": (nan, nan)'),
    (
        "Overflow",
        "formats.rounding",
        '"saturate": (row.largest, row.lowest)',
        '"saturate": (row.largest, -row.largest)',
    ),
    ("SignedZero", "formats.rounding", "return np.rint(value) + 0.0", "return np.rint(value)"),
    ("SignedZero", "formats.scaling", "quotients = values / (", "quotients = (values + 0.0) / ("),
    (
        "DoubleRounding",
        "formats.rounding",
        "value = np.asarray(value, np.float64)",
        "value = np.asarray(np.asarray(value, np.float64).astype(np.float32), np.float64)",
    ),
    ("ScaleRule", "formats.scaling", "exponent - above + (fraction > most)", "exponent - above + (fraction > 0.5)"),
    ("ScaleRule", "formats.scaling", "exponent - above + (fraction > most)", "exponent - above"),
    ("ScaleRule", "formats.scaling", "np.frexp(amax)[1] - 1 - FORMATS", "np.frexp(amax)[1] - FORMATS"),
    ("ScaleRule", "formats.scaling", "exponent - 1 + carried - FORMATS", "exponent - 1 - FORMATS"),
    ("ScaleRule", "formats.scaling", 'row.scale, "saturate"), least)', '"bf16", "saturate"), least)'),
    (
        "Reciprocal",
        "formats.scaling",
        "values / (spread(scales.astype(np.float64), block, values.shape) * tensor)",
        "values * (np.float32(1) / (spread(scales, block, values.shape) * tensor))",
    ),
    ("ZeroBlock", "formats.scaling", 'row.scale, "saturate"), least)', 'row.scale, "saturate"), 0)'),
    ("ZeroBlock", "formats.scaling", "np.where(amax == 0, low, np", "np.where(amax == 0, 0, np"),
    (
        "Asymmetric",
        "formats.scaling",
        "amax / (FORMATS[row.format].largest * factor)",
        "amax / (-FORMATS[row.format].lowest * factor)",
    ),
    ("Asymmetric", "formats.scaling", "np.clip(quotients, -largest, largest)", "quotients * (1 + 1 / 128)"),
    (
        "BlockEdge",
        "formats.scaling",
        "padded[: values.shape[0], : values.shape[1]] = np.abs(values)",
        "padded[: values.shape[0], : values.shape[1]] = np.abs(values); padded[:, values.shape[1] :] = 1",
    ),
    (
        "NibbleOrder",
        "formats.codes",
        "codes[..., 0::2] | codes[..., 1::2] << 4",
        "codes[..., 1::2] | codes[..., 0::2] << 4",
    ),
    ("TensorScale", "formats.scaling", "block, values.shape) * tensor)", "block, values.shape))"),
    ("TensorScale", "formats.packed", "1.0 if self.tensor_scales is None else float(self.tensor_scales[e])", "1.0"),
    (
        "RoundedWeight",
        "formats.packed",
        "        exact = self.exact(e)\n",
        "        exact = self.exact(e).astype(np.float32).astype(np.float64)\n",
    ),
    ("LongProduct", "numerics.contract", "a, b = doubled(a, b) if wide else (a, b)", "a, b = a, b"),
    ("LongProduct", "numerics.contract", "total, a = chain(a, b, total), a[:, :0]", "pass"),
]


def rejected(rows):
    """Does a case differ from the file, or end in an error?"""
    for row in rows:
        num = refmoe.Numerics(profile=row["profile"], store=row["store"], backend="numpy")
        try:
            with np.errstate(all="ignore"):
                made = run(from_file(row), num, from_file(row).inputs)
        except (ValueError, IndexError):
            return True
        if not all(same(array, row["expected"][name]) for name, array in made.items()):
            return True
    return False


@pytest.mark.parametrize(("flag", "module", "old", "new"), MUTANTS)
def test_a_wrong_reading_is_rejected_under_its_flag(flag, module, old, new):
    rows = [row for row in ROWS if flag in row["flags"]]
    with planted(module, old, new):
        assert rejected(rows)


def test_every_flag_has_its_wrong_readings_and_the_right_one_passes():
    assert {flag for row in ROWS for flag in row["flags"]} == {mutant[0] for mutant in MUTANTS}
    assert not rejected(ROWS)
