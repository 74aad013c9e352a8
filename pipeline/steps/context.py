"""What a step is given: step.json, as it is written for a launched process and read in it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from functools import cached_property, partial
from itertools import count
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.hardware.precision import Precision, choose, hardware
from pipeline.hardware.threads import threads_of_launch
from pipeline.recipe.shipped import REPLICATED
from pipeline.steps import artifact
from pipeline.steps.artifact import PROGRESS, SPEC
from pipeline.steps.spec import StepSpec

_GROUP_TIMEOUT = 1800  # seconds: transformers' default of `ddp_timeout`
_COUNTERS = count()  # of this process; all processes of a launch make as many
BEGUN = "begun"  # the precision of the attempt before, in progress.json


@dataclass(frozen=True)
class StepLaunch:
    """How the processes of a step are started.

    Attributes:
        processes: how many the launch asks for.
        use_cpu: whether on CPUs.
        kind: how weights are to lie in them (`pipeline.recipe.shipped.Launch`).
        judge_calls_left: most questions the step may put to a judge, or None for no limit.
        log: the file for what the process says in the step, None where its parent sees to it.
    """

    processes: int
    use_cpu: bool
    kind: str = REPLICATED
    judge_calls_left: int | None = None
    log: str | None = None


@dataclass
class StepContext:
    """What a step's function is given: what to make, on what launch, and where.

    Attributes:
        directory: where results go.
        spec: what to make; the properties below are its own.
        launch: how its processes were started.
        metrics: figures for the record; the function adds to them.
        stop_asked: whether SIGTERM has come.
        stops_itself: whether the function looks at `stop_asked` rather than being interrupted.
    """

    directory: Path
    spec: StepSpec
    launch: StepLaunch
    metrics: dict[str, Any] = field(default_factory=dict)
    stop_asked: bool = False
    stops_itself: bool = False
    _last_progress: float = 0.0
    _first_progress: tuple[float, int] | None = None
    _began: float = field(default_factory=time.monotonic)
    _seconds_before: float = 0.0

    @classmethod
    def read(cls, spec_file: Path) -> StepContext:
        """Read step.json."""
        written = artifact.read_json(spec_file)
        spec, launch = StepSpec(**written["spec"]), StepLaunch(**written["launch"])
        return cls(spec_file.resolve().parent, spec, launch)

    @property
    def options(self) -> dict[str, Any]:
        """What decides the result."""
        return self.spec.options

    @property
    def locations(self) -> dict[str, Any]:
        """Input name -> folder of an earlier step, or where a model or data from outside lies."""
        return self.spec.locations

    @property
    def runtime_options(self) -> dict[str, Any]:
        """Settings that do not change the result."""
        return self.spec.runtime_options

    @property
    def seed(self) -> int:
        """The seed."""
        return self.spec.seed

    @property
    def stage(self) -> str:
        """The stage's label."""
        return self.spec.stage

    @cached_property
    def state(self) -> Any:
        """The processes of this launch, as `accelerate.PartialState`.

        Whoever comes first makes the group that they talk in, so its time-out is set here: the
        trainer's `ddp_timeout` alone would come too late.
        """
        from accelerate import PartialState

        return PartialState(cpu=self.launch.use_cpu, timeout=group_timeout(self.spec))

    def counter(self) -> Callable[[int], int]:
        """A number that the processes of this launch share: adds to it and returns it.

        It lies in the store through which their group came together. Every process has to make its
        counters in the same order.
        """
        if self.state.num_processes == 1:
            count = 0

            def add(number: int) -> int:
                nonlocal count
                count += number
                return count

            return add
        from torch.distributed.distributed_c10d import _get_default_store

        return partial(_get_default_store().add, f"bashrac/{next(_COUNTERS)}")

    def wait_for_slow_ones(self) -> None:
        """Wait for every process, however long it takes: for work of which some have far more.

        A barrier gives up after the group's time-out, ten minutes in torch. A process that fails
        ends its launch, and with it those that wait.
        """
        here = self.counter()
        here(1)
        while here(0) < self.state.num_processes:
            time.sleep(0.2)

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
        known = self.spec.inputs  # of a step its fingerprint, of anything else a mapping
        return {
            name: Path(at) for name, at in self.locations.items() if isinstance(known[name], str)
        }

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
        from pipeline.recipe.schema import Source
        from pipeline.steps.identity import data_identity, forget

        forget()
        source = Source.model_validate(self.locations[role])
        if data_identity(source, role=role) != self.spec.inputs[role]:
            raise changed_error(source.source)
        return source

    def warn(self, sentence: str) -> None:
        """Note something the user should read: in the log now, in the record afterwards."""
        if self.state.is_main_process:
            print(f"warning: {sentence}", flush=True)
            self.metrics.setdefault("warnings", []).append(sentence)


def group_timeout(step: StepSpec) -> timedelta:
    """How long the processes of a step's launch wait for each other, unless they say otherwise."""
    trainer = step.runtime_options.get("trainer", {})
    return timedelta(seconds=trainer.get("ddp_timeout", _GROUP_TIMEOUT))


def changed_error(place: str) -> InputError:
    """Return the sentence for data or a model that is no longer what the plan has seen."""
    return InputError(
        f"{place} has changed since this run began; run the same command again to use what it "
        "holds now"
    )


def write_spec(
    step: StepSpec,
    runs: Path,
    *,
    processes: int,
    use_cpu: bool,
    launch_kind: str = REPLICATED,
    judge_calls_left: int | None = None,
    log: Path | None = None,
) -> Path:
    """Write step.json for a planned step; returns its path."""
    launch = StepLaunch(processes, use_cpu, launch_kind, judge_calls_left, log and str(log))
    file = step.directory(runs) / SPEC
    artifact.write_json(file, {"spec": step.as_json(runs), "launch": asdict(launch)})
    return file


def set_precision_aside(directory: Path) -> None:
    """Keep what an attempt computed in under another name: the next one has not chosen yet."""
    progress = read_progress(directory)
    if noted := progress.pop("precision", None):
        artifact.write_json(directory / PROGRESS, {**progress, BEGUN: noted})


def read_progress(directory: Path) -> dict[str, Any]:
    """Return {'done', 'total', 'unit', 'left', 'precision', 'seconds'} of a running step, or {}."""
    return artifact.read_object(directory / PROGRESS)
