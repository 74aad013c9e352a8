"""`keep: final`: weights that no later step reads are removed as soon as that is so.

What stays is the model that each stage ends with. What goes is the models of earlier rounds, and
merged copies that only training started from. Their records stay, so reports are whole. If an edit
makes a step read such weights again, the step that makes them is run again first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from pipeline.errors import InputError
from pipeline.plan.plan import Plan
from pipeline.run.clean import in_use, pointed_at, step_folders
from pipeline.steps import artifact
from pipeline.steps.spec import StepSpec, step_folder


def drop_weights(plan: Plan, runs: Path) -> None:
    """Remove the weights that nothing needs, if the recipe says so; harmless when called often."""
    if plan.recipe.keep != "final":
        return
    final, read = _final(plan), _read_by([one for one in plan.steps if not _is_finished(one, runs)])
    spare = [
        step
        for step in plan.steps
        if step.kind in ("train", "merge")
        and step.fingerprint not in final | read
        and _is_finished(step, runs)
    ]
    if not spare:
        return
    try:  # another recipe's stage may end with it, or another run read it at the moment
        elsewhere = pointed_at(runs, without=plan.recipe.name) | in_use(step_folders(runs))[1]
        for step in spare:
            if step_folder(step.kind, step.fingerprint) not in elsewhere:
                artifact.remove_weights(step.directory(runs))
    except InputError:  # a file that cannot be read: without it nothing tells what is needed
        return


def needed_again(plan: Plan, to_run: Collection[StepSpec], runs: Path) -> list[StepSpec]:
    """Finished steps whose weights were removed, though a step to run or a stage needs them now.

    In plan order, with those that they need themselves.
    """
    final, wanted, found = _final(plan), list(to_run), []
    for step in reversed(plan.steps):  # what reads a step comes after it
        is_needed = step.fingerprint in final or step.fingerprint in _read_by(wanted)
        if is_needed and artifact.lacks_weights(step.directory(runs)):
            found.append(step)
            wanted.append(step)
    return found[::-1]


def _final(plan: Plan) -> set[str]:
    """Fingerprints of the steps that made the models which stages end with."""
    models = plan.models.values()
    steps = [step for model in models for step in (model.base, model.adapter)]
    return {step.fingerprint for step in steps if step is not None}


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
