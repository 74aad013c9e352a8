"""Word problems of one to three steps, for the built-in data set "maths".

1. Answers have GSM8K's shape (worked lines, then "#### n") without its <<...>> annotations.
2. Every number lies in 2..200. Leaving out 1 means that plurals are always right; draws that
   break the rule, or do not divide exactly, are drawn again.
3. No pronouns for people, so any name fits anywhere.
4. A wrong answer is an arithmetic slip, a wrong operation, or a missing last step; whatever
   follows the mistake is worked out consistently from it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random
from typing import Any, NamedTuple

from pipeline.data.builtin.words import NAMES, choices, read

SMALLEST, LARGEST = 2, 200
_MISTAKEN_FOR = {"+": "-*", "-": "+", "*": "+", "/": "-*"}
_SLIPS = (-10, -2, -1, 1, 2, 10)
_TEXTS = read("maths")


class Step(NamedTuple):
    """One worked line: text, `left sign right = result`, text."""

    before: str
    left: str
    sign: str
    right: str
    result: str
    after: str


class Template(NamedTuple):
    """A question, its worked lines, and the values each number of the question may have."""

    question: str
    steps: tuple[Step, ...]
    numbers: dict[str, Sequence[int]]


class Worked(NamedTuple):
    """One step with its numbers in place."""

    left: int
    sign: str
    right: int
    result: int


def _template(question: str, steps: list[str], numbers: dict[str, str]) -> Template:
    parts = [re.split(r"\[(\w+) (.) (\w+) = (\w+)\]", step) for step in steps]
    ranges = {name: choices(written) for name, written in numbers.items()}
    return Template(question, tuple(Step(*step) for step in parts), ranges)


TEMPLATES = {
    count: [_template(**problem) for problem in problems]
    for count, problems in _TEXTS["problems"].items()
}


def draw(random: Random, *, pairs: bool) -> tuple[str, dict[str, Any]]:
    """A question (the key) and its row: question and answer, or a preference pair."""
    (step_count,) = random.choices((1, 2, 3), weights=(4, 4, 2))
    template = random.choice(TEMPLATES[step_count])
    works = None
    while works is None:
        numbers = {name: random.choice(values) for name, values in template.numbers.items()}
        works = _work(template.steps, numbers)
    fields: dict[str, Any] = {**_draw_words(random), **numbers}
    if "k" in numbers:
        fields["k_times"] = _TEXTS["times"][numbers["k"]]
    question = template.question.format(**fields)
    answer = _write(template.steps, works, fields)
    if not pairs:
        return question, {"question": question, "answer": answer}
    wrong = _write(template.steps, _work_wrongly(random, template.steps, numbers, works), fields)
    return question, {
        "prompt": [{"role": "user", "content": question}],
        "chosen": [{"role": "assistant", "content": answer}],
        "rejected": [{"role": "assistant", "content": wrong}],
    }


def _draw_words(random: Random) -> dict[str, str]:
    drawn = dict(zip(("name", "other", "third"), random.sample(NAMES, 3), strict=True))
    drawn |= {slot: random.choice(choices(words)) for slot, words in _TEXTS["words"].items()}
    for forms in _TEXTS["counted"]:
        drawn |= zip(forms, random.choice(list(zip(*forms.values(), strict=True))), strict=True)
    return drawn


def _work(
    steps: tuple[Step, ...], numbers: dict[str, int], *, at: int = -1, sign: str = "", slip: int = 0
) -> list[Worked] | None:
    """Work through the steps; in step `at` use another sign, or be off by `slip`.

    None when a result is not a whole number in SMALLEST..LARGEST.
    """
    known = dict(numbers)
    works = []
    for index, step in enumerate(steps):
        left, right = (
            int(part) if part.isdigit() else known[part] for part in (step.left, step.right)
        )
        used = sign if sign and index == at else step.sign
        if used == "/" and left % right:
            return None
        result = {"+": left + right, "-": left - right, "*": left * right, "/": left // right}[used]
        result += slip if index == at else 0
        if not SMALLEST <= result <= LARGEST:
            return None
        known[step.result] = result
        works.append(Worked(left, used, right, result))
    return works


def _work_wrongly(
    random: Random, steps: tuple[Step, ...], numbers: dict[str, int], right: list[Worked]
) -> list[Worked]:
    """A worked answer with one mistake of a random kind and another final number."""
    for kind in random.sample(("slip", "operation", "stop early"), 3):
        tries: list[list[Worked] | None] = [right[:-1]] if kind == "stop early" else []
        for at, step in enumerate(steps):
            if kind == "slip":
                tries += [_work(steps, numbers, at=at, slip=slip) for slip in _SLIPS]
            if kind == "operation":
                signs = _MISTAKEN_FOR[step.sign]
                tries += [_work(steps, numbers, at=at, sign=sign) for sign in signs]
        wrong = [works for works in tries if works and works[-1].result != right[-1].result]
        if wrong:
            return random.choice(wrong)
    raise AssertionError("a slip of 1 in the last step is always possible")


def _write(steps: tuple[Step, ...], works: list[Worked], fields: dict[str, Any]) -> str:
    lines = [
        f"{step.before}{work.left} {work.sign} {work.right} = {work.result}{step.after}"
        for step, work in zip(steps, works, strict=False)  # fewer works when it stops early
    ]
    return "\n".join([*lines, f"#### {works[-1].result}"]).format(**fields)
