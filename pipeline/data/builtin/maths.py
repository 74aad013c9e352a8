"""Word problems of one to three steps, for the built-in data set "maths".

1. Answers have GSM8K's shape (worked lines, then "#### n") without its <<...>> annotations.
2. Every number is in 2..200. Without 1, plurals are always right; draws that break the rule, or do
   not divide exactly, are repeated.
3. No pronouns for people, so any name fits anywhere.
4. A wrong answer is an arithmetic slip, a wrong operation, or a missing last step; whatever
   follows the mistake is worked out consistently from it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from pipeline.data.builtin.words import choices, draw_slot, read

SMALLEST, LARGEST = 2, 200
_MISTAKEN_FOR = {"+": "-*", "-": "+", "*": "+", "/": "-*"}
_SLIPS = (-10, -2, -1, 1, 2, 10)
_TEXTS = read("maths")
NAMES: list[str] = _TEXTS["names"]

# The text before a step, `left sign right = result`, and the text after it.
Step = tuple[str, str, str, str, str, str]
# The text of a worked step, and its result.
Line = tuple[str, int]


class Template(NamedTuple):
    """A question, its worked lines, and the values each number of the question may have."""

    question: str
    steps: list[Step]
    numbers: dict[str, Sequence[int]]


def _template(question: str, steps: list[str], numbers: dict[str, str]) -> Template:
    pattern = re.compile(r"(.*)\[(\w+) (.) (\w+) = (\w+)\](.*)")
    ranges = {name: choices(written, _TEXTS) for name, written in numbers.items()}
    return Template(question, [pattern.findall(step)[0] for step in steps], ranges)


TEMPLATES = {
    count: [_template(**problem) for problem in problems]
    for count, problems in _TEXTS["problems"].items()
}


def draw(random: Random, pairs: bool) -> tuple[str, str, str]:
    """A question, its answer, and for pairs a wrong one."""
    (step_count,) = random.choices((1, 2, 3), weights=(4, 4, 2))
    template = random.choice(TEMPLATES[step_count])
    lines = None
    while lines is None:
        numbers = {name: random.choice(values) for name, values in template.numbers.items()}
        lines = _work(template.steps, numbers)
    slots = {**numbers, **_draw_words(random), "k_times": _TEXTS["times"].get(numbers.get("k"))}
    wrong = _work_wrongly(random, template.steps, numbers, lines) if pairs else lines
    answer, wrong = (
        "\n".join([*(text for text, _ in worked), f"#### {worked[-1][1]}"]).format(**slots)
        for worked in (lines, wrong)
    )
    return template.question.format(**slots), answer, wrong


def _draw_words(random: Random) -> dict[str, str]:
    name, other, third = random.sample(NAMES, 3)
    drawn: dict[str, str] = {"name": name, "other": other, "third": third}
    drawn |= {slot: draw_slot(random, words, _TEXTS) for slot, words in _TEXTS["words"].items()}
    for forms in _TEXTS["counted"]:
        drawn |= zip(forms, random.choice(list(zip(*forms.values(), strict=True))), strict=True)
    return drawn


def _work(
    steps: list[Step], numbers: dict[str, int], *, at: int = -1, sign: str = "", slip: int = 0
) -> list[Line] | None:
    """Work through the steps; in step `at` use another sign, or be off by `slip`.

    None when a result is not a whole number in SMALLEST..LARGEST.
    """
    known, lines = dict(numbers), []
    for index, (before, first, right_sign, second, name, after) in enumerate(steps):
        left, right = (int(part) if part.isdigit() else known[part] for part in (first, second))
        used = sign if sign and index == at else right_sign
        if used == "/" and left % right:
            return None
        result = {"+": left + right, "-": left - right, "*": left * right, "/": left // right}[used]
        result += slip if index == at else 0
        if not SMALLEST <= result <= LARGEST:
            return None
        known[name] = result
        lines.append((f"{before}{left} {used} {right} = {result}{after}", result))
    return lines


def _work_wrongly(
    random: Random, steps: list[Step], numbers: dict[str, int], right: list[Line]
) -> list[Line]:
    """A worked answer with one mistake of a random kind and another final number."""
    for kind in random.sample(("slip", "operation", "stop early"), 3):
        tries: list[list[Line] | None] = [right[:-1]] if kind == "stop early" else []
        for at, (_, _, sign, *_) in enumerate(steps):
            if kind == "slip":
                tries += [_work(steps, numbers, at=at, slip=slip) for slip in _SLIPS]
            if kind == "operation":
                tries += [_work(steps, numbers, at=at, sign=by) for by in _MISTAKEN_FOR[sign]]
        wrong = [lines for lines in tries if lines and lines[-1][1] != right[-1][1]]
        if wrong:
            return random.choice(wrong)
    raise AssertionError("a slip of 1 in the last step is always possible")
