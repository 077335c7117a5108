"""The table of a check, for humans: a line a tensor, its error by each method, the margin to the nearest switch."""

from typing import NamedTuple

TOLERANCE = {"complex_step": 1e-13, "fifty_digits": 1e-13, "difference": 1e-6}


class Row(NamedTuple):
    """One gradient tensor: how many elements were checked, and its error by method.

    Of complex step: max|g - reference| / max|reference|. Of the others, which take the slope along one direction d:
    |<g, d> - slope| / (|g| |d|). A bar is the tolerance of its method, or what the rounding of the function's own value
    makes of it where that is more: a gradient far smaller than the loss cannot be measured more sharply.
    """

    tensor: str
    elements: int
    complex_step: float
    fifty_digits: float | None  # None where the oracle was not asked
    difference: float
    bars: tuple  # of the three methods

    @property
    def ok(self):
        return all(error is None or error <= bar for error, bar in zip(self[2:5], self.bars, strict=True))


class GradientCheck(NamedTuple):
    """The rows of a check; prints as a table. margin: how near the nearest token is to choosing otherwise."""

    rows: tuple
    margin: float | None = None  # the least K-th minus (K+1)-th choice score; None where nothing is ranked
    missing: str = ""  # why there are no fifty digits

    @property
    def ok(self):
        return all(row.ok for row in self.rows)

    @property
    def errors(self):
        """tensor -> method -> error, of the methods that were used."""
        return {row.tensor: {m: e for m in TOLERANCE if (e := getattr(row, m)) is not None} for row in self.rows}

    def __str__(self):
        width = max(len(row.tensor) for row in self.rows)
        head = f"{'gradient':{width}}  {'elements':>8}  {'complex step':>12}  {'fifty digits':>12}  {'difference':>10}"
        used = {method for of in self.errors.values() for method in of}
        bars = ", ".join(f"{method} <= {bar:.0e}" for method, bar in TOLERANCE.items() if method in used)
        verdict = f"{'ok' if self.ok else 'FAILED'}: {bars}"
        told = [f"no fifty digits: {self.missing}"] if self.missing else []
        return "\n".join([head, *(_line(row, width) for row in self.rows), *told, self._switch(), verdict])

    def _switch(self):
        if self.margin is None:
            return "nothing is ranked: there is no selection to switch"
        return f"nearest switch of the selection: a margin of {self.margin:.3g} in the choice scores"


def _line(row, width):
    digits = "-" if row.fifty_digits is None else f"{row.fifty_digits:.1e}"
    told = f"{row.tensor:{width}}  {row.elements:8d}  {row.complex_step:12.1e}  {digits:>12}  {row.difference:10.1e}"
    return told + " FAILS" * (not row.ok)
