"""What `bashrac status` prints about a run, which may be of another shell."""

from __future__ import annotations

import fcntl
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

from pipeline.errors import InputError, visible
from pipeline.plan.plan import Plan
from pipeline.recipe.shipped import Launch
from pipeline.run.expected import expected_seconds, format_time_left
from pipeline.run.logs import find_logs
from pipeline.steps import artifact
from pipeline.steps.artifact import ERROR, SPEC
from pipeline.steps.context import Progress, read_progress
from pipeline.steps.lock import held_by
from pipeline.steps.spec import StepSpec
from pipeline.text import format_count, format_duration


def status(
    plan: Plan,
    runs: Path,
    launch: Launch,
    *,
    seed: int | None,
    command: Callable[[str], str],
    width: int | None = None,
) -> str:
    """Return what has been done of a plan, what is running, and where to look.

    Args:
        plan: of the recipe.
        runs: the folder of all results.
        launch: the recipe's, for expected times while nothing runs.
        seed: only its steps, and those that all seeds share; None for all seeds.
        command: the bashrac command of this name about the recipe.
        width: columns to wrap at, None not to.

    Raises:
        InputError: for a seed that the recipe has not.
    """
    recipe = plan.recipe
    if seed is not None and seed not in recipe.seeds:
        known = ", ".join(map(str, recipe.seeds))
        raise InputError(f"{recipe.name} has no seed {seed}; seeds: {known}")
    steps = [step for step in plan.steps if seed in (None, step.seed) or step.of_every_seed]
    pending = [step for step in steps if not artifact.is_finished(step.directory(runs))]
    holders = {step.fingerprint: held_by(step.directory(runs)) for step in pending}
    running = [step for step in pending if holders[step.fingerprint]]
    total = format_count(len(steps), "step")
    rows = [(recipe.name, f"{len(steps) - len(pending)} of {total} done")]
    for step in pending:
        rows += _step_rows(step, plan, runs, holders[step.fingerprint])
    try:
        logs = find_logs(recipe, runs, stage=None, seed=seed)
    except InputError:
        logs = []
    if pending and not running:
        if any(map(is_open, logs)):
            rows.append(("running", "a run is starting: its process is importing torch and TRL"))
        else:
            rows.append(("running", f"nothing; `{command('run')}` runs the rest"))
    if pending:
        # A run may have been given another launch than the recipe's.
        spec = artifact.read_object(running[0].directory(runs) / SPEC) if running else {}
        asked = {"use_cpu": launch.use_cpu, "processes": launch.processes, **spec.get("launch", {})}
        seconds = expected_seconds(steps, runs, asked["use_cpu"], asked["processes"])
        time_left = format_time_left(pending, seconds, jobs=max(len(running), 1))
        left = f"{format_count(len(pending), 'step')}{time_left}"
        rows.append(("left", left))
    rows.append(("log", f"{logs[0]}; `{command('logs')}` prints its end" if logs else "none yet"))
    report = runs / recipe.name / "report.html"
    if not report.is_file():
        rows.append(("report", f"none yet; `{command('report')}` prints one of what is finished"))
    else:
        rows.append(("report", f"{report}{', of an earlier run' if pending else ''}"))
    indent = " " * (max(len(head) for head, _ in rows) + 2)
    wrapper = textwrap.TextWrapper(
        width or sys.maxsize, subsequent_indent=indent,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    return "\n".join(wrapper.fill(f"{head:<{len(indent)}}{words}") for head, words in rows)


def _step_rows(step: StepSpec, plan: Plan, runs: Path, holder: str | None) -> list[tuple[str, str]]:
    """What is to be said of an unfinished step: nothing, unless it is running or was begun."""
    folder = step.directory(runs)
    progress = read_progress(folder)
    has_seed = len(plan.recipe.seeds) > 1 and not step.of_every_seed
    several = f" (seed {step.seed})" if has_seed else ""
    name, done = f"{step.stage}{several}, {step.title}", _format_done(progress)
    if holder:
        so_far, left = progress["seconds"], progress["left"]
        words = [f"{name}: {done or 'starting'}"]
        words += [f"{format_duration(so_far)} so far"] if so_far else []
        words += [f"about {format_duration(left)} left"] if left is not None else []
        return [("running", ", ".join(words)), ("", f"by {holder}")]
    if error := artifact.read_object(folder / ERROR).get("message"):
        return [("failed", f"{name}: {visible(' '.join(str(error).split()))}")]
    return [("stopped", f"{name}: {done}")] if done else []


def _format_done(progress: Progress) -> str:
    """Return e.g. '3 of 12 optimizer steps', or ''."""
    if not progress["total"]:
        return ""
    return f"{progress['done']} of {progress['total']} {progress['unit']}"


def is_open(log: Path) -> bool:
    """Whether a run that goes on writes a log, which it holds from before its process starts."""
    try:
        with log.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # such as of a file system without locks
        return False
    return False
