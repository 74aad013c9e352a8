"""BASH: train each reference token on contexts that mix reference and self-generated tokens.

L = L_SFT(y | x, y) + lambda ( - sum_t log pi_theta(y_t | x, g_<t) )     (Cen et al. 2025)

Each round: the current model writes contexts g (pipeline/rows/contexts.py, which lists our choices
where the paper is silent), then stock SFT trains on reference rows and on rows with
`input_ids` = x + g and `labels` = y, shuffled together. `lambda` is the ratio of mixed-context rows
to reference rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from pipeline.errors import Problem
from pipeline.recipe.schema import Recipe, RoundOptions, Strict
from pipeline.rows.stored import ROWS, SelfGeneratedRow
from pipeline.stages import sft
from pipeline.steps.options import ContextOptions, DecodingRuntime, MixingOptions

if TYPE_CHECKING:
    from pipeline.data.load import TokenRow
    from pipeline.data.render import Renderer
    from pipeline.stages.builder import Builder
    from pipeline.steps.context import StepContext
    from pipeline.steps.spec import Model

    # (rate at which tokens are replaced, token rows) -> mixed-context rows
    Mix = Callable[[float, Sequence[TokenRow]], Iterator[SelfGeneratedRow]]

Rate = Annotated[float, Field(ge=0, le=1)]


class Schedule(Strict):
    """Beta over rounds r = 1..R, with the three schedules of Bengio et al. (2015).

    linear: from `start` to `end`. exponential: 1 - k^r, k in (0, 1). inverse_sigmoid:
    1 - k / (k + exp(r / k)), k > 0.
    """

    schedule: Literal["linear", "exponential", "inverse_sigmoid"]
    start: Rate | None = None
    end: Rate | None = None
    k: Annotated[float, Field(gt=0)] | None = None

    def at(self, round_number: int, rounds: int) -> float:
        """Beta in a round; rounds count from 1."""
        if self.schedule == "linear":
            assert self.start is not None and self.end is not None  # ensured by `check`
            share = (round_number - 1) / (rounds - 1) if rounds > 1 else 0.0
            return self.start + share * (self.end - self.start)
        assert self.k is not None
        if self.schedule == "exponential":
            return 1 - self.k**round_number
        return 1 - self.k / (self.k + math.exp(round_number / self.k))


class Options(RoundOptions):
    """Keys of a `bash` stage."""

    method: Literal["bash"]
    beta: Rate | Schedule = 0.2
    ratio: float = Field(default=1.0, ge=0, alias="lambda")
    context: Literal["mixed", "gold"] = "mixed"
    engine: Literal["parallel", "sequential"] = "parallel"
    excluded_ids: list[Annotated[int, Field(ge=0)]] | None = None


def check(name: str, stage: Options, recipe: Recipe) -> list[Problem]:
    """A schedule needs exactly the parameters of its kind."""
    del recipe
    if not isinstance(stage.beta, Schedule):
        return []
    given = {key for key in ("start", "end", "k") if getattr(stage.beta, key) is not None}
    needed = {"start", "end"} if stage.beta.schedule == "linear" else {"k"}
    problems = []
    if given != needed:
        message = f"a {stage.beta.schedule} schedule takes {' and '.join(sorted(needed))} only"
        problems.append(Problem(f"stages.{name}.beta", message))
    elif stage.beta.schedule == "exponential" and not 0 < (stage.beta.k or 0) < 1:
        problems.append(Problem(f"stages.{name}.beta.k", "an exponential schedule needs k below 1"))
    return problems


def plan(stage: Options, build: Builder) -> Model:
    """Two steps per round: contexts, train."""
    model = build.start
    data = {"train": build.train_rows}
    for number in range(1, stage.rounds + 1):
        beta = (
            stage.beta.at(number, stage.rounds) if isinstance(stage.beta, Schedule) else stage.beta
        )
        contexts = build.step(
            "contexts",
            "pipeline.stages.bash:write_contexts",
            title=build.in_round("contexts", number),
            model=model,
            data=data,
            options=ContextOptions(
                **build.rendering(),
                **build.recipe.trained_turns,
                beta=float(beta),
                round=number,
                context=stage.context,
                temperature=stage.temperature,
                top_k=stage.top_k,
                top_p=stage.top_p,
                excluded_ids=stage.excluded_ids,
                max_length=build.recipe.trainer_for(stage)["max_length"],
                **build.recipe.reading,
            ),
            runtime_options=DecodingRuntime(**build.writing, engine=stage.engine),
        )
        turns = build.recipe.trained_turns
        model = sft.train_round(build, model, contexts, number, stage.ratio, more={**turns})
    return model


def write_contexts(step: StepContext[ContextOptions]) -> None:
    """Step: write one mixed-context row per training row."""
    from pipeline.data.load import load_examples, tokenise
    from pipeline.data.render import renderer_for
    from pipeline.models.load import load_to_read
    from pipeline.rows.shards import write_in_shards

    options = step.options
    renderer = renderer_for(step)
    turns, source = options.get("train_on", "last"), step.source("train")
    examples = load_examples(source, options["task"], step.warn, renderer, train_on=turns)
    token_rows, _ = tokenise(examples, renderer, max_length=options["max_length"])
    model = load_to_read(step)
    mix = mixer(step, model, renderer, seed=step.seed_of_round())
    rows = write_in_shards(
        step,
        token_rows,
        partial(mix, options["beta"]),
        key=lambda row: (row.row_id,),
        size=row_size,
        row_key=lambda row: (row["id"],),
        tokens=sft.label_count,
        file_name=ROWS,
    )
    _measure(step, model, rows, token_rows)


def mixer(step: StepContext[MixingOptions], model: Any, renderer: Renderer, *, seed: int) -> Mix:
    """Return a function from (rate, token rows) to mixed-context rows.

    It expects rows by decreasing size; `seed` determines the replaced positions and the noise.
    """
    from pipeline.decoding.sampling import Sampling, default_excluded_ids
    from pipeline.rows.contexts import Reference, iter_contexts
    from pipeline.rows.shards import length_buckets

    options = step.options
    excluded = options["excluded_ids"]
    if excluded is None:  # the template may end turns with a token that the generation config lacks
        special = {*default_excluded_ids(model), *renderer.special_ids}
        excluded = sorted({*special, renderer.end_of_turn_id})
    excluded = (*excluded, *renderer.ids_without_token)
    sampling = Sampling(seed, options["temperature"], options["top_k"], options["top_p"], excluded)

    @cache
    def warn(sentence: str) -> None:
        step.warn(sentence)

    def mix(beta: float, token_rows: Sequence[TokenRow]) -> Iterator[SelfGeneratedRow]:
        for group, at_once in length_buckets(
            token_rows, row_size, step.runtime_options["batch_tokens"]
        ):
            done = iter_contexts(
                model,
                [Reference(row.prompt, row.answer, row.row_id) for row in group],
                sampling,
                beta=beta,
                engine=step.runtime_options["engine"],
                context=options["context"],
                batch_size=at_once,
                warn=warn,
            )
            for place, context in done:
                row = group[place]
                yield sft.self_generated_row(row.row_id, row.prompt, context, row.answer)

    return mix


def row_size(row: TokenRow) -> int:
    """The number of tokens of prompt and reference."""
    return len(row.prompt) + len(row.answer)


def _measure(
    step: StepContext, model: Any, rows: Sequence[SelfGeneratedRow], token_rows: list[TokenRow]
) -> None:
    """Record how far the contexts are from the references, and warn when it is too far."""
    from pipeline.rows import diagnostics

    answers = changed = 0
    for row in rows:
        answers += sft.label_count(row)
        pairs = zip(row["input_ids"], row["labels"], strict=True)
        changed += sum(label not in (-100, token) for token, label in pairs)
    step.metrics |= {"rows": len(rows), "tokens_generated": answers}
    step.metrics["figures"] = {
        "rows": len(rows),
        "answer tokens": answers,
        "differ from the reference": changed / answers,
    }
    diagnostics.warn_over(
        step,
        "tokens_changed",
        changed / answers,
        f"{changed} of {answers} context tokens differ from the reference; training on contexts "
        "far from it is slow; lower the stage's beta",
    )
    diagnostics.compare_losses(
        step, model, "mixed", rows, {row.row_id: row for row in token_rows},
        way_out="lower the stage's beta",
    )  # fmt: skip
    diagnostics.check_rate(step)
