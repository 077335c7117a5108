"""Sinkhorn's normalisation of the logits, by potentials: what is ranked in training. No gradient.   Spec 1.3"""

import numpy as np


def sinkhorn(logits, iterations, num):
    """f_t = -ln(T sum_e exp(z_te + g_e)), then g_e = -ln(E sum_t exp(z_te + f_t)), from g = 0 on.   Spec 1.3; S-BASE

    logits (T, E) -> row_potentials (I, T), column_potentials (I, E), one row an iteration
    """
    (T, E), rows, columns = logits.shape, [], []
    g = np.zeros(E, logits.dtype)
    for _ in range(iterations if T else 0):
        f = _potentials("row_potentials", logits, g, T, num)
        g = _potentials("column_potentials", logits.T, f, E, num)
        rows.append(f)
        columns.append(g)
    return np.reshape(rows, (len(rows), T)).astype(num.dtype), np.reshape(columns, (len(rows), E)).astype(num.dtype)


def _potentials(name, z, other, count, num):
    """-(ln count + ln sum exp(z + other)) of each row."""

    def formula(m, z, other, n):
        return -(m.logsumexp(z + other) + m.last(m.log(n)))

    return num.evaluate(name, formula, z, other[None], np.full((1, 1), float(count)), core=1)
