"""The benchmarks: where each is defined, and how its steps are planned.

A benchmark adds two steps to a stage: the model answers the test rows, then the answers are graded
or judged. Answers are stored separately, so changing the grader or judge does not generate them
again, and benchmarks on the same rows share them. A benchmark that needs other steps plans them
itself. Nothing here imports torch or datasets.
"""

from __future__ import annotations

from dataclasses import asdict
from importlib import import_module
from typing import TYPE_CHECKING

from eval.benchmarks.types import Benchmark, JudgedOptions, Options
from pipeline.recipe.schema import Recipe, Source
from pipeline.steps.options import (
    GradeOptions,
    JudgedBy,
    JudgedGradeOptions,
    JudgingRuntime,
    OverlapOptions,
    TaskGradeOptions,
)
from pipeline.steps.spec import Model

if TYPE_CHECKING:
    from pipeline.stages.builder import Builder
    from pipeline.steps.spec import StepSpec

# Module names, because a benchmark that plans its own steps imports the functions below.
BENCHMARKS = {
    "gsm8k": "eval.benchmarks.gsm8k",
    "alpaca": "eval.benchmarks.alpaca",
    "tldr": "eval.benchmarks.tldr",
    "gap": "eval.benchmarks.gap",
    "recovery": "eval.benchmarks.recovery",
    "accuracy": "eval.benchmarks.accuracy",
    "rouge": "eval.benchmarks.rouge",
}
# Defaults per task, where neither the benchmark's keys nor the recipe set them.
_MAX_NEW_TOKENS = {"tldr": 53, "alpaca": 2048}
_TEMPERATURE = {"tldr": 0.01}


def benchmark_of(name: str) -> Benchmark:
    """The declaration in a benchmark's file."""
    return import_module(BENCHMARKS[name]).BENCHMARK


def options_of(recipe: Recipe, name: str) -> Options:
    """The keys of a benchmark; `rouge` defaults to those of its task's benchmark."""
    if name == "rouge" and name not in recipe.benchmarks and recipe.task in BENCHMARKS:
        given = recipe.benchmarks.get(recipe.task, Options())
        keys = set(Options.model_fields)
        if getattr(given, "samples", 1) > 1:  # answers drawn for pass@k are not those to compare
            keys.remove("temperature")
        return Options(**given.model_dump(include=keys))
    return recipe.benchmarks.get(name) or benchmark_of(name).options()


def judged_options_of(recipe: Recipe, name: str) -> JudgedOptions:
    """The keys of a judged benchmark."""
    options = options_of(recipe, name)
    assert isinstance(options, JudgedOptions)
    return options


def task_of(recipe: Recipe, name: str) -> str:
    """The task of a benchmark's test rows."""
    return benchmark_of(name).task or recipe.task


def test_source(recipe: Recipe, name: str) -> Source | None:
    """Where a benchmark's test rows come from, or None if the recipe must say so."""
    given = options_of(recipe, name).data
    if given is not None:
        return given
    own_task = task_of(recipe, name) == recipe.task
    return recipe.data.test if own_task else benchmark_of(name).hub


def add_steps(name: str, build: Builder, model: Model) -> StepSpec:
    """Add a benchmark's steps for one stage and return the one with its result."""
    recipe, benchmark = build.recipe, benchmark_of(name)
    if benchmark.plan is not None:
        return benchmark.plan(build, model)
    options, task, test = options_of(recipe, name), task_of(recipe, name), test_source(recipe, name)
    assert test is not None  # the recipe has been checked
    temperature = options.temperature
    keys = {"test": f"benchmarks.{name}.data"} if test != recipe.data.test else {}
    answers = build.answers(
        model,
        source=test,
        role="test",
        title=f"answers for {name}",
        task=task,
        samples=getattr(options, "samples", 1),
        max_new_tokens=options.max_new_tokens or _MAX_NEW_TOKENS.get(task),
        temperature=_TEMPERATURE.get(task, 0.0) if temperature is None else temperature,
        max_prompt_length=options.max_prompt_length,
        shots=benchmark.shots(recipe, options),
        keys={**keys, "shots": f"benchmarks.{name}.shots"},
    )
    graded: GradeOptions = {"grader": benchmark.version}
    if benchmark.judged:
        graded = JudgedGradeOptions(**graded, **_judge(recipe, options))
    elif benchmark.by_task:
        graded = TaskGradeOptions(**graded, task=recipe.task)
    return build.step(
        name,
        benchmark.run,
        title=f"{'judge' if benchmark.judged else 'grade'} {name}",
        options=graded,
        steps={"answers": answers},
        data=dict(benchmark.files(options, test)),
        runtime_options=JudgingRuntime(judge=recipe.judge.model_dump())
        if benchmark.judged and recipe.judge
        else None,
        main_process_only=True,
        keys={
            "baseline": f"benchmarks.{name}.data",
            "difficulty": f"benchmarks.{name}.difficulty (a file, or null)",
            "gamed": f"benchmarks.{name}.gamed (a file, or null)",
        },
    )


def asked(result: StepSpec) -> StepSpec:
    """The step that reads a benchmark's test rows, given the one with its result."""
    step = result.inputs.get("contexts") or result.inputs["answers"]
    assert not isinstance(step, dict)
    return step


def add_overlap(name: str, build: Builder) -> StepSpec:
    """Add the step that looks for a benchmark's test rows among the training rows."""
    recipe = build.recipe
    test = test_source(recipe, name)
    assert test is not None  # the recipe has been checked
    data = {"train": recipe.data.train, "test": test}
    if isinstance(recipe.data.preferences, Source):
        data["preferences"] = recipe.data.preferences
    parts = [part for source in data.values() if source for part in source.parts or [source]]
    skips = any(part.skip_unusable for part in parts)  # which rows, the model's template decides
    shots = benchmark_of(name).shots(recipe, options_of(recipe, name)) if skips else None
    plain = {} if shots is None else {"few_shot": shots.limit}
    return build.step(
        "overlap",
        "eval.contamination:check_overlap",
        title=f"overlap with {name}",
        options={
            **(build.rendering() if skips else {}),
            **OverlapOptions(n=13, task=recipe.task, test_task=task_of(recipe, name)),
            **plain,
        },
        model=Model(base=None) if skips else None,
        data=data,
        main_process_only=True,
    )


def _judge(recipe: Recipe, options: Options) -> JudgedBy:
    """All that determines verdicts: the judge, its template, and the orders."""
    from eval.judge.step import engine_for, template_for

    assert recipe.judge is not None  # the recipe has been checked
    template = template_for(recipe.judge, options)
    fields = (
        None if template is None else asdict(template) | {"name": ""}
    )  # so that a renamed file is the same
    return {
        "judge": engine_for(recipe.judge).identity(),
        "reads": recipe.judge.reads,
        "template": fields,
        "orders": recipe.judge.orders,
        "max_errors": recipe.judge.max_errors,
    }
