"""Diagnostics of self-generated rows: figures for the record, and thresholds that warn.

They detect the failures that Cen et al. (2025) describe, and idle hardware:

- Collapse (RAC): labels far from the generated tokens.
- Slow training: mixed contexts too far from the reference, measured by the share of tokens changed
  and by the loss on self-generated rows over the loss on reference rows.
- Idle hardware: tokens per second compared with the best of the same step.

Thresholds are `warn_at` in a recipe (pipeline.recipe.schema.WarnAt); no result depends on them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils.rnn import pad_sequence

from pipeline.errors import StepFailedError
from pipeline.hardware.precision import NOT_FINITE
from pipeline.rows.corrections import Own, batches, log_probabilities, logits_at_answers

if TYPE_CHECKING:
    from pipeline.data.load import TokenRow
    from pipeline.rows.stored import SelfGeneratedRow
    from pipeline.steps.context import StepContext
    from pipeline.steps.options import Threshold

# Rows on which a loss is measured: thousands of labels, in a fraction of the time it took to
# generate them.
_ROWS = 32
# With fewer windows the best one is not meaningful.
_WINDOWS = 3


def warn_over(step: StepContext, key: Threshold, value: float, sentence: str) -> None:
    """Warn when a figure exceeds its threshold, `warn_at.KEY`."""
    limit = step.runtime_options["warn_at"][key]
    if limit is not None and value > limit:
        step.warn(f"{sentence} (warn_at.{key}: {limit:g})")


def check_rate(step: StepContext) -> None:
    """Warn when generation was far slower on average than in the best window of the same step."""
    limit, rate = (
        step.runtime_options["warn_at"]["generation_rate"],
        step.metrics.get("tokens_per_second"),
    )
    if limit is None or rate is None or rate["windows"] < _WINDOWS:
        return
    if rate["mean"] < limit * rate["best"]:
        step.warn(
            f"the model generated {rate['mean']:,.0f} tokens/s on average and {rate['best']:,.0f} "
            "at its best: other work shared the device, or a few long rows left it idle; free the "
            f"device, or raise generation.batch_tokens (warn_at.generation_rate: {limit:g})"
        )


def compare_losses(
    step: StepContext, model: Any, kind: str, rows: Sequence[SelfGeneratedRow],
    references: Mapping[int, TokenRow], *, way_out: str,
) -> None:  # fmt: skip
    """Add the mean losses on the first rows, and on their references, to a step's figures.

    Only the main process measures; the others wait at the end of the step.

    Args:
        step: the running step.
        model: the model that generated the rows, in evaluation mode.
        kind: the name of its rows: mixed or own.
        rows: the generated rows (`rows.jsonl`), in order of row id; those without a label are
            skipped.
        references: the training rows, by row id.
        way_out: what to do about a high ratio.

    Raises:
        StepFailedError: if a loss is NaN or infinite.
    """
    if not step.state.is_main_process:
        return
    with_label = (row for row in rows if any(label != -100 for label in row["labels"]))
    labelled = list(islice(with_label, _ROWS))
    if not labelled:
        return  # the training step reports that, with the way out
    answers = [references[row["id"]] for row in labelled]
    own = [
        (Own(answer.prompt, row["input_ids"][size:], answer.row_id), row["labels"][size:])
        for row, answer in zip(labelled, answers, strict=True)
        for size in [len(answer.prompt)]
    ]
    plain = [(Own(row.prompt, row.answer, row.row_id), row.answer) for row in answers]
    losses = {
        f"loss on {name} rows": mean_loss(
            model, *zip(*pairs, strict=True), batch_tokens=step.runtime_options["batch_tokens"]
        )
        for name, pairs in ((kind, own), ("reference", plain))
    }
    own_loss, reference_loss = losses.values()
    if not (math.isfinite(own_loss) and math.isfinite(reference_loss)):
        raise StepFailedError(
            f"the loss of the model is {own_loss} on the rows it generated and {reference_loss} on "
            f"the reference: {NOT_FINITE}"
        )
    figures = step.metrics.setdefault("figures", {})
    figures |= losses
    if reference_loss > 0:
        ratio = own_loss / reference_loss
        figures["loss ratio"] = ratio
        sentence = (
            f"the loss on {kind} rows is {ratio:.1f} times that on reference rows ({own_loss:.2f} "
            f"and {reference_loss:.2f}, first {len(labelled)} rows): training on contexts this far "
            f"from the reference is slow; {way_out}"
        )
        warn_over(step, "loss_ratio", ratio, sentence)


def mean_loss(
    model: Any, rows: Sequence[Own], labels: Sequence[Sequence[int]], *, batch_tokens: int
) -> float:
    """Return the mean over labels of -log pi(label_t | prompt, context_<t), in nats.

    Args:
        model: a causal language model (or PeftModel) of transformers, in evaluation mode.
        rows: R prompts (`shown`) and contexts (`answer`, [T_r]).
        labels: for each row, the label at each of its T_r positions; -100 for none.
        batch_tokens: most tokens in a batch; it does not change the result.
    """
    size = max(batch_tokens // max(len(row.shown) + len(row.answer) for row in rows), 1)
    losses = losses_as_done(model, rows, labels, batch_size=size)
    count = sum(label != -100 for row in labels for label in row)
    return sum(loss for _, loss in losses) / count


@torch.no_grad()
def losses_as_done(
    model: Any, rows: Sequence[Own], labels: Sequence[Sequence[int]], *, batch_size: int
) -> Iterator[tuple[int, float]]:
    """Yield (index in rows, sum over its labels of -log pi) as rows finish; see `mean_loss`."""
    for batch in batches(model, rows, batch_size):
        label_BT = pad_sequence(
            [torch.tensor(labels[place]) for place in batch], batch_first=True, padding_value=-100
        ).to(model.device)
        loss_B = torch.zeros(len(batch), dtype=torch.float64)
        for first, logits_BCV in logits_at_answers(model, [rows[place] for place in batch]):
            # Padding has label -100, so logits beyond a row's answer do not count.
            label_BC = label_BT[:, first : first + logits_BCV.shape[1]]
            # Clamped, since -100 is not a valid index; masked out below.
            scores_N = log_probabilities(logits_BCV.flatten(0, 1), label_BC.flatten().clamp(min=0))
            scores_BC = scores_N.view(label_BC.shape).masked_fill(label_BC == -100, 0.0)
            loss_B -= scores_BC.cpu().double().sum(dim=1)
        yield from zip(batch, loss_B.tolist(), strict=True)
