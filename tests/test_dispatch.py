"""Dispatch by hand: the plan, who is dropped, permute and combine."""

import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from cases import config_of, make, same_bits

import refmoe
from refmoe import Given, Numerics
from refmoe.config import CAPACITY_NAMES
from refmoe.dispatch import (
    CAPACITY_RULES,
    capacity_of,
    coin_keeps,
    combine,
    combine_backward,
    count_assigned,
    kept_slots,
    make_plan,
    permute,
    permute_backward,
    slot_values,
)

EXACT = Numerics(backend="numpy")


def f32(values):
    return np.array(values, np.float32)


def plan_of(indices, weights=None, given=None, num_experts=4, **dispatch):
    indices = np.array(indices)
    config = config_of(top_k=indices.shape[1], num_experts=num_experts, dispatch=dispatch)
    weights = np.zeros(indices.shape, np.float32) if weights is None else f32(weights)
    return make_plan(indices, weights, config, given or Given())


# --- the plan --------------------------------------------------------------------------------------------------------


def test_rows_are_in_expert_order_and_an_experts_rows_in_token_order():
    plan = plan_of([[2, 0], [0, 3], [2, 0]])
    # slots: 0 (t0, e2)  1 (t0, e0)  2 (t1, e0)  3 (t1, e3)  4 (t2, e2)  5 (t2, e0)
    assert plan.row_slot.tolist() == [1, 2, 5, 0, 4, 3]
    assert plan.slot_row.tolist() == [[3, 0], [1, 5], [4, 2]]
    assert plan.tokens_per_expert.tolist() == [3, 0, 2, 1] == plan.assigned_per_expert.tolist()
    assert plan.expert_offsets.tolist() == [0, 3, 3, 5, 6]
    assert {array.dtype for array in plan} == {np.dtype(np.int64)}


def test_an_expert_without_weights_has_no_buffer_to_fill():
    config = config_of(top_k=1, num_experts=2, dispatch={"capacity": 1}, experts={"zero_experts": 1})
    plan = make_plan(np.array([[2], [1], [2], [1], [2]]), np.zeros((5, 1), np.float32), config, Given())
    assert plan.tokens_per_expert.tolist() == [0, 1, 3]


def test_unused_slots_and_padding():
    plan = plan_of([[2, -1], [-1, -1], [2, 0]], given=Given(token_mask=np.array([True, True, False])))
    assert plan.slot_row.tolist() == [[1, -1], [-1, -1], [2, 0]]
    assert plan.tokens_per_expert.tolist() == [1, 0, 2, 0]  # padding is computed
    assert plan.assigned_per_expert.tolist() == [0, 0, 1, 0]  # but not counted
    assert count_assigned(np.array([[2, -1], [0, 2]]), 3, None).tolist() == [1, 0, 2]


def test_no_token():
    plan = plan_of(np.zeros((0, 2), np.int64))
    assert plan.slot_row.shape == (0, 2) and plan.expert_offsets.tolist() == [0] * 5


# --- who is dropped --------------------------------------------------------------------------------------------------

# Three tokens, two choices each: expert 0 is wanted by slots (0, 0), (1, 1), (2, 0), expert 1 by the other three.
WANTED = [[0, 1], [1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("order", "capacity", "kept"),
    [
        # slot-major: the first choices of tokens 0, 1, 2, then the second. Expert 0: t0, t2, t1; expert 1: t1, t0, t2
        ("slot_major", 1, [[1, 0], [1, 0], [0, 0]]),
        ("slot_major", 2, [[1, 1], [1, 0], [1, 0]]),
        # token-major: token 0's two choices, then token 1's. Expert 0: t0, t1, t2; expert 1: t0, t1, t2
        ("token_major", 1, [[1, 1], [0, 0], [0, 0]]),
        ("token_major", 2, [[1, 1], [1, 1], [0, 0]]),
        ("slot_major", 0, [[0, 0], [0, 0], [0, 0]]),
        ("token_major", 3, [[1, 1], [1, 1], [1, 1]]),
    ],
)
def test_first_come_first_served(order, capacity, kept):
    plan = plan_of(WANTED, capacity=capacity, slot_order=order)
    assert (plan.slot_row >= 0).astype(int).tolist() == kept
    assert plan.assigned_per_expert.tolist() == [3, 3, 0, 0]  # counted before the drop
    assert plan.tokens_per_expert.tolist() == [min(3, capacity)] * 2 + [0, 0]


@pytest.mark.parametrize(
    ("order", "capacity", "kept"),
    [
        # expert 0: 0.5 (t0), 0.5 (t1), 0.75 (t2); expert 1: 0.5 (t0), 0.25 (t1), 0.25 (t2)
        ("slot_major", 1, [[0, 1], [0, 0], [1, 0]]),
        ("slot_major", 2, [[1, 1], [1, 0], [1, 0]]),  # the ties: t0's first choice before t1's second; t1's before t2's
        ("token_major", 2, [[1, 1], [1, 0], [1, 0]]),
    ],
)
def test_the_largest_weights_stay_and_ties_go_by_slot_order(order, capacity, kept):
    probabilities = [[0.5, 0.5], [0.25, 0.5], [0.75, 0.25]]
    plan = plan_of(WANTED, probabilities, capacity=capacity, drop_policy="probability", slot_order=order)
    assert (plan.slot_row >= 0).astype(int).tolist() == kept


def test_a_tie_of_weights_that_the_slot_orders_settle_differently():
    # expert 0 is token 0's second choice and token 1's first, with equal weights
    indices, equal = [[1, 0], [0, 1]], [[0.5, 0.5], [0.5, 0.5]]
    slot = plan_of(indices, equal, capacity=1, drop_policy="probability", slot_order="slot_major")
    token = plan_of(indices, equal, capacity=1, drop_policy="probability", slot_order="token_major")
    assert (slot.slot_row >= 0).tolist() == [[True, False], [True, False]]
    assert (token.slot_row >= 0).tolist() == [[True, True], [False, False]]


def test_each_sequence_has_a_capacity_of_its_own():
    indices = [[0], [0], [0], [0]]
    ids = Given(sequence_ids=np.array([7, 3, 7, 3]))
    by_sequence = plan_of(indices, given=ids, capacity=1, capacity_scope="sequence")
    assert (by_sequence.slot_row[:, 0] >= 0).tolist() == [True, True, False, False]
    assert (plan_of(indices, given=ids, capacity=1).slot_row[:, 0] >= 0).tolist() == [True, False, False, False]
    # a factor is over the tokens of its scope: ceil(1 * 3 / 4) = 1 and ceil(1 * 1 / 4) = 1, against ceil(1 * 4 / 4) = 1
    ids = Given(sequence_ids=np.array([0, 0, 0, 1]))
    plan = plan_of(indices, given=ids, capacity_factor=2.0, capacity_scope="sequence")
    assert (plan.slot_row[:, 0] >= 0).tolist() == [True, True, False, True]  # ceil(2 * 3 / 4) = 2, ceil(2 / 4) = 1


@pytest.mark.parametrize(
    ("factor", "tokens", "top_k", "experts", "want"),
    [
        (1.0, 8, 2, 4, 4),
        (1.0, 9, 2, 4, 5),  # 4.5
        (1.25, 8, 2, 4, 5),
        (0.7, 10, 1, 1, 7),  # the double 0.7 is a little below 7/10
        (0.1, 10, 1, 1, 2),  # the double 0.1 is a little above 1/10: not the 1 that floating point gives
        (1.1, 10, 1, 1, 12),  # and 1.1 above 11/10
        (0.0, 8, 2, 4, 0),
        (1e-9, 8, 2, 4, 1),
        (1.0, 0, 2, 4, 0),
    ],
)
def test_the_capacity_factor_is_exact(factor, tokens, top_k, experts, want):
    dispatch = config_of(dispatch={"capacity_factor": factor}).dispatch
    assert capacity_of(dispatch, tokens, top_k, experts) == want


# rule: the capacity for 10 tokens, 4 experts, 2 choices and a factor of 1.25, the example of the table in 2.2
BY_NAME = {
    "ceil": 7, "deepspeed": 7, "fastmoe_gshard": 6, "fastmoe_switch": 4, "flaxformer": 4, "gshard": 4,
    "maxtext": 6, "megablocks": 6, "mesh_tf": 4, "tutel": 6, "vmoe": 8, "vmoe_round": 8,
}  # fmt: skip


def by_rule(rule, factor, tokens, top_k, experts, **more):
    dispatch = config_of(dispatch={"capacity_factor": factor, "capacity_rule": rule, **more}).dispatch
    return capacity_of(dispatch, tokens, top_k, experts)


def test_every_capacity_rule_is_named_and_shown():
    assert BY_NAME.keys() == CAPACITY_RULES.keys() == set(CAPACITY_NAMES)
    assert {rule: by_rule(rule, 1.25, 10, 2, 4) for rule in BY_NAME} == BY_NAME
    text = (Path(__file__).parent.parent / "spec/2-dispatch.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\| `(\w+)` \| .* \| (\d+) \| .* \|$", text, re.MULTILINE)
    assert {rule: int(rows) for rule, rows in shown} == BY_NAME


@pytest.mark.parametrize(
    ("rule", "factor", "tokens", "top_k", "experts", "want"),
    [
        ("flaxformer", 1.0, 22, 1, 4, 6),  # 5.5 to the even 6
        ("flaxformer", 1.0, 26, 1, 4, 6),  # 6.5 to the even 6
        ("flaxformer", 0.0, 26, 1, 4, 4),
        ("vmoe_round", 1.0, 9, 1, 2, 4),  # 4.5 to 4, a multiple of 4 already
        ("vmoe", 1.0, 9, 1, 2, 8),  # 5, then 8
        ("vmoe", 0.0, 9, 1, 2, 0),  # everything is dropped
        ("gshard", 0.1, 9, 2, 2, 4),  # 0 is 4
        ("gshard", 1.0, 10, 2, 2, 8),  # 5, then 8
        ("mesh_tf", 9.0, 6, 2, 2, 6),  # never more than the tokens ...
        ("mesh_tf", 9.0, 3, 2, 2, 4),  # ... unless the least, 4, is
        ("megablocks", 0.0, 10, 2, 4, None),
        ("megablocks", 0.1, 10, 1, 4, None),  # 0.25 rounds down to 0, and 0 is no limit
        ("tutel", 0.0, 10, 2, 4, None),
        ("tutel", 0.25, 10, 2, 4, 0),  # 2 floor(0.75): only a factor of 0 is no limit
        ("maxtext", 0.5, 1, 1, 4, 0),
        ("maxtext", 2.0, 0, 1, 4, 2),  # max(0, 2)
        ("fastmoe_gshard", 0.3, 9, 3, 4, 2),  # 3 * 3 // 4
        ("ceil", 100.0, 10, 2, 4, 500),  # more than there are tokens: nothing is dropped
    ],
)
def test_the_edges_of_the_capacity_rules(rule, factor, tokens, top_k, experts, want):
    assert by_rule(rule, factor, tokens, top_k, experts) == want


def test_a_least_capacity_and_a_multiple():
    assert by_rule("deepspeed", 1.25, 10, 2, 4, min_capacity=8) == 8
    assert by_rule("ceil", 1.25, 10, 2, 4, capacity_multiple=8) == 8
    assert by_rule("ceil", 0.0, 10, 2, 4, min_capacity=3, capacity_multiple=4) == 4
    assert by_rule("tutel", 0.0, 10, 2, 4, min_capacity=3, capacity_multiple=4) is None


def test_the_rule_decides_who_is_dropped():
    indices = [[0]] * 7
    rows = {rule: plan_of(indices, capacity_factor=0.7, capacity_rule=rule).tokens_per_expert[0] for rule in BY_NAME}
    # 0.7 * 7 / 4 = 1.225 by ceil, floor and round; ceil(4.9) / 4; 0.7 ceil(7 / 4)
    assert rows == BY_NAME | dict.fromkeys(BY_NAME, 2) | {
        "fastmoe_gshard": 1, "flaxformer": 4, "gshard": 4, "maxtext": 1, "megablocks": 1, "mesh_tf": 4, "tutel": 1,
        "vmoe": 4, "vmoe_round": 4,
    }  # fmt: skip


def test_without_a_limit_every_used_slot_is_kept():
    config = config_of(top_k=2, num_experts=4)
    kept = kept_slots(np.array([[0, -1], [3, 1]]), None, config, Given())
    assert kept.tolist() == [[True, False], [True, True]] and capacity_of(config.dispatch, 5, 2, 4) is None


# --- other queues ----------------------------------------------------------------------------------------------------


def kept(plan):
    return (plan.slot_row >= 0).astype(int).tolist()


def drop(indices, capacity, weights=None, scores=None, routing=None, given=None, **dispatch):
    indices = np.array(indices)
    config = config_of(
        top_k=indices.shape[1], num_experts=4, routing=routing, dispatch=dispatch | {"capacity": capacity}
    )
    weights = np.zeros(indices.shape, np.float32) if weights is None else f32(weights)
    return kept(make_plan(indices, weights, config, given or Given(), None if scores is None else f32(scores)))


def test_tokens_with_a_large_score_are_served_first():
    scores = [[0.5, 0.25, 0, 0], [0.25, 0.5, 0, 0], [0.75, 0.25, 0, 0]]
    # tokens in the order 2, 0, 1 (a tie). Expert 0: t2, t0, then t1's second; expert 1: t1, then t2's, t0's second
    assert drop(WANTED, 1, scores=scores, slot_order="batch_prioritized") == [[0, 0], [1, 0], [1, 0]]
    assert drop(WANTED, 2, scores=scores, slot_order="batch_prioritized") == [[1, 0], [1, 0], [1, 1]]
    # the largest score of all experts, chosen or not: token 1 is first for a score at expert 3
    scores[1][3] = 0.875
    assert drop([[0], [0], [0]], 1, scores=scores, slot_order="batch_prioritized") == [[0], [1], [0]]


def test_lots_are_numbers_given():
    given = Given(priority=f32([[0.25, 0.5], [0.25, 0.75], [0.5, 0.5]]))
    # expert 0: t1 0.75, t2 0.5, t0 0.25; expert 1: t0 0.5, t2 0.5, t1 0.25, t0's and t2's second choices in a tie
    assert drop(WANTED, 1, given=given, drop_policy="random") == [[0, 1], [0, 1], [0, 0]]
    assert drop(WANTED, 2, given=given, drop_policy="random") == [[0, 1], [0, 1], [1, 1]]


def test_no_token_is_left_behind_while_one_of_its_choices_has_room():
    everyone = [[0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 2, 3], [0, 1, 2]]
    # first choices: t0. Second ones of the others: expert 1 takes t1, expert 2 takes t3; third: none is left but 3's
    assert drop(everyone, 1, keep_at_most=1) == [[1, 0, 0], [0, 1, 0], [0, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert drop(everyone, 2, keep_at_most=1) == [[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 1, 0]]
    assert drop(everyone, 2, keep_at_most=2) == [[1, 1, 0], [1, 1, 0], [0, 0, 1], [0, 1, 1], [0, 0, 0]]
    assert drop(everyone, 9, keep_at_most=1) == [[1, 0, 0]] * 5


def test_protected_tokens_are_served_first_and_never_dropped():
    safe = Given(protected=np.array([False, True, True]))
    # expert 0 takes t2's first choice and t1's second, expert 1 the reverse: beyond the capacity, and nobody else's
    assert drop(WANTED, 1, given=safe) == [[0, 0], [1, 1], [1, 1]]
    assert drop(WANTED, 3, given=safe) == [[1, 1]] * 3
    # what they take still counts
    assert drop([[0], [0], [0]], 2, given=Given(protected=np.array([False, False, True]))) == [[1], [0], [1]]


def test_a_device_has_a_budget_for_all_its_experts():
    indices, weights = [[0, 2], [1, 3], [0, 1], [2, 3]], [[0.9, 0.1], [0.6, 0.4], [0.8, 0.2], [0.5, 0.3]]
    # device 0 has experts 0, 1: 0.9, 0.8, 0.6, 0.2; device 1 has experts 2, 3: 0.5, 0.4, 0.3, 0.1
    budget = {"capacity_devices": 2, "drop_policy": "probability"}
    assert drop(indices, 2, weights, **budget) == [[1, 0], [0, 1], [1, 0], [1, 0]]
    assert drop(indices, 3, weights, **budget) == [[1, 0], [1, 1], [1, 0], [1, 1]]
    plan = plan_of(indices, weights, capacity_factor=0.75, **budget)  # ceil(0.75 * 4 * 2 / 2) = 3
    assert kept(plan) == drop(indices, 3, weights, **budget)


def test_the_coin_compares_exactly():
    third = np.float32(1 / 3)
    weights = f32([[1, third], [1, third], [1, 0], [1, 0.5]])
    coins = f32([2 * third, np.nextafter(2 * third, np.float32(0)), 0, 0.999])
    assert coin_keeps(weights, coins, 2.0)[:, 1].tolist() == [False, True, False, True]
    assert coin_keeps(weights, coins, 2.0)[:, 0].all()
    # 0.3 as a double times 1/3 as a float32 lies between two neighbours: rounded to float32 it would equal the coin
    weight, product = np.float32(1 / 3), Fraction(0.3) * Fraction(float(np.float32(1 / 3)))
    coin = np.float32(float(product))
    want = product > Fraction(float(coin))
    assert coin_keeps(f32([[1, weight]]), f32([coin]), 0.3)[0, 1] == want and product != Fraction(float(coin))


def test_a_rejected_second_expert_fills_no_capacity():
    weights, routing = [[0.6, 0.4], [0.9, 0.1], [0.7, 0.3]], {"second_expert": "random", "second_expert_factor": 1.0}
    given = Given(coin=f32([0.5, 0.05, 0.05]))
    # token 0's second slot loses, so expert 1 has room for that of token 2
    assert drop([[0, 1], [2, 3], [0, 1]], 1, weights, routing=routing, given=given) == [[1, 0], [1, 1], [0, 1]]
    plan = make_plan(
        np.array([[0, 1]]),
        f32(weights[:1]),
        config_of(top_k=2, num_experts=4, routing=routing),
        given._replace(coin=f32([0.5])),
    )
    assert kept(plan) == [[1, 0]] and plan.assigned_per_expert.tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("how", ["coin", "capacity", "stand-in"])
def test_renormalised_before_or_after_each_way_to_lose_a_slot(how, after):
    routing, dispatch = {"normalize": True}, {"normalize_after_drop": after}
    if how == "coin":
        routing |= {"second_expert": "random"}
    else:
        dispatch |= {"capacity": 1 if how == "capacity" else 9} | ({"keep_at_most": 1} if how == "stand-in" else {})
    config = config_of(top_k=2, num_experts=2, routing=routing, dispatch=dispatch)
    x, params, _ = make(config, EXACT, 4)
    given = Given(coin=f32([1 - 2.0**-24] * 4) if how == "coin" else None, logits=f32([[3, 1], [2, 0], [1, 3], [0, 5]]))
    record = refmoe.moe_forward(x, params, config, EXACT, given)
    lost, total = record.plan.slot_row < 0, record.routing.topk_weights.astype(np.float64).sum(axis=1)
    assert lost.any() and (record.routing.topk_weights[lost] == 0).all() == after
    share = np.where(lost, 0, record.routing.topk_weights).astype(np.float64).sum(axis=1)
    some = ~lost.all(axis=1)
    assert np.allclose(total[some], 1) and (
        np.allclose(share[some], 1) if after else (share[lost.any(axis=1)] < 1).all()
    )


# --- permute and combine ---------------------------------------------------------------------------------------------


def test_permute_copies_bits():
    plan = plan_of([[2, 0], [0, 3]])
    x = f32([[1, -0.0], [3, 1e-45]])
    # rows: e0 of t0, e0 of t1, e2 of t0, e3 of t1
    assert same_bits(permute(x, plan), f32([[1, -0.0], [3, 1e-45], [1, -0.0], [3, 1e-45]]))


def test_permute_backward_sums_a_tokens_rows():
    plan = plan_of([[2, 0], [0, -1], [-1, -1]])  # rows: e0 of t0, e0 of t1, e2 of t0
    d_rows = f32([[1, 2.0**-24], [5, 6], [10, 1]])
    got = permute_backward(d_rows, plan, EXACT)
    assert same_bits(got, f32([[11, 1], [5, 6], [0, 0]]))  # 1 + 2^-24 is a tie, to even


def test_combine_is_one_sum_rounded_once():
    plan = plan_of([[2, 0], [0, 3]])
    y_rows = f32([[1, 2], [3, 4], [5, 2.0**-30], [-8, 4]])  # e0 t0, e0 t1, e2 t0, e3 t1
    w = f32([[0.5, 0.25], [2, 0.75]])
    # t0: 0.5 row 2 + 0.25 row 0; t1: 2 row 1 + 0.75 row 3
    assert combine(y_rows, w, plan, EXACT).tolist() == [[2.75, 0.5], [0, 11]]
    assert combine(y_rows, None, plan, EXACT).tolist() == [[6, 2], [-5, 8]]
    # 1 + 2^-24 + 2^-24: one rounding keeps what two would lose
    y_rows = f32([[1], [2.0**-24], [2.0**-24]])
    plan = plan_of([[0, 1, 2]])
    assert combine(y_rows, f32([[1, 1, 1]]), plan, EXACT).tolist() == [[1 + 2.0**-23]]


def test_combine_ignores_the_weight_of_a_dropped_slot_and_cancels_to_plus_zero():
    plan = plan_of([[0, 1], [0, 1]], capacity=1)
    assert plan.slot_row.tolist() == [[0, 1], [-1, -1]]
    y_rows = f32([[-1], [1]])
    got = combine(y_rows, f32([[1, 1], [np.inf, np.nan]]), plan, EXACT)
    assert same_bits(got, f32([[0], [0]]))


def test_combine_backward_by_hand():
    plan = plan_of([[2, 0], [0, 3]])
    y_rows = f32([[1, 2], [3, 4], [5, 6], [7, 8]])
    w = f32([[0.5, 0.25], [2, 0.75]])
    d_y_rows, d_w = combine_backward(f32([[1, 2], [1, -1]]), y_rows, w, plan, EXACT)
    assert d_y_rows.tolist() == [[0.25, 0.5], [2, -2], [0.5, 1], [0.75, -0.75]]
    assert d_w.tolist() == [[17, 5], [-1, -1]]  # <(1, 2), (5, 6)>, <(1, 2), (1, 2)>; <(1, -1), (3, 4)>, ...


def test_a_dropped_slot_gives_nothing_back():
    plan = plan_of([[0, 1], [0, 1]], capacity=1)
    _, d_w = combine_backward(f32([[1], [1]]), f32([[3], [4]]), f32([[1, 1], [1, 1]]), plan, EXACT)
    assert same_bits(d_w, f32([[3, 4], [0, 0]]))
    assert same_bits(slot_values(f32([3, 4]), plan), f32([[3, 4], [0, 0]]))
    nothing = plan_of([[0, 1], [0, 1]], capacity=0)
    empty = np.zeros((0, 1), np.float32)
    assert same_bits(combine(empty, f32([[1, 1], [1, 1]]), nothing, EXACT), f32([[0], [0]]))
    assert same_bits(permute_backward(empty, nothing, EXACT), f32([[0], [0]]))
