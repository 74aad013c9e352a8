"""DPO (Rafailov et al. 2023): prefer the chosen answer over the rejected one.

The reference model is the stage it starts from: the saved weights (full fine-tuning) or a frozen
copy of the adapter (LoRA), both set up by stock `trl.DPOTrainer`. At the first step policy and
reference agree, so the loss must be ln 2 (plus the auxiliary loss of a mixture of experts); if it
is not, the run stops.

Preference pairs come from a source with prompt, chosen and rejected, or are made from the model's
own answers (`data.preferences: self`, or `pairs: self` in the stage): `samples` answers to each
training prompt. If the task grades answers (gsm8k, or a task file with `grade`), chosen is a
correct answer (the reference if there is none) and rejected a wrong one; prompts without a wrong
answer are left out and counted. Otherwise chosen is the finished answer closest to the reference by
ROUGE-L and rejected the one farthest from it; prompts whose answers all score the same are left out
and counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from pipeline.errors import InputError, Problem, StepFailedError
from pipeline.recipe.schema import Recipe, SamplingOptions, Source
from pipeline.rows.stored import AnswerRow, PairRow

if TYPE_CHECKING:
    from pipeline.recipe.schema import TrainerOptions
    from pipeline.rows.table import PairTable
    from pipeline.stages.builder import Builder
    from pipeline.steps.context import StepContext
    from pipeline.steps.options import PairOptions, TrainOptions
    from pipeline.steps.spec import Model

TRAIN = "pipeline.stages.dpo:train"
# Options with which the first loss need not be ln 2: other losses, weights, noise.
_NOT_LN2 = ("loss_weights", "use_weighting", "neftune_noise_alpha")
# The tolerance of the first loss in 16 bits; in float32, what is logged and the error of a token.
_ROUGHLY, _LOGGED, _FLOAT32 = 0.02, 1e-4, 1e-5
_FOR_SELF = {"samples", "prompts", "temperature", "top_k", "top_p"}


class Options(SamplingOptions):
    """Keys of a `dpo` stage; all but `pairs` apply to pairs from the model's own answers only."""

    method: Literal["dpo"]
    pairs: Literal["self"] | None = None
    samples: int = Field(default=4, ge=2)
    prompts: int | None = Field(default=None, ge=1)

    def from_own_answers(self, recipe: Recipe) -> bool:
        """Whether pairs are made from the model's own answers."""
        return self.pairs == "self" or recipe.data.preferences == "self"


def check(name: str, stage: Options, recipe: Recipe) -> list[Problem]:
    """DPO needs preferences, from a source or from the model's own answers."""
    if stage.from_own_answers(recipe):
        return []
    if recipe.data.preferences is None:
        message = "dpo needs data.preferences (a source of prompt/chosen/rejected) or pairs: self"
        return [Problem(f"stages.{name}", message)]
    own = sorted(stage.model_fields_set & _FOR_SELF)
    return [Problem(f"stages.{name}.{key}", "is for pairs: self, not a source") for key in own]


def plan(stage: Options, build: Builder) -> Model:
    """One training step, preceded by answers and pairs if pairs are self-generated."""
    preferences = build.recipe.data.preferences
    if isinstance(preferences, Source) and not stage.from_own_answers(build.recipe):
        data = {"preferences": preferences}
        return build.train(TRAIN, title="train", model=build.start, data=data)
    answers = build.answers(
        build.start,
        source=build.train_rows.limited(stage.prompts),
        role="train",
        title=f"{stage.samples} answers a prompt",
        samples=stage.samples,
        sampling=stage,
    )
    write = "pipeline.stages.dpo:write_pairs"
    options = _ranking(build.recipe.task)
    pairs = build.step("pairs", write, title="pairs", steps={"answers": answers}, options=options)
    return build.train(TRAIN, title="train", model=build.start, steps={"pairs": pairs})


def _ranking(task: str) -> PairOptions:
    """The option that says how answers are ranked: by the task's own grader, else by ROUGE-L."""
    from pipeline.rows.graded import has_grader

    if task == "gsm8k":
        return {}
    return {"task": task} if has_grader(task) else {"told_by": "ROUGE-L"}


def write_pairs(step: StepContext[PairOptions]) -> None:
    """Step: make preference pairs from several answers to each prompt.

    Raises:
        InputError: if no prompt has one answer that is better than another.
    """
    from pipeline.rows.pairs import read_answers_of, store_pairs

    by_rouge = step.options.get("told_by") == "ROUGE-L"
    prompts = without_right = 0

    def pairs() -> Iterator[PairRow]:
        nonlocal prompts, without_right
        for _, rows in groupby(read_answers_of(step, "answers"), key=itemgetter("id")):
            prompts += 1
            if by_rouge:
                pair = pair_by_rouge(list(rows))
            else:
                pair, has_right = pair_of(list(rows), step.options.get("task", "gsm8k"))
                without_right += not has_right
            if pair is not None:
                yield pair

    made = store_pairs(step, pairs())
    if by_rouge:
        left_out = {"prompts without a worse answer": prompts - made}
    else:
        left_out = {
            "prompts without a right answer": without_right,
            "prompts without a wrong answer": prompts - made,
        }
    step.metrics["figures"] = {"prompts": prompts, "pairs": made, **left_out}
    if not made:
        raise InputError(
            f"no answer to any of the {prompts} prompts is "
            f"{'worse than another' if by_rouge else 'wrong'}, so there is nothing to reject; "
            "raise the stage's temperature or samples, or give data.preferences"
        )


def pair_of(rows: list[AnswerRow], task: str = "gsm8k") -> tuple[PairRow | None, bool]:
    """Return (pair or None, whether any answer was right) for one prompt's answers."""
    from pipeline.rows.graded import is_right
    from pipeline.rows.pairs import own_pair

    graded = [(row, is_right(row, task)) for row in rows]
    right = [row for row, is_right in graded if is_right and row["finished"]]
    chosen = right[0]["answer"] if right else rows[0]["reference"]
    wrong = [row for row, is_right in graded if not is_right and row["answer"] != chosen]
    if not wrong:
        return None, bool(right)
    return own_pair(chosen=right[0] if right else None, rejected=wrong[0]), bool(right)


def pair_by_rouge(rows: list[AnswerRow]) -> PairRow | None:
    """Return the finished answer closest to the reference over the farthest, None if all tie.

    Also None for a reference that ROUGE cannot read.
    """
    from pipeline.rows.graded import rouge_l
    from pipeline.rows.pairs import own_pair

    known = [(score, row) for row in rows if (score := rouge_l(row)) is not None]
    finished = [(score, row) for score, row in known if row["finished"]]
    if not finished:
        return None
    best, worst = max(finished, key=itemgetter(0)), min(known, key=itemgetter(0))
    return None if best[0] == worst[0] else own_pair(chosen=best[1], rejected=worst[1])


def train(step: StepContext[TrainOptions]) -> None:
    """Step: train on preference pairs with stock `trl.DPOTrainer`."""
    from pipeline.data.preflight import check_rows
    from pipeline.data.render import renderer_for
    from pipeline.rows.pairs import read_pairs
    from pipeline.train.trainer import fit

    renderer = renderer_for(step)
    pairs = read_pairs(step, renderer)
    check_rows(step, pairs.sides, renderer)
    trainer = make_trainer(step, pairs, renderer.tokenizer)
    if starts_at_ln2(step.options["trainer"]):
        coefficient = trainer.router_aux_loss_coef
        tolerance = _ROUGHLY if coefficient else ln2_tolerance(step, pairs.longest_answer)
        trainer.add_callback(_first_loss_check(coefficient, tolerance))
    fit(step, trainer, tokens_per_epoch=sum(map(sum, pairs.sizes)))


def make_trainer(step: StepContext[TrainOptions], pairs: PairTable, tokenizer: Any) -> Any:
    """Return stock `trl.DPOTrainer` over pairs of (chosen, rejected), weights loaded.

    DPOTrainer insists on tokenising text itself; it gets empty text, and the collator takes our
    token ids instead, so that all stages share one rendering.
    """
    from trl import DPOConfig, DPOTrainer

    from pipeline.models.load import load_for
    from pipeline.rows.table import dataset_of_pairs
    from pipeline.train.adapters import complete_reference, train_in_float32
    from pipeline.train.dropout import without_noise
    from pipeline.train.sampler import arrange_batches
    from pipeline.train.trainer import load_trainable, training_arguments

    model, peft_config = load_trainable(step)
    arguments = training_arguments(step, DPOConfig, remove_unused_columns=False)
    reference = None  # with an adapter: the base model alone, or a frozen copy that TRL keeps
    if step.options["lora"] is None:
        reference = load_for(step)
    if arguments.disable_dropout:
        for module in (model, reference):
            if module is not None:
                without_noise(module)
    trainer = DPOTrainer(
        model=model,
        ref_model=reference,
        args=arguments,
        train_dataset=dataset_of_pairs(pairs),
        processing_class=tokenizer,
        data_collator=_collator(tokenizer, arguments),
        peft_config=peft_config,
    )
    train_in_float32(step, trainer.model)
    complete_reference(trainer.model)
    arrange_batches(step, trainer, pairs.sizes)
    return trainer


def starts_at_ln2(trainer: TrainerOptions) -> bool:
    """Whether the loss must be ln 2 as long as policy and reference agree."""
    known_loss = trainer.get("loss_type", ["sigmoid"]) in (["sigmoid"], ["robust"])
    no_dropout = trainer.get("disable_dropout", True)
    return known_loss and no_dropout and not any(trainer.get(name) for name in _NOT_LN2)


def ln2_tolerance(step: StepContext, longest: int) -> float:
    """How far rounding can take the first loss from ln 2; answers have up to `longest` tokens.

    A margin sums 4 log probabilities (of two models and two answers) over as many tokens. In
    float32 each is off by less than _FLOAT32, so the margin by less than 4 _FLOAT32 `longest`, and
    the loss, whose slope is beta / 2 at 0, by less than 2 beta _FLOAT32 `longest`. Smoothed labels
    make the slope of a robust loss steeper.
    """
    options = {**step.options["trainer"], **step.runtime_options["trainer"]}
    precision = step.precision
    exact = precision.compute == precision.weights == "float32" and precision.autocast is None
    if not exact or step.options.get("quantize") or options.get("tf32"):
        return _ROUGHLY
    beta = options.get("beta", 0.1) / (1 - 2 * options.get("label_smoothing", 0.0))
    return min(_ROUGHLY, _LOGGED + 2 * beta * _FLOAT32 * longest)


def _collator(tokenizer: Any, arguments: Any) -> Any:
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    stock = DataCollatorForPreference(
        pad_token_id=tokenizer.pad_token_id,
        max_length=arguments.max_length,
        truncation_mode=arguments.truncation_mode,
        pad_to_multiple_of=arguments.pad_to_multiple_of,
    )

    def collate(examples: list[dict[str, Any]]) -> Any:
        names = {
            "row_prompt": "prompt_ids",
            "row_chosen": "chosen_ids",
            "row_rejected": "rejected_ids",
        }
        reference = ("ref_chosen_logps", "ref_rejected_logps")
        return stock(
            [
                {new: example[old] for old, new in names.items()}
                | {name: example[name] for name in reference if name in example}
                for example in examples
            ]
        )

    return collate


def _first_loss_check(router_aux_loss_coef: float = 0.0, tolerance: float = _ROUGHLY) -> Any:
    """A callback that stops training if the first loss is not ln 2.

    For a mixture of experts TRL adds the auxiliary loss, which it also logs, times a coefficient.
    """
    from transformers import TrainerCallback

    class FirstLoss(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if state.global_step != 1 or not logs or "loss" not in logs:
                return
            loss = logs["loss"] - router_aux_loss_coef * logs.get("aux_loss", 0.0)
            if not abs(loss - math.log(2)) <= tolerance:
                raise StepFailedError(
                    f"the first DPO loss is {loss:.5f}, not ln 2 = 0.69315: policy and reference "
                    "disagree before anything is trained. Either the reference model is not the "
                    "model that training starts from, or this model is random in training mode (an "
                    "unusual kind of dropout): set its dropouts to 0 in its config.json"
                )

    return FirstLoss()
