"""How to reproduce a report: the recipe, commands, commits, and every step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import yaml

from eval.report.types import Provenance, ProvenanceStep
from pipeline.plan.changes import step_names
from pipeline.steps.spec import step_folder

if TYPE_CHECKING:
    from pipeline.plan.plan import Plan
    from pipeline.recipe.schema import Recipe
    from pipeline.steps.record import Records


def provenance_of(plan: Plan, records: Records, commands: Sequence[str]) -> Provenance:
    """Describe a plan.

    Args:
        plan: of a recipe, or of several.
        records: fingerprint of a finished step -> its record.
        commands: those that make the results, such as 'bashrac run demo'.
    """
    names: dict[str, str] = {}
    for part in plan.parts or [plan]:
        before = f"{part.recipe.name}/" if plan.parts else ""
        for fingerprint, name in step_names(part.steps).items():
            names.setdefault(fingerprint, before + name)
    commits = {record.get("git_commit") for record in records.values()}
    return Provenance(
        fingerprint=plan.fingerprint,
        recipe="---\n".join(_as_run(part.recipe) for part in plan.parts or [plan]),
        commands=list(commands),
        commits=sorted(commit for commit in commits if commit),
        steps=[
            ProvenanceStep(
                names[step.fingerprint],
                step_folder(step.kind, step.fingerprint),
                records.get(step.fingerprint, {}).get("seconds"),
            )
            for step in plan.steps
        ],
    )


def _as_run(recipe: Recipe) -> str:
    raw = recipe.model_dump(mode="json", by_alias=True, exclude_unset=True)
    raw = {key: value for key, value in raw.items() if value != {}}
    return yaml.safe_dump(
        raw, sort_keys=False, allow_unicode=True, width=100, default_flow_style=None
    )
