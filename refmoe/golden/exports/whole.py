"""All tensors of a case as a file would hold them, also those that a bundle leaves to a recipe.   Spec 7.14"""

from ...formats import Packed
from ..digests import to_codes
from ..inputs import file_dtype
from ..packed import Experts, stored_parts
from ..run import flattened
from ..storage import held_name


def whole_tensors(manifest, reader, num, inputs):
    """name -> (dtype, array, or its parts along the first axis): what is stored; x, d_y and every parameter made again.

    What else a bundle keeps only as a sample is left out.
    """
    kept = [row for row in manifest["tensors"] if row["storage"]["kind"] == "stored"]
    made = {row["name"]: (row["dtype"], _read(reader, row)) for row in kept}
    for name, array in (("x", inputs.x), ("d_y", inputs.d_y)):
        if array is not None:
            made[name] = file_dtype(name, num), to_codes(array, file_dtype(name, num))
    for name, weights in flattened("params", inputs.params):
        made |= {n: part for n, part in _parameter(name, weights, num).items() if n not in made}
    return made


def _read(reader, row):
    name, shape = held_name(row["name"], "stored"), tuple(row["shape"])
    if len(shape) < 3:
        return reader.codes(name)
    return Experts(shape, reader.codes(name, 0).dtype, lambda e: reader.codes(name, e))


def _parameter(name, weights, num):
    if isinstance(weights, Packed):
        return stored_parts(name, weights)
    dtype = file_dtype(name, num)
    if len(weights.shape) < 3:
        return {name: (dtype, to_codes(weights, dtype))}
    first = to_codes(weights[0], dtype)
    return {name: (dtype, Experts(weights.shape, first.dtype, lambda e: to_codes(weights[e], dtype)))}
