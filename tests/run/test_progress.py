"""The live table, as a terminal shows it."""

import io

import pytest
from rich.console import Console

from pipeline.plan.load import load_recipe
from pipeline.plan.plan import make_plan
from pipeline.run.progress import Display


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_a_terminal_of_any_width_shows_state_and_times(columns):
    """At 60 columns the names of steps once left the state no room at all."""
    steps = make_plan(load_recipe("demo")).steps
    display = Display(steps, {steps[0].fingerprint})
    display.start(steps[1])
    progress = {"done": 3, "total": 12, "unit": "optimizer steps", "left": 61.0}
    display.update(steps[1], progress)
    console = Console(width=columns, file=io.StringIO(), record=True)
    console.print(display)
    text = console.export_text()
    assert "done before" in text and "running" in text and "waiting" in text
    assert "1 min 01 s" in text
    lines = text.splitlines()
    assert max(map(len, lines)) <= columns
    assert len(lines) == 2 + len(display._visible()), "a line for each step, and two above"
    (running,) = (line for line in lines if "running" in line)
    assert "3 of 12" in running and ("optimizer steps" in running) == (columns > 80)


def test_a_step_that_a_stop_interrupts_is_not_left_as_running(capsys):
    steps = make_plan(load_recipe("demo")).steps
    with pytest.raises(KeyboardInterrupt), Display(steps, set()) as display:
        display.start(steps[0])
        display.update(steps[0], {"done": 3, "total": 12, "unit": "rows", "left": 61.0})
        raise KeyboardInterrupt
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(display)
    text = console.export_text()
    assert "stopped, 3 of 12 rows" in text and "running" not in text and "1 min" not in text
