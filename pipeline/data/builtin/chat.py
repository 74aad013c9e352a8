"""Short instructions with good and worse answers, for the built-in data set "chat".

1. One function a family; each returns the prompt, a good answer and a worse one. Answers that can
   be worked out are worked out from the drawn words and numbers, not stored.
2. Worse answers are wrong, off format, curt, or ignore part of the instruction; never empty.
"""

from __future__ import annotations

import json
from random import Random
from typing import Any, NamedTuple

from pipeline.data.builtin.maths import NAMES, words


class Exchange(NamedTuple):
    """A prompt and two answers to it."""

    prompt: str
    good: str
    worse: str


_WORDS = words(
    "anchor basket candle dragon engine feather garden harbor island jacket kettle lantern meadow "
    "needle orange pencil quilt river saddle tunnel umbrella valley window yogurt acorn bridge "
    "castle desert forest glacier hammer insect jungle ladder mirror notebook ocean pepper rocket "
    "silver teapot village walnut bottle copper donkey fiddle goblet helmet magnet oyster parcel "
    "ribbon stable timber velvet whistle blanket cactus dolphin"
)
_CITIES = words(
    "Lisbon Oslo Cairo Lima Dublin Vienna Nairobi Kyoto Toronto Prague Athens Havana Warsaw "
    "Seville Porto Bergen Quito Manila"
)
_JOBS = ("baker", "nurse", "teacher", "plumber", "librarian", "pilot", "gardener", "dentist")
_MONTHS = words(
    "January February March April May June July August September October November December"
)
_DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
_SMALL_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
_CATEGORIES = {
    "fruits": "apples pears mangoes grapes lemons cherries plums kiwis",
    "vegetables": "carrots onions spinach peas leeks beans cabbage broccoli",
    "farm animals": "cows sheep goats pigs hens horses ducks donkeys",
    "wild animals": "lions wolves bears zebras foxes monkeys elephants tigers",
    "birds": "robins owls eagles parrots swans penguins crows pigeons",
    "tools": "hammers saws pliers wrenches drills chisels screwdrivers files",
    "musical instruments": "pianos violins flutes drums guitars trumpets cellos harps",
    "sports": "tennis soccer rowing hockey judo cycling swimming basketball",
    "countries in Europe": "France Spain Italy Poland Norway Greece Austria Portugal",
    "colors": "red blue green yellow purple pink brown black",
    "kinds of weather": "rain snow sunshine fog wind hail thunder frost",
    "drinks": "water tea coffee milk juice lemonade cocoa cider",
    "pieces of furniture": "chairs tables sofas beds desks shelves wardrobes stools",
    "pieces of clothing": "shirts coats socks scarves hats gloves skirts sweaters",
}
_UNITS = (
    ("kilometers", "meters", 1000),
    ("meters", "centimeters", 100),
    ("centimeters", "millimeters", 10),
    ("kilograms", "grams", 1000),
    ("liters", "milliliters", 1000),
    ("hours", "minutes", 60),
    ("minutes", "seconds", 60),
    ("days", "hours", 24),
    ("weeks", "days", 7),
    ("years", "months", 12),
    ("feet", "inches", 12),
    ("yards", "feet", 3),
)
_REQUESTS = ("send me", "sign", "check", "print", "finish", "give me", "bring me", "hand in")
_PAPERS = ("the report", "the invoice", "the contract", "the meeting notes", "the travel form")
_PAPERS += ("the price list", "the floor plan", "the guest list", "the new menu", "the timetable")
_PRESENT_AND_PAST = (
    ("walks to the station", "walked to the station"),
    ("writes a long letter", "wrote a long letter"),
    ("goes for a swim", "went for a swim"),
    ("eats lunch in the park", "ate lunch in the park"),
    ("teaches a dance class", "taught a dance class"),
    ("buys fresh bread", "bought fresh bread"),
    ("sings in the choir", "sang in the choir"),
    ("takes the early bus", "took the early bus"),
    ("feeds the ducks", "fed the ducks"),
    ("drinks tea on the balcony", "drank tea on the balcony"),
    ("plays chess with a friend", "played chess with a friend"),
    ("carries the groceries home", "carried the groceries home"),
    ("runs along the river", "ran along the river"),
    ("sleeps in the garden", "slept in the garden"),
    ("makes soup for everyone", "made soup for everyone"),
    ("studies at the library", "studied at the library"),
)
_SINGULAR_AND_PLURAL = tuple(
    tuple(pair.split("/"))
    for pair in words(
        "box/boxes child/children leaf/leaves city/cities mouse/mice foot/feet tooth/teeth "
        "knife/knives baby/babies bus/buses goose/geese wolf/wolves story/stories dish/dishes "
        "man/men woman/women shelf/shelves cherry/cherries watch/watches loaf/loaves "
        "potato/potatoes hero/heroes thief/thieves lady/ladies"
    )
)
_OPPOSITES = tuple(
    tuple(pair.split("/"))
    for pair in words(
        "hot/cold big/small fast/slow happy/sad early/late full/empty hard/soft heavy/light "
        "high/low loud/quiet new/old open/closed rich/poor strong/weak tall/short thick/thin "
        "wet/dry wide/narrow young/old true/false clean/dirty near/far deep/shallow sweet/sour"
    )
)
_HOW_TO = {
    "make a cup of tea": "Boil fresh water.|Put a tea bag in a cup.|Pour in the hot water.|Wait "
    "about four minutes.|Take out the tea bag and add milk if you like.",
    "plant a seed": "Fill a pot with soil.|Make a small hole with your finger.|Drop in the seed "
    "and cover it.|Water it gently.|Put the pot in a sunny place.",
    "wash a bicycle": "Rinse the bicycle with water.|Scrub the frame with soapy water.|Clean the "
    "chain with an old brush.|Rinse everything and dry it.|Put a little oil on the chain.",
    "boil an egg": "Bring a pot of water to a boil.|Lower in the egg with a spoon.|Wait eight "
    "minutes.|Move the egg to cold water.|Peel it when it has cooled.",
    "send a parcel": "Put the item in a sturdy box.|Fill the gaps with paper.|Close the box with "
    "tape.|Write the address on it clearly.|Take it to the post office and pay.",
    "clean a window": "Wipe off the dust.|Mix warm water with a little soap.|Wash the glass with a "
    "sponge.|Pull off the water with a rubber blade.|Dry the edges with a cloth.",
    "make a sandwich": "Take two slices of bread.|Spread butter on both.|Add cheese and sliced "
    "tomato.|Put the slices together.|Cut the sandwich in half.",
    "wrap a present": "Place the present on a sheet of paper.|Cut the paper to size.|Fold it over "
    "and tape it down.|Fold in both ends and tape them.|Tie a ribbon around it.",
    "paint a wall": "Cover the floor with an old sheet.|Tape off the edges.|Stir the paint.|Paint "
    "the corners with a brush.|Paint the rest with a roller and let it dry.",
    "back up a computer": "Connect an external drive.|Open the backup program.|Choose the folders "
    "you need.|Start the backup and wait.|Check that the files are on the drive.",
    "pack for a weekend": "Check the weather.|Lay out clothes for each day.|Add a wash bag and a "
    "charger.|Put the heavy things in first.|Close the bag and weigh it.",
    "learn a poem": "Read the whole poem aloud.|Learn the first two lines.|Add two more lines at a "
    "time.|Say it all without looking.|Repeat it the next day.",
    "change a light bulb": "Switch off the light.|Let the old bulb cool.|Unscrew the old "
    "bulb.|Screw in the new one.|Switch on the light to test it.",
    "bake potatoes": "Heat the oven.|Wash the potatoes and prick them.|Rub them with oil and "
    "salt.|Bake them for about an hour.|Cut them open and serve them with butter.",
}
_EMAILS = {
    "say that you will be late for the {event} on {day}": "I am sorry, but I will be late for the "
    "{event} on {day}. Please start without me.",
    "invite them to the {event} on {day}": "I would like to invite you to the {event} on {day}. "
    "Please let me know if you can come.",
    "thank them for their help with the {event} on {day}": "Thank you very much for your help with "
    "the {event} on {day}. I could not have done it without you.",
    "ask them to move the {event} on {day} to another day": "Would it be possible to move the "
    "{event} on {day} to another day? Please let me know what suits you.",
    "say that you cannot come to the {event} on {day}": "I am sorry, but I cannot come to the "
    "{event} on {day}. I hope that it goes well.",
}
_EVENTS = ("meeting", "party", "concert", "dinner", "workshop", "book club", "bake sale")


def _phrase(random: Random, *choices: str) -> str:
    return random.choice(choices)


def _listing(items: list[str]) -> str:
    return f"{', '.join(items[:-1])} and {items[-1]}"


def _sort_words(random: Random) -> Exchange:
    drawn = random.sample(_WORDS, random.randint(4, 6))
    backwards = random.random() < 0.3
    order = "from Z to A" if backwards else "in alphabetical order"
    ask = _phrase(random, "Sort these words", "Put these words", "Write the following words")
    right = sorted(drawn, reverse=backwards)
    wrong = random.choice([right[::-1], [right[1], right[0], *right[2:]], [right[0], *right[2:]]])
    return Exchange(f"{ask} {order}: {', '.join(drawn)}", ", ".join(right), ", ".join(wrong))


def _count_letters(random: Random) -> Exchange:
    first, second = random.sample(_WORDS, 2)
    total = len(first) + len(second)
    ask = _phrase(
        random,
        f'How many letters do "{first}" and "{second}" have in total?',
        f'Count the letters in "{first}" and "{second}" together.',
    )
    good = (
        f'"{first}" has {len(first)} letters and "{second}" has {len(second)} letters, so there '
        f"are {total} letters in total."
    )
    wrong = f"There are {total + random.choice((-2, -1, 1, 2))} letters in total."
    return Exchange(ask, good, wrong)


def _count_one_letter(random: Random) -> Exchange:
    first, second = random.sample(_WORDS, 2)
    letter = random.choice(first)
    count = (first + second).count(letter)
    times = "once" if count == 1 else f"{_SMALL_NUMBERS[count]} times"
    prompt = f'How often does the letter "{letter}" appear in "{first} {second}"?'
    good = f'The letter "{letter}" appears {times} in "{first} {second}".'
    wrong = f'The letter "{letter}" appears {_SMALL_NUMBERS[count + 1]} times.'
    return Exchange(prompt, good, random.choice((wrong, "A few times.")))


def _convert_units(random: Random) -> Exchange:
    large, small, factor = random.choice(_UNITS)
    amount = random.randint(2, 60)
    ask = _phrase(
        random,
        f"Convert {amount} {large} to {small}.",
        f"How many {small} are {amount} {large}?",
        f"What is {amount} {large} in {small}?",
    )
    good = f"{amount} {large} are {amount * factor} {small}."
    wrong_factor = {1000: 100, 100: 10, 10: 100, 60: 100, 24: 12, 7: 5, 12: 10, 3: 2}[factor]
    wrong = f"{amount} {large} are {amount * wrong_factor} {small}."
    return Exchange(ask, good, random.choice((wrong, f"Multiply by {factor}.")))


def _list_items(random: Random) -> Exchange:
    category, members = random.choice(list(_CATEGORIES.items()))
    banned, *others = random.sample(members.split(), 8)
    items = others[: random.randint(3, 5)]
    how, layout = random.choice(
        (("as a numbered list", "{number}. {item}"), ("as a list with dashes", "- {item}"))
    )
    ask = _phrase(random, "List", "Name", "Give me")
    prompt = f"{ask} {_SMALL_NUMBERS[len(items)]} {category} {how}. Leave out {banned}."
    lines = [layout.format(number=number, item=item) for number, item in enumerate(items, 1)]
    broken = [*lines[:-1], layout.format(number=len(items), item=banned)]
    worse = random.choice(("\n".join(broken), "\n".join(lines[:-1]), " ".join(items)))
    return Exchange(prompt, "\n".join(lines), worse)


def _make_polite(random: Random) -> Exchange:
    verb, paper = random.choice(_REQUESTS), random.choice(_PAPERS)
    when = _phrase(random, "now", "today", "by Friday", "before lunch", "this week")
    ask = _phrase(random, "Rewrite this politely", "Make this sentence more polite")
    request = f"{verb} {paper}"
    command = f"{request[0].upper()}{request[1:]} {when}!"
    good = _phrase(
        random,
        f"Could you please {request} {when}? Thank you.",
        f"Would you mind helping me out? Please {request} {when} if you can.",
    )
    worse = random.choice((f"You have to {request} {when}.", "Please.", f"Could you {verb} it?"))
    return Exchange(f"{ask}: {command}", good, worse)


def _answer_from_text(random: Random) -> Exchange:
    name, friend = random.sample(NAMES, 2)
    job, city, month = random.choice(_JOBS), random.choice(_CITIES), random.choice(_MONTHS)
    years = random.randint(3, 30)
    text = (
        f"{name} works as a {job} and has lived in {city} for {years} years. Every {month}, "
        f"{friend} comes to visit."
    )
    question, good, curt = random.choice(
        (
            (f"Where does {name} live?", f"{name} lives in {city}.", "In a town."),
            (f"What is {name}'s job?", f"{name} works as a {job}.", "It is a normal job."),
            (f"Who visits {name}?", f"{friend} visits {name}.", f"{name} visits {friend}."),
            (f"When does {friend} visit?", f"{friend} visits every {month}.", "Now and then."),
            (
                f"How long has {name} lived in {city}?",
                f"{name} has lived in {city} for {years} years.",
                f"{name} has lived in {city} for {years + 2} years.",
            ),
        )
    )
    worse = random.choice((curt, text))
    return Exchange(f"Read the text and answer the question.\n\n{text}\n\n{question}", good, worse)


def _write_email(random: Random) -> Exchange:
    reader, writer = random.sample(NAMES, 2)
    purpose, body = random.choice(list(_EMAILS.items()))
    slots = {"event": random.choice(_EVENTS), "day": random.choice(_DAYS)}
    purpose, body = purpose.format(**slots), body.format(**slots)
    ask = _phrase(random, "Write a short email to", "Please write a brief email to")
    prompt = f"{ask} {reader} to {purpose}. Sign it as {writer}."
    good = f"Hi {reader},\n\n{body}\n\nBest wishes,\n{writer}"
    worse = random.choice(
        (body, f"Hi {reader},\n\nSee you on {slots['day']}.", good[: good.rfind("\n\n")])
    )
    return Exchange(prompt, good, worse)


def _explain_steps(random: Random) -> Exchange:
    task, text = random.choice(list(_HOW_TO.items()))
    steps = text.split("|")
    ask = _phrase(
        random,
        f"Explain how to {task}",
        f"How do I {task}? Explain it",
        f"Tell a beginner how to {task}",
        f"Write instructions on how to {task}",
        f"I have never tried to {task}. Explain it",
        f"Show me how to {task}",
        f"Describe how to {task}",
    )
    count = random.choice((4, 5))  # the last two steps are one where four are asked for
    if count == 4:
        steps = [*steps[:3], f"{steps[3][:-1]}, then {steps[4][0].lower()}{steps[4][1:]}"]
    layout = random.choice(("{number}. {step}", "Step {number}: {step}", "({number}) {step}"))
    example = layout.split("{step}")[0].format(number=1).strip()
    lines = [layout.format(number=number, step=step) for number, step in enumerate(steps, 1)]
    prompt = f'{ask} in {_SMALL_NUMBERS[count]} steps, one per line, starting with "{example}".'
    worse = random.choice(("\n".join(lines[:2]), " ".join(steps), "\n".join(lines[::-1])))
    return Exchange(prompt, "\n".join(lines), worse)


def _change_tense(random: Random) -> Exchange:
    name, (present, past) = random.choice(NAMES), random.choice(_PRESENT_AND_PAST)
    day = random.choice(_DAYS)
    ask = _phrase(random, "Rewrite in the past tense", "Change this sentence to the past tense")
    sentence, good = f"On {day} {name} {present}.", f"On {day} {name} {past}."
    vague = f"{name} did that on {day}."
    return Exchange(f"{ask}: {sentence}", good, random.choice((sentence, vague, past)))


def _make_plural(random: Random) -> Exchange:
    pairs = random.sample(_SINGULAR_AND_PLURAL, 3)
    ask = _phrase(random, "Give the plural of each word", "Write the plural forms of these words")
    prompt = f"{ask}, separated by commas: {', '.join(pair[0] for pair in pairs)}"
    good = ", ".join(pair[1] for pair in pairs)
    wrong = ", ".join(f"{pair[0]}s" for pair in pairs)
    return Exchange(prompt, good, random.choice((wrong, good.rpartition(", ")[0])))


def _compare_numbers(random: Random) -> Exchange:
    first, second = random.sample(range(100, 1000), 2)
    larger, smaller = max(first, second), min(first, second)
    ask, good, wrong = random.choice(
        (
            ("larger", f"{larger} is larger than {smaller}", f"{smaller} is larger than {larger}"),
            ("smaller", f"{smaller} is smaller than {larger}", f"{larger} is smaller"),
        )
    )
    prompt = f"Which number is {ask}, {first} or {second}, and what is the difference?"
    difference = f"The difference is {larger - smaller}."
    worse = random.choice((f"{wrong}. {difference}", f"{good}.", f"{first + second}"))
    return Exchange(prompt, f"{good}. {difference}", worse)


def _name_opposites(random: Random) -> Exchange:
    pairs = random.sample(_OPPOSITES, 3)
    ask = _phrase(
        random, "Give the opposite of each word.", "What are the opposites of these words?"
    )
    prompt = f'{ask} Write each as "word: opposite". Words: {_listing([p[0] for p in pairs])}'
    good = "\n".join(f"{word}: {opposite}" for word, opposite in pairs)
    repeated = "\n".join(f"{word}: very {word}" for word, _ in pairs)
    return Exchange(prompt, good, random.choice((repeated, pairs[0][1], good.split("\n")[0])))


def _add_capitals(random: Random) -> Exchange:
    name, city = random.choice(NAMES), random.choice(_CITIES)
    month, job = random.choice(_MONTHS), random.choice(_JOBS)
    good = f"In {month}, {name} moved to {city} and became a {job}."
    prompt = f"Correct the capital letters and add the missing period: {good[:-1].lower()}"
    worse = random.choice((good[:-1].lower(), good[0] + good[1:].lower(), good.upper()))
    return Exchange(prompt, good, worse)


def _extract_fields(random: Random) -> Exchange:
    name, city, day = random.choice(NAMES), random.choice(_CITIES), random.choice(_DAYS)
    event, hour = random.choice(_EVENTS), random.randint(5, 9)
    text = f"{name} is planning a {event} in {city} on {day} at {hour} in the evening."
    fields = {"name": name, "event": event, "city": city, "day": day}
    keys = random.sample(sorted(fields), 3)
    good = json.dumps({key: fields[key] for key in keys})
    prompt = f"Give the {_listing(keys)} from this text as a JSON object: {text}"
    missing = json.dumps({key: fields[key] for key in keys[:-1]})
    worse = random.choice((missing, ", ".join(fields[key] for key in keys), text))
    return Exchange(prompt, good, worse)


def _continue_sequence(random: Random) -> Exchange:
    start, step = random.randint(2, 60), random.randint(2, 25)
    numbers = [start + step * index for index in range(6)]
    ask = _phrase(random, "What are the next two numbers?", "Continue with two more numbers.")
    prompt = f"{', '.join(map(str, numbers[:4]))}: {ask}"
    good = f"{numbers[4]}, {numbers[5]}"
    worse = random.choice((f"{numbers[4]}", f"{numbers[4] + 1}, {numbers[5] + 2}"))
    return Exchange(prompt, good, worse)


def _find_weekday(random: Random) -> Exchange:
    today, days = random.randrange(7), random.randint(3, 60)
    ask = _phrase(
        random,
        f"Today is {_DAYS[today]}. What day of the week will it be in {days} days?",
        f"If today is {_DAYS[today]}, which day of the week is it {days} days from now?",
    )
    answer = _DAYS[(today + days) % 7]
    wrong = _DAYS[(today + days + random.choice((1, 2, 5, 6))) % 7]
    worse = random.choice((f"It will be {wrong}.", "You can look that up in a calendar."))
    return Exchange(ask, f"It will be {answer}.", worse)


def _group_words(random: Random) -> Exchange:
    first, second = random.sample(
        ("fruits", "vegetables", "birds", "tools", "sports", "colors", "drinks"), 2
    )
    groups = {name: random.sample(_CATEGORIES[name].split(), 3) for name in (first, second)}
    mixed = random.sample([word for group in groups.values() for word in group], 6)
    ordered = {name: [word for word in mixed if word in groups[name]] for name in groups}
    prompt = f"Sort these words into {first} and {second}, one line each: {', '.join(mixed)}"
    good = "\n".join(f"{name.capitalize()}: {', '.join(ordered[name])}" for name in groups)
    swapped = (
        f"{first.capitalize()}: {', '.join(ordered[second])}\n"
        f"{second.capitalize()}: {', '.join(ordered[first])}"
    )
    worse = random.choice((swapped, good.split("\n")[0], ", ".join(mixed)))
    return Exchange(prompt, good, worse)


FAMILIES = (
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
