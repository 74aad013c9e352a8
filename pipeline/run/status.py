"""Says which steps are done, which will run, and why, in words."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from eval.benchmarks.registry import BENCHMARKS, benchmark_of, test_source
from eval.judge.openai import OpenAIJudge
from eval.judge.step import describe_judge, engine_for
from pipeline.data.builtin.rows import builtin_rows
from pipeline.decoding.vllm_process import check_vllm
from pipeline.hardware.precision import describe_asked
from pipeline.plan.changes import MEMORY, Memory, read_identities
from pipeline.plan.plan import Plan
from pipeline.recipe import shipped
from pipeline.recipe.schema import Recipe, Source
from pipeline.run.launcher import command
from pipeline.run.scheduler import select_steps
from pipeline.steps import artifact
from pipeline.steps.artifact import PROGRESS, SPEC
from pipeline.steps.spec import StepSpec


def explain(plan: Plan, runs: Path, launch: shipped.Launch, through: Sequence[str] = ()) -> str:
    """Return the steps of a plan as text: state, reason, and the command of each."""
    memory_file = runs / plan.recipe.name / MEMORY
    known = read_identities(memory_file) if memory_file.exists() else {}
    memory = Memory(known, plan.steps, runs)
    lines = []
    if points := plan.recipe.points:
        swept = ", ".join(f"{key} {values}" for key, values in plan.recipe.sweep.items())
        lines.append(f"sweep of {swept}: {len(points)} points")
    done = 0
    for number, step in enumerate(plan.steps, start=1):
        directory = step.directory(runs)
        several = f", seed {step.seed}" if len(plan.recipe.seeds) > 1 else ""
        state = _state(step, directory, memory)
        done += state == "done"
        lines.append(f"{number:>3}  {step.stage}{several}: {step.title} - {state}")
        lines.append(f"     {directory}")
        if state != "done":
            lines.append(f"     {shlex.join(command(launch, [directory / SPEC], through))}")
    if calls := judge_calls_words(plan, runs):
        lines.append(calls)
    lines.append(f"precision: {describe_asked(one.recipe for one in plan.stages.values())}")
    total = len(plan.steps)
    lines.append(f"{total} steps: {done} done, {total - done} to run")
    return "\n".join(lines)


def check_judge_key(plan: Plan, runs: Path, stages: Sequence[str]) -> None:
    """Find out now, and not after hours of training, that a judge has no key.

    Raises:
        InputError: when a judge that is going to be asked needs one.
    """
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


def judge_calls_words(plan: Plan, runs: Path, stages: Sequence[str] = ()) -> str:
    """What the steps that are still to run may ask of a judge that is paid or slow, or ''."""
    by_judge: dict[str, list[tuple[Recipe, str]]] = {}
    for recipe, name in _to_judge(plan, runs, stages):
        if recipe.judge is not None and recipe.judge.engine != "reference":
            by_judge.setdefault(describe_judge(recipe.judge), []).append((recipe, name))
    return "\n".join(_calls_words(judge, pending) for judge, pending in by_judge.items())


def _calls_words(judge: str, pending: list[tuple[Recipe, str]]) -> str:
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


def _state(step: StepSpec, directory: Path, memory: Memory) -> str:
    if artifact.is_finished(directory):
        return "done"
    if any(directory.glob("shards/*.jsonl")) or any(directory.glob("checkpoints/checkpoint-*")):
        return "to run: it was stopped midway and goes on from there"
    if (directory / PROGRESS).exists() and step.kind in BENCHMARKS:
        return "to run: it was stopped midway; what a judge has said is kept"
    if (directory / PROGRESS).exists():
        return "to run: it was stopped before anything could be kept"
    changes = memory.changes(step)
    if changes is None:
        return "to run: new"
    if not changes:
        return "to run: not finished yet"
    return "to run: changed since the last run: " + "; ".join(changes)
