"""Says which steps are done, which will run, and why, in words.

Each run leaves `runs/<recipe>/plan.json`: the identity of every step, under a name that stays the
same when its options change. Comparing with it tells what has changed since.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from pipeline import artifact, shipped
from pipeline.plan import Plan, Step
from pipeline.run import launch_command
from pipeline.step import PROGRESS, SPEC

MEMORY = "plan.json"


def _name(step: Step) -> str:
    return f"{step.stage}/{step.title}/seed {step.seed}"


def remember(plan: Plan, runs: Path) -> None:
    """Write the identities of a plan's steps, for `explain` to compare with later."""
    identities = {_name(step): step.identity for step in plan.steps}
    artifact.write_json(runs / plan.recipe.name / MEMORY, identities)


def explain(plan: Plan, runs: Path, launch: shipped.Launch) -> str:
    """Return the steps of a plan as text: state, reason, and the command of each."""
    memory_file = runs / plan.recipe.name / MEMORY
    memory = artifact.read_json(memory_file) if memory_file.exists() else {}
    lines = []
    done = 0
    for number, step in enumerate(plan.steps, start=1):
        directory = step.directory(runs)
        several = f", seed {step.seed}" if len(plan.recipe.seeds) > 1 else ""
        state = _state(step, directory, memory)
        done += state == "done"
        lines.append(f"{number:>3}  {step.stage}{several}: {step.title} - {state}")
        lines.append(f"     {directory}")
        if state != "done":
            lines.append(f"     {shlex.join(launch_command(launch, [directory / SPEC]))}")
    total = len(plan.steps)
    lines.append(f"{total} steps: {done} done, {total - done} to run")
    return "\n".join(lines)


def _state(step: Step, directory: Path, memory: dict[str, Any]) -> str:
    if artifact.is_finished(directory):
        return "done"
    if any(directory.glob("shards/*.jsonl")) or any(directory.glob("checkpoints/checkpoint-*")):
        return "to run: it was stopped midway and goes on from there"
    if (directory / PROGRESS).exists():
        return "to run: it was stopped before anything could be kept"
    before = memory.get(_name(step))
    if before is None:
        return "to run: new"
    changes = list(_changes(before, step.identity, ""))
    if not changes:
        return "to run: not finished yet"
    return "to run: changed since the last run: " + "; ".join(changes[:4])


def _changes(before: Any, now: Any, key: str) -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        found = []
        for name in sorted(before.keys() | now.keys()):
            found += _changes(before.get(name), now.get(name), f"{key}.{name}".strip("."))
        return found
    if before == now:
        return []
    if key.startswith("inputs."):
        noun = key.removeprefix("inputs.").split(".")[0]
        is_digest = all(isinstance(value, str) and len(value) == 64 for value in (before, now))
        if is_digest or isinstance(before, dict) != isinstance(now, dict):
            return [f"its input {noun} is different"]
    return [f"{key.removeprefix('options.').removeprefix('inputs.')} {before} -> {now}"]
