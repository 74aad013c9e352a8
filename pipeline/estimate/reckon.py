"""The memory of one step: what its settings mean, and what its largest pass is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.estimate import memory
from pipeline.estimate.memory import Memory
from pipeline.estimate.skeleton import build
from pipeline.estimate.tokens import Work
from pipeline.estimate.trace import TrainingPass, WritingPass, training_peak
from pipeline.hardware.precision import Precision
from pipeline.recipe.shipped import REPLICATED
from pipeline.stages.dpo import TRAIN as TRAIN_DPO
from pipeline.steps.spec import StepSpec

# How often a window of a BASH context ends early, before any is read
# (pipeline.decoding.jacobi.decode).
_WINDOWS_ENDED = 1 / 32


@dataclass(frozen=True)
class Training:
    """What a training step's memory depends on beside the rows of a pass.

    Attributes:
        dtype: of the weights that are loaded.
        optimizer: `trainer.optim`.
        lora: options of an adapter, or None where all weights are trained.
        quantize: 'nf4' for a base in 4 bits, or None.
        autocast: the 16 bits that are computed in, or None.
        checkpointing: whether activations are made again in the backward pass.
        reference: as in `pipeline.estimate.trace.TrainingPass`.
        copies_adapter: whether the reference is a frozen copy of the adapter.
        multiple: padded lengths are multiples of it.
    """

    dtype: str
    optimizer: str = memory.DEFAULT_OPTIMIZER
    lora: dict[str, Any] | None = None
    quantize: str | None = None
    autocast: str | None = None
    checkpointing: bool = False
    reference: str | None = None
    copies_adapter: bool = False
    multiple: int = 1

    @classmethod
    def of_step(cls, step: StepSpec, precision: Precision, *, use_cpu: bool) -> Training:
        """The settings of a training step, TRL's and our own defaults included."""
        trainer = {**step.options["trainer"], **step.runtime_options.get("trainer", {})}
        lora = step.options["lora"]
        checkpointing = trainer.get(
            "gradient_checkpointing", trainer.get("activation_checkpointing")
        )
        reference = None
        if step.run == TRAIN_DPO and not trainer.get("precompute_ref_log_probs"):
            reference = "model" if lora is None else "adapter"
        return cls(
            dtype=precision.weights,
            optimizer=trainer.get("optim", memory.DEFAULT_OPTIMIZER),
            lora=lora,
            quantize=step.options.get("quantize"),
            autocast=precision.autocast,
            checkpointing=(not use_cpu) if checkpointing is None else bool(checkpointing),
            reference=reference,
            copies_adapter=reference is not None and "adapter" in step.inputs,
            multiple=trainer.get("pad_to_multiple_of") or 1,
        )


def training_memory(
    config: Any, settings: Training, given: TrainingPass, *, kind: str = REPLICATED,
    processes: int = 1, trust: Any = None,
) -> tuple[Memory, int, int]:  # fmt: skip
    """Return the memory of a training process, and the model's parameters, total and trained.

    The fullest moment is in the passes (with gradients of passes before, and optimizer states) or
    in the optimizer's step.
    """
    more = {} if trust is None else {"trust": trust}
    options = {"lora": settings.lora, "quantize": settings.quantize, **more}
    plain = build(config, dtype=settings.dtype, **options)
    trained, weights = plain.trained, plain.weight_bytes
    gradients = sum(one.bytes for one in trained)
    states = memory.optimizer_bytes(trained, settings.optimizer)
    reference = weights if settings.reference == "model" else 0
    if settings.copies_adapter:
        reference = gradients
    total, count = plain.total, sum(one.count for one in trained)
    # Shared-out weights are read in 16 bits under autocast, and no copies are made of them.
    shares = processes > 1 and kind != REPLICATED
    computed = settings.autocast if shares and settings.autocast else settings.dtype
    shape = plain.shape(pass_bytes=memory.BYTES[computed])
    played = plain if computed == settings.dtype else build(config, dtype=computed, **options)
    kept = played.weight_bytes
    kept_gradients = sum(one.bytes for one in played.trained)
    most = training_peak(played, given)
    step = memory.optimizer_step_bytes(trained, settings.optimizer, on_gpu=given.on_gpu)
    passes = max(most - kept - kept_gradients, step)
    whole = Memory(weights, gradients, states, reference, passes=passes)
    return memory.shared_out(whole, shape, kind=kind, processes=processes), total, count


def writing_pass(step: StepSpec, work: Work, *, processes: int, use_cpu: bool) -> WritingPass:
    """The largest passes of a step that writes rows."""
    from pipeline.decoding.jacobi import _width

    options, budget = step.options, step.runtime_options["batch_tokens"]
    mine = -(-work.rows // processes)
    slots = max(min(budget // max(work.longest, 1), mine), 1)
    answer = max(work.longest - work.longest_prompt, 1)
    window, sampled, labels = 1, slots, 0
    if step.kind in ("contexts", "gap-contexts"):
        if step.runtime_options.get("engine") != "sequential":
            window = _width("cpu" if use_cpu else "cuda", slots, _WINDOWS_ENDED, most=answer)
        rate = options["beta"] if "beta" in options else max(options["rates"])
        sampled = max(round(slots * window * rate), 1)
        labels = slots * answer  # of the losses that are compared
    elif step.kind == "gap-losses" or options.get("correction") == "token":
        slots, sampled, labels = 0, 0, slots * answer
    elif options.get("temperature", 0.0) == 0 and options.get("label") != "sample":
        sampled = 0
    return WritingPass(
        slots, work.longest, work.longest_prompt, window, sampled, labels, on_gpu=not use_cpu
    )


def padded(length: int, multiple: int) -> int:
    """The length to which the longest row is padded; at least a token and its label."""
    return max(-(-length // multiple) * multiple, 2)
