"""The floating-point environment that every public call needs.   Spec 6.1"""

from .rounding import UNIT

# Names, as a compiler evaluates constants beforehand. Floats of Python, whose operations are those of the processor
# under the settings that NumPy has: on cold caches one operation of an array takes longer than all of these.
_ONE, _HALF, _HUGE = 1.0, 0.5, 2.0**1000
_NORMAL = 2.0**-1022  # the least: half of it is lost where a result or an operand is flushed to zero
_UNIT = float(UNIT)
_NEXT_EVEN = 1.0 + 4 * float(UNIT)


def check_environment():
    """Raises RuntimeError unless this thread rounds to nearest even and keeps subnormals.   Spec 6.1"""
    keeps = _NORMAL * _HALF * _HUGE > 0
    nearest = _ONE + _UNIT == _ONE and -_ONE - _UNIT == -_ONE and _ONE + (_UNIT + _UNIT + _UNIT) == _NEXT_EVEN
    if not keeps or not nearest:
        raise RuntimeError(
            "floating-point environment: expected round-to-nearest with subnormals kept, got another mode; "
            "some library changed it in this thread (fast-math code does): restore it or use a fresh process"
        )
