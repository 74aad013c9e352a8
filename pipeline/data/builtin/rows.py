"""Rows of the built-in data sets, generated on demand, so that demo and tests download nothing.

Words and templates are YAML files. maths.py, posts.py and chat.py fill them in at random; this
module turns their draws into rows, in fixed splits.

1. A (set, split) pair is one stream of draws from a Random seeded with its name, read in order, so
   rows never change and the first n rows cost only about n draws.
2. Splits are disjoint by construction. A draw has a key that its prompt determines: the prompt
   itself, or a post's summary, so that variants of a post stay in one split. The sha256 of the
   key, mod 10, decides its only split (0-5 train, 6-7 test, 8-9 preferences); draws for other
   splits, and keys seen before, are dropped.
3. Test splits use the templates of the train splits with other facts. They measure whether training
   worked, not generalisation to new kinds of tasks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import islice
from random import Random
from typing import Any

SPLITS: dict[str, tuple[str, ...]] = {
    "maths": ("train", "test", "preferences"),
    "posts": ("train", "test"),
    "chat": ("train", "test", "preferences"),
}
TASK_OF: dict[str, str] = {"maths": "gsm8k", "posts": "tldr", "chat": "chat"}  # the rows' task
SIZES: dict[str, int] = {"train": 4000, "test": 1000, "preferences": 2000}
_SPLIT_OF_REMAINDER = ("train",) * 6 + ("test",) * 2 + ("preferences",) * 2


def builtin_rows(
    name: str, split: str = "train", *, limit: int | None = None
) -> list[dict[str, Any]]:
    """Rows of a built-in data set, always the same and in the same order.

    Args:
        name: maths, posts or chat.
        split: train, test or (maths and chat only) preferences.
        limit: the number of rows, from the start; all if None or too large.

    Raises:
        ValueError: if name, split or limit is not valid; it lists what is.
    """
    if name not in SPLITS:
        raise ValueError(f"There is no built-in data set {name!r}; valid: {', '.join(SPLITS)}.")
    if split not in SPLITS[name]:
        valid = ", ".join(SPLITS[name])
        raise ValueError(f"Built-in data set {name!r} has no split {split!r}; valid: {valid}.")
    if limit is not None and limit < 0:
        raise ValueError(f"limit is {limit}; valid: None or a whole number from 0 up.")
    size = SIZES[split] if limit is None else min(limit, SIZES[split])
    return list(islice(_stream(name, split), size))


def split_of(key: str) -> str:
    """The only split that may hold the row with this key."""
    digest = hashlib.sha256(key.encode("utf-8")).digest()
    return _SPLIT_OF_REMAINDER[int.from_bytes(digest, "big") % len(_SPLIT_OF_REMAINDER)]


def _stream(name: str, split: str) -> Iterator[dict[str, Any]]:
    """Endless draws of one set, without those of other splits and duplicates."""
    random = Random(f"{name}/{split}")
    seen: set[str] = set()
    while True:
        key, row = _draw(random, name, pairs=split == "preferences")
        if key not in seen and split_of(key) == split:
            seen.add(key)
            if name == "posts":
                row = {"id": f"{name}-{split}-{len(seen) - 1}", **row}
            yield row


def _draw(random: Random, name: str, *, pairs: bool) -> tuple[str, dict[str, Any]]:
    # Imported here, so that a command that only names a set does not load its words.
    from pipeline.data.builtin import chat, maths, posts

    if name == "posts":
        return posts.draw(random)
    prompt, good, worse = chat.draw(random) if name == "chat" else maths.draw(random, pairs)
    asked, chosen, rejected = (
        [{"role": role, "content": text}]
        for role, text in (("user", prompt), ("assistant", good), ("assistant", worse))
    )
    if pairs:
        return prompt, {"prompt": asked, "chosen": chosen, "rejected": rejected}
    if name == "maths":
        return prompt, {"question": prompt, "answer": good}
    return prompt, {"messages": asked + chosen}
