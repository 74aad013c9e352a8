"""Which rows a training pass reads together, and how much of what it reads is padding.

Rows of similar length are read together, so that little is padding. Which rows make up an optimizer
step depends on lengths, batch_size, seed and epoch alone. The stock `group_by_length` does not keep
to that: it draws from the generator that training itself draws from, so a training stopped after
its first epoch goes on with other rows, and it groups by one process's share of the batch, so the
number of processes changes what is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import TrainerCallback

from pipeline.errors import StepFailedError
from pipeline.steps.context import StepContext
from pipeline.steps.options import TrainOptions

# What follows decides results: whoever changes it raises pipeline.steps.spec.FORMAT.
# How many rows of similar length stay together: a quarter of a batch, so that every batch holds
# rows of four lengths, but at least as many as are often read in one pass.
_GROUP_SHARE, _GROUP_ROWS = 4, 8
# Lengths are taken with this much noise, so that two rows of one length (a reference and a BASH
# context made from it) seldom meet in a batch, and groups differ from epoch to epoch.
_LENGTH_NOISE = 0.03

_MUCH_PADDING = 0.1


def micro_batches(batch_size: int, processes: int, largest: int) -> tuple[int, int]:
    """Split a global batch: return (rows per process and pass, passes per optimizer step).

    The rows per pass are the largest divisor of a process's share that is at most `largest`.

    Raises:
        StepFailedError: when the processes do not divide the batch.
    """
    if batch_size % processes:
        raise StepFailedError(f"batch_size {batch_size} is not a multiple of {processes} processes")
    share = batch_size // processes
    rows = max(size for size in range(1, min(largest, share) + 1) if share % size == 0)
    return rows, share // rows


def arrange_batches(
    step: StepContext[TrainOptions], trainer: Any, sizes: Sequence[tuple[int, ...]]
) -> None:
    """Let a trainer read rows of similar length together, where options say so; count padding.

    `sizes` holds, for each row of the trainer's data, the lengths of the sequences that the row
    puts into a pass, all padded alike: one in SFT, chosen and rejected in DPO.
    """
    if trainer.args.train_sampling_strategy == "group_by_length":
        sampler = LengthGroups(
            [max(row) for row in sizes],
            batch_size=step.options["batch_size"],
            seed=step.seed,
            # Not by `set_epoch`, which accelerate does not hand on where several processes resume.
            epoch=lambda: int(trainer.state.epoch or 0),
        )
        trainer._get_train_sampler = lambda dataset=None: sampler  # there is no public way
    trainer.add_callback(_Padding(step, trainer, sizes))


class LengthGroups(Sampler[int]):
    """Gives every row once an epoch, in the order of `grouped_by_length`."""

    def __init__(
        self, lengths: Sequence[int], *, batch_size: int, seed: int, epoch: Callable[[], int]
    ):
        self.lengths = torch.tensor(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch())
        return iter(grouped_by_length(self.lengths, self.batch_size, generator).tolist())


def grouped_by_length(
    lengths: torch.Tensor, batch_size: int, generator: torch.Generator
) -> torch.Tensor:
    """Return an order of rows in which neighbours are of similar length.

    Rows are sorted by length, give or take `_LENGTH_NOISE`, and cut into groups. These come in
    random order, but the longest rows first, so that too little memory shows at once, and one group
    of fewer rows, whose place among the lengths is random, last. In the end each batch is sorted,
    which changes how it falls into passes and not what it holds.

    Args:
        lengths: (rows,) in tokens.
        batch_size: rows of an optimizer step, over all processes.
        generator: decides the order.

    Returns:
        (rows,), each row once.
    """
    rows = len(lengths)
    size, _ = micro_batches(batch_size, 1, max(_GROUP_ROWS, batch_size // _GROUP_SHARE))
    noisy = lengths * (1 + _LENGTH_NOISE * (2 * torch.rand(rows, generator=generator) - 1))
    ranked = noisy.argsort(descending=True, stable=True)
    full, fewer = divmod(rows, size)
    cut = size * int(torch.randint(1, full + 1, (), generator=generator)) if full else 0
    rest = ranked[cut : cut + fewer]
    longest, *others = torch.cat([ranked[:cut], ranked[cut + fewer :]]).split(size)
    shuffled = torch.randperm(len(others), generator=generator).tolist()
    order = torch.cat([longest, *(others[place] for place in shuffled), rest])
    batches = order.split(batch_size)
    return torch.cat([one[lengths[one].argsort(descending=True, stable=True)] for one in batches])


class _Padding(TrainerCallback):
    """Counts what the model reads while it trains, and how much of that is padding.

    Counts are of all processes, and kept in the trainer's state, so that checkpoints hold them.
    """

    def __init__(self, step: StepContext, trainer: Any, sizes: Sequence[tuple[int, ...]]):
        self.step = step
        self.trainer = trainer
        # With one row a pass only the shorter side of a pair is padded.
        self.least = 1 - sum(map(sum, sizes)) / sum(len(row) * max(row) for row in sizes)
        self.new = torch.zeros(2, dtype=torch.long, device=step.device)  # positions, tokens

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        state.stateful_callbacks.setdefault("padding", [0, 0])
        self.hook = more["model"].register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, model: Any, args: Any, inputs: dict[str, Any]) -> None:
        if torch.is_grad_enabled():  # else it is the reference model's pass, through one adapter
            size, mask = inputs["input_ids"].numel(), inputs.get("attention_mask")
            self.new[0] += size
            self.new[1] += size if mask is None else mask.sum().to(self.new.device)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        new = self.trainer.accelerator.reduce(self.new, reduction="sum").tolist()
        self.new.zero_()
        counts = zip(state.stateful_callbacks["padding"], new, strict=True)
        state.stateful_callbacks["padding"] = [before + more for before, more in counts]

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.hook.remove()
        positions, tokens = state.stateful_callbacks["padding"]
        share = 1 - tokens / positions if positions else 0.0
        self.step.metrics["padding_share"] = round(share, 4)
        if state.is_world_process_zero:
            print(describe_padding(share, positions, self.least, args), flush=True)


def describe_padding(share: float, positions: int, least: float, args: Any) -> str:
    """Return a log line about padding, with a way to have less of it where that is much.

    Args:
        share: padding among the positions read, 0 to 1.
        positions: read by the model, padding included.
        least: the share with one row a pass.
        args: the trainer's arguments.
    """
    line = f"padding: {100 * share:.1f} % of {positions:,} positions read"
    if least >= 0.001:
        line += f", {100 * least:.1f} % for the shorter sides of pairs alone"
    ways = []
    if args.train_sampling_strategy != "group_by_length":
        ways.append("trainer: {train_sampling_strategy: group_by_length}")
    if args.per_device_train_batch_size > 1:
        ways.append(f"a micro_batch_size below {args.per_device_train_batch_size}")
    if share > _MUCH_PADDING and ways:
        line += f"; less with {' or '.join(ways)}"
    return line
