"""Charts of a sweep: primary measures and the share of changed tokens, against a swept key."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from operator import attrgetter
from statistics import mean, stdev
from typing import TYPE_CHECKING

from eval.report.text import format_cell
from eval.report.types import Cell, Chart, Curve, Point, Row
from pipeline.plan.swept import format_value, label_of

if TYPE_CHECKING:
    from pipeline.plan.plan import Plan

Figures = Mapping[str, Mapping[str, float]]  # fingerprint of a row-writing step -> its figures
Cells = Mapping[str, Cell]  # by stage
# By kind of step: the share that says how much of what is trained on differs, and of how many.
_SHARES = {
    "contexts": ("differ from the reference", "answer tokens"),
    "corrections": ("label differs from own token", "labels"),
}
_LOG_FROM = 8  # a larger ratio of the largest to the smallest value gets a logarithmic scale
_CHANGED = (
    "Context tokens other than the reference's (bash), labels other than the own token (rac); all "
    "are counted."
)


def sweep_charts(plan: Plan, rows: list[Row], figures: Figures) -> list[Chart]:
    """Return the charts of every swept key; a curve is a stage at all of the key's values.

    A stage that depends on other swept keys too has a curve for each combination of theirs.

    Args:
        plan: of a recipe.
        rows: what is finished of its table.
        figures: what its finished row-writing steps made.
    """
    if not plan.recipe.sweep:
        return []
    found = {label: _share(plan, label, figures) for label in plan.stages}
    shares = {label: cell for label, cell in found.items() if cell is not None}
    charts = []
    for key in plan.recipe.sweep:
        for benchmark in plan.recipe.evaluate:
            asked = [row for row in rows if row.benchmark == benchmark and row.measures]
            cells = {row.stage: cell for row in asked if (cell := row.primary) is not None}
            name = next((row.own for row in asked), "")
            note = _format_others(plan, cells)
            charts.append(_chart(plan, key, benchmark, name, cells, shares, note))
        changed = _chart(plan, key, "", "changed tokens", shares, {}, _CHANGED)
        charts.append(replace(changed, intervals="the least and the most of the seeds"))
    return [chart for chart in charts if chart.curves]


def _chart(
    plan: Plan, key: str, benchmark: str, measure: str, cells: Cells, shares: Cells, note: str
) -> Chart:
    values = plan.recipe.sweep[key]
    numbers = [one for one in values if isinstance(one, (int, float)) and not isinstance(one, bool)]
    are_numbers = len(numbers) == len(values)
    curves: dict[str, list[Point]] = {}
    for label, planned in plan.stages.items():
        if key not in planned.values or label not in cells:
            continue
        others = {other: value for other, value in planned.values.items() if other != key}
        here = planned.values[key]
        x = float(here) if are_numbers else format_value(values, here)
        words = f"{shares[label].value:.1f} % changed" if label in shares else ""
        name = label_of(plan.recipe, planned.name, others)
        curves.setdefault(name, []).append(Point(x, cells[label], words))
    if are_numbers:
        curves = {name: sorted(points, key=attrgetter("x")) for name, points in curves.items()}
    unit = next((cell.unit for cell in cells.values()), "")
    slug = re.sub(r"[^A-Za-z0-9]+", "-", f"sweep-{key}-{benchmark or 'changed'}")
    return Chart(
        name=slug,
        benchmark=benchmark,
        title=f"{measure} against {key}",
        x_title=key,
        y_title=f"{measure}, {unit}",
        curves=[Curve(name, points) for name, points in curves.items()],
        note=note,
        is_log=are_numbers and min(numbers) > 0 and max(numbers) > _LOG_FROM * min(numbers),
    )


def _format_others(plan: Plan, cells: Cells) -> str:
    """The numbers of stages that depend on no swept key, to compare with."""
    words = [
        f"{label} {format_cell(cell, cell.n)}"
        for label, cell in cells.items()
        if not plan.stages[label].values
    ]
    return f"At every value: {'; '.join(words)}." if words else ""


def _share(plan: Plan, label: str, figures: Figures) -> Cell | None:
    """The share of tokens that a stage's row-writing steps changed, mean over seeds, if known."""
    shares, counts = [], []
    for seed in plan.recipe.seeds:
        changed = total = 0.0
        for step in plan.stage_steps[label, seed]:
            share, of = _SHARES.get(step.kind, ("", ""))
            made = figures.get(step.fingerprint, {})
            if share in made and of in made:
                changed, total = changed + made[share] * made[of], total + made[of]
        if total:
            shares.append(100 * changed / total)
            counts.append(total)
    if not shares:
        return None
    spread = stdev(shares) if len(shares) > 1 else None
    return Cell(
        mean(shares), min(shares), max(shares), round(mean(counts)), "%", spread, seeds=len(shares)
    )
