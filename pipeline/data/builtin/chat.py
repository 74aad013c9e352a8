"""Short instructions with good and worse answers, for the built-in data set "chat".

1. chat.yaml holds each family's texts and the lists that fill their slots. A function here draws
   or computes what a list cannot hold; an answer that can be computed is never stored.
2. Worse answers are wrong, off format, curt, or ignore part of the instruction; never empty.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

from pipeline.data.builtin.words import draw_slot, read

_FILE = read("chat")
_NUMBERS, _commas = _FILE["numbers"], ", ".join
Slots = dict[str, Any]


class Exchange(NamedTuple):
    """A prompt and two answers to it."""

    prompt: str
    good: str
    worse: str


def _lay_out(layout: str, items: list[str]) -> list[str]:
    return [layout.format(number=number, item=item) for number, item in enumerate(items, 1)]


def _sort_words(random: Random, texts: Slots, count: int) -> Slots:
    drawn = random.sample(_FILE["words"], count)
    backwards = random.random() < 0.3
    order = "from Z to A" if backwards else "in alphabetical order"
    first, second, *rest = right = sorted(drawn, reverse=backwards)
    wrong = right[::-1], [second, first, *rest], [first, *rest]
    good, *worse = map(_commas, (right, *wrong))
    return {"order": order, "drawn": _commas(drawn), "good": good, "worse": worse}


def _count_letters(random: Random, texts: Slots, words: list[str]) -> Slots:
    letters = [len(word) for word in words]
    prompt = random.choice(texts["prompt"])
    wrong = sum(letters) + random.choice((-2, -1, 1, 2))
    return {"prompt": prompt, "letters": letters, "total": sum(letters), "wrong": wrong}


def _count_one_letter(random: Random, texts: Slots, words: list[str]) -> Slots:
    letter = random.choice(words[0])
    count = "".join(words).count(letter)
    times = "once" if count == 1 else f"{_NUMBERS[count]} times"
    return {"letter": letter, "times": times, "too_many": _NUMBERS[count + 1]}


def _convert_units(random: Random, texts: Slots, unit: list[Any], amount: int) -> Slots:
    return {"right": amount * unit[2], "wrong": amount * unit[3]}


def _list_items(random: Random, texts: Slots, category: tuple[str, list[str]]) -> Slots:
    banned, *others = random.sample(category[1], 8)
    items = others[: random.randint(3, 5)]
    how, layout = random.choice(list(texts["layouts"].items()))
    lines, broken = _lay_out(layout, items), _lay_out(layout, [*items[:-1], banned])
    worse = ["\n".join(broken), "\n".join(lines[:-1]), " ".join(items)]
    slots = {"count": _NUMBERS[len(items)], "how": how, "banned": banned}
    return {**slots, "good": "\n".join(lines), "worse": worse}


def _make_polite(random: Random, texts: Slots, verb: str, **slots: str) -> Slots:
    return {"Verb": verb.capitalize()}


def _answer_from_text(random: Random, texts: Slots, years: int, **slots: Any) -> Slots:
    return {"too_many": years + 2}


def _explain_steps(random: Random, texts: Slots, task: tuple[str, list[str]]) -> Slots:
    asked = random.choice(texts["ask"]).format(task=task)
    steps, count = task[1], random.choice((4, 5))
    if count == 4:
        steps = [*steps[:3], f"{steps[3][:-1]}, then {steps[4][0].lower()}{steps[4][1:]}"]
    layout = random.choice(texts["layouts"])
    lines, example = _lay_out(layout, steps), layout.format(number=1, item="").strip()
    worse = ["\n".join(lines[:2]), " ".join(steps), "\n".join(lines[::-1])]
    slots = {"asked": asked, "count": _NUMBERS[count], "example": example}
    return {**slots, "good": "\n".join(lines), "worse": worse}


def _compare_numbers(random: Random, texts: Slots, numbers: list[int], asked: list[str]) -> Slots:
    smaller, larger = sorted(numbers)
    slots = {"smaller": smaller, "larger": larger}
    return {**slots, "difference": larger - smaller, "sum": smaller + larger}


def _add_capitals(random: Random, texts: Slots, **slots: str) -> Slots:
    right = texts["good"].format(**slots)
    lower = right[:-1].lower()
    return {"lower": lower, "worse": [lower, right[0] + right[1:].lower(), right.upper()]}


def _extract_fields(random: Random, texts: Slots, hour: int, **fields: str) -> Slots:
    keys = random.sample(sorted(fields), 3)
    right, shorter = (json.dumps({key: fields[key] for key in part}) for part in (keys, keys[:-1]))
    bare = _commas(fields[key] for key in keys)
    return {"keys": keys, "right": right, "shorter": shorter, "bare": bare}


def _continue_sequence(random: Random, texts: Slots, start: int, step: int) -> Slots:
    *shown, fifth, sixth = (start + step * index for index in range(6))
    right, wrong = (fifth, sixth), (fifth + 1, sixth + 2)
    return {"shown": _commas(map(str, shown)), "right": right, "wrong": wrong}


def _find_weekday(random: Random, texts: Slots, today: str, ahead: int) -> Slots:
    prompt = random.choice(texts["prompt"])
    right = _FILE["days"].index(today) + ahead
    wrong = right + random.choice((1, 2, 5, 6))
    return {"prompt": prompt, "right": _FILE["days"][right % 7], "wrong": _FILE["days"][wrong % 7]}


def _group_words(random: Random, texts: Slots, groups: list[str]) -> Slots:
    words = [random.sample(_FILE["categories"][group], 3) for group in groups]
    mixed = random.sample([*words[0], *words[1]], 6)
    right = [_commas(word for word in mixed if word in group) for group in words]
    return {"Groups": [*map(str.capitalize, groups)], "mixed": _commas(mixed), "right": right}


def _fill(value: Any, slots: Slots) -> Any:
    """A drawn value, with the slots of its texts filled."""
    if isinstance(value, (list, tuple)):
        return [_fill(item, slots) for item in value]
    return value.format(**slots) if isinstance(value, str) else value


# Families whose slots are all drawn from lists have no function.
_WORK_OUT = {
    function.__name__.removeprefix("_"): function
    for function in (
        _sort_words, _count_letters, _count_one_letter, _convert_units, _list_items, _make_polite,
        _answer_from_text, _explain_steps, _compare_numbers, _add_capitals, _extract_fields,
        _continue_sequence, _find_weekday, _group_words,
    )
}  # fmt: skip


def _family(name: str, texts: Slots) -> Callable[[Random], Exchange]:
    work_out = _WORK_OUT.get(name, lambda *_, **drawn: {})

    def draw_exchange(random: Random) -> Exchange:
        drawn = {slot: draw_slot(random, text, _FILE) for slot, text in texts["slots"].items()}
        slots = {**texts, **drawn, **work_out(random, texts, **drawn)}
        slots |= {slot: _fill(value, slots) for slot, value in drawn.items()}
        for part in ("text", *Exchange._fields):
            text = slots.get(part, "")
            slots[part] = (random.choice(text) if isinstance(text, list) else text).format(**slots)
        return Exchange(slots["prompt"], slots["good"], slots["worse"])

    draw_exchange.__name__ = name
    return draw_exchange


FAMILIES = tuple(_family(name, texts) for name, texts in _FILE["families"].items())


def draw(random: Random) -> Exchange:
    """An instruction, a good answer and a worse one."""
    return random.choice(FAMILIES)(random)
