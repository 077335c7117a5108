"""The law's encodings against the library: the same integers, the same memory of what was encoded.   Spec 2.6-2.9"""

import pytest
from law_bridge import LAW, agree, config_of, to_law
from test_encodings import CASES, case_of

from refmoe import encodings


@pytest.mark.parametrize("name", CASES)
def test_encodings(name):
    indices, weights, plan = case_of(name)
    W, P, K = to_law(weights), to_law_plan(plan), indices.shape[1]
    most = int(max(plan.tokens_per_expert))
    pairs = [
        (LAW.encode_slots(W, P), encodings.to_slots(weights, plan)),
        (LAW.encode_dense_map(W, P), encodings.to_dense_map(weights, plan)),
        (LAW.encode_row_id_map(W, P), encodings.to_row_id_map(weights, plan)),
        (LAW.encode_sorted_slots(P, {"top_k": K}), encodings.to_sorted_slots(plan)),
        (LAW.encode_offsets(P), encodings.to_offsets(plan)),
    ]
    for limit in (None, most, most + 2):
        pairs.append((LAW.encode_capacity_pairs(P, limit), encodings.to_capacity_pairs(plan, limit)))
        pairs.append((LAW.encode_masked_batched(P, limit), encodings.to_masked_batched(plan, limit)))
        pairs.append((LAW.encode_capacity_one_hot(W, P, limit), encodings.to_capacity_one_hot(weights, plan, limit)))
        for filler in ("zeros", "tokens"):
            padded = encodings.to_padded_rows(weights, plan, limit, filler)
            pairs.append((LAW.encode_padded_rows(W, P, limit, filler), padded))
    for block in (1, 3, 4, 16):
        pairs.append((LAW.encode_block_aligned(P, block), encodings.to_block_aligned(plan, block)))
        pairs.append((LAW.encode_aligned_rows(P, block), encodings.to_aligned_rows(plan, block)))
    assert {type(made) for _, made in pairs} == {kind for kind, _, _ in encodings.ENCODINGS.values()}
    for law, made in pairs:
        agree(law, made, type(made).__name__)


@pytest.mark.parametrize("name", CASES)
def test_what_encodings_remember(name):
    indices, weights, plan = case_of(name)
    W, P, K = to_law(weights), to_law_plan(plan), indices.shape[1]
    slots = encodings.from_slots(encodings.to_slots(weights, plan), len(plan.tokens_per_expert))
    dense = encodings.from_dense_map(encodings.to_dense_map(weights, plan), K)
    for top_k, decoded in ((None, slots), (K, dense)):
        kept = to_law(decoded.topk_indices), to_law(decoded.topk_weights)
        assert LAW.remembered(W, P, top_k) == kept
        config = config_of().to_dict() | {"num_experts": len(plan.tokens_per_expert), "top_k": K}
        assert LAW.make_plan(*kept, config) == to_law_plan(decoded.plan)


def to_law_plan(plan):
    return {name: to_law(array) for name, array in plan._asdict().items()}
