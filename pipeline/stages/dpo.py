"""DPO (Rafailov et al. 2023): prefer the chosen answer over the rejected one.

The reference model is the stage it starts from: the saved weights (all weights trained) or a frozen
copy of the adapter (LoRA), both arranged by stock `trl.DPOTrainer`. At the first step policy and
reference agree, so the loss must be ln 2; the run stops when it is not.

Preference pairs come from a source with prompt, chosen and rejected, or are made from the model's
own answers (`preferences: self`): `samples` answers to each training prompt, chosen = a right one
(the reference where there is none), rejected = a wrong one; prompts without a wrong answer are left
out and counted.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from pipeline.errors import InputError, Problem, StepFailedError
from pipeline.recipe import Recipe, Source, StageOptions

if TYPE_CHECKING:
    from pipeline.plan import Builder, Model
    from pipeline.step import StepRun

TRAINER = "trl.DPOConfig"
TRAIN = "pipeline.stages.dpo:train"
PAIRS = "pairs.jsonl"
DEFAULT_MAX_LENGTH = 1024  # TRL's own (a test compares)
# Options under which the first loss need not be ln 2: other losses, other weights, noise.
_NOT_LN2 = ("loss_weights", "use_weighting", "neftune_noise_alpha", "router_aux_loss_coef")


class Options(StageOptions):
    """Keys of a `dpo` stage; `samples` and `temperature` are for `preferences: self`."""

    method: Literal["dpo"]
    samples: int = Field(default=4, ge=2)
    temperature: float = Field(default=1.0, gt=0)
    pairs_limit: int | None = Field(default=None, ge=1)


def check(name: str, stage: Options, recipe: Recipe) -> list[Problem]:
    """DPO needs preferences, and self-made ones need answers that can be checked."""
    if recipe.data.preferences is None:
        message = "dpo needs data.preferences: a source of prompt/chosen/rejected rows, or self"
        return [Problem(f"stages.{name}", message)]
    if recipe.data.preferences == "self" and recipe.task != "gsm8k":
        message = (
            f"self needs answers that can be checked; task {recipe.task} has none: give a source"
        )
        return [Problem("data.preferences", message)]
    own = sorted(stage.model_fields_set & {"samples", "temperature", "pairs_limit"})
    if own and recipe.data.preferences != "self":
        return [Problem(f"stages.{name}.{own[0]}", "is for data.preferences: self, not a source")]
    return []


def plan(stage: Options, build: Builder) -> Model:
    """One training step; before it, for self-made pairs, answers and pairs."""
    preferences = build.recipe.data.preferences
    if isinstance(preferences, Source):
        data = {"preferences": preferences}
        return build.train(TRAIN, title="train", model=build.start, data=data)
    source = build.recipe.data.train
    if stage.pairs_limit is not None:
        source = source.model_copy(update={"limit": stage.pairs_limit})
    answers = build.answers(
        build.start,
        source=source,
        role="train",
        title=f"{stage.samples} answers a prompt",
        samples=stage.samples,
        temperature=stage.temperature,
    )
    write = "pipeline.stages.dpo:write_pairs"
    pairs = build.step("pairs", write, title="pairs", steps={"answers": answers})
    return build.train(TRAIN, title="train", model=build.start, steps={"pairs": pairs})


def write_pairs(step: StepRun) -> None:
    """Step: make preference pairs from graded answers.

    Raises:
        InputError: when no prompt has a wrong answer.
    """
    from pathlib import Path

    from pipeline.artifact import SAMPLES, read_rows, write_rows

    grouped: dict[int, list[dict[str, Any]]] = {}
    for row in read_rows(Path(step.inputs["answers"]) / SAMPLES):
        grouped.setdefault(row["id"], []).append(row)
    pairs, without_right, without_wrong = [], 0, 0
    for rows in grouped.values():
        pair, has_right = pair_of(rows)
        without_right += not has_right
        without_wrong += pair is None
        if pair is not None:
            pairs.append(pair)
    step.metrics |= {
        "prompts": len(grouped),
        "pairs": len(pairs),
        "prompts_without_right_answer": without_right,
        "prompts_without_wrong_answer": without_wrong,
    }
    if not pairs:
        raise InputError(
            f"every answer to all {len(grouped)} prompts is right, so there is nothing to reject; "
            "raise the stage's temperature or samples, or give data.preferences"
        )
    if step.state.is_main_process:
        write_rows(step.directory / PAIRS, pairs)


def pair_of(rows: list[dict[str, Any]]) -> tuple[dict[str, Any] | None, bool]:
    """Return (pair or None, whether any answer was right) of one prompt's graded answers."""
    from eval.gsm8k import grade

    graded = [
        (row, grade(row["answer"], row["reference"], truncated=not row["finished"]).value)
        for row in rows
    ]
    right = [row for row, outcome in graded if outcome == "correct" and row["finished"]]
    wrong = [row for row, outcome in graded if outcome != "correct" and row["answer"]]
    chosen = right[0]["answer"] if right else rows[0]["reference"]
    wrong = [row for row in wrong if row["answer"] != chosen]
    if not wrong:
        return None, bool(right)
    pair = {
        "prompt": rows[0]["messages"],
        "chosen": chosen,
        "rejected": wrong[0]["answer"],
        # An answer cut at the token limit must not teach that turns end there.
        "rejected_finished": wrong[0]["finished"],
    }
    return pair, bool(right)


def train(step: StepRun) -> None:
    """Step: train on preference pairs with stock `trl.DPOTrainer`."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    from pipeline.model import load_for, resolve_dtype, tokenizer_for
    from pipeline.render import Renderer
    from pipeline.training import fit, load_trainable, training_arguments

    tokenizer = tokenizer_for(step)
    rows = pair_rows(step, Renderer(tokenizer, step.options["system"]))
    model, peft_config = load_trainable(step)
    arguments = training_arguments(step, DPOConfig, remove_unused_columns=False)
    reference = None  # of an adapter, TRL keeps a frozen copy itself
    if step.options["lora"] is None:
        dtype = resolve_dtype(step.options["dtype"], trains_all_weights=True)
        reference = load_for(step, dtype=dtype)
    trainer = DPOTrainer(
        model=model,
        ref_model=reference,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        data_collator=_collator(tokenizer, arguments),
        peft_config=peft_config,
    )
    if starts_at_ln2(step.options["trainer"]):
        trainer.add_callback(_first_loss_check())
    lengths = [
        2 * len(r["row_prompt"]) + len(r["row_chosen"]) + len(r["row_rejected"]) for r in rows
    ]
    fit(step, trainer, tokens_per_epoch=sum(lengths))


def starts_at_ln2(trainer: dict[str, Any]) -> bool:
    """Whether the loss must be ln 2 where policy and reference agree."""
    known_loss = trainer.get("loss_type", ["sigmoid"]) in (["sigmoid"], ["robust"])
    no_dropout = trainer.get("disable_dropout", True)
    return known_loss and no_dropout and not any(trainer.get(name) for name in _NOT_LN2)


def pair_rows(step: StepRun, renderer: Any) -> list[dict[str, Any]]:
    """Read the step's pairs as token rows.

    DPOTrainer insists on tokenising text of its own; it gets empty text, and the collator reads the
    ids made here, so that all stages share one rendering.

    Raises:
        InputError: when no row is left.
    """
    max_length = step.options["trainer"].get("max_length", DEFAULT_MAX_LENGTH)
    rows, dropped, cut = [], 0, 0
    pairs = _read_pairs(step)
    for pair, rejected_finished in pairs:
        prompt = renderer.prompt_ids(pair.example)
        chosen = renderer.answer_ids(pair.example, pair.chosen)
        rejected = renderer.answer_ids(pair.example, pair.rejected)
        rejected = rejected if rejected_finished else rejected[:-1]
        if max_length is not None and len(prompt) >= max_length:
            dropped += 1
            continue
        cut += max_length is not None and len(prompt) + max(len(chosen), len(rejected)) > max_length
        rows.append(
            {
                "prompt": "",
                "chosen": "",
                "rejected": "",
                "row_prompt": prompt,
                "row_chosen": chosen,
                "row_rejected": rejected,
            }
        )
    step.metrics["data"] = {"rows": len(rows), "dropped": dropped, "cut": cut}
    if not rows:
        raise InputError(
            f"all {len(pairs)} preference prompts fill trainer.max_length ({max_length} tokens); "
            "raise it"
        )
    if dropped or cut:
        step.warn(
            f"{dropped} of {len(pairs)} preference rows dropped (the prompt alone fills max_length "
            f"{max_length}) and {cut} cut at the end; raise trainer.max_length to keep them whole"
        )
    return rows


def _read_pairs(step: StepRun) -> list[tuple[Any, bool]]:
    from pathlib import Path

    from pipeline.artifact import read_rows
    from pipeline.data import load_preferences
    from pipeline.tasks import preference_of

    if "preferences" in step.inputs:
        pairs = load_preferences(step.source("preferences"), step.options["task"])
        return [(pair, True) for pair in pairs]
    rows = read_rows(Path(step.inputs["pairs"]) / PAIRS)
    task = step.options["task"]
    return [(preference_of(task, row), row["rejected_finished"]) for row in rows]


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


def _first_loss_check() -> Any:
    """A callback that stops training when the first loss is not ln 2."""
    from transformers import TrainerCallback

    class FirstLoss(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if state.global_step != 1 or not logs or "loss" not in logs:
                return
            if abs(logs["loss"] - math.log(2)) > 0.02:
                raise StepFailedError(
                    f"the first DPO loss is {logs['loss']:.4f}, not ln 2 = 0.6931: the reference "
                    "model is not the model training starts from"
                )

    return FirstLoss()
