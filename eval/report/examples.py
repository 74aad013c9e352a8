"""Layout of the sample answers on the report page."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eval.report.samples import SampleView, StageAnswer
from eval.report.text import tone_of

_ROLES = {"user": "Prompt", "system": "System message", "assistant": "Earlier answer"}
# A longer text gets a box that scrolls.
_LONG_LINES, _LONG_CHARACTERS = 16, 600
_TITLE_CHARACTERS = 100


@dataclass(frozen=True)
class Text:
    """A text of a prompt or an answer."""

    label: str
    text: str
    is_long: bool
    verdict: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Example:
    """A test example: its line in the list, and what it opens to."""

    title: str
    tally: str
    prompt: list[Text]
    answers: list[Text]


def shared_system(samples: Sequence[SampleView]) -> str:
    """The system message that all examples begin with, to be shown once."""
    found = {
        first["content"] if (first := sample.messages[0])["role"] == "system" else ""
        for sample in samples
    }
    return found.pop() if len(found) == 1 else ""


def example_of(sample: SampleView, *, leave_out: bool) -> Example:
    """Lay out an example, without its first message if that is shown elsewhere."""
    asked = " ".join(sample.messages[-1]["content"].split())
    is_whole = len(asked) <= _TITLE_CHARACTERS
    prompt = [
        _text(_ROLES.get(message["role"], message["role"].capitalize()), message["content"])
        for message in sample.messages[leave_out:]
    ]
    return Example(
        title=f"Row {sample.id + 1}: "
        + (asked if is_whole else asked[: _TITLE_CHARACTERS - 1].rstrip() + "…"),
        tally=_tally(sample.answers),
        prompt=[*prompt, _text("Reference", sample.reference)],
        answers=[_answer(stage, answer) for stage, answer in sample.answers.items()],
    )


def _tally(answers: Mapping[str, StageAnswer]) -> str:
    """Such as '2 correct, 6 wrong'; '' for more than three outcomes, such as numbers."""
    counts = Counter(_outcome(answer.verdict) for answer in answers.values())
    if len(counts) > 3:
        return ""
    good_first = sorted(counts, key=lambda outcome: tone_of(outcome) != "good")
    return ", ".join(f"{counts[outcome]} {outcome}" for outcome in good_first)


def _outcome(verdict: str) -> str:
    """The verdict without its probability or reason: 'win (0.73)' is a win."""
    return re.split(r" \(|:", verdict, maxsplit=1)[0]


def _answer(stage: str, answer: StageAnswer) -> Text:
    cut = ", cut off at the token limit" if answer.cut_off else ""
    tone = tone_of(_outcome(answer.verdict))
    return _text(stage, answer.answer, verdict=answer.verdict + cut, tone=tone)


def _text(label: str, text: str, *, verdict: str = "", tone: str = "") -> Text:
    is_long = len(text) > _LONG_CHARACTERS or text.count("\n") >= _LONG_LINES
    return Text(label, text, is_long, verdict, tone)
