"""From a recipe to steps: what runs, on what, in which order."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from itertools import chain

from eval.benchmarks import registry
from pipeline.errors import InputError, suggest
from pipeline.plan.swept import StageSteps, planned_stages
from pipeline.recipe.registry import method_module
from pipeline.recipe.schema import Recipe
from pipeline.stages.builder import Builder, PlannedStage
from pipeline.steps import artifact
from pipeline.steps.spec import Model, StepSpec


@dataclass
class Plan:
    """Every step of a recipe in the order they can run, each once."""

    recipe: Recipe
    # label -> stage; where there is no sweep, a stage's label is its name
    stages: dict[str, PlannedStage]
    steps: list[StepSpec]
    # (label, benchmark, seed) -> the step that holds the result
    results: dict[tuple[str, str, int], StepSpec]
    # benchmark -> the step that looks for its test rows among the training rows; of a sweep over
    # data several
    overlaps: dict[str, list[StepSpec]]
    # (label, seed) -> the stage's own steps, for cost
    stage_steps: dict[tuple[str, int], list[StepSpec]]
    # (label, seed) -> those and the steps of its evaluation
    all_steps: dict[tuple[str, int], list[StepSpec]]
    # (label, seed) -> the weights the stage ends with
    models: dict[tuple[str, int], Model]
    # of several recipes in one (`eval.report.join`): the plan of each
    parts: list[Plan] = field(default_factory=list)

    @property
    def fingerprint(self) -> str:
        """One digest over all results that the recipe asks for, 64 hex digits.

        It says what was run on what, as a step's does, and does not depend on names of stages.
        """
        # Without benchmarks all steps count, those of stages that are not shown too.
        steps = self.results.values() or chain(*self.stage_steps.values())
        return artifact.fingerprint(sorted({step.fingerprint for step in steps}))

    def seeds_of(self, label: str) -> list[int]:
        """The seeds of a stage: the recipe's, or of several recipes those of its own."""
        return [seed for seed in self.recipe.seeds if (label, seed) in self.stage_steps]

    def labels(self, *stages: str) -> list[str]:
        """The labels that names stand for, in order: a label for itself, a stage for all it has.

        Raises:
            InputError: for an unknown name.
        """
        names = {label: (label, one.name) for label, one in self.stages.items()}
        for stage in stages:
            if not any(stage in both for both in names.values()):
                hint = suggest(stage, list(self.stages))
                raise InputError(f"no stage {stage!r}{hint}; stages: {', '.join(self.stages)}")
        return [label for label, both in names.items() if set(both) & set(stages)]

    def steps_of(self, labels: Collection[str]) -> list[StepSpec]:
        """The steps of these stages and of their evaluation, in order."""
        needed_by = self.needed_by()
        return [
            step
            for step in self.steps
            if any(label in labels for label in needed_by.get(step.fingerprint, ()))
        ]

    def needed_by(self) -> dict[str, list[str]]:
        """Fingerprint of a step -> labels of the stages that need it; it is named after one."""
        found: dict[str, dict[str, None]] = {}
        for (label, _), steps in self.all_steps.items():
            for step in steps if label in self.stages else ():
                found.setdefault(step.fingerprint, {})[label] = None
        return {fingerprint: list(labels) for fingerprint, labels in found.items()}


def make_plan(recipe: Recipe) -> Plan:
    """Expand a checked recipe into steps.

    Raises:
        InputError: when a model or data source cannot be identified (hub not reachable and so on),
            or values of a sweep come to the same steps.
    """
    stages = planned_stages(recipe, lambda point: _stage_steps(make_plan(point)))
    plan = Plan(
        recipe, stages, steps=[], results={}, overlaps={}, stage_steps={}, all_steps={}, models={}
    )
    known: dict[str, StepSpec] = {}
    before = _add_overlaps(plan)
    for seed in recipe.seeds:
        builders: dict[str, Builder] = {}
        for label, planned in stages.items():
            start = builders[planned.start].end if planned.start else Model(base=None)
            builder = builders[label] = Builder(planned, label, seed, start)
            builder.others = builders
            builder.end = method_module(planned.options.method).plan(planned.options, builder)
            plan.models[label, seed] = builder.end
            plan.stage_steps[label, seed] = list(builder.steps)
        for label, builder in builders.items():
            for benchmark in recipe.evaluate:
                result = registry.add_steps(benchmark, builder, builder.end)
                plan.results[label, benchmark, seed] = result
            plan.all_steps[label, seed] = [*before, *builder.steps]
            before = []
            for step in plan.all_steps[label, seed]:
                _add(plan, step, known)
    return plan


def _add(plan: Plan, step: StepSpec, known: dict[str, StepSpec]) -> None:
    """Add a step after those it reads, which may be of a stage further down."""
    if step.fingerprint in known:
        return
    for value in step.inputs.values():
        if isinstance(value, StepSpec):
            _add(plan, value, known)
    known[step.fingerprint] = step
    plan.steps.append(step)


def _add_overlaps(plan: Plan) -> list[StepSpec]:
    """Add the steps that look for test rows among training rows; returns them."""
    label, first = next(iter(plan.stages.items()))
    for recipe in [point.recipe for point in plan.recipe.points] or [plan.recipe]:
        builder = Builder(replace(first, recipe=recipe), label, recipe.seeds[0], Model(base=None))
        for benchmark in recipe.evaluate if recipe.data.train is not None else ():
            step = registry.add_overlap(benchmark, builder)
            found = plan.overlaps.setdefault(benchmark, [])
            if step.fingerprint not in {one.fingerprint for one in found}:
                found.append(step)
    return [step for steps in plan.overlaps.values() for step in steps]


def _stage_steps(plan: Plan) -> StageSteps:
    """Stage -> the fingerprints of its own steps and of its results, over all seeds."""
    recipe = plan.recipe
    return {
        name: tuple(
            step.fingerprint
            for seed in recipe.seeds
            for step in (
                *plan.stage_steps[name, seed],
                *(plan.results[name, benchmark, seed] for benchmark in recipe.evaluate),
            )
        )
        for name in recipe.stages
    }
