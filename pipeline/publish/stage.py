"""Finds the results of a finished stage, given as RECIPE:STAGE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import InputError, suggest
from pipeline.models.trust import Trust
from pipeline.plan.load import command_for, load_recipe
from pipeline.plan.plan import Plan, make_plan
from pipeline.steps import artifact
from pipeline.steps.spec import Model, StepSpec


@dataclass(frozen=True)
class FinishedStage:
    """A stage whose weights exist.

    Attributes:
        plan: the plan of its recipe.
        name: the stage's name.
        seed: which of the recipe's seeds.
        runs: the folder of all results.
    """

    plan: Plan
    name: str
    seed: int
    runs: Path

    @property
    def model(self) -> Model:
        """The weights it ends with."""
        return self.plan.models[self.name, self.seed]

    @property
    def step(self) -> StepSpec:
        """The step that holds its own weights: the adapter's where it trained one."""
        step = self.model.adapter or self.model.base
        assert step is not None  # as `find_stage` has checked
        return step

    @property
    def folder(self) -> Path:
        """The folder of that step, with `model/` and `record.json`."""
        return self.step.directory(self.runs)

    @property
    def base(self) -> str:
        """What its adapter is for: a folder, or the recipe's `model:`."""
        base = self.model.base
        return self.plan.recipe.model if base is None else str(base.directory(self.runs))

    @property
    def trust(self) -> Trust:
        """What the files of the recipe's model may do."""
        return Trust.of(self.plan.recipe)

    @property
    def revision(self) -> str | None:
        """The hub commit of the recipe's `model:`, None where it is not on the hub."""
        bases = (step.inputs.get("base") for step in self.plan.steps)
        places = (base for base in bases if isinstance(base, dict) and "hub" in base)
        return next((place["revision"] for place in places), None)


def find_stage(
    named: str,
    runs: Path,
    *,
    overrides: Sequence[str] = (),
    variant: str | None = None,
    seed: int | None = None,
) -> FinishedStage:
    """Find a finished stage by RECIPE:STAGE, such as `mine.yaml:rac`.

    Args:
        named: the recipe's file or shipped name, a colon, and the stage's name.
        runs: the folder of all results.
        overrides: `key=value` texts the recipe was run with.
        variant: one of the recipe's variants, by default the first.
        seed: which of the recipe's seeds; by default its first.

    Raises:
        InputError: when there is no such recipe, variant, stage or seed, or it is not finished.
    """
    source, colon, name = named.rpartition(":")
    if not colon or not source:
        raise InputError(f"{named}: write it as RECIPE:STAGE, such as mine.yaml:rac")
    recipe = load_recipe(source, overrides, variant)
    plan = make_plan(recipe)
    if name not in plan.stages:
        points = [label for label, stage in plan.stages.items() if stage.name == name]
        if points:
            raise InputError(f"{name} of {source} is swept; choose one of {', '.join(points)}")
        hint, known = suggest(name, list(plan.stages)), ", ".join(plan.stages)
        raise InputError(f"{source} has no stage {name!r}{hint}; stages: {known}")
    chosen = recipe.seeds[0] if seed is None else seed
    if chosen not in recipe.seeds:
        raise InputError(
            f"{source} has no seed {chosen}; seeds: {', '.join(map(str, recipe.seeds))}"
        )
    if recipe.points:  # a stage is published with the recipe of its point, which sweeps nothing
        planned = plan.stages[name]
        plan, name = make_plan(planned.recipe), planned.name
    model = plan.models[name, chosen]
    made = [step for step in (model.base, model.adapter) if step is not None]
    if not made:
        raise InputError(f"{named} trains nothing: it is {recipe.model} itself")
    for step in made:
        folder = step.directory(runs)
        if not artifact.is_finished(folder) or artifact.lacks_weights(folder):
            command = command_for("run", source, overrides, variant, runs)
            raise InputError(
                f"{named}, seed {chosen}, is not finished under {runs}; `{command}` makes it"
            )
        artifact.verify(folder)
    return FinishedStage(plan, name, chosen, runs)
