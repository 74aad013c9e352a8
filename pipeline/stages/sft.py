"""SFT: the loss of each reference token given the reference tokens before it.

Also trains BASH and RAC stages, whose self-generated rows have labels that differ from their
inputs: stock `trl.SFTTrainer` takes `input_ids` and `labels` as given.

NEFTune (Jain et al. 2023) is the option `trainer: {neftune_noise_alpha: 5}`: noise uniform in +-
alpha / sqrt(L d) on the embeddings during training, where L is the padded length of the batch (the
authors' code uses each row's own length) and d the embedding size. Which rows share a batch, and so
their padded length, depends on `micro_batch_size`, which is then part of the identity, and on the
number of processes, which is only recorded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pipeline.errors import InputError, Problem
from pipeline.recipe.schema import Recipe, Source, StageOptions
from pipeline.rows.stored import SelfGeneratedRow, read_self_generated

if TYPE_CHECKING:
    from pipeline.data.load import TokenRow
    from pipeline.data.render import Renderer
    from pipeline.rows.table import TokenIds, TokenTable, TrainingRows
    from pipeline.stages.builder import Builder
    from pipeline.steps.context import StepContext
    from pipeline.steps.options import MixtureOptions, TrainOptions
    from pipeline.steps.spec import Model, StepSpec

TRAIN = "pipeline.stages.sft:train"
Item = TypeVar("Item")


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
    data, turns = {"train": build.train_rows}, build.recipe.trained_turns
    return build.train(TRAIN, title="train", model=build.start, data=data, more={**turns})


def train_round(
    build: Builder, model: Model, rows: StepSpec, number: int, ratio: float,
    *, more: MixtureOptions | None = None,
) -> Model:  # fmt: skip
    """Add the training step of a round; `ratio` is lambda.

    `more` are further options: the recipe's `trained_turns`, if `rows` has a row for each of them,
    and `references: false` to train on `rows` alone.
    """
    return build.train(
        TRAIN,
        title=build.in_round("train", number),
        model=model,
        data={"train": build.train_rows},
        steps={"rows": rows},
        more={"lambda": ratio, **(more or {})},
    )


def train(step: StepContext[TrainOptions]) -> None:
    """Step: train on reference rows and, if the step has any, self-generated rows."""
    from pipeline.data.preflight import check_rows
    from pipeline.data.render import renderer_for
    from pipeline.train.trainer import fit

    renderer = renderer_for(step)
    checked, rows = read_training_rows(step, renderer)
    check_rows(step, checked, renderer)
    held_out = read_held_out_rows(step, renderer, checked)
    trainer = make_trainer(step, rows, renderer.tokenizer)
    if held_out is not None:
        from pipeline.train.held_out import HeldOutLoss

        trainer.add_callback(HeldOutLoss(step, trainer, held_out))
    fit(step, trainer, tokens_per_epoch=sum(rows.sizes))


def read_training_rows(
    step: StepContext[TrainOptions], renderer: Renderer
) -> tuple[TokenTable, TrainingRows]:
    """Return all rows of a step, for checking, and the rows to train on (chosen by lambda)."""
    from pipeline.data.load import count_parts
    from pipeline.rows.table import TrainingRows

    options = step.options
    table, token_rows, counts = _references(step, step.source("train"), renderer)
    step.metrics["data"] = counts
    step.metrics |= count_parts(row.example for row in token_rows)
    numbers = list(range(len(table))) if options.get("references", True) else []
    if "rows" in step.locations:
        assert "lambda" in options  # `train_round` plans both
        places = {row.row_id: (at, len(row.prompt)) for at, row in enumerate(token_rows)}
        own = _self_generated(step, table, places)
        chosen = repeated(own, options["lambda"], seed=step.seed)
        step.metrics["data"] = {**counts, "self_generated_rows": len(chosen)}
        if options["lambda"] > 0 and not chosen:
            step.warn(
                f"lambda {options['lambda']:g} selects none of the {len(own)} self-generated rows, "
                "so training uses the reference only; raise lambda, or give more rows"
            )
        numbers += chosen
    return table, TrainingRows(table, numbers)


def read_held_out_rows(
    step: StepContext, renderer: Renderer, trained: TokenTable
) -> TrainingRows | None:
    """Return the rows to measure loss on while training, rendered and checked as trained ones."""
    from pipeline.data.preflight import check_rows
    from pipeline.rows.table import TrainingRows

    if (source := step.held_out_source()) is None:
        return None
    table, _, counts = _references(step, source, renderer, "held-out ")
    check_rows(step, table, renderer)
    keys = [table.key(row) for row in range(len(table))]
    known = set(keys)
    also = {key for row in range(len(trained)) if (key := trained.key(row)) in known}
    both = [row for row, key in enumerate(keys) if key in also]
    if both:
        step.warn(
            f"{len(both)} of {len(table)} held-out rows are trained on too, first "
            f"{table[both[0]].name}: take them out of data.validation or data.train, or the "
            "held-out loss falls for them as well"
        )
    step.metrics["held_out"] = {"data": counts}
    return TrainingRows(table, range(len(table)))


def _references(
    step: StepContext, source: Source, renderer: Renderer, kind: str = ""
) -> tuple[TokenTable, list[TokenRow], dict[str, int]]:
    """Return a source's rows as a table and one by one, and counts; cuts and losses are warned of.

    `kind` stands before their names.
    """
    from pipeline.data.load import describe_losses, load_examples, tokenise
    from pipeline.rows.table import TokenTable

    options = step.options
    max_length, turns = options["trainer"]["max_length"], options.get("train_on", "last")

    def warn(sentence: str) -> None:
        step.warn(f"{kind}rows: {sentence}" if kind else sentence)

    examples = load_examples(source, options["task"], warn, renderer, train_on=turns)
    rows, counts = tokenise(examples, renderer, max_length=max_length)
    losses = describe_losses(
        counts, max_length=max_length, max_prompt_length=renderer.max_prompt_length
    )
    if losses:
        warn(losses)
    table = TokenTable()
    for row in rows:
        ids = training_row(row.prompt, row.answer, row.answer)
        answer = 1 + sum(message["role"] == "assistant" for message in row.example.messages)
        place = row.example.place
        name = f"{place}, answer {answer}" if turns == "all" else place
        table.add(f"{kind}{name}", len(row.prompt), ids, whole=row.whole)
    return table, rows, counts


def _self_generated(
    step: StepContext, table: TokenTable, places: dict[int, tuple[int, int]]
) -> list[int]:
    """Add the rows of an earlier step that have at least one label; return their numbers.

    `places` maps a row id to the row of the table with the same prompt, and the prompt's length.

    Raises:
        InputError: if no row has a label.
    """
    written, rows = read_self_generated(step.input_folders()["rows"]), []
    for row in written:
        if any(label != -100 for label in row["labels"]):
            place, prompt = places[row["id"]]
            ids: TokenIds = {"input_ids": row["input_ids"], "labels": row["labels"]}
            name = f"{table.name_of(place)}, self-generated"
            rows.append(len(table))
            table.add(name, prompt, ids, whole=False, prompt_of=place)
    if not rows:
        raise InputError(
            f"none of the {len(written)} self-generated rows has a label left; lower the stage's "
            "min_confidence, or raise generation.max_new_tokens so that answers are not cut"
        )
    if len(rows) < len(written):
        step.warn(f"{len(written) - len(rows)} of {len(written)} self-generated rows have no label")
    return rows


def self_generated_row(
    row_id: int, prompt: list[int], context: list[int], labels: list[int]
) -> SelfGeneratedRow:
    """A self-generated row as stored in `rows.jsonl`."""
    row = training_row(prompt, context, labels)
    return {"id": row_id, "input_ids": row["input_ids"], "labels": row["labels"]}


def training_row(prompt: list[int], context: list[int], labels: list[int]) -> TokenIds:
    """A row whose input is prompt + context and whose loss is on `labels` only.

    `context` and `labels` have one entry per answer position; the prompt carries no loss.
    """
    if len(context) != len(labels):
        raise ValueError(f"{len(context)} context tokens but {len(labels)} labels")
    return {"input_ids": prompt + context, "labels": [-100] * len(prompt) + labels}


def label_count(row: SelfGeneratedRow) -> int:
    """The number of positions of a row that have a label."""
    return sum(label != -100 for label in row["labels"])


def repeated(rows: list[Item], ratio: float, *, seed: int) -> list[Item]:
    """Return `ratio` times as many rows: each floor(ratio) times, and a seeded subset for the rest.

    This implements lambda of L = L_SFT + lambda L_self as a ratio of rows rather than a weight, so
    that stock SFTTrainer can train on it.
    """
    import torch

    from pipeline.decoding import noise

    whole, part = divmod(ratio, 1)
    chosen = rows * int(whole)
    count = round(part * len(rows))
    if count:
        key = noise.keys(seed, torch.arange(len(rows)), torch.tensor(0), stream=noise.CHOOSE)
        order = noise.uniform(key).argsort()[:count]
        chosen = chosen + [rows[index] for index in sorted(order.tolist())]
    return chosen


def make_trainer(step: StepContext[TrainOptions], rows: TrainingRows, tokenizer: Any) -> Any:
    """Return stock `trl.SFTTrainer` over rows of `input_ids` and `labels`, weights loaded."""
    from trl import SFTConfig, SFTTrainer

    from pipeline.rows.table import dataset_of
    from pipeline.train.adapters import train_in_float32
    from pipeline.train.sampler import arrange_batches
    from pipeline.train.trainer import load_trainable, training_arguments

    model, peft_config = load_trainable(step)
    trainer = SFTTrainer(
        model=model,
        args=training_arguments(step, SFTConfig, dataset_kwargs={"skip_prepare_dataset": True}),
        train_dataset=dataset_of(rows),
        processing_class=tokenizer,
        peft_config=peft_config,
    )
    train_in_float32(step, trainer.model)
    arrange_batches(step, trainer, [(size,) for size in rows.sizes])
    return trainer
