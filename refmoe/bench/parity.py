"""The proof before the timing: what C computed for the whole case is computed again by NumPy for a part, bit by bit.

A token's y and gradient do not depend on the batch, so some tokens stand for all; of the weights' gradients one
expert's are recomputed. Anything that differs is the end of the run.
"""

import numpy as np

from ..inputs import Given
from ..layer import moe_backward, moe_forward
from ..numerics import Numerics
from ..recipes import MoEParams
from .child import NotEqual

WORK = 4e8  # multiply-adds that a proof may cost NumPy: seconds


def prove(layer, num, setting):
    """A dictionary that says what was compared, all of it equal. Raises NotEqual."""
    case, reference = layer.case, Numerics(profile=num.profile, store=num.store, backend="numpy")
    tokens = sampled(case)
    record = layer.forward(num, "y" if case.phase == "forward" else "all")
    if num.profile not in layer.parts:  # the same for any number of threads
        again = part_forward(layer, reference, tokens)
        back = None if case.phase == "forward" else part_backward(layer, reference, tokens, again)
        layer.parts[num.profile] = again, back
    again, back = layer.parts[num.profile]
    compare("y", record.y[tokens], again.y, setting)
    proof = {"setting": setting, "tokens": len(tokens), "values": int(again.y.size)}
    if case.phase == "forward":
        return proof
    grads = layer.backward(num, record)
    compare("d_x", grads.d_x[tokens], back.d_x, setting)
    compare("d_topk_weights", grads.d_topk_weights[tokens], back.d_topk_weights, setting)
    return proof | {"expert": compare_weights(layer, reference, record, grads, setting)}


def sampled(case):
    """Some tokens, first and last among them."""
    one = case.config.top_k * case.matrices * case.config.hidden_size * case.config.intermediate_size
    cost = one * (1 if case.phase == "forward" else 3)
    count = int(min(case.tokens, max(1, WORK // cost), 32))
    return np.unique(np.linspace(0, case.tokens - 1, count).astype(int))


def part_forward(layer, num, tokens):
    """The same layer with some of the tokens."""
    given = Given(logits=layer.given.logits[tokens], topk_indices=layer.given.topk_indices[tokens])
    return moe_forward(layer.x[tokens], layer.params, layer.case.config, num, given)


def part_backward(layer, num, tokens, record):
    given = Given(logits=layer.given.logits[tokens], topk_indices=layer.given.topk_indices[tokens])
    weights = [name for name, array in layer.params._asdict().items() if name.startswith("w_") and array is not None]
    into = MoEParams(**{name: Dropped() for name in weights if name != "w_router"})
    return moe_backward(layer.d_y[tokens], layer.x[tokens], layer.params, record, layer.case.config, num, given,
                        into=into)  # fmt: skip


class Dropped:
    """A sink of gradients that are not looked at."""

    def take(self, e, d_w):
        pass


def compare_weights(layer, num, record, grads, setting):
    """One expert's gradients, from the rows that C stored: the expert with the fewest rows, if not none."""
    counts = record.plan.tokens_per_expert
    e = int(np.argmin(np.where(counts > 0, counts, counts.max() + 1)))
    rows = slice(int(record.plan.expert_offsets[e]), int(record.plan.expert_offsets[e + 1]))
    rows = slice(rows.start, rows.stop)
    saved, back = record.experts, grads.rows
    pairs = {"w_gate": (back.d_gate_rows, saved.x_rows), "w_up": (back.d_up_rows, saved.x_rows),
             "w_down": (grads.d_y_rows, saved.hidden_rows)}  # fmt: skip
    for name, (d_rows, x_rows) in pairs.items():
        if getattr(layer.params, name) is not None:
            want = num.contract_backward_w(f"d_{name}", d_rows[rows], x_rows[rows])
            compare(f"d_{name}", getattr(grads.params, name)[e], want, setting)
    return e


def compare(name, got, want, setting):
    """Raises NotEqual unless all bits are the same."""
    got, want = np.ascontiguousarray(got), np.ascontiguousarray(want)
    same = got.view(np.uint32) == want.view(np.uint32)
    if not same.all():
        count = int(np.count_nonzero(~same))
        raise NotEqual(f"{name}, {setting}: {count} of {same.size} values of C differ from NumPy's; nothing is timed")
