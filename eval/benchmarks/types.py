"""What a benchmark declares: its keys, its test rows, and the step that grades."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import Field

from pipeline.errors import Problem
from pipeline.recipe.schema import AnySource, Recipe, Source, Strict

if TYPE_CHECKING:
    from pipeline.stages.builder import Builder
    from pipeline.steps.spec import Model, StepSpec


class Options(Strict):
    """Keys of every benchmark, under `benchmarks: {NAME: ...}`.

    Attributes:
        data: test rows; by default the recipe's if it has the benchmark's task, else the
            benchmark's test set on the hub.
        max_new_tokens: longest answer; by default `generation.max_new_tokens`, 53 for tldr, 2048
            for alpaca.
        temperature: 0 is greedy; by default 0, and 0.01 for tldr.
        max_prompt_length: longest prompt in tokens; by default the recipe's for its own task, else
            512 for tldr.
    """

    data: AnySource | None = None
    max_new_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0)
    max_prompt_length: int | None = Field(default=None, ge=1)


class JudgedOptions(Options):
    """`template` is the judge's prompt: a name in eval/judge/prompts/ or a file."""

    template: str


class Benchmark(NamedTuple):
    """A benchmark's declaration.

    Attributes:
        run: name of the step function that grades (pipeline/steps/functions.py).
        version: raised when grading changes, so that stored answers are graded again.
        task: the task of its rows; None for the recipe's.
        options: the schema of its keys.
        hub: its test set on the hub; None if it uses the recipe's test rows.
        judged: whether a judge compares answers.
        by_task: whether the recipe's task grades them.
        shots: (recipe, keys) -> source of the solved examples before each prompt.
        files: (keys, test set) -> files that grading reads, by role.
        check: recipe -> problems that the types of the keys do not catch.
        plan: for benchmarks with other steps than answers and grades: adds the steps for one model
            and returns the one with the result.
    """

    run: str
    version: int = 1
    task: str | None = None
    options: type[Options] = Options
    hub: Source | None = None
    judged: bool = False
    by_task: bool = False
    shots: Callable[[Recipe, Any], Source | None] = lambda recipe, options: None
    files: Callable[[Any, Source], Mapping[str, Source]] = lambda options, test: {}
    check: Callable[[Recipe], list[Problem]] = lambda recipe: []
    plan: Callable[[Builder, Model], StepSpec] | None = None
