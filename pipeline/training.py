"""What every training step shares: arguments for a stock TRL trainer, progress, resume, saving."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, TrainerCallback

from pipeline import artifact
from pipeline.batches import micro_batches
from pipeline.errors import StepFailedError
from pipeline.model import MODEL_FOLDER, load_for, resolve_dtype
from pipeline.step import StepRun

CHECKPOINTS = "checkpoints"
HISTORY = "history.json"


def training_arguments(step: StepRun, config_class: Any, **more: Any) -> Any:
    """Build the trainer's configuration: bashrac's defaults, then the recipe's options."""
    rows, passes = micro_batches(
        step.options["batch_size"], step.state.num_processes, step.neutral["micro_batch_size"]
    )
    trainer = {**step.options["trainer"], **step.neutral["trainer"]}
    if "gradient_checkpointing" not in trainer:  # its newer name, so that transformers is quiet
        trainer.setdefault("activation_checkpointing", step.device.type != "cpu")
    arguments = {
        "report_to": [],
        "disable_tqdm": True,
        "save_total_limit": 1,
        "dataloader_pin_memory": step.device.type != "cpu",
        **trainer,
        # The first loss and any NaN must be seen; transformers would log NaN as 0.
        "logging_strategy": "steps",
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "output_dir": str(step.directory / CHECKPOINTS),
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": passes,
        "seed": step.seed,
        "use_cpu": step.use_cpu,
    }
    return config_class(**arguments, **more)


def load_trainable(step: StepRun) -> tuple[Any, Any]:
    """Load the weights a training step starts from.

    Returns:
        The model, and the LoraConfig the trainer should add (None when all weights are trained or
        the model already carries the adapter to train).
    """
    lora = step.options["lora"]
    dtype = resolve_dtype(step.options["dtype"], trains_all_weights=lora is None)
    model = load_for(step, dtype=dtype, trainable_adapter=lora is not None)
    if lora is None or "adapter" in step.inputs:
        return model, None
    from peft import LoraConfig

    return model, LoraConfig(**{"task_type": "CAUSAL_LM", **lora})


def fit(step: StepRun, trainer: Any, *, tokens_per_epoch: int) -> None:
    """Train, from the last whole checkpoint if there is one, and save model and loss history."""
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Progress(step))
    checkpoint = last_checkpoint(step.directory / CHECKPOINTS)
    if checkpoint is not None and step.state.is_main_process:
        print(f"resuming from {checkpoint}", flush=True)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    history = trainer.state.log_history
    losses = [entry["loss"] for entry in history if "loss" in entry]
    seen = [float(entry[key]) for entry in history for key in ("loss", "grad_norm") if key in entry]
    weights = (weight for weight in trainer.model.parameters() if weight.requires_grad)
    if not all(map(math.isfinite, seen)) or not all(bool(w.isfinite().all()) for w in weights):
        shutil.rmtree(step.directory / CHECKPOINTS, ignore_errors=True)  # they hold the same
        raise StepFailedError(
            "training diverged: loss, gradient or weights became infinite or NaN; lower "
            "trainer.learning_rate"
        )
    step.metrics |= {
        "optimizer_steps": trainer.state.global_step,
        "epochs": round(trainer.state.epoch or 0, 4),
        "tokens_trained": round(tokens_per_epoch * (trainer.state.epoch or 0)),
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
    }
    _save(step, trainer)
    if step.state.is_main_process:
        artifact.write_json(step.directory / HISTORY, history)
        shutil.rmtree(step.directory / CHECKPOINTS, ignore_errors=True)


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint that was written to its end, or None."""
    whole = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json")]
    return max(whole, key=lambda path: int(path.name.split("-")[1]), default=None)


def _save(step: StepRun, trainer: Any) -> None:
    """Save through the trainer, which gathers sharded weights, and keep only what loads again."""
    temporary = step.directory / f".{MODEL_FOLDER}.tmp"
    if step.state.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
    step.state.wait_for_everyone()
    trainer.save_model(str(temporary))
    step.state.wait_for_everyone()
    if step.state.is_main_process:
        shutil.rmtree(temporary / "ref", ignore_errors=True)  # DPO's frozen copy of the adapter
        for leftover in ("training_args.bin", "README.md"):
            (temporary / leftover).unlink(missing_ok=True)
        shutil.rmtree(step.directory / MODEL_FOLDER, ignore_errors=True)
        temporary.rename(step.directory / MODEL_FOLDER)


class _Progress(TrainerCallback):
    """Tells the parent how far training is, and the log what the loss is."""

    def __init__(self, step: StepRun):
        self.step = step

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.step.progress(state.global_step, state.max_steps, "optimizer steps")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.step.progress(state.global_step, state.max_steps, "optimizer steps")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "loss" in logs and state.is_world_process_zero:
            rate = logs.get("learning_rate", 0.0)
            place = f"optimizer step {state.global_step} of {state.max_steps}"
            print(f"{place}: loss {logs['loss']:.4f}, learning rate {rate:.2e}", flush=True)
