"""The experiments of the lab, small: each runs, concludes and draws; what is derived is held against another way."""

import itertools
import sys
from fractions import Fraction

import numpy as np
import pytest

from refmoe.check import STEP
from refmoe.inputs import Given
from refmoe.lab.experiment import Table
from refmoe.lab.experiments import (
    EXPERIMENTS,
    bias_rules,
    capacity,
    causality,
    estimators,
    other_losses,
    precision,
    ranks,
    replicas,
    text_routers,
)
from refmoe.lab.student import layer, start_params
from refmoe.lab.tasks import Clusters, study
from refmoe.layer import moe_forward
from refmoe.models.accounting.plots import figure

SMALL = {"steps": 3, "tokens": 32, "clusters": (1, 8)}


def small_settings(experiment):
    fitting = {k: v for k, v in SMALL.items() if type(experiment.settings.get(k)) is type(v)}
    return experiment.settings | experiment.quick | fitting


def measured(experiment, settings, seeds=(0,)):
    arms = experiment.arms(settings)
    return Table({(arm, seed): experiment.measure(arm, seed, settings) for arm in arms for seed in seeds}, arms, seeds)


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=list(EXPERIMENTS))
def test_an_experiment_measures_every_arm_concludes_and_draws(experiment):
    settings = small_settings(experiment)
    table = measured(experiment, settings)
    for unit in table.units.values():
        assert unit["numbers"] and all(np.isfinite(v) and type(v) in (int, float) for v in unit["numbers"].values())
    told = experiment.findings(table, settings)
    assert told and all(len(f.values) == 1 and np.isfinite(f.values[0]) and f.judged()["sentence"] for f in told)
    assert len({f.name for f in told}) == len(told)
    fig, style = figure(13, 7)
    with style:
        experiment.draw(fig, table, settings)
    assert fig.axes and all(axes.has_data() for axes in fig.axes)


def test_the_exact_gradient_of_a_choice_is_the_complex_step_of_the_expected_loss():
    s = {"tokens": 5, "experts": 4, "hidden": 12, "width": 6, "sharpness": 2.0}
    p, losses, paths = estimators.every_choice(3, s)
    exact = estimators.expected(p, paths + losses[:, :, None] * estimators._directions(p))
    config, batch = layer(12, 6, 4, 1), Clusters(3, 12).batch(0, 5)
    params = start_params(config, 3)
    params = params._replace(w_router=2 * params.w_router, w_down=4 * params.w_down)
    answers, logits = [], None
    for e in range(4):
        record = moe_forward(batch.x, params, config, study(), Given(topk_indices=np.full((5, 1), e)))
        logits = record.routing.logits
        answers.append(record.y / p[:, e : e + 1])

    def expected_loss(z):
        q = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
        costs = [((q[:, e : e + 1] * a - batch.target) ** 2).mean(axis=1) for e, a in enumerate(answers)]
        return (q * np.stack(costs, axis=1)).sum()

    for t, j in itertools.product(range(5), range(4)):
        moved = logits.astype(complex)
        moved[t, j] += 1j * STEP
        assert abs(expected_loss(moved).imag / STEP - exact[t, j]) < 1e-13 * max(1, np.abs(exact).max())


def test_sparsemixers_exact_gradient_is_the_complex_step_of_its_expected_loss():
    """Every pair and multiplier, with probabilities that are written here once more."""
    s = {"tokens": 3, "experts": 3, "hidden": 12, "width": 6, "sharpness": 2.0}
    chances, estimates, exact = other_losses.sparsemixer(3, s)
    assert np.abs(chances.sum(axis=1) - 1).max() < 1e-14 and estimates.shape == (3, 24, 3)
    config, batch, params = other_losses.start(3, s, 2, other_losses.SPARSEMIXER)
    answers, logits = {}, None
    for a, b in itertools.permutations(range(3), 2):
        given = Given(topk_indices=np.tile([a, b], (3, 1)))
        record = moe_forward(batch.x, params, config, study(), given)
        logits, (order, rows) = record.routing.logits, (record.plan.slot_row, record.experts.y_rows)
        answers[a, b] = rows[order[:, 0]], rows[order[:, 1]]

    def softmax(z, gone=None):
        powers = np.exp(z) * (np.arange(3) != gone)
        return powers / powers.sum()

    def expected_loss(z, t):
        total = 0
        for (a, b), (first, second) in answers.items():
            p, q = softmax(z), softmax(z, a)
            tops = z.real.argmax() == a, np.where(np.arange(3) == a, -np.inf, z.real).argmax() == b
            for h in itertools.product((1, 1 / 3), repeat=2):
                chance = [(1.0 if k == 1 else 0.0) if top else (0.25 if k == 1 else 0.75) for k, top in zip(h, tops)]
                off = h[0] * p[a] * first[t] + h[1] * q[b] * second[t] - batch.target[t]
                total += p[a] * q[b] * chance[0] * chance[1] * (off * off).mean()
        return total

    for t, j in itertools.product(range(3), range(3)):
        moved = logits[t].astype(complex)
        moved[j] += 1j * STEP
        assert abs(expected_loss(moved, t).imag / STEP - exact[t, j]) < 1e-13 * np.abs(exact).max()


def test_a_router_that_draws_nothing_has_no_bias_and_one_that_draws_has():
    s = EXPERIMENTS["E11"].settings | {"tokens": 8, "experts": 4}
    smooth, drawn = (estimators.measure(arm, 1, s)["numbers"] for arm in ("ReLU", "SparseMixer"))
    assert smooth["bias"] < 1e-14 and smooth["deviation"] == 0
    assert drawn["bias"] > 0.01 and drawn["deviation"] > 0.1


def test_a_sampled_estimate_without_its_path_is_biased_and_both_together_are_not():
    s = EXPERIMENTS["E11"].settings | {"tokens": 16}
    assert estimators.measure("both", 1, s)["numbers"]["bias"] < 1e-14
    assert estimators.measure("both, baseline", 1, s)["numbers"]["bias"] < 1e-14
    assert estimators.measure("path, sampled", 1, s)["numbers"]["bias"] > 0.01


def test_the_predicted_drops_are_those_of_all_assignments():
    s = {"tokens": 5, "top_k": 1, "experts": 3}
    config = layer(4, 4, 3, 1, dispatch=capacity.DispatchConfig(capacity_factor=1.0))
    dropped = sum(sum(max(0, assigned.count(e) - 2) for e in range(3))
                  for assigned in itertools.product(range(3), repeat=5))  # fmt: skip
    assert capacity.predicted(config, s) == Fraction(dropped, 3**5 * 5)


def test_where_no_selection_changes_nothing_is_concluded_of_margins():
    """Logits far apart: bf16 moves none past another; then two so near that it joins them."""
    logits = np.array([[0.0, 1.0, 2.0, 4.0]])
    assert precision.rounded(logits, 1) == (0.0, 0.0, 1.0)
    near = np.concatenate([logits, [[1.0 + 2**-12, 0.0, 1.0 + 2**-11, 0.5]]])
    _, flips, margin = precision.rounded(near, 1)
    assert flips == 0.5 and margin < 0.01
    experiment, numbers = EXPERIMENTS["E9"], {"largest_logit": 1.0, "softmax_error": 1.0, "error": 1.0, "flips": 0.0}
    unit = {"numbers": numbers | {"flipped_margin": 1.0}, "series": {"scaled_error": [1, 2], "scaled_flips": [0, 0]}}
    table = Table({(arm, 0): unit for arm in precision.ARMS}, precision.ARMS, [0])
    told = {f.name: f.judged()["verdict"] for f in experiment.findings(table, experiment.settings)}
    assert told["margin"] == told["flips"] == "no difference in any of 1 seeds"


def test_a_change_under_a_causal_rule_would_be_found(monkeypatch):
    settings = EXPERIMENTS["E12"].settings | {"tokens": 32, "changes": 8}
    told = {f.name: f.values for f in causality.findings(measured(EXPERIMENTS["E12"], settings), settings)}
    assert told == {"causal": [1], "not_causal": [1]}
    monkeypatch.setattr(causality, "is_causal", lambda config: config.routing.selection != "soft")
    told = {f.name: f.values for f in causality.findings(measured(EXPERIMENTS["E12"], settings), settings)}
    assert told["causal"] == [-1]


def test_ranks_change_nothing_without_a_limit_and_outputs_with_one():
    free, limited = (ranks.measure(arm, 2, EXPERIMENTS["E14"].settings)["numbers"] for arm in ("no limit", "capacity"))
    assert free["outputs_changed"] == 0 and free["largest_gap"] < 1e-6
    assert limited["outputs_changed"] > 0.1 and limited["largest_gap"] > 1e-2


def test_spares_go_to_the_busiest_and_copies_to_the_least_busy_rank():
    copies = replicas.replicate([8, 2, 1, 1], 2)
    assert copies == [(Fraction(8, 3), 0)] * 3 + [(2, 1), (1, 2), (1, 3)]
    assert sorted(replicas.place(copies, 2)) == [Fraction(17, 3), Fraction(19, 3)]
    assert replicas.imbalance([Fraction(4), Fraction(8)], [8, 2, 1, 1], 2) == Fraction(4, 3)


@pytest.mark.parametrize("arm", bias_rules.arms(EXPERIMENTS["E3"].settings))
def test_every_rule_raises_the_bias_of_an_idle_expert(arm):
    s = EXPERIMENTS["E3"].settings | {"tokens": 64}
    config = layer(s["hidden"], s["width"], s["experts"], 1, routing=bias_rules.RoutingConfig(selection_bias=True))
    params = start_params(config, 0)
    record = moe_forward(Clusters(0).batch(0, 64).x, params, config, study())
    counts = record.plan.assigned_per_expert
    bias = bias_rules.make_control(arm, s)(params.selection_bias, record)
    assert bias[counts.argmin()] > bias[counts.argmax()]


def test_a_frozen_router_does_not_move_and_a_learned_one_does(monkeypatch):
    seen, settings = {}, small_settings(EXPERIMENTS["E13"])
    monkeypatch.setattr(text_routers, "evaluate", lambda params, *rest: seen.setdefault("params", params) and 1.0)
    for arm in text_routers.ARMS:
        seen.clear()
        numbers = text_routers.measure(arm, 0, settings)["numbers"]
        first = text_routers.start(text_routers.make_config(arm, settings), 0, study()).params
        moved = (seen["params"].blocks[0].feed_forward.w_router != first.blocks[0].feed_forward.w_router).any()
        assert moved == (arm == "learned") and (seen["params"].embedding != first.embedding).any()
        assert arm != "hash" or numbers["shared_information"] > 0.5


def test_results_do_not_depend_on_the_backend(monkeypatch):
    """The same bits from NumPy alone, for an experiment that trains."""
    from refmoe import Numerics

    settings = EXPERIMENTS["E1"].settings | {"steps": 3, "tokens": 32}
    first = EXPERIMENTS["E1"].measure("bias", 4, settings)
    for name in ("collapse", "balance_scope"):
        monkeypatch.setattr(sys.modules[f"refmoe.lab.experiments.{name}"], "study", lambda: plain)
    plain = Numerics("float64", backend="numpy")
    for name in ("student", "tasks", "measures"):
        monkeypatch.setattr(sys.modules[f"refmoe.lab.{name}"], "study", lambda: plain)
    assert EXPERIMENTS["E1"].measure("bias", 4, settings) == first
