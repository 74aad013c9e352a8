"""What a judge is asked and what comes of it: questions, replies, verdicts, judgements.

Decisions: (1) a preference is the probability that b is better; (2) preferences and win rates are
rounded to multiples of 2**-52 and 2**-40, on which x and 1 - x (and 100 - x) are both exact:
swapping a and b gives 100 minus the win rate, to the last digit.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, NamedTuple, Protocol

from eval.stats.types import Interval

# What is kept of a judge's reply: `text`, `top_logprobs` (of the likeliest tokens), a local judge's
# `logprobs` of the two labels, or the reference judge's `rouge_l`; and of an endpoint's `usage`,
# `request_changes` (see Judgement) and ORIGIN, who gave it and how.
Reply = dict[str, Any]
ORIGIN = ("model", "finish_reason", "system_fingerprint")
_LEAST_MASS = 0.5


class Failure(NamedTuple):
    """Why a question has no reply. `asked` is False where the engine had given up before it."""

    reason: str
    asked: bool = True


class Reading(NamedTuple):
    """The probability that the second answer is better, or None and why there is none.

    `label_mass` is the probability of both labels together, None where none was read.
    """

    p_second: float | None
    reason: str = ""
    label_mass: float | None = None


Record = Callable[["Question", "Reply | Failure"], None]


@dataclass(frozen=True)
class Question:
    """One pair of answers in the order in which a judge sees them."""

    prompt: str
    first: str
    second: str
    reference: str | None = None
    repeat: int = 0


class Engine(Protocol):
    """A judge. `reads` is 'label', 'text' or 'reference' (then there is no template).

    `keeps_labels_only`: its replies hold nothing but the two labels' numbers, so that other labels
    need other replies.
    """

    @property
    def keeps_labels_only(self) -> bool:
        """Whether replies depend on the labels."""
        ...

    @property
    def reads(self) -> str:
        """What it makes of a question."""
        ...

    def identity(self) -> dict[str, Any]:
        """What decides its replies, as JSON-able data; no secret and nothing about speed."""
        ...

    def ask(self, questions: Sequence[Question], template: Any, record: Record) -> None:
        """Ask questions, and call `record` once for each as soon as its reply is there."""
        ...

    def read(self, reply: Reply, template: Any) -> Reading:
        """Read a reply that `ask` recorded, now or in an earlier run."""
        ...


@dataclass(frozen=True)
class Comparison:
    """Two answers to one prompt.

    Attributes:
        id: what the comparison is known by; no two of a judgement share one.
        prompt: what was answered.
        a: one answer, of the baseline where there is one.
        b: the other, of the model under test.
        reference: a reference answer, for judges that look at one.
        repeat: 0, or a number that makes a judge look again at what it has judged already.
    """

    id: str
    prompt: str
    a: str
    b: str
    reference: str | None = None
    repeat: int = 0

    def question(self, order: str) -> Question:
        """The comparison as a judge sees it in order 'ab' or 'ba'."""
        first, second = {"ab": (self.a, self.b), "ba": (self.b, self.a)}[order]
        return Question(self.prompt, first, second, self.reference, self.repeat)


class VerdictOutcome(StrEnum):
    """What became of one comparison, seen from b; every comparison has exactly one outcome."""

    WIN = "win"
    TIE = "tie"
    LOSS = "loss"
    UNPARSED = "unparsed"
    ERRORED = "errored"


@dataclass(frozen=True)
class Verdict:
    """What a judge says of one comparison.

    Attributes:
        id: the comparison's.
        outcome: win, tie or loss of b; unparsed (no verdict in a reply); errored (no reply, or one
            without the log probabilities asked for).
        preference: probability that b is better, None unless win, tie or loss.
        by_order: the same for each order asked, 'ab' and 'ba'; None where that one failed.
        reason: why there is no preference, else empty.
        label_mass: mean probability of both labels together over the orders read, if any.
    """

    id: str
    outcome: VerdictOutcome
    preference: float | None
    by_order: Mapping[str, float | None]
    reason: str = ""
    label_mass: float | None = None

    @property
    def flips(self) -> bool | None:
        """Whether each order prefers another answer; None where not both were judged."""
        if len(self.by_order) < 2 or None in self.by_order.values():
            return None
        return math.prod(p - 0.5 for p in self.by_order.values() if p is not None) < 0


@dataclass(frozen=True)
class Plan:
    """What judging will ask.

    Attributes:
        comparisons: how many there are.
        questions: different questions they come to; equal answers need none.
        cached: questions already answered.
        calls: questions to ask. A request that is sent again after an error is one call.
        cost: estimated cost of the calls, from 4 characters a token; None without a price.
    """

    comparisons: int
    questions: int
    cached: int
    calls: int
    cost: float | None

    def __str__(self) -> str:
        """One line for people."""
        line = (
            f"{self.comparisons} comparisons, {self.questions} questions: "
            f"{self.cached} answered before, {self.calls} calls to make"
        )
        return line if self.cost is None else f"{line}, estimated cost {self.cost:.2f}"


@dataclass(frozen=True)
class Judgement:
    """All verdicts of one judge, and what it took to get them.

    Attributes:
        verdicts: one a comparison, in their order.
        plan: what was to be asked.
        calls: questions put to the judge in this run.
        usage: tokens that the judge counted, over all replies used, cached ones too.
        answered: of the same replies, how many came with each `model`, `finish_reason` and
            `system_fingerprint`.
        changes: what servers made of the request: the name of a field -> the name it was sent
            under, or None where it was left out.
    """

    verdicts: tuple[Verdict, ...]
    plan: Plan
    calls: int
    usage: Mapping[str, int]
    answered: Mapping[str, Mapping[str, int]]
    changes: Mapping[str, str | None]

    @property
    def counts(self) -> dict[str, int]:
        """Win, tie, loss, unparsed and errored; they add up to the number of comparisons."""
        counted = Counter(verdict.outcome for verdict in self.verdicts)
        return {outcome.value: counted[outcome] for outcome in VerdictOutcome}

    @property
    def preferences(self) -> list[float]:
        """The preferences of the comparisons that have one, in their order."""
        return [v.preference for v in self.verdicts if v.preference is not None]

    @property
    def n(self) -> int:
        """Comparisons that have a preference: what the win rate is a mean of."""
        return len(self.preferences)

    @property
    def win_rate(self) -> float | None:
        """100 times the mean preference for b, or None where there is none."""
        if not self.n:
            return None
        above_half = 100.0 * math.fsum(p - 0.5 for p in self.preferences) / self.n
        return 50.0 + on_grid(above_half, bits=40)

    @property
    def interval(self) -> Interval | None:
        """95 % interval of the win rate: Wilson where all are won or lost, else a t test."""
        if not self.n:
            return None
        from eval.stats.intervals import wilson_interval
        from eval.stats.seeds import mean_over_seeds

        ours = self.preferences
        if all(preference in (0.0, 1.0) for preference in ours):
            wilson = wilson_interval(int(sum(ours)), len(ours))
            ends = (wilson.low, wilson.high)
        else:
            found = mean_over_seeds([ours], verdicts=True)
            ends = (found.low, found.high)
        low, high = (50.0 + on_grid(100 * (end - 0.5), bits=40) for end in ends)
        return Interval(low, high)

    @property
    def judged_both_ways(self) -> int:
        """Comparisons with a verdict in each order: what the position bias is a share of."""
        return sum(verdict.flips is not None for verdict in self.verdicts)

    @property
    def position_bias(self) -> float | None:
        """Share of comparisons judged both ways whose winner changes with the order."""
        if not self.judged_both_ways:
            return None
        return sum(bool(verdict.flips) for verdict in self.verdicts) / self.judged_both_ways

    def summary(self) -> dict[str, Any]:
        """All figures, as JSON-able data; with why comparisons have no preference."""
        reasons = Counter(verdict.reason for verdict in self.verdicts if verdict.reason)
        return {
            "n": len(self.verdicts),
            "judged": self.n,
            "win_rate": self.win_rate,
            "interval": None if self.interval is None else asdict(self.interval),
            "counts": self.counts,
            "position_bias": self.position_bias,
            "judged_both_ways": self.judged_both_ways,
            "calls": self.calls,
            "cached": self.plan.cached,
            "estimated_cost": self.plan.cost,
            "usage": dict(self.usage),
            "answered": {name: dict(counted) for name, counted in self.answered.items()},
            "request_changes": dict(self.changes),
            "reasons": dict(reasons.most_common(10)),
        }


def on_grid(x: float, *, bits: int) -> float:
    """Round to a multiple of 2**-bits (decision 2)."""
    return math.ldexp(round(math.ldexp(x, bits)), -bits)


def reading_of(first: float, second: float) -> Reading:
    """Read a preference off the log probabilities of both labels.

    Below half of the probability the judge would rather have said something else, and there is
    none.
    """
    mass = min(1.0, math.exp(first) + math.exp(second))
    if mass < _LEAST_MASS:
        reason = (
            f"the labels hold {mass:.2%} of the probability: the judge would say something else"
        )
        return Reading(None, reason, mass)
    return Reading(sigmoid(second - first), "", mass)


def plain_by(labels: tuple[str, str]) -> Callable[[str], str]:
    """Return what makes one text of a token's variants, which differ in white space around it.

    And in case, unless that is all that tells the labels apart (AlpacaEval 2's are m and M).
    """
    first, second = (label.strip().lower() for label in labels)
    return str.strip if first == second else lambda token: token.strip().lower()


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)), without overflow."""
    if x >= 0:
        return 1.0 / (1.0 + math.exp(-x))
    return math.exp(x) / (1.0 + math.exp(x))
