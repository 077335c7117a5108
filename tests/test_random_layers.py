"""A slice of `make fuzz`: layers drawn from numbers agree with themselves in every reading."""

import pytest
from random_layers import draw_case, failures


@pytest.mark.parametrize("number", range(48))
def test_a_random_layer(number):
    assert failures(number) == []


def test_most_numbers_make_a_layer():
    assert sum(draw_case(number) is not None for number in range(48)) > 24
