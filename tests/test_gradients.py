"""Gradients: against complex step, with an error planted in every line, and against fifty digits."""

import ast
import dataclasses
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import oracle
import pytest
from cases import CASES, CONFIGS, config_of, losses_of, make, run
from planted_lines import MUTANTS
from planting import LEAVES, SMALL, detects, planted

import refmoe
from refmoe import Numerics
from refmoe.check import TOLERANCE, check_gradients, subjects
from refmoe.config import CAPACITY_NAMES
from refmoe.recipes import CONSTANT_PARAMS, name_params

EXACT = Numerics(backend="numpy")
FLOAT64 = Numerics("float64", backend="numpy")


# --- the checker -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_every_gradient_agrees_with_complex_step_in_every_element(name):
    check = check_gradients(CONFIGS[name], limit=10**9)
    assert check.ok, f"\n{check}"
    assert all(row.complex_step <= 1e-13 for row in check.rows)
    made = {
        name for name, array in run(CONFIGS[name], FLOAT64, 6)[1]._asdict().items() if isinstance(array, np.ndarray)
    }
    checked = {row.tensor for row in check.rows}
    # these are stages on the way; what is made of them is checked
    assert made - {"d_normed_y_rows", "d_scaled_y_rows", "d_y_rows", "d_weighted_x_rows", "d_scores"} <= checked
    assert {
        f"d_{name}" for name in name_params(make(CONFIGS[name], FLOAT64)[1]) if name not in CONSTANT_PARAMS
    } <= checked


# Twelve formulas of one integer: a small layer will do for each.
CAPACITIES = {
    rule: config_of(
        hidden_size=3, intermediate_size=2, num_experts=4, top_k=2,
        dispatch={"capacity_factor": 0.5, "capacity_rule": rule, "normalize_after_drop": True},
        routing={"normalize": True},
    )
    for rule in CAPACITY_NAMES
}  # fmt: skip


@pytest.mark.parametrize("rule", CAPACITIES)
def test_gradients_under_every_capacity_rule(rule):
    check = check_gradients(CAPACITIES[rule], num_tokens=9, limit=10**9)
    assert check.ok, f"\n{check}"
    assert all(row.complex_step <= 1e-13 for row in check.rows)


def test_the_configurations_between_them_use_every_value_of_every_field():
    def leaves(section, path=""):
        for spec in dataclasses.fields(section):
            value = getattr(section, spec.name)
            if dataclasses.is_dataclass(value):
                yield from leaves(value, f"{path}{spec.name}.")
            elif "section" not in spec.metadata:
                yield path + spec.name, spec, value

    used, specs = {}, {}
    for config in [*CONFIGS.values(), *CAPACITIES.values()]:
        for name, spec, value in leaves(config):
            used.setdefault(name, set()).add(value)
            specs[name] = spec
    for name, spec in specs.items():
        if "." not in name:  # a size
            continue
        wanted = set(spec.metadata.get("one_of", {True, False} if isinstance(spec.default, bool) else ()))
        assert wanted <= used[name] and used[name] - {spec.default}, name


@pytest.mark.parametrize("seed", [1, 2])
def test_other_seeds_pass_too(seed):
    check = check_gradients(CASES["weight_on_input"], seed=seed)
    assert check.ok, f"\n{check}"


def test_the_checks_table_can_be_read():
    check = check_gradients(SMALL["silu"], num_tokens=4)
    text = str(check)
    assert "complex step" in text and "d_w_gate" in text and text.splitlines()[-1].startswith("ok")
    assert check.errors["d_x"].keys() == TOLERANCE.keys() - {"fifty_digits"} and "not asked for" in text
    with planted("routing.weights", "return w * m.centre(G, w, z) * c", "return w * G * c"):
        text = str(check_gradients(SMALL["silu"], num_tokens=4))
    assert "FAILS" in text and text.splitlines()[-1].startswith("FAILED")


# --- fifty digits -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["silu", "clamped", "gelu", "soft", "sqrt_softplus", "sparsemixer"])
def test_fifty_digits_agree_with_every_gradient(name):
    check = check_gradients((SMALL | CONFIGS)[name], num_tokens=4, limit=1, oracle=True)
    assert check.ok and not check.missing, f"\n{check}"
    assert all(row.fifty_digits is not None and row.fifty_digits < 2e-14 for row in check.rows)
    assert str(check).splitlines()[1].split()[3] == f"{check.rows[0].fifty_digits:.1e}"


@pytest.mark.parametrize("name", ["sigmoid", "silu", "gelu", "gelu_tanh", "sqrt_softplus"])
def test_the_oracles_functions_have_fifty_digits(name):
    """A function and its derivative are two formulas: their constants too must be right to all the digits."""
    from refmoe.check.digits import FiftyDigits, slope

    num = FiftyDigits()
    at = np.array([-30.5, -3.25, -0.125, 0.5, 2.0, 7.75])
    function, derivative = getattr(num.reading, name), getattr(num.reading, f"{name}_derivative")
    for x, exact in zip(at, derivative(num.exact(at)), strict=True):
        found = slope(lambda v: function(v)[0], np.array([x]), np.ones(1), num)
        assert abs(found - exact) < num.reading.context.mpf(10) ** -50


def test_the_oracle_alone_sees_a_small_error(monkeypatch):
    """One part in a billion of one tensor: far below what differences see, and complex step is told to look away."""
    plain = subjects.moe_backward

    def wrong(*arguments):
        grads = plain(*arguments)
        return grads._replace(params=grads.params._replace(w_up=grads.params.w_up * (1 + 1e-9)))

    monkeypatch.setattr(subjects, "moe_backward", wrong)
    check = check_gradients(SMALL["silu"], num_tokens=4, limit=1, oracle=True)
    assert not check.ok and [row.tensor for row in check.rows if row.fifty_digits > 1e-13] == ["d_w_up"]
    (row,) = (row for row in check.rows if row.tensor == "d_w_up")
    assert row.difference <= row.bars[2] and not row._replace(complex_step=0.0).ok


def test_without_mpmath_the_table_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpmath", None)
    check = check_gradients(SMALL["relu"], num_tokens=4, limit=1, oracle=True)
    assert check.ok and all(row.fifty_digits is None for row in check.rows)
    assert "no fifty digits: they need mpmath" in str(check) and "pip install mpmath" in str(check)
    assert "ok: complex_step <= 1e-13, difference <= 1e-06" in str(check)


# --- errors planted one at a time ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*SMALL, *LEAVES])
def test_detectors_are_silent_without_an_error(name):
    assert not detects(name)


@pytest.mark.parametrize(
    ("module", "old", "new", "detector"), [(module, *row) for module, rows in MUTANTS.items() for row in rows]
)
def test_a_planted_error_is_noticed(module, old, new, detector):
    with planted(module, old, new):
        assert detects(detector)
    assert not (detector in LEAVES and detects(detector)), "the error was not taken out again"


def test_every_backward_formula_has_a_planted_error():
    """By name: each function that is a backward, or a derivative, of the modules in the table."""
    assert sum(map(len, MUTANTS.values())) >= 45
    missing = []
    for module, rows in MUTANTS.items():
        source = Path(import_module(f"refmoe.{module}").__file__).read_text(encoding="utf-8")
        planted_at = {source[: source.index(old)].count("\n") + 1 for old, *_ in rows}
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef) and any(w in node.name for w in ("backward", "derivative", "_slope")):
                if not planted_at & set(range(node.lineno, node.end_lineno + 1)):
                    missing.append(f"{module}.{node.name}")
    assert not missing


# --- fifty digits ----------------------------------------------------------------------------------------------------


def test_float64_gradients_against_an_oracle_of_fifty_digits():
    shared = {"shared_intermediate_size": 2, "shared_gate": True}
    config = config_of(
        hidden_size=3, intermediate_size=2, num_experts=4, top_k=2,
        routing={"score_fn": "sigmoid", "router_bias": True, "normalize": True, "norm_eps": 0.125, "scaling_factor": 2},
        experts={"alpha": 1.702, "limit": 0.25, "linear_offset": 1, "biases": True} | shared,
        losses=losses_of({"probs": "normalized_sigmoid"}, 0.2, {"eps": 0.1}),
    )  # fmt: skip
    x, params, d_y = make(config, FLOAT64, 3)
    record = refmoe.moe_forward(x, params, config, FLOAT64)
    limits = np.concatenate([record.experts.gate_rows, record.experts.up_rows]) / 0.25
    assert (limits > 1).any() and (np.abs(limits) < 1).any()  # the clamp binds somewhere, and not everywhere
    grads = refmoe.moe_backward(d_y, x, params, record, config, FLOAT64)
    want = oracle.gradients(name_params(params) | {"x": x}, record.routing.topk_indices.tolist(), config, d_y)
    got = name_params(grads.params) | {"x": grads.d_x}
    assert got.keys() == want.keys()
    for name in want:
        error = np.abs(got[name] - want[name]).max() / np.abs(want[name]).max()
        assert error <= 1e-12, f"{name}: {error:.1e}"
