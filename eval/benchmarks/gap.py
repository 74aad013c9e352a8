"""gap: how much worse a model predicts the reference after its own tokens.

A model is trained on reference tokens but has to continue its own. On held-out rows, prompt x and
reference y_1..y_T (y_T the end of turn), we measure the loss given contexts g with own tokens at
rate b:

    NLL_b = - 1/T sum_t log pi(y_t | x, g_<t)                       nats per token, of each row
    slope = sum_b (b - mean) (NLL_b - mean) / sum_b (b - mean)^2    nats from b = 0 to b = 1

Contexts are those of BASH (pipeline/rows/contexts.py): g_t = y_t with probability 1 - b, else a
token sampled given x and g_<t. `own` contexts are written by the evaluated model itself, so they
differ between models; `fixed` contexts are written by one stage for all, so only the losses differ.

Decisions:
1. A row is one example: its NLL is a mean over its tokens, and the slope a mean over rows. Long
   rows do not weigh more, and intervals resample rows.
2. Replaced positions and sampling noise depend on (0, row, position): they are the same for all
   models compared and for all training seeds, so that stages and seeds are paired. A position
   replaced at some rate is also replaced at every larger one.
3. `fixed` is the first SFT stage, or the first stage if there is none, with the same training seed
   as the evaluated model. For that stage itself both curves coincide.
4. Excluded tokens are those of BASH's contexts. The precision is that of all evaluation
   (pipeline/hardware/precision.py); log probabilities are computed in float32.
5. `agrees` counts tokens of the model's greedy answer that equal the reference's, by id, before the
   first that does not. Answers of another benchmark on the recipe's task are reused if they are
   greedy (for `tldr`: at its 0.01) and cover the same rows.
6. Accuracy by answer length uses all rows of that benchmark, in thirds by the length of the
   reference in tokens; rows of equal length stay together.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict, cast

from pydantic import Field

from eval.benchmarks import registry
from eval.benchmarks.results import Result, answers_to_grade, store
from eval.benchmarks.types import Benchmark, Options
from eval.graders.gap import agreement, is_reference, slope, thirds
from eval.stats.measures import Curve, Measure, curve, measure
from pipeline.data.tasks import Example
from pipeline.errors import Problem, StepFailedError, suggest
from pipeline.hardware.precision import NOT_FINITE
from pipeline.lazy import Mapped
from pipeline.recipe.schema import DEFAULT_MAX_LENGTH, Recipe, Share, Source
from pipeline.rows.stored import ROWS, Grade, SelfGeneratedRow, read_answers
from pipeline.steps import artifact
from pipeline.steps.artifact import StoredRows
from pipeline.steps.options import (
    AnswerOptions,
    ComputingOptions,
    DecodingRuntime,
    GapContextOptions,
    GapGradeOptions,
)
from pipeline.steps.spec import Model

if TYPE_CHECKING:
    from pipeline.data.load import TokenRow
    from pipeline.data.render import Renderer
    from pipeline.stages.builder import Builder
    from pipeline.steps.context import StepContext
    from pipeline.steps.spec import StepSpec

NAME = "gap"
LOSSES = "losses.jsonl"
DEFAULT_ROWS = 128
_NOISE_SEED = 0
# The first of these that is evaluated gets its scores plotted against reference length.
_SCORED = ("gsm8k", "accuracy", "rouge")
_NEARLY_GREEDY = 0.01
LENGTH = "length"
_nats = partial(measure, unit="nats", better="lower")


class Row(SelfGeneratedRow):
    """A context at one rate (`rows.jsonl`); its labels are the reference."""

    rate: float


class LossRow(TypedDict):
    """The loss on a context (`losses.jsonl`), summed over its reference tokens."""

    id: int
    rate: float
    nats: float
    tokens: int
    changed: int  # context tokens that differ from the reference


class GapGrade(Grade):
    """Of a row: the slope of its losses, and on how many tokens the greedy answer agrees."""

    slope: float
    agrees: int


class GapOptions(Options):
    """Keys of `gap`; `max_new_tokens` applies to greedy answers, unless they are reused.

    Attributes:
        limit: use the first rows only; by default 128, or the limit of `data`.
        rates: shares of tokens that the model fills in, rising from 0.
        fixed: the stage whose contexts are used for the second curve of all stages; null for none;
            by default the first SFT stage.
        temperature: sampling temperature of the tokens filled in; by default 1.
    """

    limit: int | None = Field(default=None, ge=1)
    rates: list[Share] = Field(default=[0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0], min_length=2)
    fixed: str | None = None
    temperature: Annotated[float, Field(gt=0)] | None = None


def check(recipe: Recipe) -> list[Problem]:
    """Check that rates rise from 0, and that the fixed stage exists."""
    given, problems = options_of(recipe), []
    rates = given.rates
    if rates[0] != 0 or any(low >= high for low, high in pairwise(rates)):
        message = f"{rates} must start at 0, where nothing is replaced, and increase"
        problems.append(Problem(f"benchmarks.{NAME}.rates", message))
    if given.fixed is not None and given.fixed not in recipe.stages:
        stages = list(recipe.stages)
        message = (
            f'no stage "{given.fixed}"{suggest(given.fixed, stages)}; stages: {", ".join(stages)}; '
            "null for own contexts only"
        )
        problems.append(Problem(f"benchmarks.{NAME}.fixed", message))
    return problems


def plan(build: Builder, model: Model) -> StepSpec:
    """Own contexts, losses on them and on those of the fixed stage, greedy answers, grades.

    For the fixed stage itself own and fixed contexts are the same steps, which run once.
    """
    own = _contexts(build, model)
    steps = {"contexts": own, "own": _losses(build, model, own, "own contexts")}
    fixed = fixed_stage(build.recipe)
    if fixed is not None:
        writer = build.sibling(fixed)
        written = _contexts(writer, writer.end)
        steps["fixed"] = _losses(build, model, written, f"contexts of {fixed}")
    asked = {
        name: registry.add_steps(name, build, model)
        for name in build.recipe.evaluate
        # Of its own rows `recovery` answers the first only.
        if name not in (NAME, "recovery")
        and registry.task_of(build.recipe, name) == build.recipe.task
    }
    steps["answers"] = _answers(build, model, asked)
    scored = next((asked[name] for name in _SCORED if name in asked), None)
    if scored is not None:
        answers = scored.inputs["answers"]
        steps |= {"scored": scored, "scored answers": answers}
    return build.step(
        NAME,
        BENCHMARK.run,
        title=f"grade {NAME}",
        options=GapGradeOptions(**build.rendering(), grader=BENCHMARK.version),
        model=Model(base=None),  # only its tokenizer is loaded
        steps=steps,
        main_process_only=True,
    )


def options_of(recipe: Recipe) -> GapOptions:
    """The benchmark's keys."""
    options = registry.options_of(recipe, NAME)
    assert isinstance(options, GapOptions)
    return options


def fixed_stage(recipe: Recipe) -> str | None:
    """The stage that writes the fixed contexts, or None (decision 3)."""
    given = options_of(recipe)
    if "fixed" in given.model_fields_set:
        return given.fixed
    methods = {name: stage.method for name, stage in recipe.stages.items()}
    return next((name for name, method in methods.items() if method == "sft"), next(iter(methods)))


def _rows(recipe: Recipe) -> Source:
    """The first rows of the test source, as many as `limit`, or the limit of `data`, says."""
    given, source = options_of(recipe), registry.test_source(recipe, NAME)
    assert source is not None  # the recipe has been checked
    own = None if given.data is None else given.data.limit
    return source.limited(given.limit or own or DEFAULT_ROWS)


def _contexts(build: Builder, model: Model) -> StepSpec:
    """Add the step in which a model writes contexts at every rate."""
    recipe, given = build.recipe, options_of(build.recipe)
    return build.step(
        "gap-contexts",
        "eval.gap_steps:write_contexts",
        title=f"contexts for {NAME}",
        model=model,
        data={"test": _rows(recipe)},
        options=GapContextOptions(
            **build.rendering(max_prompt_length=given.max_prompt_length),
            rates=given.rates,
            noise_seed=_NOISE_SEED,
            context="mixed",
            temperature=given.temperature or 1.0,
            top_k=0,
            top_p=1.0,
            excluded_ids=None,
            max_length=recipe.trainer.get("max_length", DEFAULT_MAX_LENGTH),
            **recipe.reading,
        ),
        runtime_options=DecodingRuntime(**build.writing, engine="parallel"),
        keys={} if given.data is None else {"test": f"benchmarks.{NAME}.data"},
    )


def _losses(build: Builder, model: Model, contexts: StepSpec, whose: str) -> StepSpec:
    """Add the step that computes a model's losses on contexts."""
    return build.step(
        "gap-losses",
        "eval.gap_steps:write_losses",
        title=f"losses on {whose}",
        model=model,
        steps={"contexts": contexts},
        options=ComputingOptions(**build.recipe.reading),
        runtime_options=build.writing,
    )


def _answers(build: Builder, model: Model, asked: dict[str, StepSpec]) -> StepSpec:
    """Greedy answers: those of another benchmark, or of a new step (decision 5)."""
    recipe, given, rows = build.recipe, options_of(build.recipe), _rows(build.recipe)
    limit = given.max_prompt_length or recipe.prompt_limit(recipe.task)
    for name, result in asked.items():
        answers: StepSpec[AnswerOptions] = result.inputs["answers"]
        source = registry.test_source(recipe, name)
        if (
            source is not None
            and source.limited(rows.limit) == rows
            and answers.options["temperature"] <= _NEARLY_GREEDY
            and answers.options["samples"] == 1
            and answers.options["max_prompt_length"] == limit
            and "few_shot" not in answers.options
            and given.max_new_tokens in (None, answers.options["max_new_tokens"])
        ):
            return answers
    return build.answers(
        model,
        source=rows,
        role="test",
        title=f"answers for {NAME}",
        max_new_tokens=given.max_new_tokens,
        max_prompt_length=given.max_prompt_length,
        keys={} if given.data is None else {"test": f"benchmarks.{NAME}.data"},
    )


def write_contexts(step: StepContext[GapContextOptions]) -> None:
    """Step: write contexts for all held-out rows at all rates; at rate 0, the reference."""
    from pipeline.data.load import describe_losses, load_examples, tokenise, warn_of_repeats
    from pipeline.data.render import renderer_for
    from pipeline.models.load import load_to_read
    from pipeline.rows.shards import write_in_shards
    from pipeline.stages.bash import mixer, row_size

    options, renderer = step.options, renderer_for(step)
    source = step.source("test")
    examples = load_examples(source, options["task"], step.warn, renderer)
    warn_of_repeats(examples, source, step.warn)
    limits = [size for size in (options["max_length"], renderer.window) if size is not None]
    longest = min(limits, default=None)
    token_rows, counts = tokenise(examples, renderer, max_length=longest)
    prompts = renderer.max_prompt_length
    if words := describe_losses(counts, max_length=longest, max_prompt_length=prompts):
        step.warn(words)
    rates = options["rates"]
    mix = mixer(step, load_to_read(step), renderer, seed=options["noise_seed"])

    def make(items: Sequence[tuple[TokenRow, int]]) -> Iterator[Row]:
        for place, rate in enumerate(rates):
            for row in mix(rate, [row for row, at in items if at == place]):
                yield {**row, "rate": rate}

    rows = write_in_shards(
        step,
        [(row, place) for row in token_rows for place in range(len(rates))],
        make,
        key=lambda item: (item[0].row_id, item[1]),
        size=lambda item: row_size(item[0]),
        row_key=lambda row: (row["id"], rates.index(row["rate"])),
        tokens=_written,
        file_name=ROWS,
    )
    step.metrics |= {"rows": len(rows), "tokens_generated": sum(map(_written, rows))}
    changed, filled = dict.fromkeys(rates, 0), dict.fromkeys(rates, 0)
    for row in rows:
        changed[row["rate"]] += _changed(row)
        filled[row["rate"]] += _written(row)
    step.metrics["figures"] = {"rows": len(token_rows)} | {
        f"differ at {rate:g}": changed[rate] / filled[rate] for rate in rates[1:]
    }


def write_losses(step: StepContext[ComputingOptions]) -> None:
    """Step: compute the loss on each context, summed over its reference tokens, in nats.

    Raises:
        StepFailedError: if a loss is NaN or infinite.
    """
    from pipeline.models.load import load_to_read
    from pipeline.rows.corrections import Own
    from pipeline.rows.diagnostics import losses_as_done
    from pipeline.rows.shards import length_buckets, write_in_shards

    file = step.input_folders()["contexts"] / ROWS
    written = cast(Sequence[Row], StoredRows(file))
    contexts = [_Context.of(number, row) for number, row in enumerate(written)]
    rates = sorted({context.rate for context in contexts})
    model, batch_tokens = load_to_read(step).eval(), step.runtime_options["batch_tokens"]

    def own(group: Sequence[_Context]) -> Own:
        row = written[group[0].number]
        said = len(labels_of(row))
        return Own(row["input_ids"][:-said], row["input_ids"][-said:], row["id"])

    def make(contexts: Sequence[_Context]) -> Iterator[LossRow]:
        # A confident model often writes the reference; the loss of equal contexts is computed once.
        alike: dict[tuple[int, bytes], list[_Context]] = {}
        for context in contexts:
            alike.setdefault((context.row_id, context.digest), []).append(context)
        groups = list(alike.values())
        for group, at_once in length_buckets(groups, lambda alike: alike[0].size, batch_tokens):
            labels = Mapped(lambda alike: labels_of(written[alike[0].number]), group)
            losses = losses_as_done(model, Mapped(own, group), labels, batch_size=at_once)
            for place, nats in losses:
                for one in group[place]:
                    if not math.isfinite(nats):
                        at = f"{file}:{one.number + 1}"
                        raise StepFailedError(f"the loss of {at} is {nats}: {NOT_FINITE}")
                    yield _loss_row(written[one.number], nats)

    rows = write_in_shards(
        step,
        contexts,
        make,
        key=lambda context: (context.row_id, rates.index(context.rate)),
        size=lambda context: context.size,
        row_key=lambda row: (row["id"], rates.index(row["rate"])),
        tokens=lambda row: row["tokens"],
        file_name=LOSSES,
    )
    step.metrics |= {"rows": len(rows), "tokens_read": sum(one.size for one in contexts)}


@dataclass(frozen=True)
class _Context:
    """A stored context, without its tokens: equal ones have equal digests."""

    number: int
    row_id: int
    rate: float
    size: int
    digest: bytes

    @classmethod
    def of(cls, number: int, row: Row) -> _Context:
        ids = array("q", row["input_ids"])
        return cls(number, row["id"], row["rate"], len(ids), blake2b(ids, digest_size=16).digest())


def _loss_row(row: Row, nats: float) -> LossRow:
    return {
        "id": row["id"],
        "rate": row["rate"],
        "nats": nats,
        "tokens": len(labels_of(row)),
        "changed": _changed(row),
    }


def labels_of(row: Row) -> list[int]:
    """The token ids of the reference of a row."""
    return [label for label in row["labels"] if label != -100]


def _written(row: Row) -> int:
    """Tokens that the model may have replaced: none at rate 0, which is the reference."""
    return len(labels_of(row)) if row["rate"] else 0


def _changed(row: Row) -> int:
    """The number of context tokens that differ from the reference."""
    pairs = zip(row["input_ids"], row["labels"], strict=True)
    return sum(label not in (-100, token) for token, label in pairs)


@dataclass(frozen=True)
class Losses:
    """A model's losses on contexts.

    Attributes:
        ids: row ids, [N].
        rates: rates, rising from 0, [R].
        nats: nats per token, [R][N].
        changed: share of context tokens that differ from the reference, [R][N].
    """

    ids: list[int]
    rates: list[float]
    nats: list[list[float]]
    changed: list[list[float]]

    @classmethod
    def read(cls, folder: Path) -> Losses:
        """Read the losses stored by a step."""
        known = {
            (row["rate"], row["id"]): (row["nats"] / row["tokens"], row["changed"] / row["tokens"])
            for row in cast(Sequence[LossRow], StoredRows(folder / LOSSES))
        }
        rates, ids = sorted({rate for rate, _ in known}), sorted({row for _, row in known})

        def table(column: int) -> list[list[float]]:
            return [[known[rate, i][column] for i in ids] for rate in rates]

        return cls(ids, rates, table(0), table(1))

    @property
    def slopes(self) -> list[float]:
        """The slope of each row."""
        return [slope(self.rates, row) for row in zip(*self.nats, strict=True)]

    @property
    def curve(self) -> Curve:
        """One measure per rate."""
        points = zip(self.rates, self.nats, strict=True)
        return curve(self.ids, {f"{rate:g}": _nats(nats) for rate, nats in points})


def grade(step: StepContext[GapGradeOptions]) -> None:
    """Step: grade the losses on contexts; writes grades.jsonl and result.json."""
    from pipeline.data.render import renderer_for

    folders, renderer = step.input_folders(), renderer_for(step)
    own = Losses.read(folders["own"])
    agreed = _agreements(step, folders["contexts"], renderer, own.ids)
    measures: dict[str, Measure] = {"gap slope": _nats(own.slopes)}
    curves = {"own": own.curve}
    if "fixed" in folders:
        fixed = Losses.read(folders["fixed"])
        measures["slope, fixed contexts"] = _nats(fixed.slopes)
        curves["fixed"] = fixed.curve
    measures |= {
        "NLL at 0": _nats(own.nats[0]),
        "tokens changed": measure(own.changed[-1]),
        "agrees": measure([same for same, *_ in agreed], unit="tokens"),
        "agrees to the end": measure([is_whole for _, _, is_whole in agreed]),
    }
    if "scored" in folders:
        curves[LENGTH] = _by_length(folders["scored"], folders["scored answers"], renderer, step)
    grades: list[GapGrade] = [
        {
            "id": row,
            "verdict": f"as the reference for {same} of {size} tokens",
            "slope": row_slope,
            "agrees": same,
        }
        for row, row_slope, (same, size, _) in zip(own.ids, own.slopes, agreed, strict=True)
    ]
    counts = {"read": len(grades)}
    store(step, grades=grades, measures=measures, counts=counts, curves=curves)


def _agreements(
    step: StepContext, contexts: Path, renderer: Renderer, ids: Sequence[int]
) -> list[tuple[int, int, bool]]:
    """For each row: tokens on which the greedy answer agrees, their total, and `is_reference`."""
    rows, answers = cast(Sequence[Row], StoredRows(contexts / ROWS)), answers_to_grade(step)
    reference_at = {row["id"]: at for at, row in enumerate(rows) if row["rate"] == 0}
    answer_at = {row["id"]: at for at, row in enumerate(answers)}
    agreed = []
    for row_id in ids:
        answer, reference = answers[answer_at[row_id]], labels_of(rows[reference_at[row_id]])
        own = renderer.own_answer_ids(answer["ids"], finished=answer["finished"])
        is_whole = is_reference(own, reference, renderer.end_of_turn_id)
        agreed.append((agreement(own, reference), len(reference), is_whole))
    return agreed


def _by_length(
    scored: Path, answers: Path, renderer: Renderer, step: StepContext[GapGradeOptions]
) -> Curve:
    """The scores of another benchmark by the length of the reference."""
    result: Result = artifact.read_json(scored / artifact.RESULT)
    name = result["primary"]
    primary = result["measures"][name]
    assert "scores" in primary  # as those of all that are listed here
    scores = dict(zip(result["ids"], primary["scores"], strict=True))
    lengths = {}
    for row in read_answers(answers):
        example = Example(step.options["task"], row["messages"], row["reference"])
        lengths[row["id"]] = len(renderer.answer_ids(example, example.reference))
    measures: dict[str, Measure] = {}
    for name_of_third, third in thirds(lengths).items():
        inside = [scores[i] if i in third else None for i in scores]
        if any(score is not None for score in inside):
            measures[name_of_third] = measure(inside, unit=primary["unit"])
    return {**curve(list(scores), measures), "of": f"{result['benchmark']} {name}"}


BENCHMARK = Benchmark(run="eval.gap_grades:grade", options=GapOptions, check=check, plan=plan)
