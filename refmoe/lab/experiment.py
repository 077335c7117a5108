"""What an experiment is: a question, settings, arms, a measurement of one arm and seed, findings and a picture."""

from typing import NamedTuple

from .measures import mean, sign_test


class Experiment(NamedTuple):
    """A row of the table EXPERIMENTS."""

    id: str  # E1
    name: str  # collapse
    title: str
    question: str  # one sentence
    settings: dict  # name -> default; its type is the type that --set takes
    quick: dict  # what --quick changes
    arms: object  # settings -> names of what is compared
    measure: object  # (arm, seed, settings) -> {"numbers": {name: number}, "series": {name: list}}
    findings: object  # (table, settings) -> list of Finding
    draw: object  # (figure, table, settings) -> None
    choices: dict = {}  # noqa: RUF012  (name -> what a text setting may be)
    corpus: bool = False  # does it read text?
    limits: tuple = ()  # (name of a setting, what it must be, settings -> is it?)

    @property
    def folder(self):
        return f"{self.id}-{self.name}"


class Finding(NamedTuple):
    """A claim with one number a seed: positive speaks for it, negative against it."""

    name: str
    claim: str  # what would be true if the numbers were positive
    values: list
    unit: str = ""
    detail: str = ""  # instead of the numbers' spread, in the sentence

    def judged(self):
        """Everything of it that results.json holds; the sentence is made of the numbers."""
        test, count = sign_test(self.values), len(self.values)
        return {
            "name": self.name, "claim": self.claim, "values": self.values, "mean": mean(self.values),
            "unit": self.unit, "sign_test": test, "verdict": verdict(test, count),
            "sentence": f"{self.claim}: {verdict(test, count)} ({self._spread()}; sign test p = {test['p']:.3g}).",
        }  # fmt: skip

    def _spread(self):
        if self.detail:
            return self.detail
        unit = f" {self.unit}" if self.unit else ""
        low, high = min(self.values), max(self.values)
        return f"mean {mean(self.values):.3g}{unit}, from {low:.3g} to {high:.3g}"


def verdict(test, count):
    """In words, from the counts alone."""
    if test["for"] == count:
        return f"yes, in {'every one of' if count > 1 else 'the one of'} {count} seeds"
    if test["against"] == count:
        return f"no, against it in all {count} seeds"
    if test["ties"] == count:
        return f"no difference in any of {count} seeds"
    return f"not settled: for it {test['for']}, against it {test['against']}, neither {test['ties']} of {count} seeds"


def check(name, claim, gaps, limit):
    """A Finding of gaps that must not exceed a limit: one a seed."""
    return Finding(name, claim, [1 if gap <= limit else -1 for gap in gaps], detail=f"largest gap {max(gaps):.3g}")


class Table:
    """The measurements of a run: by arm and seed."""

    def __init__(self, units, arms, seeds):
        self.units, self.arms, self.seeds = units, tuple(arms), tuple(seeds)

    def numbers(self, arm, name):
        """One number a seed."""
        return [self.units[arm, seed]["numbers"][name] for seed in self.seeds]

    def series(self, arm, name):
        """One list a seed."""
        return [self.units[arm, seed]["series"][name] for seed in self.seeds]

    def difference(self, first, second, name):
        """first - second, seed by seed."""
        return [a - b for a, b in zip(self.numbers(first, name), self.numbers(second, name), strict=True)]

    def names(self):
        """The names of all numbers, in order of appearance."""
        return list(dict.fromkeys(name for unit in self.units.values() for name in unit["numbers"]))
