"""The benchmarks: whose rows they ask, how answers are written, and which step grades them.

A benchmark is two steps after a stage: the model answers the test rows, then the answers are graded
(and, where two answers are compared, judged). Answers are an artifact of their own, so a changed
grader or judge never samples again, and two benchmarks on the same rows share their answers. One
that takes other steps has a module that plans them. Nothing here imports torch or datasets.
"""

from __future__ import annotations

from dataclasses import asdict
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import Field

from pipeline.errors import Problem
from pipeline.recipe import AnySource, Recipe, Share, Source, Strict

if TYPE_CHECKING:
    from pipeline.builder import Builder
    from pipeline.planned_step import Model, Step

_ALPACA_EVAL = "tatsu-lab/alpaca_eval"


class Options(Strict):
    """Keys of every benchmark, under `benchmarks: {NAME: ...}`.

    Attributes:
        data: test rows; by default the recipe's own where it has the benchmark's task, else the
            benchmark's set on the hub.
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
    """`template` is what the judge is told: a name in eval/prompts/ or a file."""

    template: str


class Gsm8kOptions(Options):
    """`few_shot` solved questions of `shots` stand before each, in lm-eval's plain format."""

    few_shot: int = Field(default=0, ge=0)
    shots: AnySource | None = None


class TldrOptions(JudgedOptions):
    """Keys of `tldr`."""

    template: str = "tldr_dpo_concise"


class AlpacaOptions(JudgedOptions):
    """`data` holds the baseline's answers, in AlpacaEval's order; the CSV files are AlpacaEval's.

    Without `gamed` or `difficulty` (null) there is no length-controlled win rate.
    """

    template: str = "alpaca_eval_2"
    difficulty: AnySource | None = Source(source=_ALPACA_EVAL, file="df_gamed.csv")
    gamed: AnySource | None = Source(source=_ALPACA_EVAL, file="df_gamed.csv")


class GapOptions(Options):
    """Keys of `gap`; `max_new_tokens` is for greedy answers, where it writes them itself.

    Attributes:
        limit: how many rows are read, the first ones; by default 128, or as `data` says.
        rates: shares of tokens that the model fills, from 0 up.
        fixed: the stage whose contexts all stages read, for a second curve; null for none, by
            default the first SFT stage.
        temperature: of the tokens it fills; by default 1.
    """

    limit: int | None = Field(default=None, ge=1)
    rates: list[Share] = Field(default=[0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0], min_length=2)
    fixed: str | None = None
    temperature: Annotated[float, Field(gt=0)] | None = None


class Benchmark(NamedTuple):
    """A benchmark.

    Attributes:
        run: the step function that grades.
        version: raised when grading changes, so that stored answers are graded again.
        task: what its rows are; None for the recipe's own.
        options: the schema of its keys.
        hub: its test set on the hub, None where it asks the recipe's own.
        judged: whether a judge compares answers.
        module: where its steps are others than answers and grades, what plans them: `check`
            gives problems of a recipe, `plan` adds the steps of a model and gives the last.
    """

    run: str
    version: int
    task: str | None
    options: type[Options]
    hub: Source | None
    judged: bool
    module: str | None = None


BENCHMARKS = {
    "gsm8k": Benchmark(
        run="eval.gsm8k:grade_answers",
        version=2,
        task="gsm8k",
        options=Gsm8kOptions,
        hub=Source(source="openai/gsm8k", name="main", split="test"),
        judged=False,
    ),
    "alpaca": Benchmark(
        run="eval.alpaca:grade_answers",
        version=1,
        task="alpaca",
        options=AlpacaOptions,
        hub=Source(source=_ALPACA_EVAL, file="alpaca_eval_gpt4_baseline.json"),
        judged=True,
    ),
    "tldr": Benchmark(
        run="eval.tldr:grade_answers",
        version=1,
        task="tldr",
        options=TldrOptions,
        hub=Source(source="vwxyzjn/summarize_from_feedback_tldr_3_filtered", split="test"),
        judged=True,
    ),
    "gap": Benchmark(
        run="eval.gap_grades:grade",
        version=1,
        task=None,
        options=GapOptions,
        hub=None,
        judged=False,
        module="eval.gap",
    ),
    "rouge": Benchmark(
        run="eval.rouge:grade_answers",
        version=1,
        task=None,
        options=Options,
        hub=None,
        judged=False,
    ),
}
_SHOTS = Source(source="openai/gsm8k", name="main", split="train")
_MAX_NEW_TOKENS = {"tldr": 53, "alpaca": 2048}
_TEMPERATURE = {"tldr": 0.01}


def options_of(recipe: Recipe, name: str) -> Options:
    """The keys of a benchmark; `rouge` without its own has those of its task's benchmark."""
    if name == "rouge" and name not in recipe.benchmarks and recipe.task in BENCHMARKS:
        given = recipe.benchmarks.get(recipe.task, Options())
        return Options(**given.model_dump(include=set(Options.model_fields)))
    return recipe.benchmarks.get(name) or BENCHMARKS[name].options()


def judged_options_of(recipe: Recipe, name: str) -> JudgedOptions:
    """The keys of a benchmark that a judge decides."""
    options = options_of(recipe, name)
    assert isinstance(options, JudgedOptions)
    return options


def task_of(recipe: Recipe, name: str) -> str:
    """The task whose rows a benchmark asks."""
    return BENCHMARKS[name].task or recipe.task


def test_source(recipe: Recipe, name: str) -> Source | None:
    """Where a benchmark's test rows come from, or None where the recipe must say it."""
    given = options_of(recipe, name).data
    if given is not None:
        return given
    own_task = task_of(recipe, name) == recipe.task
    return recipe.data.test if own_task else BENCHMARKS[name].hub


def check(recipe: Recipe, name: str) -> list[Problem]:
    """Problems with a benchmark's own keys that a type does not say."""
    module = BENCHMARKS[name].module
    return [] if module is None else import_module(module).check(recipe)


def add_steps(name: str, build: Builder, model: Model) -> Step:
    """Add a benchmark's steps for one stage and return the one that holds its result."""
    recipe, benchmark = build.recipe, BENCHMARKS[name]
    if benchmark.module is not None:
        return import_module(benchmark.module).plan(build, model)
    options, task, test = options_of(recipe, name), task_of(recipe, name), test_source(recipe, name)
    assert test is not None  # the recipe's check has seen to it
    temperature = options.temperature
    keys = {"test": f"benchmarks.{name}.data"} if test != recipe.data.test else {}
    answers = build.answers(
        model,
        source=test,
        role="test",
        title=f"answers for {name}",
        task=task,
        max_new_tokens=options.max_new_tokens or _MAX_NEW_TOKENS.get(task),
        temperature=_TEMPERATURE.get(task, 0.0) if temperature is None else temperature,
        max_prompt_length=options.max_prompt_length,
        shots=_shots(recipe, options),
        keys={**keys, "shots": f"benchmarks.{name}.shots"},
    )
    judged = _judge(recipe, options) if benchmark.judged else {}
    return build.step(
        name,
        benchmark.run,
        title=f"{'judge' if judged else 'grade'} {name}",
        options={"grader": benchmark.version, **judged},
        steps={"answers": answers},
        data=_files(options, test),
        neutral={"judge": recipe.judge.model_dump()} if judged and recipe.judge else {},
        alone=True,
        renders=False,
        keys={
            "baseline": f"benchmarks.{name}.data",
            "difficulty": f"benchmarks.{name}.difficulty (a file, or null)",
            "gamed": f"benchmarks.{name}.gamed (a file, or null)",
        },
    )


def asked(result: Step) -> Step:
    """The step that read a benchmark's test rows, given the one that holds its result."""
    step = result.inputs.get("contexts") or result.inputs["answers"]
    assert not isinstance(step, dict)
    return step


def add_overlap(name: str, build: Builder) -> Step:
    """Add the step that looks for a benchmark's test rows among the training rows."""
    recipe = build.recipe
    test = test_source(recipe, name)
    assert test is not None  # the recipe's check has seen to it
    data = {"train": recipe.data.train, "test": test}
    if isinstance(recipe.data.preferences, Source):
        data["preferences"] = recipe.data.preferences
    return build.step(
        "overlap",
        "eval.contamination:check_overlap",
        title=f"training rows in {name}",
        options={"n": 13, "task": recipe.task, "test_task": task_of(recipe, name)},
        data=data,
        alone=True,
        renders=False,
    )


def _shots(recipe: Recipe, options: Options) -> Source | None:
    """The solved questions before each question, or None."""
    if not isinstance(options, Gsm8kOptions) or not options.few_shot:
        return None
    own = recipe.data.train if recipe.task == "gsm8k" else None
    source = options.shots or own or _SHOTS
    return source.model_copy(update={"limit": options.few_shot})


def _judge(recipe: Recipe, options: Options) -> dict[str, Any]:
    """What decides verdicts: the judge, what it is told, and in which orders it is asked."""
    from eval.judging import engine_for, template_for

    assert recipe.judge is not None  # the recipe's check has seen to it
    template = template_for(recipe.judge, options)
    told = None if template is None else asdict(template) | {"name": ""}  # a file may be renamed
    return {
        "judge": engine_for(recipe.judge).identity(),
        "reads": recipe.judge.reads,
        "template": told,
        "orders": recipe.judge.orders,
        "max_errors": recipe.judge.max_errors,
    }


def _files(options: Options, test: Source) -> dict[str, Source]:
    """AlpacaEval's own files, which its grading reads."""
    if not isinstance(options, AlpacaOptions):
        return {}
    files = {"difficulty": options.difficulty, "gamed": options.gamed}
    baseline = test.model_copy(update={"limit": None, "skip": 0})
    given = {role: source for role, source in files.items() if source is not None}
    return {"baseline": baseline, **given}
