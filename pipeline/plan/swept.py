"""The stages of a plan: those of its recipe, and of a swept one what each is at the points.

Points at which every step of a stage is the same share the stage. A swept key matters for a stage
where changing it alone changes one of these steps, and stands in the stage's label with its value:
`bash@beta=0.1`, and of a stage trained from that `bash-dpo@bash.beta=0.1`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from pipeline.errors import Problem, RecipeError
from pipeline.recipe.schema import Recipe, SweepPoint
from pipeline.recipe.sweep import KEY
from pipeline.stages.builder import PlannedStage

_UNFIT = re.compile(r"[^A-Za-z0-9._+-]+")  # for a label, which names files and is typed in shells
_LONGEST_WORD = 32
StageSteps = Mapping[str, Hashable]  # stage -> the fingerprints of its steps and results


def planned_stages(
    recipe: Recipe, steps_of: Callable[[Recipe], StageSteps]
) -> dict[str, PlannedStage]:
    """Return the stages of a recipe by label, each after the one it starts from.

    `steps_of` plans a recipe without a sweep.

    Raises:
        RecipeError: where values of a swept key come to the same steps.
    """
    names = list(recipe.stages)
    if not recipe.points:
        beside = {name: name for name in names}
        return {name: PlannedStage(name, recipe, {}, beside) for name in names}
    made = [steps_of(point.recipe) for point in recipe.points]
    if problems := _idle_values(recipe, made):
        raise RecipeError(f"sweep of {recipe.name}", problems)
    at: list[dict[str, str]] = [{} for _ in recipe.points]  # of each point: name -> label
    found: dict[str, tuple[str, dict[str, Any], list[int]]] = {}
    for name in names:
        keys = _mattering(recipe, [one[name] for one in made])
        for place, point in enumerate(recipe.points):
            values = {key: point.values[key] for key in keys}
            label = at[place][name] = label_of(recipe, name, values)
            found.setdefault(label, (name, values, []))[2].append(place)
    stages = {}
    for label, (name, values, places) in found.items():
        beside = {other: {at[place][other] for place in places} for other in names}
        one_each = {other: labels.pop() for other, labels in beside.items() if len(labels) == 1}
        stages[label] = PlannedStage(name, recipe.points[places[0]].recipe, values, one_each)
    return stages


def label_of(recipe: Recipe, name: str, values: Mapping[str, Any]) -> str:
    """What a stage is called at these values of swept keys."""
    if not values:
        return name
    short = {key: _short(name, key) for key in values}
    words = [
        f"{short[key] if list(short.values()).count(short[key]) == 1 else _plain(key)}"
        f"={format_value(recipe.sweep[key], value)}"
        for key, value in values.items()
    ]
    return f"{name}@{','.join(words)}"


def format_value(values: Sequence[Any], value: Any) -> str:
    """A word for one of a swept key's values, other than those of the values before it."""
    words: list[str] = []
    for one in values:
        word = _UNFIT.sub("-", _flat(one))[-_LONGEST_WORD:] or "empty"
        while word in words:
            word += f"-{len(words) + 1}"
        if one is value:
            return word
        words.append(word)
    raise ValueError(f"{value!r} is not among {values}")


def _flat(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return "-".join(map(_flat, value.values() if isinstance(value, dict) else value))
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value)


def _short(name: str, key: str) -> str:
    """A swept key as a stage's label says it: of stages the last part, and whose it is."""
    owner, _, own = _plain(key).partition(".")
    if not key.startswith("stages.") or not own:
        return _plain(key)
    last = own.rpartition(".")[2]
    return last if owner == name.rpartition("/")[2] else f"{owner}.{last}"


def _plain(key: str) -> str:
    return key.removeprefix("stages.")


def _mattering(recipe: Recipe, made: Sequence[Hashable]) -> list[str]:
    """The swept keys of which another value alone makes something else."""
    keys = []
    for key in recipe.sweep:
        found: dict[str, set[Hashable]] = {}
        for point, one in zip(recipe.points, made, strict=True):
            found.setdefault(_others(point, key), set()).add(one)
        if any(len(several) > 1 for several in found.values()):
            keys.append(key)
    return keys


def _others(point: SweepPoint, key: str) -> str:
    """A point but for one key."""
    return repr([value for other, value in point.values.items() if other != key])


def _idle_values(recipe: Recipe, made: Sequence[StageSteps]) -> list[Problem]:
    """Values of swept keys that come to the same steps as others."""
    problems = []
    for key, values in recipe.sweep.items():
        alike: dict[str, list[Any]] = {}
        for value in values:
            here = [
                one
                for point, one in zip(recipe.points, made, strict=True)
                if point.values[key] is value
            ]
            alike.setdefault(repr(here), []).append(value)
        if len(alike) == 1:
            message = "changes no step of any stage, whatever its value; take it out of the sweep"
            problems.append(Problem(f"{KEY}.{key}", message))
            continue
        for same in alike.values():
            if len(same) > 1:
                message = f"{' and '.join(map(str, same))} come to the very same steps; keep one"
                problems.append(Problem(f"{KEY}.{key}", message))
    return problems
