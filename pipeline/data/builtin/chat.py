"""Short instructions with good and worse answers, for the built-in data set "chat".

1. One function a family; it draws words and numbers and works out what fills the slots of the
   family's texts in chat.yaml. Answers that can be worked out are, not stored.
2. Worse answers are wrong, off format, curt, or ignore part of the instruction; never empty.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import wraps
from random import Random
from typing import Any, NamedTuple

from pipeline.data.builtin.words import DAYS, NAMES, read

_LISTS = read("chat")
_WORDS, _NUMBERS, _CATEGORIES = _LISTS["words"], _LISTS["numbers"], _LISTS["categories"]
Slots = dict[str, Any]


class Exchange(NamedTuple):
    """A prompt and two answers to it."""

    prompt: str
    good: str
    worse: str


def _lines(layout: str, items: Sequence[str]) -> list[str]:
    return [layout.format(number=number, item=item) for number, item in enumerate(items, 1)]


def _listing(items: Sequence[str]) -> str:
    return f"{', '.join(items[:-1])} and {items[-1]}"


def _pairs(random: Random, name: str, count: int) -> Sequence[tuple[str, str]]:
    return random.sample(list(_LISTS[name].items()), count)


def _sort_words(random: Random, texts: Slots) -> Slots:
    drawn = random.sample(_WORDS, random.randint(4, 6))
    backwards = random.random() < 0.3
    first, second, *rest = right = sorted(drawn, reverse=backwards)
    return {
        "order": "from Z to A" if backwards else "in alphabetical order",
        "words": drawn,
        "right": right,
        "reversed": right[::-1],
        "swapped": [second, first, *rest],
        "shorter": [first, *rest],
    }


def _count_letters(random: Random, texts: Slots) -> Slots:
    first, second = random.sample(_WORDS, 2)
    texts["prompt"] = random.choice(texts["prompt"])
    numbers = {"in_first": len(first), "in_second": len(second), "total": len(first + second)}
    wrong = numbers["total"] + random.choice((-2, -1, 1, 2))
    return {"first": first, "second": second, "wrong": wrong, **numbers}


def _count_one_letter(random: Random, texts: Slots) -> Slots:
    first, second = random.sample(_WORDS, 2)
    letter = random.choice(first)
    count = (first + second).count(letter)
    times = "once" if count == 1 else f"{_NUMBERS[count]} times"
    slots = {"first": first, "second": second, "letter": letter}
    return {**slots, "times": times, "too_many": _NUMBERS[count + 1]}


def _convert_units(random: Random, texts: Slots) -> Slots:
    large, small, factor, mistake = random.choice(_LISTS["units"])
    amount = random.randint(2, 60)
    slots = {"amount": amount, "large": large, "small": small, "factor": factor}
    return {**slots, "right": amount * factor, "wrong": amount * mistake}


def _list_items(random: Random, texts: Slots) -> Slots:
    category, members = random.choice(list(_CATEGORIES.items()))
    banned, *others = random.sample(members, 8)
    items = others[: random.randint(3, 5)]
    how, layout = random.choice(list(texts["layouts"].items()))
    lines = _lines(layout, items)
    return {
        "count": _NUMBERS[len(items)],
        "category": category,
        "how": how,
        "banned": banned,
        "lines": "\n".join(lines),
        "with_banned": "\n".join(_lines(layout, [*items[:-1], banned])),
        "one_short": "\n".join(lines[:-1]),
        "bare": " ".join(items),
    }


def _make_polite(random: Random, texts: Slots) -> Slots:
    verb, paper = random.choice(_LISTS["requests"]), random.choice(_LISTS["papers"])
    when, request = random.choice(texts["when"]), f"{verb} {paper}"
    command = request[0].upper() + request[1:]
    return {"verb": verb, "when": when, "request": request, "command": command}


def _answer_from_text(random: Random, texts: Slots) -> Slots:
    name, friend = random.sample(NAMES, 2)
    job, city, month = (random.choice(_LISTS[few]) for few in ("jobs", "cities", "months"))
    years = random.randint(3, 30)
    slots = {"name": name, "friend": friend, "job": job, "city": city, "month": month}
    slots |= {"years": years, "too_many": years + 2}
    filled = [text.format(**slots) for text in (texts["text"], *random.choice(texts["questions"]))]
    return dict(zip(("text", "question", "answer", "curt"), filled, strict=True))


def _write_email(random: Random, texts: Slots) -> Slots:
    reader, writer = random.sample(NAMES, 2)
    purpose, body = random.choice(_LISTS["emails"])
    slots = {"event": random.choice(_LISTS["events"]), "day": random.choice(DAYS)}
    filled = {"purpose": purpose.format(**slots), "body": body.format(**slots)}
    return {"reader": reader, "writer": writer, **slots, **filled}


def _explain_steps(random: Random, texts: Slots) -> Slots:
    task, steps = random.choice(list(_LISTS["how_to"].items()))
    asked = random.choice(texts["ask"]).format(task=task)
    count = random.choice((4, 5))
    if count == 4:
        steps = [*steps[:3], f"{steps[3][:-1]}, then {steps[4][0].lower()}{steps[4][1:]}"]
    layout = random.choice(texts["layouts"])
    lines = _lines(layout, steps)
    return {
        "asked": asked,
        "count": _NUMBERS[count],
        "example": layout.format(number=1, item="").strip(),
        "lines": "\n".join(lines),
        "two_lines": "\n".join(lines[:2]),
        "on_one_line": " ".join(steps),
        "reversed": "\n".join(lines[::-1]),
    }


def _change_tense(random: Random, texts: Slots) -> Slots:
    name, (present, past) = random.choice(NAMES), random.choice(list(_LISTS["tenses"].items()))
    return {"name": name, "present": present, "past": past, "day": random.choice(DAYS)}


def _make_plural(random: Random, texts: Slots) -> Slots:
    words, plurals = zip(*_pairs(random, "plurals", 3), strict=True)
    with_s = [f"{word}s" for word in words]
    return {"words": words, "plurals": plurals, "with_s": with_s, "one_short": plurals[:-1]}


def _compare_numbers(random: Random, texts: Slots) -> Slots:
    first, second = random.sample(range(100, 1000), 2)
    texts |= random.choice(texts["asked"])
    slots = {"first": first, "second": second, "sum": first + second}
    larger, smaller = max(first, second), min(first, second)
    return {**slots, "larger": larger, "smaller": smaller, "difference": larger - smaller}


def _name_opposites(random: Random, texts: Slots) -> Slots:
    pairs = _pairs(random, "opposites", 3)
    lines = [f"{word}: {opposite}" for word, opposite in pairs]
    return {
        "words": _listing([word for word, _ in pairs]),
        "lines": "\n".join(lines),
        "repeated": "\n".join(f"{word}: very {word}" for word, _ in pairs),
        "first_opposite": pairs[0][1],
        "first_line": lines[0],
    }


def _add_capitals(random: Random, texts: Slots) -> Slots:
    slots = {"name": random.choice(NAMES), "city": random.choice(_LISTS["cities"])}
    slots |= {"month": random.choice(_LISTS["months"]), "job": random.choice(_LISTS["jobs"])}
    right = texts["good"].format(**slots)
    one_capital = right[0] + right[1:].lower()
    return {
        **slots,
        "lower": right[:-1].lower(),
        "one_capital": one_capital,
        "upper": right.upper(),
    }


def _extract_fields(random: Random, texts: Slots) -> Slots:
    fields = {"name": random.choice(NAMES), "city": random.choice(_LISTS["cities"])}
    fields |= {"day": random.choice(DAYS), "event": random.choice(_LISTS["events"])}
    text = texts["text"].format(hour=random.randint(5, 9), **fields)
    keys = random.sample(sorted(fields), 3)
    return {
        "text": text,
        "keys": _listing(keys),
        "json": json.dumps({key: fields[key] for key in keys}),
        "one_short": json.dumps({key: fields[key] for key in keys[:-1]}),
        "bare": [fields[key] for key in keys],
    }


def _continue_sequence(random: Random, texts: Slots) -> Slots:
    start, step = random.randint(2, 60), random.randint(2, 25)
    *shown, fifth, sixth = (str(start + step * index) for index in range(6))
    slots = {"shown": shown, "fifth": fifth, "sixth": sixth}
    return {**slots, "wrong_fifth": int(fifth) + 1, "wrong_sixth": int(sixth) + 2}


def _find_weekday(random: Random, texts: Slots) -> Slots:
    today, days = random.randrange(7), random.randint(3, 60)
    texts["prompt"] = random.choice(texts["prompt"])
    right = today + days
    wrong = right + random.choice((1, 2, 5, 6))
    names = {"today": DAYS[today], "right": DAYS[right % 7], "wrong": DAYS[wrong % 7]}
    return {"days": days, **names}


def _group_words(random: Random, texts: Slots) -> Slots:
    names = random.sample(texts["categories"], 2)
    groups = [random.sample(_CATEGORIES[name], 3) for name in names]
    mixed = random.sample([*groups[0], *groups[1]], 6)
    ordered = [", ".join(word for word in mixed if word in group) for group in groups]
    lines = [f"{name.capitalize()}: {words}" for name, words in zip(names, ordered, strict=True)]
    swapped = zip(names, ordered[::-1], strict=True)
    return {
        "first": names[0],
        "second": names[1],
        "words": mixed,
        "lines": "\n".join(lines),
        "swapped": "\n".join(f"{name.capitalize()}: {words}" for name, words in swapped),
        "first_line": lines[0],
    }


def _family(draw_slots: Callable[[Random, Slots], Slots]) -> Callable[[Random], Exchange]:
    """Fills the family's texts, once it has drawn the slots; it may settle some texts itself."""

    @wraps(draw_slots)
    def draw_exchange(random: Random) -> Exchange:
        texts = dict(_LISTS["families"][draw_slots.__name__.strip("_")])
        slots = draw_slots(random, texts)
        for slot, value in slots.items():
            if isinstance(value, (list, tuple)):
                slots[slot] = ", ".join(value)
        parts = [texts[part] for part in Exchange._fields]
        drawn = [random.choice(part) if isinstance(part, list) else part for part in parts]
        return Exchange(*(text.format(**slots) for text in drawn))

    return draw_exchange


FAMILIES = tuple(
    map(
        _family,
        (
            _sort_words,
            _count_letters,
            _count_one_letter,
            _convert_units,
            _list_items,
            _make_polite,
            _answer_from_text,
            _write_email,
            _explain_steps,
            _change_tense,
            _make_plural,
            _compare_numbers,
            _name_opposites,
            _add_capitals,
            _extract_fields,
            _continue_sequence,
            _find_weekday,
            _group_words,
        ),
    )
)


def draw(random: Random, *, pairs: bool) -> tuple[str, dict[str, Any]]:
    """A prompt (the key) and its row: a conversation, or a preference pair."""
    prompt, good, worse = random.choice(FAMILIES)(random)
    asked = [{"role": "user", "content": prompt}]
    answered = [{"role": "assistant", "content": good}]
    if not pairs:
        return prompt, {"messages": asked + answered}
    rejected = [{"role": "assistant", "content": worse}]
    return prompt, {"prompt": asked, "chosen": answered, "rejected": rejected}
