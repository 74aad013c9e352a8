"""What `bashrac plan` prints: which steps are done, which will run, and why."""

from __future__ import annotations

import re
import shlex
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from eval.benchmarks.registry import BENCHMARKS
from pipeline.hardware.precision import describe_asked
from pipeline.plan.changes import MEMORY, Memory, read_identities
from pipeline.plan.plan import Plan
from pipeline.recipe import shipped
from pipeline.recipe.schema import Recipe
from pipeline.run.expected import expected_seconds, format_time_left
from pipeline.run.findable import describe_findable
from pipeline.run.keep import needed_again
from pipeline.run.launcher import command
from pipeline.run.upfront import describe_judge_calls
from pipeline.steps import artifact
from pipeline.steps.artifact import PROGRESS, SPEC
from pipeline.steps.lock import held_by
from pipeline.steps.spec import StepSpec
from pipeline.text import format_count, format_duration

_LEAST_ROOM = 24  # columns for reasons beside what they explain
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
    states = {step.fingerprint: _state(step, runs, memory) for step in plan.steps}
    ahead = [step for step in plan.steps if states[step.fingerprint].word == "to run"]
    for step in needed_again(plan, ahead, runs):
        states[step.fingerprint] = _State("to run", "its weights were removed (keep: final)")
    lines = []
    if points := plan.recipe.points:
        swept = ", ".join(f"{key} {values}" for key, values in plan.recipe.sweep.items())
        lines.append(f"sweep of {swept}: {len(points)} points")
    left = ""
    if commands:
        lines += _commands(plan, runs, launch, through, states)
    else:
        seconds = expected_seconds(plan.steps, runs, launch.use_cpu, launch.processes)
        pending = [step for step in plan.steps if states[step.fingerprint].word != "done"]
        left = format_time_left(pending, seconds)
        lines += [*_tree(plan, states, seconds, width), ""]
        if findable := describe_findable(plan.recipe):
            lines += [*findable, ""]
    if calls := describe_judge_calls(plan, runs):
        lines.append(calls)
    lines.append(f"precision: {describe_asked(one.recipe for one in plan.stages.values())}")
    words = [state.word for state in states.values()]
    counts = [f"{words.count('done')} done", f"{words.count('to run')} to run"]
    if running := words.count("running"):
        counts.insert(1, f"{running} running")
    lines.append(f"{format_count(len(words), 'step')}: {', '.join(counts)}{left}")
    return "\n".join(lines)


class _State(NamedTuple):
    """Of a step: done, running, to run or shared; and by whom, why, or with whom."""

    word: str
    reason: str = ""


def _commands(
    plan: Plan,
    runs: Path,
    launch: shipped.Launch,
    through: Sequence[str],
    states: dict[str, _State],
) -> list[str]:
    """Each step in the order they run, with its folder and the command that runs it."""
    lines = []
    for number, step in enumerate(plan.steps, start=1):
        directory, state = step.directory(runs), states[step.fingerprint]
        has_seed = len(plan.recipe.seeds) > 1 and not step.of_every_seed
        several = f", seed {step.seed}" if has_seed else ""
        described = ": ".join(filter(None, state))
        lines.append(f"{number:>3}  {step.stage}{several}: {step.title} - {described}")
        lines.append(f"     {directory}")
        if state.word != "done":
            lines.append(f"     {shlex.join(command(launch, [directory / SPEC], through))}")
    return lines


@dataclass
class _Line:
    """A line of the tree: a stage, or one of its steps for all seeds that are in the same state."""

    indent: str
    title: str
    state: _State = _State("")  # noqa: RUF009
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
        return f"{'' if self.state.word == 'done' else '~'}{format_duration(sum(known))}"


def _tree(
    plan: Plan, states: dict[str, _State], seconds: dict[str, float], width: int | None
) -> list[str]:
    """The stages below those they start from, each with its steps, aligned in columns."""
    tree = list(_tree_lines(plan, states, seconds, None, ""))
    columns = [(line.name(plan.recipe), line.state.word, line.time) for line in tree]
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
        indent = " " * len(start)
        if width and width - len(start) < _LEAST_ROOM:  # then the reason stands below
            lines.append(start.rstrip())
            start = indent = f"{line.indent}  "
        wrapper = textwrap.TextWrapper(
            width or sys.maxsize, initial_indent=start, subsequent_indent=indent,
            break_on_hyphens=False,
        )  # fmt: skip
        lines.append(wrapper.fill(line.state.reason) or start.rstrip())
    return lines


def _tree_lines(
    plan: Plan, states: dict[str, _State], seconds: dict[str, float], start: str | None, indent: str
) -> Iterator[_Line]:
    """The stages that start from one, or from the recipe's model, with all that start from them."""
    owners = {step.fingerprint: step.stage for step in plan.steps}
    for label, stage in plan.stages.items():
        if stage.start != start:
            continue
        yield _Line(indent, f"{label}, from {start}" if start else label)
        lines: dict[tuple[str, int, _State], _Line] = {}
        for seed in plan.recipe.seeds:
            titles: list[str] = []  # of the seed: two of a stage's steps may have the same
            steps = {step.fingerprint: step for step in plan.all_steps[label, seed]}
            for fingerprint, step in steps.items():
                state, time = states[fingerprint], seconds.get(fingerprint)
                if (owner := owners[fingerprint]) != label:
                    state, time = _State("shared", f"listed under {owner}"), None
                titles.append(step.title)
                shown = _State(state.word, _shortened(state.reason, label))
                line = lines.setdefault(
                    (step.title, titles.count(step.title), state),
                    _Line(f"{indent}  ", step.title, shown),
                )
                line.seeds += [] if step.of_every_seed else [seed]
                line.seconds.append(time)
        yield from lines.values()
        yield from _tree_lines(plan, states, seconds, label, f"{indent}  ")


def _shortened(reason: str, stage: str) -> str:
    """A reason for the tree, where a step that runs again has its own a few lines above."""
    if not reason.startswith(_CHANGED):
        return reason
    changes = reason.removeprefix(_CHANGED).split("; ")
    if own := [change for change in changes if not _AGAIN.fullmatch(change)]:
        return _CHANGED + "; ".join(own)
    again = [_AGAIN.sub(r"\1", change).removeprefix(f"{stage}: ") for change in changes]
    return f"follows from {' and '.join(again)}"


def _state(step: StepSpec, runs: Path, memory: Memory) -> _State:
    """Whether a step is done, or running and by whom, or why it will run."""
    directory = step.directory(runs)
    if artifact.is_finished(directory):
        return _State("done")
    if holder := held_by(directory):
        return _State("running", f"by {holder}")
    if any(directory.glob("shards/*.jsonl")) or any(directory.glob("checkpoints/checkpoint-*")):
        return _State("to run", "it was stopped midway and resumes from there")
    if (directory / PROGRESS).exists():
        kept = "what a judge has said" if step.kind in BENCHMARKS else "nothing"
        return _State("to run", f"it was stopped; {kept} was kept")
    changes = memory.changes(step)
    if changes is None:
        return _State("to run", "new")
    return _State("to run", _CHANGED + "; ".join(changes) if changes else "not finished yet")
