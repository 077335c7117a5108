"""Chapter 6.2, int8 and int4, and the law's own rounding of every format of 8 bits and less."""

from fractions import Fraction
from math import copysign

import ml_dtypes
import numpy as np
import pytest
from law_bridge import LAW, agree, to_law

from refmoe.formats import FORMATS, decode, encode, is_representable, round_fraction, round_to

RANGE = {"int8": (-128, 127), "int4": (-8, 7)}
PEERS = {"int8": np.int8, "int4": ml_dtypes.int4}
INTEGERS = pytest.mark.parametrize("name", RANGE)
SMALL = pytest.mark.parametrize("name", [*LAW.SMALL_FORMATS, *RANGE])


def all_codes(name):
    return np.arange(RANGE[name][1] * 2 + 2, dtype=np.uint8)


@INTEGERS
def test_every_code_is_twos_complement_both_ways(name):
    low, high = RANGE[name]
    values = decode(all_codes(name), name)
    assert values.tolist() == [*range(high + 1), *range(low, 0)] and not np.signbit(values[0])
    assert np.array_equal(encode(values, name), all_codes(name)) and encode(values, name).dtype == np.uint8
    assert values.tolist() == all_codes(name).view(PEERS[name]).astype(np.float32).tolist()
    assert to_law(values) == [LAW.decode_integer(int(code), name) for code in all_codes(name)]


@INTEGERS
def test_every_rounding_decision(name):
    """Each integer, each half and their float64 neighbours, from far below the range to far above it."""
    low, high = RANGE[name]
    points = np.arange(2 * low - 9, 2 * high + 10) / 2
    values = np.concatenate([points, np.nextafter(points, -np.inf), np.nextafter(points, np.inf), [1e300, -1e300]])
    wanted = [float(max(low, min(round(Fraction(v)), high))) for v in values.tolist()]
    got = round_to(values, name, "saturate")
    assert got.tolist() == wanted and got.dtype == np.float32 and not np.signbit(got[got == 0]).any()
    assert [round_fraction(Fraction(v), name, overflow="saturate") for v in values.tolist()] == wanted
    assert round_to([np.inf, -np.inf, -0.3, -0.0], name, "saturate").tolist() == [high, low, 0, 0]


@INTEGERS
def test_a_fraction_that_rounds_to_zero_has_no_sign(name):
    for value in (Fraction(-1, 3), Fraction(-1, 2), Fraction(0)):
        zero = round_fraction(value, name, negative_zero=True, overflow="saturate")
        assert copysign(1.0, zero) == 1.0 and zero == 0


@INTEGERS
def test_wide_float32_inputs_round_as_numpys_own_do(name):
    values = np.random.default_rng(4).integers(0, 1 << 32, 1 << 16, np.uint32).view(np.float32)
    values = values[~np.isnan(values)]
    with np.errstate(over="ignore"):
        wanted = np.clip(np.rint(values), *RANGE[name]).astype(np.int64)
    assert np.array_equal(round_to(values, name, "saturate").astype(np.int64), wanted)


@INTEGERS
@pytest.mark.parametrize("value", [0.5, -0.0, np.nan, np.inf, 128.0, -129.0, -8.5])
def test_what_is_no_integer_of_the_format_is_neither_encoded_nor_representable(name, value):
    array = np.array([value], np.float32)
    assert not is_representable(array, name)
    with pytest.raises(ValueError, match=f"values of {name}.*round_to"):
        encode(array, name)


@INTEGERS
def test_nan_and_an_overflow_that_is_not_there_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} has no NaN"):
        round_to([np.nan], name, "saturate")
    for mode in ("infinity", "nan"):
        with pytest.raises(ValueError, match=f"overflow: expected one of saturate for {name}, got '{mode}'"):
            round_to([1.0], name, mode)


@pytest.mark.parametrize("name", ["int4", "E2M1", "E2M3", "E3M2"])
def test_a_code_of_too_many_bits_is_refused(name):
    with pytest.raises(ValueError, match=f"codes: expected codes below (16|64) for {name}, got 64"):
        decode(np.array([0, 64], np.uint8), name)


@SMALL
def test_the_law_rounds_as_the_library_does(name):
    """Values, midpoints and their neighbours; beyond the largest, both saturate."""
    codes = np.arange(1 << (4 if name in ("E2M1", "int4") else 6 if name in ("E3M2", "E2M3") else 8))
    values = decode(codes, name).astype(np.float64)
    values = np.unique(values[np.isfinite(values)])
    points = np.concatenate([values, (values[1:] + values[:-1]) / 2, values[[0, -1]] * 1.04, values[[0, -1]] * 9])
    points = np.concatenate([points, np.nextafter(points, -np.inf), np.nextafter(points, np.inf)])
    points = points[points != 0]
    agree([LAW.saturated(Fraction(v), name) for v in points.tolist()], round_to(points, name, "saturate"))
    assert LAW.largest_of(name) == Fraction(FORMATS[name].largest)
