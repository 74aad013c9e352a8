"""The model as it is: nothing is trained, and a table gets a row for the untrained model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pipeline.errors import Problem
from pipeline.recipe.schema import Recipe, StageOptions

if TYPE_CHECKING:
    from pipeline.stages.builder import Builder
    from pipeline.steps.spec import Model


class Options(StageOptions):
    """A `base` stage has no keys of its own, and none of the others'."""

    method: Literal["base"]


def check(name: str, stage: Options, recipe: Recipe) -> list[Problem]:
    """Refuse what only stages that train have, and stages that would start here."""
    given = sorted(stage.model_fields_set - {"method"})
    problems = [
        Problem(
            f"stages.{name}.{'from' if key == 'start' else key}",
            "a base stage evaluates the recipe's model as it is; take this key out",
        )
        for key in given
    ]
    for other, options in recipe.stages.items():
        if options.start == name:
            message = f"leave it out to start from the model itself, which {name} evaluates"
            problems.append(Problem(f"stages.{other}.from", message))
    return problems


def plan(stage: Options, build: Builder) -> Model:
    """No step at all."""
    del stage
    return build.start
