"""What `bashrac status` and `bashrac logs` print about a run, which may be of another shell."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import InputError, suggest, visible
from pipeline.plan.plan import Plan
from pipeline.recipe.schema import Recipe
from pipeline.recipe.shipped import Launch
from pipeline.run.expected import expected_seconds, format_time_left
from pipeline.steps import artifact
from pipeline.steps.artifact import ERROR, SPEC
from pipeline.steps.context import read_progress
from pipeline.steps.lock import held_by
from pipeline.steps.spec import StepSpec
from pipeline.text import format_duration

_FOLLOW_SECONDS = 0.3
_MOST_BYTES = 1 << 20  # of a log's end


def status(
    plan: Plan, runs: Path, launch: Launch, *, seed: int | None, command: Callable[[str], str]
) -> str:
    """Return what has been done of a plan, what is running, and where to look.

    Args:
        plan: of the recipe.
        runs: the folder of all results.
        launch: the recipe's, for expected times while nothing runs.
        seed: only its steps; None for all seeds.
        command: the bashrac command of this name about the recipe.

    Raises:
        InputError: for a seed that the recipe has not.
    """
    recipe = plan.recipe
    if seed is not None and seed not in recipe.seeds:
        raise InputError(f"{recipe.name} has no seed {seed}; {_listed('seeds', recipe.seeds)}")
    steps = [step for step in plan.steps if seed in (None, step.seed)]
    pending = [step for step in steps if not artifact.is_finished(step.directory(runs))]
    holders = {step.fingerprint: held_by(step.directory(runs)) for step in pending}
    running = [step for step in pending if holders[step.fingerprint]]
    # A run may have been given another launch than the recipe's.
    spec = artifact.read_object(running[0].directory(runs) / SPEC) if running else {}
    asked = spec.get("launch", {})
    use_cpu = asked.get("use_cpu", launch.use_cpu)
    seconds = expected_seconds(steps, runs, use_cpu, asked.get("processes", launch.processes))
    rows = [(recipe.name, f"{len(steps) - len(pending)} of {_counted(steps)} done")]
    for step in pending:
        progress = read_progress(step.directory(runs))
        name, done = _name(step, plan), _format_done(progress)
        if holder := holders[step.fingerprint]:
            so_far, left = progress.get("seconds", 0.0), progress.get("left")
            words = [f"{name}: {done or 'starting'}"]
            words += [f"{format_duration(so_far)} so far"] if so_far else []
            words += [f"about {format_duration(left)} left"] if left is not None else []
            rows += [("running", ", ".join(words)), ("", f"by {holder}")]
        elif error := artifact.read_object(step.directory(runs) / ERROR).get("message"):
            rows.append(("failed", f"{name}: {visible(' '.join(str(error).split()))}"))
        elif done:
            rows.append(("stopped", f"{name}: {done}"))
    if pending and not running:
        rows.append(("running", f"nothing; `{command('run')}` runs the rest"))
    if pending:
        rows.append(("left", f"{_counted(pending)}{format_time_left(pending, seconds)}"))
    try:
        newest = find_logs(recipe, runs, stage=None, seed=seed)[0]
        rows.append(("log", f"{newest}; `{command('logs')}` prints its end"))
    except InputError:
        rows.append(("log", "none yet"))
    report = runs / recipe.name / "report.html"
    if not report.is_file():
        rows.append(("report", f"none yet; `{command('report')}` prints one of what is finished"))
    else:
        rows.append(("report", f"{report}{', of an earlier run' if pending else ''}"))
    width = max(len(head) for head, _ in rows)
    return "\n".join(f"{head:<{width}}  {words}" for head, words in rows)


def _name(step: StepSpec, plan: Plan) -> str:
    several = f" (seed {step.seed})" if len(plan.recipe.seeds) > 1 else ""
    return f"{step.stage}{several}, {step.title}"


def _format_done(progress: dict[str, Any]) -> str:
    """Return e.g. '3 of 12 optimizer steps', or ''."""
    if not progress.get("total"):
        return ""
    return f"{progress['done']} of {progress['total']} {progress['unit']}"


def _counted(steps: Sequence[StepSpec]) -> str:
    return f"{len(steps)} step{'s' * (len(steps) != 1)}"


def _listed(noun: str, values: Sequence[Any]) -> str:
    return f"{noun}: {', '.join(map(str, values))}"


# --- logs ---------------------------------------------------------------------------------------


def find_logs(recipe: Recipe, runs: Path, *, stage: str | None, seed: int | None) -> list[Path]:
    """The logs of a recipe, or of one of its stages or seeds, the newest first.

    A stage that is swept has one for each of its points, unless `stage` names a point.

    Raises:
        InputError: when there is none, or no such stage.
    """
    known = list(recipe.stages)
    if stage is not None and stage.partition("@")[0] not in known:
        raise InputError(f"no stage {stage!r}{suggest(stage, known)}; {_listed('stages', known)}")
    found = []
    for log in (runs / recipe.name / "logs").glob("*.log"):
        label, _, of_seed = log.stem.rpartition("-seed")
        is_stage = stage in (None, label, label.partition("@")[0])
        if is_stage and (seed is None or of_seed == str(seed)):
            found.append(log)
    if found:
        return sorted(found, key=lambda log: log.stat().st_mtime_ns, reverse=True)
    whose = recipe.name if stage is None else f"stage {stage} of {recipe.name}"
    where = f"in {runs / recipe.name / 'logs'}" + ("" if seed is None else f" for seed {seed}")
    shared = "" if stage is None else "; what it shares with another stage is logged under that one"
    raise InputError(f"{whose} has no log {where}: it has not been run there{shared}")


def log_text(find: Callable[[], list[Path]], lines: int, *, follow: bool) -> Iterator[str]:
    """The end of the newest log, and where it is followed, what logs are written from then on.

    Args:
        find: returns the logs, the newest first; a run adds one for each stage.
        lines: how many to begin with.
        follow: whether to go on, without end.
    """
    logs = find()
    shown = logs[0]
    read = {log: log.stat().st_size for log in logs}
    with shown.open("rb") as file:
        file.seek(max(read[shown] - _MOST_BYTES, 0))
        end = _readable(file.read(read[shown] - file.tell())).rstrip("\n").split("\n")
    yield "\n".join([f"==> {shown}", *end[-lines:], ""])
    while follow:
        time.sleep(_FOLLOW_SECONDS)
        for log in reversed(find()):
            with log.open("rb") as file:
                file.seek(read.get(log, 0))
                new = file.read()
            whole = max(new.rfind(b"\n"), new.rfind(b"\r")) + 1
            if whole:
                read[log] = read.get(log, 0) + whole
                yield ("" if log == shown else f"\n==> {log}\n") + _readable(new[:whole])
                shown = log


def _readable(written: bytes) -> str:
    """A log's text: of a progress bar its last state, and nothing that acts on a terminal."""
    lines = written.decode(errors="replace").split("\n")
    return "\n".join(visible(line.rstrip("\r").rpartition("\r")[2]) for line in lines)
