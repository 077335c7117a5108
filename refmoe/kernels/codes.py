"""Weights as codes and scales, which C reads where they lie: which of them it can, and how they are passed.

The table of formats stands in csrc/refmoe_kernels.h. Anything with the fields of a `Packed` will do.
"""

import numpy as np

from .arguments import operand_of

WIDE = ("bf16", "fp16")  # formats of 16 bits, read without scales
LARGEST = {"E5M2": 57344, "E4M3": 448, "E3M2": 28, "E2M3": 7.5, "E2M1": 6, "int8": 128, "int4": 8}
SCALES = {"float32": "f4", "bf16": "u2", "fp16": "u2", "E4M3": "u1", "E8M0": "u1"}


def is_small(w):
    """Whether these are codes of 8 bits or less."""
    return getattr(w, "format", None) in LARGEST and hasattr(w, "codes")


def reads(w):
    """Whether C reads these weights, and NumPy would refuse none of them: codes dense in memory, scales likewise."""
    if getattr(w, "format", None) in WIDE and w.scales is None:
        return _is_dense(w.codes, "u2", 3)
    if not is_small(w) or not _is_dense(w.codes, "u1", 3):
        return False
    return (w.scales is None or _reads_scales(w)) and not _is_refused(w)


def _reads_scales(w):
    kind = w.kind_of_scales
    dense = _is_dense(_scales(w), SCALES.get(kind), 3) and _scales(w).shape == w.blocks
    beside = w.tensor_scales is None or (kind != "float32" and _is_dense(w.tensor_scales, "f4", 1))
    return dense and beside


def _is_dense(array, kind, axes):
    if not isinstance(array, np.ndarray) or array.ndim != axes or array.dtype.str[1:] != kind:
        return False
    return array.dtype.isnative and array.flags.c_contiguous and array.flags.aligned


def _is_refused(w):
    """Codes of 6 bits with a seventh; products of powers of two that may be beyond float32."""
    if w.format in ("E3M2", "E2M3") and w.codes.max(initial=0) >= 64:
        return True
    if w.scales is None or w.kind_of_scales != "E8M0" or w.tensor_scales is not None:
        return False
    most = max(int((w.scales + np.uint8(1)).max(initial=0)), 1) - 1  # plus 1 the NaN, 255, is the least
    return 2.0 ** (most - 127) * LARGEST[w.format] > float(np.finfo(np.float32).max)


def _scales(w):
    """The scales; those of float32 may come as their codes."""
    scales = w.scales
    return scales.view(np.float32) if getattr(scales, "dtype", None) == np.uint32 else scales


def weights_of(name, given, rule, shape):
    """(what is passed, format, shape): an array, or a `Packed` of few bits. Raises TypeError or ValueError."""
    if not is_small(given):
        array, form = operand_of(name, given, rule, shape)
        return array, form, array.shape
    if rule.profile == "float64" or not reads(given):
        raise ValueError(f"{name}: expected codes and scales that C can read, dense in memory, in profile exact or "
                         f"chain, got other {given.format} in profile {rule.profile}; decode them first")
    if any(want not in (None, got) for want, got in zip(shape, given.shape, strict=True)):
        wanted = "(" + ", ".join("any" if size is None else str(size) for size in shape) + ")"
        raise ValueError(f"{name}: expected shape {wanted}, got {given.shape}; check the axes against the others")
    return given, given.format, given.shape


def pairs_of(pairs, rule):
    """([(d, w)], format of every d, format of every w, E, K). Raises TypeError or ValueError."""
    if not 1 <= len(pairs) <= 2:
        raise ValueError(f"pairs: expected 1 or 2 pairs (d, w), got {len(pairs)}; add further sums with acc")
    made, formats, N, E, K = [], [], None, None, None
    for index, (d, w) in enumerate(pairs):
        w, right, (E, M, K) = weights_of(f"pairs[{index}] w", w, rule, (E, None, K))
        d, left = operand_of(f"pairs[{index}] d", d, rule, (N, M))
        made.append((d, w))
        formats.append((left, right))
        N = len(d)
    if len(set(formats)) > 1:
        raise ValueError(f"pairs: expected one format of every d and one of every w, got {formats}; decode the narrow")
    return made, *formats[0], E, K


def scaled_of(ffi, lib, formats, w):
    """A refmoe_scaled, which keeps nothing alive."""
    made = ffi.new("refmoe_scaled *")
    made.codes = _address(ffi, w.codes)
    if w.scales is not None:
        made.scales, made.tensor_scales = _address(ffi, _scales(w)), _address(ffi, w.tensor_scales)
        made.block_rows, made.block_cols = w.block
        made.scale_format = getattr(lib, formats[w.kind_of_scales])
    return made


def _address(ffi, array):
    if array is None or array.size == 0:
        return ffi.NULL
    return ffi.cast("void *", ffi.from_buffer(array))

