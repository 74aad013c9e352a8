"""The loss on held-out rows while a model trains: where it stops falling, training overfits.

It changes no weight: nothing here draws random numbers (there is no DataLoader, and a model in
evaluation mode has no noise), and generators are put back all the same.

Decisions: (1) the loss is the mean of -log pi(label | tokens before it) over the labels of all
rows, whatever loss is trained (stock evaluation averages over batches, so that their size and the
number of processes change it); (2) it is also measured after the last step, for those weights are
kept; (3) the curve is part of the trainer's state, and each point is taken before a checkpoint of
its step is written, so that a resumed training has every point once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from accelerate.utils import gather_object, send_to_device
from transformers import TrainerCallback

from pipeline.rows.table import TokenIds, TrainingRows
from pipeline.steps.context import StepContext


class HeldOutLoss(TrainerCallback):
    """Measures the loss of rows that are not trained on, when `eval_strategy` says so."""

    def __init__(self, step: StepContext, trainer: Any, rows: TrainingRows):
        self.step, self.trainer, self.rows = step, trainer, rows
        self.options = step.runtime_options["trainer"]

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Begin the curve, or go on with that of a checkpoint."""
        assert "held_out" in self.step.runtime_options  # as wherever this callback is added
        asked = self.step.runtime_options["held_out"]["identity"]
        kept = state.stateful_callbacks.setdefault("held_out", {"rows": asked, "curve": []})
        if kept["rows"] != asked:
            self.step.warn(
                "the held-out rows are not those that this training began with: the curve begins "
                f"anew at optimizer step {state.global_step}"
            )
            kept.update(rows=asked, curve=[])
        # A checkpoint that was written because of a stop may lack the point of its step.
        if not self._measure_if_due(args, state, control):
            raise KeyboardInterrupt  # nothing has been trained yet that would be lost

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Measure, where it is time to."""
        self._measure_if_due(args, state, control)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Give the curve to the record."""
        assert "held_out" in self.step.metrics  # with the counts of its rows
        self.step.metrics["held_out"]["curve"] = state.stateful_callbacks["held_out"]["curve"]

    def _measure_if_due(self, args: Any, state: Any, control: Any) -> bool:
        """Add a point to the curve, where it is time to; returns whether no stop prevented it."""
        curve = state.stateful_callbacks["held_out"]["curve"]
        known = {point["step"] for point in curve}
        if state.global_step in known or not is_due(self.options, args.logging_steps, state):
            return True
        logs_next = control.should_log  # which every log entry takes back
        self.trainer.model.eval()
        with torch.no_grad(), _same_noise_after(self.step.device):
            total, tokens = self._sums()
        if tokens and math.isfinite(loss := total / tokens):
            epoch = round(state.epoch or 0, 4)
            point = {"step": state.global_step, "epoch": epoch, "loss": loss, "tokens": tokens}
            curve.append(point)
            self.trainer.log({"eval_loss": loss})  # in evaluation mode: else TRL adds its own
            if state.is_world_process_zero:
                place = f"optimizer step {state.global_step} of {state.max_steps}"
                print(f"{place}: held-out loss {loss:.4f}, {tokens:,} tokens", flush=True)
        elif tokens:
            self.step.warn(
                f"the held-out loss is {loss} at optimizer step {state.global_step}: it is left out"
            )
        self.trainer.model.train()
        control.should_log = logs_next
        return tokens > 0

    def _sums(self) -> tuple[float, int]:
        """The sum of -log pi over all labels, and how many there are; zeros after a stop."""
        total, tokens = 0.0, 0
        trainer = self.trainer
        for rows, counts in self._batches():
            (stop,) = self.step.from_main_process([self.step.stop_asked])
            if stop:  # a checkpoint must be written in seconds; this point is measured afterwards
                return 0.0, 0
            inputs = send_to_device(trainer.data_collator(rows), self.step.device)
            with trainer.compute_loss_context_manager():
                # TRL's output layer, in chunks of positions: whole logits would not fit.
                found = trainer.model(**inputs, fused_lm_head=True)
            if counts:
                total -= found.log_probs.float().sum(dim=1).cpu().double().sum().item()
                tokens += int(found.label_mask.sum())
        sums = gather_object([(total, tokens)])
        return sum(one for one, _ in sums), sum(count for _, count in sums)

    def _batches(self) -> Iterator[tuple[list[TokenIds], bool]]:
        """Batches of this process, longest rows first, and whether each counts.

        Sharded weights are gathered in each pass by all processes together, so one that has no
        rows left reads some again, which do not count.
        """
        args, state = self.trainer.args, self.step.state
        size = self.options.get("per_device_eval_batch_size", args.per_device_train_batch_size)
        sizes = self.rows.sizes
        order = sorted(range(len(sizes)), key=lambda row: -sizes[row])
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        for first in range(0, len(batches), state.num_processes):
            mine = first + state.process_index
            counts = mine < len(batches)
            yield [self.rows[row] for row in batches[mine if counts else 0]], counts


def is_due(options: dict[str, Any], logging_steps: float, state: Any) -> bool:
    """Whether held-out loss is measured at a step, as transformers has it, and at the last."""
    step, last = state.global_step, state.max_steps
    if step == 0:
        return bool(options.get("eval_on_start"))
    if step >= last:
        return True
    delay = options.get("eval_delay", 0)
    if options["eval_strategy"] == "epoch":
        return state.epoch == int(state.epoch) >= delay
    every = options.get("eval_steps") or logging_steps
    every = math.ceil(last * every) if every < 1 else int(every)  # below 1: a share of all steps
    return step >= delay and step % every == 0


def _same_noise_after(device: Any) -> Any:
    """A context after which torch's generators, of the CPU and of this device, are as before."""
    if device.type in ("cuda", "xpu"):
        return torch.random.fork_rng([device], device_type=device.type)
    return torch.random.fork_rng([])
