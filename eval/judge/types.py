"""The types of judging: questions, replies, verdicts, judgements.

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
from typing import Any, Literal, NamedTuple, Protocol, TypedDict

from eval.stats.types import Interval

Origin = Literal["model", "finish_reason", "system_fingerprint"]
ORIGIN: tuple[Origin, ...] = ("model", "finish_reason", "system_fingerprint")
_LEAST_MASS = 0.5


class Reply(TypedDict, total=False):
    """What we store of a judge's reply: one of the first four; of an endpoint the others too.

    ORIGIN says who answered and how; for `usage` and `request_changes` see `Judgement`.
    """

    text: str
    top_logprobs: list[list[Any]]  # of the likeliest tokens: token, log probability
    logprobs: list[float]  # of a local judge: of the two labels
    rouge_l: list[float]  # of the reference judge: of the two answers
    model: str
    finish_reason: str
    system_fingerprint: str
    usage: dict[str, int]
    request_changes: dict[str, str | None]


class Failure(NamedTuple):
    """Why a question has no reply. `asked` is False if the engine had given up before it."""

    reason: str
    asked: bool = True


class Reading(NamedTuple):
    """The probability that the second answer is better, or None and the reason.

    `label_mass` is the total probability of both labels, None if no probabilities were read.
    """

    p_second: float | None
    reason: str = ""
    label_mass: float | None = None


Record = Callable[["Question", "Reply | Failure"], None]


@dataclass(frozen=True)
class Question:
    """A pair of answers in the order in which the judge sees them."""

    prompt: str
    first: str
    second: str
    reference: str | None = None
    repeat: int = 0


class Engine(Protocol):
    """A judge. `reads` is 'label', 'text' or 'reference' (then there is no template).

    `keeps_labels_only`: stored replies have only the numbers of the two labels, so other labels
    need new replies.
    """

    @property
    def keeps_labels_only(self) -> bool:
        """Whether replies depend on the labels."""
        ...

    @property
    def reads(self) -> str:
        """Which kind of reply the judge reads."""
        ...

    def identity(self) -> dict[str, Any]:
        """All that determines its replies, as JSON-able data; no secrets, nothing about speed."""
        ...

    def ask(self, questions: Sequence[Question], template: Any, record: Record) -> None:
        """Ask questions, and call `record` once for each as soon as its reply arrives."""
        ...

    def read(self, reply: Reply, template: Any) -> Reading:
        """Read a reply that `ask` recorded, now or in an earlier run."""
        ...


@dataclass(frozen=True)
class Comparison:
    """Two answers to one prompt.

    Attributes:
        id: unique within a judgement.
        prompt: the prompt that was answered.
        a: one answer, the baseline's if there is one.
        b: the other answer, by the model under test.
        reference: a reference answer, for judges that use one.
        repeat: 0, or another number to have the same pair judged again.
    """

    id: str
    prompt: str
    a: str
    b: str
    reference: str | None = None
    repeat: int = 0

    def question(self, order: str) -> Question:
        """The question for order 'ab' or 'ba'."""
        first, second = {"ab": (self.a, self.b), "ba": (self.b, self.a)}[order]
        return Question(self.prompt, first, second, self.reference, self.repeat)


class VerdictOutcome(StrEnum):
    """The outcome of a comparison, as seen from b."""

    WIN = "win"
    TIE = "tie"
    LOSS = "loss"
    UNPARSED = "unparsed"
    ERRORED = "errored"


@dataclass(frozen=True)
class Verdict:
    """A judge's verdict on one comparison.

    Attributes:
        id: the comparison's id.
        outcome: win, tie or loss of b; unparsed (no verdict in a reply); errored (no reply, or one
            without the log probabilities asked for).
        preference: probability that b is better, None unless win, tie or loss.
        by_order: the same for each order asked, 'ab' and 'ba'; None if that order failed.
        reason: why there is no preference, else empty.
        label_mass: total probability of both labels, averaged over the orders read, if any.
    """

    id: str
    outcome: VerdictOutcome
    preference: float | None
    by_order: Mapping[str, float | None]
    reason: str = ""
    label_mass: float | None = None

    @property
    def flips(self) -> bool | None:
        """Whether the two orders prefer different answers; None unless both were judged."""
        if len(self.by_order) < 2 or None in self.by_order.values():
            return None
        return math.prod(p - 0.5 for p in self.by_order.values() if p is not None) < 0


@dataclass(frozen=True)
class Plan:
    """How many questions judging will ask.

    Attributes:
        comparisons: the number of comparisons.
        questions: the number of distinct questions; equal answers need none.
        cached: questions already answered.
        calls: questions to ask. Retries of a request count as one call.
        cost: estimated cost of the calls, at 4 characters per token; None without a price.
    """

    comparisons: int
    questions: int
    cached: int
    calls: int
    cost: float | None

    def __str__(self) -> str:
        """One line for users."""
        line = (
            f"{self.comparisons} comparisons, {self.questions} questions: "
            f"{self.cached} answered before, {self.calls} calls to make"
        )
        return line if self.cost is None else f"{line}, estimated cost {self.cost:.2f}"


@dataclass(frozen=True)
class Judgement:
    """All verdicts of one judge, and how they were obtained.

    Attributes:
        verdicts: one per comparison, in the same order.
        plan: how many questions were planned.
        calls: questions asked in this run.
        usage: tokens as reported by the endpoint, over all replies used, including cached ones;
            `reasoning_tokens` are among the `completion_tokens`.
        answered: how many of these replies have each `model`, `finish_reason` and
            `system_fingerprint`.
        changes: fields of the request that servers refused: name -> the name it was sent under
            instead, or None if it was left out.
        cost: of all replies used, by their usage; None without a price, or if one has no usage.
    """

    verdicts: tuple[Verdict, ...]
    plan: Plan
    calls: int
    usage: Mapping[str, int]
    answered: Mapping[str, Mapping[str, int]]
    changes: Mapping[str, str | None]
    cost: float | None = None

    @property
    def counts(self) -> dict[str, int]:
        """Win, tie, loss, unparsed and errored; they add up to the number of comparisons."""
        counted = Counter(verdict.outcome for verdict in self.verdicts)
        return {outcome.value: counted[outcome] for outcome in VerdictOutcome}

    @property
    def preferences(self) -> list[float]:
        """The preferences of the comparisons that have one, in order."""
        return [v.preference for v in self.verdicts if v.preference is not None]

    @property
    def n(self) -> int:
        """The number of comparisons with a preference, over which the win rate is a mean."""
        return len(self.preferences)

    @property
    def win_rate(self) -> float | None:
        """100 times the mean preference for b, or None if there is none."""
        if not self.n:
            return None
        above_half = 100.0 * math.fsum(p - 0.5 for p in self.preferences) / self.n
        return 50.0 + on_grid(above_half, bits=40)

    @property
    def interval(self) -> Interval | None:
        """95 % interval of the win rate: Wilson if all are won or lost, else from a t test."""
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
        """The number of comparisons with a verdict in each order, for the position bias."""
        return sum(verdict.flips is not None for verdict in self.verdicts)

    @property
    def position_bias(self) -> float | None:
        """Share of comparisons judged in both orders whose winner changes with the order."""
        if not self.judged_both_ways:
            return None
        return sum(bool(verdict.flips) for verdict in self.verdicts) / self.judged_both_ways

    def summary(self) -> dict[str, Any]:
        """All figures as JSON-able data, with the reasons for missing preferences."""
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
            "cost": self.cost,
            "usage": dict(self.usage),
            "answered": {name: dict(counted) for name, counted in self.answered.items()},
            "request_changes": dict(self.changes),
            "reasons": dict(reasons.most_common(10)),
        }


def on_grid(x: float, *, bits: int) -> float:
    """Round to a multiple of 2**-bits (decision 2)."""
    return math.ldexp(round(math.ldexp(x, bits)), -bits)


def reading_of(first: float, second: float) -> Reading:
    """Compute a preference from the log probabilities of both labels.

    If they hold less than half of the probability, the judge would rather have said something else,
    and there is no preference.
    """
    mass = min(1.0, math.exp(first) + math.exp(second))
    if mass < _LEAST_MASS:
        reason = (
            f"the labels hold {mass:.2%} of the probability: the judge would say something else"
        )
        return Reading(None, reason, mass)
    return Reading(sigmoid(second - first), "", mass)


def plain_by(labels: tuple[str, str]) -> Callable[[str], str]:
    """Return a function that maps all variants of a token to one text.

    Variants differ in surrounding white space, and in case, unless the two labels differ only in
    case (AlpacaEval 2's are m and M).
    """
    first, second = (label.strip().lower() for label in labels)
    return str.strip if first == second else lambda token: token.strip().lower()


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)), without overflow."""
    if x >= 0:
        return 1.0 / (1.0 + math.exp(-x))
    return math.exp(x) / (1.0 + math.exp(x))
