"""A small decoder around the layer: byte embedding, causal attention, MoE or dense feed-forward, tied head.

    embed -> (norm -> attention -> + ; norm -> feed-forward -> +) a block -> norm -> cross entropy

spec/lab/decoder.md has the formulas. Each pair foo, foo_backward stands in one file, forward first.
"""

from .config import DecoderConfig as DecoderConfig
from .config import DenseConfig as DenseConfig
from .model import DecoderRecord as DecoderRecord
from .model import decoder_backward as decoder_backward
from .model import decoder_forward as decoder_forward
from .params import BlockParams as BlockParams
from .params import DecoderParams as DecoderParams
from .params import init_decoder as init_decoder
from .policy import DecoderNumerics as DecoderNumerics
