"""Formulas under a name that the engine may know.   Spec 6.5"""

from typing import Any, NamedTuple


class Named(NamedTuple):
    """A formula, or a tuple of formulas of the same stored tensors, that the engine may have compiled.

    The formulas are the definition; `name` and `parameters` say to the engine which ones they are (the tables of
    kernels/formulas.py). To every reading it is the formula itself.
    """

    name: str
    formula: Any
    parameters: Any = None

    def __call__(self, m, *stored, **constants):
        return self.formula(m, *stored, **constants)
