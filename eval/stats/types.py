"""Outcomes of graded examples, their tally, and intervals; standard library only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    """The outcome of grading an example; every example has exactly one."""

    CORRECT = "correct"
    WRONG = "wrong"
    UNPARSED = "unparsed"
    TRUNCATED = "truncated"
    ERRORED = "errored"


@dataclass(frozen=True)
class Interval:
    """A confidence interval, in the unit of the number it belongs to.

    Attributes:
        low: Lower end, inclusive.
        high: Upper end, inclusive.
        level: Confidence level, a fraction strictly between 0 and 1.

    Raises:
        ValueError: If the ends are not in order, an end is NaN, or the level is out of range.
    """

    low: float
    high: float
    level: float = 0.95

    def __post_init__(self) -> None:
        """Refuse ends that are out of order and levels that are not a probability."""
        # Written as "not (a <= b)" so that NaN, for which every comparison is false, is refused.
        if not self.low <= self.high:
            raise ValueError(f"interval ends are not in order: low={self.low}, high={self.high}")
        if not 0.0 < self.level < 1.0:
            raise ValueError(f"level is {self.level}, valid is a fraction between 0 and 1 (0.95)")


@dataclass(frozen=True)
class Tally:
    """How many of n examples had each outcome.

    `dataclasses.asdict` of a tally holds plain integers and can be written as JSON.

    Attributes:
        n: Number of examples, at least 1.
        correct: Examples with `Outcome.CORRECT`.
        wrong: Examples with `Outcome.WRONG`.
        unparsed: Examples with `Outcome.UNPARSED`.
        truncated: Examples with `Outcome.TRUNCATED`.
        errored: Examples with `Outcome.ERRORED`.

    Raises:
        ValueError: If n is 0, a count is negative, or the counts do not add up to n.
    """

    n: int
    correct: int
    wrong: int
    unparsed: int
    truncated: int
    errored: int

    def __post_init__(self) -> None:
        """Refuse an empty evaluation and counts that do not add up."""
        counts = {outcome.value: getattr(self, outcome.value) for outcome in Outcome}
        if self.n == 0:
            raise ValueError("no examples were graded: an empty evaluation is an error, not 0.0")
        if min(counts.values()) < 0:
            raise ValueError(f"a count is negative: {counts}")
        if sum(counts.values()) != self.n:
            raise ValueError(f"counts add up to {sum(counts.values())}, not n={self.n}: {counts}")

    @classmethod
    def count(cls, outcomes: Iterable[Outcome | str]) -> Tally:
        """Count outcomes.

        Args:
            outcomes: One per example, or its value ("correct") as read back from JSON.

        Raises:
            ValueError: If there are none, or a value is not an outcome.
        """
        counts = Counter(Outcome(outcome) for outcome in outcomes)
        by_name = {outcome.value: counts[outcome] for outcome in Outcome}
        return cls(n=counts.total(), **by_name)

    @property
    def accuracy(self) -> float:
        """Correct examples over all n, a fraction: examples that failed count as not correct."""
        return self.correct / self.n
