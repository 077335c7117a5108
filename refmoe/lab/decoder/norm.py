"""Division by a row's root mean square, with learned gains, and back."""

from typing import NamedTuple

import numpy as np

from .policy import row_sums


class NormRecord(NamedTuple):
    rms: object  # (T, 1)
    normed: object  # (T, D)
    out: object  # (T, D)


def rms_norm(x, w, eps, num):
    """rms = sqrt(sum(x^2) / D + eps);  normed = x / rms;  out = normed w.

    x (T, D), w (D,) -> NormRecord
    """
    made = num.compiled("rms_norm", x, w, eps)
    if made:
        return NormRecord(*made)
    rms = np.sqrt(row_sums("norm_squares", x * x, num) / x.shape[1] + eps)
    normed = x / rms
    return NormRecord(rms, normed, normed * w)


def rms_norm_backward(d_out, record, w, num):
    """d_x = (w d - normed sum(w d normed) / D) / rms;  d_w = sum over the rows of d normed.

    d_out (T, D), w (D,) -> d_x (T, D), d_w (D,)
    """
    made = num.compiled("rms_norm_backward", d_out, record.normed, record.rms, w)
    if made:
        return made[0], num.sum_rows("d_w_norm", made[1])
    # out = normed w
    d_w = num.sum_rows("d_w_norm", d_out * record.normed)
    scaled = d_out * w
    # normed = x / rms,   rms^2 = sum(x^2) / D + eps
    along = row_sums("norm_along", scaled * record.normed, num) / scaled.shape[1]
    return (scaled - record.normed * along) / record.rms, d_w
