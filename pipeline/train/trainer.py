"""What all training steps share: arguments for a stock TRL trainer, progress, resuming, saving."""

from __future__ import annotations

import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, TrainerCallback
from transformers.integrations import unset_hf_deepspeed_config

from pipeline.errors import StepFailedError
from pipeline.hardware.precision import AUTOCAST
from pipeline.hardware.topology import check_trainer
from pipeline.models.load import load_for
from pipeline.models.locate import MODEL_FOLDER
from pipeline.models.quantize import check_whole
from pipeline.recipe.shipped import FSDP2, REPLICATED
from pipeline.recipe.trl_rules import HELD_OUT
from pipeline.steps import artifact
from pipeline.steps.context import StepContext
from pipeline.steps.options import TrainOptions
from pipeline.train import trackers
from pipeline.train.as_loaded import restore_config
from pipeline.train.gather import whole_weights
from pipeline.train.sampler import micro_batches

CHECKPOINTS = "checkpoints"
HISTORY = "history.json"
_LAST_FILE = "checkpoint-*/trainer_state.json"
# A kill loses at most so many seconds of training, unless checkpoints would then take more than a
# twentieth of the time.
_CHECKPOINT_SECONDS, _CHECKPOINT_SHARE = 600.0, 1 / 20


def training_arguments(step: StepContext[TrainOptions], config_class: Any, **more: Any) -> Any:
    """Build the trainer's configuration: bashrac's defaults, then the recipe's options."""
    rows, passes = micro_batches(
        step.options["batch_size"],
        step.state.num_processes,
        step.runtime_options["micro_batch_size"],
    )
    given = {**step.options["trainer"], **step.runtime_options["trainer"]}
    trainer = {key: value for key, value in given.items() if key not in HELD_OUT}
    if trainer.get("report_to"):
        trackers.keep_here(step)
    # TRL's default is on, which is slow on a CPU. The older name would make transformers warn.
    if "gradient_checkpointing" not in trainer:
        trainer.setdefault("activation_checkpointing", step.device.type != "cpu")
    arguments = {
        # Defaults, which the recipe may change.
        "report_to": [],
        "run_name": step.directory.name,
        "disable_tqdm": True,
        "save_total_limit": 1,
        "dataloader_pin_memory": step.device.type != "cpu",
        **trainer,
        **{key: name == step.precision.autocast for key, name in AUTOCAST.items()},
        # What the recipe may not change. DPO checks its first loss, and _Finite any NaN, which
        # transformers would log as 0 by default.
        "logging_strategy": "steps",
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "output_dir": str(step.directory / CHECKPOINTS),
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": passes,
        "seed": step.seed,
        "use_cpu": step.launch.use_cpu,
    }
    built = config_class(**arguments, **more)
    if step.launch.kind == FSDP2 and step.precision.autocast:
        policy = _rounded_passes_only(step.precision.autocast)
        built.fsdp_plugin_args = {"mixed_precision_policy": policy}
    return built


def _rounded_passes_only(autocast: str) -> Any:
    """Have FSDP2 compute in 16 bits, but return outputs and reduce gradients in float32.

    Accelerate's policy would round outputs too, and with them TRL's log-probabilities: an answer's
    sum of some hundreds would then come in steps of 1 to 2, while DPO looks at smaller differences.
    """
    import torch
    from torch.distributed.fsdp import MixedPrecisionPolicy

    return MixedPrecisionPolicy(getattr(torch, autocast), torch.float32, torch.float32)


def load_trainable(step: StepContext[TrainOptions]) -> tuple[Any, Any]:
    """Load the weights a training step starts from.

    Returns:
        The model, and the LoraConfig for the trainer to add (None if all weights are trained or the
        model already has the adapter to train).
    """
    lora = step.options["lora"]
    if step.options.get("quantize"):
        check_whole(step.launch.kind)
    model = load_for(step, trainable_adapter=lora is not None)
    if lora is None or "adapter" in step.locations:
        return model, None
    from peft import LoraConfig

    return model, LoraConfig(**{"task_type": "CAUSAL_LM", **lora})


def fit(step: StepContext, trainer: Any, *, tokens_per_epoch: int) -> None:
    """Train, from the last complete checkpoint if there is one, and save model and loss history.

    Raises:
        StepFailedError: when the loss, a gradient or a weight is NaN or infinite.
        KeyboardInterrupt: when a stop was requested, after a checkpoint was written.
    """
    check_trainer(trainer.accelerator, kind=step.launch.kind)
    trainer.remove_callback(PrinterCallback)  # _Progress prints losses instead
    loss_scale = _LossScale(step, trainer.accelerator)
    for callback in (_Progress(step), _Checkpoints(step), _Finite(step), loss_scale):
        trainer.add_callback(callback)
    checkpoint = last_checkpoint(step.directory / CHECKPOINTS, layout(step))
    step.state.wait_for_everyone()  # all must have looked before one is removed or written
    if step.state.is_main_process:
        for path in (step.directory / CHECKPOINTS).glob("checkpoint-*"):
            if path != checkpoint:  # incomplete, or sharded differently: later ones need the name
                print(f"removing {path}: incomplete, or of another launch", flush=True)
                shutil.rmtree(path, ignore_errors=True)
        if checkpoint is not None:
            print(f"resuming from {checkpoint}", flush=True)
    step.state.wait_for_everyone()
    step.stops_itself = True  # SIGTERM during an optimizer step ends in a checkpoint: _Checkpoints
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    step.stops_itself = False
    trackers.end()
    if step.stop_asked:
        raise KeyboardInterrupt
    loss_scale.check()
    # A loss is computed before its update: only the weights show whether the last one was finite.
    whole = whole_weights(trainer)
    trained = [weight for weight in trainer.model.parameters() if weight.requires_grad]
    weights = trained if whole is None else whole.values()
    finite = all(bool(weight.isfinite().all()) for weight in weights)
    if not all(step.from_main_process([finite])):
        raise diverged(step, "a weight is infinite or NaN")
    history = trainer.state.log_history
    losses = [entry["loss"] for entry in history if "loss" in entry]
    step.metrics |= {
        "optimizer_steps": trainer.state.global_step,
        "epochs": round(trainer.state.epoch or 0, 4),
        "tokens_trained": round(tokens_per_epoch * (trainer.state.epoch or 0)),
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
    }
    _save(step, trainer, whole)
    unset_hf_deepspeed_config()  # else ZeRO-3 would shard what a later step of this process loads
    if step.state.is_main_process:
        artifact.write_json(step.directory / HISTORY, history)
        # Only now that the model is saved: until then a stopped step resumes from them.
        shutil.rmtree(step.directory / CHECKPOINTS, ignore_errors=True)


def layout(step: StepContext) -> str:
    """How checkpoints of this launch are sharded: only the same kind of launch can read them."""
    if step.launch.kind.startswith("ZeRO"):  # one shard per process
        return f"{step.launch.kind} of {step.launch.processes}"
    return step.launch.kind


def last_checkpoint(folder: Path, sharding: str = REPLICATED) -> Path | None:
    """Return the newest complete checkpoint with this `layout`, or None."""
    # trainer_state.json is written last, so a checkpoint with one is complete.
    found = [(path.parent, artifact.read_object(path)) for path in folder.glob(_LAST_FILE)]
    whole = [
        path
        for path, state in found
        if state and state.get("stateful_callbacks", {}).get("layout", REPLICATED) == sharding
    ]
    return max(whole, key=lambda path: int(path.name.split("-")[1]), default=None)


def diverged(step: StepContext, what: str) -> StepFailedError:
    """Remove the checkpoints of a training that diverged, and return the error for it."""
    shutil.rmtree(step.directory / CHECKPOINTS, ignore_errors=True)
    way_out = "lower trainer.learning_rate"
    if step.precision.compute == "float16":
        way_out = f"numbers may be too large for float16: write precision: float32, or {way_out}"
    return StepFailedError(f"training diverged: {what}; {way_out}")


def _save(step: StepContext, trainer: Any, whole: dict[str, Any] | None) -> None:
    """Save a plain model or adapter; `whole` are the gathered weights of a sharded one."""
    if step.state.is_main_process:
        restore_config(step, trainer.model)
        # Without DPO's reference, a frozen copy of the adapter.
        adapter = (
            {"selected_adapters": ["default"]} if hasattr(trainer.model, "peft_config") else {}
        )
        # An attempt that was killed before its record may have left one.
        shutil.rmtree(step.directory / MODEL_FOLDER, ignore_errors=True)
        with artifact.atomic_folder(step.directory / MODEL_FOLDER) as temporary:
            trainer.model.save_pretrained(str(temporary), state_dict=whole, **adapter)
            trainer.processing_class.save_pretrained(str(temporary))
            (temporary / "README.md").unlink(missing_ok=True)
            _finish_adapter_config(step, temporary / "adapter_config.json")
            if whole is not None:
                _name_dtype(temporary / "config.json", whole)
    step.state.wait_for_everyone()


def _name_dtype(config_file: Path, whole: dict[str, Any]) -> None:
    """Write the dtype of the saved weights to the config, not that of the 16-bit compute copy."""
    if config_file.is_file():
        (dtype,) = {str(weight.dtype) for weight in whole.values() if weight.is_floating_point()}
        config = artifact.read_json(config_file)
        artifact.write_json(config_file, config | {"dtype": dtype.removeprefix("torch.")})


def _finish_adapter_config(step: StepContext, adapter_config: Path) -> None:
    """Write the adapter's base so that peft finds it from any working folder."""
    if not adapter_config.is_file():
        return
    config = artifact.read_json(adapter_config)
    # A set in peft, whose order differs between processes: sorted, so that files are reproducible.
    if isinstance(config.get("target_modules"), list):
        config["target_modules"].sort()
    base = step.spec.inputs["base"]
    if isinstance(base, dict) and "hub" in base:
        config["revision"] = base["revision"]  # peft loads the base at this commit
    elif Path(config["base_model_name_or_path"]).is_dir():
        config["base_model_name_or_path"] = os.path.abspath(config["base_model_name_or_path"])
    artifact.write_json(adapter_config, config)


class _Progress(TrainerCallback):
    """Reports progress to the parent process, and losses to the log."""

    def __init__(self, step: StepContext):
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


class _Finite(TrainerCallback):
    """Stops training at the first loss or gradient norm that is NaN or infinite."""

    def __init__(self, step: StepContext):
        self.step = step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        # In float16 gradients may overflow: see _LossScale.
        for key in ("loss",) if args.fp16 else ("loss", "grad_norm"):
            if not math.isfinite(float((logs or {}).get(key, 0.0))):
                name = key.replace("grad_norm", "gradient norm")
                what = f"the {name} is {logs[key]} at optimizer step {state.global_step}"
                raise diverged(self.step, what)


class _LossScale(TrainerCallback):
    """Counts optimizer steps skipped by float16 loss scaling, and stops when no step will succeed.

    The scaler skips a step whose gradients overflow and halves the scale, which starts at 2^16, so
    a few steps are often skipped at first. Below a scale of 1 it is the gradients themselves that
    overflow, and every later step would be skipped too.
    """

    _MOST_IN_A_ROW = 20  # 17 halvings take the scale from 2^16 to below 1
    _SHARE = 0.05  # of all steps; more are worth a warning

    def __init__(self, step: StepContext, accelerator: Any):
        self.step, self.accelerator = step, accelerator
        self.steps = self.skipped = self.in_a_row = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        skipped = bool(args.fp16 and self.accelerator.optimizer_step_was_skipped)
        # Kept in the trainer's state, so that checkpoints include it.
        before = state.stateful_callbacks.get("left_out", [0, 0])
        self.steps, self.skipped = before[0] + 1, before[1] + skipped
        state.stateful_callbacks["left_out"] = [self.steps, self.skipped]
        self.in_a_row = self.in_a_row + 1 if skipped else 0
        if self.in_a_row >= self._MOST_IN_A_ROW:
            raise self._failed("the last ones in a row: they overflow float16 at every loss scale")

    def check(self) -> None:
        """Record the skipped steps, and warn about many.

        Raises:
            StepFailedError: when most steps were skipped, so that the model is hardly trained.
        """
        if 2 * self.skipped > self.steps:
            raise self._failed("most of them, so the model is hardly trained")
        if self.skipped:
            self.step.metrics["optimizer_steps_left_out"] = self.skipped
        if self.skipped > self._SHARE * self.steps:
            self.step.warn(
                f"{self.skipped} of {self.steps} optimizer steps were skipped because gradients "
                "overflowed float16; precision: float32 skips none"
            )

    def _failed(self, which: str) -> StepFailedError:
        shutil.rmtree(self.step.directory / CHECKPOINTS, ignore_errors=True)
        return StepFailedError(
            f"{self.skipped} of {self.steps} optimizer steps were skipped because gradients "
            f"overflowed float16, {which}; write precision: float32"
        )


class _Checkpoints(TrainerCallback):
    """Requests a checkpoint when enough work would be lost, and when a stop was requested."""

    def __init__(self, step: StepContext):
        self.step = step
        self.saved, self.took, self.began = time.monotonic(), 0.0, 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        state.stateful_callbacks["layout"] = layout(self.step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.began = time.monotonic()
        wanted = max(_CHECKPOINT_SECONDS, self.took / _CHECKPOINT_SHARE)
        due = args.save_strategy != "no" and self.began - self.saved > wanted
        # Clocks and signals differ between processes, but all must write a checkpoint together.
        stop, due = self.step.from_main_process([self.step.stop_asked, due])
        self.step.stop_asked = stop
        control.should_save |= stop or due
        control.should_training_stop |= stop

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.saved = time.monotonic()
        self.took = self.saved - self.began
