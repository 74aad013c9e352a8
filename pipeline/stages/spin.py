"""SPIN (Chen et al. 2024, arXiv 2401.01335): prefer the reference over the self-generated answer.

Round k: rejected yhat ~ pi_k(. | x), chosen y; the DPO sigmoid loss with pi_k as reference model
gives pi_k+1. From the second round on, the data are those of the current and the previous round.
Training is that of DPO (pipeline/stages/dpo.py), so the first loss of every round must be ln 2.

The authors' code generated with a different chat template than it trained with, and doubled the end
token. Here both use one rendering; chosen and rejected answers end with exactly one end-of-turn
token, and answers cut at the token limit with none. Their settings were: 50,000 prompts, batch 64,
rmsprop, linear decay with a tenth of warm-up, learning rate 5e-7 in rounds 0 and 1 and 1e-7 after,
beta 0.1, and 5.0 in the last of four rounds.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from pipeline.errors import InputError, Problem
from pipeline.recipe.schema import Recipe, RoundOptions
from pipeline.rows.stored import AnswerRow, PairRow
from pipeline.stages import dpo

if TYPE_CHECKING:
    from pipeline.stages.builder import Builder
    from pipeline.steps.context import StepContext
    from pipeline.steps.spec import Model, StepSpec

Positive = Annotated[float, Field(gt=0)]
_PER_ROUND = ("learning_rate", "beta")


class Options(RoundOptions):
    """Keys of a `spin` stage.

    `learning_rate` and `beta` are one value, or one per round, and override `trainer:`; `prompts`
    limits the prompts of a round; `temperature`, `top_k` and `top_p` apply to the answers.
    """

    method: Literal["spin"]
    prompts: int | None = Field(default=None, ge=1)
    learning_rate: Positive | list[Positive] | None = None
    beta: Positive | list[Positive] | None = None

    def of_round(self, number: int) -> dict[str, float]:
        """The trainer options of a round; rounds count from 1."""
        given = {key: getattr(self, key) for key in _PER_ROUND}
        return {
            key: value[number - 1] if isinstance(value, list) else value
            for key, value in given.items()
            if value is not None
        }


def check(name: str, stage: Options, recipe: Recipe) -> list[Problem]:
    """Check the length of per-round lists, keys given twice, and that the loss is SPIN's."""
    problems = []
    if recipe.trainer_for(stage).get("loss_type", ["sigmoid"]) != ["sigmoid"]:
        message = "SPIN's loss is [sigmoid]; set another one in the dpo stages that need it"
        problems.append(Problem(f"stages.{name}.trainer.loss_type", message))
    for key in _PER_ROUND:
        values = getattr(stage, key)
        if values is None:
            continue
        if isinstance(values, list) and len(values) != stage.rounds:
            message = f"has {len(values)} values for {stage.rounds} rounds; give one per round"
            problems.append(Problem(f"stages.{name}.{key}", message))
        if key in stage.trainer:
            message = f"is also given in stages.{name}.{key}; remove one of them"
            problems.append(Problem(f"stages.{name}.trainer.{key}", message))
    return problems


def plan(stage: Options, build: Builder) -> Model:
    """Three steps per round: answers, pairs, train."""
    model = build.start
    source = build.train_rows.limited(stage.prompts)
    earlier: dict[str, StepSpec] = {}
    for number in range(1, stage.rounds + 1):
        answers = build.own_answers(model, source, number)
        pairs = build.step(
            "pairs",
            "pipeline.stages.spin:write_pairs",
            title=build.in_round("pairs", number),
            steps={"answers": answers, **earlier},
        )
        earlier = {"earlier": answers}
        model = build.train(
            dpo.TRAIN,
            title=build.in_round("train", number),
            model=model,
            steps={"pairs": pairs},
            trainer=stage.of_round(number),
        )
    return model


def write_pairs(step: StepContext) -> None:
    """Step: pair the reference with the self-generated answers of this and the previous round.

    Raises:
        InputError: if every answer equals its reference.
    """
    from pipeline.rows.answers import answer_figures
    from pipeline.rows.pairs import read_answers_of, store_pairs

    current = read_answers_of(step, "answers")
    earlier = read_answers_of(step, "earlier") if "earlier" in step.locations else ()
    rows = chain(current, earlier)
    pairs = store_pairs(step, (pair for row in rows if (pair := pair_against_reference(row))))
    step.metrics["figures"] = {**answer_figures(current), "pairs": pairs}
    if not pairs:
        raise InputError(
            f"all {len(current)} own answers equal their reference, so there is nothing to reject; "
            "use fewer rounds, or start from another stage"
        )


def pair_against_reference(row: AnswerRow) -> PairRow | None:
    """Return the reference over the own answer, or None if they are equal (no gradient)."""
    from pipeline.rows.answers import is_reference
    from pipeline.rows.pairs import own_pair

    return None if is_reference(row) else own_pair(chosen=None, rejected=row)
