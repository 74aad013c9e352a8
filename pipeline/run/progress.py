"""Shows a run: a live table on a terminal, plain lines anywhere else."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Any

from pipeline.hardware.precision import read_precision
from pipeline.steps.spec import StepSpec

_PLAIN_SECONDS = 30  # between two lines about the same step, where nobody watches a table


@dataclass
class _Row:
    state: str
    started: float | None = None
    seconds: float | None = None
    left: float | None = None
    detail: str = ""


def duration(seconds: float | None) -> str:
    """Return e.g. '42 s', '3 min 05 s', '2 h 10 min', or '' for None."""
    if seconds is None:
        return ""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Display:
    """The state of every step, on screen. Use as a context manager around the run."""

    def __init__(self, steps: list[StepSpec], finished: set[str]):
        self.steps = steps
        self.rows = {
            step.fingerprint: _Row("done before" if step.fingerprint in finished else "waiting")
            for step in steps
        }
        self.live: Any = None
        self.last_line = 0.0
        self.told: set[str] = set()
        self.began = time.monotonic()

    def __enter__(self) -> Display:
        before = sum(row.state == "done before" for row in self.rows.values())
        if before == len(self.rows):
            return self
        _say(f"{len(self.rows)} steps, {before} finished before")
        if sys.stdout.isatty():
            from rich.live import Live

            self.live = Live(self._table(), refresh_per_second=4, transient=False)
            self.live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self.live:
            self.live.update(self._table())
            self.live.stop()

    def start(self, step: StepSpec) -> None:
        """A step begins to run."""
        self.rows[step.fingerprint] = _Row("running", started=time.monotonic())
        self._changed(f"{self._name(step)}: started")

    def update(self, step: StepSpec, progress: dict[str, Any]) -> None:
        """A step goes on; `progress` is {'done', 'total', 'unit', 'left'}, or empty."""
        row = self.rows[step.fingerprint]
        row.seconds = time.monotonic() - (row.started or time.monotonic())
        self._tell_precision(progress.get("precision"))
        if progress and progress["total"]:
            row.left = progress["left"]
            row.detail = f"{progress['done']} of {progress['total']} {progress['unit']}"
        if self.live:
            self.live.update(self._table())
        elif time.monotonic() - self.last_line > _PLAIN_SECONDS:
            expected = f", {duration(row.left)} left" if row.left is not None else ""
            detail = f": {row.detail}" if row.detail else ": starting"
            self._changed(f"{self._name(step)}{detail}, {duration(row.seconds)}{expected}")

    def _tell_precision(self, known: Any) -> None:
        """Say what steps compute in, each precision once."""
        if (found := read_precision(known)) is not None and found.words not in self.told:
            self.told.add(found.words)
            self.say(f"computing in {found.words}")

    def finish(self, step: StepSpec, warnings: list[str]) -> None:
        """A step is done; `warnings` are what its user should read."""
        self._end(step, "done")
        for warning in warnings:
            self.say(f"warning: {self._name(step)}: {warning}")

    def say(self, line: str) -> None:
        """Print a line that stays, above the table."""
        if self.live:
            self.live.console.print(line, style="yellow", markup=False, highlight=False)
        else:
            _say(line)

    def wait(self, step: StepSpec, holder: str) -> None:
        """Another run works on a step; `holder` says which."""
        row = self.rows[step.fingerprint]
        state = f"waiting for {holder}"
        if row.state != state:
            self.rows[step.fingerprint] = _Row(state, started=time.monotonic())
            self._changed(f"{self._name(step)}: {state}, which runs it too")

    def fail(self, step: StepSpec) -> None:
        """A step has failed."""
        self._end(step, "failed")

    def _end(self, step: StepSpec, state: str) -> None:
        row = self.rows[step.fingerprint]
        row.seconds = time.monotonic() - row.started if row.started else row.seconds
        row.state = state
        self._changed(f"{self._name(step)}: {state} in {duration(row.seconds)}")

    def _changed(self, line: str) -> None:
        self.last_line = time.monotonic()
        if self.live:
            self.live.update(self._table())
        else:
            _say(line)

    def _name(self, step: StepSpec) -> str:
        several = len({other.seed for other in self.steps}) > 1
        return f"{step.stage}{f' (seed {step.seed})' if several else ''}, {step.title}"

    def _table(self) -> Any:
        from rich.table import Table

        table = Table(
            title=f"elapsed {duration(time.monotonic() - self.began)}", title_justify="left"
        )
        # A narrow terminal breaks names and states, and not times.
        table.add_column("step")
        table.add_column("state", min_width=len("done before"))
        table.add_column("elapsed", justify="right", no_wrap=True)
        table.add_column("left", justify="right", no_wrap=True)
        for step in self._visible():
            row = self.rows[step.fingerprint]
            state = (
                f"{row.state} ({row.detail})"
                if row.state == "running" and row.detail
                else row.state
            )
            style = {"running": "bold", "failed": "red", "waiting": "dim"}.get(row.state)
            left = duration(row.left) if row.state == "running" else ""
            table.add_row(self._name(step), state, duration(row.seconds), left, style=style)
        return table

    def _visible(self) -> list[StepSpec]:
        """The steps around the running one, as many as fit the terminal."""
        import shutil

        room = max(shutil.get_terminal_size().lines - 8, 5)
        states = [self.rows[step.fingerprint].state for step in self.steps]
        at = next(
            (i for i, state in enumerate(states) if state in ("running", "waiting", "failed")), 0
        )
        first = max(min(at - room // 2, len(self.steps) - room), 0)
        return self.steps[first : first + room]


def _say(line: str) -> None:
    print(line, flush=True)
