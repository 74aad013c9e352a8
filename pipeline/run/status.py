"""What `bashrac plan` prints: which steps are done, which will run, and why."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from eval.benchmarks.registry import BENCHMARKS, benchmark_of, test_source
from pipeline.data.builtin.rows import builtin_rows
from pipeline.decoding.vllm_process import check_vllm
from pipeline.hardware.precision import describe_asked
from pipeline.plan.changes import MEMORY, Memory, read_identities
from pipeline.plan.plan import Plan
from pipeline.recipe import shipped
from pipeline.recipe.schema import Recipe, Source
from pipeline.run.expected import expected_seconds, format_time_left
from pipeline.run.launcher import command
from pipeline.run.scheduler import select_steps
from pipeline.steps import artifact
from pipeline.steps.artifact import PROGRESS, SPEC
from pipeline.steps.spec import StepSpec
from pipeline.text import format_duration

_CHANGED = "changed since the last run: "
_AGAIN = re.compile(r"its input \S+ \(([^;]*?)\) will be made again")


def explain(
    plan: Plan, runs: Path, launch: shipped.Launch, through: Sequence[str] = (), *,
    commands: bool = False, width: int | None = None,
) -> str:  # fmt: skip
    """Return the steps of a plan as text: state, reason, and how long they are likely to take.

    Args:
        plan: of a recipe.
        runs: the folder of all results.
        launch: on what it shall run.
        through: the words of a command that starts each step's command elsewhere, or none.
        commands: whether to list steps in the order they run, with the folder and command of each.
        width: columns to wrap reasons at, None to leave them on one line.
    """
    memory_file = runs / plan.recipe.name / MEMORY
    known = read_identities(memory_file) if memory_file.exists() else {}
    memory = Memory(known, plan.steps, runs)
    reasons = {step.fingerprint: _reason(step, runs, memory) for step in plan.steps}
    lines = []
    if points := plan.recipe.points:
        swept = ", ".join(f"{key} {values}" for key, values in plan.recipe.sweep.items())
        lines.append(f"sweep of {swept}: {len(points)} points")
    pending = [step for step in plan.steps if reasons[step.fingerprint]]
    left = ""
    if commands:
        lines += _commands(plan, runs, launch, through, reasons)
    else:
        seconds = expected_seconds(plan.steps, runs, launch.use_cpu, launch.processes)
        left = format_time_left(pending, seconds)
        lines += [*_tree(plan, reasons, seconds, width), ""]
    if calls := describe_judge_calls(plan, runs):
        lines.append(calls)
    lines.append(f"precision: {describe_asked(one.recipe for one in plan.stages.values())}")
    total = len(plan.steps)
    lines.append(f"{total} steps: {total - len(pending)} done, {len(pending)} to run{left}")
    return "\n".join(lines)


def _commands(
    plan: Plan, runs: Path, launch: shipped.Launch, through: Sequence[str], reasons: dict[str, str]
) -> list[str]:
    """Each step in the order they run, with its folder and the command that runs it."""
    lines = []
    for number, step in enumerate(plan.steps, start=1):
        directory, reason = step.directory(runs), reasons[step.fingerprint]
        several = f", seed {step.seed}" if len(plan.recipe.seeds) > 1 else ""
        state = f"to run: {reason}" if reason else "done"
        lines.append(f"{number:>3}  {step.stage}{several}: {step.title} - {state}")
        lines.append(f"     {directory}")
        if reason:
            lines.append(f"     {shlex.join(command(launch, [directory / SPEC], through))}")
    return lines


@dataclass
class _Line:
    """A line of the tree: a stage, or one of its steps for all seeds that are in the same state."""

    indent: str
    title: str
    state: str = ""
    reason: str = ""
    seeds: list[int] = field(default_factory=list)
    seconds: list[float | None] = field(default_factory=list)

    def name(self, recipe: Recipe) -> str:
        """The indented title, with seeds where the recipe has several."""
        several = ""
        if self.seeds and len(recipe.seeds) > 1:
            count = len(self.seeds)
            some = f"seed{'s' * (count > 1)} {', '.join(map(str, self.seeds))}"
            several = f" ({f'{count} seeds' if count == len(recipe.seeds) else some})"
        return f"{self.indent}{self.title}{several}"

    @property
    def time(self) -> str:
        """How long its steps took, or are likely to take; '' where that is not known of each."""
        known = [one for one in self.seconds if one is not None]
        if not known or len(known) < len(self.seconds):
            return ""
        return f"{'~' * (self.state == 'to run')}{format_duration(sum(known))}"


def _tree(
    plan: Plan, reasons: dict[str, str], seconds: dict[str, float], width: int | None
) -> list[str]:
    """The stages below those they start from, each with its steps, aligned in columns."""
    tree = list(_tree_lines(plan, reasons, seconds, None, ""))
    columns = [(line.name(plan.recipe), line.state, line.time) for line in tree]
    widths = [
        max((len(cells[column]) for cells in columns if cells[1]), default=0) for column in range(3)
    ]
    lines = []
    for (name, state, time), line in zip(columns, tree, strict=True):
        if not state:
            lines.append(name)
            continue
        start = f"{name:<{widths[0]}}  {state:<{widths[1]}}  "
        start += f"{time:>{widths[2]}}  " if widths[2] else ""
        room = max(width - len(start), 20) if width else 0
        wrapped = textwrap.wrap(line.reason, room, break_on_hyphens=False) if room else []
        first, *more = wrapped or [line.reason]
        lines.append(f"{start}{first}".rstrip())
        lines += [" " * len(start) + words for words in more]
    return lines


def _tree_lines(
    plan: Plan, reasons: dict[str, str], seconds: dict[str, float], start: str | None, indent: str
) -> Iterator[_Line]:
    """The stages that start from one, or from the recipe's model, with all that start from them."""
    owners = {step.fingerprint: step.stage for step in plan.steps}
    for label, stage in plan.stages.items():
        if stage.start != start:
            continue
        yield _Line(indent, f"{label}, from {start}" if start else label)
        lines: dict[tuple[str, ...], _Line] = {}
        for seed in plan.recipe.seeds:
            titles: list[str] = []  # of the seed: two of a stage's steps may have the same
            for step in {one.fingerprint: one for one in plan.all_steps[label, seed]}.values():
                owner, reason = owners[step.fingerprint], reasons[step.fingerprint]
                state, time = "to run" if reason else "done", seconds.get(step.fingerprint)
                if owner != label:
                    state, reason, time = "shared", f"listed under {owner}", None
                new = _Line(f"{indent}  ", step.title, state, _shortened(reason, label))
                titles.append(step.title)
                nth = str(titles.count(step.title))
                line = lines.setdefault((step.title, nth, state, reason), new)
                line.seeds.append(seed)
                line.seconds.append(time)
        yield from lines.values()
        yield from _tree_lines(plan, reasons, seconds, label, f"{indent}  ")


def _shortened(reason: str, stage: str) -> str:
    """A reason for the tree, where a step that runs again has its own a few lines above."""
    if not reason.startswith(_CHANGED):
        return reason
    changes = reason.removeprefix(_CHANGED).split("; ")
    if own := [change for change in changes if not _AGAIN.fullmatch(change)]:
        return _CHANGED + "; ".join(own)
    again = [_AGAIN.sub(r"\1", change).removeprefix(f"{stage}: ") for change in changes]
    return f"follows from {' and '.join(again)}"


def check_judge_key(plan: Plan, runs: Path, stages: Sequence[str]) -> None:
    """Find out now, and not after hours of training, that a judge has no key.

    Raises:
        InputError: when a judge that is going to be asked needs one.
    """
    from eval.judge.openai import OpenAIJudge
    from eval.judge.step import describe_judge, engine_for

    judges = [recipe.judge for recipe, _ in _to_judge(plan, runs, stages)]
    for judge in {describe_judge(judge): judge for judge in judges if judge is not None}.values():
        engine = engine_for(judge)
        if isinstance(engine, OpenAIJudge):
            engine.key()


def check_engine(plan: Plan, runs: Path, stages: Sequence[str]) -> None:
    """Find out now that answers are to be written by vLLM and it is not there.

    Raises:
        InputError: when it is needed and not there.
    """
    asked = [step for step in select_steps(plan, stages) if step.options.get("engine") == "vllm"]
    if any(not artifact.is_finished(step.directory(runs)) for step in asked):
        check_vllm()


def _to_judge(plan: Plan, runs: Path, stages: Sequence[str]) -> list[tuple[Recipe, str]]:
    """Evaluations, of all stages or these, that a judge has still to see: recipe and benchmark."""
    labels = plan.labels(*stages or plan.stages)
    pending = {
        step.fingerprint: (plan.stages[label].recipe, name)
        for (label, name, _), step in plan.results.items()
        if benchmark_of(name).judged
        and label in labels
        and not artifact.is_finished(step.directory(runs))
    }
    return list(pending.values())


def describe_judge_calls(plan: Plan, runs: Path, stages: Sequence[str] = ()) -> str:
    """What the steps that are still to run may ask of a judge that is paid or slow, or ''."""
    by_judge: dict[str, list[tuple[Recipe, str]]] = {}
    for recipe, name in _to_judge(plan, runs, stages):
        if recipe.judge is not None and recipe.judge.engine != "reference":
            from eval.judge.step import describe_judge  # `plan` must answer at once

            by_judge.setdefault(describe_judge(recipe.judge), []).append((recipe, name))
    return "\n".join(_describe_calls(judge, pending) for judge, pending in by_judge.items())


def _describe_calls(judge: str, pending: list[tuple[Recipe, str]]) -> str:
    """What one judge may be asked."""
    known, complete = 0, True
    for recipe, name in pending:
        source = test_source(recipe, name)
        rows = None if source is None else row_count(source)
        orders = 2 if recipe.judge is not None and recipe.judge.orders == "both" else 1
        known, complete = known + (rows or 0) * orders, complete and rows is not None
    more = "" if complete else ", and more for test sets whose size is not known yet"
    several = "s" if len(pending) > 1 else ""
    return (
        f"{len(pending)} evaluation{several} to judge by {judge}: at most {known:,} judge "
        f"calls{more}; none for answers it has judged before"
    )


def row_count(source: Source) -> int | None:
    """How many rows a source gives, where that can be told without loading it."""
    count = None
    if source.builtin is not None:
        split = source.split_for("test")
        count = len(builtin_rows(source.builtin, split, limit=source.stop))
    elif source.path is not None and source.path.suffix == ".jsonl":
        with source.path.open(encoding="utf-8", errors="replace") as file:
            count = sum(bool(line.strip()) for line in file)
    elif source.path is not None and source.path.suffix == ".json":
        # The step that reads it says what is wrong.
        with contextlib.suppress(ValueError, OSError, RecursionError):
            rows = json.loads(source.path.read_text(encoding="utf-8"))
            count = len(rows) if isinstance(rows, list) else None
    if count is None:
        return source.limit
    return max(min(count, source.stop or count) - source.skip, 0)


def _reason(step: StepSpec, runs: Path, memory: Memory) -> str:
    """Why a step will run; '' where it is done."""
    directory = step.directory(runs)
    if artifact.is_finished(directory):
        return ""
    if any(directory.glob("shards/*.jsonl")) or any(directory.glob("checkpoints/checkpoint-*")):
        return "it was stopped midway and goes on from there"
    if (directory / PROGRESS).exists() and step.kind in BENCHMARKS:
        return "it was stopped midway; what a judge has said is kept"
    if (directory / PROGRESS).exists():
        return "it was stopped before anything could be kept"
    changes = memory.changes(step)
    if changes is None:
        return "new"
    if not changes:
        return "not finished yet"
    return _CHANGED + "; ".join(changes)
