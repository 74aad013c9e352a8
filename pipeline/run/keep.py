"""`keep: final`: weights that no later step reads are removed as soon as that is so.

What stays is the model that each stage ends with. What goes is the models of earlier rounds, and
merged copies that only training started from. Their records stay, so reports are whole. If an edit
makes a step read such weights again, the step that makes them is run again first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from pipeline.plan.plan import Plan
from pipeline.run.clean import pointed_at
from pipeline.steps import artifact
from pipeline.steps.spec import StepSpec, step_folder


def drop_weights(plan: Plan, runs: Path) -> None:
    """Remove the weights that nothing needs, if the recipe says so; harmless when called often."""
    if plan.recipe.keep != "final":
        return
    final = {
        step.fingerprint for model in plan.models.values() for step in (model.base, model.adapter)
        if step is not None
    }  # fmt: skip
    spare = [step for step in plan.steps if step.fingerprint not in final and _saves_weights(step)]
    if not spare:
        return
    read = _read_by([step for step in plan.steps if not _is_finished(step, runs)])
    others = pointed_at(runs, without=plan.recipe.name)  # another recipe's stage may end with it
    for step in spare:
        folder = step.directory(runs)
        is_shared = step_folder(step.kind, step.fingerprint) in others
        if step.fingerprint not in read and not is_shared and _is_finished(step, runs):
            artifact.remove_weights(folder)


def needed_again(
    steps: Iterable[StepSpec], to_run: Collection[StepSpec], runs: Path
) -> list[StepSpec]:
    """Finished steps whose weights were removed, and that steps to run read, in plan order."""
    wanted, found = list(to_run), []
    for step in reversed(list(steps)):  # what reads a step comes after it
        if step.fingerprint in _read_by(wanted) and artifact.lacks_weights(step.directory(runs)):
            found.append(step)
            wanted.append(step)
    return found[::-1]


def _saves_weights(step: StepSpec) -> bool:
    return step.kind in ("train", "merge")


def _is_finished(step: StepSpec, runs: Path) -> bool:
    return artifact.is_finished(step.directory(runs))


def _read_by(steps: Iterable[StepSpec]) -> set[str]:
    """Fingerprints of the steps that these read."""
    return {
        value.fingerprint
        for step in steps
        for value in step.inputs.values()
        if isinstance(value, StepSpec)
    }
