"""Formats: every code of the narrow ones, one rounding from float64, and the traps of rounding twice."""

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refmoe.formats import FORMATS, canonical_nan, decode, encode, is_representable, round_fraction, round_to
from refmoe.recipes import generate

NARROW = {"bf16": ml_dtypes.bfloat16, "fp16": np.float16}
IEEE = [name for name, row in FORMATS.items() if "infinity" in row.specials]
CODES = np.arange(65536, dtype=np.uint16)
STEPS = (0x7FFF, 0x8000, 0x8001, 0xFFF, 0x1000, 0x1001)  # from a code to float32 patterns about the next midpoint


@pytest.mark.parametrize("name", NARROW)
def test_every_code_decodes_as_others_decode_it(name):
    carrier = decode(CODES, name)
    theirs = CODES.view(NARROW[name]).astype(np.float32)
    assert carrier.dtype == np.float32
    number = ~np.isnan(theirs)
    assert carrier[number].tobytes() == theirs[number].tobytes() and np.isnan(carrier[~number]).all()


@pytest.mark.parametrize("name", NARROW)
def test_every_code_survives_the_round_trip(name):
    carrier = decode(CODES, name)
    assert np.array_equal(encode(carrier, name), CODES)
    assert is_representable(carrier[~np.isnan(carrier)], name)
    number = ~np.isnan(carrier)
    with np.errstate(invalid="ignore"):  # some codes are signalling NaNs
        again = round_to(carrier.astype(np.float64), name)
    assert again[number].tobytes() == carrier[number].tobytes()


@pytest.mark.parametrize("name", IEEE)
def test_encode_and_decode_are_inverse(name):
    values = round_to(generate("v", (1000,), 0, "wide").astype(np.float64), name)
    assert encode(values, name).dtype == FORMATS[name].codes
    assert decode(encode(values, name), name).tobytes() == values.tobytes()


@pytest.mark.parametrize("name", IEEE)
def test_the_rows_of_the_table_are_consistent(name):
    row = FORMATS[name]
    assert row.emax == 1 - row.emin and row.quantum == row.emin - row.precision + 1
    assert round_to(row.largest, name) == row.largest
    assert round_to(2.0**row.emin, name) == 2.0**row.emin
    assert float(round_to(2.0**row.quantum, name)) == 2.0**row.quantum
    if name in NARROW:
        info = ml_dtypes.finfo(NARROW[name])
        assert row.largest == float(info.max) and 2.0**row.emin == float(info.tiny)
        assert 2.0 ** (1 - row.precision) == float(info.eps)


@pytest.mark.parametrize("name", NARROW)
def test_rounding_a_float32_agrees_with_others(name):
    patterns = np.concatenate([
        np.arange(0, 2**32, 99991, dtype=np.uint64).astype(np.uint32),
        *(decode(CODES, name).view(np.uint32) + np.uint32(step) for step in STEPS),
    ])  # fmt: skip
    source = patterns.view(np.float32)
    source = source[np.isfinite(source)]
    with np.errstate(over="ignore"):
        theirs = source.astype(NARROW[name]).astype(np.float32)
    assert round_to(source.astype(np.float64), name).tobytes() == theirs.tobytes()


def midpoints(name, count=400):
    """Fractions halfway between neighbours of the format, from its least subnormal to its overflow threshold."""
    row = FORMATS[name]
    rng = np.random.default_rng(7)
    least = Fraction(2) ** row.quantum
    for _ in range(count):
        exponent = int(rng.integers(row.emin - 1, row.emax + 1))
        quantum = Fraction(2) ** (max(exponent, row.emin) - row.precision + 1)
        steps = 2 ** (row.precision - 1) if exponent >= row.emin else 0
        yield (steps + int(rng.integers(0, 2 ** (row.precision - 1)))) * quantum + quantum / 2
    yield from (least / 2, 3 * least / 2, Fraction(2) ** row.emin - least / 2)
    yield Fraction(row.largest) + Fraction(2) ** (row.emax - row.precision)  # from here on infinity


@pytest.mark.parametrize("name", ["float32", "bf16", "fp16"])
def test_midpoints_and_their_neighbours_round_as_fractions_do(name):
    """In float64: half a quantum, and one float64 step below and above, which float32 would not see."""
    halves = np.array([float(m) for m in midpoints(name)])
    assert all(Fraction(h) == m for h, m in zip(halves.tolist(), midpoints(name), strict=True))
    values = np.concatenate([halves, np.nextafter(halves, 0), np.nextafter(halves, np.inf)])
    values = np.concatenate([values, -values])
    want = [round_fraction(Fraction(v), name) for v in values.tolist()]
    assert round_to(values, name).astype(np.float64).tobytes() == np.array(want).tobytes()


def test_rounding_through_float32_would_be_wrong():
    for name, digits in (("bf16", 8), ("fp16", 11)):
        above = 1 + 2.0**-digits + 2.0**-40
        assert round_to(above, name) == 1 + 2.0 ** (1 - digits)
        assert round_to(np.float64(np.float32(above)), name) == 1  # the midpoint it was rounded to goes to even


@pytest.mark.parametrize("name", IEEE)
@settings(max_examples=300, deadline=None, derandomize=True)
@given(value=st.floats(allow_nan=False, allow_infinity=False))
def test_any_float64_rounds_as_its_fraction(name, value):
    got = np.float64(round_to(value, name))
    want = np.float64(round_fraction(Fraction(value), name, negative_zero=np.signbit(value)))
    assert got.tobytes() == want.tobytes()


def test_round_fraction_of_what_no_float_holds():
    third = Fraction(1, 3)
    assert round_fraction(third, "float32") == float(np.float32(1 / 3)) and round_fraction(third, "bf16") == 0.333984375
    assert round_fraction(third, "float64") == 1 / 3
    tie = 1 + Fraction(1, 2**24)
    assert round_fraction(tie, "float32") == 1 and round_fraction(tie + Fraction(1, 10**60), "float32") == 1 + 2**-23
    assert round_fraction(-Fraction(1, 10**400), "float32") == 0
    assert np.signbit(round_fraction(-Fraction(1, 10**400), "float32"))  # what rounds to zero keeps its sign
    assert not np.signbit(round_fraction(Fraction(0), "fp16")) and np.signbit(round_fraction(0, "fp16", True))
    assert round_fraction(Fraction(65520), "fp16") == np.inf and round_fraction(Fraction(65519), "fp16") == 65504
    assert round_fraction(-(Fraction(10) ** 400), "float64") == -np.inf


def test_special_values():
    special = np.array([0.0, -0.0, np.inf, -np.inf, 1e300, -1e300, 1e-300, -1e-300])
    for name in ("float32", "bf16", "fp16"):
        want = np.array([0.0, -0.0, np.inf, -np.inf, np.inf, -np.inf, 0.0, -0.0], np.float32)
        assert round_to(special, name).tobytes() == want.tobytes()
    negative_nan = np.array([0xFFF8000000000001], np.uint64).view(np.float64)
    for name in IEEE:
        quiet = np.array([np.nan], FORMATS[name].carrier)
        assert round_to(negative_nan, name).tobytes() == quiet.tobytes() == canonical_nan(quiet).tobytes()
    assert round_to(70000.0, "fp16") == np.inf and round_to(3.4e38, "bf16") == np.inf


def test_representable():
    assert is_representable(np.array([1.0, -0.0, np.nan, np.inf, 2.0**-24], np.float32), "fp16")
    assert not is_representable(np.array([2.0**-25], np.float32), "fp16")
    assert not is_representable(np.array([1 + 2.0**-8], np.float32), "bf16")
    assert not is_representable(np.array([65520], np.float32), "fp16") and is_representable(
        np.zeros(0, np.float32), "bf16"
    )


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_membership_by_bits_is_membership_by_value(name):
    """float32 arrays are looked at by their bits, others by rounding: one verdict, beside every code and far away."""
    values = decode(np.arange(2**16, dtype=np.uint16), name)
    patterns = values.view(np.uint32)
    near = np.concatenate([patterns, patterns + np.uint32(1), patterns - np.uint32(1), patterns ^ np.uint32(0x8000)])
    far = np.random.default_rng(0).integers(0, 2**32, 2**14, dtype=np.uint32)
    candidates = np.concatenate([near[:: 2**4 + 1], far]).view(np.float32)
    candidates = candidates[~np.isnan(candidates)]
    by_bits = [is_representable(candidates[i : i + 1], name) for i in range(len(candidates))]
    by_value = round_to(candidates, name) == candidates
    assert by_bits == by_value.tolist() and any(by_bits) and not all(by_bits)
    assert is_representable(values, name)
    assert is_representable(values[~np.isnan(values)].astype(np.float64), name)
    assert not is_representable(np.append(values, np.float32(1 + 2.0**-12)), name)


@pytest.mark.parametrize("call", [round_to, encode, decode, is_representable])
@pytest.mark.parametrize("name", ["bfloat16", None, []])
def test_a_format_that_is_not_in_the_table(call, name):
    with pytest.raises(ValueError, match=r"^format: expected one of float64, float32, bf16, .*; choose one of these$"):
        call(np.zeros(2, np.float32), name)
