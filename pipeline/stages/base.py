"""The untrained model: nothing is trained, it only gets a row in the tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pipeline.errors import Problem
from pipeline.recipe.schema import Recipe, StageOptions

if TYPE_CHECKING:
    from pipeline.stages.builder import Builder
    from pipeline.steps.spec import Model


class Options(StageOptions):
    """A `base` stage has no keys except `method`."""

    method: Literal["base"]


def check(name: str, stage: Options, recipe: Recipe) -> list[Problem]:
    """Refuse keys of training stages, and stages that start from this one."""
    given = sorted(stage.model_fields_set - {"method"})
    problems = [
        Problem(
            f"stages.{name}.{'from' if key == 'start' else key}",
            "a base stage evaluates the recipe's model as it is; remove this key",
        )
        for key in given
    ]
    for other, options in recipe.stages.items():
        if options.start == name:
            message = f"remove it to start from the recipe's model, which is what {name} evaluates"
            problems.append(Problem(f"stages.{other}.from", message))
    return problems


def plan(stage: Options, build: Builder) -> Model:
    """No steps."""
    del stage
    return build.start
