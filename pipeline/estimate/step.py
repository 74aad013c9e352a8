"""The estimate of one step: its tokens, and the memory of a process that runs it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypedDict

import torch

from pipeline.errors import InputError
from pipeline.estimate.judging import engine_of
from pipeline.estimate.memory import (
    DEFAULT_OPTIMIZER,
    Memory,
    Shape,
    optimizer_bytes,
    optimizer_step_bytes,
    sharded,
)
from pipeline.estimate.skeleton import build
from pipeline.estimate.tokens import WRITING, Work, trainer_options
from pipeline.estimate.trace import (
    TrainingPass,
    WritingPass,
    reading_peak,
    training_peak,
    writing_peak,
)
from pipeline.hardware.precision import Precision, choose, hardware_of_launch
from pipeline.models.load import load_config
from pipeline.recipe.schema import LoraOptions
from pipeline.recipe.shipped import REPLICATED, Launch
from pipeline.stages.dpo import TRAIN as TRAIN_DPO
from pipeline.steps.options import ComputingOptions, TrainOptions
from pipeline.steps.spec import StepSpec
from pipeline.train.sampler import micro_batches

# How often a window of a BASH context ends early, before any is read
# (pipeline.decoding.jacobi.decode).
_WINDOWS_ENDED = 1 / 32


@dataclass(frozen=True)
class Estimate:
    """What one step takes.

    Attributes:
        step: the step; for a plan of several seeds that of the first.
        work: its tokens.
        times: how many steps of the plan differ from it in the seed only, itself included.
        done: whether it is finished; memory and seconds are then those of its record.
        memory: of one process, None where it is not known or next to nothing.
        measured: bytes that a process of a finished step held at its peak.
        total: parameters of the model, without an adapter.
        trained: how many are trained; of an adapter, its own.
        seconds: how long it takes, or took; None where no rate is known.
        rows: rows per training pass (pairs, where it trains on pairs).
        smallest: bytes with one row per pass, where those of `rows` do not fit.
        unknown: why memory is not known, or ''.
        precision: what the step will compute in; None where it is done, or computes nothing.
    """

    step: StepSpec
    work: Work
    times: int = 1
    done: bool = False
    memory: Memory | None = None
    measured: int | None = None
    total: int = 0
    trained: int = 0
    seconds: float | None = None
    rows: int = 0
    smallest: int | None = None
    unknown: str = ""
    precision: Precision | None = None

    @property
    def bytes(self) -> int | None:
        """What a process holds: measured, or else estimated."""
        return self.memory.total if self.measured is None and self.memory else self.measured


class LoadedModel(TypedDict):
    """How a step loads its model."""

    dtype: str
    lora: LoraOptions | None
    quantize: str | None


class TrainedModel(LoadedModel):
    """How a step loads and trains it."""

    optimizer: str
    copies_adapter: bool


class MemoryEstimator:
    """Estimates the memory of steps; equal passes are traced once."""

    def __init__(self, config: Any, launch: Launch, trust: Any):
        self.config, self.launch, self.trust = config, launch, trust
        self.hardware = hardware_of_launch(use_cpu=launch.use_cpu)
        self._known: dict[str, tuple[Memory, Shape]] = {}

    def of(self, step: StepSpec, work: Work, limit: float = math.inf) -> Estimate:
        """The memory of a step, and its parameters.

        Args:
            step: the step.
            work: its tokens.
            limit: bytes that a process may hold.
        """
        nothing = Estimate(step, work)
        try:
            if step.kind == "train":
                return self._train(step, work, limit)
            if engine_of(step) == "local":
                return self._judge(step, work)
            if step.kind not in WRITING:
                return nothing
            if step.options.get("engine") == "vllm":
                return replace(nothing, unknown="vLLM takes nine tenths of a GPU")
            return self._write(step, work)
        except RuntimeError as error:  # raised by torch where fake tensors do not suffice
            reason = type(error).__name__
            return replace(nothing, unknown=f"the model's code cannot be traced ({reason})")

    def _train(self, step: StepSpec[TrainOptions], work: Work, limit: float) -> Estimate:
        options, trainer, launch = step.options, trainer_options(step), self.launch
        rows, passes = micro_batches(
            options["batch_size"], launch.processes, step.runtime_options["micro_batch_size"]
        )
        precision = choose(options, self.hardware)
        pairs, reference = step.run == TRAIN_DPO, None
        if pairs and not trainer.get("precompute_ref_log_probs"):
            reference = "model" if options["lora"] is None else "adapter"
        checkpointing = trainer.get(
            "gradient_checkpointing", trainer.get("activation_checkpointing")
        )
        multiple = trainer.get("pad_to_multiple_of") or 1
        given = TrainingPass(
            rows=2 * rows if pairs else rows,
            length=max(-(-work.longest // multiple) * multiple, 2),  # at least a token and a label
            accumulates=passes > 1,
            autocast=precision.autocast,
            checkpointing=not launch.use_cpu if checkpointing is None else bool(checkpointing),
            reference=reference,
            on_gpu=not launch.use_cpu,
        )
        settings: TrainedModel = {
            "dtype": precision.weights,
            "lora": options["lora"],
            "quantize": options.get("quantize"),
            "optimizer": trainer.get("optim", DEFAULT_OPTIMIZER),
            "copies_adapter": reference is not None and "adapter" in step.inputs,
        }
        memory, shape = self._once((given, settings), lambda: self._training(given, **settings))
        smallest = None
        if rows > 1 and memory.total > limit:
            one = replace(given, rows=2 if pairs else 1, accumulates=True)
            found, _ = self._once((one, settings), lambda: self._training(one, **settings))
            smallest = found.total
        return Estimate(
            step, work, memory=memory, total=shape.total, trained=shape.trained, rows=rows,
            smallest=smallest, precision=precision,
        )  # fmt: skip

    def _training(
        self, given: TrainingPass, *, dtype: str, lora: LoraOptions | None,
        quantize: str | None, optimizer: str, copies_adapter: bool,
    ) -> tuple[Memory, Shape]:  # fmt: skip
        """Memory of a training process.

        Its peak is in a pass, with gradients of passes before and optimizer states, or in the
        optimizer's step.
        """
        kind, processes = self.launch.kind, self.launch.processes
        # Sharded weights are gathered in 16 bits under autocast, which then makes no copies.
        gathers = processes > 1 and kind != REPLICATED
        computed = given.autocast if gathers and given.autocast else dtype
        load = partial(build, self.config, lora=lora, quantize=quantize, trust=self.trust)
        stored = load(dtype=dtype)
        traced = stored if computed == dtype else load(dtype=computed)
        weights, trained = stored.weight_bytes, stored.trained
        gradients = sum(one.nbytes for one in trained)
        reference = weights if given.reference == "model" else 0
        if copies_adapter:
            reference = gradients
        held = traced.weight_bytes + sum(one.nbytes for one in traced.trained)
        passes = max(
            training_peak(traced, given) - held,
            optimizer_step_bytes(trained, optimizer, on_gpu=given.on_gpu),
        )
        states = optimizer_bytes(trained, optimizer, stored.embedding)
        whole = Memory(weights, gradients, states, reference, passes=passes)
        each = sharded(
            whole, stored.shape, pass_bytes=getattr(torch, computed).itemsize, kind=kind,
            processes=processes,
        )  # fmt: skip
        return each, stored.shape

    def _write(self, step: StepSpec[ComputingOptions], work: Work) -> Estimate:
        given = self._writing_pass(step, work)
        precision = choose(step.options, self.hardware)
        adapter = step.inputs.get("adapter")
        settings: LoadedModel = {
            "dtype": precision.weights,
            "lora": adapter.options["lora"] if isinstance(adapter, StepSpec) else None,
            "quantize": step.options.get("quantize"),
        }

        def trace() -> tuple[Memory, Shape]:
            skeleton = build(self.config, trains=False, trust=self.trust, **settings)
            weights = skeleton.weight_bytes
            most, cache = writing_peak(skeleton, given)
            return Memory(weights, cache=cache, passes=most - weights - cache), skeleton.shape

        memory, shape = self._once((given, settings), trace)
        return Estimate(step, work, memory=memory, total=shape.total, precision=precision)

    def _judge(self, step: StepSpec, work: Work) -> Estimate:
        """A judge in the main process, which reads one question at a time (eval/judge/local.py)."""
        judge = step.runtime_options["judge"]
        try:
            config = load_config(judge["model"], revision=judge["revision"])
        except InputError as error:
            return Estimate(step, work, unknown=f"the judge's config cannot be read: {error}")

        def trace() -> tuple[Memory, Shape]:
            skeleton = build(config, dtype=judge["dtype"], quantize=judge["quantize"], trains=False)
            output = skeleton.model.get_output_embeddings().weight
            tied = output is skeleton.model.get_input_embeddings().weight
            copied = judge["dtype"] != "float32"  # then its output layer is kept in float32
            more = 4 * output.numel() - (0 if tied else output.nbytes) if copied else 0
            weights = skeleton.weight_bytes
            most = reading_peak(skeleton, work.longest)
            return Memory(weights + more, passes=most - weights), skeleton.shape

        memory, shape = self._once(("judge", step.options["judge"], work.longest), trace)
        return Estimate(step, work, memory=memory, total=shape.total)

    def _writing_pass(self, step: StepSpec, work: Work) -> WritingPass:
        """The largest passes of a step that writes rows."""
        from pipeline.decoding.jacobi import _width, sampled_of_window

        options, runtime, use_cpu = step.options, step.runtime_options, self.launch.use_cpu
        share = -(-work.rows // self.launch.processes)
        slots = max(min(runtime["batch_tokens"] // max(work.longest, 1), share), 1)
        answer = max(work.longest - work.longest_prompt, 1)
        window, sampled, labelled = 1, slots, 0
        if step.kind in ("contexts", "gap-contexts"):
            if runtime.get("engine") != "sequential":
                device = "cpu" if use_cpu else "cuda"
                window = _width(device, slots, _WINDOWS_ENDED, most=answer, few=not use_cpu)
            rate = options["beta"] if "beta" in options else max(options["rates"])
            sampled = max(round(slots * window * rate), 1)
            if not use_cpu:
                sampled = slots * sampled_of_window(window, rate)
            labelled = slots  # for the losses that are compared
        elif step.kind == "gap-losses" or options.get("correction") == "token":
            sampled = slots if options.get("label") == "sample" else 0
            slots, labelled = 0, slots
        elif options.get("temperature", 0.0) == 0 and options.get("label") != "sample":
            sampled = 0
        return WritingPass(
            slots, work.longest, work.longest_prompt, window, sampled, labelled, on_gpu=not use_cpu
        )

    def _once(self, of: Any, trace: Callable[[], tuple[Memory, Shape]]) -> tuple[Memory, Shape]:
        key = repr(of)
        if key not in self._known:
            self._known[key] = trace()
        return self._known[key]
