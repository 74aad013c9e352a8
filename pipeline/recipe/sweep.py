"""Sweeps: one file, one recipe for each combination of values.

`sweep: {KEY: [VALUE, ...]}` at the top of a recipe, where KEY is any dotted key of it, as `--set`
writes it. A combination of values is a point. Its recipe is the file's with the values laid over,
and is checked as any other; a problem that several points share is listed once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from typing import Any

from pipeline.errors import Problem, suggest
from pipeline.recipe.overlays import merged, set_key
from pipeline.recipe.schema import Recipe
from pipeline.recipe.secrets import key_problems
from pipeline.recipe.strict_yaml import Raw

KEY = "sweep"
Values = dict[str, Any]  # of a point, by swept key
_MOST_POINTS = 1000
MOST_PARTS = 20  # of a key
_IN_TEXT = ("data", "benchmarks", "judge")  # where plain text may stand for a mapping
_REFUSED = {
    KEY: "a sweep holds no other; name several keys in it, and their product is taken",
    "variants": "a variant is chosen with --variant, and may hold a sweep of its own",
    "name": "names the results and decides none of them; take it out",
    "seeds": "every point runs with every seed: write `seeds: [0, 1, 2]` beside `sweep`",
    "task": "one recipe is one task; write a recipe for each",
    "evaluate": "every point is asked every benchmark: write all of them in `evaluate`",
    "baseline": "says what a report compares with, which decides no result; take it out",
    "published": "holds numbers to compare with, which change nothing; take it out",
    "launch": "says where steps run, which decides no result; give it with --launch",
    "warn_at": "says when a step warns, which decides no result; take it out",
}


def take_sweep(raw: Raw) -> tuple[Raw, dict[str, list[Any]], list[Problem]]:
    """Split a recipe that has been read: the rest, the values of its swept keys, and problems.

    A key that has a problem is not among the swept ones; neither is one whose values are null.
    """
    rest = {key: value for key, value in raw.items() if key != KEY}
    given = {} if raw.get(KEY) is None else raw[KEY]
    if secrets := list(key_problems({KEY: given})):  # before a sentence repeats one
        return rest, {}, secrets
    if not isinstance(given, dict):
        example = "{stages.bash.beta: [0.1, 0.2]}"
        return rest, {}, [Problem(KEY, f"is a mapping of keys to lists of values: {example}")]
    given = {key: values for key, values in given.items() if values is not None}
    found = {key: _problem(rest, key, values, list(given)) for key, values in given.items()}
    problems = [Problem(f"{KEY}.{key}", text) for key, text in found.items() if text]
    swept = {key: values for key, values in given.items() if found[key] is None}
    if (count := prod(map(len, swept.values()))) > _MOST_POINTS:
        message = f"comes to {count} points; at most {_MOST_POINTS} are planned: take values out"
        return rest, {}, [*problems, Problem(KEY, message)]
    return rest, swept, problems


def points_of(rest: Raw, swept: dict[str, list[Any]]) -> Iterator[tuple[Values, Any]]:
    """Every combination of values, the last key's first, and the recipe as it is read there."""
    for chosen in product(*swept.values()):
        values = dict(zip(swept, chosen, strict=True))
        raw = merged(rest, {})
        for key, value in values.items():
            set_key(raw, key.split("."), value)
        yield values, raw


def join_problems(
    swept: dict[str, list[Any]], found: Sequence[tuple[Values, Sequence[Problem]]]
) -> list[Problem]:
    """The problems of all points, each once, with the values it holds for where it is not all."""
    points: dict[Problem, list[Values]] = {}
    for values, problems in found:
        for problem in dict.fromkeys(problems):
            points.setdefault(problem, []).append(values)
    joined = []
    for problem, having in points.items():
        below = any(f"{problem.key}.".startswith(f"{key}.") for key in swept)
        key = f"{KEY}.{problem.key}" if below else problem.key
        where = "" if len(having) == len(found) else f" (where {_format_values(swept, having)})"
        joined.append(Problem(key, problem.message + where))
    return joined


def _format_values(swept: dict[str, list[Any]], having: list[Values]) -> str:
    """Such as 'stages.bash.beta is 0.4': the keys of which only some values are among points."""
    words = []
    for key, values in swept.items():
        here = [value for value in values if any(one[key] is value for one in having)]
        if len(here) < len(values):
            words.append(f"{key} is {' or '.join(map(str, here))}")
    return " and ".join(words or [f"{key} is {value}" for key, value in having[0].items()])


def _problem(rest: Raw, key: str, values: Any, keys: list[str]) -> str | None:
    """What is wrong with a swept key, or None."""
    return _key_problem(rest, key.split(".")) or _values_problem(values) or _clash(key, keys)


def _key_problem(rest: Raw, parts: list[str]) -> str | None:
    top = parts[0]
    if top in _REFUSED:
        return f"{top} cannot be swept: {_REFUSED[top]}"
    known = [name for name in Recipe.model_fields if name not in _REFUSED]
    if top not in known:
        hint = suggest(top, list(Recipe.model_fields)) or f"; keys: {', '.join(known)}"
        return f"{top!r} is not a key of a recipe{hint}"
    if not all(parts) or len(parts) > MOST_PARTS:
        return "write the key as --set does, such as stages.bash.beta"
    stages = rest.get("stages")
    if top == "stages" and isinstance(stages, dict):
        if len(parts) == 1:
            return "name a key of a stage, such as stages.bash.beta"
        if parts[1] not in stages:
            names = list(map(str, stages))
            return f"no stage {parts[1]!r}{suggest(parts[1], names)}; stages: {', '.join(names)}"
    node: Any = rest
    for place, part in enumerate(parts[:-1], start=1):
        node = node.get(part)
        if node is None or (isinstance(node, str) and top in _IN_TEXT):
            return None  # a new mapping is made there
        if not isinstance(node, dict):
            return f"{'.'.join(parts[:place])} is {node!r}, which holds no keys"
    return None


def _values_problem(values: Any) -> str | None:
    if not isinstance(values, list):
        return f"is a list of values to try, such as [{values}, ...]"
    if len(values) < 2:
        count = "no value" if not values else "one value"
        return f"has {count}; give at least two, or set the key itself and take it out of the sweep"
    for place, value in enumerate(values):
        if any(_alike(value, other) for other in values[:place]):
            return f"holds {value} twice"
    return None


def _clash(key: str, keys: list[str]) -> str | None:
    above = next((other for other in keys if key.startswith(f"{other}.")), None)
    return None if above is None else f"lies in {above}, which is swept too; sweep one of them"


def _alike(one: Any, other: Any) -> bool:
    """Whether two values are the same: 1 and 1.0 are, 1 and true are not."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)
