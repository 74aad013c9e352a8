"""Runs steps inside a launched process: reads step.json, does the work, writes the record last.

The same code serves `accelerate launch -m pipeline step DIR/step.json ...` (started by the parent)
and `accelerate launch -m pipeline run RECIPE --stage S` (started by the user).
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.errors import EXIT_FAILED, EXIT_STOPPED, BashracError, StepFailedError, StepHeldError
from pipeline.hardware.precision import (
    choose,
    hardware,
    of_earlier_version,
    precision_to_resume,
    read_precision,
)
from pipeline.hardware.precision import warning as precision_warning
from pipeline.hardware.topology import check_processes
from pipeline.steps import artifact, lock
from pipeline.steps.artifact import ERROR, PROGRESS
from pipeline.steps.context import NO_PROGRESS, StepContext, changed_error, read_progress
from pipeline.steps.functions import function_of
from pipeline.steps.record import make_record, reset_peak_memory

# Set where standard input is a pipe that ends with the process that started this one.
LIFELINE = "BASHRAC_LIFELINE"


def run_steps(spec_files: list[Path]) -> int:
    """Run steps one after the other in this process (group); returns the exit code."""
    judge_calls = 0
    for spec_file in spec_files:
        step = StepContext.read(spec_file)
        if artifact.is_finished(step.directory):
            continue
        if (left := step.launch.judge_calls_left) is not None:
            step.launch = replace(step.launch, judge_calls_left=left - judge_calls)
        try:
            if step.launch.log is not None:
                _log_to(step.launch.log)
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


def _log_to(file: str) -> None:
    """Send what this process says, its libraries' C code included, to a file from now on."""
    sys.stdout.flush()
    sys.stderr.flush()
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def prepare_to_end() -> None:
    """Have the interpreter end in good order, and at once."""
    from torch import distributed

    # The group's threads would run on, and now and then abort a process whose work is done.
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
    # Or it would look for garbage among all that imported libraries hold, for a second or more.
    gc.freeze()


@contextlib.contextmanager
def _stoppable(step: StepContext) -> Iterator[None]:
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


def execute(step: StepContext) -> None:
    """Run one step and write its record.

    Raises:
        StepFailedError: when another process is working on the step, or an input is not finished.
        BashracError, or anything the step's function raises.
    """
    check_processes(
        step.state,
        processes=step.launch.processes,
        use_cpu=step.launch.use_cpu,
        kind=step.launch.kind,
    )
    # One writer: the main process holds the step.
    with lock.held(step.directory) if step.state.is_main_process else nullcontext():
        if step.state.is_main_process:
            (step.directory / ERROR).unlink(missing_ok=True)  # of an earlier attempt
            artifact.remove_leftovers(step.directory)
        step.state.wait_for_everyone()
        if not artifact.is_finished(step.directory):  # by another run, a moment ago
            _execute(step)


def _execute(step: StepContext) -> None:
    for name, folder in step.input_folders().items():
        if not artifact.is_finished(folder):
            raise StepFailedError(
                f"its input {name} ({folder}) is not finished; run that stage first"
            )
        if step.state.is_main_process:
            artifact.verify(folder)
    _load_own_task(step)
    make = function_of(step.spec.run)
    if step.computes:
        settle_precision(step)
    step.start_clock()
    started = datetime.now(UTC)
    reset_peak_memory(step)
    if step.spec.main_process_only and not step.state.is_main_process:
        _wait_for_main_process(step)
        return
    make(step)
    if not step.spec.main_process_only:
        step.wait_for_all()  # the main process may have more to do
    if step.state.is_main_process:
        record = make_record(step, started=started, seconds=step.seconds())
        artifact.write_record(step.directory, record)
        for leftover in (ERROR, PROGRESS):
            (step.directory / leftover).unlink(missing_ok=True)
    if not step.spec.main_process_only:
        step.state.wait_for_everyone()


def _load_own_task(step: StepContext) -> None:
    """Run the file of the recipe's task, where the step uses one, if it is what the plan has seen.

    Raises:
        InputError: when it has changed since, or cannot be run.
    """
    if (file := step.runtime_options.get("task_file")) is None:
        return
    from pipeline.data.task_file import load_task

    if load_task(file) not in (step.options.get("task"), step.options.get("test_task")):
        raise changed_error(file)


def settle_precision(step: StepContext) -> None:
    """Choose a step's precision, once for all its processes, and print it.

    A stopped step resumes in the precision of its first attempt, or starts over: see
    `pipeline.hardware.precision.precision_to_resume`.
    """
    here = hardware(step.device.type)
    chosen, emptied = choose(step.options, here), False
    progress = read_progress(step.directory)
    if step.state.is_main_process and artifact.has_partial_results(step.directory):
        noted = read_precision(progress.get("precision") or progress.get("begun"))
        kept = precision_to_resume(noted or of_earlier_version(step.options), chosen, here)
        chosen, emptied = kept or chosen, kept is None
    chosen, emptied = step.from_main_process([chosen, emptied])
    step.precision = chosen
    if step.state.is_main_process:
        print(f"precision: {chosen.description}", flush=True)
        if emptied:
            artifact.empty(step.directory)
            progress = NO_PROGRESS
        # At once, so that an attempt that is stopped before its first row is known too.
        artifact.write_json(step.directory / PROGRESS, {**progress, "precision": asdict(chosen)})
    if emptied:
        step.warn(
            f"what a stopped attempt left was made in a precision that is not native here, so it "
            f"begins anew in {chosen.compute}"
        )
    if costly := precision_warning(chosen, here):
        step.warn(costly)
    step.state.wait_for_everyone()


def _wait_for_main_process(step: StepContext) -> None:
    """Wait for its record; a barrier would give up after minutes, and judging may take hours."""
    while not artifact.is_finished(step.directory):
        if (step.directory / ERROR).exists():
            raise StepFailedError("the main process failed; its error is the one to read")
        time.sleep(0.2)


def _write_error(step: StepContext, message: str, exit_code: int) -> None:
    if (step.directory / ERROR).exists():
        return  # another process was first, and the rest follows from its failure
    with contextlib.suppress(BashracError):  # a full disk must not hide the error itself
        artifact.write_json(step.directory / ERROR, {"message": message, "exit_code": exit_code})


def _known_failure(step: StepContext, error: BaseException) -> BashracError | None:
    if isinstance(error, OSError) and error.errno in artifact.DISK_ERRNOS:
        return artifact.disk_error(step.directory, error)
    if "out of memory" in str(error).lower():
        return BashracError(
            f"out of memory: {str(error).splitlines()[0]}; lower micro_batch_size or "
            "generation.batch_tokens (neither changes results), or use lora"
        )
    if "loss scale already at minimum" in str(error):  # DeepSpeed's own words
        return BashracError("gradients overflow float16 for good; write precision: float32")
    # What writes weights has many words for a full disk.
    if sentence := artifact.low_disk_hint(step.directory):
        return BashracError(f"{type(error).__name__}: {error}; {sentence}")
    return None
