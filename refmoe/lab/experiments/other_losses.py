"""E11's estimators with a forward of their own: SparseMixer's draws and ReLU routing.   spec/lab/E11.md

Each is held against the exact gradient of its own expected loss.
"""

import itertools
from math import fsum

import numpy as np

from ...check import STEP, ComplexStep
from ...config import RoutingConfig
from ...inputs import Given
from ...layer import forward, moe_backward, moe_forward
from ..student import layer, start_params
from ..tasks import Clusters, study

SPARSEMIXER = RoutingConfig(selection="sparsemixer", selection_base="logits", sparsemixer_eps=1.0)  # nobody is left out
RELU = RoutingConfig(score_fn="relu", selection="threshold")


def start(seed, s, top_k, routing):
    """config, batch, params: as in `every_choice`, with another router."""
    config = layer(s["hidden"], s["width"], s["experts"], top_k, routing=routing)
    params = start_params(config, seed)
    params = params._replace(w_router=s["sharpness"] * params.w_router, w_down=4 * params.w_down)
    return config, Clusters(seed, s["hidden"]).batch(0, s["tokens"]), params


def there_and_back(config, batch, params, given):
    """(record, loss of each token (T,), gradients) of one choice."""
    record = moe_forward(batch.x, params, config, study(), given)
    off = record.y - batch.target
    losses = np.array([fsum(row) / len(row) for row in off * off])
    return record, losses, moe_backward(2 * off / off.shape[1], batch.x, params, record, config, study(), given)


def relu_routing(seed, s):
    """Nothing is drawn: (probability 1 (T, 1), the layer's gradient (T, 1, E), complex step of the loss (T, E))."""
    config, batch, params = start(seed, s, s["experts"], RELU)
    record, _, grads = there_and_back(config, batch, params, Given())
    exact = np.stack([_stepped(e, config, batch, params, record) for e in range(s["experts"])], axis=1)
    return np.ones((s["tokens"], 1)), grads.d_logits_task[:, None], exact


def _stepped(e, config, batch, params, record):
    """The derivative of each token's loss by its logit of expert e; tokens do not touch each other."""
    z = record.routing.logits.astype(np.complex128)
    z[:, e] += 1j * STEP
    off = forward(batch.x, params, config, ComplexStep(), Given(logits=z), record).y - batch.target
    return np.array([fsum(row) / len(row) for row in (off * off).imag / STEP])


def sparsemixer(seed, s):
    """Every draw of both rounds and of both multipliers h: (probabilities (T, n), the layer's gradients (T, n, E),
    the exact gradient (T, E)).

    d (P l) = P (sum_k G_k h_k p_k d log p_k + l sum_k d log p_k), P = p_1 p_2 times the chance of h.
    """
    config, batch, params = start(seed, s, 2, SPARSEMIXER)
    E, T = s["experts"], s["tokens"]
    rounds, logits = round_probabilities(config, batch, params, E)
    chances, estimates, exact = [], [], []
    for (a, b), *h in itertools.product(itertools.permutations(range(E), 2), (1.0, 1 / 3), (1.0, 1 / 3)):
        drawn = Given(topk_indices=np.tile([a, b], (T, 1)), multipliers=np.tile(h, (T, 1)))
        _, losses, grads = there_and_back(config, batch, params, drawn)
        p = np.stack([rounds[0][:, a], rounds[1][:, a, b]], axis=1)
        gone = np.where(np.arange(E) == a, -np.inf, logits)
        tops = np.stack([logits.argmax(axis=1) == a, gone.argmax(axis=1) == b], axis=1)
        chance = p[:, 0] * p[:, 1] * _chance(tops[:, 0], h[0]) * _chance(tops[:, 1], h[1])
        logs = np.eye(E)[a] - rounds[0], np.eye(E)[b] - rounds[1][:, a]
        slopes = [(grads.d_topk_weights[:, k] * h[k] * p[:, k] + losses)[:, None] * logs[k] for k in (0, 1)]
        chances.append(chance)
        estimates.append(grads.d_logits_task)
        exact.append(chance[:, None] * (slopes[0] + slopes[1]))
    total = np.array([[fsum(column) for column in rows.T] for rows in np.stack(exact, axis=1)])
    return np.stack(chances, axis=1), np.stack(estimates, axis=1), total


def round_probabilities(config, batch, params, E):
    """p_1 (T, E), p_2 by the first choice (T, E, E): the weights of every pair where h is 1; and the logits."""
    first, second = np.zeros((len(batch.x), E)), np.zeros((len(batch.x), E, E))
    for a, b in itertools.permutations(range(E), 2):
        routing = moe_forward(batch.x, params, config, study(), Given(topk_indices=np.tile([a, b], (len(batch.x), 1)))
                              ).routing  # fmt: skip
        first[:, a], second[:, a, b] = routing.topk_weights.T
    return (first, second), routing.logits


def _chance(is_top, h):
    """Of a multiplier: 1 for the largest of a round, else 1 in one of four cases and 1/3 in three."""
    return np.where(is_top, float(h == 1), 0.25 if h == 1 else 0.75)
