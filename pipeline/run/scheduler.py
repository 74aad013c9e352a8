"""Runs a plan: starts launched processes, shows how far they are, resumes what was stopped.

The parent imports no torch. It starts `accelerate launch ... -m pipeline step DIR/step.json ...`,
follows the progress files, and on failure prints the error, the log and the command to retry.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import InputError, StepFailedError
from pipeline.hardware import topology
from pipeline.plan.plan import Plan
from pipeline.recipe import shipped
from pipeline.run import launcher
from pipeline.run.progress import Display
from pipeline.run.worker import run_steps
from pipeline.steps import artifact
from pipeline.steps.artifact import ERROR
from pipeline.steps.context import group_timeout, read_progress, set_precision_aside, write_spec
from pipeline.steps.lock import held_by
from pipeline.steps.spec import StepSpec

_POLL_SECONDS = 0.2
_WAIT_SECONDS = 1.0


@dataclass(frozen=True)
class RunSettings:
    """Where and how a plan runs.

    Attributes:
        runs: the folder of all results.
        launch: the launch config.
        retry: the command to print after a failure.
        stages: run only these; all where there are none.
        max_judge_calls: most questions put to judges, or None for no limit.
        verify_weights: whether to compare finished weights with their digests before running.
        through: the words of a command that starts each step's command elsewhere, or none.
    """

    runs: Path
    launch: shipped.Launch
    retry: str
    stages: Sequence[str] = ()
    max_judge_calls: int | None = None
    verify_weights: bool = False
    through: tuple[str, ...] = ()


def launched_by_accelerate() -> bool:
    """Whether this process was started by `accelerate launch` (or torchrun)."""
    return "ACCELERATE_MIXED_PRECISION" in os.environ or "LOCAL_RANK" in os.environ


def select_steps(plan: Plan, stages: Sequence[str]) -> list[StepSpec]:
    """The plan's steps, or those of these stages, of swept ones at all points or at those named.

    Raises:
        InputError: for an unknown stage.
    """
    return plan.steps_of(plan.labels(*stages)) if stages else plan.steps


def run_plan(plan: Plan, settings: RunSettings) -> None:
    """Run every step that is not finished, in order.

    A step that another run works on is waited for.

    Raises:
        InputError, StepFailedError: when a step fails; its sentence, log and retry command.
        KeyboardInterrupt: when stopped; the launched processes have ended by then.
    """
    steps = select_steps(plan, settings.stages)
    pending = _pending(steps, settings)
    _check_inputs(pending, settings)
    display = Display(
        steps, {step.fingerprint for step in steps} - {s.fingerprint for s in pending}
    )
    with display:
        left = settings.max_judge_calls
        # Steps of one process share it, which saves the start of each (importing torch and TRL).
        shared = settings.launch.processes == 1
        for group in [pending] if shared else [[step] for step in pending]:
            while unfinished := _unfinished(group, settings):
                if not _wait_for_others(unfinished, settings, display):
                    _run_group(unfinished, settings, plan.recipe.name, display, left)
            left = _less(left, group, settings)


def _unfinished(steps: list[StepSpec], settings: RunSettings) -> list[StepSpec]:
    return [step for step in steps if not artifact.is_finished(step.directory(settings.runs))]


def _pending(steps: list[StepSpec], settings: RunSettings) -> list[StepSpec]:
    """The unfinished steps, once what they read is seen to be as it was written."""
    pending = _unfinished(steps, settings)
    to_run = {step.fingerprint for step in pending}
    read = {
        value.fingerprint
        for step in pending
        for value in step.inputs.values()
        if isinstance(value, StepSpec)
    }
    for step in steps:
        if step.fingerprint in to_run:
            continue
        if settings.verify_weights or step.fingerprint in read:
            artifact.verify(step.directory(settings.runs), weights=settings.verify_weights)
    return pending


def _wait_for_others(steps: list[StepSpec], settings: RunSettings, display: Display) -> bool:
    """Wait while another run works on one of the steps; returns whether there was one."""
    held = next((step for step in steps if held_by(step.directory(settings.runs))), None)
    if held is None:
        return False
    directory = held.directory(settings.runs)
    while holder := held_by(directory):
        display.wait(held, holder)
        time.sleep(_WAIT_SECONDS)
    if artifact.is_finished(directory):
        _show_finished(held, settings.runs, display)
    return True


def _show_finished(step: StepSpec, runs: Path, display: Display) -> None:
    record = artifact.read_record(step.directory(runs))
    display.finish(step, record["metrics"].get("warnings", []))


def run_in_these_processes(plan: Plan, settings: RunSettings) -> int:
    """Run the unfinished steps inside processes the user launched; returns the exit code."""
    from accelerate import PartialState

    kind = topology.asked_by_environment()
    timeout = max(map(group_timeout, plan.steps), default=None)
    state: Any = PartialState(cpu=topology.asked_for_cpu(), timeout=timeout)
    topology.check_started(state)
    use_cpu = state.device.type == "cpu"
    steps = select_steps(plan, settings.stages)
    # All processes decide together what is to do, before one of them can finish anything.
    pending = _pending(steps, settings)
    state.wait_for_everyone()
    _check_inputs(pending, settings)
    left = settings.max_judge_calls
    for step in pending:
        if state.is_main_process:
            print(f"{step.stage}: {step.title}", flush=True)
            write_spec(
                step,
                settings.runs,
                processes=state.num_processes,
                use_cpu=use_cpu,
                launch_kind=kind,
                judge_calls_left=left,
            )
        state.wait_for_everyone()
        code = run_steps([step.directory(settings.runs) / "step.json"])
        if code:
            return code
        left = _less(left, [step], settings)
    return 0


def _less(left: int | None, finished: list[StepSpec], settings: RunSettings) -> int | None:
    """How many judge calls are left once these steps have made theirs."""
    if left is None:
        return None
    records = [artifact.read_record(step.directory(settings.runs)) for step in finished]
    return left - sum(record["metrics"].get("judge_calls", 0) for record in records)


def _check_inputs(pending: list[StepSpec], settings: RunSettings) -> None:
    """Refuse to run a stage whose earlier stages are not finished."""
    coming = {step.fingerprint for step in pending}
    for step in pending:
        for value in step.inputs.values():
            if not isinstance(value, StepSpec) or value.fingerprint in coming:
                continue
            if not artifact.is_finished(value.directory(settings.runs)):
                raise InputError(
                    f"stage {step.stage} needs stage {value.stage} ({value.title}), which is not "
                    f"finished; run it first: --stage {value.stage}"
                )


def _run_group(
    group: list[StepSpec], settings: RunSettings, recipe: str, display: Display, left: int | None
) -> None:
    launch = settings.launch
    logs = [_log(step, settings.runs, recipe) for step in group]
    specs = [
        write_spec(
            step,
            settings.runs,
            processes=launch.processes,
            use_cpu=launch.use_cpu,
            launch_kind=launch.kind,
            judge_calls_left=left,
            log=log.resolve() if launch.processes == 1 else None,
        )
        for step, log in zip(group, logs, strict=True)
    ]
    for spec in specs:
        (spec.parent / ERROR).unlink(missing_ok=True)
        set_precision_aside(spec.parent)
    logs[0].parent.mkdir(parents=True, exist_ok=True)
    with logs[0].open("a+", encoding="utf-8") as output:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(output, fcntl.LOCK_SH)  # `status` sees it before a process holds its step
        output.write(f"\n$ {shlex.join(launcher.command(launch, specs, settings.through))}\n")
        output.flush()
        process = launcher.start(launch, specs, output, settings.through)
        try:
            _follow(process, group, settings.runs, display)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                display.say("stopping; what is done is kept (Ctrl-C again to stop at once)")
            launcher.stop(process, [step.directory(settings.runs) for step in group])
            raise
        launcher.end(process)
    failed = _unfinished(group, settings)
    if failed and not held_by(failed[0].directory(settings.runs)):  # else another run was faster
        display.fail(failed[0])
        log = logs[group.index(failed[0])]
        raise _failure(process.returncode, failed[0], settings, log, logs[0])


def _log(step: StepSpec, runs: Path, recipe: str) -> Path:
    return runs / recipe / "logs" / f"{step.stage[:200]}-seed{step.seed}.log"


def _follow(process: Any, group: list[StepSpec], runs: Path, display: Display) -> None:
    """Show progress until the process ends. The first unfinished step of a group is running."""
    running = 0
    display.start(group[0])
    while True:
        ended = process.poll() is not None
        while running < len(group) and artifact.is_finished(group[running].directory(runs)):
            _show_finished(group[running], runs, display)
            running += 1
            if running < len(group) and not ended:
                display.start(group[running])
        if ended:
            return
        if running < len(group):
            display.update(group[running], read_progress(group[running].directory(runs)))
        time.sleep(_POLL_SECONDS)


def _failure(
    code: int, step: StepSpec, settings: RunSettings, log: Path, launcher_log: Path
) -> InputError | StepFailedError:
    """What to raise for a step that has not finished."""
    error_file = step.directory(settings.runs) / ERROR
    if error_file.exists():
        error = artifact.read_json(error_file)
    else:
        likely = _likely_cause(settings.runs, log, launcher_log)
        message = f"its process ended with code {code} before it said why; {likely}"
        error = {"message": message, "exit_code": 1}
    kind = InputError if error["exit_code"] == InputError.exit_code else StepFailedError
    return kind(
        f"{step.stage}: {step.title} failed: {error['message']}\n"
        f"  log:   {log}\n  retry: {settings.retry}"
    )


def _likely_cause(runs: Path, log: Path, launcher_log: Path) -> str:
    """What often stands behind a process that ended without a word."""
    if sentence := artifact.low_disk_hint(runs):
        return sentence
    if "SIGKILL" in _last_line(launcher_log):
        return "it was killed, often for want of memory: lower micro_batch_size"
    return f"the log ends: {_last_line(log)}"


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "(it is empty)")
