"""SFT: the loss of each reference token given the reference tokens before it.

Also trains BASH and RAC stages, whose extra rows have labels that differ from their inputs: stock
`trl.SFTTrainer` takes `input_ids` and `labels` as given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pipeline.errors import Problem
from pipeline.recipe import Recipe, StageOptions

if TYPE_CHECKING:
    from pipeline.plan import Builder, Model
    from pipeline.step import StepRun

TRAINER = "trl.SFTConfig"
TRAIN = "pipeline.stages.sft:train"
ROWS = "rows.jsonl"
# TRL's own default, written down so that row-writing steps need not import trl (a test compares).
DEFAULT_MAX_LENGTH = 1024


class Options(StageOptions):
    """Keys of an `sft` stage. NEFTune is `trainer: {neftune_noise_alpha: 5}`."""

    method: Literal["sft"]


def check(name: str, stage: Options, recipe: Recipe) -> list[Problem]:
    """Nothing beyond the schema."""
    del name, stage, recipe
    return []


def plan(stage: Options, build: Builder) -> Model:
    """One training step."""
    del stage
    data = {"train": build.recipe.data.train}
    return build.train(TRAIN, title="train", model=build.start, data=data)


def train(step: StepRun) -> None:
    """Step: train on reference rows and, where the step has them, self-generated rows."""
    from pipeline.artifact import read_rows
    from pipeline.data import describe_losses, load_examples, tokenise
    from pipeline.model import tokenizer_for
    from pipeline.render import Renderer

    tokenizer = tokenizer_for(step)
    renderer = Renderer(tokenizer, step.options["system"])
    examples = load_examples(step.source("train"), step.options["task"])
    max_length = step.options["trainer"].get("max_length", DEFAULT_MAX_LENGTH)
    token_rows, counts = tokenise(examples, renderer, max_length=max_length)
    step.metrics["data"] = counts
    losses = describe_losses(counts, max_length)
    if losses:
        step.warn(losses)
    rows = [training_row(row.prompt, row.answer, row.answer) for row in token_rows]
    if "rows" in step.inputs:
        from pathlib import Path

        written = read_rows(Path(step.inputs["rows"]) / ROWS)
        chosen = repeated(written, step.options["lambda"], seed=step.seed)
        step.metrics["data"] = {**counts, "self_generated_rows": len(chosen)}
        rows += [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in chosen]
    fit_rows(step, rows, tokenizer)


def training_row(prompt: list[int], context: list[int], labels: list[int]) -> dict[str, list[int]]:
    """A row whose model input is prompt + context and whose loss is on `labels` only.

    `context` and `labels` have one entry per answer position; the prompt carries no loss.
    """
    if len(context) != len(labels):
        raise ValueError(f"{len(context)} context tokens but {len(labels)} labels")
    return {"input_ids": prompt + context, "labels": [-100] * len(prompt) + labels}


def repeated(rows: list[dict[str, Any]], ratio: float, *, seed: int) -> list[dict[str, Any]]:
    """Return `ratio` times as many rows: each floor(ratio) times, and a seeded choice of the rest.

    This is lambda in L = L_SFT + lambda L_self, as a ratio of rows.
    """
    import torch

    from pipeline import noise

    whole, part = divmod(ratio, 1)
    chosen = rows * int(whole)
    count = round(part * len(rows))
    if count:
        key = noise.keys(
            seed, torch.arange(len(rows)), torch.tensor(0), stream=noise.CHOOSE
        )  # fmt: skip
        order = noise.uniform(key).argsort()[:count]
        chosen = chosen + [rows[index] for index in sorted(order.tolist())]
    return chosen


def fit_rows(step: StepRun, rows: list[dict[str, list[int]]], tokenizer: Any) -> None:
    """Train on rows of `input_ids` and `labels` with stock `trl.SFTTrainer`."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from pipeline.training import fit, load_trainable, training_arguments

    model, peft_config = load_trainable(step)
    trainer = SFTTrainer(
        model=model,
        args=training_arguments(step, SFTConfig, dataset_kwargs={"skip_prepare_dataset": True}),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=peft_config,
    )
    fit(step, trainer, tokens_per_epoch=sum(len(row["input_ids"]) for row in rows))
