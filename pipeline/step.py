"""Runs steps inside a launched process: reads step.json, does the work, writes the record last.

The same code serves `accelerate launch -m pipeline step DIR/step.json ...` (started by the parent)
and `accelerate launch -m pipeline run RECIPE --stage S` (started by the user).
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

from pipeline import artifact, lock
from pipeline.artifact import ERROR, PROGRESS, SPEC
from pipeline.errors import (
    EXIT_FAILED,
    EXIT_STOPPED,
    BashracError,
    InputError,
    StepFailedError,
    StepHeldError,
)
from pipeline.mismatch import check_processes
from pipeline.record import make_record, reset_peak_memory
from pipeline.shipped import WHOLE

# Set where standard input is a pipe that ends with the process that started this one.
LIFELINE = "BASHRAC_LIFELINE"


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

    def seed_of_round(self) -> int:
        """A seed of this step's round: rounds must not repeat each other's positions and noise."""
        return self.seed * 1_000_003 + self.options["round"]

    def input_folders(self) -> dict[str, Path]:
        """The inputs that are earlier steps of this plan: name -> folder."""
        known = self.identity["inputs"]  # of a step its fingerprint, of anything else a mapping
        return {name: Path(at) for name, at in self.inputs.items() if isinstance(known[name], str)}

    def progress(self, done: int, total: int, unit: str) -> None:
        """Say how far the step is, at most once a second, from the main process only."""
        now = time.monotonic()
        if self._first_progress is None:
            self._first_progress = (now, done)
        if not self.state.is_main_process or (now - self._last_progress < 1 and done < total):
            return
        self._last_progress = now
        # What was done before a stop, and loading the model, say nothing about the rest.
        began, before = self._first_progress
        left = (total - done) * (now - began) / (done - before) if done > before else None
        state = {"done": done, "total": total, "unit": unit, "left": left}
        artifact.write_json(self.directory / PROGRESS, {**state, "seconds": self.seconds()})

    def seconds(self) -> float:
        """Seconds spent on the step so far, those before a stop included."""
        return self._seconds_before + time.monotonic() - self._began

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
    }
    artifact.write_json(directory / SPEC, spec)
    return directory / SPEC


def run_steps(spec_files: list[Path]) -> int:
    """Run steps one after the other in this process (group); returns the exit code."""
    judge_calls = 0
    for spec_file in spec_files:
        step = StepRun.read(spec_file)
        if artifact.is_finished(step.directory):
            continue
        if step.judge_calls_left is not None:
            step.judge_calls_left -= judge_calls
        try:
            with _stoppable(step):
                execute(step)
        except BashracError as error:
            if not isinstance(error, StepHeldError):
                _write_error(step, str(error), error.exit_code)
            print(f"error: {error}", file=sys.stderr, flush=True)
            return error.exit_code
        except KeyboardInterrupt:
            print("stopped", flush=True)
            return EXIT_STOPPED + (signal.SIGTERM if step.stop_asked else signal.SIGINT)
        except Exception as error:
            traceback.print_exc()
            known = _known_failure(step, error)
            _write_error(step, str(known or f"{type(error).__name__}: {error}"), EXIT_FAILED)
            return EXIT_FAILED
        judge_calls += step.metrics.get("judge_calls", 0)
    return 0


def leave_group() -> None:
    """Leave the group of processes in good order, before the interpreter ends.

    Its threads would run on until then, and now and then abort a process whose work is done.
    """
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


@contextlib.contextmanager
def _stoppable(step: StepRun) -> Iterator[None]:
    """Let SIGTERM end a step where it loses nothing: rows made so far are written first."""

    def stop(signal_number: int, frame: Any) -> None:
        del signal_number, frame
        step.stop_asked = True
        if not step.stops_itself:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def end_with_parent() -> None:
    """Have this process, and all it was started with, end when whoever holds its lifeline does."""
    if LIFELINE not in os.environ:
        return

    def watch() -> None:
        while os.read(0, 1):  # nothing is ever written to it
            pass
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def execute(step: StepRun) -> None:
    """Run one step and write its record.

    Raises:
        StepFailedError: when another process is working on the step, or an input is not finished.
        BashracError, or anything the step's function raises.
    """
    check_processes(
        step.state, processes=step.processes, use_cpu=step.use_cpu, kind=step.launch_kind
    )
    # One writer: the main process holds the step.
    with lock.held(step.directory) if step.state.is_main_process else nullcontext():
        if step.state.is_main_process:
            (step.directory / ERROR).unlink(missing_ok=True)  # of an earlier attempt
            artifact.remove_leftovers(step.directory)
        step.state.wait_for_everyone()
        if not artifact.is_finished(step.directory):  # by another run, a moment ago
            _execute(step)


def _execute(step: StepRun) -> None:
    for name, folder in step.input_folders().items():
        if not artifact.is_finished(folder):
            raise StepFailedError(
                f"its input {name} ({folder}) is not finished; run that stage first"
            )
        if step.state.is_main_process:
            artifact.verify(folder)
    module, _, function = step.run.partition(":")
    if module.split(".")[0] not in ("pipeline", "eval"):
        raise InputError(f"{step.directory / SPEC} names code outside bashrac: {step.run}")
    step._seconds_before = read_progress(step.directory).get("seconds", 0.0)
    step._began = time.monotonic()
    started = datetime.now(UTC)
    reset_peak_memory(step)
    if step.alone and not step.state.is_main_process:
        _wait_for_main_process(step)
        return
    getattr(import_module(module), function)(step)
    if not step.alone:
        step.state.wait_for_everyone()
    if step.state.is_main_process:
        record = make_record(step, started=started, seconds=step.seconds())
        artifact.write_record(step.directory, record)
        for leftover in (ERROR, PROGRESS):
            (step.directory / leftover).unlink(missing_ok=True)
    if not step.alone:
        step.state.wait_for_everyone()


def _wait_for_main_process(step: StepRun) -> None:
    """Wait for its record; a barrier would give up after minutes, and judging may take hours."""
    while not artifact.is_finished(step.directory):
        if (step.directory / ERROR).exists():
            raise StepFailedError("the main process failed; its error is the one to read")
        time.sleep(0.2)


def _write_error(step: StepRun, message: str, exit_code: int) -> None:
    if (step.directory / ERROR).exists():
        return  # another process was first, and the rest follows from its failure
    with contextlib.suppress(BashracError):  # a full disk must not hide the error itself
        artifact.write_json(step.directory / ERROR, {"message": message, "exit_code": exit_code})


def _known_failure(step: StepRun, error: BaseException) -> BashracError | None:
    if isinstance(error, OSError) and error.errno in artifact.DISK_ERRNOS:
        return artifact.disk_error(step.directory, error)
    if "out of memory" in str(error).lower():
        return BashracError(
            f"out of memory: {str(error).splitlines()[0]}; lower micro_batch_size or "
            "generation.batch_tokens (neither changes results), or use lora"
        )
    # What writes weights has many words for a full disk.
    if sentence := artifact.little_space(step.directory):
        return BashracError(f"{type(error).__name__}: {error}; {sentence}")
    return None


def read_progress(directory: Path) -> dict[str, Any]:
    """Return {'done', 'total', 'unit', 'left', 'seconds'} of a step that runs or was stopped."""
    return artifact.read_object(directory / PROGRESS)
