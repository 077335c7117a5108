"""E11: bias and variance of gradients through a choice, against the exact gradient.   spec/lab/E11.md"""

from math import fsum

import numpy as np

from ...inputs import Given
from ...layer import moe_backward, moe_forward
from ..experiment import Experiment, Finding, check
from ..measures import cosine
from ..plots import explain, label_panel, strip
from ..student import layer, start_params
from ..tasks import Clusters, study
from .other_losses import relu_routing, sparsemixer

OTHERS = {"SparseMixer": sparsemixer, "ReLU": relu_routing}  # of losses of their own
ARMS = ("path, top 1", "path, sampled", "score function", "both", "both, baseline", *OTHERS)


def measure(arm, seed, settings):
    """Every choice of every token, weighed by its probability: no sampling error anywhere."""
    if arm in OTHERS:
        return {"numbers": judged(*OTHERS[arm](seed, settings)), "series": {}}
    p, losses, paths = every_choice(seed, settings)
    scores = losses[:, :, None] * _directions(p)
    exact = expected(p, paths + scores)
    estimate, weights = {
        "path, top 1": lambda: (paths, _top(p)),
        "path, sampled": lambda: (paths, p),
        "score function": lambda: (scores, p),
        "both": lambda: (paths + scores, p),
        "both, baseline": lambda: (paths + (losses - _baseline(p, losses))[:, :, None] * _directions(p), p),
    }[arm]()
    return {"numbers": judged(weights, estimate, exact), "series": {}}


def judged(weights, estimate, exact):
    """Bias and deviation over the exact gradient's length, and the angle: weights (T, n), estimates (T, n, E)."""
    middle, size = expected(weights, estimate), _length(exact)
    spread = np.sqrt(fsum((weights[:, :, None] * (estimate - middle[:, None]) ** 2).reshape(-1)))
    bias = _length(middle - exact) / size
    return {"bias": bias, "deviation": float(spread) / size, "cosine": cosine(middle, exact)}


def every_choice(seed, settings):
    """p (T, E), the loss of each choice (T, E), and the layer's own gradient of the logits for each (T, E, E)."""
    s, num = settings, study()
    config, batch = layer(s["hidden"], s["width"], s["experts"], 1), Clusters(seed, s["hidden"]).batch(0, s["tokens"])
    params = start_params(config, seed)
    params = params._replace(w_router=s["sharpness"] * params.w_router, w_down=4 * params.w_down)
    losses, paths = [], []
    for e in range(s["experts"]):
        given = Given(topk_indices=np.full((s["tokens"], 1), e))
        record = moe_forward(batch.x, params, config, num, given)
        off = record.y - batch.target
        losses.append([fsum(row) / len(row) for row in off * off])
        paths.append(moe_backward(2 * off / s["hidden"], batch.x, params, record, config, num, given).d_logits_task)
    return record.routing.scores, np.array(losses).T, np.stack(paths, axis=1)


def expected(weights, values):
    """sum_n weights_tn values_tn, the sum exact: (T, n), (T, n, E) -> (T, E)"""
    terms = weights[:, :, None] * values
    return np.array([[fsum(column) for column in rows.T] for rows in terms])


def _directions(p):
    """d log p_e / d logits_j = [e = j] - p_j: (T, E, E)"""
    return np.eye(p.shape[1])[None] - p[:, None, :]


def _top(p):
    return np.eye(p.shape[1])[p.argmax(axis=1)]


def _baseline(p, losses):
    return np.array([[fsum(row)] for row in p * losses])


def _length(a):
    return float(np.sqrt(fsum((a * a).reshape(-1))))


def findings(table, settings):
    t = table
    return [
        Finding("path", "What a layer back-propagates is off the exact gradient by more than the score function's part",
                t.difference("path, sampled", "score function", "bias"), "of its length"),
        Finding("sampled", "Taking the best expert is further off than sampling it, on average over choices",
                t.difference("path, top 1", "path, sampled", "bias"), "of its length"),
        Finding("baseline", "A baseline makes the unbiased estimate steadier",
                t.difference("both", "both, baseline", "deviation"), "of its length"),
        Finding("noise", "The path alone is steadier than the unbiased estimate with a baseline",
                t.difference("both, baseline", "path, sampled", "deviation"), "of its length"),
        Finding("sparsemixer", "SparseMixer is nearer to the exact gradient of its loss than a sampled path is to its",
                t.difference("path, sampled", "SparseMixer", "bias"), "of its length"),
        check("relu", "ReLU routing back-propagates the exact gradient of its loss, to 1e-12 of its length",
              t.numbers("ReLU", "bias"), 1e-12),
    ]  # fmt: skip


def draw(figure, table, settings):
    titles = {"bias": "Bias, over the exact gradient's length",
              "deviation": "Deviation of one sample, over that length",
              "cosine": "Cosine of the mean with the exact"}  # fmt: skip
    for axes, (name, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
        strip(axes, ARMS, [table.numbers(arm, name) for arm in ARMS])
        label_panel(axes, title)
    explain(figure, "every choice of every token is weighed, none sampled; the last two have losses of their own")


EXPERIMENT = Experiment(
    id="E11",
    name="estimators",
    title="Gradients through a choice: bias and variance",
    question="How far is what a layer back-propagates from the gradient of the expected loss?",
    settings={"tokens": 128, "experts": 8, "hidden": 12, "width": 16, "sharpness": 2.0},
    quick={"tokens": 32},
    arms=lambda settings: ARMS,
    measure=measure,
    findings=findings,
    draw=draw,
    limits=(
        ("sharpness", "a number above 0", lambda s: s["sharpness"] > 0),
        ("experts", "at least 2, to have a choice", lambda s: s["experts"] > 1),
        ("tokens", "such that 4 tokens experts^3, every draw of two and its gradient, is at most 2^26",
         lambda s: 4 * s["tokens"] * s["experts"] ** 3 <= 1 << 26),
    ),
)
