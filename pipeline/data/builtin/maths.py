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
from random import Random
from typing import Any, NamedTuple

SMALLEST, LARGEST = 2, 200


def words(text: str) -> tuple[str, ...]:
    """The words of a text: long lists read better without quotes."""
    return tuple(text.split())


NAMES = words(
    "Tom Mia Ben Zoe Omar Lena Ravi Nora Leo Aisha Jack Ines Kofi Emma Hugo Priya Sam Yuki Adam "
    "Clara Diego Fatima Liam Anya Marco Grace Tariq Ella Pablo Ruth Ivan Leila Noah Chen Olga "
    "Peter Amina Felix Hana Dan Rosa Simon Maya Victor Jane Emil Sofia Paul"
)
_ONE_WORD_EACH = {
    "things": (
        *words(
            "marbles stickers stamps seashells buttons postcards beads coins badges pencils "
            "ribbons bookmarks keyrings magnets crayons"
        ),
        "toy cars",
        "trading cards",
        "paper stars",
        "glass gems",
        "puzzle pieces",
    ),
    "fruit": words(
        "apples plums pears peaches oranges lemons figs cherries apricots mangoes limes"
    ),
    "baked": words("muffins cookies rolls pies scones bagels tarts pretzels cupcakes"),
    "place": (
        "the school fair",
        "the library",
        "the town hall",
        "a street party",
        "the office",
        "the village market",
        "the sports club",
        "a family picnic",
        "the train station",
    ),
    "day": words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday"),
    "plant": words("tomato pepper rose bean cabbage tulip lettuce strawberry"),
    "animal": words("sheep goats cows ducks horses rabbits geese"),
    "saved_for": ("a bicycle", "a guitar", "a tent", "a new phone", "a camera", "a train trip"),
    "job": ("walking dogs", "mowing lawns", "washing cars", "delivering papers", "babysitting"),
    "game": ("card", "board", "video", "word", "darts"),
}
_SINGULAR_AND_PLURAL = {
    ("box", "boxes"): ("box bag jar basket crate tin", "boxes bags jars baskets crates tins"),
    ("item", "items"): (
        "notebook mug scarf candle lamp cushion hat puzzle brush plate",
        "notebooks mugs scarves candles lamps cushions hats puzzles brushes plates",
    ),
    ("drink", "drinks"): ("tea coffee lemonade smoothie", "teas coffees lemonades smoothies"),
}
_TIMES = {2: "twice", 3: "three times", 4: "four times"}
_MISTAKEN_FOR = {"+": "-*", "-": "+", "*": "+", "/": "-*"}
_SLIPS = (-10, -2, -1, 1, 2, 10)


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
    numbers: dict[str, range]


class Worked(NamedTuple):
    """One step with its numbers in place."""

    left: int
    sign: str
    right: int
    result: int


def _template(question: str, *steps: str, **numbers: range) -> Template:
    pattern = re.compile(r"(.*)\[(\w+) (.) (\w+) = (\w+)\](.*)")
    matches = [pattern.fullmatch(step) for step in steps]
    return Template(question, tuple(Step(*match.groups()) for match in matches if match), numbers)


_ONE_STEP = (
    _template(
        "{name} had {a} {things} at the start of the week. On {day}, a friend gave {name} {b} "
        "more. How many {things} does {name} have now?",
        "[a + b = c] {things} in all.",
        a=range(5, 120),
        b=range(3, 80),
    ),
    _template(
        "There were {a} {fruit} on a table at {place}. By noon, visitors had eaten {b} of them. "
        "How many {fruit} were left on the table?",
        "[a - b = c] {fruit} left.",
        a=range(20, 150),
        b=range(5, 90),
    ),
    _template(
        "A shop sells {things} by the {box}, with {a} in each {box}. On {day}, {name} bought {b} "
        "{boxes}. How many {things} did {name} get?",
        "[a * b = c] {things}.",
        a=range(4, 25),
        b=range(2, 10),
    ),
    _template(
        "{name} has {a} {things} and wants to share all of them equally among {b} friends at "
        "{place}. How many {things} does each friend get?",
        "[a / b = c] {things} for each friend.",
        a=range(8, 150),
        b=range(2, 10),
    ),
    _template(
        "On {day}, {name} and {other} went to the orchard. {name} picked {a} {fruit}, and {other} "
        "picked {k_times} as many. How many {fruit} did {other} pick?",
        "{other} picked [a * k = c] {fruit}.",
        a=range(4, 50),
        k=range(2, 5),
    ),
    _template(
        "{name} and {other} played a {game} game on {day}. {name} scored {a} points, and {other} "
        "scored half as many. How many points did {other} score?",
        "{other} scored [a / 2 = c] points.",
        a=range(8, 180, 2),
    ),
    _template(
        "{name} and {other} live on the same street. {name} is {a} years old, and {other} is {b} "
        "years younger. How old is {other}?",
        "{other} is [a - b = c] years old.",
        a=range(12, 80),
        b=range(2, 40),
    ),
    _template(
        "A train leaves for the coast on {day} and covers {a} miles every hour without stopping. "
        "How many miles does it cover in {b} hours?",
        "[a * b = c] miles.",
        a=range(15, 80),
        b=range(2, 9),
    ),
    _template(
        "{name} saw a {item} at {place} and bought it for {b} dollars, paying with {a} dollars in "
        "cash. How many dollars did {name} get back?",
        "[a - b = c] dollars back.",
        a=range(20, 101, 10),
        b=range(5, 90),
    ),
    _template(
        "{name} borrowed a book with {a} pages from the library and reads {b} pages every "
        "evening. How many evenings does {name} need for the whole book?",
        "[a / b = c] evenings.",
        a=range(40, 200, 2),
        b=range(4, 25),
    ),
    _template(
        "Last month {name} swam {a} laps at the pool, while {other} swam {b} laps. How many more "
        "laps did {name} swim than {other}?",
        "[a - b = c] more laps.",
        a=range(30, 160),
        b=range(10, 120),
    ),
    _template(
        "{name} is saving for {saved_for} and puts {a} dollars in a jar every {day}. How many "
        "dollars are in the jar after {b} weeks?",
        "[a * b = c] dollars.",
        a=range(3, 30),
        b=range(3, 13),
    ),
    _template(
        "Helpers set out {a} chairs for a concert at {place}, in {b} equal rows. How many chairs "
        "are there in each row?",
        "[a / b = c] chairs in each row.",
        a=range(20, 200),
        b=range(3, 15),
    ),
    _template(
        "A farmer keeps {a} {animal} in the north field and {b} {animal} in the south field. How "
        "many {animal} does the farmer keep in the two fields?",
        "[a + b = c] {animal} in the two fields.",
        a=range(6, 100),
        b=range(6, 100),
    ),
)

_TWO_STEPS = (
    _template(
        "{name} had {a} {things}, then bought {b} more at {place}. Later {name} gave {c} of the "
        "{things} to {other}. How many does {name} have left?",
        "After buying, {name} had [a + b = d] {things}.",
        "[d - c = e] {things} left.",
        a=range(8, 100),
        b=range(4, 60),
        c=range(3, 60),
    ),
    _template(
        "{name} filled {a} {boxes} with {b} {things} each. Another {c} {things} were left on the "
        "floor. How many {things} are there altogether?",
        "The {boxes} hold [a * b = d] {things}.",
        "[d + c = e] {things} altogether.",
        a=range(2, 10),
        b=range(5, 25),
        c=range(2, 20),
    ),
    _template(
        "At {place}, {name} bought {a} {items} for {b} dollars each and paid with {c} dollars. "
        "How many dollars of change did {name} get?",
        "The {items} cost [a * b = d] dollars.",
        "[c - d = e] dollars of change.",
        a=range(2, 8),
        b=range(3, 15),
        c=range(20, 101, 10),
    ),
    _template(
        "A baker made {a} {baked} on {day} and sold {b} of them. The rest went into {boxes} of "
        "{c} each. How many {boxes} did the baker fill?",
        "[a - b = d] {baked} were not sold.",
        "[d / c = e] {boxes}.",
        a=range(30, 160),
        b=range(10, 100),
        c=range(3, 13),
    ),
    _template(
        "{name} found {a} {things} in the attic, and {other} found {k_times} as many in the "
        "cellar. How many {things} did the two of them find together?",
        "{other} found [a * k = b] {things}.",
        "[a + b = c] {things} together.",
        a=range(4, 40),
        k=range(2, 5),
    ),
    _template(
        "{name} baked {a} {baked} for {place}, and {other} baked half as many. How many {baked} "
        "did the two of them bake in total?",
        "{other} baked [a / 2 = b] {baked}.",
        "[a + b = c] {baked} in total.",
        a=range(8, 130, 2),
    ),
    _template(
        "{name} is {a} years old. {other}, a cousin from the next village, is {b} years older. "
        "What do their ages add up to?",
        "{other} is [a + b = c] years old.",
        "[a + c = d] years together.",
        a=range(5, 60),
        b=range(2, 30),
    ),
    _template(
        "{name} got a book with {a} pages on {day} and has read {b} pages a day for {c} days. How "
        "many pages are still to be read?",
        "{name} has read [b * c = d] pages.",
        "[a - d = e] pages still to be read.",
        a=range(60, 200),
        b=range(5, 25),
        c=range(2, 10),
    ),
    _template(
        "A group of {c} friends went out on {day}. Dinner cost {a} dollars and the taxi cost {b} "
        "dollars, and everyone paid the same. How many dollars did each friend pay?",
        "The evening cost [a + b = d] dollars.",
        "[d / c = e] dollars each.",
        a=range(30, 160),
        b=range(6, 40),
        c=range(3, 9),
    ),
    _template(
        "A bus left the station with {a} passengers. At the next stop {b} of them got off and {c} "
        "people got on. How many passengers were then on the bus?",
        "[a - b = d] passengers stayed on.",
        "[d + c = e] passengers on the bus.",
        a=range(15, 80),
        b=range(3, 40),
        c=range(2, 30),
    ),
    _template(
        "{name} earns {a} dollars an hour for {job}. Last {day}, {name} worked {b} hours and got "
        "a tip of {c} dollars. How many dollars was that altogether?",
        "The work paid [a * b = d] dollars.",
        "[d + c = e] dollars altogether.",
        a=range(6, 26),
        b=range(2, 9),
        c=range(2, 20),
    ),
    _template(
        "{name} owned {a} {things} and gave half of them to {other}. The next day {name} found {b} "
        "more {things} at {place}. How many does {name} own now?",
        "{name} kept [a / 2 = c] {things}.",
        "[c + b = d] {things} now.",
        a=range(10, 180, 2),
        b=range(3, 60),
    ),
    _template(
        "{name} is {a} years old, and {other} is {k_times} as old. How old will {other} be in {b} "
        "years?",
        "{other} is [a * k = c] years old now.",
        "In {b} years: [c + b = d] years old.",
        a=range(4, 22),
        k=range(2, 5),
        b=range(2, 16),
    ),
    _template(
        "A gardener planted {a} rows of {plant} plants with {b} plants in each row. During a storm "
        "on {day}, {c} plants were lost. How many plants are left?",
        "[a * b = d] plants at first.",
        "[d - c = e] plants are left.",
        a=range(3, 12),
        b=range(5, 18),
        c=range(2, 40),
    ),
    _template(
        "{name} carried {a} {boxes} of {fruit} to {place}, each holding {b} {fruit}. There they "
        "were shared equally among {c} families. How many {fruit} did each family get?",
        "[a * b = d] {fruit} in all.",
        "[d / c = e] {fruit} for each family.",
        a=range(2, 10),
        b=range(6, 25),
        c=range(3, 13),
    ),
)

_THREE_STEPS = (
    _template(
        "At {place}, {name} bought {a} {items} for {b} dollars each and {c} {drinks} for {d} "
        "dollars each. How many dollars did {name} spend in all?",
        "The {items} cost [a * b = e] dollars.",
        "The {drinks} cost [c * d = f] dollars.",
        "[e + f = g] dollars in all.",
        a=range(2, 9),
        b=range(4, 18),
        c=range(2, 8),
        d=range(2, 7),
    ),
    _template(
        "{name} bought {a} {items} for {b} dollars each and a {drink} for {c} dollars, and paid "
        "with {d} dollars. How many dollars of change did {name} get?",
        "The {items} cost [a * b = e] dollars.",
        "Everything cost [e + c = f] dollars.",
        "[d - f = g] dollars of change.",
        a=range(2, 8),
        b=range(3, 16),
        c=range(2, 7),
        d=range(20, 151, 10),
    ),
    _template(
        "A bakery made {a} trays of {b} {baked} each and sold {c} of them by lunch. The rest were "
        "packed in {boxes} of {d}. How many {boxes} were packed?",
        "[a * b = e] {baked} were made.",
        "[e - c = f] {baked} were left.",
        "[f / d = g] {boxes}.",
        a=range(3, 11),
        b=range(6, 20),
        c=range(10, 90),
        d=range(3, 13),
    ),
    _template(
        "{name} has {a} {things}. {other} has {k_times} as many as {name}, and {third} has {b} "
        "fewer than {other}. How many do {name} and {third} have together?",
        "{other} has [a * k = c] {things}.",
        "{third} has [c - b = d] {things}.",
        "[a + d = e] {things} together.",
        a=range(5, 45),
        k=range(2, 5),
        b=range(3, 40),
    ),
    _template(
        "{name} earns {a} dollars a week by {job}. After {b} weeks, {name} spent {c} dollars on a "
        "{item} and gave half of the rest to {other}. How many dollars did {other} get?",
        "{name} earned [a * b = d] dollars.",
        "[d - c = e] dollars remained.",
        "{other} got [e / 2 = f] dollars.",
        a=range(8, 40),
        b=range(2, 9),
        c=range(4, 40),
    ),
    _template(
        "A book has {a} pages. {name} read {b} pages a day for {c} days and wants to finish the "
        "rest in {d} days, the same number each day. How many pages a day is that?",
        "{name} has read [b * c = e] pages.",
        "[a - e = f] pages are left.",
        "[f / d = g] pages a day.",
        a=range(60, 200),
        b=range(5, 20),
        c=range(2, 8),
        d=range(2, 10),
    ),
    _template(
        "For a trip on {day}, a school hired {a} buses with {b} seats each. There were {c} "
        "children and {d} adults. How many seats stayed empty?",
        "There were [a * b = e] seats.",
        "[c + d = f] people came along.",
        "[e - f = g] empty seats.",
        a=range(2, 6),
        b=range(20, 55),
        c=range(30, 170),
        d=range(4, 16),
    ),
    _template(
        "{name} swam {a} laps on Monday and {k_times} as many on Tuesday. The goal for the week is "
        "{b} laps. How many more laps does {name} need?",
        "Tuesday was [a * k = c] laps.",
        "So far that is [a + c = d] laps.",
        "[b - d = e] more laps.",
        a=range(4, 40),
        k=range(2, 5),
        b=range(40, 201, 10),
    ),
    _template(
        "A tap fills a tank with {a} liters of water a minute. After {b} minutes, {name} used {c} "
        "liters for the {plant} plants, then added {d} liters. How many liters are in the tank?",
        "The tap gave [a * b = e] liters.",
        "[e - c = f] liters stayed in the tank.",
        "[f + d = g] liters in the tank.",
        a=range(3, 20),
        b=range(3, 13),
        c=range(5, 80),
        d=range(3, 40),
    ),
    _template(
        "{name} is {a} years old and {other} is {b} years older. {third} is half as old as "
        "{other}. How many years younger than {name} is {third}?",
        "{other} is [a + b = c] years old.",
        "{third} is [c / 2 = d] years old.",
        "[a - d = e] years younger.",
        a=range(14, 70),
        b=range(2, 40),
    ),
    _template(
        "A farm has {a} hens, and each lays {b} eggs a week. {name} kept {c} eggs for a cake and "
        "put the rest in cartons of 6. How many cartons were filled?",
        "The hens laid [a * b = d] eggs.",
        "[d - c = e] eggs for the cartons.",
        "[e / 6 = f] cartons.",
        a=range(6, 35),
        b=range(3, 7),
        c=range(3, 13),
    ),
)

TEMPLATES = {1: _ONE_STEP, 2: _TWO_STEPS, 3: _THREE_STEPS}


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
        fields["k_times"] = _TIMES[numbers["k"]]
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
    drawn: dict[str, str] = dict(
        zip(("name", "other", "third"), random.sample(NAMES, 3), strict=True)
    )
    drawn.update({field: random.choice(choices) for field, choices in _ONE_WORD_EACH.items()})
    for fields, (singulars, plurals) in _SINGULAR_AND_PLURAL.items():
        forms = random.choice(list(zip(singulars.split(), plurals.split(), strict=True)))
        drawn.update(zip(fields, forms, strict=True))
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
