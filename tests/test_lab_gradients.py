"""The gradient notebook: the library's numbers beside two others, and zeros with their reasons."""

import runpy

import numpy as np
import pytest

import refmoe
from refmoe import moe_forward
from refmoe.models.presets import spec_folder
from refmoe.recipes import generate

PATH = str(spec_folder() / "lab" / "gradients.py")


@pytest.fixture(scope="module")
def notebook():
    return runpy.run_path(PATH)


def test_every_number_agrees_with_a_complex_step_and_with_fifty_digits(notebook):
    rows = notebook["follow"](1)
    assert max(row.step_gap for row in rows) < 1e-14 and max(row.oracle_gap for row in rows) < 1e-14
    assert {row.name for row in rows} >= {"x", "logits", "topk_weights", "w_router", "w_gate", "w_up", "w_down"}


def test_zeros_are_where_the_reasons_say(notebook):
    chosen = set(notebook["library"](1)[3].tolist())
    for row in notebook["follow"](1):
        by_expert = row.name.startswith("w_") or row.name == "logits"
        expert = row.index[1 if row.name == "logits" else 0]
        assert bool(row.why) == (by_expert and expert not in chosen) and row.why != "?"


@pytest.mark.parametrize("tensor", ["w_gate", "w_router"])
def test_a_wrong_backward_would_show(notebook, monkeypatch, tensor):
    plain = notebook["refmoe"].moe_backward

    def wrong(*arguments):
        grads = plain(*arguments)
        return grads._replace(params=grads.params._replace(**{tensor: getattr(grads.params, tensor) * (1 + 1e-9)}))

    monkeypatch.setattr(notebook["refmoe"], "moe_backward", wrong)
    gaps = {}
    for row in notebook["follow"](1):
        gaps[row.name] = max(gaps.get(row.name, 0), row.oracle_gap, row.step_gap)
    assert [name for name, gap in gaps.items() if gap > 1e-10] == [tensor]


def test_fifty_digits_are_fifty(notebook):
    """The derivative of exp along a logit-like path, known in closed form."""
    import mpmath

    arrays, stages, _, chosen, _ = notebook["library"](1)
    with mpmath.workdps(90):
        index = (0, int(chosen[0]))
        first = notebook["fifty_digits"](arrays, stages, chosen, "logits", index)
        z = [mpmath.mpf(float(stages["logits"][0, e])) for e in chosen]
        w = mpmath.exp(z[0]) / (mpmath.exp(z[0]) + mpmath.exp(z[1]))
        exact = {n: notebook["_mapped"](a.tolist(), mpmath.mpf) for n, a in arrays.items()}
        ends = [notebook["layer"](exact, chosen, mpmath.exp, {"topk_weights": [pair]}) for pair in ([1, 0], [0, 1])]
        assert abs(first / (w * (1 - w) * (ends[0] - ends[1])) - 1) < mpmath.mpf(10) ** -50


def test_the_checks_oracle_and_the_notebooks_agree_to_forty_digits(notebook):
    """Two writings of the layer, an element at a time and along a direction: nothing of the checker is in binary64."""
    from refmoe.check.digits import FiftyDigits, slope
    from refmoe.layer import forward

    arrays, stages, _, chosen, _ = notebook["library"](1)
    num, config = FiftyDigits(), notebook["CONFIG"]
    params = refmoe.recipes.assemble_params({name: a for name, a in arrays.items() if name.startswith("w_")})
    record = moe_forward(arrays["x"], params, config, refmoe.Numerics("float64", backend="numpy"))
    for name in ("w_router", "w_up"):
        along = generate("along", arrays[name].shape, 1).astype(np.float64)

        def loss(v, name=name):
            out = forward(arrays["x"], params._replace(**{name: v}), config, num, refmoe.Given(), record)
            return np.sum(arrays["d_y"] * out.y)

        many = num.reading.context.mpf  # on the left, so that its digits and not mpmath's own fifteen count
        parts = [many(notebook["fifty_digits"](arrays, stages, chosen, name, i)) * many(float(along[i]))
                 for i in np.ndindex(along.shape)]  # fmt: skip
        assert abs(slope(loss, arrays[name], along, num) / sum(parts) - 1) < many(10) ** -40


def test_the_checks_table_tells_the_nearest_switch():
    """The margin is that of the checked run; a table of bytes ranks nothing."""
    sizes = {"hidden_size": 4, "intermediate_size": 2, "num_experts": 4, "top_k": 2}
    check = refmoe.check_gradients(refmoe.MoEConfig(**sizes), num_tokens=3)
    x = generate("x", (3, 4), 0)
    scores = moe_forward(x, refmoe.init_params(refmoe.MoEConfig(**sizes)), refmoe.MoEConfig(**sizes),
                         refmoe.Numerics()).routing.scores  # fmt: skip
    ordered = -np.sort(-scores, axis=1)
    assert abs(check.margin - (ordered[:, 1] - ordered[:, 2]).min()) < 1e-6
    assert f"a margin of {check.margin:.3g}" in str(check)
    hashed = refmoe.MoEConfig(**sizes, routing=refmoe.RoutingConfig(selection="hash", hash_vocab_size=5))
    check = refmoe.check_gradients(hashed, num_tokens=2)
    assert check.margin is None and "nothing is ranked" in str(check)


def test_it_runs_as_a_program(capsys):
    runpy.run_path(PATH, run_name="__main__")
    told = capsys.readouterr().out
    assert "6 times exactly 0: the row of an expert that was not chosen" in told and "largest gap" in told
    assert np.isfinite(float(told.rsplit("fifty digits ", 1)[1].split(",")[0]))
