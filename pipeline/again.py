"""A command said again: to go on where it stopped, or to make the same results elsewhere."""

from __future__ import annotations

import shlex
from argparse import Namespace
from pathlib import Path
from typing import Any


def making_command(given: Any) -> str:
    """The command that makes the results, wherever and on whatever they were made."""
    where = ("runs", "stages", "launch", "through", "max_judge_calls")
    kept = {name: value for name, value in vars(given).items() if name not in where}
    return retry_command(Namespace(**kept))


def retry_command(given: Any, *more: str) -> str:
    """The command as it was given, with the options that it has, and more words."""
    if "to" in given:
        words = ["bashrac", "push", given.named]
    elif "benchmarks" in given:
        words = ["bashrac", "evaluate", given.model]
    else:
        words = ["bashrac", "run", given.recipe]
    options = (
        ("to", "--to"), ("benchmarks", "--benchmark"), ("data", "--data"), ("limit", "--limit"),
        ("task", "--task"), ("judge", "--judge"), ("judge_url", "--judge-url"),
        ("variant", "--variant"), ("overrides", "--set"), ("seed", "--seed"), ("stages", "--stage"),
        ("launch", "--launch"), ("through", "--through"), ("runs", "--runs"),
        ("max_judge_calls", "--max-judge-calls"),
    )  # fmt: skip
    for name, flag in options:
        value = getattr(given, name, None)
        value = shlex.join(value) or None if isinstance(value, tuple) else value
        for one in value if isinstance(value, list) else [value]:
            if one is not None and one != Path("runs"):
                words += [flag, str(one)]
    return shlex.join([*words, *more])
