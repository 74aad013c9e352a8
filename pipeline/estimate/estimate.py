"""What the steps of a plan will take: parameters, memory of a process, tokens and hours.

Nothing is loaded but the model's config and tokenizer, and the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.estimate import throughput
from pipeline.estimate.memory import Memory
from pipeline.estimate.reckon import Training, padded, training_memory, writing_pass
from pipeline.estimate.skeleton import build
from pipeline.estimate.tokens import Work, Workload, terms_of
from pipeline.estimate.trace import TrainingPass, writing_peak
from pipeline.hardware.precision import Precision, choose, hardware_of_launch
from pipeline.models.load import load_config
from pipeline.plan.plan import Plan
from pipeline.recipe.shipped import Launch
from pipeline.stages.dpo import TRAIN as TRAIN_DPO
from pipeline.steps import artifact
from pipeline.steps.identity import model_identity
from pipeline.steps.spec import StepSpec
from pipeline.train.sampler import micro_batches

WRITES = ("answers", "contexts", "corrections", "gap-contexts", "gap-losses")


@dataclass(frozen=True)
class Estimate:
    """What one step takes.

    Attributes:
        step: the step; for a plan of several seeds that of the first.
        times: how many steps of the plan are like it but for their seed.
        done: whether it is finished; memory and seconds are then those of its record.
        work: its tokens.
        memory: what a process holds, None where it is not known or next to nothing.
        measured: bytes a finished step held.
        total: parameters of the model, and of these, or beside these in an adapter, `trained`.
        seconds: how long it takes, or took; None where no rate is known.
        rows: rows that training reads in a pass (pairs, where it trains on pairs).
        less: memory with one of them, where all do not fit.
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
    less: Memory | None = None
    unknown: str = ""
    precision: Precision | None = None

    @property
    def bytes(self) -> int | None:
        """What a process holds: measured, or else estimated."""
        return self.memory.total if self.measured is None and self.memory else self.measured


def estimate(
    plan: Plan, runs: Path, launch: Launch, *, tokens_per_second: float | None = None,
    limit: float = math.inf,
) -> list[Estimate]:  # fmt: skip
    """Estimate every step of a plan, each once for all seeds.

    Args:
        plan: of a recipe.
        runs: the folder of all results, whose finished steps say what was measured.
        launch: on what it shall run.
        tokens_per_second: of all processes together, in place of measured rates.
        limit: bytes that a process may hold.

    Raises:
        InputError: when model or data cannot be read.
    """
    recipes = [one.recipe for one in plan.stages.values()]
    templates = {(one.chat_template, one.chat_template_name) for one in recipes}
    if len({(one.model, one.revision) for one in recipes}) > 1 or len(templates) > 1:
        raise InputError(
            "the sweep is over the model, and an estimate is of one: --set sweep=null "
            "--set model=NAME, once for each"
        )
    terms = terms_of(plan.recipe)
    config = load_config(plan.recipe.model, **terms)
    measured = throughput.measured_rates(
        runs, model_identity(plan.recipe.model, plan.recipe.revision), use_cpu=launch.use_cpu
    )
    workload = Workload(plan)
    reckoner = MemoryEstimator(config, launch, terms["trust"])
    found: dict[tuple[str, ...], Estimate] = {}
    for step in plan.steps:
        directory = step.directory(runs)
        done = artifact.is_finished(directory)
        name = (step.stage, step.title, "done" if done else "to run")
        if name in found and step.seed != found[name].step.seed:
            found[name] = replace(found[name], times=found[name].times + 1)
        elif done:
            found[name] = _finished(step, artifact.read_record(directory))
        else:
            work = workload.of(step)
            rate = tokens_per_second or launch.processes * measured.get(
                throughput.key_of(step.identity), 0.0
            )
            tokens, _ = work.timed
            seconds = tokens / rate if rate and tokens else None
            found[name] = replace(reckoner.of(step, work, limit), seconds=seconds)
    return list(found.values())


def _finished(step: StepSpec, record: dict[str, Any]) -> Estimate:
    """What a finished step measured."""
    count = throughput.tokens_of(record) if step.kind in ("train", *WRITES) else 0
    if step.kind == "train":
        work = Work(trained=count)
    else:
        work = Work(read=count) if step.kind == "gap-losses" else Work(written=count)
    return Estimate(
        step, work, done=True, measured=record["peak_memory_bytes"], seconds=record["seconds"]
    )


class MemoryEstimator:
    """Reckons the memory of steps; passes that are alike are played through once."""

    def __init__(self, config: Any, launch: Launch, trust: Any):
        self.config, self.launch, self.trust = config, launch, trust
        self.kind = launch.kind
        self.hardware = hardware_of_launch(use_cpu=launch.use_cpu)
        self._known: dict[str, Any] = {}

    def of(self, step: StepSpec, work: Work, limit: float = math.inf) -> Estimate:
        """The memory of a step, and its parameters; see `estimate` for `limit`."""
        nothing = Estimate(step, work)
        try:
            if step.kind == "train":
                return self._train(step, work, limit)
            if step.kind in WRITES and step.options.get("engine") == "vllm":
                return replace(nothing, unknown="vLLM takes nine tenths of a GPU")
            return self._write(step, work) if step.kind in WRITES else nothing
        except RuntimeError as error:
            # Of torch: the model's code asks for numbers, and there are none.
            reason = type(error).__name__
            return replace(nothing, unknown=f"the model's code cannot be played through ({reason})")

    def _train(self, step: StepSpec, work: Work, limit: float) -> Estimate:
        pairs = step.run == TRAIN_DPO
        rows, passes = micro_batches(
            step.options["batch_size"],
            self.launch.processes,
            step.runtime_options["micro_batch_size"],
        )
        precision = choose(step.options, self.hardware)
        settings = Training.of_step(step, precision, use_cpu=self.launch.use_cpu)
        length = padded(work.longest, settings.multiple)
        given = TrainingPass(
            rows=2 * rows if pairs else rows,
            length=length,
            accumulates=passes > 1,
            autocast=settings.autocast,
            checkpointing=settings.checkpointing,
            reference=settings.reference,
            on_gpu=not self.launch.use_cpu,
        )
        found, total, trained = self._once(settings, given)
        made = Estimate(
            step, work, memory=found, total=total, trained=trained, rows=rows, precision=precision
        )
        if rows == 1 or found.total <= limit:
            return made
        one = replace(given, rows=2 if pairs else 1, accumulates=step.options["batch_size"] > 1)
        return replace(made, less=self._once(settings, one)[0])

    def _once(self, settings: Training, given: TrainingPass) -> tuple[Memory, int, int]:
        return self._remember(
            repr((settings, given)),
            lambda: training_memory(
                self.config, settings, given, kind=self.kind, processes=self.launch.processes,
                trust=self.trust,
            ),
        )  # fmt: skip

    def _remember(self, key: str, make: Callable[[], Any]) -> Any:
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]

    def _write(self, step: StepSpec, work: Work) -> Estimate:
        options = step.options
        given = writing_pass(
            step, work, processes=self.launch.processes, use_cpu=self.launch.use_cpu
        )
        precision = choose(options, self.hardware)
        dtype = precision.weights
        adapter = step.inputs.get("adapter")
        lora = adapter.options["lora"] if isinstance(adapter, StepSpec) else None
        quantize = options.get("quantize")

        def make() -> tuple[Memory, int]:
            skeleton = build(
                self.config, dtype=dtype, lora=lora, trains=False, quantize=quantize,
                trust=self.trust,
            )  # fmt: skip
            weights, total = skeleton.weight_bytes, skeleton.total
            most, cache = writing_peak(skeleton, given)
            return Memory(weights=weights, cache=cache, passes=most - weights - cache), total

        found, total = self._remember(repr((dtype, lora, quantize, given)), make)
        return Estimate(step, work, memory=found, total=total, precision=precision)
