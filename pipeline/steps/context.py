"""What a step's function receives: step.json, written by the scheduler and read by a worker."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from functools import cached_property, partial
from itertools import count
from pathlib import Path
from typing import Any, Generic, NotRequired, TypedDict, cast

from pipeline.errors import InputError
from pipeline.hardware.precision import Precision, choose, hardware
from pipeline.hardware.threads import threads_of_launch
from pipeline.recipe.shipped import REPLICATED
from pipeline.steps import artifact
from pipeline.steps.artifact import PROGRESS, SPEC
from pipeline.steps.options import RoundOptions, RuntimeOptions
from pipeline.steps.record import Metrics
from pipeline.steps.spec import OptionsT, StepSpec


class Progress(TypedDict):
    """`progress.json` of a step that is running, or was stopped."""

    done: int
    total: int
    unit: str
    left: float | None  # seconds
    seconds: float
    precision: NotRequired[dict[str, Any]]  # the fields of a `Precision`
    begun: NotRequired[dict[str, Any]]  # the precision of the attempt before


NO_PROGRESS: Progress = {"done": 0, "total": 0, "unit": "", "left": None, "seconds": 0.0}
_GROUP_TIMEOUT = 1800  # seconds: transformers' default of `ddp_timeout`
# Numbers this process's counters; all processes of a launch make the same ones in the same order.
_COUNTERS = count()


@dataclass(frozen=True)
class StepLaunch:
    """How the processes of a step are started.

    Attributes:
        processes: how many the launch asks for.
        use_cpu: whether they run on CPUs.
        kind: how weights are distributed over them (`pipeline.recipe.shipped.Launch`).
        judge_calls_left: how many more questions the step may send to a judge, None for no limit.
        log: the file that the process's output goes to, None if the parent process redirects it.
    """

    processes: int
    use_cpu: bool
    kind: str = REPLICATED
    judge_calls_left: int | None = None
    log: str | None = None


@dataclass
class StepContext(Generic[OptionsT]):
    """What a step's function receives: what to make, under which launch, and where.

    Attributes:
        directory: where results go.
        spec: what to make; several properties below forward to it.
        launch: how its processes were started.
        metrics: figures for the record; the function adds to them.
        stop_asked: whether SIGTERM has arrived.
        stops_itself: whether the function polls `stop_asked` instead of being interrupted.
    """

    directory: Path
    spec: StepSpec[OptionsT]
    launch: StepLaunch
    metrics: Metrics = field(default_factory=Metrics)
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
    def options(self) -> OptionsT:
        """What decides the result."""
        return self.spec.options

    @property
    def locations(self) -> dict[str, Any]:
        """Input name -> folder of an earlier step, or location of an outside model or data."""
        return self.spec.locations

    @property
    def runtime_options(self) -> RuntimeOptions:
        """Settings that do not change the result."""
        return self.spec.runtime_options

    @property
    def seed(self) -> int:
        """The seed of this run of the stage."""
        return self.spec.seed

    @property
    def stage(self) -> str:
        """The stage's label."""
        return self.spec.stage

    @cached_property
    def state(self) -> Any:
        """The processes of this launch, as `accelerate.PartialState`.

        The first PartialState of a process creates the process group, so the group's time-out is
        set here: the trainer's `ddp_timeout` alone would come too late.
        """
        from accelerate import PartialState

        return PartialState(cpu=self.launch.use_cpu, timeout=group_timeout(self.spec))

    def counter(self) -> Callable[[int], int]:
        """A number shared by the processes of this launch: a function that adds to and returns it.

        All processes have to make their counters in the same order.
        """
        if self.state.num_processes == 1:
            count = 0

            def add(number: int) -> int:
                nonlocal count
                count += number
                return count

            return add
        from torch.distributed.distributed_c10d import _get_default_store

        # Kept in the store through which the process group was formed.
        return partial(_get_default_store().add, f"bashrac/{next(_COUNTERS)}")

    def wait_for_all(self) -> None:
        """Wait for all processes without a time-out, after work that is unevenly distributed."""
        # A barrier fails after the group's time-out, so processes poll a counter instead. If one of
        # them fails, the launcher ends those that wait.
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
        """Whether the step runs the recipe's model, and therefore has a precision."""
        return "dtype" in self.options

    @cached_property
    def precision(self) -> Precision:
        """The precision of a new attempt; the worker overwrites it for one that resumes."""
        return choose(self.options, hardware(self.device.type))

    def seed_of_round(self: StepContext[RoundOptions]) -> int:
        """The seed of this step's round, since rounds must not repeat positions and noise."""
        return self.seed * 1_000_003 + self.options["round"]

    def input_folders(self) -> dict[str, Path]:
        """The inputs that are earlier steps of this plan: name -> folder."""
        known = self.spec.inputs  # a fingerprint (str) for a step, a mapping for anything else
        return {
            name: Path(at) for name, at in self.locations.items() if isinstance(known[name], str)
        }

    def progress(self, done: int, total: int, unit: str) -> None:
        """Write progress.json, at most once a second, from the main process only."""
        if (threads := threads_of_launch()) is not None:
            threads.adapt()
        now = time.monotonic()
        if self._first_progress is None:
            self._first_progress = (now, done)
        if not self.state.is_main_process or (now - self._last_progress < 1 and done < total):
            return
        self._last_progress = now
        # The rate is measured from the first call, so that rows done before a stop and the time to
        # load the model do not distort the estimate.
        began, before = self._first_progress
        left = (total - done) * (now - began) / (done - before) if done > before else None
        state: Progress = {
            "done": done,
            "total": total,
            "unit": unit,
            "left": left,
            "seconds": self.seconds(),
        }
        if self.computes:
            state["precision"] = asdict(self.precision)
        artifact.write_json(self.directory / PROGRESS, state)

    def start_clock(self) -> None:
        """Start the clock, at the seconds that earlier attempts took."""
        self._seconds_before = read_progress(self.directory)["seconds"]
        self._began = time.monotonic()
        if (threads := threads_of_launch()) is not None:
            threads.used = {threads.count}

    def seconds(self) -> float:
        """Seconds spent on the step so far, including earlier attempts."""
        return self._seconds_before + time.monotonic() - self._began

    def from_main_process(self, values: list[Any]) -> list[Any]:
        """Return the main process's values in every process."""
        if self.state.num_processes > 1:
            from accelerate.utils import broadcast_object_list

            broadcast_object_list(values)
        return values

    def source(self, role: str) -> Any:
        """The source of a data input.

        Raises:
            InputError: when its content has changed since it was planned.
        """
        return _unchanged(role, self.locations[role], self.spec.inputs[role])

    def held_out_source(self) -> Any:
        """The place of the rows to measure loss on while training, checked alike; None for none."""
        asked = self.runtime_options.get("held_out")
        return asked and _unchanged("validation", asked["place"], asked["identity"])

    def warn(self, sentence: str) -> None:
        """Print a warning to the log, and keep it for the record; once where it comes again."""
        known = self.metrics.get("warnings", [])
        if self.state.is_main_process and sentence not in known:
            print(f"warning: {sentence}", flush=True)
            self.metrics["warnings"] = [*known, sentence]


def _unchanged(role: str, place: dict[str, Any], identity: Any) -> Any:
    """A source, if it still holds what the plan has seen there."""
    from pipeline.recipe.schema import Source
    from pipeline.steps.identity import data_identity, forget

    forget()
    source = Source.model_validate(place)
    if data_identity(source, role=role) != identity:
        raise changed_error(source.source)
    return source


def group_timeout(step: StepSpec) -> timedelta:
    """The time-out of collective operations between the processes of a step's launch."""
    trainer = step.runtime_options.get("trainer", {})
    return timedelta(seconds=trainer.get("ddp_timeout", _GROUP_TIMEOUT))


def changed_error(place: str) -> InputError:
    """Return the error for data or a model that has changed since it was planned."""
    return InputError(
        f"{place} has changed since this run began; run the same command again to use its new "
        "content"
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
    """Move the precision in progress.json to the key for that of the previous attempt.

    Otherwise progress would show it as the choice of an attempt that has yet to choose.
    """
    progress = read_progress(directory)
    if noted := progress.pop("precision", None):
        artifact.write_json(directory / PROGRESS, {**progress, "begun": noted})


def read_progress(directory: Path) -> Progress:
    """How far a step is; `NO_PROGRESS` where it has not begun."""
    return cast(Progress, {**NO_PROGRESS, **artifact.read_object(directory / PROGRESS)})
