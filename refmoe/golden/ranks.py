"""The expert-parallel view of a case: who sends which rows to whom, in virtual ranks.   Spec 2.11

Rank r holds the tokens r T / R up to (r + 1) T / R, rounded down, and E / R experts that follow each other. Nothing is
computed twice: buffers are copies of the rows of one rank's layer, and only the gradients of what every rank holds a
copy of, router and shared experts, are made rank by rank.
"""

from typing import NamedTuple

import numpy as np

from ..dispatch import row_tokens
from ..refusals import require


class RankPlan(NamedTuple):
    """Integers. Rows of all ranks stand one behind the other; the splits say where a rank's part begins."""

    token_offsets: object  # (R+1,) tokens of each rank
    expert_offsets: object  # (R+1,) experts of each rank
    tokens_per_expert: object  # (R, E) rows that each rank has for each expert
    input_splits: object  # (R, R) [s, d]: rows that s sends to d
    output_splits: object  # (R, R) [d, s]: rows that d receives from s
    send_row: object  # (N,) the row at each place of the send buffers: by token rank, then in expert order
    received_row: object  # (N,) the row at each place of the receive buffers: by expert rank, then by token rank
    chunk_sort: object  # (N,) the place in the receive buffers of each row: what turns them into rows by expert


TO_EXPERTS = ("dispatch", "combine_backward")  # the exchanges that lead from token ranks to expert ranks
MATRICES = {"w_gate": "d_gate_rows", "w_up": "d_up_rows", "w_down": "d_y_rows"}  # and the gradient of what each makes


def check_ranks(config, ranks):
    """Raises ValueError unless the experts of a configuration can stand in that many ranks."""
    fix, E = "choose a divisor", config.num_experts
    require(1 <= ranks and E % ranks == 0, ValueError, "--ranks", f"a divisor of the {E} experts", ranks, fix)
    ok = config.num_choices == E and config.routing.selection != "soft"
    fix = "leave --ranks out"
    require(ok, ValueError, "--ranks", "a plan of experts with weights", "a soft mixture, or experts without", fix)


def rank_plan(plan, num_tokens, num_experts, ranks):
    """The plan of one rank -> RankPlan.   Spec 2.11"""
    token_offsets = np.arange(ranks + 1, dtype=np.int64) * num_tokens // ranks
    expert_offsets = np.arange(ranks + 1, dtype=np.int64) * (num_experts // ranks)
    home = np.searchsorted(token_offsets, row_tokens(plan), side="right") - 1
    experts = np.repeat(np.arange(num_experts, dtype=np.int64), plan.tokens_per_expert)
    counts = np.bincount(home * num_experts + experts, minlength=ranks * num_experts).astype(np.int64)
    counts = counts.reshape(ranks, ranks, -1)
    splits, counts = counts.sum(axis=2), counts.reshape(ranks, -1)
    send_row = np.argsort(home, kind="stable").astype(np.int64)
    received_row = np.argsort(experts // (num_experts // ranks) * ranks + home, kind="stable").astype(np.int64)
    chunk_sort = np.empty_like(received_row)
    chunk_sort[received_row] = np.arange(len(received_row))
    both = splits, np.ascontiguousarray(splits.T)
    return RankPlan(token_offsets, expert_offsets, counts, *both, send_row, received_row, chunk_sort)


def rank_tensors(config, x, record, grads, num, ranks):
    """Yields (name, stage whose format it has, array) of the whole view; x: what the layer reads; grads or None."""
    plan = rank_plan(record.plan, len(x), config.num_experts, ranks)
    for name, array in plan._asdict().items():
        yield f"ranks.{name}", name, array
    for name, (stage, rows) in _exchanged(record.experts, grads).items():
        places = plan.send_row, plan.received_row
        send, received = places if name in TO_EXPERTS else places[::-1]
        yield f"ranks.{name}.send_rows", stage, rows[send]
        yield f"ranks.{name}.received_rows", stage, rows[received]
    if grads is not None:
        for name, stage, parts in _partial(x, record, grads, plan, num):
            yield f"ranks.partial.{name}", stage, np.stack(parts)


def _exchanged(experts, grads):
    """exchange -> (stage, rows of the single rank)."""
    normed = experts.normed_y_rows is not None
    rows = {
        "dispatch": ("x_rows", experts.x_rows),
        "combine": ("normed_y_rows", experts.normed_y_rows) if normed else ("y_rows", experts.y_rows),
    }
    if grads is not None:
        name, back = ("d_normed_y_rows", grads.d_normed_y_rows) if normed else ("d_y_rows", grads.d_y_rows)
        rows |= {"combine_backward": (name, back), "dispatch_backward": ("d_x_rows", grads.rows.d_x_rows)}
    return rows


def _partial(x, record, grads, plan, num):
    """(name, stage, a gradient from each rank's tokens alone) of the parameters that every rank has a copy of."""
    router = [d for d in (grads.router.d_raw_logits, grads.router.d_clean_logits, grads.d_logits) if d is not None]
    if grads.params.w_router is not None:
        tokens = list(_rows_of_ranks(plan, len(x), 1))
        seen = _seen_by_router(x, record.routing)
        parts = [num.contract_backward_w("d_w_router", router[0][s], seen[s]) for s in tokens]
        yield "w_router", "d_w_router", parts
        if grads.params.router_bias is not None:
            yield "router_bias", "d_router_bias", [num.sum_rows("d_router_bias", router[0][s]) for s in tokens]
    if record.shared is not None:
        yield from _shared(x, record.shared, grads, plan, num)


def _seen_by_router(x, routing):
    if routing.router_x is not None:
        return routing.router_x
    return x if routing.jittered_x is None else routing.jittered_x


def _shared(x, record, grads, plan, num):
    """The same of the shared experts: (R, n, ...)."""
    n = len(grads.params.shared.w_up)
    rows = list(_rows_of_ranks(plan, len(x), n))
    inputs = np.concatenate([x] * n)
    read = {"w_gate": inputs, "w_up": inputs, "w_down": record.hidden_rows}
    for name, d_name in MATRICES.items():
        d = getattr(grads.shared, d_name)
        if d is None:
            continue
        each = [(s, np.arange(n + 1, dtype=np.int64) * (len(s) // n)) for s in rows]
        stage, bias = f"d_{name}", f"b_{name[2:]}"
        yield f"shared.{name}", stage, [num.contract_backward_w(stage, d[s], read[name][s], ends) for s, ends in each]
        if getattr(grads.params.shared, bias) is not None:
            yield f"shared.{bias}", f"d_{bias}", [num.sum_rows(f"d_{bias}", d[s], ends) for s, ends in each]


def _rows_of_ranks(plan, num_tokens, copies):
    """For each rank the rows of its tokens; several shared experts have the tokens once each."""
    tokens = np.arange(num_tokens * copies) % max(1, num_tokens)
    for a, b in zip(plan.token_offsets[:-1], plan.token_offsets[1:], strict=True):
        yield np.flatnonzero((tokens >= a) & (tokens < b))
