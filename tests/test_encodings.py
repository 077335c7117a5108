"""Dispatch encodings: by hand, as kernels read them, there and back on every kind of plan, and what is refused."""

import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from refmoe import DispatchConfig, ExpertsConfig, Given, MoEConfig, Numerics, RoutingConfig, moe_backward, moe_forward
from refmoe import encodings as enc
from refmoe.dispatch import combine, make_plan, permute, permute_backward
from refmoe.experts import expert_ffn, expert_ffn_backward
from refmoe.recipes import MoEParams, generate, init_params

I32, I64, F32, BOOL = (np.dtype(t) for t in (np.int32, np.int64, np.float32, bool))


def f32(values):
    return np.array(values, np.float32)


def plan_of(indices, weights, num_experts, **dispatch):
    sizes = {"hidden_size": 1, "intermediate_size": 1, "num_experts": num_experts, "top_k": indices.shape[1]}
    return make_plan(indices, weights, MoEConfig.from_dict(sizes | {"dispatch": dispatch}), Given())


def equal(got, want):
    """The same record: every array's bits, type and shape."""
    assert type(got) is type(want)
    for name, a, b in zip(want._fields, got, want):
        if hasattr(b, "_fields"):
            equal(a, b)
        else:
            a, b = np.asarray(a), np.asarray(b)
            assert (a.dtype, a.shape) == (b.dtype, b.shape), name
            assert a.tobytes() == b.tobytes(), name


# --- by hand ---------------------------------------------------------------------------------------------------------

# Slots: 0 (t0, e2)  1 (t0, e0)  2 (t1, e0)  3 (t1, e3)  4 (t2, e2)  5 (t2, e0)  6 unused  7 (t3, e2)
INDICES = np.array([[2, 0], [0, 3], [2, 0], [-1, 2]])
WEIGHTS = f32([[0.75, 0.25], [0.5, -0.5], [0.875, 0.125], [0.0, 1.0]])
PLAN = plan_of(INDICES, WEIGHTS, 4)  # row_slot 1 2 5 | | 0 4 7 | 3
X = -1  # what fills

BY_HAND = {
    "slots": (enc.to_slots(WEIGHTS, PLAN), {"topk_indices": (I64, INDICES), "topk_weights": (F32, WEIGHTS)}),
    "dense_map": (enc.to_dense_map(WEIGHTS, PLAN), {
        "routing_map": (BOOL, [[1, 0, 1, 0], [1, 0, 0, 1], [1, 0, 1, 0], [0, 0, 1, 0]]),
        "probs": (F32, [[0.25, 0, 0.75, 0], [0.5, 0, 0, -0.5], [0.125, 0, 0.875, 0], [0, 0, 1, 0]]),
    }),
    "row_id_map": (enc.to_row_id_map(WEIGHTS, PLAN), {
        "row_id_map": (I32, [[3, 0, X, X, 2, 0, X, X, 2], [6, 1, X, X, 3, 0, X, X, 2],
                             [4, 2, X, X, 2, 0, X, X, 2], [5, X, X, X, 2, X, X, X, 1]]),
        "probs": (F32, [[0.25, 0, 0.75, 0], [0.5, 0, 0, -0.5], [0.125, 0, 0.875, 0], [0, 0, 1, 0]]),
    }),
    "capacity_pairs": (enc.to_capacity_pairs(PLAN), {
        "expert": (I32, [[2, 0], [0, 3], [2, 0], [X, 2]]),
        "position": (I32, [[0, 0], [1, 0], [1, 2], [X, 2]]),
        "capacity": (I64, 3),
    }),
    "sorted_slots": (enc.to_sorted_slots(PLAN), {
        "row_slot": (I64, [1, 2, 5, 0, 4, 7, 3]),
        "row_token": (I64, [0, 1, 2, 0, 2, 3, 1]),
        "row_expert": (I64, [0, 0, 0, 2, 2, 2, 3]),
    }),
    "offsets": (enc.to_offsets(PLAN), {
        "tokens_per_expert": (I32, [3, 0, 3, 1]),
        "expert_ends": (I32, [3, 3, 6, 7]),
        "expert_offsets": (I32, [0, 3, 3, 6, 7]),
    }),
    "block_aligned": (enc.to_block_aligned(PLAN, 2), {
        "sorted_token_ids": (I32, [1, 2, 5, 8, 0, 4, 7, 8, 3, 8, 8, 8]),  # 8 slots + 4 experts x (2 - 1)
        "expert_ids": (I32, [0, 0, 2, 2, 3, X]),
        "num_tokens_post_padded": (I32, [10]),
    }),
    "aligned_rows": (enc.to_aligned_rows(PLAN, 4), {
        "row_slot": (I64, [1, 2, 5, X, 0, 4, 7, X, 3, X, X, X]),
        "m_indices": (I32, [0, 0, 0, X, 2, 2, 2, X, 3, X, X, X]),
        "padded_ends": (I32, [4, 4, 8, 12]),
    }),
    "masked_batched": (enc.to_masked_batched(PLAN, 4), {
        "row_slot": (I64, [[1, 2, 5, X], [X, X, X, X], [0, 4, 7, X], [3, X, X, X]]),
        "masked_m": (I32, [3, 0, 3, 1]),
    }),
    "padded_rows": (enc.to_padded_rows(WEIGHTS, PLAN, 4, "tokens"), {
        "row_token": (I64, [[0, 1, 2, 3], [0, 1, 2, 3], [0, 2, 3, 1], [1, 0, 2, 3]]),
        "row_slot": (I64, [[1, 2, 5, X], [X, X, X, X], [0, 4, 7, X], [3, X, X, X]]),
        "row_weight": (F32, [[0.25, 0.5, 0.125, 0], [0, 0, 0, 0], [0.75, 0.875, 1, 0], [-0.5, 0, 0, 0]]),
    }),
    "capacity_one_hot": (enc.to_capacity_one_hot(WEIGHTS, PLAN), {
        "dispatch": (BOOL, [[[1, 0, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0]],
                            [[0, 1, 0], [0, 0, 0], [0, 0, 0], [1, 0, 0]],
                            [[0, 0, 1], [0, 0, 0], [0, 1, 0], [0, 0, 0]],
                            [[0, 0, 0], [0, 0, 0], [0, 0, 1], [0, 0, 0]]]),
        "combine": (F32, [[[0.25, 0, 0], [0, 0, 0], [0.75, 0, 0], [0, 0, 0]],
                          [[0, 0.5, 0], [0, 0, 0], [0, 0, 0], [-0.5, 0, 0]],
                          [[0, 0, 0.125], [0, 0, 0], [0, 0.875, 0], [0, 0, 0]],
                          [[0, 0, 0], [0, 0, 0], [0, 0, 1], [0, 0, 0]]]),
    }),
}  # fmt: skip


@pytest.mark.parametrize("name", enc.ENCODINGS)
def test_by_hand(name):
    made, want = BY_HAND[name]
    assert type(made) is enc.ENCODINGS[name][0] and list(want) == list(made._fields)
    for field, (dtype, values) in want.items():
        array = np.asarray(getattr(made, field))
        assert array.dtype == dtype, field
        assert array.shape == np.shape(values) and (array == np.array(values)).all(), field


def test_four_full_blocks_short_of_one():
    """The published example of the block-aligned layout, with experts counted from 0."""
    indices = np.array([[1, 2, 3], [0, 1, 3], [0, 2, 3], [0, 1, 2]])
    made = enc.to_block_aligned(plan_of(indices, np.zeros((4, 3), np.float32), 4), 4)
    assert made.sorted_token_ids.tolist() == [3, 6, 9, 12, 0, 4, 10, 12, 1, 7, 11, 12, 2, 5, 8, 12] + [12] * 8
    assert made.expert_ids.tolist() == [0, 1, 2, 3, -1, -1]
    assert made.num_tokens_post_padded.tolist() == [16]


def test_one_token_is_not_all_there_is():
    """A kernel that reads sorted ids as tokens, or stops after the first, loses every other pair."""
    made = enc.to_block_aligned(plan_of(np.zeros((5, 1), np.int64), np.ones((5, 1), np.float32), 2), 4)
    assert made.sorted_token_ids.tolist() == [0, 1, 2, 3, 4, 5, 5, 5, 5, 5, 5]
    assert made.expert_ids.tolist() == [0, 0, -1] and made.num_tokens_post_padded.tolist() == [8]


def test_slot_order_changes_slot_numbers_and_nothing_else():
    """(expert, token) order is unique: a map-based permute and a stable sort of slots agree."""
    swapped = plan_of(INDICES[:, ::-1].copy(), WEIGHTS[:, ::-1].copy(), 4)
    a, b = enc.to_sorted_slots(PLAN), enc.to_sorted_slots(swapped)
    assert (a.row_token == b.row_token).all() and (a.row_expert == b.row_expert).all()
    assert (a.row_slot != b.row_slot).all()
    equal(enc.to_row_id_map(WEIGHTS[:, ::-1].copy(), swapped), enc.to_row_id_map(WEIGHTS, PLAN))


# --- as kernels read them --------------------------------------------------------------------------------------------

# Expert e multiplies by e + 2; tokens and weights are small dyadic numbers, so any order of summation gives these bits.


def scatter(pairs, x):
    """y[t] = sum of weight (e + 2) x[t] over (t, e, weight)."""
    y = np.zeros(len(x))
    for t, e, weight in pairs:
        y[t] += weight * (e + 2) * x[t]
    return y


def read_slots(w, plan):
    made = enc.to_slots(w, plan)
    return [(t, e, made.topk_weights[t, k]) for (t, k), e in np.ndenumerate(made.topk_indices) if e != -1]


def read_dense_map(w, plan):
    made = enc.to_dense_map(w, plan)
    return [(t, e, made.probs[t, e]) for t, e in np.argwhere(made.routing_map)]


def read_row_id_map(w, plan):
    made = enc.to_row_id_map(w, plan)
    E, x_rows, pairs = made.probs.shape[1], np.full(len(plan.row_slot), -1), []
    for t, line in enumerate(made.row_id_map):
        for i in range(line[2 * E]):
            x_rows[line[i]] = t
            pairs.append((t, line[E + i], made.probs[t, line[E + i]]))
        assert (np.diff(line[: line[2 * E]]) < 0).all()  # descending
    assert (x_rows[:, None] == permute(np.arange(len(w))[:, None], plan)).all()
    return pairs


def read_capacity_pairs(w, plan):
    made = enc.to_capacity_pairs(plan)
    E, K = len(plan.tokens_per_expert), w.shape[1]
    buffers = np.full((E, made.capacity), -1)
    for (t, k), e in np.ndenumerate(made.expert):
        if e >= 0:
            assert buffers[e, made.position[t, k]] == -1
            buffers[e, made.position[t, k]] = t * K + k
    return [(s // K, e, w.reshape(-1)[s]) for (e, _), s in np.ndenumerate(buffers) if s >= 0]


def read_sorted_slots(w, plan):
    made = enc.to_sorted_slots(plan)
    return [(t, e, w.reshape(-1)[s]) for s, t, e in zip(*made)]


def read_offsets(w, plan):
    """torch's offs end a group; JAX's sizes and CSR offsets must cut the same rows."""
    made, pairs, start = enc.to_offsets(plan), [], 0
    for e, end in enumerate(made.expert_ends):
        assert (start, end) == (made.expert_offsets[e], made.expert_offsets[e + 1])
        assert end - start == made.tokens_per_expert[e]
        pairs += [(s // w.shape[1], e, w.reshape(-1)[s]) for s in plan.row_slot[start:end]]
        start = end
    return pairs


def read_block_aligned(w, plan, block=3):
    """A program a block: its expert, its rows, masked by the sentinel; programs behind the count return at once."""
    made, pairs = enc.to_block_aligned(plan, block), []
    for b in range(made.num_tokens_post_padded[0] // block):
        ids = made.sorted_token_ids[b * block : (b + 1) * block]
        pairs += [(s // w.shape[1], made.expert_ids[b], w.reshape(-1)[s]) for s in ids if s < w.size]
    assert len(made.sorted_token_ids) == w.size + len(plan.tokens_per_expert) * (block - 1)
    assert len(made.expert_ids) == -(-len(made.sorted_token_ids) // block)
    return pairs


def read_aligned_rows(w, plan, alignment=4):
    """One expert a tile, taken from the tile's first row."""
    made, pairs = enc.to_aligned_rows(plan, alignment), []
    for start in range(0, len(made.row_slot), alignment):
        tile, e = slice(start, start + alignment), made.m_indices[start]
        assert set(made.m_indices[tile].tolist()) <= {int(e), -1} and e >= 0
        pairs += [(s // w.shape[1], e, w.reshape(-1)[s]) for s in made.row_slot[tile] if s >= 0]
    assert len(made.row_slot) == made.padded_ends[-1]
    return pairs


def read_masked_batched(w, plan):
    made, pairs = enc.to_masked_batched(plan), []
    for e, count in enumerate(made.masked_m):
        pairs += [(s // w.shape[1], e, w.reshape(-1)[s]) for s in made.row_slot[e, :count]]
    return pairs


def read_padded_rows(w, plan):
    """Every row is computed; what is padding, and weighs nothing, is not selected."""
    made = enc.to_padded_rows(w, plan, len(w) + 2, "tokens")
    padding = made.row_slot < 0
    assert (made.row_weight[padding] == 0).all() and (made.row_token[~padding] >= 0).all()
    return [(made.row_token[at], at[0], made.row_weight[at]) for at in zip(*np.nonzero(~padding))]


def read_capacity_one_hot(w, plan):
    made = enc.to_capacity_one_hot(w, plan)
    assert (np.count_nonzero(made.dispatch, axis=0) <= 1).all()  # one token a place
    return [(t, e, made.combine[t, e, c]) for t, e, c in np.argwhere(made.dispatch)]


READERS = {name: globals()[f"read_{name}"] for name in enc.ENCODINGS}


# --- plans of every kind ---------------------------------------------------------------------------------------------


def random_case(seed, num_tokens=13, top_k=3, num_experts=6, unused=0.2):
    rng = np.random.default_rng(seed)
    indices = np.argsort(rng.random((num_tokens, num_experts)), axis=-1, kind="stable")[:, :top_k]
    indices[rng.random(indices.shape) < unused] = -1
    weights = rng.choice(f32([0.0, -0.0, 0.25, 0.5, 0.75]), indices.shape)
    return indices, weights, num_experts


def chosen(rows, num_experts):
    indices = np.array(rows)
    return indices, f32(np.arange(1, indices.size + 1)).reshape(indices.shape) / 8, num_experts


CASES = {
    "random": (random_case(1), {}),
    "no token": ((np.zeros((0, 2), np.int64), np.zeros((0, 2), np.float32), 3), {}),
    "one token": (chosen([[1, 0]], 2), {}),
    "first expert empty": (chosen([[1, 2], [2, 1], [2, 3]], 4), {}),
    "middle experts empty": (chosen([[0, 4], [4, 0], [0, 5]], 6), {}),
    "last experts empty": (chosen([[1, 0], [0, 1]], 5), {}),
    "all to one expert": (chosen([[2]] * 7, 4), {}),
    "every expert, for every token": (chosen([[2, 0, 1], [0, 1, 2], [1, 2, 0]], 3), {}),
    "one expert": (chosen([[0], [-1], [0]], 1), {}),
    "no slot used": (chosen([[-1, -1], [-1, -1]], 3), {}),
    "capacity 2, smallest dropped": (random_case(2), {"capacity": 2, "drop_policy": "probability"}),
    "capacity 2, last dropped": (random_case(3), {"capacity": 2, "slot_order": "slot_major"}),
    "capacity 0": (random_case(4), {"capacity": 0}),
    "exactly one block": (chosen([[0], [0], [0], [0], [1], [1], [1], [1]], 2), {}),
}


def case_of(name):
    """topk_indices, topk_weights, plan."""
    (indices, weights, num_experts), dispatch = CASES[name]
    return indices, weights, plan_of(indices, weights, num_experts, **dispatch)


def remembered(indices, weights, plan, canonical=False, top_k=None):
    """What a dispatch is once dropped slots are forgotten, one slot at a time; canonical: by ascending expert id."""
    nothing, lines = (-1, np.float32(0)), []
    for line, values, has_row in zip(indices.tolist(), weights, plan.slot_row >= 0):
        kept = [pair if row else nothing for pair, row in zip(zip(line, values), has_row)]
        lines.append(sorted(pair for pair in kept if pair[0] >= 0) if canonical else kept)
    width = indices.shape[1] if not canonical else top_k or max([1, *map(len, lines)])
    lines = [line + [nothing] * (width - len(line)) for line in lines]
    ids = np.array([[e for e, _ in line] for line in lines], np.int64).reshape(len(indices), width)
    kept = f32([[w for _, w in line] for line in lines]).reshape(len(indices), width)
    return enc.Decoded(ids, kept, plan_of(ids, kept, len(plan.tokens_per_expert)))


def trips(weights, plan):
    """name, the encoding, the way back, the same encoding of what came back, what is forgotten."""
    E, K = len(plan.tokens_per_expert), weights.shape[1]
    most = int(max(plan.tokens_per_expert))
    yield enc.to_slots(weights, plan), lambda a: enc.from_slots(a, E), lambda w, p: enc.to_slots(w, p), None
    for top_k in (None, K):
        order = {"canonical": True, "top_k": top_k}
        yield enc.to_dense_map(weights, plan), lambda a, k=top_k: enc.from_dense_map(a, k), enc.to_dense_map, order
        yield enc.to_row_id_map(weights, plan), lambda a, k=top_k: enc.from_row_id_map(a, k), enc.to_row_id_map, order
        for limit in (None, most + 2):
            yield (enc.to_capacity_one_hot(weights, plan, limit), lambda a, k=top_k: enc.from_capacity_one_hot(a, k),
                   lambda w, p, c=limit: enc.to_capacity_one_hot(w, p, c), order)  # fmt: skip
    for limit in (None, most + 2):
        yield (enc.to_capacity_pairs(plan, limit), lambda a: enc.from_capacity_pairs(a, weights, E),
               lambda w, p, c=limit: enc.to_capacity_pairs(p, c), None)  # fmt: skip
        yield (enc.to_masked_batched(plan, limit), lambda a: enc.from_masked_batched(a, weights),
               lambda w, p, c=limit: enc.to_masked_batched(p, c), None)  # fmt: skip
        for filler in ("zeros", "tokens"):
            yield (enc.to_padded_rows(weights, plan, limit, filler), lambda a: enc.from_padded_rows(a, weights),
                   lambda w, p, c=limit, f=filler: enc.to_padded_rows(w, p, c, f), None)  # fmt: skip
    yield (enc.to_sorted_slots(plan), lambda a: enc.from_sorted_slots(a, weights, E),
           lambda w, p: enc.to_sorted_slots(p), None)  # fmt: skip
    yield (enc.to_offsets(plan), lambda a: enc.from_offsets(a, plan.row_slot, weights),
           lambda w, p: enc.to_offsets(p), None)  # fmt: skip
    for size in (1, 3, 4, 16):
        yield (enc.to_block_aligned(plan, size), lambda a, b=size: enc.from_block_aligned(a, weights, E, b),
               lambda w, p, b=size: enc.to_block_aligned(p, b), None)  # fmt: skip
        yield (enc.to_aligned_rows(plan, size), lambda a, b=size: enc.from_aligned_rows(a, weights, b),
               lambda w, p, b=size: enc.to_aligned_rows(p, b), None)  # fmt: skip


def check_trips(indices, weights, plan):
    seen = set()
    for made, back, again, order in trips(weights, plan):
        seen.add(type(made))
        decoded = back(made)
        equal(decoded, remembered(indices, weights, plan, **(order or {})))
        equal(again(decoded.topk_weights, decoded.plan), made)
    assert seen == {kind for kind, _, _ in enc.ENCODINGS.values()}


@pytest.mark.parametrize("name", CASES)
def test_there_and_back(name):
    check_trips(*case_of(name))


@settings(max_examples=25, deadline=None, derandomize=True)
@drawn(st.data())
def test_there_and_back_on_small_plans(data):
    num_experts = data.draw(st.integers(1, 5))
    top_k = data.draw(st.integers(1, num_experts))
    order = st.permutations(range(num_experts))
    use = st.lists(st.booleans(), min_size=top_k, max_size=top_k)
    rows = data.draw(st.lists(st.tuples(order, use), max_size=6))
    indices = np.array([[e if u else -1 for e, u in zip(p, used)] for p, used in rows], np.int64).reshape(-1, top_k)
    weights = f32(np.arange(indices.size)).reshape(indices.shape) / 4
    dispatch = {"capacity": data.draw(st.none() | st.integers(0, 3))}
    check_trips(indices, weights, plan_of(indices, weights, num_experts, **dispatch))


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", CASES)
def test_kernels_that_read_it_compute_the_same(name, reader):
    indices, weights, plan = case_of(name)
    x = np.arange(1.0, len(weights) + 1)
    want = scatter([(t, indices[t, k], weights[t, k]) for t, k in np.argwhere(plan.slot_row >= 0)], x)
    pairs = READERS[reader](weights, plan)
    assert len(pairs) == len(plan.row_slot) and (scatter(pairs, x) == want).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_weights_are_moved_bit_by_bit(dtype):
    weights = np.array([[-0.0, 1 / 3], [np.nan, 5e-324]], dtype)
    plan = plan_of(np.array([[1, 0], [0, 1]]), np.zeros((2, 2), np.float32), 2)
    for made, back in (
        (enc.to_dense_map(weights, plan), enc.from_dense_map),
        (enc.to_row_id_map(weights, plan), enc.from_row_id_map),
        (enc.to_capacity_one_hot(weights, plan), enc.from_capacity_one_hot),
    ):
        want = np.array([[weights[0, 1], weights[0, 0]], weights[1]], dtype)
        assert back(made).topk_weights.tobytes() == want.tobytes()
    slots = enc.from_slots(enc.to_slots(weights, plan), 2)
    assert slots.topk_weights.dtype == dtype and slots.topk_weights.tobytes() == weights.tobytes()


def test_a_kept_pair_of_weight_zero_stays():
    weights = np.zeros((1, 2), np.float32)
    plan = plan_of(np.array([[1, 0]]), weights, 2)
    assert enc.from_capacity_one_hot(enc.to_capacity_one_hot(weights, plan)).topk_indices.tolist() == [[0, 1]]
    assert enc.from_dense_map(enc.to_dense_map(weights, plan)).topk_indices.tolist() == [[0, 1]]


def test_narrow_and_unsigned_integers_are_read():
    made = enc.to_sorted_slots(PLAN)
    narrow = enc.SortedSlots(*(a.astype(t) for a, t in zip(made, (np.int32, np.uint8, np.uint16))))
    equal(enc.from_sorted_slots(narrow, WEIGHTS, 4), enc.from_sorted_slots(made, WEIGHTS, 4))


# --- what differs between frameworks and still says the same ---------------------------------------------------------


def test_any_allocated_length_of_blocks_decodes():
    made, want = enc.to_block_aligned(PLAN, 2), enc.from_slots(enc.to_slots(WEIGHTS, PLAN), 4)
    shortest = made._replace(sorted_token_ids=made.sorted_token_ids[:10], expert_ids=made.expert_ids[:5])
    spare = np.concatenate([made.sorted_token_ids, np.full(5, 8, np.int32)])
    longer = made._replace(sorted_token_ids=spare, expert_ids=np.append(made.expert_ids, [-1, -1, -1]))
    for blocks in (shortest, longer):
        equal(enc.from_block_aligned(blocks, WEIGHTS, 4, 2), want)


def test_what_a_row_id_map_leaves_undefined_is_not_read():
    made = enc.to_row_id_map(WEIGHTS, PLAN)
    junk = made.row_id_map.copy()
    E = 4
    for line in junk:
        line[line[2 * E] : E], line[E + line[2 * E] : 2 * E] = 7777, -7777
    assert (junk != made.row_id_map).any()
    equal(enc.from_row_id_map(made._replace(row_id_map=junk)), enc.from_row_id_map(made))


def test_a_token_may_list_its_rows_in_any_order():
    made = enc.to_row_id_map(WEIGHTS, PLAN)
    ascending = made.row_id_map.copy()
    ascending[0, :2], ascending[0, 4:6] = [0, 3], [0, 2]
    equal(enc.from_row_id_map(made._replace(row_id_map=ascending)), enc.from_row_id_map(made))


@pytest.mark.parametrize("given", enc.Offsets._fields)
def test_any_form_of_offsets_says_the_others(given):
    want = enc.to_offsets(PLAN)
    equal(enc.complete_offsets(**{given: getattr(want, given)}), want)
    equal(enc.complete_offsets(*want), want)


SHUFFLED = {
    "sorted_slots": lambda **kw: enc.from_sorted_slots(
        enc.SortedSlots(np.array([5, 1, 2, 4, 7, 0, 3]), np.array([2, 0, 1, 2, 3, 0, 1]),
                        np.array([0, 0, 0, 2, 2, 2, 3])), WEIGHTS, 4, **kw),
    "offsets": lambda **kw: enc.from_offsets(enc.to_offsets(PLAN), np.array([2, 1, 5, 0, 4, 7, 3]), WEIGHTS, **kw),
    "block_aligned": lambda **kw: enc.from_block_aligned(
        enc.to_block_aligned(PLAN, 2)._replace(sorted_token_ids=np.array([5, 2, 1, 8, 7, 0, 4, 8, 3, 8, 8, 8])),
        WEIGHTS, 4, 2, **kw),
    "aligned_rows": lambda **kw: enc.from_aligned_rows(
        enc.to_aligned_rows(PLAN, 4)._replace(row_slot=np.array([1, 2, 5, -1, 7, 4, 0, -1, 3, -1, -1, -1])),
        WEIGHTS, 4, **kw),
    "masked_batched": lambda **kw: enc.from_masked_batched(
        enc.MaskedBatched(np.array([[1, 5, 2], [-1, -1, -1], [0, 4, 7], [3, -1, -1]]), np.array([3, 0, 3, 1])),
        WEIGHTS, **kw),
    "capacity_pairs": lambda **kw: enc.from_capacity_pairs(
        enc.to_capacity_pairs(PLAN, 5)._replace(position=np.array([[0, 2], [0, 0], [1, 1], [-1, 4]])),
        WEIGHTS, 4, **kw),
}  # fmt: skip


@pytest.mark.parametrize("name", SHUFFLED)
def test_rows_out_of_token_order_are_read_only_on_request(name):
    """First choices before second ones, or by arrival: the same set, other rows than the plan's."""
    with pytest.raises(ValueError, match=r"token order.*any_order=True"):
        SHUFFLED[name]()
    equal(SHUFFLED[name](any_order=True), enc.from_slots(enc.to_slots(WEIGHTS, PLAN), 4))


def test_one_hot_places_out_of_token_order():
    made = enc.to_capacity_one_hot(WEIGHTS, PLAN)
    turned = enc.CapacityOneHot(made.dispatch[:, :, ::-1], made.combine[:, :, ::-1])
    with pytest.raises(ValueError, match=r"dispatch\[0\]: expected 0 \(token order within the expert\), got 2; .*any_"):
        enc.from_capacity_one_hot(turned)
    equal(enc.from_capacity_one_hot(turned, any_order=True), enc.from_capacity_one_hot(made))


# --- padding is not part of the layer --------------------------------------------------------------------------------


@pytest.mark.parametrize("filler", ["zeros", "tokens"])
@pytest.mark.parametrize("dispatch", [{"capacity": 2}, {"capacity": 9}, {"capacity_factor": 0.75}])
def test_padded_buffers_give_the_bits_of_the_plan_if_padding_is_selected_away(filler, dispatch):
    """There and back through buffers of C rows an expert, biases included, with NaN in what nobody may read."""
    config = MoEConfig(
        hidden_size=4, intermediate_size=3, num_experts=4, top_k=2,
        routing=RoutingConfig(normalize=True), dispatch=DispatchConfig(**dispatch), experts=ExpertsConfig(biases=True),
    )  # fmt: skip
    num, params = Numerics(backend="numpy"), init_params(config, 3)
    x, d_y = (generate(name, (7, 4), 3) for name in ("x", "d_y"))
    record = moe_forward(x, params, config, num)
    grads = moe_backward(d_y, x, params, record, config, num)
    made = enc.to_padded_rows(record.routing.topk_weights, record.plan, dispatch.get("capacity"), filler)
    counts, offsets = made.row_slot.reshape(-1) >= 0, np.arange(5) * made.row_slot.shape[1]
    token = made.row_token.reshape(-1)
    rows = np.where(token[:, None] >= 0, x[token], np.float32(0))
    out = expert_ffn(rows, params, offsets, config.experts, num)
    assert filler == "zeros" or not (out.y_rows[~counts & (token >= 0)] == 0).any()  # padding is computed
    poisoned = np.where(counts[:, None], out.y_rows, np.float32(np.nan))
    assert same(combine(poisoned[counts], record.routing.topk_weights, record.plan, num), record.routed)
    weight = made.row_weight.reshape(-1, 1)
    d_rows = np.where(counts[:, None], d_y[token] * weight, np.float32(0))
    back, made_grads = expert_ffn_backward(d_rows, rows, out, params, offsets, config.experts, num, MoEParams())
    assert all(same(made_grads[name], getattr(grads.params, name)) for name in made_grads) and len(made_grads) == 6
    assert same(permute_backward(back.d_x_rows[counts], record.plan, num), grads.d_x_experts)


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


# --- what is refused -------------------------------------------------------------------------------------------------


def changed(array, at, value):
    array = array.copy()
    array[at] = value
    return array


def put(made, **changes):
    """The encoding with single elements replaced: field=(index, value)."""
    return made._replace(**{name: changed(getattr(made, name), at, value) for name, (at, value) in changes.items()})


SLOTS, DENSE, LINES = (BY_HAND[n][0] for n in ("slots", "dense_map", "row_id_map"))
PAIRS, ROWS, OFFSETS = (BY_HAND[n][0] for n in ("capacity_pairs", "sorted_slots", "offsets"))
BLOCKS, ALIGNED, MASKED = (BY_HAND[n][0] for n in ("block_aligned", "aligned_rows", "masked_batched"))
ONE_HOT, PADDED = BY_HAND["capacity_one_hot"][0], BY_HAND["padded_rows"][0]


def slots(**changes):
    return lambda: enc.from_slots(put(SLOTS, **changes), 4)


def dense(top_k=None, **changes):
    return lambda: enc.from_dense_map(put(DENSE, **changes), top_k)


def lines(**changes):
    return lambda: enc.from_row_id_map(put(LINES, **changes))


def pairs(**changes):
    return lambda: enc.from_capacity_pairs(put(PAIRS, **changes), WEIGHTS, 4, any_order=True)


def rows(**changes):
    return lambda: enc.from_sorted_slots(put(ROWS, **changes), WEIGHTS, 4, any_order=True)


def blocks(**changes):
    return lambda: enc.from_block_aligned(put(BLOCKS, **changes), WEIGHTS, 4, 2, any_order=True)


def aligned(alignment=4, **changes):
    return lambda: enc.from_aligned_rows(put(ALIGNED, **changes), WEIGHTS, alignment, any_order=True)


def masked(**changes):
    return lambda: enc.from_masked_batched(put(MASKED, **changes), WEIGHTS, any_order=True)


def padded(**changes):
    return lambda: enc.from_padded_rows(put(PADDED, **changes), WEIGHTS, any_order=True)


def one_hot(top_k=None, **changes):
    return lambda: enc.from_capacity_one_hot(put(ONE_HOT, **changes), top_k, any_order=True)


REFUSED = [
    (padded(row_slot=((0, 0), -1)), r"row_slot\[0, 0\]: expected True \(padding behind the rows that count\)"),
    (padded(row_slot=((0, 0), 8)), r"row_slot: expected slots from 0 to 7, got \[8\]"),
    (padded(row_token=((0, 1), 2)), r"row_token\[0, 1\]: expected 1 \(the token of the slot\), got 2"),
    (padded(row_weight=((1, 3), 0.5)), r"row_weight\[1, 3\]: expected 0.0 \(the slot's weight, 0 in padding\)"),
    (padded(row_weight=((0, 0), 0.5)), r"row_weight\[0, 0\]: expected 0.25 \(the slot's weight, 0 in padding\)"),
    (lambda: enc.to_padded_rows(WEIGHTS, PLAN, 4, "ones"), "filler: expected 'zeros' or 'tokens', got 'ones'"),
    (lambda: enc.to_padded_rows(WEIGHTS, PLAN, 2), "capacity: expected"),
    (slots(topk_indices=((0, 0), 4)), r"topk_indices: expected ids from -1 to 3, got \[4\]; use -1"),
    (slots(topk_indices=((0, 0), -2)), "ids from -1 to 3"),
    (slots(topk_indices=((1, 1), 0)), r"each token at an expert once, got \[\[0, 0\]\]; remove"),
    (lambda: enc.from_slots(SLOTS, 0), "num_experts: expected an integer of at least 1, got 0; pass one"),
    (lambda: enc.from_slots(SLOTS._replace(topk_weights=WEIGHTS[:3]), 4), r"topk_weights: expected shape \(4, 2\), g"),
    (dense(probs=((3, 0), 0.5)), r"probs: expected weights of dispatched pairs only, got a weight at \[\[3, 0\]\]"),
    (dense(1), "top_k: expected at least the 2 experts of one token, got 1; raise it"),
    (lines(row_id_map=((3, 8), 5)), r"row_id_map\[:, 2E\]: expected counts from 0 to 4, got \[5\]"),
    (lines(row_id_map=((0, 4), 4)), r"row_id_map\[:, E:2E\]: expected experts from 0 to 3, got \[4\]"),
    (lines(row_id_map=((0, 5), 2)), r"each token at an expert once \(6 rows\), got 7 rows"),
    (lines(row_id_map=((0, 0), 4)), r"row_id_map rows\[0\]: expected 3 \(expert order, then token order\), got 4"),
    (lines(row_id_map=((0, 8), 1)), "probs: expected weights of dispatched pairs only"),
    (lambda: enc.from_row_id_map(LINES._replace(row_id_map=LINES[0][:, 1:])), r"row_id_map: .*shape \(4, 9\), got"),
    (pairs(position=((0, 0), -1)), r"position\[0, 0\]: expected 0 \(-1 with expert -1 and only there\), got -1"),
    (pairs(expert=((0, 0), -1)), r"position\[0, 0\]: expected -1"),
    (pairs(position=((0, 0), 3)), r"position: expected places from 0 to 2, got \[3\]; mark a dropped slot by -1"),
    (pairs(position=((0, 0), 1)), r"one row a place, got place \[1\] of expert \[2\] twice"),
    (lambda: enc.to_capacity_pairs(PLAN, 2), "capacity: expected an integer of at least 3, got 2"),
    (rows(row_slot=(0, 8)), r"row_slot: expected slots from 0 to 7, got \[8\]; number slot k of token t as t K \+ k"),
    (rows(row_slot=(0, 2)), r"row_slot: expected one row a slot, got slot \[2\] again"),
    (rows(row_token=(0, 1)), r"row_token\[0\]: expected 0 \(row_slot // K\), got 1"),
    (rows(row_expert=(0, 1)), r"row_expert\[0\]: expected 0 \(rows in expert order\), got 1"),
    (rows(row_expert=(6, 4)), r"row_expert: expected experts from 0 to 3, got \[4\]"),
    (rows(row_slot=(6, 6), row_token=(6, 3), row_expert=(6, 2)), "each token at an expert once"),
    (lambda: enc.complete_offsets(), "offsets: expected at least one of the three forms, got none"),
    (lambda: enc.complete_offsets(expert_ends=np.array([3, 2, 6])), r"expert_ends: .* no negative size, got \[-1\]"),
    (lambda: enc.complete_offsets(expert_ends=np.array([-2, 2])), r"expert_ends: .* no negative size, got \[-2\]"),
    (lambda: enc.complete_offsets(expert_offsets=np.array([1, 3])), r"expert_offsets\[0\]: .*0 \(the first row\)"),
    (lambda: enc.complete_offsets(*put(OFFSETS, expert_ends=(0, 2))), r"expert_ends\[0\]: .*3 \(what tokens_per_ex"),
    (lambda: enc.complete_offsets(*OFFSETS[:2], OFFSETS[2][1:]), r"expert_offsets: expected shape \(5,\), got"),
    (lambda: enc.from_offsets(OFFSETS, PLAN.row_slot[:6], WEIGHTS), r"row_slot: expected shape \(7,\), got \(6,\)"),
    (blocks(sorted_token_ids=(0, 9)), r"sorted_token_ids: expected slots from 0 to 7, got \[9\]"),
    (blocks(sorted_token_ids=(0, 2)), r"sorted_token_ids: expected one row a slot, got slot \[2\] again"),
    (blocks(sorted_token_ids=(11, 6)), r"expert_ids: expected experts from 0 to 3, got \[-1\]"),
    (blocks(sorted_token_ids=([2, 3], [8, 5])), r"places of sorted_token_ids\[2\]: expected 2 \(padding after"),
    (blocks(expert_ids=(5, 0)), r"expert_ids\[5\]: expected -1 \(one expert a block, then -1\), got 0; fill unused"),
    (lambda: enc.from_block_aligned(enc.BlockAligned(np.array([1, 2, 5, 8, 8, 8, 0, 4, 7, 8, 3, 8]),
                                                     np.array([0, 0, 1, 2, 2, 3]), np.array([10])), WEIGHTS, 4, 2),
     r"expert_ids\[2\]: expected 2 \(one expert a block, then -1\), got 1"),
    (blocks(expert_ids=(0, 3)), r"expert_ids\[0\]: expected 0 \(rows in expert order\), got 3"),
    (blocks(num_tokens_post_padded=(0, 12)), r"num_tokens_post_padded\[0\]: expected 10 \(whole blocks"),
    (lambda: enc.from_block_aligned(BLOCKS._replace(sorted_token_ids=BLOCKS[0][:9], expert_ids=BLOCKS[1][:5]),
                                    WEIGHTS, 4, 2), "expected at least the 10 entries of used blocks, got 9"),
    (lambda: enc.to_block_aligned(PLAN, 0), "block_size: expected an integer of at least 1, got 0"),
    (lambda: enc.complete_offsets(np.array([2**30, 2**30])), r"expected values below 2\^31, got 2147483648; encode"),
    (aligned(row_slot=(3, 6)), r"row_slot\[3\]: expected -1 \(-1 with m_indices -1\), got 6"),
    (aligned(m_indices=(0, 4)), r"m_indices: expected experts from 0 to 3, got \[4\]"),
    (aligned(row_slot=(0, -1)), r"row_slot: expected slots from 0 to 7, got \[-1\]"),
    (aligned(padded_ends=(1, 8)), r"padded_ends\[1\]: expected 4 \(counts rounded up"),
    (aligned(2), r"padded_ends\[3\]: expected 10 \(counts rounded up"),
    (aligned(row_slot=([2, 3], [-1, 5]), m_indices=([2, 3], [-1, 0])), r"places of m_indices\[2\]: expected 2"),
    (lambda: enc.from_aligned_rows(ALIGNED._replace(row_slot=np.append(ALIGNED.row_slot, -1),
                                                    m_indices=np.append(ALIGNED.m_indices, -1)), WEIGHTS, 4),
     r"m_indices: expected shape \(12,\), got \(13,\)"),
    (masked(masked_m=(0, 5)), r"masked_m: expected counts from 0 to 4, got \[5\]"),
    (masked(masked_m=(0, 2)), r"row_slot\[0, 2\]: expected -1 \(behind the expert's count\), got 5"),
    (masked(masked_m=(3, 2)), r"row_slot: expected slots from 0 to 7, got \[-1\]"),
    (lambda: enc.to_masked_batched(PLAN, 2), "max_m: expected an integer of at least 3, got 2"),
    (one_hot(combine=((3, 0, 0), 0.5)), r"combine: .*dispatched places only, got a weight at \[\[3, 0, 0\]\]"),
    (one_hot(dispatch=((0, 0, 2), True)), r"one place for a token at an expert, got token and expert \[\[0, 0\]\]"),
    (one_hot(dispatch=((3, 0, 0), True)), r"dispatch: expected one row a place, got place \[0\] of expert \[0\] twice"),
    (one_hot(1), "top_k: expected at least the 2 experts of one token, got 1"),
    (lambda: enc.to_capacity_one_hot(WEIGHTS, PLAN, 1), "capacity: expected an integer of at least 3, got 1"),
    (lambda: enc.to_slots(WEIGHTS[:3], PLAN), r"topk_weights: expected shape \(4, 2\), got \(3, 2\)"),
]  # fmt: skip


@pytest.mark.parametrize("at", range(len(REFUSED)))
def test_refused(at):
    call, sentence = REFUSED[at]
    with pytest.raises(ValueError, match=sentence):
        call()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: enc.from_slots(SLOTS._replace(topk_indices=INDICES.tolist()), 4), "integers, got list"),
        (lambda: enc.from_slots(SLOTS._replace(topk_indices=f32(INDICES)), 4), "integers, got float32"),
        (lambda: enc.from_slots(SLOTS._replace(topk_weights=INDICES), 4), "floating-point numbers, got int64"),
        (lambda: enc.from_dense_map(DENSE._replace(routing_map=DENSE.probs)), "booleans, got float32"),
        (lambda: enc.to_dense_map(INDICES, PLAN), "topk_weights: expected a NumPy array of floating-point"),
    ],
)
def test_refused_types(call, sentence):
    with pytest.raises(TypeError, match=sentence):
        call()


def test_dropped_slots_come_back_unused():
    """Who wanted an expert and was refused is not in any encoding: assigned_per_expert counts what is left."""
    indices, weights, plan = case_of("capacity 2, smallest dropped")
    decoded = enc.from_slots(enc.to_slots(weights, plan), 6)
    assert (plan.assigned_per_expert > 2).any() and (decoded.plan.assigned_per_expert <= 2).all()
    assert (decoded.topk_indices[plan.slot_row < 0] == -1).all()
    assert (decoded.topk_indices == indices)[plan.slot_row >= 0].all()
