"""How to reproduce a report: the recipe, commands, commits, and every step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import yaml

from eval.report.types import Provenance, ProvenanceStep
from pipeline.plan.changes import step_names
from pipeline.steps.spec import step_folder

if TYPE_CHECKING:
    from pipeline.plan.plan import Plan
    from pipeline.steps.record import Records


def provenance_of(plan: Plan, records: Records, command: str) -> Provenance:
    """Describe a plan.

    Args:
        plan: of a recipe.
        records: fingerprint of a finished step -> its record.
        command: the one that makes the results, such as 'bashrac run demo'; '' for none.
    """
    names = step_names(plan.steps)
    raw = plan.recipe.model_dump(mode="json", by_alias=True, exclude_unset=True)
    raw = {key: value for key, value in raw.items() if value != {}}
    commits = {record.get("git_commit") for record in records.values()}
    return Provenance(
        fingerprint=plan.fingerprint,
        recipe=yaml.safe_dump(
            raw, sort_keys=False, allow_unicode=True, width=100, default_flow_style=None
        ),
        commands=[command] if command else [],
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
