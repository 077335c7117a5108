"""Rules of selection by hand, against the law, and who may know of whom."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from cases import CONFIGS, config_of, make, same_bits
from law_bridge import LAW, agree, hard_logits, law_params, policy, to_law

import refmoe
from refmoe import Given, Numerics, selection
from refmoe.config.routing_rules import SELECTIONS, VARIABLE_SELECTIONS
from refmoe.recipes import init_given
from refmoe.routing import ESTIMATORS, route, topk_weights_backward

EXACT = Numerics(backend="numpy")
FLOAT64 = Numerics("float64", backend="numpy")
SIZES = {"num_experts": 6, "top_k": 2}


def f32(values):
    return np.array(values, np.float32)


def chosen(logits, routing, params=None, given=None, dispatch=None, **sizes):
    """The record of a route from these logits."""
    config = config_of(routing=routing, dispatch=dispatch, **SIZES | sizes)
    given = (given or Given())._replace(logits=f32(logits))
    return route(None, params or refmoe.MoEParams(), config, EXACT, given)


# --- per group -------------------------------------------------------------------------------------------------------

PER_GROUP = {"selection": "per_group", "selection_base": "logits"}


def test_each_group_gives_its_share():
    # groups (3, 2), (1, 9), (0, 0): one of each, by rank; the tie of the last group goes to the lowest id
    record = chosen([[3, 2, 1, 9, 0, 0]], {**PER_GROUP, "num_groups": 3}, top_k=3)
    assert record.topk_indices.tolist() == [[3, 0, 4]]
    assert record.margin.tolist() == [0] and record.group_scores is None
    # groups (3, 2, 1), (9, 0, -5): two of each, though 1 is more than 0
    record = chosen([[3, 2, 1, 9, 0, -5]], {**PER_GROUP, "num_groups": 2}, top_k=4)
    assert record.topk_indices.tolist() == [[3, 0, 1, 4]] and record.margin.tolist() == [1]


def test_ties_between_groups_are_listed_by_id_and_full_groups_have_no_margin():
    record = chosen([[1, 0, 1, 0, 1, 0]], {**PER_GROUP, "num_groups": 3}, top_k=3)
    assert record.topk_indices.tolist() == [[0, 2, 4]]
    record = chosen([[1, 0, 1, 0, 1, 0]], {**PER_GROUP, "num_groups": 3}, top_k=6)
    assert record.topk_indices.tolist() == [[0, 2, 4, 1, 3, 5]] and np.isposinf(record.margin).all()


# --- hash ------------------------------------------------------------------------------------------------------------


def test_a_table_chooses_and_live_scores_weigh():
    table = np.array([[4, 1], [0, 5], [2, 3]])
    routing = {"selection": "hash", "hash_vocab_size": 3, "score_fn": "sigmoid"}
    given = Given(token_ids=np.array([2, 0]))
    record = chosen([[9, 9, 0, 9, 9, 9], [1] * 6], routing, refmoe.MoEParams(hash_table=table), given)
    assert record.topk_indices.tolist() == [[2, 3], [4, 1]]
    assert record.choice_scores is None and record.margin is None
    config = config_of(routing=routing, **SIZES)
    weights = refmoe.routing.topk_weights(record.logits, record.scores, record.topk_indices,
                                          record.topk_indices >= 0, config, EXACT)  # fmt: skip
    assert weights[0].tolist() == [0.5, record.scores[0, 3]]


# --- threshold and top-p ---------------------------------------------------------------------------------------------


def test_every_expert_above_the_threshold_and_none_at_it():
    routing = {"selection": "threshold", "score_fn": "relu"}
    record = chosen([[0, 2, -1, 0.5, 2, 3], [-1, 0, -0.0, -2, -3, -4]], routing)
    assert record.topk_indices.tolist() == [[5, 1, 4, 3], [-1, -1, -1, -1]]
    assert record.margin.tolist() == [0, 0]
    record = chosen([[0, 0, 0, 0, 0, 0]], routing)
    assert record.topk_indices.tolist() == [[-1]]


def test_the_threshold_is_a_binary64_number():
    """0.1 lies between two float32 values; the nearer one, above it, exceeds it."""
    routing = {"selection": "threshold", "selection_base": "logits", "threshold": 0.1}
    assert np.float64(np.float32(0.1)) > 0.1
    record = chosen([[np.float32(0.1), np.nextafter(np.float32(0.1), np.float32(0)), 0, 0, 0, 0]], routing)
    assert record.topk_indices.tolist() == [[0]]
    assert record.margin[0] == np.float32(np.float64(np.float32(0.1)) - 0.1)


def test_replayed_selections_may_have_any_number_of_slots():
    config = config_of(routing={"selection": "threshold"}, **SIZES)
    x, params, _ = make(config, EXACT, 3)
    given = Given(topk_indices=np.array([[5, -1, 0], [1, 2, 3], [-1, -1, -1]]))
    record = refmoe.moe_forward(x, params, config, EXACT, given)
    assert record.routing.topk_weights.shape == (3, 3) and (record.routed[2] == 0).all()


def test_top_p_takes_the_fewest_that_reach_p():
    quarters = [[0, 0, 0, 0, -1000, -1000]]  # four scores of exactly 1/4
    for p, want in [(0.25, [0]), (0.26, [0, 1]), (0.5, [0, 1]), (0.75, [0, 1, 2]), (1.0, [0, 1, 2, 3])]:
        record = chosen(quarters, {"selection": "top_p", "top_p": p})
        assert record.topk_indices.tolist() == [want]
    assert chosen(quarters, {"selection": "top_p", "top_p": 1.5}).topk_indices.tolist() == [[0, 1, 2, 3, 4, 5]]
    above = float(np.nextafter(0.5, 1))  # by less than any float32 near it
    assert chosen(quarters, {"selection": "top_p", "top_p": above}).topk_indices.tolist() == [[0, 1, 2]]


def test_top_p_margins():
    logits = [[0, 0, 0, 0, -1000, -1000]]
    margin = lambda p: chosen(logits, {"selection": "top_p", "top_p": p}).margin.tolist()  # noqa: E731
    assert margin(0.25) == [0]  # reached exactly, and the next expert has the same score
    assert margin(0.875) == [0.125]  # 1 is 1/8 beyond, 3/4 lacked 1/8, and the gap is 1/4
    assert margin(1.5) == [0.5]  # all taken: the five before the last lacked 1/2
    assert chosen([[1.0]], {"selection": "top_p"}, num_experts=1, top_k=1).margin.tolist() == [np.inf]


def test_rules_without_a_fixed_number_are_those_the_configuration_knows():
    variable = {name for name, rule in selection.SELECTIONS.items() if not rule.fixed}
    assert variable == set(VARIABLE_SELECTIONS) and (*selection.SELECTIONS, "soft") == SELECTIONS


# --- expert choice ---------------------------------------------------------------------------------------------------

CHOICE = {"selection": "expert_choice", "selection_base": "logits"}


def test_each_expert_takes_its_best_tokens():
    # expert 0 likes tokens 1 and 3, expert 1 tokens 0 and 1 (a tie with token 2 goes to the lowest), expert 2: 3 and 0
    logits = [[0, 2, 3], [5, 1, 0], [1, 1, 0], [4, 0, 9]]
    record = chosen(logits, CHOICE, dispatch={"capacity": 2}, num_experts=3)
    assert record.topk_indices.tolist() == [[1, 2], [0, 1], [-1, -1], [0, 2]]
    # token 0: 3 from its place at expert 2, 1 at expert 1, 4 short of expert 0; token 1 and 2 tie at expert 1
    assert record.margin.tolist() == [1, 0, 0, 1]
    record = chosen(logits, CHOICE, dispatch={"capacity": 0}, num_experts=3)
    assert (record.topk_indices == -1).all() and np.isposinf(record.margin).all()
    record = chosen(logits, CHOICE, dispatch={"capacity": 9}, num_experts=3)
    assert (record.topk_indices == np.arange(3)).all() and np.isposinf(record.margin).all()


def test_scopes_choose_apart_and_the_capacity_drops_nothing_more():
    config = config_of(
        routing={"selection": "expert_choice"},
        dispatch={"capacity_factor": 1.0, "capacity_scope": "sequence"},
        **SIZES,
    )
    x, params, _ = make(config, EXACT, 9)
    ids = np.array([2, 2, 2, 0, 0, 0, 0, 0, 0])
    record = refmoe.moe_forward(x, params, config, EXACT, Given(sequence_ids=ids))
    for sequence, capacity in ((2, 1), (0, 2)):  # ceil(1.0 * tokens * 2 / 6)
        named = record.routing.topk_indices[ids == sequence]
        assert np.bincount(named[named >= 0], minlength=6).tolist() == [capacity] * 6
    assert ((record.plan.slot_row >= 0) == (record.routing.topk_indices >= 0)).all()


def test_a_softmax_over_tokens_is_a_column_of_each_scope():
    config = config_of(routing={"score_fn": "softmax_tokens"}, dispatch={"capacity": 9, "capacity_scope": "sequence"})
    logits = np.zeros((3, 6), np.float32)
    logits[1] = 100
    given = Given(logits=logits, sequence_ids=np.array([0, 1, 0]))
    record = route(None, refmoe.MoEParams(), config, EXACT, given)
    assert record.scores[:, 0].tolist() == [0.5, 1, 0.5]
    record = chosen([[0] * 6, [0] * 6, [-1000] * 6], {"score_fn": "softmax_tokens"})
    assert record.scores[:, 0].tolist() == [0.5, 0.5, 0]


def test_a_weight_divided_by_the_number_of_experts():
    config = config_of(routing={"score_fn": "sigmoid", "divide_by_count": True}, **SIZES | {"top_k": 3})
    indices, z = np.array([[0, 1, -1], [2, -1, -1], [-1, -1, -1]]), np.zeros((3, 6), np.float32)
    weights = refmoe.routing.topk_weights(z, z + 0.5, indices, indices >= 0, config, EXACT)
    assert weights.tolist() == [[0.25, 0.25, 0], [0.5, 0, 0], [0, 0, 0]]


# --- Sinkhorn --------------------------------------------------------------------------------------------------------


def test_potentials_by_hand():
    """Two tokens, two experts, all logits 0: one step gives f = -ln 4 and g = ln 2 - ln 2 + ... = 0 + ln 2 - ln 1."""
    rows, columns = selection.sinkhorn(np.zeros((2, 2), np.float32), 1, EXACT)
    f = np.float32(-np.log(4))
    assert rows.tolist() == [[f, f]]
    assert columns[0, 0] == columns[0, 1] == np.float32(-np.log(4) - np.float64(f))


def test_the_scaled_matrix_is_balanced():
    z = hard_logits(3, distant=False)[:12]
    rows, columns = selection.sinkhorn(z, 60, FLOAT64)
    matrix = np.exp(z + rows[-1][:, None] + columns[-1])
    np.testing.assert_allclose(matrix.sum(axis=0), 1 / 6, rtol=1e-9)
    np.testing.assert_allclose(matrix.sum(axis=1), 1 / 12, rtol=1e-3)


def megatron(z, top_k):
    """Megatron-LM's loop, on exponentials, with its epsilon and its stopping rule."""
    cost, d0, d1, error = np.exp(z), np.ones(len(z)), np.ones(z.shape[1]), np.inf
    while error > 1e-4:
        d0 = 1 / len(d0) / (np.sum(d1 * cost, axis=1) + 1e-8)
        before, d1 = d1, 1 / len(d1) / (np.sum(d0[:, None] * cost, axis=0) + 1e-8)
        error = np.mean(np.abs(before - d1))
    return np.argsort(-d1 * cost * d0[:, None], axis=1, kind="stable")[:, :top_k]


@pytest.mark.parametrize("seed", range(3))
def test_the_ranking_is_that_of_megatron(seed):
    z = np.random.default_rng(seed).standard_normal((32, 6)).astype(np.float32)
    record = chosen(z, {"selection_base": "sinkhorn"})
    assert (record.topk_indices == megatron(z.astype(np.float64), 2)).all()
    assert not (record.topk_indices == chosen(z, {}).topk_indices).all()
    counts = np.bincount(record.topk_indices[:, 0], minlength=6)
    assert counts.max() <= np.bincount(chosen(z, {}).topk_indices[:, 0], minlength=6).max()


# --- a sampled second expert -----------------------------------------------------------------------------------------


def test_the_second_choice_is_the_best_of_the_others_by_noisy_logits():
    routing = {"second_expert": "sampled"}
    z, noise = [[4, 3, 2, 1, 0, 0]], f32([[-9, 0, 2, 0, 0, 0]])
    record = chosen(z, routing, given=Given(noise=noise))
    assert record.topk_indices.tolist() == [[0, 2]] and record.margin.tolist()[0] < 1
    assert record.second_choice_scores.tolist() == [[-np.inf, 3, 4, 1, 0, 0]]
    assert chosen(z, routing).topk_indices.tolist() == [[0, 1]]
    assert chosen(z, routing).second_choice_scores is None


# --- assignment ------------------------------------------------------------------------------------------------------

BASE_LAYER = {"selection": "assignment", "selection_base": "logits", "score_fn": "sigmoid"}


def all_balanced(T, E):
    return set(itertools.permutations([e for e in range(E) for _ in range(T // E)]))


@pytest.mark.parametrize("seed", range(4))
def test_the_solver_finds_the_best_of_all_and_proves_it(seed):
    z = np.random.default_rng(seed).standard_normal((6, 3)).astype(np.float32)
    indices, prices = selection.solve_assignment(z)
    total = lambda p: sum(Fraction(float(z[t, e])) for t, e in enumerate(p))  # noqa: E731
    best = max(all_balanced(6, 3), key=total)
    assert indices[:, 0].tolist() == list(best) and prices.dtype == np.float64
    selection.check_assignment(z, indices, prices, EXACT)
    assert selection.is_unique_assignment(z, indices, prices)
    assert LAW.check_assignment(to_law(z), to_law(indices), prices.tolist()) is None
    for other in sorted(all_balanced(6, 3))[::7]:
        if other != best:
            moved = np.array(other)[:, None]
            with pytest.raises(
                ValueError, match=r"^given\.assignment_duals: expected prices at which each token has its"
            ):
                selection.check_assignment(z, moved, prices, EXACT)
            with pytest.raises(ValueError, match="rather be elsewhere"):
                LAW.check_assignment(to_law(z), to_law(moved), prices.tolist())


def test_an_assignment_is_balanced_and_the_comparison_exact():
    z, prices = np.array([[1, 0], [0, 1]], np.float32), np.zeros(2)
    with pytest.raises(
        ValueError, match=r"^given\.topk_indices: expected 2 tokens shared out evenly among 2 experts, got"
    ):
        selection.check_assignment(z, np.array([[0], [0]]), prices, EXACT)
    even = np.array([[0], [1]])
    selection.check_assignment(z, even, np.array([1.0, 0]), EXACT)  # token 0 is indifferent
    beyond = np.array([1 + 2.0**-52, 0])
    with pytest.raises(ValueError, match="token 0 with more at expert 1; use refmoe"):
        selection.check_assignment(z, even, beyond, EXACT)


def test_several_best_assignments_are_seen():
    z = np.array([[1, 1], [1, 1]], np.float32)
    indices, prices = selection.solve_assignment(z)
    assert not selection.is_unique_assignment(z, indices, prices)
    assert not LAW.is_unique_assignment(to_law(z), to_law(indices), prices.tolist())
    z = np.array([[1, 1], [0, 1]], np.float32)  # token 0 could move, token 1 would lose by it
    assert selection.is_unique_assignment(z, np.array([[0], [1]]), np.zeros(2))
    assert LAW.is_unique_assignment(to_law(z), [[0], [1]], [0.0, 0.0])


def test_a_balanced_layer_and_its_evaluation():
    config = config_of(routing=BASE_LAYER, **SIZES | {"top_k": 1, "num_experts": 4})
    x, params, d_y = make(config, EXACT, 8)
    greedy = refmoe.moe_forward(x, params, config, EXACT)
    indices, prices = selection.solve_assignment(greedy.routing.logits)
    given = Given(topk_indices=indices, assignment_duals=prices)
    record = refmoe.moe_forward(x, params, config, EXACT, given)
    assert record.plan.tokens_per_expert.tolist() == [2] * 4
    assert (greedy.routing.topk_indices[:, 0] == greedy.routing.logits.argmax(axis=1)).all()
    law = LAW.Law("exact", "float32")
    law_given = {"topk_indices": to_law(indices), "assignment_duals": prices.tolist()}
    agree(LAW.layer_forward(to_law(x), law_params(params), config.to_dict(), law, law_given)["y"], record.y)
    assert refmoe.moe_backward(d_y, x, params, record, config, EXACT, given).d_x.shape == x.shape


# --- SparseMixer -----------------------------------------------------------------------------------------------------

MIXER = {"selection": "sparsemixer", "selection_base": "logits"}


def mixed(logits, given=None, num=EXACT, **routing):
    """Indices and weights of one token."""
    config = config_of(routing=MIXER | routing, **SIZES | {"num_experts": len(logits)})
    given = (given or Given())._replace(logits=np.array([logits], num.dtype))
    record = route(None, refmoe.MoEParams(), config, num, given)
    record = refmoe.routing.weigh(record, np.ones((1, 2), bool), refmoe.MoEParams(), config, num, given)
    return record.topk_indices[0].tolist(), record.topk_weights[0].tolist()


def test_survivors_are_near_the_largest_logit_of_their_round():
    # eps 1/8: round 1 keeps logits with 4 - z <= 1/4 * 4, that is 4 and 3; round 2 those with 3 - z <= 3/4
    half = float(np.float32(1 / (1 + np.exp(-1.0))))
    assert mixed([4, 3, 2.25, 0], sparsemixer_eps=0.125)[0] == [0, 1]
    first, second = mixed([4, 3, 2.25, 0], sparsemixer_eps=0.125)[1]
    assert first == half and second == np.float32(1 / (1 + np.exp(-0.75)))
    assert mixed([4, 2.875, 2.0, 0], sparsemixer_eps=0.125)[1] == [1, 1]  # alone in both rounds
    assert mixed([0, 0, 0, 0])[1] == [0.25, float(np.float32(1 / 3))]  # 0 / 0 leaves nobody out


def test_the_comparison_is_exact_and_relative_to_the_larger_of_z_and_the_top():
    """-1 against -3: (2) / max(3, -1) = 2/3 is within 2 eps = 2/3 rounded up, and not within 2/3 rounded down."""
    below, above = float(np.nextafter(1 / 3, 0)), 1 / 3 if 2 * (1 / 3) * 3 > 2 else float(np.nextafter(1 / 3, 1))
    assert mixed([-1, -3], sparsemixer_eps=below)[1] == [1, 1]
    assert mixed([-1, -3], sparsemixer_eps=above)[1][0] < 1


def test_a_sampled_choice_is_weighed_by_its_multiplier_and_one_that_does_not_survive_by_nothing():
    given = Given(topk_indices=np.array([[1, 0]]), multipliers=f32([[1 / 3, 1]]))
    indices, weights = mixed([1, 1, -100, -100], given)
    assert indices == [1, 0] and weights == [np.float32(np.float64(np.float32(1 / 3)) / 2), 1]
    assert mixed([1, 1, -100, -100], Given(topk_indices=np.array([[2, 0]])))[1] == [0, 0.5]


def test_the_estimator_has_the_expectation_the_law_says():
    """All draws of both rounds, their probabilities and multipliers, against the gradient of half the squares."""
    num, v = Numerics("float64", backend="numpy"), np.array([0.7, -1.3, 0.4])
    z, both = np.array([[0.3, 0.5, 0.1]]), np.ones((1, 2), bool)
    config = config_of(routing=MIXER | {"sparsemixer_eps": 5.0}, **SIZES | {"num_experts": 3})
    softmax = lambda z: np.exp(z) / np.exp(z).sum()  # noqa: E731
    expectation, yields = np.zeros(3), 0.0
    for i in range(3):
        rest = [e for e in range(3) if e != i]
        for j in rest:
            p, q = softmax(z[0])[i], softmax(z[0][rest])[rest.index(j)]
            back = topk_weights_backward(v[[[i, j]]], z, softmax(z), np.array([[i, j]]), both, config, num)
            expectation += p * q * back[0][0]
            for h, chance in [(1.0, 1.0)] if i == 1 else [(1.0, 0.25), (1 / 3, 0.75)]:
                given = Given(topk_indices=np.array([[i, j]]), multipliers=np.array([[h, 1.0]]))
                yields += p * q * chance * mixed(z[0].tolist(), given, num, sparsemixer_eps=5.0)[1][0] * v[i]

    def halves(z, outer):
        first = 0.5 * np.sum(softmax(z) ** 2 * v)
        rests = [[e for e in range(3) if e != i] for i in range(3)]
        return first + sum(p * 0.5 * np.sum(softmax(z[r]) ** 2 * v[r]) for p, r in zip(outer, rests, strict=True))

    steps = 1e-200j * np.eye(3)
    want = [halves(z[0] + step, softmax(z[0])).imag / 1e-200 for step in steps]
    np.testing.assert_allclose(expectation, want, rtol=1e-14, atol=1e-16)
    squares = softmax(z[0]) ** 2 * v
    np.testing.assert_allclose(yields, squares.sum() / 2 + squares[1] / 2, rtol=1e-14)  # the largest counts twice
    assert set(ESTIMATORS) == {"sparsemixer"}


# --- the law ---------------------------------------------------------------------------------------------------------

RULES = {
    "per_group, one of each": {"routing": {"selection": "per_group", "num_groups": 3}, "top_k": 3},
    "per_group, two of each": {
        "routing": {"selection": "per_group", "num_groups": 2, "selection_base": "logits", "selection_bias": True},
        "top_k": 4,
    },
    "hash": {"routing": {"selection": "hash", "hash_vocab_size": 4}},
    "threshold": {"routing": {"selection": "threshold", "threshold": 0.1, "score_fn": "relu", "selection_bias": True}},
    "threshold on logits": {"routing": {"selection": "threshold", "threshold": 1.5, "selection_base": "logits"}},
    "sparsemixer": {"routing": {"selection": "sparsemixer", "selection_base": "logits"}},
    "assignment": {"routing": {"selection": "assignment", "selection_base": "logits"}, "top_k": 1},
    "sinkhorn": {"routing": {"selection_base": "sinkhorn", "sinkhorn_iterations": 2}},
    "sinkhorn, biased, by groups": {
        "routing": {
            "selection_base": "sinkhorn",
            "sinkhorn_iterations": 1,
            "selection_bias": True,
            "num_groups": 3,
            "top_groups": 2,
        }
    },
    "sinkhorn, above a threshold": {
        "routing": {"selection_base": "sinkhorn", "sinkhorn_iterations": 1, "selection": "threshold", "threshold": -5.0}
    },
    "sampled second": {"routing": {"second_expert": "sampled"}},
    "expert_choice": {"routing": CHOICE, "dispatch": {"capacity": 3}},
    "expert_choice, biased": {
        "routing": {"selection": "expert_choice", "selection_bias": True, "score_fn": "softmax_tokens"},
        "dispatch": {"capacity_factor": 0.75, "capacity_scope": "sequence"},
    },
    "expert_choice, by a rule": {
        "routing": {"selection": "expert_choice", "score_fn": "sigmoid"},
        "dispatch": {"capacity_factor": 0.5, "capacity_rule": "mesh_tf"},
    },
    "top_p": {"routing": {"selection": "top_p", "top_p": 0.75}},
    "top_p of one half": {"routing": {"selection": "top_p", "top_p": 0.5, "selection_bias": True}},
    "top_p never reached": {"routing": {"selection": "top_p", "top_p": 9.0}},
}


@pytest.mark.parametrize("name", RULES)
def test_every_rule_is_the_laws(name):
    config = refmoe.MoEConfig.from_dict({"hidden_size": 5, "intermediate_size": 3, **SIZES} | RULES[name])
    num, cfg, z = policy(), config.to_dict(), hard_logits(11)
    params = refmoe.init_params(config)
    given = {"logits": z, "sequence_ids": np.arange(24) // 9}
    given |= init_given(config, 24)
    record = route(None, params, config, num, Given(**given))
    made = LAW.route(
        [None] * 24, law_params(params), cfg, LAW.Law("exact", "float32"), {n: to_law(a) for n, a in given.items()}
    )
    fields = ("row_potentials", "column_potentials", "second_choice_scores")
    for field in (*fields, "scores", "choice_scores", "group_scores", "topk_indices", "margin"):
        agree(made[field], getattr(record, field), field)


# --- who may know of whom --------------------------------------------------------------------------------------------

CAUSAL = {
    "topk": {},
    "per_group": {"routing": {"selection": "per_group", "num_groups": 3}, "top_k": 3},
    "hash": {"routing": {"selection": "hash", "hash_vocab_size": 4}},
    "threshold": {"routing": {"selection": "threshold", "score_fn": "relu"}},
    "top_p": {"routing": {"selection": "top_p", "top_p": 0.5}},
    "threshold, capacity of a sequence, slot-major": {
        "routing": {"selection": "threshold", "score_fn": "relu"},
        "dispatch": {"capacity": 1, "capacity_scope": "sequence"},
        "top_k": 1,
    },
    "sparsemixer": {"routing": {"selection": "sparsemixer", "selection_base": "logits"}},
    "expert_choice": {"routing": {"selection": "expert_choice"}, "dispatch": {"capacity": 2}},
    "expert_choice in a sequence": {
        "routing": {"selection": "expert_choice"},
        "dispatch": {"capacity": 1, "capacity_scope": "sequence", "slot_order": "token_major"},
    },
    "softmax_tokens": {"routing": {"score_fn": "softmax_tokens"}},
    "assignment": {"routing": {"selection": "assignment", "selection_base": "logits"}, "top_k": 1},
    "sinkhorn": {"routing": {"selection_base": "sinkhorn", "sinkhorn_iterations": 2}},
    "sampled second": {"routing": {"second_expert": "sampled"}},
    "capacity of the batch": {"dispatch": {"capacity": 2, "slot_order": "token_major"}},
    "capacity of a sequence, slot-major": {"dispatch": {"capacity": 2, "capacity_scope": "sequence"}},
    "capacity of a sequence, slot-major, one choice": {
        "dispatch": {"capacity": 1, "capacity_scope": "sequence"},
        "top_k": 1,
    },
    "capacity of a sequence, token-major": {
        "dispatch": {"capacity": 2, "capacity_scope": "sequence", "slot_order": "token_major"}
    },
    "capacity of a sequence, the largest scores first": {
        "dispatch": {"capacity": 2, "capacity_scope": "sequence", "slot_order": "batch_prioritized"}
    },
    "capacity of a sequence, token-major, one row a token": {
        "dispatch": {"capacity": 1, "capacity_scope": "sequence", "slot_order": "token_major", "keep_at_most": 1}
    },
    "capacity of a sequence, slot-major, one row a token": {
        "dispatch": {"capacity": 1, "capacity_scope": "sequence", "keep_at_most": 1},
        "num_experts": 3,
    },
    "capacity of a sequence's devices, token-major": {
        "dispatch": {"capacity": 3, "capacity_scope": "sequence", "slot_order": "token_major", "capacity_devices": 2}
    },
    "a coin": {"routing": {"normalize": True, "second_expert": "random"}, "top_k": 2},
    "a soft mixture": {"routing": {"selection": "soft", "soft_scope": "sequence"}, "top_k": 1},
    "capacity of a sequence, by weight": {
        "dispatch": {
            "capacity": 2,
            "capacity_scope": "sequence",
            "slot_order": "token_major",
            "drop_policy": "probability",
        }
    },
}


def reached(config, seed):
    """Does a change of a later token, or of one of another sequence, change a token's output?"""
    T, ids = 8, np.array([0, 0, 0, 0, 1, 1, 1, 1])
    x, params, _ = make(config, EXACT, T, seed)
    other = make(config, EXACT, T, seed + 100)[0]
    given = Given(sequence_ids=ids, **init_given(config, T))
    before = refmoe.moe_forward(x, params, config, EXACT, given, keep="y").y
    for u in range(T):
        moved = x.copy()
        moved[u] = other[u]
        after = refmoe.moe_forward(moved, params, config, EXACT, given, keep="y").y
        blind = [t for t in range(T) if ids[t] != ids[u] or t < u]
        if not same_bits(after[blind], before[blind]):
            return True
    return False


@pytest.mark.parametrize("name", CAUSAL)
def test_later_tokens_are_seen_exactly_where_the_table_says(name):
    config = config_of(**SIZES | CAUSAL[name])
    assert any(reached(config, seed) for seed in range(3)) is not selection.is_causal(config)
    assert LAW.is_causal(config.to_dict()) is selection.is_causal(config)


def test_every_rule_is_among_them():
    rules = {config_of(**SIZES | fields).routing.selection for fields in CAUSAL.values()}
    assert rules - {"soft"} == set(selection.SELECTIONS) == set(LAW.SELECTIONS)
    assert {name for name, rule in selection.SELECTIONS.items() if rule.causal} == LAW.CAUSAL_RULES


def test_published_layers_without_capacity_are_causal():
    assert {name for name, config in CONFIGS.items() if not selection.is_causal(config)} >= {
        "after_drop",
        "before_drop",
    }
    assert selection.is_causal(refmoe.load_preset("deepseek-v3", scale="minimal"))
