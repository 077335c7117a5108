"""What is read off a run: errors, loads, agreement. Sums are exact (fsum), logarithms the library's own."""

from math import comb, fsum

import numpy as np

from .tasks import study

DEAD = 10  # an expert with less than a tenth of an even share is called dead


def mean(values):
    """The exact sum over the count, rounded twice; 0 of nothing."""
    values = list(values)
    return fsum(values) / len(values) if values else 0.0


def normalised_error(y, target):
    """Mean squared error over the target's variance, by column: 0 is perfect, 1 is as good as the mean.

    y (T, D), target (T, D) -> scalar
    """
    middle = np.array([mean(column) for column in target.T])
    return fsum(((y - target) ** 2).reshape(-1)) / fsum(((target - middle) ** 2).reshape(-1))


def dead_experts(counts):
    """How many experts got less than a tenth of an even share: counts (E,) -> int"""
    return int((DEAD * len(counts) * counts < counts.sum()).sum())


def max_violation(counts):
    """max load / even load - 1, counts (E,): 0 is perfect balance, E - 1 is one expert for all."""
    total = int(counts.sum())
    return len(counts) * int(counts.max()) / total - 1 if total else 0.0


def log(values):
    """Natural logarithms by the library's fixed binary64 algorithm; 0 at 0, as p log p needs it."""
    values = np.asarray(values, np.float64)
    some = values > 0
    return np.where(some, study().evaluate("lse", lambda m, v: m.log(v), np.where(some, values, 1.0)), 0.0)


def entropy(counts):
    """Of the distribution counts / sum: (n,) -> nats"""
    p = np.asarray(counts, np.float64).reshape(-1) / max(1, counts.sum())
    return -fsum(p * log(p))


def shared_information(first, second):
    """2 I(a; b) / (H(a) + H(b)): 1 when one tells the other, 0 when they are independent.   (T,) and (T,) ints"""
    table = contingency(first, second)
    a, b = entropy(table.sum(1)), entropy(table.sum(0))
    return 2 * (a + b - entropy(table)) / (a + b) if a + b > 0 else 0.0


def contingency(first, second):
    """table[i, j]: how often first == i and second == j."""
    table = np.zeros((int(first.max()) + 1, int(second.max()) + 1), np.int64)
    np.add.at(table, (first, second), 1)
    return table


def matched_accuracy(found, truth, count):
    """The share of tokens on which two labelings agree, under the best renaming of `count` ids (by subsets)."""
    table = np.zeros((count, count), np.int64)
    np.add.at(table, (found, truth), 1)
    best = {0: 0}
    for row in table:
        step = {}
        for used, total in best.items():
            for j in (j for j in range(count) if not used >> j & 1):
                key = used | 1 << j
                step[key] = max(step.get(key, -1), total + int(row[j]))
        best = step
    return best[(1 << count) - 1] / max(1, len(found))


def cosine(a, b):
    """<a, b> / (|a| |b|); 0 where one of them vanishes."""
    a, b = a.reshape(-1), b.reshape(-1)
    size = fsum(a * a) * fsum(b * b)
    return fsum(a * b) / float(np.sqrt(size)) if size else 0.0


def sign_test(values):
    """Two-sided, exact: how likely a coin is to be as one-sided. Zeros are ties and do not count.

    values: one difference a seed -> {"for": positive, "against": negative, "ties", "p"}
    """
    up, down = sum(v > 0 for v in values), sum(v < 0 for v in values)
    n = up + down
    tail = sum(comb(n, i) for i in range(min(up, down) + 1))
    return {"for": up, "against": down, "ties": len(values) - n, "p": min(1.0, 2 * tail / 2**n)}
