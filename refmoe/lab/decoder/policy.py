"""The arithmetic policy of the decoder: the library's, which knows the names of the decoder's stages too."""

import numpy as np

from ...numerics import Numerics
from ...refusals import require

STAGES = frozenset(
    """qkv attention_logits attention_weights context attention_out norm_squares norm_along
    head_logits lse loss
    d_final_x d_embedding d_positions d_head_logits
    d_attention_out d_context d_attention_weights weights_along d_q d_k d_v d_attention_x
    d_w_qkv d_w_attention_out d_w_norm d_feed_forward""".split()
)


class DecoderNumerics(Numerics):
    """`Numerics` for whole models: profile "chain" or "exact" stores float32, "float64" binary64.

    Products, sums and elementary functions are stages, as in the layer. What stands between them is + - * / and sqrt,
    one rounding for each written operation, so a narrower store is refused.
    """

    def __post_init__(self):
        fix = "a narrow store is a layer's: use refmoe.Numerics there"
        wide = self.store in (None, "float32", "float64")
        require(wide, ValueError, "store", "float32, or float64 in its profile", repr(self.store), fix)
        super().__post_init__()

    def format_of(self, name):
        return np.dtype(self.dtype).name if name in STAGES else super().format_of(name)

    def compiled(self, name, *arguments):
        """What the engine makes of lines of written operations, the same bits; None where NumPy carries them out."""
        function = getattr(self.engine, name, None) if self.profile == "chain" else None
        return function and function(*arguments)


def row_sums(name, rows, num):
    """The sum of each row, as a contraction with ones: in the order of the row.   rows (N, K) -> (N, 1)"""
    return num.contract(name, rows, np.ones((1, rows.shape[1]), num.dtype))

