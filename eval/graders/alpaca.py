"""AlpacaEval 2: from a judge's replies or official annotations to win rates.

A preference is a number in [1, 2]: 1 where the baseline's answer is better, 2 where the model's is.
Decisions:

1. Difficulties are looked up by instruction text. The official tool looks them up by position,
   which is wrong from the first missing row on.
2. Cross-validation depends on the order of rows, so `score` first sorts them in the order of the
   difficulties: files with the same rows give the same number.
3. `preference_from_logprobs` reads official replies by the official rule, under which a label that
   is not listed has probability 0. Replies of our own judges are read by a stricter rule
   (`eval.judge.replies`).
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from eval.graders.length_control import WinRate, length_controlled_win_rate

# With fewer, the number is up to 4 points off and its interval covers the truth too rarely
# (benchmarks/few_instructions.py).
FEWEST_CONTROLLED = 200
RESAMPLES = 1000  # for the interval of the length-controlled win rate; takes two seconds


class OfficialReading(NamedTuple):
    """A preference in [1, 2], or None and the reason; mass is the labels' total probability."""

    preference: float | None
    reason: str | None
    mass: float


def official_order_is_flipped(instruction: str) -> bool:
    """Return whether the official tool shows the judge the model's answer first, as "m".

    It flips a coin: Python's generator, seeded with the instruction and the annotator's seed, 0.
    """
    return random.Random(f"is_switched_outputs{instruction}0").random() >= 0.5


def preference_from_logprobs(
    completion: Any, *, flipped: bool = False, labels: tuple[str, str] = ("m", "M")
) -> OfficialReading:
    """Compute a preference from the log-probabilities of the judge's first token.

    The preference is 1 + P(label of the answer shown second), normalised over the two labels. A
    label that is not among the top tokens counts as impossible, as in the official tool; `mass`
    says how much of the distribution the labels cover. Without either label there is no preference.

    Args:
        completion: A choice of the OpenAI chat API, as AlpacaEval stores it in `raw_completion`.
        flipped: Whether the model's answer was shown first; `official_order_is_flipped` knows for
            official annotations.
        labels: Tokens for the answers shown first and second.

    Returns:
        The verdict on baseline (1) against model (2), whichever was shown first.
    """
    try:
        top = completion["logprobs"]["content"][0]["top_logprobs"]
        found = {entry["token"]: float(entry["logprob"]) for entry in top}
    except (KeyError, IndexError, TypeError, ValueError):
        reason = "no log-probabilities in the reply: the server left them out"
        return OfficialReading(None, reason, 0.0)
    # Rounding may put a certain token slightly above 0; comparisons with NaN are false.
    if not all(logprob <= 0.01 for logprob in found.values()):
        return OfficialReading(None, "the reply's numbers are not log-probabilities", 0.0)
    first, second = (math.exp(found.get(label, -math.inf)) for label in labels)
    if first + second == 0:
        reason = f"neither {labels[0]!r} nor {labels[1]!r} among the {len(found)} top tokens"
        return OfficialReading(None, f"{reason}: ask for 20 top_logprobs", 0.0)
    share = second / (first + second)
    return OfficialReading(2.0 - share if flipped else 1.0 + share, None, first + second)


def score(
    annotations: Iterable[Mapping[str, Any]],
    difficulties: Mapping[str, float] | None,
    gamed: Sequence[Sequence[float]] | None = None,
    C: float | None = None,
    *,
    resamples: int = 0,
) -> WinRate:
    """Score the annotations of one model, on all or some instructions, in any order.

    Args:
        annotations: Entries as `read_annotations` returns them; a preference of 0, a tie in older
            files, counts as 1.5.
        difficulties: Difficulties by instruction text; None gives the raw win rate only.
        gamed: See `length_controlled_win_rate`.
        C: See `length_controlled_win_rate`.
        resamples: See `length_controlled_win_rate`.

    Raises:
        ValueError: If an instruction occurs twice or has no difficulty, entries belong to several
            models, baselines or judges, or none is judged.
    """
    rows = list(annotations)
    for field in ("generator_1", "generator_2", "annotator"):
        names = {str(row.get(field)) for row in rows}
        if len(names) > 1:
            raise ValueError(f"{field} has several values: {sorted(names)}; score one at a time")
    for instruction, times in Counter(row["instruction"] for row in rows).items():
        if times > 1:
            raise ValueError(f"{times} entries have the instruction {instruction[:80]!r}: keep one")
        if difficulties is not None and instruction not in difficulties:
            raise ValueError(
                f"no difficulty for the instruction {instruction[:80]!r}: give AlpacaEval's own "
                "instructions, or no difficulties for the raw win rate alone"
            )
    if difficulties is not None:
        order = {instruction: i for i, instruction in enumerate(difficulties)}
        rows.sort(key=lambda row: order[row["instruction"]])
    return length_controlled_win_rate(
        [1.5 if row["preference"] == 0 else row["preference"] for row in rows],
        [len(row["output_2"]) for row in rows],
        [len(row["output_1"]) for row in rows],
        None if difficulties is None else [difficulties[row["instruction"]] for row in rows],
        gamed,
        C,
        resamples=resamples,
    )


def why_not_controlled(result: WinRate) -> str | None:
    """Return why not to show a length-controlled win rate, None if it can be shown."""
    if result.lc_win_rate is not None and result.n < FEWEST_CONTROLLED:
        return (
            f"{result.n} judged instructions are too few for its regression: below "
            f"{FEWEST_CONTROLLED} the number is several points off, by more than its interval says"
        )
    return result.reason
