"""What a step is given: step.json, as it is written for a launched process and read in it."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline import artifact
from pipeline.artifact import PROGRESS, SPEC
from pipeline.errors import InputError
from pipeline.precision import Precision, choose, hardware
from pipeline.shipped import WHOLE
from pipeline.threads import threads_of_launch

BEGUN = "begun"  # the precision of the attempt before, in progress.json


@dataclass
class StepRun:
    """What a step's function is given: its specification, and where and how to work.

    Attributes:
        directory: where results go.
        options: what decides the result (`Step.options`).
        inputs: name -> folder of an earlier step, or the place of a model or data from outside.
        neutral: settings that do not change the result.
        seed: the seed.
        processes: how many the launch asks for, `use_cpu` whether on CPUs, and `launch_kind` how
            weights are to lie in them (`pipeline.shipped.Launch`).
        alone: whether the main process does the work and the others wait for it.
        judge_calls_left: most questions it may put to a judge, or None.
        log: the file for what this process says in the step, or None where its parent sees to it.
        metrics: figures for the record; the function adds to them.
        stop_asked: whether SIGTERM has come.
        stops_itself: whether the function looks at `stop_asked` rather than being interrupted.
    """

    directory: Path
    kind: str
    run: str
    title: str
    stage: str
    fingerprint: str
    identity: dict[str, Any]
    options: dict[str, Any]
    inputs: dict[str, Any]
    neutral: dict[str, Any]
    seed: int
    processes: int
    use_cpu: bool
    launch_kind: str = WHOLE
    alone: bool = False
    judge_calls_left: int | None = None
    log: str | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    stop_asked: bool = False
    stops_itself: bool = False
    _last_progress: float = 0.0
    _first_progress: tuple[float, int] | None = None
    _began: float = field(default_factory=time.monotonic)
    _seconds_before: float = 0.0

    @classmethod
    def read(cls, spec_file: Path) -> StepRun:
        """Read step.json."""
        spec = artifact.read_json(spec_file)
        return cls(directory=spec_file.resolve().parent, **spec)

    @cached_property
    def state(self) -> Any:
        """The processes of this launch, as `accelerate.PartialState`."""
        from accelerate import PartialState

        return PartialState(cpu=self.use_cpu)

    @property
    def device(self) -> Any:
        """The torch device of this process."""
        return self.state.device

    @property
    def computes(self) -> bool:
        """Whether the step runs the recipe's model, and so has a precision."""
        return "dtype" in self.options

    @cached_property
    def precision(self) -> Precision:
        """What a new attempt computes in; one that goes on has been given its own."""
        return choose(self.options, hardware(self.device.type))

    def seed_of_round(self) -> int:
        """A seed of this step's round: rounds must not repeat each other's positions and noise."""
        return self.seed * 1_000_003 + self.options["round"]

    def input_folders(self) -> dict[str, Path]:
        """The inputs that are earlier steps of this plan: name -> folder."""
        known = self.identity["inputs"]  # of a step its fingerprint, of anything else a mapping
        return {name: Path(at) for name, at in self.inputs.items() if isinstance(known[name], str)}

    def progress(self, done: int, total: int, unit: str) -> None:
        """Say how far the step is, at most once a second, from the main process only."""
        if (threads := threads_of_launch()) is not None:
            threads.adapt()
        now = time.monotonic()
        if self._first_progress is None:
            self._first_progress = (now, done)
        if not self.state.is_main_process or (now - self._last_progress < 1 and done < total):
            return
        self._last_progress = now
        # What was done before a stop, and loading the model, say nothing about the rest.
        began, before = self._first_progress
        left = (total - done) * (now - began) / (done - before) if done > before else None
        state: dict[str, Any] = {"done": done, "total": total, "unit": unit, "left": left}
        if self.computes:
            state["precision"] = asdict(self.precision)
        artifact.write_json(self.directory / PROGRESS, {**state, "seconds": self.seconds()})

    def start_clock(self) -> None:
        """Count seconds from now on, and those before a stop to them."""
        self._seconds_before = read_progress(self.directory).get("seconds", 0.0)
        self._began = time.monotonic()
        if (threads := threads_of_launch()) is not None:
            threads.used = {threads.count}

    def seconds(self) -> float:
        """Seconds spent on the step so far, those before a stop included."""
        return self._seconds_before + time.monotonic() - self._began

    def from_main_process(self, values: list[Any]) -> list[Any]:
        """Return what the main process gives, in every process."""
        if self.state.num_processes > 1:
            from accelerate.utils import broadcast_object_list

            broadcast_object_list(values)
        return values

    def source(self, role: str) -> Any:
        """The place of a data input, if it still holds what the plan has seen.

        Raises:
            InputError: when it has changed since.
        """
        from pipeline.identity import data_identity, forget
        from pipeline.recipe import Source

        forget()
        source = Source.model_validate(self.inputs[role])
        if data_identity(source, role=role) != self.identity["inputs"][role]:
            raise changed_error(source.source)
        return source

    def warn(self, sentence: str) -> None:
        """Note something the user should read: in the log now, in the record afterwards."""
        if self.state.is_main_process:
            print(f"warning: {sentence}", flush=True)
            self.metrics.setdefault("warnings", []).append(sentence)


def changed_error(place: str) -> InputError:
    """Return the sentence for data or a model that is no longer what the plan has seen."""
    return InputError(
        f"{place} has changed since this run began; run the same command again to use what it "
        "holds now"
    )


def write_spec(
    step: Any,
    runs: Path,
    *,
    processes: int,
    use_cpu: bool,
    launch_kind: str = WHOLE,
    judge_calls_left: int | None = None,
    log: Path | None = None,
) -> Path:
    """Write step.json for a `pipeline.planned_step.Step`; returns its path."""
    directory = step.directory(runs)
    inputs: dict[str, Any] = dict(step.places)
    for name, value in step.inputs.items():
        if hasattr(value, "directory"):
            inputs[name] = str(value.directory(runs).resolve())
    spec = {
        "kind": step.kind,
        "run": step.run,
        "title": step.title,
        "stage": step.stage,
        "fingerprint": step.fingerprint,
        "identity": step.identity,
        "options": step.options,
        "inputs": inputs,
        "neutral": step.neutral,
        "seed": step.seed,
        "processes": processes,
        "use_cpu": use_cpu,
        "launch_kind": launch_kind,
        "alone": step.alone,
        "judge_calls_left": judge_calls_left,
        "log": log and str(log),
    }
    artifact.write_json(directory / SPEC, spec)
    return directory / SPEC


def set_precision_aside(directory: Path) -> None:
    """Keep what an attempt computed in under another name: the next one has not chosen yet."""
    progress = read_progress(directory)
    if noted := progress.pop("precision", None):
        artifact.write_json(directory / PROGRESS, {**progress, BEGUN: noted})


def read_progress(directory: Path) -> dict[str, Any]:
    """Return {'done', 'total', 'unit', 'left', 'precision', 'seconds'} of a running step, or {}."""
    return artifact.read_object(directory / PROGRESS)
