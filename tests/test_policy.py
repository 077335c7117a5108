"""The policy and what it is given: choices that contradict each other, weights that come expert by expert, and every
elementary function of the contract read through `evaluate`."""

import re

import mpmath
import numpy as np
import pytest

import refmoe
from refmoe import Numerics, kernels
from refmoe.formats import round_fraction
from refmoe.recipes import generate, init_params

CONFIG = refmoe.MoEConfig(hidden_size=8, intermediate_size=6, num_experts=3, top_k=2)
BACKENDS = ("numpy", "c")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("profile", ["chain", "float64"])
def test_tiers_are_forced_in_exact_alone(profile, backend):
    with pytest.raises(ValueError, match=f"^force_tier: expected None in profile '{profile}', got 'exact'"):
        Numerics(profile, backend=backend, force_tier="exact")


@pytest.mark.parametrize("name", ["profile", "store", "backend", "force_tier"])
@pytest.mark.parametrize("value", ["", [], ["exact"], 0, np.float32])
def test_a_choice_is_one_of_its_names(name, value):
    """Nothing that is merely false stands for the default, and nothing is tried for what it may be."""
    with pytest.raises(ValueError, match=rf"^{name}: expected one of .*, got {re.escape(repr(value))}; choose"):
        Numerics(**{"backend": "numpy", name: value})


@pytest.mark.parametrize("threads", ["2", 0, -1, 1.5, 1 << 31])
def test_threads_are_a_count(threads):
    with pytest.raises(ValueError, match=rf"^threads: expected a positive count, got {threads!r}; "):
        Numerics(backend="c", threads=threads)


def test_a_kernel_is_not_asked_for_in_vain(monkeypatch):
    """NumPy has none; and where the compiled module is missing, a name is no reason to go on without."""
    with pytest.raises(ValueError, match=r"^kernel: expected None with backend 'numpy', got 'portable'; "):
        Numerics(backend="numpy", kernel="portable")
    monkeypatch.delenv("REFMOE_BACKEND", raising=False)
    monkeypatch.setattr(kernels, "build_error", lambda: "not compiled")
    with pytest.raises(ImportError, match=r"^backend 'c': expected the compiled module .*, got not compiled; "):
        Numerics(kernel="portable")


# --- sources of weights ----------------------------------------------------------------------------------------------


class Source:
    """Expert weights that are made when they are asked for."""

    def __init__(self, shape, made):
        self.shape, self.made = shape, made

    def __call__(self, e):
        return self.made


BAD_EXPERTS = [
    (np.zeros((6, 7), np.float32), ValueError, r"shape \(6, 8\), got \(6, 7\)"),
    (np.zeros((6, 8), np.float16), TypeError, "native float32 or float64, got <f2"),
    (np.zeros((6, 8), ">f4"), TypeError, "native float32 or float64, got >f4"),
    ([[0.0] * 8] * 6, TypeError, "a NumPy array, got list"),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("made", "error", "message"), BAD_EXPERTS)
def test_what_a_source_gives_is_checked_as_it_is_read(made, error, message, backend):
    params, x = init_params(CONFIG), generate("x", (5, 8), 0)
    with pytest.raises(error, match=rf"^up_rows, expert \d: expected .*{message}"):
        refmoe.moe_forward(x, params._replace(w_up=Source((3, 6, 8), made)), CONFIG, Numerics(backend=backend))


def test_a_source_is_checked_on_the_way_back_too():
    params, x, num = init_params(CONFIG), generate("x", (5, 8), 0), Numerics(backend="numpy")
    record = refmoe.moe_forward(x, params, CONFIG, num)
    broken = params._replace(w_up=Source((3, 6, 8), BAD_EXPERTS[0][0]))
    with pytest.raises(ValueError, match=r"^d_x_rows, expert \d: expected shape"):
        refmoe.moe_backward(x, x, broken, record, CONFIG, num)


# --- elementary functions: clause 6 ----------------------------------------------------------------------------------

mp = mpmath.mp.clone()
mp.prec = 400
FUNCTIONS = {
    "exp": (lambda m, t: m.exp(t), mp.exp, (-100, 88)),
    "expm1": (lambda m, t: m.expm1(t), mp.expm1, (-100, 88)),
    "log": (lambda m, t: m.log(t), mp.log, (2.0**-120, 1e30)),
    "log1p": (lambda m, t: m.log1p(t), mp.log1p, (-0.999, 1e30)),
    "sigmoid": (lambda m, t: m.sigmoid(t), lambda t: 1 / (1 + mp.exp(-t)), (-100, 100)),
    "tanh": (lambda m, t: m.tanh(t), mp.tanh, (-10, 10)),
    "erf": (lambda m, t: m.erf(t), mp.erf, (-4, 4)),
    "erfc": (lambda m, t: m.erfc(t), mp.erfc, (-4, 9)),
    "softplus": (lambda m, t: m.softplus(t), lambda t: mp.log1p(mp.exp(t)), (-100, 100)),
    "rsqrt": (lambda m, t: 1 / m.sqrt(t), lambda t: 1 / mp.sqrt(t), (2.0**-120, 1e30)),
}


def arguments(low, high):
    """Float32 numbers over the range: evenly spread, and at every magnitude."""
    rng = np.random.default_rng(0)
    even = rng.uniform(low, min(high, 1e3), 200)
    small = np.concatenate([2.0 ** rng.uniform(-40, 0, 100), -(2.0 ** rng.uniform(-40, -0.01, 100))])
    spread = np.concatenate([even, small[(small > low) & (small < high)]])
    return spread.astype(np.float32)[None]


@pytest.mark.parametrize("store", ["float32", "bf16", "fp16"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_is_correctly_rounded(name, store):
    formula, truth, domain = FUNCTIONS[name]
    x = arguments(*domain)
    got = Numerics(store=store, backend="numpy").evaluate("hidden_rows", formula, x)
    for t, value in zip(x[0], got[0], strict=True):
        exact = truth(mp.mpf(float(t)))
        fraction = refmoe_fraction(exact)
        assert value == np.float32(round_fraction(fraction, store)), (name, t)


def refmoe_fraction(number):
    """An mpmath number as an exact Fraction."""
    from fractions import Fraction

    sign, mantissa, exponent, _ = number._mpf_
    value = Fraction(int(mantissa)) * Fraction(2) ** int(exponent)
    return -value if sign else value


@pytest.mark.parametrize("name", FUNCTIONS)
def test_float64_and_complex_readings_agree(name):
    from refmoe.check import Complex128

    formula, truth, domain = FUNCTIONS[name]
    x = arguments(*domain).astype(np.float64)
    got = Numerics("float64", backend="numpy").evaluate("hidden_rows", formula, x)
    want = np.array([float(truth(mp.mpf(float(t)))) for t in x[0]])
    assert np.abs(got[0] - want).max() <= 2.0**-50 * np.abs(want).max()
    assert (np.abs(got[0] - want) <= 2.0**-49 * np.abs(want)).all()
    steep = np.imag(formula(Complex128(), x + 1e-200j)[0]) / 1e-200
    slope = np.array([float(mp.diff(truth, mp.mpf(float(t)))) for t in x[0]])
    assert (np.abs(steep - slope) <= 1e-12 * np.abs(slope) + 1e-300).all()
