"""Somebody's tensors against a golden case: every stage judged by bounds that are derived.   Spec 7.12"""

from .accumulators import ACCUMULATORS, Accumulator, find_accumulator
from .judged import Comparison, Mine, compare_tensors
from .verdicts import PASSED, SUSPICIOUS, WRONG, Verdict

__all__ = ["ACCUMULATORS", "PASSED", "SUSPICIOUS", "WRONG", "Accumulator", "Comparison", "Mine", "Verdict"]
__all__ += ["compare_tensors", "find_accumulator"]
