"""Several recipes as one plan, whose stages a report puts into one table.

A stage is called RECIPE/STAGE. Where a stage of a later recipe takes the very steps that one of an
earlier recipe takes, the two are one, under the earlier name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from eval.report.types import Joined
from pipeline.errors import InputError
from pipeline.plan.plan import Plan
from pipeline.plan.swept import label_of
from pipeline.recipe.schema import Recipe
from pipeline.stages.builder import PlannedStage
from pipeline.steps.spec import StepSpec

_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")


def join(plans: Sequence[Plan]) -> Plan:
    """Return the plan of all stages; of one recipe its plan as it is.

    Its recipe is the first one with the names, seeds, stages and benchmarks of all, for a report:
    nothing is planned from it.

    Raises:
        InputError: where two recipes have the same name.
    """
    if len(plans) == 1:
        return plans[0]
    names = Counter(plan.recipe.name for plan in plans)
    if twice := [name for name, times in names.items() if times > 1]:
        raise InputError(
            f"{names[twice[0]]} of these recipes are called {twice[0]}, and a report tells stages "
            "apart by the recipe's name: change `name:` in one; no step runs again for that"
        )
    parts: list[Plan] = []
    for plan in plans:
        parts.append(_named(plan, _labels(plan, parts)))
    recipes = [_with_names(plan.recipe, plan.recipe.name) for plan in plans]
    recipe = recipes[0].model_copy(
        update={
            "name": " and ".join([", ".join([*names][:-1]), [*names][-1]]),
            "seeds": _each_once(recipe.seeds for recipe in recipes),
            "stages": _first_of_each(recipe.stages for recipe in recipes),
            "evaluate": _each_once(recipe.evaluate for recipe in recipes),
            "sweep": {},
        }
    )
    return Plan(
        recipe,
        stages=_stages(parts),
        steps=_distinct(part.steps for part in parts),
        results=_first_of_each(part.results for part in parts),
        overlaps=_all_of_each(part.overlaps for part in parts),
        stage_steps=_first_of_each(part.stage_steps for part in parts),
        all_steps=_all_of_each(part.all_steps for part in parts),
        models=_first_of_each(part.models for part in parts),
        parts=parts,
    )


def labels_of(plan: Plan, name: str) -> list[str]:
    """What joined plans call a stage, or the points of a swept one: the name itself if unknown."""
    found = [
        label
        for part in plan.parts
        for label, stage in part.stages.items()
        if name in (label, stage.name)
    ]
    return found or [name]


def joined_facts(plan: Plan) -> Joined | None:
    """What a report of several recipes says of each; None for one recipe."""
    if not plan.parts:
        return None
    return Joined(
        fingerprints={part.recipe.name: part.fingerprint for part in plan.parts},
        same={
            label_of(part.recipe, stage.name, stage.values): label
            for part in plan.parts
            for label, stage in part.stages.items()
            if stage.name != plan.stages[label].name
        },
    )


def _labels(plan: Plan, earlier: Sequence[Plan]) -> dict[str, str]:
    """The labels of a plan, each with what it is called beside the earlier ones."""
    return {
        label: next(
            (other for part in earlier for other in part.stages if _same(plan, label, part, other)),
            f"{plan.recipe.name}/{label}",
        )
        for label in plan.stages
    }


def _same(plan: Plan, label: str, other_plan: Plan, other: str) -> bool:
    """Whether two stages take the same steps in the seeds and benchmarks that both have."""
    pairs: list[tuple[list[StepSpec], list[StepSpec]]] = [
        (plan.stage_steps[label, seed], other_plan.stage_steps[other, seed])
        for seed in plan.recipe.seeds
        if seed in other_plan.recipe.seeds
    ]
    pairs += [
        ([step], [other_plan.results[other, benchmark, seed]])
        for (one, benchmark, seed), step in plan.results.items()
        if one == label and (other, benchmark, seed) in other_plan.results
    ]
    return any(ours for ours, _ in pairs) and all(
        [step.fingerprint for step in ours] == [step.fingerprint for step in theirs]
        for ours, theirs in pairs
    )


def _named(plan: Plan, labels: Mapping[str, str]) -> Plan:
    """The plan with other labels, and the recipe's name before the names of its stages."""
    before = f"{plan.recipe.name}/"
    return replace(
        plan,
        stages={
            labels[label]: PlannedStage(
                before + stage.name,
                _with_names(stage.recipe, plan.recipe.name),
                stage.values,
                {before + name: labels[other] for name, other in stage.siblings.items()},
            )
            for label, stage in plan.stages.items()
        },
        results={(labels[label], *rest): step for (label, *rest), step in plan.results.items()},
        stage_steps={(labels[label], seed): one for (label, seed), one in plan.stage_steps.items()},
        all_steps={(labels[label], seed): one for (label, seed), one in plan.all_steps.items()},
        models={(labels[label], seed): model for (label, seed), model in plan.models.items()},
    )


def _with_names(recipe: Recipe, name: str) -> Recipe:
    """The recipe with its name before the names of its stages."""

    def named(stage: str | None) -> str | None:
        return stage and f"{name}/{stage}"

    benchmarks = dict(recipe.benchmarks)
    for benchmark, given in recipe.benchmarks.items():  # of `gap` and `recovery`
        if getattr(given, "fixed", None) is not None:
            benchmarks[benchmark] = given.model_copy(update={"fixed": named(given.fixed)})
    return recipe.model_copy(
        update={
            "stages": {
                named(stage): options.model_copy(update={"start": named(options.start)})
                for stage, options in recipe.stages.items()
            },
            "published": {named(stage): one for stage, one in recipe.published.items()},
            "baseline": named(recipe.baseline),
            "benchmarks": benchmarks,
        }
    )


def _stages(parts: Sequence[Plan]) -> dict[str, PlannedStage]:
    """The stages of all, each beside those of the other recipes too.

    A stage of another recipe that a sweep makes several of is none to be beside; each label is.
    """
    beside: dict[str, str] = {}
    for part in parts:
        labels = [(stage.name, label) for label, stage in part.stages.items()]
        times = Counter(name for name, _ in labels)
        beside |= {label: label for _, label in labels}
        beside |= {name: label for name, label in labels if times[name] == 1}
    stages: dict[str, PlannedStage] = {}
    for part in parts:
        for label, stage in part.stages.items():
            known = stages.get(label, stage)
            siblings = {**beside, **stage.siblings, **known.siblings}
            stages[label] = replace(known, siblings=siblings)
    return stages


def _first_of_each(dicts: Iterable[Mapping[_Key, _Value]]) -> dict[_Key, _Value]:
    found: dict[_Key, _Value] = {}
    for one in dicts:
        found = {**found, **one, **found}
    return found


def _all_of_each(dicts: Iterable[Mapping[_Key, list[StepSpec]]]) -> dict[_Key, list[StepSpec]]:
    found: dict[_Key, list[StepSpec]] = {}
    for one in dicts:
        for key, steps in one.items():
            found[key] = _distinct([found.get(key, []), steps])
    return found


def _each_once(lists: Iterable[Sequence[_Key]]) -> list[_Key]:
    return list(dict.fromkeys(one for several in lists for one in several))


def _distinct(lists: Iterable[Sequence[StepSpec]]) -> list[StepSpec]:
    """Steps in order, each once."""
    found: dict[str, StepSpec] = {}
    for steps in lists:
        for step in steps:
            found.setdefault(step.fingerprint, step)
    return list(found.values())
