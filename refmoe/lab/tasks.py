"""What is learned: batches from the integer generator, the same bits in any language.   Spec 7.2

A task draws everything from (seed, step): centres and maps once a seed, tokens afresh at every step, so that nothing is
learned by heart. `label` is the truth a router could find. Test batches are steps from TEST on.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ..config import ExpertsConfig, MoEConfig
from ..layer import moe_forward
from ..numerics import Numerics
from ..recipes import assemble_params, generate, generate_ids, init_params, name_params

TEST = 1 << 30  # steps from here on are for tests


class Batch(NamedTuple):
    """Tokens, what they should become, and the truth behind them."""

    x: object  # (T, D)
    target: object  # (T, D)
    label: object  # (T,) int: cluster, domain, first factor or the teacher's expert
    sequence_ids: object  # (T,) int


class Clusters(NamedTuple):
    """C Gaussian clouds, each with its own random map: target = tanh(W_c x), plus one map common to all if asked for.

    skew "even": every cloud alike; "zipf": cloud c as often as 1 / (c + 1). sequence_length > 0: a sequence has one
    cloud (domain sequences).
    """

    seed: int
    hidden_size: int = 12
    clusters: int = 8
    skew: str = "even"
    common: float = 0.0
    sequence_length: int = 0

    def batch(self, step, tokens):
        """The batch of a step: step, tokens T -> Batch"""
        D, length = self.hidden_size, self.sequence_length or 1
        drawn = _ids(f"task.label.{step}", -(-tokens // length), self)
        label = np.repeat(drawn, length)[:tokens]
        centres, maps, shared = _maps(self.seed, self.clusters, D)
        x = _drawn(f"task.x.{step}", (tokens, D), self.seed) + 2 * centres[label]
        target = _tanh(_by_label(x, maps, label))
        if self.common:
            target = target + self.common * _tanh(_by_label(x, shared, np.zeros_like(label)))
        return Batch(x, target, label, np.arange(tokens) // length)


class Factors(NamedTuple):
    """Tokens made of 2 of C factors: x = noise + both directions, target = the sum of both factors' maps of x."""

    seed: int
    hidden_size: int = 12
    clusters: int = 8

    def batch(self, step, tokens):
        """The batch of a step: step, tokens T -> Batch; label is the pair's number."""
        D, C = self.hidden_size, self.clusters
        first = generate_ids(f"task.label.{step}", (tokens,), self.seed, C)
        second = (first + 1 + generate_ids(f"task.second.{step}", (tokens,), self.seed, C - 1)) % C
        centres, maps, _ = _maps(self.seed, C, D)
        x = _drawn(f"task.x.{step}", (tokens, D), self.seed) + 2 * (centres[first] + centres[second])
        target = _tanh(_by_label(x, maps, first)) + _tanh(_by_label(x, maps, second))
        return Batch(x, target, np.minimum(first, second) * C + np.maximum(first, second), np.arange(tokens))


class Teacher(NamedTuple):
    """A mixture of C experts with top 1 routing makes the targets; the student can, in principle, be it."""

    seed: int
    hidden_size: int = 12
    clusters: int = 8

    def batch(self, step, tokens):
        """The batch of a step: step, tokens T -> Batch; label is the expert that the teacher chose."""
        config, params = _teacher(self.seed, self.clusters, self.hidden_size)
        x = _drawn(f"task.x.{step}", (tokens, self.hidden_size), self.seed)
        record = moe_forward(x, params, config, study())
        return Batch(x, record.y, record.routing.topk_indices[:, 0], np.arange(tokens))


TASKS = {"clusters": Clusters, "factors": Factors, "teacher": Teacher}


@lru_cache(maxsize=1)
def study():
    """float64 on one thread, from C where it is there: the same bits as NumPy's."""
    return Numerics("float64", threads=1)


def in_float64(params):
    """MoEParams of float32 values as float64 ones: the same numbers."""
    return assemble_params(
        {name: a if a.dtype.kind in "iu" else a.astype(np.float64) for name, a in name_params(params).items()}
    )


def _drawn(name, shape, seed):
    return generate(name, shape, seed).astype(np.float64)


def _ids(name, count, task):
    """Which cloud each token, or sequence, comes from."""
    if task.skew == "even":
        return generate_ids(name, (count,), task.seed, task.clusters)
    shares = 1.0 / np.arange(1, task.clusters + 1)
    upto = np.cumsum(shares)
    at = generate(name, (count,), task.seed, "unit").astype(np.float64) * upto[-1]
    return np.minimum(np.searchsorted(upto, at, side="right"), task.clusters - 1).astype(np.int64)


@lru_cache(maxsize=8)
def _maps(seed, clusters, D):
    """Centres (C, D), maps (C, D, D), one map for all (1, D, D); entries of the maps about 1/sqrt(D)."""
    centres = _drawn("task.centres", (clusters, D), seed)
    maps = generate("task.maps", (clusters, D, D), seed, exponent=-1).astype(np.float64)
    return centres, maps, generate("task.common", (1, D, D), seed, exponent=-1).astype(np.float64)


def _by_label(x, maps, label):
    """x_t mapped by maps[label_t]: (T, D), (C, D, D), (T,) -> (T, D)"""
    order = np.argsort(label, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(label, minlength=len(maps)))]).astype(np.int64)
    out = np.empty_like(x)
    out[order] = study().contract("y_rows", x[order], maps, offsets)
    return out


def _tanh(z):
    return study().evaluate("y_rows", lambda m, v: m.tanh(v), z)


@lru_cache(maxsize=8)
def _teacher(seed, clusters, D):
    experts = ExpertsConfig(gated=False, activation="relu", biases=True)
    config = MoEConfig(hidden_size=D, intermediate_size=D, num_experts=clusters, top_k=1, experts=experts)
    params = in_float64(init_params(config, seed ^ 0x7EAC))
    return config, params._replace(w_router=8 * params.w_router, w_up=2 * params.w_up, w_down=4 * params.w_down)
