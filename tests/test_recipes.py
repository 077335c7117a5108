"""Recipes: literal first values, a scalar version in plain Python integers, addressing, parameters."""

from fractions import Fraction

import numpy as np
import pytest
from cases import CASES, CONFIGS, config_of, same_bits

from refmoe.formats import is_representable
from refmoe.recipes import (
    INTEGER_PARAMS,
    RECIPES,
    MoEParams,
    assemble_params,
    fan_in_exponent,
    generate,
    generate_ids,
    generate_table,
    init_params,
    mix64,
    name_params,
    parameter_shapes,
    tensor_key,
    words,
)

# --- once more, in plain integers ------------------------------------------------------------------------------------

WORD = 1 << 64


def scalar_mix(z):
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % WORD
    z = (z ^ z >> 27) * 0x94D049BB133111EB % WORD
    return z ^ z >> 31


def scalar_word(seed, name, i):
    digest = 14695981039346656037  # FNV-1a, 64 bits
    for byte in name.encode():
        digest = (digest ^ byte) * 1099511628211 % WORD
    key = scalar_mix((digest + seed * 0x9E3779B97F4A7C15) % WORD)
    return scalar_mix((key + (i + 1) * 0x9E3779B97F4A7C15) % WORD)


def scalar_bell(word):
    return Fraction(sum(word >> shift & 0xFFFF for shift in (0, 16, 32, 48)) - 131070, 1 << 16)


def scalar_bf16(word):
    """The bell value with its significand cut to eight bits, towards zero."""
    value = scalar_bell(word)
    sign, units = (-1 if value < 0 else 1), abs(value.numerator) * ((1 << 16) // value.denominator)
    spare = max(0, units.bit_length() - 8)
    return Fraction(sign * (units >> spare << spare), 1 << 16)


def scalar_wide(word):
    sign = -1 if word >> 63 else 1
    return sign * Fraction((1 << 23) + word % (1 << 23), 1 << 23) * Fraction(2) ** ((word >> 32) % 40 - 20)


def scalar_dyadic(word):
    return Fraction((word >> 32) % 9 - 4)


def scalar_unit(word):
    return Fraction(word >> 40, 1 << 24)


SCALARS = {"unit": scalar_unit, "bell": scalar_bell, "bf16": scalar_bf16, "wide": scalar_wide, "dyadic": scalar_dyadic}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(("name", "seed"), [("x", 0), ("w_gate", 1), ("shared.w_up", 2**40 + 3)])
def test_the_same_bits_as_plain_integers(recipe, name, seed):
    got = generate(name, (500,), seed, recipe, exponent=-3)
    want = [SCALARS[recipe](scalar_word(seed, name, i)) / 8 for i in range(500)]
    assert [Fraction(v) for v in got.tolist()] == want


def test_the_first_words():
    """Literal values: what another language must find."""
    assert mix64(1) == 0x5692161D100B05E5 == scalar_mix(1)
    assert tensor_key(0, "x") == 0x2C782AC22891188E
    assert [int(w) for w in words(0, "x", 0, 3)] == [0x5BC0EDCB8475DCA7, 0xECEB1BA38D177FA5, 0x68341B4D33D2C7CB]
    assert generate("x", (3,), 0).tolist() == [0.6666412353515625, 0.08319091796875, -0.50341796875]
    assert generate("x", (3,), 0, "dyadic").tolist() == [-1, -3, 1]


# --- addressing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES)
def test_any_part_can_be_made_without_the_rest(recipe):
    whole = generate("w", (7, 5, 3), 4, recipe)
    for e in range(7):
        assert same_bits(generate("w", (5, 3), 4, recipe, start=15 * e), whole[e])
    assert same_bits(generate("w", (1,), 4, recipe, start=104), whole.reshape(-1)[104:])


def test_blocks_do_not_show():
    """More elements than are worked on at a time."""
    whole = generate("w", (2**16 + 100,), 0)
    assert same_bits(generate("w", (200,), 0, start=2**16 - 100), whole[2**16 - 100 :])
    far = generate("w", (2,), 0, start=2**40)
    assert [Fraction(v) for v in far.tolist()] == [scalar_bell(scalar_word(0, "w", 2**40 + i)) for i in range(2)]


def test_name_and_seed_both_matter():
    assert len({generate(name, (4,), seed).tobytes() for name in ("x", "y", "d_y") for seed in range(3)}) == 9
    assert generate("x", (0, 4), 0).shape == (0, 4)


def test_an_unknown_recipe_is_refused():
    with pytest.raises(ValueError, match="recipe: expected one of bell, bf16, wide, dyadic, unit, got 'gauss'"):
        generate("x", (1,), 0, "gauss")


# --- what the values are like ----------------------------------------------------------------------------------------


def test_ranges():
    bell = generate("x", (20000,), 0)
    assert abs(bell.mean()) < 0.02 and 0.56 < bell.std() < 0.60 and np.abs(bell).max() <= 2
    assert (bell * 2**16 == np.rint(bell * 2**16)).all()  # 18-bit fixed point
    assert is_representable(generate("x", (20000,), 0, "bf16"), "bf16")
    wide = np.frexp(generate("x", (20000,), 0, "wide"))[1] - 1
    assert wide.min() == -20 and wide.max() == 19
    assert sorted(set(generate("x", (20000,), 0, "dyadic").tolist())) == list(range(-4, 5))
    unit = generate("x", (20000,), 0, "unit")
    assert unit.min() >= 0 and unit.max() < 1 and abs(unit.mean() - 0.5) < 0.01


@pytest.mark.parametrize(
    ("fan_in", "want"), [(1, 0), (2, -1), (4, -1), (5, -2), (16, -2), (17, -3), (64, -3), (2048, -6), (4096, -6)]
)
def test_the_scale_is_the_power_of_two_at_or_below_one_over_the_root(fan_in, want):
    assert fan_in_exponent(fan_in) == want
    assert 2.0**want <= fan_in**-0.5 < 2.0 ** (want + 1)


# --- parameters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_those_the_configuration_has(name):
    config = CONFIGS[name]
    params = init_params(config, seed=5)
    assert isinstance(params, MoEParams)
    named = name_params(params)
    assert {n: a.shape for n, a in named.items()} == {n: shape for n, (shape, _) in parameter_shapes(config).items()}
    for n, (shape, exponent) in parameter_shapes(config).items():
        made = generate_table(n, shape, 5, config.num_choices) if n in INTEGER_PARAMS else None
        assert same_bits(named[n], generate(n, shape, 5, exponent=exponent) if made is None else made)
    assert all(same_bits(a, name_params(assemble_params(named))[n]) for n, a in named.items())


def test_the_names_and_scales_of_every_parameter():
    full = {
        "w_router": ((6, 6), -2), "w_gate": ((6, 5, 6), -2), "w_up": ((6, 5, 6), -2), "w_down": ((6, 6, 5), -2),
        "b_gate": ((6, 5), -3), "b_up": ((6, 5), -3), "b_down": ((6, 6), -3),
        "shared.w_gate": ((1, 4, 6), -2), "shared.w_up": ((1, 4, 6), -2), "shared.w_down": ((1, 6, 4), -1),
        "shared.b_gate": ((1, 4), -3), "shared.b_up": ((1, 4), -3), "shared.b_down": ((1, 6), -3),
        "shared.w_shared_gate": ((1, 6), -2),
    }  # fmt: skip
    assert parameter_shapes(CASES["weight_on_input"]) == full
    plain = parameter_shapes(config_of(experts={"gated": False}, routing={"router_bias": True, "selection_bias": True}))
    assert list(plain) == ["w_router", "router_bias", "selection_bias", "w_up", "w_down"]


def test_parameters_for_narrow_stores():
    for array in name_params(init_params(CASES["weight_on_input"], recipe="bf16")).values():
        assert is_representable(array, "bf16") and is_representable(array, "fp16")


def test_ids_and_tables_are_words_modulo_a_count():
    assert generate_ids("token_ids", (4,), 9, 5).tolist() == [int(w) % 5 for w in words(9, "token_ids", 0, 4)]
    table = generate_table("hash_table", (3, 4), 2, 5)
    assert table.dtype == np.int64
    first = [int(w) % 5 for w in words(2, "hash_table", 0, 3)]
    assert table.tolist() == [[(w + j) % 5 for j in range(4)] for w in first]
    assert all(len(set(row)) == 4 for row in table.tolist())
