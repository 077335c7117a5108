"""Every preset runs at minimal scale: the same bits in NumPy and C, and gradients that complex step confirms."""

import numpy as np
import pytest

import refmoe
from refmoe import kernels
from refmoe.check import make_given
from refmoe.models import load_preset, names
from refmoe.recipes import generate

LAYERS = {name: load_preset(name, scale="minimal") for name in names()}
DISTINCT = list({config: name for name, config in reversed(LAYERS.items())}.values())


def leaves(value):
    if isinstance(value, tuple):
        return [leaf for inner in value for leaf in leaves(inner)]
    return [] if value is None else [np.asarray(value).tobytes()]


def whole_run(config, num, tokens=6):
    params = refmoe.init_params(config)
    x, d_y = (generate(name, (tokens, config.hidden_size), 0) for name in ("x", "d_y"))
    given = make_given(config, tokens)
    record = refmoe.moe_forward(x, params, config, num, given)
    return leaves(record) + leaves(refmoe.moe_backward(d_y, x, params, record, config, num, given))


@pytest.mark.parametrize("name", DISTINCT)
def test_c_has_the_bits_of_numpy(name):
    want = whole_run(LAYERS[name], refmoe.Numerics(backend="numpy"))
    assert len(want) > 30
    for kernel, can_run, _ in kernels.available():
        if can_run:
            assert whole_run(LAYERS[name], refmoe.Numerics(backend="c", kernel=kernel, threads=2)) == want, kernel


@pytest.mark.parametrize("name", DISTINCT)
def test_gradients(name):
    check = refmoe.check_gradients(LAYERS[name], num_tokens=4)
    assert check.ok, f"{name}\n{check}"
