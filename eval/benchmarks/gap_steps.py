"""The steps of `gap` that read weights: contexts at every rate, and the losses on them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.errors import StepFailedError
from pipeline.hardware.precision import NOT_FINITE
from pipeline.rows.stored import ROWS

if TYPE_CHECKING:
    from pipeline.data.load import TokenRow
    from pipeline.steps.context import StepContext

LOSSES = "losses.jsonl"
Row = dict[str, Any]


def write_contexts(step: StepContext) -> None:
    """Step: write the contexts of every held-out row at every rate, the reference at rate 0."""
    from pipeline.data.load import describe_losses, load_examples, tokenise
    from pipeline.data.render import renderer_for
    from pipeline.models.load import load_to_read
    from pipeline.rows.shards import write_in_shards
    from pipeline.stages.bash import mixer, row_size

    options, renderer = step.options, renderer_for(step)
    examples = load_examples(step.source("test"), options["task"], step.warn)
    limits = [size for size in (options["max_length"], renderer.window) if size is not None]
    longest = min(limits, default=None)
    token_rows, counts = tokenise(examples, renderer, max_length=longest)
    prompts = renderer.max_prompt_length
    if words := describe_losses(counts, max_length=longest, max_prompt_length=prompts):
        step.warn(words)
    rates: list[float] = options["rates"]
    mix = mixer(step, load_to_read(step), renderer, seed=options["noise_seed"])

    def make(items: Sequence[tuple[TokenRow, int]]) -> Iterator[Row]:
        for place, rate in enumerate(rates):
            for row in mix(rate, [one for one, at in items if at == place]):
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


def write_losses(step: StepContext) -> None:
    """Step: read contexts and note the loss of each, the sum over its reference tokens in nats.

    Raises:
        StepFailedError: when a loss is NaN or infinite.
    """
    from pipeline.models.load import load_to_read
    from pipeline.rows.corrections import Own
    from pipeline.rows.diagnostics import losses_as_done
    from pipeline.rows.shards import length_buckets, write_in_shards
    from pipeline.steps.artifact import read_rows

    written = read_rows(step.input_folders()["contexts"] / ROWS)
    rates = sorted({row["rate"] for row in written})
    model, batch_tokens = load_to_read(step).eval(), step.runtime_options["batch_tokens"]

    def make(rows: Sequence[Row]) -> Iterator[Row]:
        # A sure model often fills in the reference: what is alike at several rates is read once.
        alike: dict[tuple[int, ...], list[Row]] = {}
        for row in rows:
            alike.setdefault((row["id"], *row["input_ids"]), []).append(row)
        for group, at_once in length_buckets(list(alike.values()), _size_of_first, batch_tokens):
            labels = [labels_of(row) for row, *_ in group]
            read = [
                Own(row["input_ids"][: -len(said)], row["input_ids"][-len(said) :], row["id"])
                for (row, *_), said in zip(group, labels, strict=True)
            ]
            for place, nats in losses_as_done(model, read, labels, batch_size=at_once):
                yield from (_loss_row(row, nats) for row in group[place])

    rows = write_in_shards(
        step,
        written,
        make,
        key=lambda row: (row["id"], rates.index(row["rate"])),
        size=_size,
        row_key=lambda row: (row["id"], rates.index(row["rate"])),
        tokens=lambda row: row["tokens"],
        file_name=LOSSES,
    )
    step.metrics |= {"rows": len(rows), "tokens_read": sum(map(_size, written))}


def _loss_row(row: Row, nats: float) -> Row:
    if not math.isfinite(nats):
        raise StepFailedError(
            f"the loss of row {row['id'] + 1} at rate {row['rate']:g} is {nats}: {NOT_FINITE}"
        )
    known = {"id": row["id"], "rate": row["rate"], "nats": nats}
    return {**known, "tokens": len(labels_of(row)), "changed": _changed(row)}


def labels_of(row: Row) -> list[int]:
    """The reference of a row of contexts, as token ids."""
    return [label for label in row["labels"] if label != -100]


def _size(row: Row) -> int:
    return len(row["input_ids"])


def _size_of_first(rows: list[Row]) -> int:
    return _size(rows[0])


def _written(row: Row) -> int:
    """Tokens that the model had a part in: none of the reference itself."""
    return len(labels_of(row)) if row["rate"] else 0


def _changed(row: Row) -> int:
    """How many tokens of a context are not the reference's."""
    pairs = zip(row["input_ids"], row["labels"], strict=True)
    return sum(label not in (-100, token) for token, label in pairs)
