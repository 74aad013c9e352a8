"""What can be found out before hours of training: whether a judge can be asked, and how often."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

from eval.benchmarks.registry import benchmark_of, options_of, test_source
from pipeline.data.builtin.rows import builtin_rows
from pipeline.decoding.vllm_process import check_vllm
from pipeline.errors import InputError
from pipeline.extras import missing
from pipeline.plan.plan import Plan
from pipeline.recipe.schema import Judge, Recipe, Source
from pipeline.recipe.shipped import Launch
from pipeline.run.scheduler import select_steps
from pipeline.steps import artifact
from pipeline.text import format_count


def check_launch(launch: Launch, through: Sequence[str]) -> None:
    """Find out now, and not in every process, that a launch cannot work here.

    Raises:
        InputError: when it needs other machines, or a package that is not there.
    """
    if launch.machines > 1 and not through:
        raise InputError(
            f"{launch.path} asks for {launch.machines} machines: start steps on all of them with "
            "--through 'srun --nodes 2 --ntasks-per-node 1 recipes/launch/on_node.sh', or run "
            "recipes/launch/two_nodes.sh on each (docs/scaling.md)"
        )
    if launch.kind.startswith("ZeRO") and (reason := missing("deepspeed")):
        raise InputError(f"{launch.path} asks for {launch.kind}: {reason}, or use --launch fsdp2")


def check_judges(plan: Plan, runs: Path, stages: Sequence[str], max_calls: int | None) -> None:
    """Find out now that a judge has no key, or will not be able to answer once all is trained.

    Where something is still to be trained, and calls are allowed, an endpoint is asked one
    question, and the config and tokenizer of a model that judges in process are looked at.

    Raises:
        InputError: when a judge that is going to be asked needs a key, or gives no verdict.
    """
    from eval.judge.local import LocalJudge
    from eval.judge.openai import OpenAIJudge
    from eval.judge.step import engine_for, template_for

    trains = any(
        step.kind == "train" and not artifact.is_finished(step.directory(runs))
        for step in select_steps(plan, stages)
    )
    for judge, evaluations in _evaluations_by_judge(plan, runs, stages).values():
        engine = engine_for(judge)
        if isinstance(engine, OpenAIJudge):
            engine.key()
        if not trains or max_calls == 0:
            continue
        recipe, name = evaluations[0]
        template = template_for(judge, options_of(recipe, name))
        assert template is not None  # only the reference judge has none
        if isinstance(engine, LocalJudge):
            engine.check(template)
            continue
        from eval.judge.probe import check_judge

        check_judge(judge, template)


def check_engine(plan: Plan, runs: Path, stages: Sequence[str]) -> None:
    """Find out now that answers are to be written by vLLM and it is not there.

    Raises:
        InputError: when it is needed and not there.
    """
    asked = [step for step in select_steps(plan, stages) if step.options.get("engine") == "vllm"]
    if any(not artifact.is_finished(step.directory(runs)) for step in asked):
        check_vllm()


def describe_judge_calls(plan: Plan, runs: Path, stages: Sequence[str] = ()) -> str:
    """What the steps that are still to run may ask of a judge that is paid or slow, or ''."""
    return "\n".join(
        _describe_calls(name, judge, evaluations)
        for name, (judge, evaluations) in _evaluations_by_judge(plan, runs, stages).items()
    )


_Evaluation = tuple[Recipe, str]  # and the benchmark


def _evaluations_by_judge(
    plan: Plan, runs: Path, stages: Sequence[str]
) -> dict[str, tuple[Judge, list[_Evaluation]]]:
    """The judges, paid or slow, that are still to be asked, by their description, and for what."""
    labels = plan.labels(*stages or plan.stages)
    pending = {
        step.fingerprint: (plan.stages[label].recipe, name)
        for (label, name, _), step in plan.results.items()
        if benchmark_of(name).judged
        and label in labels
        and not artifact.is_finished(step.directory(runs))
    }
    found: dict[str, tuple[Judge, list[_Evaluation]]] = {}
    for recipe, name in pending.values():
        if recipe.judge is None or recipe.judge.engine == "reference":
            continue
        from eval.judge.step import describe_judge  # `plan` answers sooner where there is no judge

        found.setdefault(describe_judge(recipe.judge), (recipe.judge, []))[1].append((recipe, name))
    return found


def _describe_calls(name: str, judge: Judge, evaluations: list[_Evaluation]) -> str:
    """What one judge may be asked."""
    sources = [test_source(recipe, benchmark) for recipe, benchmark in evaluations]
    counts = [source and row_count(source) for source in sources]
    calls = sum(count or 0 for count in counts) * (2 if judge.orders == "both" else 1)
    more = ", and more for test sets whose size is not known yet" if None in counts else ""
    return (
        f"{format_count(len(evaluations), 'evaluation')} to judge by {name}: at most {calls:,} "
        f"judge calls{more}; none for answers it has judged before"
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
