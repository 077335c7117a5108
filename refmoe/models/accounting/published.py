"""The printed figure of a model beside the counted one.   Spec 0.3"""

from decimal import Decimal

from .counts import counted
from .tensors import is_whole

UNITS = {"T": 10**12, "B": 10**9, "M": 10**6}
TOLERANCE = Decimal("0.015")
_CONVENTIONS = {True: "active", False: "active_without_input_embedding"}


def comparison(info):
    """{"total", "active"}: each None where nothing is printed, else figure, counted, difference, needs_reason, reason.

    difference = counted - printed. A reason is needed beyond 1.5 % and beyond half a unit of the last printed digit.
    Where nobody says whether an active figure holds the input embedding, the nearer of the two is compared. Where only
    the MoE layers are counted nothing is compared: what is printed is of the whole model.
    """
    if not is_whole(info):
        return {"total": None, "active": None}
    counts, printed = counted(info), info["model"]["published"]
    return {
        "total": _compared(printed["total"], counts["total"], "total"),
        "active": _compared_active(printed["active"], counts),
    }


def _compared_active(row, counts):
    if row is None:
        return None
    value, _ = printed_value(row["figure"])
    stated = row["input_embedding"]
    names = _CONVENTIONS.values() if stated is None else [_CONVENTIONS[stated]]
    nearest = min(names, key=lambda name: abs(Decimal(counts[name]) - value))
    return _compared(row, counts[nearest], nearest) | {"convention_stated": stated is not None}


def _compared(row, count, convention):
    if row is None:
        return None
    value, half = printed_value(row["figure"])
    difference = Decimal(count) - value
    return {
        "figure": row["figure"],
        "counted": count,
        "compared": convention,
        "difference": int(difference),
        "relative": float(difference / value),
        "needs_reason": abs(difference) > TOLERANCE * value and abs(difference) > half,
        "reason": row.get("reason"),
    }


def printed_value(figure):
    """("46.7B") -> (46.7e9, half a unit of its last digit 0.05e9), as decimals."""
    number, unit = Decimal(figure[:-1]), UNITS[figure[-1]]
    return number * unit, Decimal(1).scaleb(number.as_tuple().exponent) * unit / 2
