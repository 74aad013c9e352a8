"""The tables of numbers behind charts."""

from __future__ import annotations

import math

from eval.report.text import format_number
from eval.report.types import Cell, Chart, Curve


def chart_table(chart: Chart) -> tuple[list[str], list[list[str]]]:
    """Return head and body of the numbers that a chart shows.

    Curves that are joined have a row each and a column for every x; other points have a row each.
    """
    if chart.is_long:
        return ["stage", "first", "lowest", "last"], [_ends(chart, curve) for curve in chart.curves]
    places = places_of(chart)
    if not chart.is_joined:
        points = [(curve, point) for curve in chart.curves for point in curve.points]
        largest = max((abs(x) for x in places if not isinstance(x, str)), default=0)
        return ["stage", chart.x_title, chart.y_title], [
            [
                point.label or curve.name,
                point.x if isinstance(point.x, str) else f"{point.x:,.{three_digits(largest)}f}",
                _cell(point.cell),
            ]
            for curve, point in points
        ]
    body = []
    for curve in chart.curves:
        cells = {
            point.x: _cell(point.cell) + (f" ({point.label})" if point.label else "")
            for point in curve.points
        }
        body.append([curve.name, *(cells.get(place, "") for place in places)])
    return ["stage", *map(format_x, places)], body


def _ends(chart: Chart, curve: Curve) -> list[str]:
    """The first, lowest and last point of a curve, each with its label."""
    low = min(curve.points, key=lambda point: point.cell.value)
    cells = []
    for point in (curve.points[0], low, curve.points[-1]):
        number = format_number(point.cell.value, point.cell.unit)
        cells.append(f"{_cell(point.cell) if chart.intervals else number} ({point.label})")
    return [curve.name, *cells]


def places_of(chart: Chart) -> list[float | str]:
    """Every x of a chart once: numbers in order, words as they come."""
    places = list(dict.fromkeys(point.x for curve in chart.curves for point in curve.points))
    numbers = [place for place in places if not isinstance(place, str)]
    return sorted(numbers) if len(numbers) == len(places) else places


def format_x(x: float | str) -> str:
    """A value on the x axis, to three significant digits, or without decimals from 1000."""
    return x if isinstance(x, str) else f"{x:.3g}" if abs(x) < 1000 else f"{x:,.0f}"


def three_digits(largest: float) -> int:
    """How many decimals show three digits of a number, at most four."""
    return min(4, max(0, 2 - math.floor(math.log10(largest)))) if largest else 1


def _cell(cell: Cell) -> str:
    """Such as '2.130 [2.010, 2.250]'; the heading has the unit."""
    value, low, high = (format_number(one, cell.unit) for one in (cell.value, cell.low, cell.high))
    return f"{value} [{low}, {high}]"
