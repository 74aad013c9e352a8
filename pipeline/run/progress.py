"""Shows a run: a live table on a terminal, plain lines anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.hardware.precision import read_precision
from pipeline.steps.context import Progress
from pipeline.steps.spec import StepSpec
from pipeline.text import format_duration

_STATE_WIDTH = 26  # holds 'running, 1234 of 56789 rows'; names are cut before it is
_STYLES = {"running": "bold", "stopped": "bold", "failed": "red", "waiting": "dim"}
_PLAIN_SECONDS = 30  # between two lines about the same step, where nobody watches a table


@dataclass
class _Row:
    state: str
    started: float | None = None
    seconds: float | None = None
    left: float | None = None
    detail: str = ""
    told: float = 0.0  # when a line about it was last printed

    def words(self, width: int = 200) -> str:
        """The state, with progress where there is some, and without its unit where need be."""
        words = f"{self.state}, {self.detail}" if self.detail else self.state
        return words if len(words) <= width else " ".join(words.split()[:4])


class Display:
    """The state of every step, on screen. Use as a context manager around the run."""

    def __init__(self, steps: list[StepSpec], finished: set[str]):
        self.steps = steps
        self.rows = {
            step.fingerprint: _Row("done before" if step.fingerprint in finished else "waiting")
            for step in steps
        }
        self.live: Any = None
        self.told: set[str] = set()
        self.began = time.monotonic()

    def __enter__(self) -> Display:
        before = sum(row.state == "done before" for row in self.rows.values())
        if before == len(self.rows):
            return self
        _say(f"{len(self.rows)} steps, {before} already done")
        if sys.stdout.isatty():
            from rich.live import Live

            self.live = Live(self, refresh_per_second=4, transient=False)
            self.live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        for row in self.rows.values():
            if row.state == "running":
                row.state, row.left = "stopped", None
        if self.live:
            self.live.stop()  # after a last refresh

    def start(self, step: StepSpec) -> None:
        """A step begins to run."""
        self.rows[step.fingerprint] = _Row("running", started=time.monotonic())
        self._changed(step, "started")

    def update(self, step: StepSpec, progress: Progress) -> None:
        """A step goes on."""
        row = self.rows[step.fingerprint]
        row.seconds = time.monotonic() - (row.started or time.monotonic())
        self._tell_precision(progress.get("precision"))
        if progress["total"]:
            row.left = progress["left"]
            row.detail = f"{progress['done']} of {progress['total']} {progress['unit']}"
        if not self.live and time.monotonic() - row.told > _PLAIN_SECONDS:
            expected = f", {format_duration(row.left)} left" if row.left is not None else ""
            detail = row.detail or "starting"
            self._changed(step, f"{detail}, {format_duration(row.seconds)}{expected}")

    def _tell_precision(self, known: Any) -> None:
        """Say what steps compute in, each precision once."""
        if (found := read_precision(known)) is not None and found.description not in self.told:
            self.told.add(found.description)
            self.say(f"computing in {found.description}")

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
            self.say(f"{self._name(step)}: {state}, which runs it too")

    def fail(self, step: StepSpec) -> None:
        """A step has failed."""
        self._end(step, "failed")

    def _end(self, step: StepSpec, state: str) -> None:
        row = self.rows[step.fingerprint]
        row.seconds = time.monotonic() - row.started if row.started else row.seconds
        row.state, row.left, row.detail = state, None, ""
        took = "" if row.seconds is None else f" in {format_duration(row.seconds)}"
        self._changed(step, f"{state}{took}")

    def _changed(self, step: StepSpec, words: str) -> None:
        self.rows[step.fingerprint].told = time.monotonic()
        if not self.live:
            _say(f"{self._name(step)}: {words}")

    def _name(self, step: StepSpec) -> str:
        several = len({other.seed for other in self.steps}) > 1 and not step.of_every_seed
        return f"{step.stage}{f' (seed {step.seed})' if several else ''}, {step.title}"

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        """The table, a line a step: in a narrow terminal names are cut, and times are not."""
        from rich.text import Text

        steps = self._visible()
        rows = [self.rows[step.fingerprint] for step in steps]
        names = [self._name(step) for step in steps]
        elapsed = ["elapsed", *(format_duration(row.seconds) for row in rows)]
        left = ["left", *(format_duration(row.left) for row in rows)]
        times = [max(map(len, elapsed)), max(map(len, left))]
        room = options.max_width - sum(times) - 6
        name_width = min(max(map(len, names)), max(room - _STATE_WIDTH, room // 2))
        state_width = min(max(len(row.words()) for row in rows), room - name_width)
        done = sum(row.state.startswith("done") for row in self.rows.values())
        so_far = f"{done} of {len(self.rows)} steps done"
        yield Text(f"{so_far}, {format_duration(time.monotonic() - self.began)}", style="italic")
        cells = [("", "", "dim")]
        for name, row in zip(names, rows, strict=True):
            state = _cut(row.words(state_width), state_width)
            cells.append((_cut(name, name_width), state, _STYLES.get(row.state, "")))
        for (name, state, style), one, other in zip(cells, elapsed, left, strict=True):
            line = f"{name:<{name_width}}  {state:<{state_width}}  {one:>{times[0]}}"
            yield Text(f"{line}  {other:>{times[1]}}", style=style, no_wrap=True)

    def _visible(self) -> list[StepSpec]:
        """The steps that run, and those around the first of them, as many as fit the terminal."""
        import shutil

        room = max(shutil.get_terminal_size().lines - 8, 5)
        states = [self.rows[step.fingerprint].state for step in self.steps]
        at = next(
            (i for i, state in enumerate(states) if state in ("running", "waiting", "failed")), 0
        )
        first = max(min(at - room // 2, len(self.steps) - room), 0)
        around = range(first, first + room)
        shown = sorted(
            range(len(self.steps)),
            key=lambda i: (states[i] not in ("running", "failed"), i not in around, abs(i - at)),
        )
        return [self.steps[i] for i in sorted(shown[:room])]


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: max(width - 3, 0)]}..."


def _say(line: str) -> None:
    print(line, flush=True)
