"""Runs a plan: starts launched processes, shows how far they are, resumes what was stopped.

The parent imports no torch. It starts `accelerate launch ... -m pipeline step DIR/step.json ...`,
follows the progress files, and on failure prints the error, the log and the command to retry.

A launch is a job. If there is one at a time, it takes all steps in order, or the next one where it
has several processes; what each of several takes is in `pipeline/run/queue.py`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from pipeline.errors import InputError, StepFailedError
from pipeline.hardware import topology
from pipeline.plan.plan import Plan
from pipeline.recipe import shipped
from pipeline.run import launcher
from pipeline.run.expected import expected_seconds
from pipeline.run.keep import drop_weights, needed_again
from pipeline.run.progress import Display
from pipeline.run.queue import Queue, asks_in_turn, urgency_of
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
        jobs: for each launch that may run at a time, options for it that name its devices.
    """

    runs: Path
    launch: shipped.Launch
    retry: str
    stages: Sequence[str] = ()
    max_judge_calls: int | None = None
    verify_weights: bool = False
    through: tuple[str, ...] = ()
    jobs: Sequence[tuple[str, ...]] = ((),)


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
    """Run every step that is not finished, in order, or as many side by side as there are jobs.

    A step that another run works on is waited for. After a failure nothing more is started, and
    other jobs end with the step that they are at.

    Raises:
        InputError, StepFailedError: when a step fails; its sentence, log and retry command.
        KeyboardInterrupt: when stopped; the launched processes have ended by then.
    """
    steps = select_steps(plan, settings.stages)
    _settle_weights(plan, steps, settings)
    pending = _pending(steps, settings)
    _check_inputs(pending, settings)
    display = Display(
        steps, {step.fingerprint for step in steps} - {s.fingerprint for s in pending}
    )
    with display:
        _Run(plan, settings, display, pending).work()


@dataclass
class _Job:
    """A launch that works through steps, one after the other."""

    steps: list[StepSpec]
    options: tuple[str, ...]
    process: Any
    logs: list[Path]
    output: IO[str]
    at: int = 0

    @property
    def left(self) -> list[StepSpec]:
        """The running step and those after it."""
        return self.steps[self.at :]


class _Run:
    """The steps that wait, the jobs that run, and what has failed."""

    def __init__(
        self, plan: Plan, settings: RunSettings, display: Display, pending: list[StepSpec]
    ):
        self.plan, self.settings, self.display = plan, settings, display
        self.pending = pending
        self.jobs: list[_Job] = []
        self.free = list(settings.jobs)
        self.failures: list[InputError | StepFailedError] = []
        launch, seconds = settings.launch, {}
        if len(settings.jobs) > 1:
            seconds = expected_seconds(pending, settings.runs, launch.use_cpu, launch.processes)
        self.queue = Queue(
            list(pending),
            urgency_of(pending, seconds),
            chains=launch.processes == 1,
            in_turn=partial(asks_in_turn, limited=settings.max_judge_calls is not None),
        )

    def work(self) -> None:
        """Start jobs and follow them until nothing waits and nothing runs."""
        look = 0.0  # when to look next for steps that can start
        try:
            while self.jobs or (self.queue.waiting and not self.failures):
                if time.monotonic() >= look and not self.failures:
                    while self.free and (steps := self._next()):
                        self._start(steps)
                    look = time.monotonic() + _WAIT_SECONDS
                for job in list(self.jobs):
                    if self._follow(job):
                        look = 0.0
                        drop_weights(self.plan, self.settings.runs)
                time.sleep(_POLL_SECONDS)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) and self.jobs:
                self.display.say("stopping; what is done is kept (Ctrl-C again to stop at once)")
            self._stop(*self.jobs)
            raise
        if self.failures:
            words = "\n".join(str(failure) for failure in self.failures)
            raise type(self.failures[0])(f"{words}\n  retry: {self.settings.retry}")

    def _next(self) -> list[StepSpec]:
        """The steps of the next job; none while all that wait need what is running."""
        queue = self.queue
        for step in _finished(queue.waiting, self.settings):  # by another run
            _show_finished(step, self.settings.runs, self.display)
            queue.waiting.remove(step)
        if len(self.settings.jobs) > 1:
            return queue.take([step for job in self.jobs for step in job.left], self._is_held)
        steps = queue.waiting if queue.chains else queue.waiting[:1]
        if any(map(self._is_held, steps)):
            return []
        queue.waiting = queue.waiting[len(steps) :]
        return steps

    def _is_held(self, step: StepSpec) -> bool:
        """Whether another run works on a step; says so."""
        if holder := held_by(step.directory(self.settings.runs)):
            self.display.wait(step, holder)
        return holder is not None

    def _start(self, steps: list[StepSpec]) -> None:
        settings, launch = self.settings, self.settings.launch
        options = self.free.pop(0)
        logs = [_log(step, settings.runs, self.plan.recipe.name) for step in steps]
        done = _finished(self.pending, settings)
        left = _less(settings.max_judge_calls, done, settings)
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
            for step, log in zip(steps, logs, strict=True)
        ]
        for spec in specs:
            (spec.parent / ERROR).unlink(missing_ok=True)
            set_precision_aside(spec.parent)
        logs[0].parent.mkdir(parents=True, exist_ok=True)
        output = logs[0].open("a+", encoding="utf-8")
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(output, fcntl.LOCK_SH)  # `status` sees it before a process holds its step
        command = launcher.command(launch, specs, settings.through, options)
        output.write(f"\n$ {shlex.join(command)}\n")
        output.flush()
        process = launcher.start(
            launch, specs, output, settings.through, options, jobs=len(settings.jobs)
        )
        self.jobs.append(_Job(steps, options, process, logs, output))
        self.display.start(steps[0])

    def _follow(self, job: _Job) -> bool:
        """Show a job's progress, and its end; returns whether a step, or the job, has ended."""
        runs, before = self.settings.runs, job.at
        ended = job.process.poll() is not None
        while job.left and artifact.is_finished(job.left[0].directory(runs)):
            _show_finished(job.left[0], runs, self.display)
            job.at += 1
            if job.left and not ended:
                self.display.start(job.left[0])
        if ended:
            self._end(job)
        elif self.failures and job.at > before:
            self._stop(job)
        elif job.left:
            self.display.update(job.left[0], read_progress(job.left[0].directory(runs)))
        return ended or job.at > before

    def _end(self, job: _Job) -> None:
        """See whether a job has done what it was given."""
        launcher.end(job.process)
        self._forget(job)
        left = _unfinished(job.left, self.settings)
        if not left or held_by(left[0].directory(self.settings.runs)):  # another run was faster
            self.queue.waiting = left + self.queue.waiting
            return
        self.display.fail(left[0])
        log = job.logs[job.steps.index(left[0])]
        code = job.process.returncode
        self.failures.append(_failure(code, left[0], self.settings.runs, log, job.logs[0]))
        if self.jobs and len(self.failures) == 1:
            self.display.say("what else is running ends with the step it is at (Ctrl-C: at once)")

    def _stop(self, *jobs: _Job) -> None:
        """End jobs; what they have done is kept."""
        runs = self.settings.runs
        launcher.stop([(job.process, [step.directory(runs) for step in job.left]) for job in jobs])
        for job in jobs:
            self._forget(job)

    def _forget(self, job: _Job) -> None:
        job.output.close()
        self.jobs.remove(job)
        self.free.append(job.options)


def _unfinished(steps: list[StepSpec], settings: RunSettings) -> list[StepSpec]:
    return [step for step in steps if not artifact.is_finished(step.directory(settings.runs))]


def _finished(steps: list[StepSpec], settings: RunSettings) -> list[StepSpec]:
    return [step for step in steps if artifact.is_finished(step.directory(settings.runs))]


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


def _settle_weights(plan: Plan, steps: list[StepSpec], settings: RunSettings) -> None:
    """Remove weights that nothing needs, and reopen steps whose removed weights are needed."""
    drop_weights(plan, settings.runs)
    for step in needed_again(plan, _unfinished(steps, settings), settings.runs):
        artifact.reopen(step.directory(settings.runs))


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
    if state.is_main_process:
        _settle_weights(plan, steps, settings)
    state.wait_for_everyone()
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
        if state.is_main_process:
            drop_weights(plan, settings.runs)
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


def _log(step: StepSpec, runs: Path, recipe: str) -> Path:
    return runs / recipe / "logs" / f"{step.stage[:200]}-seed{step.seed}.log"


def _failure(
    code: int, step: StepSpec, runs: Path, log: Path, launcher_log: Path
) -> InputError | StepFailedError:
    """What to raise for a step that has not finished."""
    error_file = step.directory(runs) / ERROR
    if error_file.exists():
        error = artifact.read_json(error_file)
    else:
        likely = _likely_cause(runs, log, launcher_log)
        message = f"its process ended with code {code} before it said why; {likely}"
        error = {"message": message, "exit_code": 1}
    kind = InputError if error["exit_code"] == InputError.exit_code else StepFailedError
    return kind(f"{step.stage}: {step.title} failed: {error['message']}\n  log:   {log}")


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
