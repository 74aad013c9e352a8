"""Invented forum posts with their authors' TL;DR, for the built-in data set "posts".

1. A story has slots. Its opening, facts and question name every slot, and the slots alone decide
   the summary: a post determines its summary, which contains only what the post says. So if
   summaries are disjoint, so are posts, and no variant of a story is in another split.
2. Besides the slots, posts vary in the order of facts, in asides and their places, in opening and
   question, and in paragraphs. The first sentence is a poor summary.
3. Facts depend on the opening at most, so they read well in any order.
"""

from __future__ import annotations

from random import Random
from typing import Any, NamedTuple

from pipeline.data.builtin.words import choices, read

_SHORTEST = 60  # words in a post; asides are added until it is reached


class Story(NamedTuple):
    """A family of posts: lists of alternatives, except `facts`, which are all used."""

    subreddit: str
    slots: dict[str, list[str]]
    titles: list[str]
    openings: list[str]
    facts: list[str]
    asides: list[str]
    questions: list[str]
    summaries: list[str]


_TEXTS = read("posts")


def _story(slots: dict[str, Any], **texts: Any) -> Story:
    return Story(slots={slot: [*map(str, choices(slots[slot], _TEXTS))] for slot in slots}, **texts)


STORIES = tuple(_story(**story) for story in _TEXTS["stories"])


def draw(random: Random) -> tuple[str, dict[str, Any]]:
    """A summary (the key) and the row of a post that it fits, without its id."""
    story = random.choice(STORIES)
    slots = {slot: random.choice(values) for slot, values in story.slots.items()}
    title, opening, question = (
        _sentence(random.choice(alternatives), slots)
        for alternatives in (story.titles, story.openings, story.questions)
    )
    choose = Random("\n".join(slots.values())).choice  # by the slots: see choice 1
    summary = _sentence(choose(story.summaries), slots)
    facts = [_sentence(fact, slots) for fact in story.facts]
    random.shuffle(facts)
    asides = [_sentence(aside, slots) for aside in story.asides]
    post = _tell(random, [opening, *facts], asides, question)
    row = {"subreddit": story.subreddit, "title": title, "post": post, "summary": summary}
    return summary, row


def _sentence(text: str, slots: dict[str, str]) -> str:
    """The text with its slots filled, beginning with a capital."""
    filled = text.format(**slots)
    return filled[0].upper() + filled[1:]


def _tell(random: Random, told: list[str], asides: list[str], question: str) -> str:
    """The opening and facts with asides among them, then the question, in paragraphs."""
    first = [random.choice(_TEXTS["greetings"])] if random.random() < 0.4 else []
    last = [random.choice(_TEXTS["thanks"])] if random.random() < 0.4 else []
    asides = random.sample(asides, len(asides))
    wanted = random.randint(1, 3)
    middle = list(told)
    while asides and (
        wanted > 0 or len(" ".join([*first, *middle, question, *last]).split()) < _SHORTEST
    ):
        middle.insert(random.randint(1, len(middle)), asides.pop())  # 0 is the opening's place
        wanted -= 1
    before_question, in_the_middle = len(first) + len(middle), len(first) + len(middle) // 2
    breaks = random.choice(((), (before_question,), (before_question, in_the_middle)))
    post, *others = [*first, *middle, question, *last]
    for index, sentence in enumerate(others, start=1):
        post += ("\n\n" if index in breaks else " ") + sentence
    return post
