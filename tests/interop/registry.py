"""Every row of the comparison."""

import blocks_sigmoid
import blocks_softmax

BLOCKS = [*blocks_softmax.BLOCKS, *blocks_sigmoid.BLOCKS]


def models():
    """The model directories of transformers that the rows take blocks from, in order."""
    return list(dict.fromkeys(row.cls.split(".")[0] for row in BLOCKS))


def classes():
    """The block classes that the rows build, in order."""
    return list(dict.fromkeys(row.cls for row in BLOCKS))
