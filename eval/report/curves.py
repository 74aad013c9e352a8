"""The charts of `gap` and `recovery`, and of another benchmark's score by answer length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from eval.benchmarks import recovery
from eval.benchmarks.gap import NAME, fixed_stage
from eval.benchmarks.results import CurvedResult
from eval.report.cells import ByStage, cell_of
from eval.report.types import Chart, Curve, Point

if TYPE_CHECKING:
    from pipeline.plan.plan import Plan

_RATE = "share of reference tokens that the model fills itself"
_LOSS = "loss of a reference token, nats (lower is better)"


def gap_charts(plan: Plan, found: Mapping[str, ByStage]) -> list[Chart]:
    """The charts of finished results; none if the recipe does not evaluate `gap`."""
    if NAME not in found or NAME not in plan.recipe.evaluate:
        return []
    results = _curved(plan, found[NAME])
    fixed = fixed_stage(next(iter(plan.stages.values())).recipe)
    charts = [
        Chart(
            name=f"{NAME}-own",
            benchmark=NAME,
            title="Reference tokens after a model's own",
            x_title=_RATE,
            y_title=_LOSS,
            curves=_curves(results, "own", is_rate=True),
            note="Each stage reads contexts that it wrote itself, at the same places and with the "
            "same noise. A flat line: its own tokens are those of the reference, or do not disturb "
            "it.",
        )
    ]
    if fixed is not None and len(plan.stages) > 1:
        whose = f"All stages read the same contexts, written by {fixed}"
        if _several_writers(plan, fixed):
            whose = (
                f"Stages read contexts that {fixed} wrote at their own point of the sweep, so only "
                "those of one point the same ones"
            )
        charts.append(
            Chart(
                name=f"{NAME}-fixed",
                benchmark=NAME,
                title=f"Reference tokens after those of {fixed}",
                x_title=_RATE.replace("the model", fixed),
                y_title=_LOSS,
                curves=_curves(results, "fixed", is_rate=True),
                note=f"{whose}: what differs is how they read, not what they wrote.",
            )
        )
    charts.append(_by_length(results))
    return [chart for chart in charts if chart.curves]


def recovery_charts(plan: Plan, found: Mapping[str, ByStage]) -> list[Chart]:
    """The charts of finished results; none if the recipe does not evaluate `recovery`."""
    if recovery.NAME not in found or recovery.NAME not in plan.recipe.evaluate:
        return []
    results = _curved(plan, found[recovery.NAME])
    fixed = recovery.options_of(next(iter(plan.stages.values())).recipe).fixed
    same = f"All stages continue the same beginnings, written by {fixed}."
    if fixed is not None and _several_writers(plan, fixed):
        same = f"Stages continue the beginnings of {fixed} at their own point of the sweep."
    charts = [
        Chart(
            name=f"{recovery.NAME}-{name}",
            benchmark=recovery.NAME,
            title=f"Right answers after replaced tokens of {whose}",
            x_title="tokens replaced before the cut",
            y_title="right in the end, %",
            curves=_curves(results, name, is_rate=True),
            note=note,
        )
        for name, whose, note in (
            ("own", "the stage's own", "Each stage continues its own answers."),
            ("fixed", fixed, same),
        )
        if name == "own" or len(plan.stages) > 1
    ]
    return [chart for chart in charts if chart.curves]


def _several_writers(plan: Plan, fixed: str) -> bool:
    """Whether a sweep has the fixed stage at several points, of which each stage has its own."""
    return len({stage.siblings.get(fixed) for stage in plan.stages.values()}) > 1


def _curved(plan: Plan, found: ByStage) -> dict[str, dict[int, CurvedResult]]:
    """The results of a benchmark that has charts, by stage and seed."""
    return {stage: cast(dict[int, CurvedResult], found[stage]) for stage in plan.stages}


def _by_length(results: Mapping[str, Mapping[int, CurvedResult]]) -> Chart:
    found = [one["curves"]["length"] for seeds in results.values() for one in seeds.values()
             if "length" in one["curves"]]  # fmt: skip
    of = found[0].get("of", "") if found else ""
    unit = next(iter(found[0]["measures"].values()))["unit"] if found else ""
    return Chart(
        name=f"{NAME}-length",
        benchmark=NAME,
        title=f"{of} by answer length",
        x_title="tokens of the reference",
        y_title=f"{of}, {unit}",
        curves=_curves(results, "length", is_rate=False),
        note="Test rows in thirds by the length of their reference: where errors add up, long "
        "answers suffer first.",
    )


def _curves(
    results: Mapping[str, Mapping[int, CurvedResult]], name: str, *, is_rate: bool
) -> list[Curve]:
    """A curve for each stage that has it, over its finished seeds."""
    curves = []
    for stage, seeds in results.items():
        having = [result["curves"][name] for result in seeds.values() if name in result["curves"]]
        places = dict.fromkeys(place for one in having for place in one["measures"])
        points = [
            Point(float(place) if is_rate else place, cell)
            for place in places
            if (cell := cell_of(having, place)) is not None
        ]
        if points:
            curves.append(Curve(stage, points))
    return curves
