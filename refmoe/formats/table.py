"""The number formats: one row each.   Spec 6.2"""

from typing import NamedTuple

import numpy as np

from ..refusals import require


class Format(NamedTuple):
    """A binary format: values m * 2^q with |m| < 2^precision and q >= emin - precision + 1.

    An integer is the case emin = emax: all its values have the quantum 1, like the subnormals of the others.
    """

    name: str
    precision: int  # bits of the significand, the hidden one included
    emin: int  # exponent of the smallest normal value
    emax: int  # exponent of the largest finite value
    codes: type  # unsigned integer type that holds a code, in its low bits
    carrier: type  # NumPy type that holds the values in memory
    safetensors: str  # name of the type in a safetensors header
    specials: tuple = ("infinity", "nan")  # ("nan",): the code of all ones is NaN, the one before it a number
    scale: bool = False  # powers of two alone: no sign, no zero, no subnormals
    integer: bool = False  # two's complement: one zero, and one number more below zero than above

    @property
    def largest(self):
        """The largest finite value, as a Python float."""
        unit = 2.0 ** (1 - self.precision)
        below_two = 2 * unit if self.specials == ("nan",) and not self.scale else unit  # NaN takes the last place
        return (2.0 - below_two) * 2.0**self.emax

    @property
    def lowest(self):
        """The lowest finite value: -largest, but in integers one below that."""
        return -self.largest - self.integer

    @property
    def quantum(self):
        """Exponent of the spacing of the subnormals, so that every value is a multiple of 2^quantum."""
        return self.emin - self.precision + 1


FORMATS = {
    row.name: row
    for row in (
        Format("float64", 53, -1022, 1023, np.uint64, np.float64, "F64"),
        Format("float32", 24, -126, 127, np.uint32, np.float32, "F32"),
        Format("bf16", 8, -126, 127, np.uint16, np.float32, "BF16"),
        Format("fp16", 11, -14, 15, np.uint16, np.float32, "F16"),
        Format("E5M2", 3, -14, 15, np.uint8, np.float32, "F8_E5M2"),
        Format("E4M3", 4, -6, 8, np.uint8, np.float32, "F8_E4M3", ("nan",)),
        Format("E3M2", 3, -2, 4, np.uint8, np.float32, "F6_E3M2", ()),
        Format("E2M3", 4, 0, 2, np.uint8, np.float32, "F6_E2M3", ()),
        Format("E2M1", 2, 0, 2, np.uint8, np.float32, "F4", ()),
        Format("E8M0", 1, -127, 127, np.uint8, np.float32, "F8_E8M0", ("nan",), scale=True),
        Format("int8", 7, 6, 6, np.uint8, np.float32, "I8", (), integer=True),
        Format("int4", 3, 2, 2, np.uint8, np.float32, "I4", (), integer=True),
    )
}


def format_row(name):
    """The row of a format. Raises ValueError for a name that is not in the table.   Spec 6.2"""
    ok = isinstance(name, str) and name in FORMATS
    require(ok, ValueError, "format", f"one of {', '.join(FORMATS)}", repr(name), "choose one of these")
    return FORMATS[name]
