"""Controllers: what moves the selection bias between steps. No gradient.   Spec 4.4"""

import numpy as np


def update_selection_bias(selection_bias, assigned_per_expert, rate, num):
    """selection_bias + rate sign(mean(n) - n): no gradient; sign(0) = 0, decided in integers.   Spec 4.4; DeepSeek-V3

    selection_bias (E,), assigned_per_expert (E,) -> (E,)
    """
    n = np.asarray(assigned_per_expert, np.int64)
    direction = np.sign(n.sum() - len(n) * n)
    return num.sum("selection_bias", [selection_bias, direction * float(rate)])
