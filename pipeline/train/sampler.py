"""Length-grouped batches for training, and a count of the padding that remains.

Rows of similar length share a forward pass, so that there is little padding. Which rows make up an
optimizer step depends on lengths, batch_size, seed and epoch only. That is not true of the stock
`group_by_length`: it draws from the generator that training itself uses, so a training stopped
after its first epoch resumes with different rows, and it groups by one process's share of the
batch, so the number of processes changes what is trained.
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

# These constants affect results: if you change one, raise pipeline.steps.spec.FORMAT.
# Rows per group of similar length: a quarter of a batch, so that every batch has four groups, but
# at least a common micro-batch.
_GROUP_SHARE, _GROUP_ROWS = 4, 8
# Relative noise on lengths, so that two rows of the same length (a reference and a BASH context
# made from it) are rarely in the same batch, and groups differ between epochs.
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
    """Group a trainer's rows by length if its options ask for it, and count padding.

    `sizes` holds, for each row of the trainer's data, the lengths of its sequences, which are
    padded to the same length: one in SFT, chosen and rejected in DPO.
    """
    if trainer.args.train_sampling_strategy == "group_by_length":
        sampler = LengthGroups(
            [max(row) for row in sizes],
            batch_size=step.options["batch_size"],
            seed=step.seed,
            # Not through `set_epoch`, which accelerate does not call when several processes resume.
            epoch=lambda: int(trainer.state.epoch or 0),
        )
        trainer._get_train_sampler = lambda dataset=None: sampler  # no public API
    trainer.add_callback(_Padding(step, trainer, sizes))


class LengthGroups(Sampler[int]):
    """Yields every row once per epoch, in the order of `grouped_by_length`."""

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
    """Return an order of rows in which neighbours have similar lengths.

    Args:
        lengths: (rows,) in tokens.
        batch_size: rows per optimizer step, over all processes.
        generator: decides the order.

    Returns:
        (rows,), each row once.
    """
    rows = len(lengths)
    size, _ = micro_batches(batch_size, 1, max(_GROUP_ROWS, batch_size // _GROUP_SHARE))
    noisy = lengths * (1 + _LENGTH_NOISE * (2 * torch.rand(rows, generator=generator) - 1))
    ranked = noisy.argsort(descending=True, stable=True)
    # The incomplete group comes from a random place among the lengths, and goes last.
    full, fewer = divmod(rows, size)
    cut = size * int(torch.randint(1, full + 1, (), generator=generator)) if full else 0
    rest = ranked[cut : cut + fewer]
    # Groups are shuffled, except that the longest rows go first: if memory is too small for them,
    # training fails at once.
    longest, *others = torch.cat([ranked[:cut], ranked[cut + fewer :]]).split(size)
    shuffled = torch.randperm(len(others), generator=generator).tolist()
    order = torch.cat([longest, *(others[place] for place in shuffled), rest])
    # Sorting a batch changes how it splits into passes, but not which rows it holds.
    batches = order.split(batch_size)
    return torch.cat([ids[lengths[ids].argsort(descending=True, stable=True)] for ids in batches])


class _Padding(TrainerCallback):
    """Counts the positions and tokens that the model is trained on, over all processes.

    The counts are kept in the trainer's state, so that checkpoints include them.
    """

    def __init__(self, step: StepContext, trainer: Any, sizes: Sequence[tuple[int, ...]]):
        self.step = step
        self.trainer = trainer
        # The least possible share: with one row per pass only the shorter side of a pair is padded.
        self.least = 1 - sum(map(sum, sizes)) / sum(len(row) * max(row) for row in sizes)
        self.new = torch.zeros(2, dtype=torch.long, device=step.device)  # positions, tokens

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        state.stateful_callbacks.setdefault("padding", [0, 0])
        self.hook = more["model"].register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, model: Any, args: Any, inputs: dict[str, Any]) -> None:
        if torch.is_grad_enabled():  # not in a forward pass of the reference
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
    """Return a log line about padding, with a way to reduce it if there is much.

    Args:
        share: padding among the positions read, 0 to 1.
        positions: read by the model, padding included.
        least: the share with one row per pass.
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
