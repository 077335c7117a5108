"""One token's gradient, number by number, back through a layer.   Chapter 5

Runnable cells (`# %%`), or `python spec/lab/gradients.py`. Every number of the library stands beside two others: a
complex step through a second writing of the layer, and the same layer with fifty digits in mpmath. Where a gradient is
zero it says why.
"""

# %% The layer: one token, four experts, two chosen, weights renormalised, gated experts with silu
import cmath
from typing import NamedTuple

import numpy as np

import refmoe
from refmoe.recipes import assemble_params, generate, name_params

D, F, E, K = 3, 2, 4, 2
CONFIG = refmoe.MoEConfig(hidden_size=D, intermediate_size=F, num_experts=E, top_k=K,
                          routing=refmoe.RoutingConfig(normalize=True))  # fmt: skip
STAGES = ("logits", "topk_weights", "y_rows", "hidden_rows", "gate_rows", "up_rows")
WHY_ZERO = {
    "logits": "not chosen: renormalised weights read the chosen logits only",
    "w_router": "the row of an expert that was not chosen",
    "w_gate": "an expert without tokens", "w_up": "an expert without tokens", "w_down": "an expert without tokens",
}  # fmt: skip


# %% Forward and backward, by the library in binary64
def library(seed=1):
    """(inputs by name, stages by name, gradients by name, chosen experts by row) of the one token."""
    num = refmoe.Numerics("float64", backend="numpy")
    params = {n: a.astype(np.float64) for n, a in name_params(refmoe.init_params(CONFIG, seed)).items()}
    x, d_y = (generate(name, (1, D), seed).astype(np.float64) for name in ("x", "d_y"))
    record = refmoe.moe_forward(x, assemble_params(params), CONFIG, num)
    grads = refmoe.moe_backward(d_y, x, assemble_params(params), record, CONFIG, num)
    stages = {"logits": record.routing.logits, "topk_weights": record.routing.topk_weights}
    stages |= {name: getattr(record.experts, name) for name in STAGES[2:]}
    of = {"x": grads.d_x, "logits": grads.d_logits_task, "topk_weights": grads.d_topk_weights}
    of |= {"y_rows": grads.d_y_rows} | {name: getattr(grads.rows, f"d_{name}") for name in STAGES[3:]}
    of |= name_params(grads.params)
    experts = record.routing.topk_indices.reshape(-1)[record.plan.row_slot]
    return {"x": x, "d_y": d_y, **params}, stages, of, record.routing.topk_indices[0], experts


# %% The layer once more, a scalar at a time, for any kind of number
def layer(p, chosen, exp, given):
    """<d_y, y>. p: name -> nested lists; given: stages whose values are taken as they are, the rest is computed."""
    dot = lambda a, b: sum(u * v for u, v in zip(a, b, strict=True))  # noqa: E731
    x, order = p["x"][0], sorted(range(K), key=lambda k: chosen[k])  # rows stand by expert
    logits = given.get("logits", [[dot(w, x) for w in p["w_router"]]])[0]
    powers = [exp(logits[e]) for e in chosen]
    weights = given.get("topk_weights", [[power / sum(powers) for power in powers]])[0]
    experts = [chosen[k] for k in order]
    gate = given.get("gate_rows", [[dot(w, x) for w in p["w_gate"][e]] for e in experts])
    up = given.get("up_rows", [[dot(w, x) for w in p["w_up"][e]] for e in experts])
    hidden = given.get("hidden_rows", [[g / (1 + exp(-g)) * u for g, u in zip(*rows, strict=True)]
                                       for rows in zip(gate, up, strict=True)])  # fmt: skip
    y_rows = given.get("y_rows", [[dot(w, h) for w in p["w_down"][e]] for e, h in zip(experts, hidden, strict=True)])
    y = [sum(weights[k] * row[d] for k, row in zip(order, y_rows, strict=True)) for d in range(D)]
    return dot(p["d_y"][0], y)


# %% Two derivatives of it
def complex_step(arrays, stages, chosen, name, index, h=1e-200):
    """Im f(v + ih) / h: no difference of two numbers, so nothing cancels."""
    moved = (arrays | stages)[name].astype(complex)
    moved[index] += 1j * h
    inner = {n: a.tolist() for n, a in arrays.items()}
    given = {name: moved.tolist()} if name in stages else {}
    return layer(inner if given else inner | {name: moved.tolist()}, chosen, cmath.exp, given).imag / h


def fifty_digits(arrays, stages, chosen, name, index):
    """(f(v + h) - f(v - h)) / 2h with ninety digits and h = 1e-27: h^2 is beyond fifty digits, and of ninety the
    difference of two numbers that agree to thirty leaves more.

    A stage is kept as the library stored it, so it is the stored stage whose gradient is asked for.
    """
    import mpmath

    with mpmath.workdps(90):
        h, ends = mpmath.mpf(10) ** -27, []
        exact = {n: _mapped(a.tolist(), mpmath.mpf) for n, a in arrays.items()}
        for sign in (1, -1):
            moved = (arrays | stages)[name].astype(object)
            moved = np.vectorize(mpmath.mpf, otypes=[object])(moved)
            moved[index] += sign * h
            given = {name: moved.tolist()} if name in stages else {}
            ends.append(layer(exact if given else exact | {name: moved.tolist()}, chosen, mpmath.exp, given))
        return (ends[0] - ends[1]) / (2 * h)


def _mapped(nested, make):
    return [_mapped(inner, make) for inner in nested] if isinstance(nested, list) else make(nested)


# %% Number by number
class Row(NamedTuple):
    """One number: whose gradient, the library's value, how far the two others are, why it is zero if it is."""

    name: str
    index: tuple
    value: float
    step_gap: float
    oracle_gap: float
    why: str


def follow(seed=1):
    """Every gradient of the token, from y back to x and the parameters; gaps over the tensor's largest entry."""
    arrays, stages, of, chosen, _ = library(seed)
    rows = []
    for name in ("topk_weights", "logits", "y_rows", "hidden_rows", "gate_rows", "up_rows", "x", *sorted(
        name_params(refmoe.init_params(CONFIG, seed)))):  # fmt: skip
        scale = float(np.abs(of[name]).max())
        for index in np.ndindex(of[name].shape):
            value = float(of[name][index])
            step = complex_step(arrays, stages, chosen, name, index)
            oracle = fifty_digits(arrays, stages, chosen, name, index)
            why = WHY_ZERO.get(name, "?") if value == 0 else ""
            rows.append(Row(name, index, value, abs(value - step) / scale, float(abs(value - oracle)) / scale, why))
    return rows


def table(rows):
    """As text; neighbours that are zero for one reason stand in one line."""
    lines, zeros = [f"{'gradient of':<20}{'library':>14}{'to the step':>14}{'50 digits':>12}"], 0
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        if row.why:
            zeros += 1
            if following is None or (following.name, following.why) != (row.name, row.why):
                lines.append(f"{row.name:<20}{zeros} times exactly 0: {row.why}")
                zeros = 0
            continue
        at = f"{row.name}{list(row.index)}".replace(" ", "")
        lines.append(f"{at:<20}{row.value:>+14.6f}{row.step_gap:>14.1e}{row.oracle_gap:>12.1e}")
    return "\n".join(lines)


# %% Read it from above: the weights' gradient, then the router's, then the experts'
if __name__ == "__main__":
    followed = follow()
    print(table(followed))
    print(f"\nlargest gap to the complex step {max(r.step_gap for r in followed):.1e}, "
          f"to fifty digits {max(r.oracle_gap for r in followed):.1e}, over a tensor's largest entry")  # fmt: skip
