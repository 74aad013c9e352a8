"""The report for programs: CSV and JSON, every number, unrounded."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from eval.report.text import format_outcomes
from eval.report.types import Cell, Report

_COLUMNS: tuple[str, ...] = (
    "benchmark", "stage", "method", "measure", "unit", "better", "value", "low", "high", "spread",
    "n", "seeds", "difference", "difference_low", "difference_high", "difference_n", "p_value",
    "p_adjusted", "compared", "verdict", "detectable", "mcnemar", "difference_seeds", "published",
    "outcomes", "chart", "x", "recipe_fingerprint",
)  # fmt: skip
Line = dict[str, Any]


def csv_text(report: Report) -> str:
    """One line a measure, a point of a chart, and a figure of what a stage cost."""
    output = io.StringIO()
    writer = csv.DictWriter(output, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    fingerprint = report.made.fingerprint if report.made else ""
    of_each = report.joined.fingerprints if report.joined else {}
    for line in (*_measures(report), *_points(report), *_costs(report)):
        recipe = line["stage"].partition("/")[0]
        writer.writerow({**line, "recipe_fingerprint": of_each.get(recipe, fingerprint)})
    return output.getvalue().rstrip("\n")


def _measures(report: Report) -> Iterator[Line]:
    for row in report.rows:
        shared = {"benchmark": row.benchmark, "stage": row.stage, "method": row.method}
        for name, cell in row.measures.items():
            line = {**shared, "measure": name, "seeds": row.seeds, **_of_cell(cell)}
            if name == row.own:
                line |= {"published": row.published, "outcomes": format_outcomes(row)}
            if (found := row.differences.get(name)) is not None:
                line |= {"difference": found.value, "p_value": found.p_value}
                line |= {"p_adjusted": found.p, "compared": found.compared}
                line |= {"verdict": found.verdict, "detectable": found.detectable}
                line |= {"mcnemar": found.mcnemar}
                line |= {"difference_low": found.low, "difference_high": found.high}
                line |= {"difference_n": found.n, "difference_seeds": found.seeds}
            yield line


def _points(report: Report) -> Iterator[Line]:
    """The stage is the curve's name; of points that are not joined, the point's label."""
    for chart in report.charts:
        for curve in chart.curves:
            for point in curve.points:
                stage = curve.name if chart.is_joined else point.label or curve.name
                line = {"benchmark": chart.benchmark, "stage": stage, "measure": chart.y_title}
                yield {**line, "chart": chart.name, "x": point.x, **_of_cell(point.cell)}


def _of_cell(cell: Cell) -> Line:
    """Its columns: those of all fields with one value."""
    return {name: value for name, value in asdict(cell).items() if name != "per_seed"}


def _costs(report: Report) -> Iterator[Line]:
    bill = report.bill
    for cost in report.costs:
        figures: dict[str, tuple[float | None, str]] = {
            "time": (cost.seconds, "s"),
            "tokens trained": (cost.tokens_trained, "tokens"),
            "padding": (cost.padding, "share"),
            "tokens written": (cost.tokens_generated, "tokens"),
            "peak memory": (cost.peak_memory, "bytes"),
        }
        if (chain := cost.chain) is not None and bill is not None:
            figures |= {
                "time in all": (chain.seconds, "s"),
                f"times {report.baseline}": (cost.times, "times"),
                "trained in all": (chain.tokens_trained, "tokens"),
                "written in all": (chain.tokens_generated, "tokens"),
                f"{bill.device}-hours": (chain.device_hours, "hours"),
            }
            if (price := bill.price(chain)) is not None:
                figures["price"] = (price, bill.currency)
        for name, (value, unit) in figures.items():
            yield {"stage": cost.stage, "measure": name, "unit": unit, "value": value}


def json_text(report: Report) -> str:
    """Everything, for programs."""
    everything = asdict(report)
    if report.joined is None:
        del everything["joined"]
    text = json.dumps(everything, indent=1, ensure_ascii=False)
    return text.encode(errors="backslashreplace").decode()  # half characters as JSON writes them
