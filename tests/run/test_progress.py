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


@pytest.mark.parametrize("columns", [60, 80])
def test_a_terminal_shows_all_that_runs_side_by_side(columns):
    """Of far more steps than it has lines, those of the first seed and of the last."""
    steps = make_plan(load_recipe("demo", ["seeds=[0, 1, 2]"])).steps
    display = Display(steps, set())
    running = [steps[1], steps[len(steps) // 2], steps[-1]]
    for number, step in enumerate(running):
        display.start(step)
        display.update(step, {"done": number, "total": 12, "unit": "rows", "left": 61.0})
    shown = display._visible()
    assert shown == sorted(shown, key=steps.index) and len(shown) < len(steps)
    console = Console(width=columns, file=io.StringIO(), record=True)
    console.print(display)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= columns
    for number in range(3):
        assert sum(f"running, {number} of 12" in line for line in lines) == 1


def test_without_a_terminal_each_running_step_has_lines_of_its_own(capsys):
    """One that is heard of often is no reason to be silent about another."""
    steps = make_plan(load_recipe("demo")).steps
    display = Display(steps, set())
    for step in steps[:2]:
        display.start(step)
        display.rows[step.fingerprint].told -= 31
    for _ in range(2):
        for done, step in enumerate(steps[:2], 3):
            display.update(step, {"done": done, "total": 12, "unit": "rows", "left": 61.0})
    said = capsys.readouterr().out
    assert said.count("3 of 12 rows") == said.count("4 of 12 rows") == 1
